"""From a header to catalog records: the model's shape, the build with its exact size, and its quantization."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from provision.domain.llm import (
    AttentionLayers,
    Experts,
    LatentAttentionLayers,
    Layers,
    ModelBuild,
    ModelSpec,
    ModelTask,
    Precision,
    Quantization,
    StateLayers,
    WeightLayout,
)
from provision.errors import InvalidFile
from provision.gguf.architectures import ENCODERS
from provision.gguf.header import HINT, Header, Skipped, Tensor
from provision.gguf.layers import Metadata, has_split_latent, layers_of, main_layer_count
from provision.gguf.types import FILE_TYPES, LABEL_PATTERN, TENSOR_TYPES

_BLOCK = re.compile(r"(?:dec\.)?blk\.(\d+)\.")
_EXPERT = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down|gate_up)(?:_exps\.|\.\d+\.)")
_SHARED_EXPERT = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)_shexp\.")
_INPUT = re.compile(r"(?:token_embd|token_embd_norm|token_types|position_embd|per_layer_token_embd)\.")
"""What llama.cpp keeps with the input."""
_FIRST_LAYER = re.compile(r"(?:rope_(?:freqs|factors_long|factors_short)|per_layer_(?:model_proj|proj_norm))\.")
"""Tensors without a number that llama.cpp makes with the first layer."""
_NOT_PARAMETERS = re.compile(r"rope_(?:freqs|factors_long|factors_short)\.")
_LABEL = re.compile(rf"(?:^|[-._/]){LABEL_PATTERN}(?=$|[-._/])", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)


def label_in(name: str) -> str | None:
    """The quantization that a file's name says it is of, in its usual spelling; None where it says none."""
    stem = PurePosixPath(_PART.sub("", name)).name.removesuffix(".gguf").removesuffix(".GGUF")
    found = _LABEL.findall(stem)
    if not found:
        return None
    label = str(found[-1]).lstrip("-._/").upper()
    return {"FP16": "F16", "FP32": "F32", "MXFP4_MOE": "MXFP4"}.get(label, label)


def model_of(header: Header, name: str, source: str) -> tuple[ModelSpec, ModelBuild, Quantization]:
    """`header` as records of the model `name`, each with `source`. Raises InvalidFile for what cannot be sized.

    The layout leaves multi-token prediction out, as llama.cpp does, so its sum can be below the file's size. None of
    the numbers is guessed: an architecture or a key that is not known is said.
    """
    if not header.tensors:
        raise InvalidFile(f"{header.label} holds no weights, only a vocabulary", hint=HINT)
    metadata = Metadata(header)
    architecture = metadata.architecture
    layers, pattern = layers_of(metadata)
    hidden = metadata.number("embedding_length")
    heads = metadata.number("attention.head_count", 0, least=0) or hidden // metadata.number("wkv.head_size", hidden)
    encoder = architecture in ENCODERS
    pooled = metadata.number("pooling_type", 0, least=0) > 0
    parameters, routed = _parameters(header)
    experts = _experts(header, metadata)
    label = header.metadata.get("general.name")
    model = ModelSpec(
        id=name,
        name=label if isinstance(label, str) and label.isprintable() and label else name,
        family=architecture,
        architecture=architecture,
        task=ModelTask.EMBEDDING if encoder or pooled else ModelTask.TEXT,
        parameters=parameters,
        active_parameters=parameters - routed + routed * experts.used // experts.count if experts else None,
        hidden_size=hidden,
        feed_forward_size=metadata.number("feed_forward_length", 0, least=0) or None,
        attention_heads=heads,
        vocabulary_size=_vocabulary(header, metadata),
        context_tokens_max=metadata.number("context_length"),
        tied_embeddings=not encoder and "output.weight" not in header.tensors,
        layers=layers,
        layer_pattern=pattern,
        experts=experts,
        license=_text(header, "general.license"),
        provenance={"*": source},
    )
    quantization = _quantization(header, source)
    build = ModelBuild(
        model=name,
        quantization=quantization.id,
        weights_bytes=header.file_bytes,
        precision=Precision.EXACT,
        artifact=header.label,
        expanded_cache=any(isinstance(g, LatentAttentionLayers) for g in layers) and not has_split_latent(metadata),
        layout=_layout(header, main_layer_count(metadata), metadata.layer_count),
        source=source,
    )
    return model, build, quantization


def describe(layers: tuple[Layers, ...]) -> str:
    """`layers` in words, for people: "10 with full attention, 52 with a window of 1,024 tokens"."""
    return ", ".join(f"{group.count} {_kind_in_words(group)}" for group in layers)


