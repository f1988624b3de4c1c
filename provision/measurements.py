"""The measurements file: one line of JSON for each valid single-stream run on a known machine.

It is what sizing reads of all results, which hold every request and would take seconds to read. Read without pydantic:
`plan` looks at it at every start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from provision.domain.finding import Finding
from provision.domain.measurement import MEASUREMENT_VERSION, HardwareIdentity, StoredRun
from provision.records import to_plain
from provision.resources import user_data_dir

_LARGEST_BYTES = 64 * 2**20
"""More than 100,000 runs."""


def path() -> Path:
    """In the user's data folder; need not exist."""
    return user_data_dir() / "measurements.jsonl"


def append(runs: Iterable[StoredRun]) -> None:
    """Add a line for each run. Raises OSError."""
    text = "".join(json.dumps(run, default=to_plain, ensure_ascii=False, allow_nan=False) + "\n" for run in runs)
    if not text:
        return
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, 2)
            if stream.read(1) != b"\n":  # a write that was cut off
                text = "\n" + text
        stream.write(text.encode("utf-8", errors="backslashreplace"))


def read() -> tuple[list[StoredRun], tuple[Finding, ...]]:
    """All runs in order, and one finding where lines cannot be used. A missing file is no run and no finding."""
    file = path()
    try:
        if not file.is_file():
            return [], ()
        if file.stat().st_size > _LARGEST_BYTES:
            return [], (_unreadable(f"{file} is larger than {_LARGEST_BYTES // 2**20} MiB and is not used", file),)
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        return [], (_unreadable(f"cannot read {file}: {error.strerror}", file),)
    runs: list[StoredRun] = []
    bad: list[int] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            runs.append(_run(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError):
            bad.append(number)
    if not bad:
        return runs, ()
    what = f"line {bad[0]}" if len(bad) == 1 else f"{len(bad)} lines, the first is line {bad[0]}"
    return runs, (_unreadable(f"{file}: {what}: no measurement that this provision can read; left out", file),)


def _unreadable(message: str, file: Path) -> Finding:
    return Finding(code="measurements-unreadable", message=message, hint=f"remove what is broken from {file}")


def _run(document: dict[str, Any]) -> StoredRun:
    """Raises ValueError, TypeError or KeyError for what is no run of a version known here."""
    if document["measurement_version"] != MEASUREMENT_VERSION:
        raise ValueError("another version")
    machine = document["machine"]
    return StoredRun(
        measured_at=_text(document["measured_at"]),
        machine=HardwareIdentity(
            accelerators=tuple(map(_text, machine["accelerators"])),
            cpu=_optional(_text, machine["cpu"]),
            logical_cores=_optional(_whole, machine.get("logical_cores")),
            memory_bytes=_optional(_whole, machine["memory_bytes"]),
        ),
        model=_text(document["model"]),
        quantization=_optional(_text, document["quantization"]),
        engine=_text(document["engine"]),
        engine_version=_optional(_text, document.get("engine_version")),
        context_tokens=_optional(_whole, document.get("context_tokens")),
        prompt_tokens=_whole(document["prompt_tokens"]),
        output_tokens=_whole(document["output_tokens"]),
        decode_tokens_per_s=_rate(document["decode_tokens_per_s"]),
        prefill_tokens_per_s=_optional(_rate, document.get("prefill_tokens_per_s")),
        offload_ratio=_optional(_share, document.get("offload_ratio")),
        result=_optional(_text, document.get("result")),
    )


def _optional(read: Any, value: Any) -> Any:
    return None if value is None else read(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**62:
        raise ValueError("not a number from 1")
    return value


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError("not a rate")
    return float(value)


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError("not a share")
    return float(value)
