"""What a level's figures are worth: findings with codes, and the level put together. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from provision.bench import stats
from provision.domain.finding import Finding
from provision.domain.measurement import BenchLevel, RequestTiming

SAMPLES_MIN = 10
SHORT_SHARE = 0.9
"""Of the tokens asked for; answers below it are short."""
SHORT_REQUESTS_MAX = 0.1
CLIENT_CPU_WARN, CLIENT_CPU_VOID = 0.5, 0.9
LAG_WARN_S, LAG_WARN_SHARE_OF_TPOT = 0.005, 0.1
RELOAD_S = 2.0
"""A load time above it inside a measured request is a model that was loaded again, not the look-up of a loaded one."""


class _Remark(NamedTuple):
    code: str
    message: str
    hint: str | None = None
    void: bool = False
    """The level's figures must not be used."""


def make_level(
    users: int,
    requests: Sequence[RequestTiming],
    *,
    chunk_gaps_s: Sequence[float] = (),
    client_cpu_ratio: float | None = None,
    client_lag_p99_s: float | None = None,
    template_tokens: int = 0,
    length_jitter_ratio: float = 0.0,
) -> BenchLevel:
    """Figures and findings of one level.

    `template_tokens` is what the cache holds of every prompt whatever it says (the chat template), as the warm-up
    saw it.
    """
    good = [request for request in requests if request.error is None]
    level = BenchLevel(
        users=users,
        requests=tuple(requests),
        ttft_s=stats.distribution(map(stats.ttft_s, good)),
        decode_tokens_per_s=stats.distribution(map(stats.decode_tokens_per_s, good)),
        system_output_tokens_per_s=stats.system_output_tokens_per_s(good, users),
        prefill_tokens_per_s=stats.distribution(stats.prefill_tokens_per_s(request, users) for request in good),
        error_rate=1 - len(good) / len(requests) if requests else 0.0,
        client_cpu_ratio=client_cpu_ratio,
        client_lag_p99_s=client_lag_p99_s,
        server_decode_delta_ratio=stats.median(map(stats.server_decode_delta_ratio, good)),
        valid=True,
        ttfa_s=stats.distribution(map(stats.ttfa_s, good)) if any(map(_reasoned, good)) else None,
        e2e_s=stats.distribution(map(stats.e2e_s, good)),
        chunk_gap_s=stats.distribution(chunk_gaps_s),
        e2e_tokens_per_s=stats.distribution(map(stats.e2e_tokens_per_s, good)),
        whole_run_output_tokens_per_s=stats.whole_run_tokens_per_s(good),
        system_total_tokens_per_s=stats.whole_run_tokens_per_s(good, with_prompt=True),
        concurrent_decodes=stats.concurrent_decodes(good),
        length_jitter_ratio=length_jitter_ratio,
    )
    remarks = [*_remarks(level, good, template_tokens)]
    who = "1 user" if users == 1 else f"{users} users"
    findings = tuple(Finding(code=r.code, message=f"{who}: {r.message}", hint=r.hint) for r in remarks)
    return replace(level, findings=findings, valid=not any(remark.void for remark in remarks))


def with_scaling(levels: Sequence[BenchLevel]) -> tuple[BenchLevel, ...]:
    """The levels with their scaling against the one with a single user, where there is one."""
    alone = next((level.decode_tokens_per_s for level in levels if level.users == 1), None)
    if alone is None:
        return tuple(levels)
    return tuple(
        replace(level, scaling_ratio=level.system_output_tokens_per_s / (level.users * alone.p50))
        if level.users > 1 and level.system_output_tokens_per_s
        else level
        for level in levels
    )


def spill_finding(size_bytes: int | None, size_vram_bytes: int | None, model: str) -> Finding | None:
    """A model that is not wholly in the accelerators' memory, by the server's own account."""
    if not size_bytes or size_vram_bytes is None or size_vram_bytes >= size_bytes:
        return None
    if size_vram_bytes == 0:
        message = f"{model} runs on the CPU: none of its {size_bytes / 2**30:.2f} GiB is in GPU memory"
    else:
        message = (
            f"only {size_vram_bytes / size_bytes:.0%} of {model} is in GPU memory; "
            f"{(size_bytes - size_vram_bytes) / 2**30:.2f} GiB run on the CPU"
        )
    return Finding(
        code="spilled-to-cpu", message=message, hint=f"provision plan --model {model}: what fits, and how fast it is"
    )


def _reasoned(request: RequestTiming) -> bool:
    return request.first_answer_s != request.first_token_s


