"""Writes GGUF files with the exact shape of a model and made-up contents.

Memory and speed of an engine depend on shapes and types, not on what the weights say: such a file loads and runs like
the model it is shaped after, without a download. Zeros are not written (the file is sparse and takes no disk); random
weights are, for measurements in which the routing of experts or the caches must not see equal numbers everywhere.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from provision.domain.llm import AttentionLayers, LatentAttentionLayers, ModelSpec
from provision.errors import InvalidFile
from provision.gguf.tensor_list import Tensor, tensor_types, tensors
from provision.gguf.types import FILE_TYPES, TENSOR_TYPES
from provision.sizing.quantization_mix import BLOCK

_ALIGNMENT = 32
_U32, _F32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_NORMAL, _CONTROL = 1, 3

Value = bool | int | float | str | tuple[int, Sequence[int | str]]
"""A metadata value; arrays as (element type, elements)."""


def write(
    path: Path,
    model: ModelSpec,
    quantization: str,
    *,
    fill: Literal["zeros", "random"] = "zeros",
    expanded_latent: bool = False,
) -> int:
    """Write a GGUF file with the tensors of `model` in the mix `quantization`; returns its size in bytes.

    `expanded_latent`: see `provision.gguf.tensor_list.tensors`. The vocabulary has as many tokens as the model's, of
    which the first 256 are the bytes and the last two are control tokens (begin, end); text goes through byte by byte.
    Raises InvalidFile where the architecture's tensors or the mix are not known, or the file cannot be written.
    """
    parts = tensors(model, expanded_latent=expanded_latent)
    kinds = tensor_types(model, parts, quantization)
    header, offsets, end = _header(parts, kinds, list(_metadata(model, quantization, expanded_latent)))
    try:
        with path.open("wb") as stream:
            stream.write(header)
            if fill == "random":
                _write_random(stream, parts, kinds, [len(header) + offset for offset in offsets])
            stream.truncate(len(header) + end)
    except OSError as error:
        raise InvalidFile(f"cannot write {path}: {error.strerror}", hint="give a folder with room") from error
    return len(header) + end


def _header(
    parts: Iterable[Tensor], kinds: Iterable[str], metadata: list[tuple[str, Value]]
) -> tuple[bytes, list[int], int]:
    """All before the weights, where each tensor begins after it, and where the last one ends."""
    described, offsets, offset = bytearray(), [], 0
    for tensor, kind in zip(parts, kinds, strict=True):
        described += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        described += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        described += struct.pack("<IQ", _TYPE_NUMBERS[kind], offset)
        offsets.append(offset)
        offset += _aligned(tensor.bytes_as(kind))
    start = b"GGUF" + struct.pack("<IQQ", 3, len(offsets), len(metadata))
    entries = b"".join(_string(key) + _value(value) for key, value in metadata)
    header = start + entries + bytes(described)
    return header + bytes(_aligned(len(header)) - len(header)), offsets, offset


def _metadata(model: ModelSpec, quantization: str, expanded_latent: bool) -> Iterator[tuple[str, Value]]:
    architecture = model.architecture
    assert architecture is not None  # tensors() has refused it
    yield "general.architecture", architecture
    yield "general.name", "synthetic"  # the loader asks some names (Phi 3) for tokens of their own
    yield "general.file_type", _FILE_TYPE_NUMBERS.get(quantization, 0)
    keys = {
        "block_count": model.layer_count,
        "context_length": model.context_tokens_max,
        "embedding_length": model.hidden_size,
        "feed_forward_length": model.feed_forward_size or 0,
        "attention.head_count": model.attention_heads,
        "vocab_size": model.vocabulary_size,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10_000.0,
        **_attention_keys(model, expanded_latent),
        **_expert_keys(model),
        **_EXTRA_KEYS.get(architecture, {}),
    }
    for key, value in keys.items():
        yield f"{architecture}.{key}", value
    yield from _vocabulary(model.vocabulary_size)


_EXTRA_KEYS: dict[str, dict[str, Value]] = {
    "command-r": {"attention.layer_norm_epsilon": 1e-5, "logit_scale": 0.0625},
    "cohere2": {"attention.layer_norm_epsilon": 1e-5, "logit_scale": 0.25},
    "granite": {"logit_scale": 8.0, "attention.scale": 0.0078125, "embedding_scale": 12.0, "residual_scale": 0.22},
    "granitemoe": {"logit_scale": 8.0, "attention.scale": 0.0078125, "embedding_scale": 12.0, "residual_scale": 0.22},
    "qwen2vl": {"rope.dimension_sections": (5, [16, 24, 24, 0])},
    "qwen3vl": {"rope.dimension_sections": (5, [24, 20, 20, 0])},
    "qwen3vlmoe": {"rope.dimension_sections": (5, [24, 20, 20, 0])},
}


def _attention_keys(model: ModelSpec, expanded_latent: bool) -> dict[str, Value]:
    group = model.layers[0]
    if isinstance(group, LatentAttentionLayers):
        assert group.key_dim is not None  # tensors() has refused it
        assert group.value_dim is not None
        keys: dict[str, Value] = {
            "attention.kv_lora_rank": group.latent_dim,
            "rope.dimension_count": group.rope_dim,
        }
        if group.query_rank is not None:
            keys["attention.q_lora_rank"] = group.query_rank
        if expanded_latent:
            return keys | {
                "attention.head_count_kv": model.attention_heads,
                "attention.key_length": group.key_dim,
                "attention.value_length": group.value_dim,
            }
        return keys | {
            "attention.head_count_kv": 1,
            "attention.key_length": group.latent_dim + group.rope_dim,
            "attention.value_length": group.latent_dim,
            "attention.key_length_mla": group.key_dim,
            "attention.value_length_mla": group.value_dim,
        }
    assert isinstance(group, AttentionLayers)
    keys = {
        "attention.head_count_kv": group.kv_heads,
        "attention.key_length": group.key_dim,
        "attention.value_length": group.value_dim,
        "rope.dimension_count": group.key_dim,
    }
    windows = [layer.window_tokens for layer in model.layers if isinstance(layer, AttentionLayers)]
    widest = [window for window in windows if window is not None]
    if widest:
        keys["attention.sliding_window"] = widest[0]
    return keys


def _expert_keys(model: ModelSpec) -> dict[str, Value]:
    experts = model.experts
    if experts is None:
        return {}
    keys: dict[str, Value] = {
        "expert_count": experts.count,
        "expert_used_count": experts.used,
        "expert_feed_forward_length": experts.feed_forward_size,
    }
    if experts.shared_feed_forward_size:
        keys["expert_shared_feed_forward_length"] = experts.shared_feed_forward_size
    if model.architecture == "deepseek2":
        keys |= {
            "leading_dense_block_count": experts.dense_layers,
            # The loader multiplies this count by the width of a routed expert.
            "expert_shared_count": experts.shared_feed_forward_size // experts.feed_forward_size,
            "expert_weights_scale": 1.0,
            "expert_gating_func": 1,
        }
    if model.architecture == "llama":
        keys["feed_forward_length"] = experts.feed_forward_size
    return keys


_TYPE_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}
_FILE_TYPE_NUMBERS = {mix: number for number, mix in FILE_TYPES.items()}


def _vocabulary(size: int) -> Iterator[tuple[str, Value]]:
    """A byte-pair vocabulary: the 256 bytes in the notation of such vocabularies, fillers, begin and end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    tokens = [letters[byte] for byte in range(256)] + [f"<{number}>" for number in range(256, size - 2)]
    tokens = [*tokens[: size - 2], "<|begin|>", "<|end|>"]
    yield "tokenizer.ggml.model", "gpt2"
    yield "tokenizer.ggml.pre", "llama-bpe"
    yield "tokenizer.ggml.tokens", (_STRING, tokens)
    yield "tokenizer.ggml.token_type", (5, [_NORMAL] * (size - 2) + [_CONTROL] * 2)
    yield "tokenizer.ggml.merges", (_STRING, [f"{letters[32]} {letters[32]}"])
    yield "tokenizer.ggml.bos_token_id", size - 2
    yield "tokenizer.ggml.eos_token_id", size - 1
    yield "tokenizer.ggml.add_bos_token", False


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    element, items = value
    packed = b"".join(map(_string, map(str, items))) if element == _STRING else struct.pack(f"<{len(items)}i", *items)
    return struct.pack("<IIQ", _ARRAY, element, len(items)) + packed


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


