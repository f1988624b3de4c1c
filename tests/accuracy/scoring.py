"""Rows of measurements, the subsets that accuracy is told by, and the errors of predictions on them.

A row is a mapping of text, as `csv.DictReader` reads it: the columns of a file of speeds (`tok_per_s` is what was
measured) or of memory (one row a device of one start of an engine, `*_buffer_MiB` measured). An empty cell is unknown.
"""

from __future__ import annotations

import csv
import gzip
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Row = Mapping[str, str]
Filter = Callable[[Row], bool]

SPEED_MEASURED = ("tok_per_s", "stddev", "memory_reported_MiB")
BUFFERS = ("model_buffer_MiB", "kv_buffer_MiB", "rs_buffer_MiB", "compute_buffer_MiB", "output_buffer_MiB")
MEMORY_MEASURED = (*BUFFERS, "kv_total_MiB", "peak_MiB")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Of a .csv or .csv.gz file."""
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as stream:
        return [{key: value or "" for key, value in row.items()} for row in csv.DictReader(stream)]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def without(rows: Iterable[Row], columns: Iterable[str]) -> list[dict[str, str]]:
    """The same rows with these columns emptied."""
    emptied = dict.fromkeys(columns, "")
    return [{**row, **{key: value for key, value in emptied.items() if key in row}} for row in rows]


def number(row: Row, column: str) -> float | None:
    """The cell as a number; None where it is empty or text."""
    try:
        return float(row.get(column) or "nan") if row.get(column) else None
    except ValueError:
        return None


# Errors


@dataclass(frozen=True, slots=True)
class Errors:
    """Of n predictions, as shares of what was measured."""

    n: int
    median_ratio: float
    """Predicted / measured: above 1 is too high."""
    mdape: float
    """Median absolute percentage error, as a share."""
    p90: float
    within_20: float
    under: float
    """Share of predictions below what was measured: for memory the dangerous direction."""
    worst: float


def errors(pairs: Sequence[tuple[float, float]]) -> Errors | None:
    """Of pairs (predicted, measured); None of none. Pairs measured as zero are left out."""
    ratios = sorted(predicted / measured for predicted, measured in pairs if measured)
    if not ratios:
        return None
    off = sorted(abs(ratio - 1) for ratio in ratios)
    return Errors(
        n=len(ratios),
        median_ratio=statistics.median(ratios),
        mdape=statistics.median(off),
        p90=quantile(off, 0.9),
        within_20=sum(e <= 0.2 for e in off) / len(off),
        under=sum(r < 1 for r in ratios) / len(ratios),
        worst=off[-1],
    )


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between the neighbours, as in most statistics packages."""
    position = (len(ordered) - 1) * q
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def cells(rows: Iterable[Row], values: Mapping[str, float]) -> list[tuple[float, float]]:
    """(predicted, measured), the median of each (device, engine, model, quantization): a rig that was measured a
    hundred times counts once for each model."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["id"] in values:
            device = row["hw_id"] or row["hardware_as_reported"]
            groups[device, row["engine"], row["model"], row["quant"]].append(row)
    return [
        (
            statistics.median(values[row["id"]] for row in group),
            statistics.median(float(row["tok_per_s"]) for row in group),
        )
        for group in groups.values()
    ]


# Devices

_MODERN_GDDR = re.compile(
    r"rtx-(3[05]\d\d|40\d\d|50\d\d)(?!-ada)|rtx-a\d+|rtx-\d{4}(-sff)?-ada|rtx-pro-\d+-blackwell|(a40|a10|a2|a16|l4|l40|l40s|l20)$"
)


def vendor(row: Row) -> str:
    """nvidia, amd, apple, intel, cpu or unknown, from the id of the hardware or its name."""
    name = (row["hw_id"] or row.get("hardware_as_reported") or "").lower()
    for maker, words in {
        "cpu": r"^cpu-",
        "apple": r"^apple|\bm[1-5]\b",
        "amd": r"^rx-|radeon|^mi\d|^w7\d|^v620|^r9700|strix|ryzen ai|gfx1",
        "intel": r"^arc|intel",
        "nvidia": r"rtx|gtx|tesla|quadro|titan|dgx|gb10|jetson|geforce|nvidia|^[abhlv]\d+|l40",
    }.items():
        if re.search(words, name):
            return maker
    return "unknown"


def is_modern_gddr(row: Row) -> bool:
    """NVIDIA cards of the 30, 40 and 50 series and their workstation and server kin: Ampere or newer, with GDDR."""
    return bool(_MODERN_GDDR.match(row["hw_id"]))


# Subsets of speeds


def one_stream(row: Row) -> bool:
    return row["concurrency"] in ("", "1") and row["spec_decode"] != "yes"


def is_dense(row: Row) -> bool:
    return row["is_moe"] != "yes"


def is_decode(row: Row) -> bool:
    return row["metric"] == "decode" and one_stream(row)


def is_clean(row: Row) -> bool:
    return row["flags"] == ""


def is_single_full(row: Row) -> bool:
    return row["n_devices"] in ("", "1") and row["offload"] == "full"


def is_single_not_partial(row: Row) -> bool:
    """As `is_single_full`, and where nobody said how much was offloaded."""
    offload = row["offload"] in ("full", "full_presumed", "")
    return row["n_devices"] in ("", "1") and offload and vendor(row) != "cpu"


def dense_decode(row: Row) -> bool:
    """The population of the first promise: one stream, dense, fully on one GPU, size known, nothing suspect."""
    return (
        is_decode(row) and is_dense(row) and is_clean(row) and is_single_full(row) and bool(row["weight_bytes"])
        and vendor(row) != "cpu"
    )  # fmt: skip


def is_partial(row: Row) -> bool:
    return row["offload"] in ("partial", "partial_presumed")


SPEED_SUBSETS: dict[str, Filter] = {
    "all GPUs": dense_decode,
    "modern NVIDIA GDDR": lambda r: dense_decode(r) and is_modern_gddr(r),
    "NVIDIA": lambda r: dense_decode(r) and vendor(r) == "nvidia",
    "AMD": lambda r: dense_decode(r) and vendor(r) == "amd",
    "Apple": lambda r: dense_decode(r) and vendor(r) == "apple",
    "F16": lambda r: dense_decode(r) and r["quant"].upper() in ("F16", "BF16", "FP16"),
    "Q4_K_M": lambda r: dense_decode(r) and r["quant"] == "Q4_K_M",
    "MoE": lambda r: (
        is_decode(r) and r["is_moe"] == "yes" and is_clean(r) and is_single_full(r) and bool(r["weight_bytes"])
    ),
    "partial offload": lambda r: is_decode(r) and r["offload"] == "partial" and is_clean(r),
}
"""Decode, one stream; the names under which figures are told."""


# Subsets of memory


def is_log(row: Row) -> bool:
    return row["measure"] == "llama.cpp log buffers"


def is_mainline(row: Row) -> bool:
    """llama.cpp itself, alone or inside another program; not the ik_llama.cpp fork, whose compute buffers differ."""
    return is_log(row) and ("ollama" in row["engine"] or row["engine"].startswith("llama.cpp"))


def is_host(row: Row) -> bool:
    return row["device"].startswith(("CPU", "AMX")) or "Host" in row["device"]


def is_cuda(row: Row) -> bool:
    return bool(re.fullmatch(r"CUDA\d+", row["device"]))
