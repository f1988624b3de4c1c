"""The beginnings of files at addresses, by HTTP ranges: a few MB of a file of any size, resumed where it breaks off.

Redirects are followed here, not by the library: a token is sent to the host that was asked and to no other, and later
ranges go straight to where the first led. An address that ignores ranges is read as one stream that is closed as soon
as the header is read. Messages name the address without its query, which may carry a signature.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from provision.errors import ProvisionError, Unreachable, UsageError

if TYPE_CHECKING:
    import httpx

_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 30.0
_DEADLINE_S = 600.0
"""For all of one file: a server that sends a byte now and then must not hold us for ever."""
_ATTEMPTS = 4
"""In a row without a single byte; an attempt that brought some starts the count anew."""
_MOST_BREAKS = 20
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 20.0
_MOST_REDIRECTS = 5
_LONGEST_DOCUMENT_BYTES = 8 * 2**20
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)

Report = Callable[[str], None]
_T = TypeVar("_T")


def silent(_text: str) -> None:
    """Tells nobody."""


def endpoint_of(text: str, what: str) -> str:
    """An address as the user gave it, without a slash at its end. Raises UsageError."""
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}" if url.startswith(("127.", "localhost")) else f"https://{url}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise UsageError(f"'{shown(text)}' is not an address of {what}", hint="write it like https://mirror.example")
    return url.rstrip("/")


def shown(url: str) -> str:
    """`url` without what may be secret: user, password, query."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        netloc = host if parts.port is None else f"{host}:{parts.port}"
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))


