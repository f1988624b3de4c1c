"""Which model servers run on a host already, and what they hold. Parses what they answered on loopback."""

from __future__ import annotations

import json

from provision.domain.hardware import InstalledModel, RunningEngine

OLLAMA_URL = "http://127.0.0.1:11434"
OPENAI_PORTS = (8000, 8080)
"""Where vLLM and llama.cpp listen unless told otherwise."""


def parse_ollama(version: str, tags: str) -> RunningEngine | None:
    """From `/api/version` and `/api/tags`; None when what answered, if anything did, is not Ollama."""
    number = _text(_object(version).get("version"))
    models = _object(tags).get("models")
    if number is None or not isinstance(models, list):
        return None
    return RunningEngine(
        id="ollama", url=OLLAMA_URL, version=number, models=tuple(m for m in map(_ollama_model, models) if m)
    )


def parse_openai(port: int, models: str, version: str, props: str) -> RunningEngine | None:
    """vLLM or llama.cpp on `port`, told apart by who owns the models in `/v1/models`; None for anything else.

    vLLM tells its version on `/version`, llama.cpp its build on `/props`. A server that asks for a key is not seen.
    """
    listed = _object(models).get("data")
    entries = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    engine = next((e for e in ("vllm", "llamacpp") if any(one.get("owned_by") == e for one in entries)), None)
    if engine is None:
        return None
    return RunningEngine(
        id=engine,
        url=f"http://127.0.0.1:{port}",
        version=_text(_object(version).get("version") if engine == "vllm" else _object(props).get("build_info")),
        models=tuple(
            InstalledModel(name=one["id"], size_bytes=_size(_member(one, "meta").get("size")))
            for one in entries
            if _text(one.get("id"))
        ),
    )


def _ollama_model(entry: object) -> InstalledModel | None:
    if not isinstance(entry, dict) or not _text(entry.get("name")):
        return None
    return InstalledModel(
        name=entry["name"],
        size_bytes=_size(entry.get("size")),
        digest=_text(entry.get("digest")),
        quantization=_text(_member(entry, "details").get("quantization_level")),
    )


def _object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _member(entry: dict[str, object], key: str) -> dict[str, object]:
    value = entry.get(key)
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _size(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
