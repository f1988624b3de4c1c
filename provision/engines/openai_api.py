"""Client of the OpenAI-compatible API, as vLLM, llama.cpp's server and others speak it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

from provision.domain.hardware import InstalledModel
from provision.engines.client import RequestFailed, SendClock, StreamEvent, Usage, fetch, fetch_json, post_lines
from provision.errors import Unreachable

if TYPE_CHECKING:
    import httpx

Route = Literal["chat", "completions"]


def models(url: str, *, api_key: str | None = None) -> tuple[InstalledModel, ...]:
    """Models that /v1/models lists; sizes are not told. Raises Unreachable."""
    return tuple(InstalledModel(name=row["id"], size_bytes=None) for row in _model_rows(url, api_key))


def context_tokens(url: str, model: str, *, api_key: str | None = None) -> int | None:
    """Context of one request: vLLM's max_model_len, or llama.cpp's n_ctx of a slot. None where it is not told."""
    for row in _model_rows(url, api_key):
        if row["id"] == model and isinstance(row.get("max_model_len"), int):
            return int(row["max_model_len"])
    try:
        found = (props(url, api_key=api_key) or {}).get("default_generation_settings", {}).get("n_ctx")
    except Unreachable:
        return None
    return found if isinstance(found, int) else None


def healthy(url: str, *, api_key: str | None = None) -> bool:
    """Whether /health says yes; servers without it count as healthy when they list models."""
    try:
        response = fetch(url, "/health", api_key=api_key, accept=(404, 405, 503))
        if response.status_code == 503:
            return False
        return response.status_code == 200 or bool(models(url, api_key=api_key))
    except Unreachable:
        return False


def vllm_version(url: str, *, api_key: str | None = None) -> str | None:
    """vLLM's version, or None when something else answers."""
    try:
        document = fetch_json(url, "/version", api_key=api_key)
    except Unreachable:
        return None
    found = document.get("version")
    return found if isinstance(found, str) else None


def props(url: str, *, api_key: str | None = None) -> dict[str, Any] | None:
    """llama.cpp's /props, or None when something else answers."""
    try:
        document = fetch_json(url, "/props", api_key=api_key)
    except Unreachable:
        return None
    return document if "default_generation_settings" in document else None


async def generate_stream(
    client: httpx.AsyncClient,
    url: str,
    model: str,
    prompt: str,
    *,
    output_tokens: int,
    seed: int,
    clock: SendClock,
    route: Route = "chat",
    extensions: bool = True,
    count_along: bool = False,
) -> AsyncGenerator[StreamEvent, None]:
    """Stream one answer of exactly `output_tokens` where the server can ignore the end of an answer.

    `extensions` sends `ignore_eos`, which strict servers refuse. `count_along` asks vLLM for token counts in every
    chunk and its own timings. `max_tokens`, not `max_completion_tokens`: some servers know only the former. Raises
    RequestFailed; httpx errors pass.
    """
    options: dict[str, Any] = {"include_usage": True}
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": output_tokens,
        "temperature": 0.8,
        "seed": seed,
        "stream": True,
        "stream_options": options,
    }
    if extensions:
        body["ignore_eos"] = True
    if count_along:
        options["continuous_usage_stats"] = True
        body["include_metrics"] = True
    if route == "chat":
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        path = "/v1/completions"
        body["prompt"] = prompt
    async with aclosing(post_lines(client, url, path, body, clock)) as lines:
        async for arrived_s, line in lines:
            yield parse_line(line, arrived_s)


def parse_line(line: bytes, arrived_s: float) -> StreamEvent:
    """One line of the event stream; comments (pings) and blank lines are empty events. Raises RequestFailed."""
    if line.startswith((b"error:", b"error :")):  # older llama.cpp
        raise RequestFailed(f"error in the stream: {line[6:].decode('utf-8', 'replace').strip()[:300]}")
    if not line.startswith(b"data:"):
        return StreamEvent(arrived_s=arrived_s)
    data = line[5:].strip()
    if data == b"[DONE]":
        return StreamEvent(arrived_s=arrived_s, finished=True)
    try:
        message = json.loads(data)
    except ValueError as error:
        raise RequestFailed(f"unreadable line in the stream: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise RequestFailed(f"unreadable line in the stream: {line[:80]!r}")
    if message.get("error"):
        inner = message["error"]
        raise RequestFailed(f"error in the stream: {inner.get('message') if isinstance(inner, dict) else inner}")
    choice = (message.get("choices") or [{}])[0]
    delta = choice.get("delta") or {}
    usage = _usage(message)
    return StreamEvent(
        arrived_s=arrived_s,
        answer=bool(delta.get("content") or delta.get("tool_calls") or choice.get("text")),
        reasoning=bool(delta.get("reasoning_content") or delta.get("reasoning")),
        tokens_so_far=usage.output_tokens if usage else None,
        usage=usage,
        finished=bool(choice.get("finish_reason")),
        stop_reason=choice.get("finish_reason"),
    )


def _usage(message: dict[str, Any]) -> Usage | None:
    """From `usage`, llama.cpp's `timings` and vLLM's `metrics`, as far as they are there."""
    counts = message.get("usage") or {}
    timings = message.get("timings") or {}
    metrics = message.get("metrics") or {}
    if not counts and not timings:
        return None
    cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n"))
    prompt = counts.get("prompt_tokens")
    if prompt is None and "prompt_n" in timings:
        prompt = timings["prompt_n"] + timings.get("cache_n", 0)
    prefill_ms, decode_ms = timings.get("prompt_ms"), timings.get("predicted_ms")
    queue_ms = metrics.get("queue_time_ms")
    if prefill_ms is None and queue_ms is not None and metrics.get("time_to_first_token_ms") is not None:
        prefill_ms = metrics["time_to_first_token_ms"] - queue_ms
    if decode_ms is None:
        decode_ms = metrics.get("generation_time_ms")
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=counts.get("completion_tokens", timings.get("predicted_n")),
        prefill_s=None if prefill_ms is None else prefill_ms / 1e3,
        decode_s=None if decode_ms is None else decode_ms / 1e3,
        queue_s=None if queue_ms is None else queue_ms / 1e3,
    )


def _model_rows(url: str, api_key: str | None) -> list[dict[str, Any]]:
    rows = fetch_json(url, "/v1/models", api_key=api_key).get("data") or []
    return [row for row in rows if isinstance(row.get("id"), str)]
