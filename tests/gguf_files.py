"""Writes small GGUF files of any shape, also such as nobody would write: for tests of what reads them."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

from provision.gguf.types import TENSOR_TYPES

F32, F16, Q8_0, Q4_K = 0, 1, 8, 12
_ALIGNMENT = 32

TensorSpec = tuple[str, tuple[int, ...], int]
"""Name, shape with the row length first, type."""


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(content: object) -> bytes:
    """A metadata value with its type: whole numbers as u32, in lists as i32, other lists by their first element."""
    kind, data = _typed(content)
    return struct.pack("<I", kind) + data


def _typed(content: object) -> tuple[int, bytes]:
    if isinstance(content, bool):
        return 7, struct.pack("<?", content)
    if isinstance(content, int):
        return (4, struct.pack("<I", content)) if content < 2**32 else (10, struct.pack("<Q", content))
    if isinstance(content, float):
        return 6, struct.pack("<f", content)
    if isinstance(content, str):
        return 8, string(content)
    assert isinstance(content, Sequence)
    if content and all(type(item) is int and item < 2**31 for item in content):
        return 9, struct.pack(f"<IQ{len(content)}i", 5, len(content), *content)
    items = [_typed(item) for item in content]
    kind = items[0][0] if items else 4
    return 9, struct.pack("<IQ", kind, len(items)) + b"".join(data for _, data in items)


def header(metadata: Mapping[str, object], tensors: Sequence[TensorSpec], *, version: int = 3) -> bytes:
    """Everything before the tensors' data, padded."""
    entries = b"".join(string(key) + value(content) for key, content in metadata.items())
    infos, offset = b"", 0
    for name, shape, kind in tensors:
        infos += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += _padded(size_of(shape, kind))
    content = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + entries + infos
    return content + bytes(-len(content) % _ALIGNMENT)


def whole(metadata: Mapping[str, object], tensors: Sequence[TensorSpec]) -> bytes:
    """A complete file, its weights zeros."""
    return header(metadata, tensors) + bytes(data_bytes(tensors))


def data_bytes(tensors: Sequence[TensorSpec]) -> int:
    return sum(_padded(size_of(shape, kind)) for _, shape, kind in tensors)


def size_of(shape: tuple[int, ...], kind: int) -> int:
    known = TENSOR_TYPES[kind]
    return math.prod(shape) // known.block_weights * known.block_bytes


def llama(layers: int = 2, *, architecture: str = "llama", **more: object) -> dict[str, object]:
    """Metadata of a small model with 4 heads of 64, 2 of them for keys and values; `more` with `__` for dots."""
    numbers: dict[str, object] = {
        "block_count": layers,
        "context_length": 4096,
        "embedding_length": 256,
        "feed_forward_length": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    } | {key.replace("__", "."): content for key, content in more.items()}
    named = {f"{architecture}.{key}": content for key, content in numbers.items() if content is not None}
    return {"general.architecture": architecture, "general.file_type": 7, **named}


def llama_tensors(layers: int = 2, *, vocabulary: int = 320, kind: int = Q8_0, tied: bool = True) -> list[TensorSpec]:
    """The tensors of `llama`."""
    tensors: list[TensorSpec] = [("token_embd.weight", (256, vocabulary), kind), ("output_norm.weight", (256,), F32)]
    if not tied:
        tensors.append(("output.weight", (256, vocabulary), kind))
    for layer in range(layers):
        tensors += [
            (f"blk.{layer}.attn_norm.weight", (256,), F32),
            (f"blk.{layer}.attn_q.weight", (256, 256), kind),
            (f"blk.{layer}.attn_k.weight", (256, 128), kind),
            (f"blk.{layer}.attn_v.weight", (256, 128), kind),
            (f"blk.{layer}.attn_output.weight", (256, 256), kind),
            (f"blk.{layer}.ffn_norm.weight", (256,), F32),
            (f"blk.{layer}.ffn_up.weight", (256, 512), kind),
            (f"blk.{layer}.ffn_gate.weight", (256, 512), kind),
            (f"blk.{layer}.ffn_down.weight", (512, 256), kind),
        ]
    return tensors


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
