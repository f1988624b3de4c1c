"""Definitions of every figure of a benchmark, as pure functions over request timings.

Token counts (n) are the server's, never counted chunks: one chunk can carry no token or several.

| figure | definition |
|---|---|
| TTFT | first chunk with text, reasoning or a tool call, less the instant before the request is written; connecting is not in it |
| TTFA | the same to the first visible text; differs for models that reason |
| decode tokens/s per user | (n - k) / (t_last - t_first), with k the tokens of the first chunk: 1, unless the server counts along and says more; undefined for n <= k |
| TPOT | 1 / decode tokens/s |
| E2E | t_last less the instant before the request is written |
| e2e tokens/s per user | n / E2E |
| prefill tokens/s | (prompt - cached) / the server's prefill time, or TTFT for a single user where the server tells none; not given when more than a tenth of the prompt was cached |
| system output tokens/s | tokens generated inside the steady window over its length; the steady window runs from the moment the last user has received its first token to the first user's final finish; one user: the whole run |
| whole-run output tokens/s | all output tokens over the time from the first request to the last token, ramp and drain included |
| system total tokens/s | as the whole-run figure, with the uncached prompt tokens added |
| scaling | system output tokens/s over (users x decode tokens/s of one user) |
| concurrent decodes | the most answers that were generated at the same time for more than 2 % of the decoding time |
| server decode delta | client TPOT / server TPOT - 1, median |
| error rate | failed / attempted requests; all distributions are over the successful ones |
| percentiles | nearest rank (inverse of the empirical distribution): p90 from 10 samples, p95 from 20, p99 from 100 |

Inside one request the tokens are taken as evenly spaced between the first and the last one.
"""  # noqa: E501 - a table row is one line

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from provision.domain.measurement import Distribution, RequestTiming

CACHED_SHARE_MAX = 0.1
"""Of a prompt; above it the prefill speed says nothing about the hardware."""
_BRIEF_SHARE = 0.02
"""Of the decoding time: overlaps this short are a hand-over between two answers, not parallel work."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest rank of ascending, non-empty `ordered`: always one of the samples."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def distribution(values: Iterable[float | None]) -> Distribution | None:
    """Of the values that are known; None without any. Percentiles that the count cannot carry are None."""
    ordered = sorted(value for value in values if value is not None)
    count = len(ordered)
    if not count:
        return None
    return Distribution(
        count=count,
        mean=math.fsum(ordered) / count,
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90) if count >= 10 else None,
        p95=percentile(ordered, 95) if count >= 20 else None,
        p99=percentile(ordered, 99) if count >= 100 else None,
        min=ordered[0],
        max=ordered[-1],
    )


def median(values: Iterable[float | None]) -> float | None:
    """Nearest-rank median of the values that are known."""
    ordered = sorted(value for value in values if value is not None)
    return percentile(ordered, 50) if ordered else None


def ttft_s(request: RequestTiming) -> float | None:
    return None if request.first_token_s is None else request.first_token_s - request.sent_s


def ttfa_s(request: RequestTiming) -> float | None:
    return None if request.first_answer_s is None else request.first_answer_s - request.sent_s


def e2e_s(request: RequestTiming) -> float | None:
    return None if request.last_token_s is None else request.last_token_s - request.sent_s


def e2e_tokens_per_s(request: RequestTiming) -> float | None:
    duration_s = e2e_s(request)
    return request.output_tokens / duration_s if request.output_tokens and duration_s else None


def decode_tokens_per_s(request: RequestTiming) -> float | None:
    if request.output_tokens is None or request.first_token_s is None or request.last_token_s is None:
        return None
    later_tokens = request.output_tokens - (request.first_chunk_tokens or 1)
    duration_s = request.last_token_s - request.first_token_s
    return later_tokens / duration_s if later_tokens > 0 and duration_s > 0 else None


def prefill_tokens_per_s(request: RequestTiming, users: int) -> float | None:
    prompt, cached = request.prompt_tokens, request.cached_tokens or 0
    if not prompt or cached > CACHED_SHARE_MAX * prompt:
        return None
    # With several users the time to the first token is mostly a queue.
    duration_s = request.server_prefill_s or (ttft_s(request) if users == 1 else None)
    return (prompt - cached) / duration_s if duration_s else None


def server_decode_delta_ratio(request: RequestTiming) -> float | None:
    speed = decode_tokens_per_s(request)
    if speed is None or not request.server_decode_s or not request.output_tokens or request.output_tokens < 2:
        return None
    return (1 / speed) / (request.server_decode_s / (request.output_tokens - 1)) - 1


def steady_window(requests: Sequence[RequestTiming], users: int) -> tuple[float, float] | None:
    """Start and end of the time in which all users were active; None when there was none, or a user is missing."""
    first_tokens: dict[int, float] = {}
    finishes: dict[int, float] = {}
    for request in requests:
        if request.first_token_s is None or request.last_token_s is None:
            continue
        user = request.user
        first_tokens[user] = min(first_tokens.get(user, math.inf), request.first_token_s)
        finishes[user] = max(finishes.get(user, -math.inf), request.last_token_s)
    if len(first_tokens) < users:
        return None
    start, end = max(first_tokens.values()), min(finishes.values())
    return (start, end) if end > start else None


def tokens_within(request: RequestTiming, start_s: float, end_s: float) -> float:
    """Output tokens of `request` that arrived after `start_s` and up to `end_s`."""
    first, last, count = request.first_token_s, request.last_token_s, request.output_tokens
    if first is None or last is None or not count:
        return 0.0
    at_once = min(count, request.first_chunk_tokens or 1) if last > first else count
    tokens = float(at_once) if start_s < first <= end_s else 0.0
    if last > first:
        overlap_s = max(0.0, min(last, end_s) - max(first, start_s))
        tokens += (count - at_once) * overlap_s / (last - first)
    return tokens


def system_output_tokens_per_s(requests: Sequence[RequestTiming], users: int) -> float | None:
    if users == 1:
        return whole_run_tokens_per_s(requests)
    window = steady_window(requests, users)
    if window is None:
        return None
    start, end = window
    return math.fsum(tokens_within(request, start, end) for request in requests) / (end - start) or None


def whole_run_tokens_per_s(requests: Sequence[RequestTiming], *, with_prompt: bool = False) -> float | None:
    ends = [request.last_token_s for request in requests if request.last_token_s is not None]
    if not ends:
        return None
    tokens = sum(request.output_tokens or 0 for request in requests)
    if with_prompt:
        tokens += sum((r.prompt_tokens or 0) - (r.cached_tokens or 0) for r in requests)
    duration_s = max(ends) - min(request.sent_s for request in requests)
    return tokens / duration_s if tokens and duration_s > 0 else None


def concurrent_decodes(requests: Sequence[RequestTiming]) -> int | None:
    """None when nothing was decoded for any length of time."""
    edges: list[tuple[float, int]] = []
    for request in requests:
        first, last = request.first_token_s, request.last_token_s
        if first is not None and last is not None and last > first:
            edges += [(first, 1), (last, -1)]
    edges.sort()
    time_at: dict[int, float] = {}
    active, since = 0, 0.0
    for now, change in edges:
        time_at[active] = time_at.get(active, 0.0) + (now - since)
        active, since = active + change, now
    busy_s = math.fsum(duration for count, duration in time_at.items() if count > 0)
    if busy_s <= 0:
        return None
    at_least_s, most = 0.0, 1
    for count in sorted((count for count in time_at if count > 0), reverse=True):
        at_least_s += time_at[count]
        if at_least_s > _BRIEF_SHARE * busy_s:
            most = count
            break
    return most
