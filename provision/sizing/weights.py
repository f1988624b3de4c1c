"""Bytes of a build's tensors by where llama.cpp can put them: embeddings, each layer, its experts, output matrix."""

from __future__ import annotations

from provision.domain.llm import (
    AttentionLayers,
    LatentAttentionLayers,
    ModelBuild,
    ModelSpec,
    ModelTask,
    Quantization,
    WeightLayout,
)
from provision.sizing import quantization_mix as mixes
from provision.sizing.cached import by_identity
from provision.sizing.tensors import Matrix, attention_matrices, feed_forward_matrices, layer_kinds, small_bytes

_METADATA_SHARE, _METADATA_BYTES = 0.001, 24 * 2**20
"""A file may be larger than its tensors by this much before the tensors are scaled: vocabulary and header take 5 to
16 MB, tensors are padded to 32 bytes. It may be smaller by the share: small tensors that are not modelled."""
LARGEST_DENSE_SHARE = 0.25
"""Of a layer without its experts: one matrix of the gated unit, which is a quarter to a third of a layer."""


@by_identity
def layout(model: ModelSpec, build: ModelBuild, quantization: Quantization) -> WeightLayout:
    """Exact bytes by place: from the file's own header where `build.layout` has it, else computed.

    Computed from the shape and the mix of the quantization (exact for `llama-quantize`'s own mixes). Where the
    computed sum is off the published size by more than a file's metadata, all layers are scaled alike: for makers' own
    mixes, and for architectures with parts that a record does not hold. Metadata is left out of every figure.
    """
    if build.layout is not None:
        return build.layout
    computed = _computed(model, quantization, build.expanded_cache)
    total = computed.embedding_bytes + computed.output_bytes + sum(computed.layer_bytes)
    excess = build.weights_bytes - total
    as_computed = -_METADATA_SHARE * total <= excess <= max(_METADATA_BYTES, _METADATA_SHARE * total)
    if as_computed and any(computed.layer_bytes):
        return computed
    ends = computed.embedding_bytes + computed.output_bytes
    if build.weights_bytes <= ends:
        ends = build.weights_bytes // 2  # the table's type is better known than the file's: keep something for layers
    ratio = (build.weights_bytes - ends) / max(1, sum(computed.layer_bytes))
    if not any(computed.layer_bytes):
        each = (build.weights_bytes - ends) // max(1, model.layer_count)
        return WeightLayout(
            embedding_bytes=min(computed.embedding_bytes, ends),
            output_bytes=max(0, ends - computed.embedding_bytes),
            layer_bytes=(each,) * model.layer_count,
        )
    return WeightLayout(
        embedding_bytes=min(computed.embedding_bytes, ends),
        output_bytes=max(0, ends - computed.embedding_bytes),
        layer_bytes=tuple(round(size * ratio) for size in computed.layer_bytes),
        expert_bytes=tuple(round(size * ratio) for size in computed.expert_bytes),
    )


def computed_bytes(model: ModelSpec, quantization: Quantization, *, expanded_cache: bool = False) -> int:
    """Sum of all tensors as the shape and the mix give it, before any scaling; file metadata left out."""
    made = _computed(model, quantization, expanded_cache)
    return made.embedding_bytes + made.output_bytes + sum(made.layer_bytes)


def largest_expert_share(model: ModelSpec, quantization: Quantization) -> float:
    """Of the routed experts of the layer with the most: their largest matrix, a third where all have one type."""
    mix = mixes.mix_of(quantization.id)
    if mix is None or model.experts is None:
        return 1 / 3
    shape = mixes.MixShape(model.layer_count, _query_heads_per_kv_head(model), model.experts.count, False, False)
    inner, hidden = model.experts.feed_forward_size, model.hidden_size
    up = inner * mixes.row_bytes(mixes.layer_type(mix, shape, "experts_up", 0), hidden)
    down = hidden * mixes.row_bytes(mixes.layer_type(mix, shape, "experts_down", 0), inner)
    return max(up, down) / (2 * up + down)


@by_identity
def _computed(model: ModelSpec, quantization: Quantization, joined_latent: bool) -> WeightLayout:
    mix = mixes.mix_of(quantization.id) if quantization.container == "gguf" else None
    shape = mix_shape(model)
    table = model.vocabulary_size * model.hidden_size
    if mix is None:
        embedding = round(table * quantization.embedding_bits_per_weight / 8)
        output = round(table * quantization.output_bits_per_weight / 8)
        if model.tied_embeddings:
            embedding = output
    else:
        embedding, output = (
            round(
                model.vocabulary_size
                * mixes.row_bytes(mixes.end_type(mix, shape, output=end, columns=model.hidden_size), model.hidden_size)
            )
            for end in (False, True)
        )
    if model.tied_embeddings or model.task is ModelTask.EMBEDDING:
        output = 0
    dense_layers = model.experts.dense_layers if model.experts else 0
    classes = mixes.layer_classes(mix, model.layer_count) if mix else (0,) * model.layer_count
    dense = (True,) * dense_layers + (False,) * (model.layer_count - dense_layers)
    keys = list(zip(layer_kinds(model), dense, classes, strict=True))
    first = {key: index for index, key in reversed(list(enumerate(keys)))}  # most layers are like one before
    alike = {key: _layer(model, quantization, mix, shape, index, key[0], joined_latent) for key, index in first.items()}
    layers = [alike[key][0] for key in keys]
    experts = [alike[key][1] for key in keys]
    output += model.hidden_size * 4  # the last norm
    return WeightLayout(
        embedding_bytes=embedding,
        output_bytes=output,
        layer_bytes=tuple(layers),
        expert_bytes=tuple(experts) if any(experts) else (),
    )


def _layer(
    model: ModelSpec,
    quantization: Quantization,
    mix: str | None,
    shape: mixes.MixShape,
    index: int,
    kind: int,
    joined_latent: bool,
) -> tuple[int, int]:
    """Bytes of one layer, and of its routed experts among them."""
    group = model.layers[kind]
    dense, routed, router = feed_forward_matrices(model, index)
    matrices = attention_matrices(model, group, split_latent=not joined_latent) + dense
    size = sum(_bytes(m, mix, quantization, shape, index) for m in matrices)
    of_experts = sum(_bytes(m, mix, quantization, shape, index) for m in routed)
    return round(size + of_experts) + router + small_bytes(model, group), round(of_experts)


def _bytes(matrix: Matrix, mix: str | None, quantization: Quantization, shape: mixes.MixShape, layer: int) -> float:
    if mix is None:
        return matrix.rows * matrix.columns * quantization.bits_per_weight / 8
    return matrix.rows * mixes.row_bytes(mixes.layer_type(mix, shape, matrix.role, layer), matrix.columns)


def mix_shape(model: ModelSpec) -> mixes.MixShape:
    """What the rules of quantization mixes look at."""
    return mixes.MixShape(
        layers=model.layer_count,
        query_heads_per_kv_head=_query_heads_per_kv_head(model),
        experts=model.experts.count if model.experts else 0,
        tied=model.tied_embeddings,
        is_70b=model.layer_count == 80 and (model.architecture or "llama") in ("llama", "qwen2", "deci"),
    )


def _query_heads_per_kv_head(model: ModelSpec) -> int:
    for group in model.layers:
        if isinstance(group, AttentionLayers):
            return model.attention_heads // max(1, group.kv_heads)
        if isinstance(group, LatentAttentionLayers):
            return 1
    return 1
