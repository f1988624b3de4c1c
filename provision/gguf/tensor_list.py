"""The tensors of a model by architecture: their names, shapes and types as llama.cpp's loader asks for them.

A shape is in ggml's order, the row length first. Sources: the tensor lists that llama.cpp's loader requires for each
architecture (checked by loading files with exactly these tensors), and the GGUF naming scheme. Bytes by place for
sizing come from `provision.sizing.weights`, which a test holds against this list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from provision.domain.llm import AttentionLayers, LatentAttentionLayers, Layers, ModelSpec
from provision.errors import InvalidFile
from provision.sizing import quantization_mix as mixes
from provision.sizing.tensors import layer_kinds
from provision.sizing.weights import mix_shape


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    layer: int | None = None
    """Index of the repeating layer it belongs to; None for what all share."""

    def bytes_as(self, ggml_type: str) -> int:
        """Its size in this type, without the padding between tensors."""
        values, size = mixes.BLOCK[ggml_type]
        return prod(self.shape) // values * size


@dataclass(frozen=True, slots=True)
class _Traits:
    """How an architecture differs from Llama's layer."""

    qkv_bias: bool = False
    output_bias: bool = False
    """Of the attention's output matrix."""
    qk_norm: bool = False
    """One norm over the head's dimensions for queries, one for keys."""
    fused_qkv: bool = False
    fused_gate_up: bool = False
    ffn_norm: str | None = "ffn_norm"
    """Name of the norm before the feed-forward part; None where both parts share one."""
    post_norms: tuple[str, ...] = ()
    sinks: bool = False
    """A learned logit per head, and biases on router and experts."""
    router_bias: bool = False
    """A bias per expert that only the choice of experts sees (DeepSeek V3; some ten bytes, also where V2 has none)."""
    shared_gate: bool = False
    """A gate vector in front of the shared expert."""


_TRAITS = {
    "llama": _Traits(),
    "mistral3": _Traits(),
    "granite": _Traits(),
    "granitemoe": _Traits(),
    "smollm3": _Traits(),
    "qwen2": _Traits(qkv_bias=True),
    "qwen2vl": _Traits(qkv_bias=True),
    "qwen2moe": _Traits(qkv_bias=True, shared_gate=True),
    "qwen3": _Traits(qk_norm=True),
    "qwen3vl": _Traits(qk_norm=True),
    "qwen3moe": _Traits(qk_norm=True),
    "qwen3vlmoe": _Traits(qk_norm=True),
    "gemma": _Traits(),
    "gemma2": _Traits(post_norms=("post_attention_norm", "post_ffw_norm")),
    "gemma3": _Traits(qk_norm=True, post_norms=("post_attention_norm", "post_ffw_norm")),
    "phi3": _Traits(fused_qkv=True, fused_gate_up=True),
    "command-r": _Traits(ffn_norm=None),
    "cohere2": _Traits(ffn_norm=None),
    "gpt-oss": _Traits(qkv_bias=True, output_bias=True, ffn_norm="post_attention_norm", sinks=True),
    "deepseek2": _Traits(router_bias=True),
}

ARCHITECTURES = tuple(sorted(_TRAITS))
"""llama.cpp's names of the architectures whose tensors are known here."""


def is_known(model: ModelSpec) -> bool:
    """Whether `tensors(model)` can answer."""
    return (
        model.architecture in _TRAITS
        and model.feed_forward_size is not None
        and all(isinstance(group, AttentionLayers | LatentAttentionLayers) for group in model.layers)
    )


def tensors(model: ModelSpec, *, expanded_latent: bool = False) -> tuple[Tensor, ...]:
    """Every tensor of `model`, layers in order. Raises InvalidFile for an architecture that is not known here.

    `expanded_latent`: the form of latent attention in files converted before the middle of 2025, whose keys and values
    are expanded for every head before they are cached.
    Left out: what some converters add (rotation frequency tables of some hundred bytes, multi-token prediction layers).
    """
    return tuple(_tensors(model, expanded_latent))


def _tensors(model: ModelSpec, expanded_latent: bool) -> Iterator[Tensor]:
    if not is_known(model):
        raise InvalidFile(
            f"the tensors of {model.id} are not known: architecture '{model.architecture or 'unknown'}'",
            hint="provision catalog add FILE.gguf reads them from a file",
            code="unknown-architecture",
        )
    hidden = model.hidden_size
    yield Tensor("token_embd.weight", (hidden, model.vocabulary_size))
    yield Tensor("output_norm.weight", (hidden,))
    if not model.tied_embeddings:
        yield Tensor("output.weight", (hidden, model.vocabulary_size))
    traits = _TRAITS[model.architecture or ""]
    for index, kind in enumerate(layer_kinds(model)):
        group = model.layers[kind]
        attention = (
            _latent(model, group, expanded_latent)
            if isinstance(group, LatentAttentionLayers)
            else _attention(model, group, traits)
        )
        for name, shape in (*attention, *_feed_forward(model, index, traits)):
            yield Tensor(f"blk.{index}.{name}", shape, index)


def tensor_types(model: ModelSpec, parts: Iterable[Tensor], quantization: str) -> tuple[str, ...]:
    """ggml's type of each of `parts` in a file of this quantization. Raises InvalidFile for an unknown one."""
    mix = mixes.mix_of(quantization)
    if mix is None:
        raise InvalidFile(
            f"the types of tensors in {quantization} are not known",
            hint="provision catalog list quantizations",
            code="unknown-quantization",
        )
    shape = mix_shape(model)
    return tuple(_type(tensor, mix, shape) for tensor in parts)