_SCALES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "IQ3_S": (0,), "IQ3_XXS": (0,),
    "IQ2_S": (0,), "IQ2_XS": (0,), "IQ2_XXS": (0,), "IQ1_S": (0,), "MXFP4": (), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip
"""Where a block of each type keeps its half-precision scales (ggml's block layouts); the rest may be any bits."""

_SMALL_HALF = struct.pack("<e", 2**-10)
_PATTERN_BLOCKS = 4999
"""Prime, so that rows which repeat the pattern do not start at the same place in it."""


def _write_random(stream: BinaryIO, parts: Iterable[Tensor], kinds: Iterable[str], offsets: Iterable[int]) -> None:
    patterns: dict[str, bytes] = {}
    source = random.Random(0)  # the same file every time
    for tensor, kind, offset in zip(parts, kinds, offsets, strict=True):
        if kind not in patterns:
            patterns[kind] = _pattern(kind, source)
        pattern, left = patterns[kind], tensor.bytes_as(kind)
        stream.seek(offset, os.SEEK_SET)
        while left > 0:
            left -= stream.write(pattern[:left] if left < len(pattern) else pattern)


def _pattern(kind: str, source: random.Random) -> bytes:
    """Some thousand blocks of random values around zero, all of them finite."""
    if kind == "F32":
        return struct.pack(f"<{_PATTERN_BLOCKS}f", *(source.gauss(0.0, 0.05) for _ in range(_PATTERN_BLOCKS)))
    if kind == "F16":
        return struct.pack(f"<{_PATTERN_BLOCKS}e", *(source.gauss(0.0, 0.05) for _ in range(_PATTERN_BLOCKS)))
    if kind == "BF16":
        halves = (struct.pack("<f", source.gauss(0.0, 0.05))[2:] for _ in range(_PATTERN_BLOCKS))
        return b"".join(halves)
    size = BLOCK[kind][1]
    blocks = bytearray(source.randbytes(size * _PATTERN_BLOCKS))
    if kind not in _SCALES:
        raise InvalidFile(f"random weights of type {kind} cannot be made", hint="write zeros")
    for block in range(_PATTERN_BLOCKS):
        start = block * size
        if kind == "MXFP4":
            blocks[start] = 118  # exponent: 2 ** (118 - 127)
        for at in _SCALES[kind]:
            blocks[start + at : start + at + 2] = _SMALL_HALF
    return bytes(blocks)
