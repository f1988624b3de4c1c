"""Reads the header of a safetensors file: eight bytes of length, then JSON with every tensor's type, shape and place.

Format: https://github.com/huggingface/safetensors (README, "Format"). The length is checked before anything is read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from struct import Struct

from provision.ranges import HEADER_LIMIT_BYTES, RangeReader, RangeSource, one_line

HINT = "give a .safetensors file as published; the download may be cut"

_LENGTH = Struct("<Q")
_LONGEST_BYTES = 4 * 2**20
"""Of the JSON. Real shards have at most about 2 MB; the format itself allows 100."""
_MOST_BRACKETS = 300_000
"""Of lists and objects in it, which take more memory than text: three for every tensor."""
_PIECE_BYTES = 2**20

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """From the end of the header."""
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(source: RangeSource) -> dict[str, StoredTensor]:
    """All tensors of one file, by name. Raises InvalidFile, with one line, for what is not whole and sound."""
    reader = RangeReader(source, "safetensors", HINT, HEADER_LIMIT_BYTES)
    if source.size == 0:
        raise reader.problem("it is empty")
    length = int(reader.unpack(_LENGTH))
    if length > _LONGEST_BYTES:
        raise reader.problem(f"it claims a header of {length:,} bytes")
    pieces = [reader.take(min(_PIECE_BYTES, length - at)) for at in range(0, length, _PIECE_BYTES)]
    text = b"".join(pieces)
    if text.count(b"[") + text.count(b"{") > _MOST_BRACKETS:
        raise reader.problem("its header holds more than tensors")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise reader.problem("its header is not a JSON object")
    document.pop("__metadata__", None)
    tensors = {name: _tensor(reader, name, entry) for name, entry in document.items()}
    needed = 8 + length + _end(reader, tensors)
    if reader.size is not None and reader.size < needed:
        raise reader.problem(f"it ends inside the tensors: {reader.size:,} bytes of {needed:,}")
    return tensors


def _tensor(reader: RangeReader, name: str, entry: object) -> StoredTensor:
    if not isinstance(entry, dict):
        raise reader.problem(f"tensor '{_shown(name)}' is not described")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise reader.problem(f"tensor '{_shown(name)}' is of type {str(dtype)[:20]!r}, which is not known")
    shape, place = _whole_numbers(entry.get("shape")), _whole_numbers(entry.get("data_offsets"))
    if shape is None or place is None or len(place) != 2 or place[1] < place[0]:
        raise reader.problem(f"tensor '{_shown(name)}' has no shape or no place")
    size = place[1] - place[0]
    if size * 8 != math.prod(shape) * BITS[dtype]:
        raise reader.problem(f"tensor '{_shown(name)}' takes {size:,} bytes, which its shape does not")
    return StoredTensor(name, dtype, shape, place[0], size)


def _end(reader: RangeReader, tensors: dict[str, StoredTensor]) -> int:
    """Where the last tensor ends, after a look whether any two overlap."""
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.size_bytes)):
        if tensor.start < end:
            raise reader.problem(f"the tensors '{_shown(before)}' and '{_shown(tensor.name)}' overlap")
        end, before = tensor.start + tensor.size_bytes, tensor.name
    return end


def _shown(name: str) -> str:
    return one_line(name[:80])


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) > 8:
        return None
    return tuple(value) if all(type(n) is int and 0 <= n < 2**62 for n in value) else None