def _kind_in_words(group: Layers) -> str:
    if isinstance(group, LatentAttentionLayers):
        return f"with latent attention of {group.latent_dim} + {group.rope_dim}"
    if isinstance(group, StateLayers):
        return "with a recurrent state" if group.state_bytes_per_sequence else "without attention"
    if isinstance(group, AttentionLayers) and not group.kv_heads:
        return "with the cache of earlier ones"
    if isinstance(group, AttentionLayers) and group.window_tokens is not None:
        return f"with a window of {group.window_tokens:,} tokens"
    return "with full attention" + (" beside a recurrent state" if group.state_bytes_per_sequence else "")


def _layout(header: Header, layer_count: int, layers_in_file: int) -> WeightLayout | None:
    """Bytes by place; None where a layer has no tensors at all, so that the list cannot be the whole model."""
    embedding = output = 0
    layer_bytes, expert_bytes = [0] * layers_in_file, [0] * layers_in_file
    for tensor in header.tensors.values():
        size = tensor.size_bytes
        if found := _BLOCK.match(tensor.name):
            index = int(found[1])
            if index >= layers_in_file:
                raise InvalidFile(
                    f"{header.label} has the tensor '{tensor.name}', but claims {layers_in_file} layers", hint=HINT
                )
            layer_bytes[index] += size
            if _EXPERT.match(tensor.name):
                expert_bytes[index] += size
        elif _INPUT.match(tensor.name):
            embedding += size
        elif _FIRST_LAYER.match(tensor.name):
            layer_bytes[0] += size
        else:
            output += size
    if not all(layer_bytes[:layer_count]):
        return None
    return WeightLayout(
        embedding_bytes=embedding,
        output_bytes=output,
        layer_bytes=tuple(layer_bytes[:layer_count]),
        expert_bytes=tuple(expert_bytes[:layer_count]) if any(expert_bytes) else (),
    )


def _parameters(header: Header) -> tuple[int, int]:
    """All weights, and those in routed experts."""
    counted = [t for t in header.tensors.values() if not _NOT_PARAMETERS.match(t.name)]
    return sum(t.elements for t in counted), sum(t.elements for t in counted if _EXPERT.match(t.name))


def _experts(header: Header, metadata: Metadata) -> Experts | None:
    count = metadata.optional("expert_count")
    if count is None:
        return None
    used = metadata.number("expert_used_count", most=count)
    width = metadata.optional("expert_feed_forward_length") or _expert_width(header)
    if width is None:
        width = metadata.number("feed_forward_length")
    with_experts = {int(m[1]) for t in header.tensors if _EXPERT.match(t) and (m := _BLOCK.match(t))}
    shared = metadata.optional("expert_shared_feed_forward_length")
    if shared is None:
        has_shared = any(map(_SHARED_EXPERT.match, header.tensors))
        shared = (metadata.optional("expert_shared_count") or 0) * width if has_shared else 0
    first = min(with_experts, default=metadata.optional("leading_dense_block_count") or 0)
    return Experts(
        count=count,
        used=used,
        feed_forward_size=width,
        shared_feed_forward_size=shared,
        dense_layers=first,
    )


def _expert_width(header: Header) -> int | None:
    """Rows that the experts' down projections take, where the tensors are stacked."""
    stacked = (t for t in header.tensors.values() if t.name.endswith("ffn_down_exps.weight"))
    return next((tensor.shape[0] for tensor in stacked), None)


def _vocabulary(header: Header, metadata: Metadata) -> int:
    """Rows of the embedding table, which is what the matrices at both ends have."""
    table = header.tensors.get("token_embd.weight")
    if table is not None and len(table.shape) == 2:
        return table.shape[1]
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return tokens.length if isinstance(tokens, Skipped) else metadata.number("vocab_size")


def _quantization(header: Header, source: str) -> Quantization:
    """The mix by the name that the file gives it, else by what its own name says, else "unknown"."""
    file_type = header.metadata.get("general.file_type")
    by_type = FILE_TYPES.get(file_type % 1024) if isinstance(file_type, int) and file_type >= 0 else None
    tensors = header.tensors
    elements = sum(tensor.elements for tensor in tensors.values())
    table = _bits(tensors.get("token_embd.weight")) or 16.0
    return Quantization(
        id=by_type or label_in(header.label) or "unknown",
        container="gguf",
        bits_per_weight=round(8 * sum(tensor.size_bytes for tensor in tensors.values()) / elements, 4),
        embedding_bits_per_weight=table,
        output_bits_per_weight=_bits(tensors.get("output.weight")) or table,
        rank=0,
        provenance={"*": source},
    )


def _bits(tensor: Tensor | None) -> float | None:
    return None if tensor is None else TENSOR_TYPES[tensor.kind].bits_per_weight


def _text(header: Header, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) and value.isprintable() and value else None