def _type(tensor: Tensor, mix: str, shape: mixes.MixShape) -> str:
    name, ending = tensor.name.rsplit(".", 1)
    columns = tensor.shape[0]
    if tensor.layer is None and len(tensor.shape) == 2:
        kind = mixes.end_type(mix, shape, output=name == "output", columns=columns)
    else:
        part = name.split(".")[-1]
        if len(tensor.shape) == 1 or ending != "weight" or part in _UNQUANTIZED:
            return "F32"
        kind = mixes.layer_type(mix, shape, _role(part), tensor.layer or 0)
    return mixes.fitting_type(kind, columns)


def _role(part: str) -> str:
    """The word by which the mixes know a matrix."""
    if part in _ATTENTION_ROLES:
        return _ATTENTION_ROLES[part]
    for role in ("gate", "up", "down"):
        if part.startswith(f"ffn_{role}"):
            if part.endswith("_exps"):
                return "experts_down" if role == "down" else "experts_up"
            return role
    return "other"


_ATTENTION_ROLES = {
    "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_qkv": "qkv", "attn_kv_b": "kv_b", "attn_output": "o",
}  # fmt: skip
_UNQUANTIZED = {"ffn_gate_inp", "ssm_conv1d", "shortconv.conv"}

_Part = tuple[str, tuple[int, ...]]


def _attention(model: ModelSpec, group: Layers, traits: _Traits) -> Iterator[_Part]:
    hidden, heads = model.hidden_size, model.attention_heads
    yield "attn_norm.weight", (hidden,)
    assert isinstance(group, AttentionLayers)
    query, key, value = heads * group.key_dim, group.kv_heads * group.key_dim, group.kv_heads * group.value_dim
    if traits.fused_qkv:
        yield "attn_qkv.weight", (hidden, query + key + value)
    else:
        for name, width in (("attn_q", query), ("attn_k", key), ("attn_v", value)):
            yield f"{name}.weight", (hidden, width)
            if traits.qkv_bias:
                yield f"{name}.bias", (width,)
    if traits.qk_norm:
        yield "attn_q_norm.weight", (group.key_dim,)
        yield "attn_k_norm.weight", (group.key_dim,)
    yield "attn_output.weight", (heads * group.value_dim, hidden)
    if traits.output_bias:
        yield "attn_output.bias", (hidden,)
    if traits.sinks:
        yield "attn_sinks.weight", (heads,)


def _latent(model: ModelSpec, group: LatentAttentionLayers, expanded: bool) -> Iterator[_Part]:
    hidden, heads, rank = model.hidden_size, model.attention_heads, group.latent_dim
    if group.key_dim is None or group.value_dim is None:
        raise InvalidFile(
            f"the tensors of {model.id} are not known: its heads' dimensions are missing",
            hint="give the latent layers key_dim and value_dim",
            code="unknown-architecture",
        )
    yield "attn_norm.weight", (hidden,)
    if group.query_rank is None:
        yield "attn_q.weight", (hidden, heads * group.key_dim)
    else:
        yield "attn_q_a.weight", (hidden, group.query_rank)
        yield "attn_q_a_norm.weight", (group.query_rank,)
        yield "attn_q_b.weight", (group.query_rank, heads * group.key_dim)
    yield "attn_kv_a_mqa.weight", (hidden, rank + group.rope_dim)
    yield "attn_kv_a_norm.weight", (rank,)
    plain = group.key_dim - group.rope_dim
    if expanded:
        yield "attn_kv_b.weight", (rank, heads * (plain + group.value_dim))
    else:
        yield "attn_k_b.weight", (plain, rank, heads)
        yield "attn_v_b.weight", (rank, group.value_dim, heads)
    yield "attn_output.weight", (heads * group.value_dim, hidden)


def _feed_forward(model: ModelSpec, index: int, traits: _Traits) -> Iterator[_Part]:
    hidden, inner, experts = model.hidden_size, model.feed_forward_size or 0, model.experts
    if traits.ffn_norm:
        yield f"{traits.ffn_norm}.weight", (hidden,)
    for name in traits.post_norms:
        yield f"{name}.weight", (hidden,)
    if experts is None or index < experts.dense_layers:
        if traits.fused_gate_up:
            yield "ffn_up.weight", (hidden, 2 * inner)
        else:
            yield "ffn_gate.weight", (hidden, inner)
            yield "ffn_up.weight", (hidden, inner)
        yield "ffn_down.weight", (inner, hidden)
        return
    count, width = experts.count, experts.feed_forward_size
    yield "ffn_gate_inp.weight", (hidden, count)
    if traits.router_bias:
        yield "exp_probs_b.bias", (count,)
    yield "ffn_gate_exps.weight", (hidden, width, count)
    yield "ffn_up_exps.weight", (hidden, width, count)
    yield "ffn_down_exps.weight", (width, hidden, count)
    if traits.sinks:
        yield "ffn_gate_inp.bias", (count,)
        yield "ffn_gate_exps.bias", (width, count)
        yield "ffn_up_exps.bias", (width, count)
        yield "ffn_down_exps.bias", (hidden, count)
    shared = experts.shared_feed_forward_size
    if shared:
        if traits.shared_gate:
            yield "ffn_gate_inp_shexp.weight", (hidden,)
        yield "ffn_gate_shexp.weight", (hidden, shared)
        yield "ffn_up_shexp.weight", (hidden, shared)
        yield "ffn_down_shexp.weight", (shared, hidden)
