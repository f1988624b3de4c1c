"""A loopback HTTP server with the routes of the Hugging Face hub, which can misbehave in every way a mirror does.

`Hub.add` puts files into repositories; `mode` says what goes wrong with files from now on; `requests` tells what was
asked, with its headers. Files on disk are sent in pieces, so sparse ones of any size can be served.
"""

from __future__ import annotations

import gzip
import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """What goes wrong; the default is nothing. `times` is for how many requests for files, None for all."""

    redirect_to: str | None = None
    """Files are on another host (`http://localhost:PORT`): answer 307."""
    circle: bool = False
    """With `redirect_to`: from there on to itself."""
    ignores_ranges: bool = False
    ignores_listed_length: bool = False
    """With `ignores_ranges`: no Content-Length either, the end is the end of the connection."""
    wrong_range: bool = False
    compressed: bool = False
    web_page: bool = False
    status: int | None = None
    retry_after: str | None = None
    cut_after_bytes: int | None = None
    pause_s: float = 0.0
    """Before every piece."""
    claims_bytes: int | None = None
    """Total size in Content-Range, whatever the file has."""
    times: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    host: str
    path: str
    headers: dict[str, str]
    sent_bytes: int


@dataclass(slots=True)
class _State:
    mode: Mode = field(default_factory=Mode)
    used: int = 0


class Hub:
    """Repositories by name, each a set of files by path. Use as a context manager."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, Path | bytes]] = {}
        self._state = _State()
        self._lock = threading.Lock()
        self.requests: list[Asked] = []
        self.page_size = 1000
        self.listed: object = None
        """Answered instead of a listing."""
        self._server = _Listener(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def other_host(self) -> str:
        """The same server under another name: what redirects lead to."""
        return f"http://localhost:{self.port}"

    @property
    def mode(self) -> Mode:
        return self._state.mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._state = _State(mode)

    @property
    def sent_bytes(self) -> int:
        """Of files, in all requests so far."""
        return sum(asked.sent_bytes for asked in self.requests)

    def add(self, repository: str, path: str, content: Path | bytes) -> None:
        self._files.setdefault(repository, {})[path] = content

    def take_mode(self) -> Mode:
        with self._lock:
            state = self._state
            if state.mode.times is not None and state.used >= state.mode.times:
                return Mode()
            state.used += 1
            return state.mode

    def note(self, asked: Asked) -> None:
        with self._lock:
            self.requests.append(asked)

    def listing(self, repository: str) -> list[dict[str, object]] | None:
        if repository not in self._files:
            return None
        folders = [{"type": "directory", "path": "folder", "size": 0, "oid": "0" * 40}]
        return folders + [
            {"type": "file", "path": path, "size": _size(content), "oid": "0" * 40}
            | ({"lfs": {"oid": "ab" * 32, "size": _size(content), "pointerSize": 135}} if _size(content) > 999 else {})
            for path, content in sorted(self._files[repository].items())
        ]

    def file(self, repository: str, path: str) -> Path | bytes | None:
        return self._files.get(repository, {}).get(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closes early is what these tests are about."""


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _pieces(content: Path | bytes, start: int, end: int) -> Iterator[bytes]:
    if isinstance(content, bytes):
        for at in range(start, end, _PIECE_BYTES):
            yield content[at : min(end, at + _PIECE_BYTES)]
        return
    with content.open("rb") as stream:
        stream.seek(start)
        left = end - start
        while left > 0 and (piece := stream.read(min(left, _PIECE_BYTES))):
            left -= len(piece)
            yield piece


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            """Tests read `requests`."""

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            sent = 0
            try:
                if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main", path):
                    self._list(unquote(found[1]), query)
                elif found := re.fullmatch(r"/(?:cdn/)?([^/]+/[^/]+)/resolve/main/(.+)", path):
                    sent = self._file(unquote(found[1]), unquote(found[2]), moved=path.startswith("/cdn/"))
                else:
                    self._answer(404, b"not found")
            finally:
                host = self.headers.get("Host", "").partition(":")[0]
                hub.note(Asked(host=host, path=self.path, headers=dict(self.headers), sent_bytes=sent))

        def _list(self, repository: str, query: str) -> None:
            files = hub.listing(repository)
            if files is None:
                self._answer(401, b'{"error":"Invalid username or password."}', "application/json")
                return
            start = int((re.search(r"cursor=(\d+)", query) or [0, 0])[1])
            page = files[start : start + hub.page_size]
            more = {}
            if start + hub.page_size < len(files):
                following = f"{hub.url}/api/models/{repository}/tree/main?cursor={start + hub.page_size}"
                more["Link"] = f'<{following}>; rel="next"'
            body = json.dumps(page if hub.listed is None else hub.listed).encode()
            self._answer(200, body, "application/json", more)

        def _answer(
            self, status: int, body: bytes, kind: str = "text/plain", more: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _file(self, repository: str, path: str, *, moved: bool) -> int:
            content = hub.file(repository, path)
            if content is None:
                self._answer(404, b"Entry not found")
                return 0
            if hub.mode.redirect_to is not None and (hub.mode.circle or not moved):
                target = f"{hub.mode.redirect_to}/cdn/{repository}/resolve/main/{path}?signature=secret-of-the-address"
                self._answer(307, b"", more={"Location": target})
                return 0
            mode = hub.take_mode()
            if mode.status is not None:
                wait = {"Retry-After": mode.retry_after} if mode.retry_after else {}
                self._answer(mode.status, b"this answer is a fault that a test asked for", more=wait)
                return 0
            if mode.web_page:
                self._answer(200, b"<html><body>Please log in</body></html>", "text/html; charset=utf-8")
                return 0
            return self._send(content, mode)

        def _send(self, content: Path | bytes, mode: Mode) -> int:
            size = _size(content)
            start, end, status = 0, size, 200
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if asked and not mode.ignores_ranges:
                start, end, status = int(asked[1]), min(size, int(asked[2]) + 1), 206
                if start >= size:
                    self._answer(416, b"", more={"Content-Range": f"bytes */{size}"})
                    return 0
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream")
            if status == 206:
                shift = 7 if mode.wrong_range else 0
                total = mode.claims_bytes or size
                self.send_header("Content-Range", f"bytes {start + shift}-{end + shift - 1}/{total}")
            pieces = _pieces(content, start, end)
            if mode.compressed:
                packed = gzip.compress(b"".join(pieces))
                pieces = iter([packed])
                self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Length", str(len(packed)))
            elif mode.ignores_listed_length:
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(end - start))
            self.end_headers()
            sent = 0
            for piece in pieces:
                if mode.pause_s:
                    time.sleep(mode.pause_s)
                cut = mode.cut_after_bytes
                self.wfile.write(piece if cut is None else piece[: cut - sent])
                sent += len(piece)
                if cut is not None and sent >= cut:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return cut
            if mode.ignores_listed_length:
                self.close_connection = True
            return sent

    return Handler
