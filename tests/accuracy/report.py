"""Writes docs/accuracy.md: what was measured, how far off we are, how far off others are, and where we are not good.

    python -m tests.accuracy.report            write it
    python -m tests.accuracy.report --check    exit code 1 when the committed document is not what would be written

Everything in it follows from the measurements and the code of the repository; nothing is typed in by hand but the
text around the figures.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.accuracy import committed, peer_formulas, peers, scoring  # noqa: E402
from tests.accuracy.scoring import Errors, Row, errors, number  # noqa: E402

DOCUMENT = ROOT / "docs" / "accuracy.md"

_PREFILL: dict[str, scoring.Filter] = {
    "prefill, dense, one device": lambda r: _is_prefill(r) and scoring.is_dense(r),
    "prefill, MoE, one device": lambda r: _is_prefill(r) and not scoring.is_dense(r),
}
_CLASSES: dict[str, scoring.Filter] = {
    **{f"decode, {name}": rule for name, rule in scoring.SPEED_SUBSETS.items()},
    **_PREFILL,
    "several users together": lambda r: r["metric"].startswith("aggregate") and scoring.is_clean(r),
}


def main() -> None:
    text = document()
    if "--check" in sys.argv[1:]:
        current = DOCUMENT.read_text("utf-8") if DOCUMENT.exists() else ""
        if current != text:
            sys.exit(f"{DOCUMENT.relative_to(ROOT)} is not current: make accuracy")
        return
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(text, "utf-8")
    print(f"{DOCUMENT.relative_to(ROOT)} written")


def document() -> str:
    speeds, memories = committed.rows()
    predicted = peers.our_speeds(speeds)
    buffers = peers.our_memory(memories)
    parts = [
        _HEAD,
        "## Speed\n",
        _measured_speeds(speeds),
        _speed_table(speeds, predicted),
        "### On sources and devices left out of the fit\n",
        committed.fit_report(),
        "## Speed: ours and other tools', on the same rows\n",
        _PEERS,
        _peer_table(peers.speed_lines(speeds, predicted)),
        "## Memory\n",
        _measured_memory(memories),
        _buffer_table(memories, buffers),
        "## Memory: ours and other tools', whole starts\n",
        _PEER_MEMORY,
        _peer_table(peers.memory_lines(memories, buffers)),
        "## Where we are not good\n",
        _weak_speeds(speeds, predicted),
        _weak_buffers(memories, buffers),
        _WEAK,
        _METHOD,
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


# What was measured


def _measured_speeds(rows: Sequence[Row]) -> str:
    decode = [row for row in rows if scoring.is_decode(row)]
    devices = {row["hw_id"] for row in rows if row["hw_id"]}
    years = sorted({row["date"][:4] for row in rows if row["date"][:2] == "20"})
    return (
        f"{len(rows):,} published measurements of {len(devices)} devices from {len(_origins(rows)):,} origins, "
        f"{years[0]} to {years[-1]}: {len(decode):,} of one stream's decode, "
        f"{sum(row['metric'] == 'prefill' for row in rows):,} of prefill, the rest of several users or of whole "
        "requests. They are not spread evenly: "
        + ", ".join(f"{name} {share:.0%}" for name, share in _largest(rows))
        + " of the rows. So the figures below are of cells: the median of device, engine, model and quantization "
        "counts once, however often it was measured.\n"
    )


def _largest(rows: Sequence[Row]) -> list[tuple[str, float]]:
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row["hw_id"] or "unnamed"] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(name, count / len(rows)) for name, count in ordered[:3]]


def _origins(rows: Iterable[Row]) -> set[str]:
    """Of a source its first part: a repository, a site, a thread."""
    return {re.split(r"[ (#?]", row["source"].removeprefix("https://"))[0].split("/blob/")[0] for row in rows}


def _measured_memory(rows: Sequence[Row]) -> str:
    logs = [row for row in rows if scoring.is_log(row)]
    engines: dict[str, set[str]] = defaultdict(set)
    for row in logs:
        engines["llama.cpp and Ollama" if scoring.is_mainline(row) else "the ik_llama.cpp fork"].add(row["log_id"])
    named = ", ".join(f"{len(ids)} of {name}" for name, ids in sorted(engines.items()))
    return f"{len({row['log_id'] for row in logs})} logs of starts ({named}), {len(logs)} devices in them.\n"


# Tables


def _speed_table(rows: Sequence[Row], predicted: Mapping[str, Row]) -> str:
    """In-sample errors by class."""
    values = {i: v for i, p in predicted.items() if (v := number(p, "expected")) is not None}
    lines = [
        "| class | rows | cells | devices | predicted | MdAPE | p90 | within 20 % | inside the 80 % interval |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rule in _CLASSES.items():
        chosen = [row for row in rows if number(row, "tok_per_s") and rule(row)]
        if not chosen:
            continue
        found = errors(scoring.cells(chosen, values))
        inside = _inside(chosen, {row["id"]: _interval(predicted, row) for row in chosen})
        told = sum(row["id"] in values for row in chosen) / len(chosen)
        cells = [
            name, f"{len(chosen):,}", str(found.n if found else 0), str(len({row["hw_id"] for row in chosen})),
            f"{told:.0%}", _share(found, "mdape"), _share(found, "p90"), _share(found, "within_20", 0), inside,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    above = sum(value > (number(predicted[i], "ceiling") or float("inf")) * (1 + 1e-9) for i, value in values.items())
    lines.append(f"\nPredictions above their own ceiling: {above} of {len(values):,}.")
    return "\n".join(lines) + "\n"


def _interval(predicted: Mapping[str, Row], row: Row) -> tuple[float, float] | None:
    prediction = predicted.get(row["id"], {})
    low, high = number(prediction, "low"), number(prediction, "high")
    return None if low is None or high is None else (low, high)


def _inside(rows: Sequence[Row], intervals: Mapping[str, tuple[float, float] | None]) -> str:
    judged = [
        bounds[0] <= float(row["tok_per_s"]) <= bounds[1]
        for row in rows
        if (bounds := intervals.get(row["id"])) is not None
    ]
    return f"{sum(judged) / len(judged):.0%}" if judged else "-"


def _share(found: Errors | None, name: str, digits: int = 1) -> str:
    return "-" if found is None else f"{getattr(found, name):.{digits}%}"


def _peer_table(lines: Sequence[peers.Line]) -> str:
    out = [
        "| subset | tool | n | median ratio | MdAPE | p90 | within 20 % | too low | inside its interval "
        "| our MdAPE on its rows |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    previous = ""
    for line in lines:
        found = line.errors
        tool = f"**{line.tool}**" if line.tool == peers.OURS else line.tool
        coverage = "-" if line.coverage is None else f"{line.coverage:.0%}"
        out.append(
            f"| {line.subset.strip() if line.subset != previous else ''} | {tool} | {found.n} "
            f"| {found.median_ratio:.2f} | {found.mdape:.1%} | {found.p90:.1%} | {found.within_20:.0%} "
            f"| {found.under:.0%} | {coverage} | {_share(line.ours, 'mdape') if line.ours else ''} |"
        )
        previous = line.subset
    return "\n".join(out) + "\n"


def _buffer_table(rows: Sequence[Row], predicted: Mapping[str, Row]) -> str:
    logs = [row for row in rows if scoring.is_log(row)]
    groups: dict[str, list[Row]] = {}
    for engine, rule in (
        ("llama.cpp, Ollama", scoring.is_mainline),
        ("ik_llama.cpp", lambda r: not scoring.is_mainline(r)),
    ):
        of_engine = [row for row in logs if rule(row)]
        groups[f"**{engine}**"] = of_engine
        for arch in sorted({row["arch"] for row in of_engine}):
            groups[f"{engine}: {arch or 'not named'}"] = [row for row in of_engine if row["arch"] == arch]
    out = [
        "| engine, architecture | logs | buffer | devices | predicted | exact (0.5 %) | MdAPE | p90 | too low |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, group in groups.items():
        for column in scoring.BUFFERS:
            for where, rule in (("", lambda r: not scoring.is_host(r)), (", host", scoring.is_host)):
                line = _buffer_line(name, column, where, [row for row in group if rule(row)], predicted)
                if line:
                    out.append(line)
    return "\n".join(out) + "\n"


def _buffer_line(name: str, column: str, where: str, rows: Sequence[Row], predicted: Mapping[str, Row]) -> str | None:
    measured = [row for row in rows if number(row, column)]
    if not measured:
        return None
    pairs = [
        (value, float(row[column]))
        for row in measured
        if (value := number(predicted.get(row["id"], {}), column)) is not None
    ]
    found = errors(pairs)
    exact = sum(abs(p - m) <= max(0.005 * m, 0.0051) for p, m in pairs)
    kind = column.removesuffix("_buffer_MiB").replace("kv", "KV").replace("rs", "state")
    return (
        f"| {name} | {len({row['log_id'] for row in measured})} | {kind}{where} | {len(measured)} "
        f"| {len(pairs) / len(measured):.0%} | {exact / len(pairs) if pairs else 0:.0%} "
        f"| {_share(found, 'mdape')} | {_share(found, 'p90')} | {_share(found, 'under', 0)} |"
    )


# Where we are not good


def _weak_speeds(rows: Sequence[Row], predicted: Mapping[str, Row]) -> str:
    """Groups of device and engine whose median is off by more than a quarter."""
    values = {i: v for i, p in predicted.items() if (v := number(p, "expected")) is not None}
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if number(row, "tok_per_s") and scoring.is_clean(row) and row["metric"] in ("decode", "prefill"):
            kind = f"{row['metric']}{', MoE' if row['is_moe'] == 'yes' else ''}"
            groups[row["hw_id"] or row["hardware_as_reported"], row["engine"], kind].append(row)
    weak = []
    for (device, engine, kind), group in groups.items():
        found = errors(scoring.cells(group, values))
        if found and found.n >= 2 and found.mdape > 0.25:
            told = f"{found.n} | {found.median_ratio:.2f} | {found.mdape:.0%} |"
            weak.append((found.mdape, f"| {device} | {engine or 'not named'} | {kind} | {told}"))
    if not weak:
        return "No group of device and engine with two cells or more is off by more than 25 % in the median.\n"
    out = [
        "Groups of device and engine (two cells or more) whose speeds are off by more than 25 % in the median:\n",
        "| device | engine | what | cells | median predicted / measured | MdAPE |",
        "|---|---|---|--:|--:|--:|",
        *(line for _, line in sorted(weak, key=lambda item: (-item[0], item[1]))[:25]),
    ]
    return "\n".join(out) + "\n"


def _weak_buffers(rows: Sequence[Row], predicted: Mapping[str, Row]) -> str:
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if not scoring.is_log(row):
            continue
        for column in scoring.BUFFERS:
            value, measured = number(predicted.get(row["id"], {}), column), number(row, column)
            if value is not None and measured:
                engine = "llama.cpp" if scoring.is_mainline(row) else "ik_llama.cpp"
                groups[engine, row["arch"] or "not named", column].append((value, measured))
    weak = []
    for (engine, arch, column), pairs in groups.items():
        found = errors(pairs)
        if found and found.mdape > 0.15:
            kind = column.removesuffix("_buffer_MiB")
            weak.append(f"| {engine} | {arch} | {kind} | {found.n} | {found.median_ratio:.2f} | {found.mdape:.0%} |")
    if not weak:
        return ""
    head = ["Buffers whose size is off by more than 15 % in the median:\n",
            "| engine | architecture | buffer | devices | median predicted / measured | MdAPE |",
            "|---|---|---|--:|--:|--:|"]  # fmt: skip
    return "\n".join([*head, *sorted(weak)]) + "\n"


_HEAD = """# Accuracy

