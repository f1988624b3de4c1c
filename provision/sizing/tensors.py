"""The matrices of one repeating layer, by architecture: their shapes follow from the model's, their roles decide types.

Names are llama.cpp's. Shapes that a record does not hold (state-space projections, vision towers) are left out: the
caller scales to the published size. Norms and biases are 32-bit and together some hundred kB a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from provision.domain.llm import AttentionLayers, LatentAttentionLayers, Layers, ModelSpec
from provision.sizing.cached import by_identity

_FUSED_QKV = frozenset({"phi3", "phi2", "falcon", "bloom", "gpt2", "gptneox", "mpt", "chatglm", "dbrx", "nomic-bert"})
_BIASED_QKV = frozenset({"qwen2", "qwen2moe", "qwen2vl", "chatglm", "glm4", "glm4moe", "gpt-oss", "bert"})
_HEAD_NORMS = frozenset({"qwen3", "qwen3moe", "gemma3", "gemma4", "glm4moe", "qwen3vl", "qwen3vlmoe"})
_FUSED_GATE_UP = frozenset({"phi3", "glm4", "chatglm"})
_WITHOUT_GATE = frozenset({"phi2", "starcoder2", "bert", "gpt2", "falcon", "bloom", "mpt", "gptneox", "nemotron"})
_FOUR_NORMS = frozenset({"gemma2", "gemma3", "gemma4", "glm4"})
_ONE_NORM = frozenset({"command-r", "cohere2", "phi2"})


@dataclass(frozen=True, slots=True)
class Matrix:
    """`rows` rows of `columns` values each; a row is what ggml quantizes as one."""

    role: str
    rows: int
    columns: int


@by_identity
def layer_kinds(model: ModelSpec) -> tuple[int, ...]:
    """Index into `model.layers` of every layer in order: the pattern repeated; without one, the groups one after the
    other, which is right for one kind and a stand-in where the order is not known."""
    counts = [group.count for group in model.layers]
    if not model.layer_pattern:
        return tuple(index for index, count in enumerate(counts) for _ in range(count))
    order, left = [], list(counts)
    while sum(left):
        before = sum(left)
        for index in model.layer_pattern:
            if index < len(left) and left[index]:
                order.append(index)
                left[index] -= 1
        if sum(left) == before:  # the pattern does not name every group
            order += [index for index, count in enumerate(left) for _ in range(count)]
            break
    return tuple(order)


def attention_matrices(model: ModelSpec, group: Layers, *, split_latent: bool = True) -> list[Matrix]:
    """Projections of the attention part. `split_latent`: latent files since April 2025 hold the expansion as two
    matrices, one per use; older ones as a single one, which the mixes of that time did not favour."""
    hidden, heads = model.hidden_size, model.attention_heads
    if isinstance(group, AttentionLayers):
        query, key, value = heads * group.key_dim, group.kv_heads * group.key_dim, group.kv_heads * group.value_dim
        output = Matrix("o", hidden, heads * group.value_dim)
        if model.architecture in _FUSED_QKV:
            return [Matrix("qkv", query + key + value, hidden), output]
        return [Matrix("q", query, hidden), Matrix("k", key, hidden), Matrix("v", value, hidden), output]
    if isinstance(group, LatentAttentionLayers) and group.key_dim and group.value_dim:
        plain = group.key_dim - group.rope_dim
        made = [
            Matrix("other", group.latent_dim + group.rope_dim, hidden),
            Matrix("o", hidden, heads * group.value_dim),
        ]
        if group.query_rank:
            made += [
                Matrix("other", group.query_rank, hidden),
                Matrix("other", heads * group.key_dim, group.query_rank),
            ]
        else:
            made.append(Matrix("q", heads * group.key_dim, hidden))
        if split_latent:
            made += [
                Matrix("other", heads * group.latent_dim, plain),
                Matrix("other", heads * group.value_dim, group.latent_dim),
            ]
        else:
            made.append(Matrix("other", heads * (plain + group.value_dim), group.latent_dim))
        return made
    return []


def feed_forward_matrices(model: ModelSpec, layer: int) -> tuple[list[Matrix], list[Matrix], int]:
    """(dense and shared matrices, routed experts' matrices, bytes of the 32-bit router) of one layer."""
    hidden, experts = model.hidden_size, model.experts
    if experts is None or layer < experts.dense_layers:
        return _feed_forward(model, model.feed_forward_size or 4 * hidden), [], 0
    inner = experts.feed_forward_size
    routed = [
        Matrix("experts_up", 2 * experts.count * inner, hidden),
        Matrix("experts_down", experts.count * hidden, inner),
    ]
    shared = experts.shared_feed_forward_size
    router = experts.count * hidden * 4
    if model.architecture == "gpt-oss":  # biases of router and experts
        router += 4 * experts.count * (1 + 2 * inner + hidden)
    elif model.architecture in ("deepseek2", "glm4moe"):
        router += 4 * experts.count
    dense = [Matrix("up", 2 * shared, hidden), Matrix("down", hidden, shared)] if shared else []
    return dense, routed, router


def small_bytes(model: ModelSpec, group: Layers) -> int:
    """Norms and biases of one layer, all 32-bit."""
    hidden, arch = model.hidden_size, model.architecture
    values = hidden * (4 if arch in _FOUR_NORMS else 1 if arch in _ONE_NORM else 2)
    if isinstance(group, AttentionLayers):
        if arch in _BIASED_QKV:
            values += model.attention_heads * group.key_dim + group.kv_heads * (group.key_dim + group.value_dim)
        if arch in _HEAD_NORMS:
            values += 2 * group.key_dim
        if arch == "gpt-oss":
            values += model.attention_heads + hidden  # sinks, output bias
    elif isinstance(group, LatentAttentionLayers):
        values += group.latent_dim + (group.query_rank or 0)
    return 4 * values


def _feed_forward(model: ModelSpec, inner: int) -> list[Matrix]:
    down = Matrix("down", model.hidden_size, inner)
    if model.architecture in _FUSED_GATE_UP:
        return [Matrix("up", 2 * inner, model.hidden_size), down]
    up = Matrix("up", inner, model.hidden_size)
    return [up, down] if model.architecture in _WITHOUT_GATE else [Matrix("gate", inner, model.hidden_size), up, down]
