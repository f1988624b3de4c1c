"""HTTP to an inference server: short questions, and token streams whose pieces are stamped on arrival.

Every failure to get an answer is `Unreachable` with a hint that can be typed. Proxy variables are not followed to
loopback addresses: a proxy cannot reach them. A key comes from the caller, who takes it from the environment.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from provision.errors import Unreachable, UsageError

if TYPE_CHECKING:
    import ssl

    import httpx

ANSWER_TIMEOUT_S = 5.0
"""For questions that a healthy server answers at once."""
STREAM_TIMEOUT_S = 600.0
"""Between two pieces of a stream: the first one may wait for a model to load and for a queue."""
CONNECT_TIMEOUT_S = 5.0
_OLLAMA_PORT = 11434


class RequestFailed(Unreachable):
    """The server answered one generation request with an error, or broke it off."""

    default_code = "request-failed"

    def __init__(self, message: str, *, status: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(slots=True, kw_only=True)
class Usage:
    """What the server says of a finished request. Token counts are the server's; None where it says nothing."""

    prompt_tokens: int | None = None
    """Cached ones included."""
    cached_tokens: int | None = None
    output_tokens: int | None = None
    """Reasoning included."""
    prefill_s: float | None = None
    """Time for the prompt tokens that were not cached."""
    decode_s: float | None = None
    """From the first output token to the last: output_tokens - 1 intervals."""
    queue_s: float | None = None
    load_s: float | None = None


@dataclass(slots=True, kw_only=True)
class StreamEvent:
    """One line of a stream. The first event of every stream is empty and stands for the response's headers."""

    arrived_s: float
    """time.perf_counter() of the read that completed the line, taken before anything is parsed."""
    answer: bool = False
    """Carries visible text or a tool call."""
    reasoning: bool = False
    tokens_so_far: int | None = None
    """Where the server counts along (vLLM with continuous usage)."""
    usage: Usage | None = None
    finished: bool = False
    """The server has announced the end."""
    stop_reason: str | None = None


class SendClock:
    """httpx trace hook: notes the instant before the request is written, after the connection stands."""

    __slots__ = ("sent_s",)

    def __init__(self) -> None:
        self.sent_s: float | None = None

    async def __call__(self, event: str, _info: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            self.sent_s = time.perf_counter()


def normalise_url(text: str) -> str:
    """`host:11434`, `http://host:11434/` and `http://host:11434/v1` as `http://host:11434`. Raises UsageError."""
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"'{text}' is not an http address", hint="write it like http://127.0.0.1:11434")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def is_loopback(url: str) -> bool:
    from ipaddress import ip_address

    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def fetch(
    url: str,
    path: str,
    *,
    body: dict[str, Any] | None = None,
    api_key: str | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
    accept: tuple[int, ...] = (),
) -> httpx.Response:
    """GET, or POST when there is a body. Raises Unreachable on refusal, timeout and any status from 400 that is not
    in `accept`."""
    import httpx

    try:
        with httpx.Client(
            verify=tls_context(url),
            trust_env=not is_loopback(url),
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            headers=_headers(api_key),
        ) as client:
            response = client.request("GET" if body is None else "POST", url + path, json=body)
    except httpx.HTTPError as error:
        raise unreachable(url, error) from error
    if response.status_code >= 400 and response.status_code not in accept:
        raise refused(url, path, response.status_code, error_text(response.content))
    return response