*Generated by `make accuracy` from the measurements and the code in this repository; a test holds it current.*

How far the figures of `estimate`, `plan` and the rest are from what was measured. MdAPE is the median of the
absolute error as a share of what was measured, p90 its 90th percentile; "median ratio" is predicted / measured;
"too low" is the share of predictions below the measurement, which for memory is the dangerous direction.
"Inside the 80 % interval" should be eight of ten.
"""

_VERSIONS = ", ".join(f"{tool} {version}" for tool, version in peer_formulas.VERSIONS.items())
_PEERS = f"""The other tools' published formulas ({_VERSIONS}),
restated in `tests/accuracy/peer_formulas.py` and given the true bandwidth, parameters and architecture of each
row: a card or model that is missing from a tool's own tables, or wrong in them, is not counted against it. Cells
as above; n differs where a formula needs what is not known of a row. Our figures here are in-sample: the fit has
seen these rows. Compare what it does on those left out of it, above.
"""

_PEER_MEMORY = """Logs with every layer on accelerators, no tensor moved by hand and an unquantized cache; the sum
over devices of weights, cache and compute buffers. Each configuration counts once.
"""

_WEAK = """Besides:

- Partial offload rests on a handful of measurements, and few of them name the host's memory: there the interval
  is wide and the expected value a computation from two bandwidths.
