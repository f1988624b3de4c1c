"""`bench --self-test`: the client measured against a server whose times are known, on this machine.

The server runs in a process of its own, so that it does not slow the client down, and writes down when it really sent
what: a machine under load makes the server late, which is not the client's error.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from provision.bench import stats
from provision.bench.run import BenchProgress, run_bench
from provision.domain.measurement import RequestTiming
from provision.domain.record import record
from provision.errors import ProvisionError

_TTFT_S, _TOKENS = 0.1, 40
TOLERANCE_S, TOLERANCE_RATIO = 0.002, 0.05
_MODEL = "known-times"


@record
class SelfTestRow:
    users: int
    figure: str
    """`ttft` or `tpot`."""
    true_s: float
    """Median of what the server did."""
    error_s: float
    """Median of measured less true, per request."""
    within_tolerance: bool


@record
class SelfTest:
    rows: tuple[SelfTestRow, ...]
    passed: bool
    client_cpu_ratio: float | None
    """At the most users."""
    client_lag_p99_s: float | None


def run_self_test(
    *,
    users: tuple[int, ...] = (1, 8),
    tpot_s: float = 0.01,
    on_progress: Callable[[BenchProgress], None] | None = None,
) -> SelfTest:
    """The client's error in TTFT and TPOT; passed when every median is within 2 ms + 5 %. Takes some five seconds.

    The server sends the first token after 0.1 s and each later one after `tpot_s`.

    Raises ProvisionError when the server process does not start or requests to it fail.
    """
    with _server(tpot_s) as url:
        result = run_bench(
            url, users=users, requests_per_user=4, prompt_tokens=64, output_tokens=_TOKENS, on_progress=on_progress
        )
    rows = []
    for level in result.levels:
        if level.error_rate:
            raise ProvisionError(f"the self-test's own server failed: {level.findings[0].message}")
        for figure, measure in (("ttft", _ttft_pair), ("tpot", _tpot_pair)):
            pairs = [pair for pair in map(measure, level.requests) if pair is not None]
            true_s = stats.median(true for _, true in pairs) or 0.0
            error_s = stats.median(measured - true for measured, true in pairs) or 0.0
            good = bool(pairs) and abs(error_s) <= TOLERANCE_S + TOLERANCE_RATIO * true_s
            rows.append(
                SelfTestRow(users=level.users, figure=figure, true_s=true_s, error_s=error_s, within_tolerance=good)
            )
    last = result.levels[-1]
    return SelfTest(
        rows=tuple(rows),
        passed=all(row.within_tolerance for row in rows),
        client_cpu_ratio=last.client_cpu_ratio,
        client_lag_p99_s=last.client_lag_p99_s,
    )


def _ttft_pair(request: RequestTiming) -> tuple[float, float] | None:
    measured, true = stats.ttft_s(request), request.server_prefill_s
    return None if measured is None or true is None else (measured, true)


def _tpot_pair(request: RequestTiming) -> tuple[float, float] | None:
    speed = stats.decode_tokens_per_s(request)
    if speed is None or request.server_decode_s is None or request.output_tokens is None:
        return None
    return 1 / speed, request.server_decode_s / (request.output_tokens - 1)


@contextmanager
def _server(tpot_s: float) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "provision.bench.self_test", str(tpot_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise ProvisionError("the self-test's own server does not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate()


async def _serve() -> None:
    """Until stdin closes, which it does however the parent ends."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        received = time.perf_counter()
        path = head.split(b" ", 2)[1]
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        request = json.loads(await reader.readexactly(length)) if length else {}
        if path == b"/v1/models":
            content = json.dumps({"data": [{"id": _MODEL}]}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        elif path == b"/v1/chat/completions":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            await _generate(writer, received, request)
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client went away
    finally:
        writer.close()


async def _generate(writer: asyncio.StreamWriter, received: float, request: dict[str, Any]) -> None:
    count = int(request["max_tokens"])
    written: list[float] = []
    for token in range(count):
        # Every pause ends at a time fixed beforehand, so that lateness does not add up.
        await asyncio.sleep(received + _TTFT_S + token * _tpot_s() - time.perf_counter())
        written.append(time.perf_counter())
        writer.write(_event({"choices": [{"delta": {"content": "token "}}]}))
    words = len(request["messages"][0]["content"].split())
    end = {
        "choices": [],
        "usage": {"prompt_tokens": words, "completion_tokens": count},
        "timings": {
            "prompt_ms": 1e3 * (written[0] - received),
            "predicted_ms": 1e3 * (written[-1] - written[0]),
        },
    }
    writer.write(_event(end) + b"data: [DONE]\n\n")


def _tpot_s() -> float:
    return float(sys.argv[1])


def _event(message: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"


if __name__ == "__main__":
    asyncio.run(_serve())
