"""Scratch memory of one prefill step on one device, as llama.cpp's graph allocator lays it out.

The allocator places tensors one after the other and reuses what is free, so the buffer is the largest of a few phases:
attention, feed-forward part, output. Each is the inputs that stay (masks, and copies of them when layers are split over
several devices) plus what is alive at once. The sums were read from the allocator's own trace of llama.cpp for dense,
sliding-window, latent and mixture shapes, with and without flash attention; src/llama-graph.cpp and ggml-alloc.c.

Left out: what backends take besides the buffer (cuBLAS workspaces, memory pools, CUDA graphs).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from provision.domain.llm import AttentionLayers, EngineSpec, LatentAttentionLayers, ModelSpec, ModelTask
from provision.domain.plan import Workload
from provision.sizing import kv_cache
from provision.sizing.cached import by_identity
from provision.sizing.kv_cache import CacheShape

_PIPELINE_COPIES = 4
"""Copies of a graph's inputs when whole layers are split over several devices, so that steps overlap."""
_VALUE = 4
"""Activations are 32-bit."""


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What of model, engine and settings the sums look at, in bytes for one prefill step."""

    hidden: int
    query: int
    raw: int
    """Keys and values of one layer as they are computed."""
    attention_out: int
    latent_query: int
    """What latent attention keeps of the query at once: plain, absorbed, rotated, joined."""
    scores: int
    """Of the layer kind with the most, all heads; 0 with flash attention."""
    gated: int
    """One of the equal parts of the dense feed-forward part."""
    gated_parts: int
    expert: int
    """One part of all used experts; 0 for dense models."""
    expert_out: int
    device_inputs: int
    host_inputs: int
    logits: int
    cache_as_f16: int
    """A quantized cache of one layer as CUDA unpacks it for flash attention, in the buffer since 2026."""
    norm_copies: bool
    """Whether a device gets the normed activations besides the plain ones (llama.cpp from 2025 on)."""
    current: bool
    """Whether the host has room for embeddings as input besides those it looks up."""


@by_identity
def graph_shape(
    model: ModelSpec, engine: EngineSpec, cache: CacheShape, tokens: int, outputs: int, expanded: bool = False
) -> GraphShape:
    """`tokens` of one prefill step, `outputs` of which need logits; `expanded` as in `kv_cache.layer_bytes`."""
    current = engine.graph == "llama.cpp"
    since_2025 = engine.graph in ("llama.cpp", "llama.cpp-2025")
    flash = engine.flash_attention
    rows = tokens * _VALUE
    hidden = rows * model.hidden_size
    heads = model.attention_heads
    query = raw = out = latent_query = scores = unpacked = 0
    masks, indices = {}, 0
    quantized = cache.key_type.startswith(("q", "iq")) or cache.value_type.startswith(("q", "iq"))
    for group in model.layers:
        seen = kv_cache.cells(group, cache)
        if not seen:
            continue
        if isinstance(group, AttentionLayers):
            windowed = group.window_tokens is not None
            query = max(query, rows * heads * group.key_dim)
            raw = max(raw, rows * group.kv_heads * (2 * group.key_dim + group.value_dim))
            out = max(out, rows * heads * group.value_dim)
            value_width, key_width, viewed = group.kv_heads * group.value_dim, group.kv_heads * group.key_dim, False
        else:
            assert isinstance(group, LatentAttentionLayers)
            windowed, value_width = False, group.latent_dim
            key_width = group.latent_dim + group.rope_dim
            viewed = True
            key = group.key_dim or key_width
            if expanded:
                query = max(query, rows * heads * key)
                raw = max(raw, 3 * rows * heads * key)
                out = max(out, rows * heads * (group.value_dim or key))
            else:
                # Plain query, absorbed into the latent space, its rotated part, and the two joined.
                latent_query = max(latent_query, rows * heads * (key + 2 * (group.latent_dim + group.rope_dim)))
                out = max(out, rows * heads * group.latent_dim)
        if not flash:
            scores = max(scores, rows * heads * seen)
        elif quantized and current:
            # A latent vector is unpacked once: as value it is a view of the key.
            unpacked = max(unpacked, seen * cache.streams * (key_width + (0 if viewed else value_width)) * 2)
        masks[windowed] = tokens * seen
        if not flash and since_2025:
            indices += tokens * (value_width * 8 if (windowed in masks) else 0)
    cells = sum(masks.values())
    on_host = cells * (2 if current and flash else 4)
    # Before 2026 a 32-bit mask came from the host and flash attention made a 16-bit one of it; the large tensors of
    # latent attention then reuse what the first one took.
    on_device = on_host + (0 if current or not flash else cells * 2)
    if latent_query and not current and flash:
        on_device = cells * 2
    kinds = len(masks)
    per_layer_indices = indices // max(1, sum(1 for g in model.layers if kv_cache.cells(g, cache))) * kinds
    experts = model.experts
    embedding = model.task is ModelTask.EMBEDDING
    return GraphShape(
        hidden=hidden,
        query=query,
        raw=raw,
        attention_out=out,
        latent_query=latent_query,
        scores=scores,
        gated=rows * (model.feed_forward_size or (0 if experts else 4 * model.hidden_size)),
        gated_parts=3 if current or engine.graph == "llama.cpp-2025" else 2,
        expert=rows * experts.used * experts.feed_forward_size if experts else 0,
        expert_out=rows * experts.used * model.hidden_size if experts else 0,
        device_inputs=on_device + per_layer_indices,
        host_inputs=on_host + per_layer_indices,
        logits=0 if embedding else outputs * model.vocabulary_size * _VALUE,
        cache_as_f16=unpacked,
        norm_copies=since_2025,
        current=current,
    )


def step_tokens(engine: EngineSpec, workload: Workload) -> int:
    """Tokens of one prefill step: never more than the whole context."""
    return min(engine.batch_tokens, kv_cache.cache_shape(workload, engine).context_tokens)


def shape_for(model: ModelSpec, engine: EngineSpec, workload: Workload, *, expanded: bool = False) -> GraphShape:
    """The sums of one workload."""
    tokens = step_tokens(engine, workload)
    outputs = tokens if engine.logits_of_all_tokens else min(tokens, workload.users)
    return graph_shape.__wrapped__(  # type: ignore[attr-defined, no-any-return]
        model, engine, kv_cache.cache_shape(workload, engine), tokens, outputs, expanded
    )


def device_bytes(
    shape: GraphShape,
    *,
    with_output: bool,
    attention_only: bool = False,
    unpacks_cache: bool = True,
    first: bool = True,
    pipelined: bool = False,
    whole: bool = False,
    copied_expert_bytes: int = 0,
    copied_layer_bytes: int = 0,
) -> int:
    """Compute buffer of one device; `attention_only` where its feed-forward parts are multiplied elsewhere,
    `unpacks_cache` not on the host.

    `whole`: the input embeddings are looked up here too, as on a machine without accelerators (sums read from what the
    real llama.cpp prints on one).
    `pipelined`: whole layers are split over several devices with everything on them. `copied_expert_bytes`,
    `copied_layer_bytes`: the largest matrix in host memory that a prefill step copies in to multiply on the device.
    """
    hidden = shape.hidden
    if pipelined:
        handed_over = 2 if shape.norm_copies and not first else 1
        inputs = _PIPELINE_COPIES * (shape.device_inputs + handed_over * hidden)
        kept = inputs
    else:
        inputs, kept = shape.device_inputs + hidden, 0
    residual = hidden if pipelined else 0
    unpacked = shape.cache_as_f16 if unpacks_cache else 0
    if shape.latent_query:
        attention = residual + 2 * hidden + shape.latent_query + unpacked
    else:
        attention = residual + hidden + shape.query + max(shape.query, shape.raw) + unpacked
        if not shape.scores:
            attention += shape.attention_out
    largest = attention + shape.scores
    freed = max(hidden, min(shape.attention_out, 2 * hidden))
    if whole and shape.current:
        inputs += hidden
        freed = 2 * hidden  # lies in pieces, too small for what the feed-forward part needs
    before = residual + freed + hidden
    parts = shape.gated_parts
    if shape.gated and not attention_only:
        dense = parts * shape.gated
        if copied_layer_bytes:
            dense = max(dense, 2 * shape.gated + copied_layer_bytes) + hidden + shape.query
        largest = max(largest, before + dense)
    if shape.expert and not attention_only:
        if copied_expert_bytes:
            mixture = copied_expert_bytes + shape.expert + max(shape.expert, shape.expert_out)
        else:
            room = parts - 1
            mixture = parts * shape.expert + (shape.expert_out if shape.expert_out > room * shape.expert else 0)
        largest = max(largest, before + mixture)
    largest += inputs
    if with_output:
        largest = max(largest, kept + shape.logits + hidden)
    return ceil(largest)


def helper_bytes(shape: GraphShape, *, copied_expert_bytes: int = 0, copied_layer_bytes: int = 0) -> int:
    """Compute buffer of an accelerator that holds no layer: it multiplies what the host keeps, a matrix at a time."""
    dense = 2 * shape.gated + copied_layer_bytes if copied_layer_bytes else 0
    experts = shape.expert + max(shape.expert, shape.expert_out) + copied_expert_bytes if copied_expert_bytes else 0
    return 3 * shape.hidden + max(dense, experts)


def host_bytes(shape: GraphShape, *, pipelined: bool = False, with_output: bool = False) -> int:
    """What the host stages for devices: embeddings, masks, and the logits where the output matrix is on the host."""
    copies = _PIPELINE_COPIES if pipelined else 1
    embeddings = shape.hidden * (1 + copies if shape.current else 1)
    staged = copies * shape.host_inputs + embeddings
    return max(staged, shape.logits + shape.hidden) if with_output else staged


def output_bytes(model: ModelSpec, slots: int) -> int:
    """Logits of one token per slot, kept for the caller in host memory."""
    return 0 if model.task is ModelTask.EMBEDDING else model.vocabulary_size * _VALUE * slots