def fetch_json(
    url: str,
    path: str,
    *,
    body: dict[str, Any] | None = None,
    api_key: str | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> dict[str, Any]:
    """The JSON object at `path`; as `fetch`, and Unreachable when the answer is something else."""
    response = fetch(url, path, body=body, api_key=api_key, timeout_s=timeout_s)
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Unreachable(
            f"{url}{path} does not answer with a JSON object: no inference server that provision knows",
            hint=f"curl -s {url}{path}",
            code="not-an-engine",
        )
    return document


def stream_client(url: str, *, api_key: str | None, tls: ssl.SSLContext | bool) -> httpx.AsyncClient:
    """A client for one virtual user: one connection at a time, a new one per request.

    A pool shared by many users delays simultaneous starts by hundreds of milliseconds (httpcore assigns connections
    in quadratic time), and llama.cpp's server closes connections that it promised to keep.
    """
    import httpx

    return httpx.AsyncClient(
        verify=tls,
        trust_env=not is_loopback(url),
        timeout=httpx.Timeout(STREAM_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
        headers={**_headers(api_key), "Accept-Encoding": "identity"},
    )


def tls_context(url: str) -> ssl.SSLContext | bool:
    """To be made once and shared: loading the certificates takes 20 ms. False where no TLS is spoken.

    SSL_CERT_FILE and SSL_CERT_DIR name other certificates, on loopback too: gateways often have their own authority.
    """
    import httpx

    return httpx.create_ssl_context() if url.startswith("https:") else False


async def post_lines(
    client: httpx.AsyncClient, url: str, path: str, body: dict[str, Any], clock: SendClock
) -> AsyncGenerator[tuple[float, bytes], None]:
    """Lines of a streamed reply without their ends, each with the time of the read that completed it.

    The first item is `(time, b"")` for the headers. Raises RequestFailed for a status from 400; httpx errors pass.
    """
    async with client.stream("POST", url + path, json=body, extensions={"trace": clock}) as response:
        now = time.perf_counter()
        if response.status_code >= 400:
            text = error_text(await response.aread())
            raise RequestFailed(f"HTTP {response.status_code}: {text}", status=response.status_code)
        yield now, b""
        rest = b""
        async for data in response.aiter_raw():
            now = time.perf_counter()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield now, line.rstrip(b"\r")
        if rest.strip():
            yield now, rest


def unreachable(url: str, error: Exception) -> Unreachable:
    """The httpx error in one line, with what to type next."""
    import httpx

    hint = f"curl -sv {url}/"
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"{url} does not answer in time", hint=hint, code="timeout")
    if isinstance(error, httpx.ConnectError):
        reason = str(error)
        if "refused" in reason.lower() or "all connection attempts failed" in reason.lower():
            where = "systemctl status ollama" if is_loopback(url) and urlsplit(url).port == _OLLAMA_PORT else hint
            return Unreachable(f"nothing listens at {url} (connection refused)", hint=where, code="connection-refused")
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return Unreachable(
                f"the certificate of {url} is signed by nobody known here",
                hint="export SSL_CERT_FILE=ca.pem, with the certificate of its authority",
                code="unknown-certificate",
            )
        return Unreachable(f"cannot connect to {url}: {reason}", hint=hint, code="unreachable")
    return Unreachable(f"{url} broke the connection: {error or type(error).__name__}", hint=hint, code="broken-off")


def refused(url: str, path: str, status: int, text: str) -> Unreachable:
    """A status from 400 as an error."""
    if status in (401, 403):
        return Unreachable(
            f"{url} wants an API key, or another one (HTTP {status})",
            hint="export PROVISION_API_KEY=..., or name another variable with --api-key-env",
            code="unauthorized",
        )
    if status == 404:
        return Unreachable(
            f"{url}{path} does not exist (HTTP 404): {text}", hint=f"curl -s {url}/v1/models", code="not-found"
        )
    return Unreachable(f"{url}{path} answers HTTP {status}: {text}", hint=f"curl -s {url}{path}", code="http-error")


def error_text(content: bytes) -> str:
    """The message inside an error body of any of the engines, or its start."""
    import json

    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, dict):
        inner = document.get("error", document)
        message = inner.get("message") if isinstance(inner, dict) else inner
        if isinstance(message, str) and message:
            return message[:300]
    return " ".join(content.decode("utf-8", "replace").split())[:300] or "no reason given"


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