class Remote:
    """One session with a registry or hub: its token, its retries, and how many bytes were read from it.

    `token` goes to the origin of `endpoint` alone, and over plain http only to this machine.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        token: str | None = None,
        report: Report = silent,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.endpoint = endpoint
        self.report = report
        self.bytes_read = 0
        self._pause = pause
        self._token = token
        self._clients: dict[str, httpx.Client] = {}
        parts = urlsplit(endpoint)
        self._origin = _origin(endpoint)
        self.withholds_token = bool(token) and parts.scheme == "http" and not _is_loopback(parts.hostname or "")

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def document(self, path: str, *, accept: str = "application/json", missing: str) -> tuple[Any, dict[str, str]]:
        """The JSON at `path` (or whole address) and the answer's headers, at most 8 MiB.

        `missing` is the line for a 404. Raises Unreachable, UsageError where there is no such thing.
        """
        url = path if "://" in path else self.endpoint + path
        deadline = time.monotonic() + _DEADLINE_S
        content, headers = self._retried(url, lambda: self._document(url, accept, missing, deadline))
        try:
            return json.loads(content), headers
        except (ValueError, RecursionError) as error:
            raise Unreachable(
                f"{shown(url)} does not answer with JSON", hint=_look(url), code="wrong-answer"
            ) from error

    def _document(self, url: str, accept: str, missing: str, deadline: float) -> tuple[bytes, dict[str, str]]:
        with self.open(url, {"Accept": accept}, missing) as response:
            data = bytearray()
            for chunk in response.iter_bytes():
                self.check_deadline(url, deadline)
                data += chunk
                self.bytes_read += len(chunk)
                if len(data) > _LONGEST_DOCUMENT_BYTES:
                    raise Unreachable(
                        f"{shown(url)} answers with more than {_LONGEST_DOCUMENT_BYTES // 2**20} MiB",
                        hint=_look(url),
                        code="wrong-answer",
                    )
            return bytes(data), {name.lower(): value for name, value in response.headers.items()}

    @contextmanager
    def open(self, url: str, headers: dict[str, str], missing: str) -> Iterator[httpx.Response]:
        """The answer to a GET after all redirects, its body unread. `response.url` is where it led."""
        with self._followed(url, headers) as response:
            self._judge(url, response, missing)
            yield response

    @contextmanager
    def _followed(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        at = url
        for _ in range(_MOST_REDIRECTS + 1):
            client = self._client(at)
            with client.stream("GET", at, headers=headers | self._authorization(at)) as response:
                target = response.headers.get("location")
                if response.status_code not in (301, 302, 303, 307, 308) or not target:
                    yield response
                    return
            following = joined(at, target)
            if following is None or (at.startswith("https:") and following.startswith("http:")):
                raise Unreachable(
                    f"{shown(at)} redirects to {shown(following or target)[:200]!r}, which is not followed",
                    hint=_look(url),
                    code="unsafe-redirect",
                )
            at = following
        raise Unreachable(
            f"{shown(url)} redirects more than {_MOST_REDIRECTS} times", hint=_look(url), code="too-many-redirects"
        )

    def _authorization(self, url: str) -> dict[str, str]:
        if self._token and not self.withholds_token and _origin(url) == self._origin:
            return {"Authorization": f"Bearer {self._token}"}
        return {}

    def _client(self, url: str) -> httpx.Client:
        """One per origin: each has its own certificates, and loopback is reached without a proxy."""
        import httpx

        origin = _origin(url)
        if origin not in self._clients:
            self._clients[origin] = httpx.Client(
                verify=httpx.create_ssl_context() if url.startswith("https:") else False,
                trust_env=not _is_loopback(urlsplit(url).hostname or ""),
                follow_redirects=False,
                timeout=httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
                # Compressed bytes are not the file's bytes.
                headers={"Accept-Encoding": "identity", "User-Agent": "provision"},
            )
        return self._clients[origin]

    def _judge(self, url: str, response: httpx.Response, missing: str) -> None:
        status = response.status_code
        if status in (200, 206, 416):
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "text/html":
                raise Unreachable(
                    f"{shown(url)} answers with a web page instead of the file: a login or a proxy stands between",
                    hint=_look(url),
                    code="wrong-answer",
                )
            encoding = response.headers.get("content-encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                raise Unreachable(
                    f"{shown(url)} sends its answer compressed ({encoding}), though asked not to",
                    hint="another mirror: --endpoint URL",
                    code="wrong-answer",
                )
            return
        if status in _PASSING:
            raise _Passing(url, status, response.headers.get("retry-after"))
        if status == 401 or status == 403:
            raise Unreachable(f"{shown(url)} refuses access (HTTP {status}){self._why_refused()}",
                              hint=self._access_hint(), code="unauthorized")  # fmt: skip
        if status in (404, 410):
            raise UsageError(missing, hint=f"look at {shown(url)}", code="not-found")
        raise Unreachable(f"{shown(url)} answers HTTP {status}", hint=_look(url), code="http-error")

    def _why_refused(self) -> str:
        if self.withholds_token:
            return "; the token is not sent over plain http"
        return ", also with the token" if self._token else ": private, gated, or no such model"

    def _access_hint(self) -> str:
        if self.withholds_token:
            return "give the mirror's https address"
        return "accept its licence on the model's page" if self._token else "export HF_TOKEN=..., with access to it"

    def _retried(self, url: str, act: Callable[[], _T]) -> _T:
        """`act`, again after what can pass by itself."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return act()
            except Exception as error:
                self.wait_or_raise(url, error, attempt)
        raise AssertionError("the last attempt raises")

    def wait_or_raise(self, url: str, error: Exception, attempt: int) -> None:
        """Wait before the next attempt. Raises the error, in our words, where another would be of no use."""
        failure = as_failure(url, error)
        if attempt >= _ATTEMPTS or not _can_pass(error):
            raise failure from error
        wait = _FIRST_PAUSE_S * 2.0 ** (attempt - 1)
        if isinstance(error, _Passing) and error.retry_after_s is not None:
            wait = float(error.retry_after_s)
        wait = min(_LONGEST_PAUSE_S, wait)
        self.report(f"{failure.message}; again in {wait:g} s")
        self._pause(wait)

    def check_deadline(self, url: str, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise Unreachable(
                f"{shown(url)} is too slow: not done after {_DEADLINE_S / 60:g} minutes",
                hint="another mirror: --endpoint URL",
                code="timeout",
            )


class HttpFile:
    """A file at an address as a range source (`provision.ranges`). Made for forward reading of its beginning.

    `size` is what the listing said, and checked against the server's. Raises Unreachable where the server does not
    answer as it should, UsageError where there is no such file.
    """

    def __init__(self, remote: Remote, url: str, *, label: str, size: int | None = None) -> None:
        self.label = label
        self.size = size
        self.ignores_ranges = False
        self._remote = remote
        self._url = url
        self._target = url
        """Where the last redirect led."""
        self._missing = f"there is no {label}"
        self._deadline = time.monotonic() + _DEADLINE_S
        self._stream: Iterator[bytes] | None = None
        self._stream_at = 0
        self._rest = b""

    def read(self, offset: int, length: int) -> bytes:
        if self.size is not None:
            length = min(length, self.size - offset)
        data = bytearray()
        stalled = breaks = 0
        while len(data) < length:
            before = len(data)
            try:
                whole = self._read_once(offset + before, length - before, data)
            except Exception as error:
                # A redirect's target may have expired; the next attempt asks the address that was given.
                moved, self._target = self._target != self._url, self._url
                self._close_stream()
                stalled = 0 if len(data) > before else stalled + 1
                breaks += 1
                if moved and isinstance(error, Unreachable) and error.code in ("unauthorized", "http-error"):
                    continue
                attempt = _ATTEMPTS if breaks > _MOST_BREAKS else max(1, stalled)
                self._remote.wait_or_raise(self._url, error, attempt)
                continue
            if whole:
                break
        return bytes(data)

    def close(self) -> None:
        self._close_stream()

    def _read_once(self, offset: int, length: int, into: bytearray) -> bool:
        """One request, or more of the stream that is open. True at the end of the file."""
        if self.ignores_ranges:
            return self._from_stream(offset, length, into)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        with self._remote.open(self._target, headers, self._missing) as response:
            self._target = str(response.url)
            if response.status_code == 200:
                self.ignores_ranges = True
                self._note_size(_number(response.headers.get("content-length")))
            elif response.status_code == 416:
                self._note_size(_total(response.headers.get("content-range", "")))
                return True
            else:
                self._check_range(response.headers.get("content-range", ""), offset, length)
                self._collect(response.iter_raw(), length, into)
                return False
        self._remote.report(f"{shown(self._url)} ignores ranges; reading from its start, no further than needed")
        return self._from_stream(offset, length, into)

    def _collect(self, chunks: Iterator[bytes], length: int, into: bytearray) -> None:
        wanted = len(into) + length
        for chunk in chunks:
            self._remote.check_deadline(self._url, self._deadline)
            self._remote.bytes_read += len(chunk)
            into += chunk[: wanted - len(into)]
            if len(into) >= wanted:
                return
        raise _BrokenOff

    def _from_stream(self, offset: int, length: int, into: bytearray) -> bool:
        """Forward reading of one long answer; what lies before `offset` is passed over."""
        if self._stream is None or self._stream_at > offset:
            self._close_stream()
            self._stream = self._streamed()
        wanted = len(into) + length
        while len(into) < wanted:
            if not self._rest:
                chunk = next(self._stream, None)
                if chunk is None:
                    if self.size is None:
                        self.size = self._stream_at
                        return True
                    raise _BrokenOff
                self._rest = chunk
            passed = min(len(self._rest), max(0, offset - self._stream_at))
            taken = self._rest[passed : passed + wanted - len(into)]
            into += taken
            self._stream_at += passed + len(taken)
            self._rest = self._rest[passed + len(taken) :]
            offset = max(offset, self._stream_at)
        return False

    def _streamed(self) -> Iterator[bytes]:
        with self._remote.open(self._url, {}, self._missing) as response:
            for chunk in response.iter_raw():
                self._remote.check_deadline(self._url, self._deadline)
                self._remote.bytes_read += len(chunk)
                yield chunk

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()  # type: ignore[attr-defined]  # a generator: leaving it closes the connection
        self._stream, self._stream_at, self._rest = None, 0, b""

    def _check_range(self, text: str, offset: int, length: int) -> None:
        found = _CONTENT_RANGE.fullmatch(text.strip())
        if found is None or int(found[1]) != offset or int(found[2]) < offset or int(found[2]) >= offset + length:
            raise Unreachable(
                f"{shown(self._url)} answers with another range than was asked for: "
                f"'{text[:60]}' for bytes from {offset}",
                hint="another mirror: --endpoint URL",
                code="wrong-answer",
            )
        self._note_size(None if found[3] == "*" else int(found[3]))

    def _note_size(self, size: int | None) -> None:
        if size is None:
            return
        if self.size is not None and self.size != size:
            raise Unreachable(
                f"{shown(self._url)} has {size:,} bytes, not the {self.size:,} that were announced",
                hint="try again: it may just have been replaced",
                code="wrong-answer",
            )
        self.size = size


class _Passing(Exception):
    """A status that may be another one in a moment."""

    def __init__(self, url: str, status: int, retry_after: str | None) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.retry_after_s = _number(retry_after)


class _BrokenOff(Exception):
    """The body ended before it was whole."""


def _can_pass(error: Exception) -> bool:
    import httpx

    if isinstance(error, (_Passing, _BrokenOff)):
        return True
    if isinstance(error, httpx.ConnectError):
        return "CERTIFICATE" not in str(error) and "SSL" not in str(error)
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def as_failure(url: str, error: Exception) -> ProvisionError:
    """Any failure of a request as one line with a hint. What is not one passes as the bug it is."""
    import httpx

    if isinstance(error, ProvisionError):
        return error
    if isinstance(error, _Passing):
        if error.status == 429:
            return Unreachable(
                f"{shown(url)} asks for fewer requests (HTTP 429)", hint="wait some minutes", code="rate-limited"
            )
        return Unreachable(f"{shown(url)} answers HTTP {error.status}", hint=_look(url), code="http-error")
    if isinstance(error, _BrokenOff):
        return Unreachable(f"{shown(url)} breaks off in the middle", hint="try again", code="broken-off")
    host = shown(url)
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"{host} does not answer in time", hint=_look(url), code="timeout")
    if isinstance(error, httpx.ConnectError):
        reason = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return Unreachable(
                f"the certificate of {host} is not one that is trusted here",
                hint="export SSL_CERT_FILE=ca.pem, with the certificate of its authority",
                code="unknown-certificate",
            )
        if "refused" in reason.lower():
            return Unreachable(
                f"nothing listens at {host} (connection refused)", hint=_look(url), code="connection-refused"
            )
        return Unreachable(f"cannot connect to {host}: {reason}", hint=_look(url), code="unreachable")
    if isinstance(error, (httpx.HTTPError, httpx.InvalidURL)):
        return Unreachable(f"{host} breaks the connection: {type(error).__name__}", hint=_look(url), code="broken-off")
    raise error


def _look(url: str) -> str:
    return f"curl -sSIL {shown(url)}"


def joined(base: str, target: str) -> str | None:
    """Where `target` leads from `base`; None where that is no address that HTTP reaches."""
    try:
        url = urljoin(base, target)
        parts = urlsplit(url)
        reachable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return url if reachable and url.isprintable() else None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{port}"


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _total(content_range: str) -> int | None:
    return _number(content_range.rpartition("/")[2])
