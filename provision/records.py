"""Files that carry results: plans, machines, benchmark runs. JSON, versioned, read strictly, written atomically."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import TypeVar

from provision.errors import InvalidFile, UsageError

T = TypeVar("T")


_FIELDS: dict[type, tuple[str, ...] | None] = {}
"""Names of a record's fields by its type, looked up once: `dataclasses.fields` takes longer than reading them."""


def to_plain(value: object) -> object:
    """`default=` for `json.dumps`: a record becomes an object of its fields, a date its ISO form, a path its text."""
    kind = type(value)
    if kind not in _FIELDS:
        _FIELDS[kind] = tuple(field.name for field in fields(value)) if is_dataclass(value) else None
    names = _FIELDS[kind]
    if names is not None:
        return {name: getattr(value, name) for name in names}
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_json(path: Path, value: object) -> None:
    """Write `value` atomically: readers see the old file or the new one, never a part.

    A link is followed, not replaced. A device or a pipe is written to as it is. Raises InvalidFile.
    """
    if str(path) == "-":
        raise UsageError("-o writes to a file, not to '-'", hint="for standard output: --json")
    text = json.dumps(value, default=to_plain, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    try:
        if path.parts[:2] in (("/", "dev"), ("/", "proc")) or (path.exists() and not path.is_file()):
            _write(path, text)
            return
        target = os.path.realpath(path)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)}.")
        try:
            _write(handle, text)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InvalidFile(f"cannot write {path}: {error.strerror}", hint="give another path with -o") from error


def _write(file: Path | int, text: str) -> None:
    # What UTF-8 cannot hold (a file name that is not UTF-8) is written as \udcXX, which is its JSON form.
    with open(file, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)


def read_json(path: Path, kind: type[T], *, what: str, version_key: str, version: int, hint: str) -> T:
    """A record of type `kind` from `path`, strictly validated.

    A file of a newer schema version is refused by its version before anything else is looked at. Raises InvalidFile
    with `hint`, which says how to make a good one.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidFile(f"cannot read {what} {path}: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise InvalidFile(f"{path} is not JSON: {error}", hint=hint) from error
    found = document.get(version_key) if isinstance(document, dict) else None
    if not isinstance(found, int):
        raise InvalidFile(f"{path} is not a {what}: it has no '{version_key}'", hint=hint)
    if found > version:
        raise InvalidFile(
            f"{path} is a {what} of version {found}; this provision reads up to version {version}",
            hint="pip install --upgrade provision-llm",
            code="newer-version",
        )
    return validate(document, kind, source=str(path), hint=hint)


def validate(document: object, kind: type[T], *, source: str, hint: str) -> T:
    """`document` (plain JSON values) as a record; the first fault is told with its place. Raises InvalidFile."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(document, default=to_plain))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidFile(f"{source}: {place}: {first['msg']}", hint=hint) from error
