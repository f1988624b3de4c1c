"""Reads the header of a GGUF file: enough to size the model in it, never its weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Every length is
checked against the file before memory is taken for it.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

from provision.domain.llm import (
    AttentionLayers,
    Layers,
    ModelBuild,
    ModelSpec,
    ModelTask,
    Precision,
    Quantization,
)
from provision.errors import InvalidFile

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_KEPT_ARRAY_LENGTH = 1024
"""Longer arrays (the vocabulary) are skipped; only their length is kept."""
_MAX_ENTRIES = 100_000
_HINT = "give a .gguf file as published; the download may be cut"

_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 30: "IQ4_XS", 32: "BF16",
}  # fmt: skip
"""llama.cpp's `llama_ftype` numbers."""

_TENSOR_BITS = {0: 32.0, 1: 16.0, 2: 4.5, 3: 5.0, 6: 5.5, 7: 6.0, 8: 8.5, 10: 2.625, 11: 3.4375, 12: 4.5, 13: 5.5,
                14: 6.5625, 20: 4.5, 23: 4.25, 30: 16.0}  # fmt: skip
"""Bits per weight of ggml tensor types, block scales included: type_size * 8 / block_size of ggml's type table."""

_EMBEDDING_ARCHITECTURES = {"bert", "nomic-bert", "jina-bert-v2"}


def read_model(path: Path) -> tuple[ModelSpec, ModelBuild, Quantization]:
    """The model in `path` as catalog records, with the file's exact size.

    Handles architectures whose layers all keep full attention; raises InvalidFile for others (their cache would be
    guessed) and for files that are not readable GGUF.
    """
    metadata, tensor_types, vocabulary = _read_header(path)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise InvalidFile(f"{path} names no architecture", hint=_HINT)

    def number(key: str, default: int | None = None) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidFile(
                f"{path}: cannot size architecture '{architecture}': its '{key}' is missing or differs by layer",
                hint="provision estimate MODEL with a model of `provision catalog list models`",
                code="unknown-architecture",
            )
        return value

    special = [k for k in metadata if k.endswith((".kv_lora_rank", ".ssm.state_size", ".attention.sliding_window"))]
    if special:
        raise InvalidFile(
            f"{path}: cannot size architecture '{architecture}' yet: it sets '{special[0]}'",
            hint="provision estimate MODEL with a model of `provision catalog list models`",
            code="unknown-architecture",
        )
    layers, hidden, heads = number("block_count"), number("embedding_length"), number("attention.head_count")
    key_dim = number("attention.key_length", hidden // heads)
    group: Layers = AttentionLayers(
        count=layers,
        kv_heads=number("attention.head_count_kv", heads),
        key_dim=key_dim,
        value_dim=number("attention.value_length", key_dim),
    )
    file_type = metadata.get("general.file_type")
    quantization = _FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int) else "unknown"
    embedding_bits = _TENSOR_BITS.get(tensor_types.get("token_embd.weight", -1), 16.0)
    name = str(metadata.get("general.name") or path.stem)
    size = path.stat().st_size
    source = f"header of {path.name}"
    model = ModelSpec(
        id=path.stem,
        name=name,
        family=architecture,
        task=ModelTask.EMBEDDING if architecture in _EMBEDDING_ARCHITECTURES else ModelTask.TEXT,
        parameters=None,
        hidden_size=hidden,
        feed_forward_size=number("feed_forward_length", 4 * hidden),
        attention_heads=heads,
        vocabulary_size=vocabulary or number("vocab_size"),
        context_tokens_max=number("context_length"),
        tied_embeddings="output.weight" not in tensor_types,
        layers=(group,),
        provenance={"*": source},
    )
    build = ModelBuild(
        model=model.id,
        quantization=quantization,
        weights_bytes=size,
        precision=Precision.EXACT,
        artifact=str(path),
        source=source,
    )
    spec = Quantization(
        id=quantization,
        container="gguf",
        bits_per_weight=embedding_bits,
        embedding_bits_per_weight=embedding_bits,
        output_bits_per_weight=_TENSOR_BITS.get(tensor_types.get("output.weight", -1), embedding_bits),
        rank=0,
        provenance={"*": source},
    )
    return model, build, spec


def _read_header(path: Path) -> tuple[dict[str, object], dict[str, int], int | None]:
    """Metadata, tensor name to ggml type, and the length of the vocabulary."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
            raise InvalidFile(f"{path} is not a regular file", hint=_HINT)
        with path.open("rb") as stream:
            return _Reader(stream, path).header()
    except OSError as error:
        raise InvalidFile(f"cannot read {path}: {error.strerror}", hint="check the path") from error


class _Reader:
    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._size = path.stat().st_size

    def header(self) -> tuple[dict[str, object], dict[str, int], int | None]:
        if self._bytes(4) != b"GGUF":
            raise self._broken("it does not start with GGUF")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise self._broken(f"GGUF version {version} is not known (big-endian files are not read)")
        tensors, entries = int(self._scalar("<Q")), int(self._scalar("<Q"))
        if tensors > _MAX_ENTRIES or entries > _MAX_ENTRIES:
            raise self._broken(f"it claims {tensors} tensors and {entries} metadata entries")
        metadata: dict[str, object] = {}
        vocabulary = None
        for _ in range(entries):
            key = self._string()
            value = self._value(int(self._scalar("<I")), depth=0)
            metadata[key] = value
            if key == "tokenizer.ggml.tokens":
                vocabulary = len(value) if isinstance(value, (list, range)) else None
        types, end = {}, 0
        for _ in range(tensors):
            name = self._string()
            dimensions = int(self._scalar("<I"))
            if dimensions > 8:
                raise self._broken(f"tensor {name!r} has {dimensions} dimensions")
            weights = math.prod(int(self._scalar("<Q")) for _ in range(dimensions))
            types[name] = int(self._scalar("<I"))
            bits = _TENSOR_BITS.get(types[name], 0.0)  # of a type not known here at least the start is looked for
            end = max(end, int(self._scalar("<Q")) + int(weights * bits) // 8)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._broken(f"its alignment is {alignment}")
        needed = -(-self._stream.tell() // alignment) * alignment + end
        if tensors and self._size < needed:
            raise self._broken(f"it ends inside the tensors: {self._size:,} bytes of {needed:,}")
        return metadata, types, vocabulary

    def _value(self, kind: int, depth: int) -> object:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY and depth < 4:
            element, length = int(self._scalar("<I")), int(self._scalar("<Q"))
            if length > self._size:
                raise self._broken(f"an array claims {length} entries")
            if length <= _KEPT_ARRAY_LENGTH:
                return [self._value(element, depth + 1) for _ in range(length)]
            for _ in range(length):
                self._value(element, depth + 1)
            return range(length)
        raise self._broken(f"value type {kind} is not known")

    def _string(self) -> str:
        return self._bytes(int(self._scalar("<Q"))).decode("utf-8", "replace")

    def _scalar(self, layout: str) -> int | float:
        value: int | float = struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]
        return value

    def _bytes(self, count: int) -> bytes:
        if count > self._size:
            raise self._broken(f"a length of {count} bytes exceeds the file")
        data = self._stream.read(count)
        if len(data) < count:
            raise self._broken("it ends inside the header")
        return data

    def _broken(self, reason: str) -> InvalidFile:
        return InvalidFile(f"{self._path} is not a readable GGUF file: {reason}", hint=_HINT)
