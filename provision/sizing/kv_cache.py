"""Bytes of the KV cache and of recurrent state, by layer kind, as llama.cpp allocates them.

Full attention keeps context x slots cells. A sliding window keeps (all slots of a unified cache, or one slot) x window
+ one prefill step of cells, at most the context. Latent attention keeps one compressed vector per cell, or expanded
keys and values where the file is from before the split matrices. State layers keep a state per slot. Sources:
llama.cpp src/llama-kv-cache.cpp and llama-kv-cache-iswa.cpp; published logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from provision.domain.llm import (
    AttentionLayers,
    EngineSpec,
    LatentAttentionLayers,
    Layers,
    ModelBuild,
    ModelSpec,
    StateLayers,
)
from provision.domain.plan import Workload

KV_BYTES_PER_VALUE = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q6_0": 26 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
    "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32, "q8_KV": 1.0,
    "fp8": 1.0,  # vLLM, with one scale per tensor
}  # fmt: skip
"""ggml block sizes: 32 values in so many bytes."""

_PADDING_TOKENS = 256
"""llama.cpp rounds a cache up to this many cells, and the sliding one separately."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """How the engine lays the cache out: cells of one stream, streams, and types."""

    context_tokens: int
    """Cells of one stream: a unified cache has one stream for all slots."""
    streams: int
    slots: int
    batch_tokens: int
    key_type: str = "f16"
    value_type: str = "f16"
    full_window: bool = False
    """Whether windows are kept at full context: engines before May 2025, or `--swa-full`."""
    latent_values: bool = False
    """Whether the latent vector is stored a second time as value."""


def cache_shape(workload: Workload, engine: EngineSpec) -> CacheShape:
    """Of `users` slots with a context each."""
    slots = max(1, workload.users)
    per_slot = padded(workload.context_tokens)
    streams = 1 if engine.unified_cache else slots
    cells = padded(per_slot * slots) if engine.unified_cache else per_slot
    return CacheShape(
        context_tokens=cells,
        streams=streams,
        slots=slots,
        batch_tokens=min(engine.batch_tokens, per_slot * slots),
        key_type=workload.kv_cache_type,
        value_type=workload.value_cache_type or workload.kv_cache_type,
        full_window=engine.graph in ("llama.cpp-2024", "ik_llama.cpp"),
        latent_values=engine.latent_cache_twice,
    )


def padded(tokens: int) -> int:
    """Rounded up to whole blocks of cells."""
    return ceil(tokens / _PADDING_TOKENS) * _PADDING_TOKENS


def cells(group: Layers, shape: CacheShape) -> int:
    """Cells of one layer of `group` in one stream; 0 for state layers."""
    if isinstance(group, StateLayers):
        return 0
    window = group.window_tokens if isinstance(group, AttentionLayers) else None
    if window is None or shape.full_window:
        return shape.context_tokens
    slots = shape.slots if shape.streams == 1 else 1
    return padded(min(shape.context_tokens, window * slots + shape.batch_tokens))


def layer_bytes(group: Layers, shape: CacheShape, *, expanded: bool = False, heads: int = 0) -> float:
    """Cache of one layer of `group`, all streams; state layers keep none. `expanded`: of a latent file whose engine
    stores whole keys and values of `heads` heads."""
    key, value = KV_BYTES_PER_VALUE[shape.key_type], KV_BYTES_PER_VALUE[shape.value_type]
    total = cells(group, shape) * shape.streams
    if isinstance(group, AttentionLayers):
        return total * group.kv_heads * (group.key_dim * key + group.value_dim * value)
    if isinstance(group, LatentAttentionLayers):
        if expanded and group.key_dim and group.value_dim:
            return total * heads * (group.key_dim * key + group.value_dim * value)
        # The latent vector serves as key and as value.
        twice = group.latent_dim * value if shape.latent_values else 0.0
        return total * ((group.latent_dim + group.rope_dim) * key + twice)
    return 0.0


def bytes_by_group(
    model: ModelSpec, build: ModelBuild, workload: Workload, engine: EngineSpec
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(cache, state) of one layer of every group of `model.layers`, all slots. Encoders keep nothing."""
    if not model.keeps_cache:
        return (0.0,) * len(model.layers), (0,) * len(model.layers)
    shape = cache_shape(workload, engine)
    cache = tuple(
        layer_bytes(g, shape, expanded=build.expanded_cache, heads=model.attention_heads) for g in model.layers
    )
    state = tuple(
        0 if isinstance(g, LatentAttentionLayers) else g.state_bytes_per_sequence * shape.slots for g in model.layers
    )
    return cache, state


def kv_bytes(group: Layers, workload: Workload, engine: EngineSpec) -> float:
    """Cache of all layers of `group`, all users; state layers keep none."""
    return group.count * layer_bytes(group, cache_shape(workload, engine))


def kv_bytes_per_token_at(model: ModelSpec, workload: Workload, depth_tokens: float) -> float:
    """KV bytes that one decode step of one user reads when `depth_tokens` are in its context."""
    key = KV_BYTES_PER_VALUE[workload.kv_cache_type]
    value = KV_BYTES_PER_VALUE[workload.value_cache_type or workload.kv_cache_type]
    total = 0.0
    for group in model.layers:
        if isinstance(group, AttentionLayers):
            seen = min(depth_tokens, group.window_tokens or depth_tokens)
            total += group.count * seen * group.kv_heads * (group.key_dim * key + group.value_dim * value)
        elif isinstance(group, LatentAttentionLayers):
            total += group.count * depth_tokens * (group.latent_dim + group.rope_dim) * key
    return total