def _remarks(level: BenchLevel, good: Sequence[RequestTiming], template_tokens: int) -> Iterator[_Remark]:
    yield from _errors(level)
    if not good:
        yield _Remark("no-answers", "no request succeeded, so there is nothing to report", void=True)
        return
    if len(good) < SAMPLES_MIN:
        yield _Remark(
            "too-few-samples",
            f"{len(good)} requests carry a median, but no percentile",
            f"--requests {-(-SAMPLES_MIN // level.users)} or more",
        )
    yield from _cache(good, template_tokens)
    yield from _lengths(good)
    yield from _server(level, good)
    yield from _client(level)


def _errors(level: BenchLevel) -> Iterator[_Remark]:
    failures = Counter(request.error for request in level.requests if request.error is not None)
    if failures:
        reason, count = failures.most_common(1)[0]
        yield _Remark(
            "errors", f"{failures.total()} of {len(level.requests)} requests failed, {count} of them with: {reason}"
        )


def _cache(good: Sequence[RequestTiming], template_tokens: int) -> Iterator[_Remark]:
    hits = [
        request
        for request in good
        if request.prompt_tokens
        and (request.cached_tokens or 0) - template_tokens > stats.CACHED_SHARE_MAX * request.prompt_tokens
    ]
    if hits:
        worst = max(hits, key=lambda request: request.cached_tokens or 0)
        yield _Remark(
            "cache-contaminated",
            f"{len(hits)} of {len(good)} prompts came out of a cache (up to {worst.cached_tokens} of "
            f"{worst.prompt_tokens} tokens), so the time to the first token is too good",
            "look for a cache between here and the server: every prompt of the run was new",
            void=True,
        )


def _lengths(good: Sequence[RequestTiming]) -> Iterator[_Remark]:
    uncounted = sum(request.output_tokens is None for request in good)
    if uncounted:
        yield _Remark(
            "no-token-counts",
            f"the server gave no token count with {uncounted} of {len(good)} answers, so their speed is unknown",
            "update the server, or take away the proxy that drops usage from streams",
            void=uncounted > len(good) / 2,
        )
    short = [
        request
        for request in good
        if request.output_tokens is not None
        and request.requested_tokens
        and request.output_tokens < SHORT_SHARE * request.requested_tokens
    ]
    if len(short) > SHORT_REQUESTS_MAX * len(good):
        least = min(short, key=lambda request: request.output_tokens or 0)
        yield _Remark(
            "short-outputs",
            f"{len(short)} of {len(good)} answers were shorter than asked for (one had {least.output_tokens} of "
            f"{least.requested_tokens} tokens), so decode speed stands on little",
            "ask for shorter answers: --output-tokens 32",
            void=len(short) > len(good) / 2,
        )


def _server(level: BenchLevel, good: Sequence[RequestTiming]) -> Iterator[_Remark]:
    at_once = level.concurrent_decodes
    if level.users > 1 and at_once is not None and at_once <= level.users / 2:
        yield _Remark(
            "server-serialises",
            f"the server worked on at most {at_once} answer{'s' if at_once > 1 else ''} at a time; the others waited",
            f"Ollama: OLLAMA_NUM_PARALLEL={level.users} (provision plan --users {level.users} sets it)",
        )
    reloads = sum((request.server_load_s or 0) > RELOAD_S for request in good)
    if reloads:
        yield _Remark(
            "model-reloaded",
            f"the server loaded the model again during {reloads} of {len(good)} requests",
            "is somebody else using the server with another model or context?",
        )


def _client(level: BenchLevel) -> Iterator[_Remark]:
    cpu, lag_s = level.client_cpu_ratio, level.client_lag_p99_s
    if cpu is not None and cpu > CLIENT_CPU_WARN:
        yield _Remark(
            "client-limited",
            f"this client used {cpu:.0%} of a core, so the server may be faster than it looks",
            "run bench on another machine, or with fewer users",
            void=cpu > CLIENT_CPU_VOID,
        )
    elif lag_s is not None and level.decode_tokens_per_s is not None:
        limit_s = max(LAG_WARN_S, LAG_WARN_SHARE_OF_TPOT / level.decode_tokens_per_s.p50)
        if lag_s > limit_s:
            yield _Remark(
                "client-limited",
                f"this client noticed events up to {lag_s * 1e3:.0f} ms late (99th percentile; {limit_s * 1e3:.0f} ms "
                "is good)",
                "run bench on a machine with an idle core",
            )
