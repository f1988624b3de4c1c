"""Client of Ollama's native API.

The native API, not `/v1`: only here are the context length, the raw prompt and the server's own timings to be had.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from provision.domain.hardware import InstalledModel
from provision.domain.record import record
from provision.engines.client import (
    STREAM_TIMEOUT_S,
    RequestFailed,
    SendClock,
    StreamEvent,
    Usage,
    fetch_json,
    post_lines,
)
from provision.errors import Unreachable

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:11434"


@record
class LoadedModel:
    """One line of /api/ps."""

    name: str
    digest: str | None
    size_bytes: int | None
    """Weights, KV cache and buffers together."""
    size_vram_bytes: int | None
    """Part of it on accelerators; less than `size_bytes` means that layers run on the CPU."""
    context_tokens: int | None
    """Of one slot; None from servers that do not tell (before 0.9)."""
    expires_at: datetime | None


@record
class ModelDetails:
    """What /api/show says."""

    family: str | None
    quantization: str | None
    context_tokens_max: int | None
    capabilities: tuple[str, ...]


def version(url: str, *, api_key: str | None = None) -> str | None:
    """The server's version. Raises Unreachable."""
    found = fetch_json(url, "/api/version", api_key=api_key).get("version")
    return found if isinstance(found, str) else None


def installed_models(url: str, *, api_key: str | None = None) -> tuple[InstalledModel, ...]:
    """Models on the server's disk. Raises Unreachable."""
    rows = fetch_json(url, "/api/tags", api_key=api_key).get("models") or []
    return tuple(
        InstalledModel(
            name=row["name"],
            size_bytes=row.get("size"),
            digest=row.get("digest"),
            quantization=(row.get("details") or {}).get("quantization_level") or None,
        )
        for row in rows
    )


def loaded_models(url: str, *, api_key: str | None = None) -> tuple[LoadedModel, ...]:
    """Models in the server's memory. Raises Unreachable."""
    rows = fetch_json(url, "/api/ps", api_key=api_key).get("models") or []
    return tuple(
        LoadedModel(
            name=row["name"],
            digest=row.get("digest"),
            size_bytes=row.get("size"),
            # Go leaves a zero out of no field here, but a model on the CPU alone has had none in some versions.
            size_vram_bytes=row.get("size_vram", 0),
            context_tokens=row.get("context_length"),
            expires_at=_time(row.get("expires_at")),
        )
        for row in rows
    )


def show(url: str, model: str, *, api_key: str | None = None) -> ModelDetails:
    """Details of an installed model. Raises Unreachable."""
    document = fetch_json(url, "/api/show", body={"model": model}, api_key=api_key)
    details = document.get("details") or {}
    info = document.get("model_info") or {}
    return ModelDetails(
        family=details.get("family") or None,
        quantization=details.get("quantization_level") or None,
        context_tokens_max=info.get(f"{info.get('general.architecture')}.context_length"),
        capabilities=tuple(document.get("capabilities") or ()),
    )


def preload(
    url: str,
    model: str,
    *,
    context_tokens: int | None = None,
    keep_alive: str | int | None = None,
    api_key: str | None = None,
    timeout_s: float = STREAM_TIMEOUT_S,
) -> None:
    """Load a model into memory and wait for it. `keep_alive` as Ollama takes it ("10m", -1 for ever). Raises
    Unreachable, also when the server cannot load it."""
    body: dict[str, Any] = {"model": model, "prompt": "", "stream": False}
    if context_tokens is not None:
        body["options"] = {"num_ctx": context_tokens}
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    fetch_json(url, "/api/generate", body=body, api_key=api_key, timeout_s=timeout_s)


def unload(url: str, model: str, *, api_key: str | None = None) -> None:
    """Take a model out of memory. Raises Unreachable."""
    preload(url, model, keep_alive=0, api_key=api_key, timeout_s=60)


def is_same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: a name without a tag has the tag `latest`."""
    return _with_tag(one) == _with_tag(other)


async def generate_stream(
    client: httpx.AsyncClient,
    url: str,
    model: str,
    prompt: str,
    *,
    output_tokens: int,
    context_tokens: int,
    seed: int,
    clock: SendClock,
    keep_alive: str | None = None,
) -> AsyncGenerator[StreamEvent, None]:
    """Stream /api/generate with a raw prompt and a fixed context.

    Options are identical in every request of a run: a change of `num_ctx` reloads the model. `raw`, because otherwise
    the server tokenizes the whole text again before the last message. The server may stop before `output_tokens`:
    it has no way to ignore the end of an answer. Raises RequestFailed; httpx errors pass.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "raw": True,
        "stream": True,
        "think": False,
        "options": {"num_predict": output_tokens, "num_ctx": context_tokens, "seed": seed, "temperature": 0.8},
    }
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    async with aclosing(post_lines(client, url, "/api/generate", body, clock)) as lines:
        async for arrived_s, line in lines:
            yield parse_line(line, arrived_s)


def parse_line(line: bytes, arrived_s: float) -> StreamEvent:
    """One NDJSON line of /api/generate. Raises RequestFailed for an error message or something unreadable."""
    if not line:
        return StreamEvent(arrived_s=arrived_s)
    try:
        message = json.loads(line)
    except ValueError as error:
        raise RequestFailed(f"unreadable line in the stream: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise RequestFailed(f"unreadable line in the stream: {line[:80]!r}")
    if "error" in message:
        raise RequestFailed(f"error in the stream: {message['error']}")
    done = bool(message.get("done"))
    return StreamEvent(
        arrived_s=arrived_s,
        answer=bool(message.get("response")),
        reasoning=bool(message.get("thinking")),
        usage=_usage(message) if done else None,
        finished=done,
        stop_reason=message.get("done_reason"),
    )


def _usage(message: dict[str, Any]) -> Usage:
    """Durations are nanoseconds; a field that is absent is unknown, not zero."""
    total, load = message.get("total_duration"), message.get("load_duration")
    prefill, decode = message.get("prompt_eval_duration"), message.get("eval_duration")
    queue_s = None
    if None not in (total, load, prefill, decode):
        # The wait for a slot happens after loading is stamped, and is reported nowhere.
        queue_s = max(0.0, (total - load - prefill - decode) / 1e9)  # type: ignore[operator]
    return Usage(
        prompt_tokens=message.get("prompt_eval_count"),
        cached_tokens=message.get("prompt_eval_cached_count"),
        output_tokens=message.get("eval_count"),
        prefill_s=None if prefill is None else prefill / 1e9,
        decode_s=None if decode is None else decode / 1e9,
        queue_s=queue_s,
        load_s=None if load is None else load / 1e9,
    )


def _with_tag(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


def is_ollama(url: str, *, api_key: str | None = None) -> bool:
    """Whether the server at `url` greets as Ollama does. Raises Unreachable when nothing answers."""
    from provision.engines.client import fetch

    try:
        return "ollama is running" in fetch(url, "/", api_key=api_key).text.lower()
    except Unreachable as error:
        if error.code in ("not-found", "unauthorized", "http-error"):
            return False
        raise
