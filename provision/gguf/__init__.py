"""GGUF files: their headers, read from disk or from anything that gives ranges, as catalog records.

`read_model` is for a local file; `read_header` and `model_of` are the two halves for other sources.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from provision.domain.llm import ModelBuild, ModelSpec, Quantization
from provision.errors import InvalidFile
from provision.gguf.header import HINT, Header, Tensor, read_header
from provision.gguf.model import describe, label_in, model_of
from provision.ranges import LocalFile

__all__ = [
    "Header", "describe", "label_in", "model_of", "part_names", "read_file", "read_header", "read_model", "read_parts",
]  # fmt: skip

_PART = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE | re.DOTALL)
_MOST_PARTS = 512

_P = TypeVar("_P")


def read_model(path: Path) -> tuple[ModelSpec, ModelBuild, Quantization]:
    """The model in `path` as catalog records, with the exact size of the file, or of all its parts together.

    Raises InvalidFile for an architecture that is not known, whose cache would be guessed, and for files that are not
    whole, readable GGUF.
    """
    header = read_file(path)
    return model_of(header, path.stem, f"header of {path.name}")


def read_file(path: Path) -> Header:
    """The header of a local file; of a split one, of all parts, any of which may be named."""

    def read(part: Path) -> Header:
        with LocalFile(part, HINT) as source:
            return read_header(source)

    names = part_names(path.name)
    if len(names) == 1:
        header = read(path)
        _check_alone(header)
        return header
    for name in names:
        if not (path.parent / name).exists():
            raise InvalidFile(
                f"{path.parent / name} is missing, one of the {len(names)} parts of this model",
                hint=f"put all {len(names)} parts into {path.parent}",
            )
    return read_parts((path.parent / name for name in names), read, len(names))


def part_names(name: str) -> tuple[str, ...]:
    """All parts of the split file that `name` is one of, as `gguf-split` names them; else `name` alone."""
    found = _PART.match(name)
    if found is None:
        return (name,)
    count = int(found[3])
    if not 1 <= count <= _MOST_PARTS or not 1 <= int(found[2]) <= count:
        raise InvalidFile(f"{name} says that it is part {int(found[2])} of {count}", hint=HINT)
    return tuple(f"{found[1]}-{number:05}-of-{found[3]}{name[-5:]}" for number in range(1, count + 1))


def read_parts(parts: Iterable[_P], read: Callable[[_P], Header], count: int) -> Header:
    """One header of the metadata of the first part, the tensors of all, and the sum of their sizes."""
    metadata, tensors, size, label = {}, dict[str, Tensor](), 0, ""
    for number, part in enumerate(parts):
        header = read(part)
        if number == 0:
            metadata, label = header.metadata, header.label
        for key, wanted in (("split.count", count), ("split.no", number)):
            found = header.metadata.get(key)
            if found != wanted and (found is not None or count > 1):
                raise InvalidFile(
                    f"{header.label} is not part {number + 1} of {count}: its '{key}' is {found}", hint=HINT
                )
        twice = next((name for name in header.tensors if name in tensors), None)
        if twice is not None:
            raise InvalidFile(f"{header.label} has the tensor '{twice}', which an earlier part has too", hint=HINT)
        tensors |= header.tensors
        size += header.file_bytes
    expected = metadata.get("split.tensors.count")
    if isinstance(expected, int) and expected != len(tensors):
        raise InvalidFile(f"{label}: its parts hold {len(tensors)} tensors of {expected}", hint=HINT)
    return Header(label=label, metadata=metadata, tensors=tensors, file_bytes=size, parts=count)


def _check_alone(header: Header) -> None:
    count = header.metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        raise InvalidFile(
            f"{header.label} is one of {count} parts, under a name that does not say of which file",
            hint=f"name the parts model-00001-of-{count:05}.gguf and so on",
        )
