"""HTTP file serving that can misbehave on request: slow, cut short, corrupted, missing."""

from __future__ import annotations

import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong with files. The default is nothing.

    `status`: answer this instead of the file (404, 500 ...). `throttle_bytes_per_s`: of each transfer.
    `cut_after_bytes`: close the connection after so many bytes of a body that promised more. `corrupt`: the first
    byte sent is wrong. `times`: only the first so many affected requests; None for all. `only`: a regular expression
    that the request's path must contain.
    """

    status: int | None = None
    throttle_bytes_per_s: int | None = None
    cut_after_bytes: int | None = None
    corrupt: bool = False
    times: int | None = None
    only: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it was answered; `sent_bytes` counts the body that left before the end or the cut."""

    method: str
    path: str
    host: str
    range: str | None
    status: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server wants to be sent: a file, or a short body with headers (a redirect, an error)."""

    status: int = 200
    file: Path | None = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class FileServer:
    """A threaded HTTP server on any number of addresses. Subclasses say in `answer` what a path means.

    Set `faults` at any time; `requests` tells what was asked and answered, oldest first.
    """

    def __init__(self) -> None:
        self._faults = Faults()
        self._affected = 0
        self._requests: list[Request] = []
        self._lock = threading.Lock()
        self._listeners: dict[str, http.server.ThreadingHTTPServer] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def url(self, address: str = "127.0.0.1") -> str:
        """`http://address:port`; listens on that address of this machine from the first call on."""
        if address not in self._listeners:
            listener = _Listener((address, 0), _handler_for(self))
            thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            self._listeners[address] = listener
            self._threads.append(thread)
        return f"http://{address}:{self._listeners[address].server_port}"

    @property
    def faults(self) -> Faults:
        """What goes wrong from now on; setting it starts the count of `times` anew."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._lock:
            self._faults = faults
            self._affected = 0

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request since the start or the last `reset`."""
        with self._lock:
            return tuple(self._requests)

    def reset(self) -> None:
        """No faults, an empty request log."""
        self.faults = Faults()
        with self._lock:
            self._requests.clear()

    def close(self) -> None:
        """Stop listening; transfers under way are cut."""
        for listener in self._listeners.values():
            listener.shutdown()
            listener.server_close()
        for thread in self._threads:
            thread.join()
        self._listeners.clear()
        self._threads.clear()

    def answer(self, path: str, host: str) -> Answer:
        """What `path`, asked under the host name and port `host`, gets when nothing is wrong."""
        raise NotImplementedError

    def take_faults(self, path: str, with_body: bool) -> Faults:
        """The faults that hold for one request; counts it against `times` if they can show in its answer."""
        with self._lock:
            faults = self._faults
            if not with_body and faults.status is None:
                return Faults()
            if not re.search(faults.only, path) or (faults.times is not None and self._affected >= faults.times):
                return Faults()
            self._affected += 1
            return faults

    def note(self, request: Request) -> None:
        """Append to the request log."""
        with self._lock:
            self._requests.append(request)


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # A slow transfer to a client that has gone must not hold up the end of a test.
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in mid-transfer is what these tests are about."""


def _handler_for(server: FileServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve(with_body=True)

        def do_HEAD(self) -> None:
            self._serve(with_body=False)

        def log_message(self, format: str, *arguments: object) -> None:
            """Tests read `requests` instead."""

        def _serve(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            answer = server.answer(path, self.headers.get("Host", ""))
            # A redirect is not a transfer: faults strike where it leads to.
            faults = Faults() if 300 <= answer.status < 400 else server.take_faults(path, with_body)
            if faults.status is not None:
                answer = Answer(status=faults.status, body=b"this answer is a fault that a test asked for\n")
            status, start, length = self._head(answer)
            sent_bytes = 0
            try:
                if with_body:
                    sent_bytes = self._body(answer, faults, start, length)
            finally:
                asked = (self.command, path, self.headers.get("Host", ""), self.headers.get("Range"))
                server.note(Request(*asked, status, sent_bytes))

        def _head(self, answer: Answer) -> tuple[int, int, int]:
            """Send status and headers; returns the status and which part of the body follows."""
            size = answer.file.stat().st_size if answer.file else len(answer.body)
            status, start, end = answer.status, 0, size
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if answer.file else None
            if wanted:
                start = int(wanted[1])
                end = min(int(wanted[2]) + 1, size) if wanted[2] else size
                status = 206 if start < end else 416
                end = max(start, end)
            self.send_response(status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            elif status == 416:
                self.send_header("Content-Range", f"bytes */{size}")
            if answer.file:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            return status, start, end - start

        def _body(self, answer: Answer, faults: Faults, start: int, length: int) -> int:
            sent_bytes = 0
            began = time.monotonic()
            limit = length if faults.cut_after_bytes is None else min(length, faults.cut_after_bytes)
            rate = faults.throttle_bytes_per_s
            chunk_bytes = _CHUNK_BYTES if rate is None else max(1, min(_CHUNK_BYTES, rate // 10))
            for chunk in _chunks(answer, start, limit, chunk_bytes):
                damaged = bytes([chunk[0] ^ 0xFF]) + chunk[1:] if faults.corrupt and sent_bytes == 0 else chunk
                self.wfile.write(damaged)
                sent_bytes += len(chunk)
                if rate is not None:
                    time.sleep(max(0.0, began + sent_bytes / rate - time.monotonic()))
            if limit < length:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            return sent_bytes

    return Handler


def _chunks(answer: Answer, start: int, length: int, chunk_bytes: int) -> Iterator[bytes]:
    if answer.file is None:
        if answer.body[:length]:
            yield answer.body[:length]
        return
    with answer.file.open("rb") as handle:
        handle.seek(start)
        while length > 0 and (chunk := handle.read(min(chunk_bytes, length))):
            length -= len(chunk)
            yield chunk
