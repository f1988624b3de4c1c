"""Reads the header of a GGUF file: metadata and tensor list, never the weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). What the file
claims is checked before memory is taken or time spent for it, and what ggml itself would refuse is refused here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from struct import Struct

from provision.gguf.types import TENSOR_TYPES
from provision.ranges import RangeReader, RangeSource, one_line

HINT = "give a .gguf file as published; the download may be cut"

_SCALARS = {
    kind: Struct(layout)
    for kind, layout in {
        0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
    }.items()
}  # fmt: skip
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_STRING, _ARRAY = 8, 9

_MOST_ENTRIES = 4096
"""Of metadata; real files have fewer than a hundred."""
_MOST_TENSORS = 65_536
"""Real files have at most a few thousand, also those with a tensor per expert."""
_LONGEST_KEY_BYTES = 512
_LONGEST_NAME_BYTES = 63
"""ggml's own limit for the name of a tensor."""
_LONGEST_KEPT_TEXT_BYTES = 1024
"""Longer texts (chat templates) are passed over: sizing needs none of them."""
_LONGEST_KEPT_ARRAY = 1024
"""Longer arrays (the vocabulary) are passed over; only their length is kept."""
_MOST_DIMENSIONS = 4
_MOST_ELEMENTS = 2**50

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Skipped:
    """An array that was passed over."""

    length: int


Value = Scalar | tuple[int | float | bool, ...] | Skipped


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    """ggml's order: the row length first."""
    kind: int
    offset: int
    """From the start of the file's tensor data."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Blocks of the type x bytes of one, without padding."""
        kind = TENSOR_TYPES[self.kind]
        return self.elements // kind.block_weights * kind.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One model: of a split file, the metadata of the first part and the tensors of all."""

    label: str
    metadata: dict[str, Value]
    tensors: dict[str, Tensor] = field(repr=False)
    file_bytes: int
    """All parts, whole."""
    parts: int = 1

    @property
    def architecture(self) -> str | None:
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) and value else None


def read_header(source: RangeSource) -> Header:
    """Metadata and tensors of one file. Raises InvalidFile, with one line, for anything that is not whole and sound.

    Reads the header alone, in blocks of at most 4 MiB; of a header longer than 64 MiB it says so. A file whose tensors
    would reach beyond its end is refused as cut.
    """
    reader = RangeReader(source, "GGUF", HINT)
    if source.size == 0:
        raise reader.problem("it is empty")
    start = reader.take(4)
    if start != b"GGUF":
        raise reader.problem("it does not start with GGUF")
    version = int(reader.unpack(_U32))
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise reader.problem(
            "it is big-endian, for machines that are not sized here"
            if swapped in (2, 3)
            else f"GGUF version {version} is not known"
        )
    tensor_count, entries = int(reader.unpack(_U64)), int(reader.unpack(_U64))
    if tensor_count > _MOST_TENSORS or entries > _MOST_ENTRIES:
        raise reader.problem(f"it claims {tensor_count:,} tensors and {entries:,} metadata entries")
    metadata: dict[str, Value] = {}
    for _ in range(entries):
        key = _text(reader, _LONGEST_KEY_BYTES, "metadata key")
        if key in metadata:
            raise reader.problem(f"its metadata has '{key}' twice")
        metadata[key] = _value(reader)
    tensors: dict[str, Tensor] = {}
    for _ in range(tensor_count):
        tensor = _tensor(reader)
        if tensor.name in tensors:
            raise reader.problem(f"it has the tensor '{tensor.name}' twice")
        tensors[tensor.name] = tensor
    size = _check_extent(reader, metadata, tensors)
    return Header(label=source.label, metadata=metadata, tensors=tensors, file_bytes=size)


def _check_extent(reader: RangeReader, metadata: dict[str, Value], tensors: dict[str, Tensor]) -> int:
    """Bytes of the file, after a look whether its tensors lie in it and apart from each other."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise reader.problem(f"its alignment is {alignment}")
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset % alignment:
            raise reader.problem(f"tensor '{tensor.name}' is not aligned to {alignment} bytes")
        if tensor.offset < end:
            raise reader.problem(f"the tensors '{before}' and '{tensor.name}' overlap")
        end, before = tensor.offset + tensor.size_bytes, tensor.name
    needed = -(-reader.position // alignment) * alignment + end
    if reader.size is None:
        return needed
    if tensors and reader.size < needed:
        raise reader.problem(f"it ends inside the tensors: {reader.size:,} bytes of {needed:,}")
    return reader.size


def _tensor(reader: RangeReader) -> Tensor:
    name = _text(reader, _LONGEST_NAME_BYTES, "tensor name")
    dimensions = int(reader.unpack(_U32))
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise reader.problem(f"tensor '{name}' has {dimensions} dimensions")
    shape = tuple(int(reader.unpack(_U64)) for _ in range(dimensions))
    elements = math.prod(shape)
    if not 1 <= elements <= _MOST_ELEMENTS:
        raise reader.problem(f"tensor '{name}' has the shape {' x '.join(map(str, shape))}")
    kind, offset = int(reader.unpack(_U32)), int(reader.unpack(_U64))
    known = TENSOR_TYPES.get(kind)
    if known is None:
        raise reader.problem(f"tensor '{name}' is of type {kind}, which llama.cpp does not have")
    if shape[0] % known.block_weights:
        raise reader.problem(f"tensor '{name}' has rows of {shape[0]}, not whole blocks of {known.name}")
    return Tensor(name, shape, kind, offset)


def _value(reader: RangeReader) -> Value:
    kind = int(reader.unpack(_U32))
    if kind in _SCALARS:
        return reader.unpack(_SCALARS[kind])
    if kind == _STRING:
        length = int(reader.unpack(_U64))
        if length > _LONGEST_KEPT_TEXT_BYTES:
            reader.skip(length)
            return Skipped(length)
        return _decoded(reader.take(length))
    if kind != _ARRAY:
        raise reader.problem(f"value type {kind} is not known")
    element, length = int(reader.unpack(_U32)), int(reader.unpack(_U64))
    if element == _STRING:
        reader.skip_strings(length)
        return Skipped(length)
    if element not in _SCALARS:
        raise reader.problem("it has an array of arrays" if element == _ARRAY else f"value type {element} is not known")
    layout = _SCALARS[element]
    if length > _LONGEST_KEPT_ARRAY:
        reader.skip(length * layout.size)
        return Skipped(length)
    return tuple(value for (value,) in layout.iter_unpack(reader.take(length * layout.size)))


def _text(reader: RangeReader, longest: int, what: str) -> str:
    length = int(reader.unpack(_U64))
    if length > longest:
        raise reader.problem(f"a {what} of {length:,} bytes")
    return _decoded(reader.take(length))


def _decoded(data: bytes) -> str:
    return one_line(data.decode("utf-8", "replace"))
