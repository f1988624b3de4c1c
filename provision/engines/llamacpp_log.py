"""Reads what llama.cpp says of its memory while it loads a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from provision.units import MIB

_BUFFER = re.compile(r"(\S+) +(?:(model|KV|RS|compute|output) )?buffer size *= *([0-9.]+) MiB")
_CACHE = re.compile(r"size *= *[0-9.]+ MiB \( *(\d+) cells, *(\d+) layers, *(\d+)/")
_SETTING = re.compile(r"\b(n_seq_max|n_ctx|n_ubatch|n_outputs_max) +=\s+(\d+)\s*$")
START = "loaded meta data with"
"""Begins the part of a log that belongs to one model."""


@dataclass(frozen=True, slots=True)
class LoadedBuffers:
    """Bytes by name of the buffer (`CUDA0`, `CPU_Mapped`, `CUDA_Host`), to a hundredth of a MiB as the log has them."""

    weights: dict[str, int]
    kv_cache: dict[str, int]
    """All caches of a device together: a model with a sliding window has two."""
    state: dict[str, int]
    """Of recurrent layers."""
    compute: dict[str, int]
    output: dict[str, int]
    """Where logits are handed over."""
    caches: tuple[tuple[int, int, int], ...]
    """Cells, layers and separate streams of each cache in order."""
    context_tokens: int | None
    """Of all slots together."""
    slots: int | None
    batch_tokens: int | None
    """Of one prefill step (ubatch)."""
    outputs_max: int | None
    """Rows of logits per step that there is room for; None in versions that do not say, which have room for all."""


def parse(text: str) -> LoadedBuffers:
    """The buffers of the last model loaded in a llama.cpp log; what the log does not say is empty or None.

    Read with versions from 2024 to 2026; those of `llama-server` 2026 print them from verbosity 4 on.
    """
    text = text[max(text.rfind(START), 0) :]
    kinds: dict[str, dict[str, int]] = {kind: {} for kind in ("model", "KV", "RS", "compute", "output")}
    for name, kind, size in _BUFFER.findall(text):
        of_kind = kinds[kind or "model"]  # the loader of 2024 says only "buffer size"
        of_kind[name] = of_kind.get(name, 0) + round(float(size) * MIB)
    settings: dict[str, int] = {}
    for line in text.splitlines():
        for name, value in _SETTING.findall(line):
            settings.setdefault(name, int(value))  # later lines speak of single slots
    return LoadedBuffers(
        weights=kinds["model"],
        kv_cache=kinds["KV"],
        state=kinds["RS"],
        compute=kinds["compute"],
        output=kinds["output"],
        caches=tuple((int(cells), int(layers), int(streams)) for cells, layers, streams in _CACHE.findall(text)),
        context_tokens=settings.get("n_ctx"),
        slots=settings.get("n_seq_max"),
        batch_tokens=settings.get("n_ubatch"),
        outputs_max=settings.get("n_outputs_max"),
    )