- Most logs of memory are of the ik_llama.cpp fork or of builds of 2024; compute buffers of current builds are
  checked against the llama.cpp that runs in the tests, on small shapes.
- Speculative decoding is never predicted as a measured speed: what it brings depends on the text.
- Concurrent serving is measured on few rigs; one of them makes up most of it.
- A device whose class was never measured gets no speed; a card of a known class that was never measured gets
  the class's figures, with the error of devices left out of the fit.
"""

_METHOD = """## Method

Predictions come from `tests/accuracy/predict.py`, which sees a row without its measured columns, and never its
id or source. Speeds are judged on rows without a flag (suspect, contended, cached, mixed or mislabelled runs
are flagged in the data, each with its reason). The first table is in-sample, the second is of fits of the same
model without a source's rows of a device, and without the device.
Memory is not fitted: its formulas follow the engines' allocation, and the logs only check them.

To judge it on other measurements of the same form: `python -m tests.accuracy.acceptance FOLDER`; beside the
other tools' formulas: `python -m tests.accuracy.peers FILE.csv`; beside the installed llmfit: `pytest
tests/accuracy/test_llmfit.py -s`.
"""


def _is_prefill(row: Row) -> bool:
    return (
        row["metric"] == "prefill" and scoring.one_stream(row) and scoring.is_clean(row)
        and scoring.is_single_full(row) and scoring.vendor(row) != "cpu"
    )  # fmt: skip


if __name__ == "__main__":
    main()
