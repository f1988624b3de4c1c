"""Fits the speed model's factors to the published measurements and writes catalog/efficiency.toml and its report.

    python -m tests.accuracy.fit [MEASUREMENTS.csv[.gz]] [--check]

Each measurement is a sum of demands in seconds, each times a product of factors (`provision/sizing/efficiency.py`). The
logarithms of the factors are fitted by Gauss-Newton on the logarithm of the time, with a robust loss, every measured
cell weighing by how many there are of its device and source, and every factor drawn to 1 (its parent) by a prior: a
device seen once moves little, one seen by many sources moves to what they say. The intervals are the quantiles of the
errors on rows whose device, or whose source, was left out.
"""

from __future__ import annotations

import csv
import gzip
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from provision.catalog import Catalog, load_catalog
from provision.domain.llm import Efficiency, SpeedInterval
from provision.sizing.demand import Demand
from provision.sizing.efficiency import TERMS, Coefficients, EfficiencyModel, Kernel, interval_groups, key_of
from tests.accuracy.speed_rows import Case, Row, Unpredictable, case_of

ROOT = Path(__file__).parents[2]
MEASUREMENTS = Path(__file__).parent / "measurements" / "speed.csv.gz"
REPORT = ROOT / "catalog" / "efficiency-report.md"
SOURCE = "fit-speed-2026-11"

NOISE = 0.1
"""Spread of the logarithm of one cell's speed between careful runs of the same thing."""

PRIORS: tuple[tuple[str, str, float, float], ...] = (
    # term, scope, spread of the logarithm of its factors around 1 (or around the mean given)
    ("memory", "all", 1.0, 0.2),
    ("memory", "device_class", 0.2, 0.0),
    ("memory", "architecture", 0.06, 0.0),
    ("memory", "family", 0.2, 0.0),
    ("memory", "vendor+family", 0.12, 0.0),
    ("memory", "architecture+family", 0.05, 0.0),
    ("memory", "runtime", 0.15, 0.0),
    ("memory", "engine", 0.1, 0.0),
    ("memory", "vendor+backend", 0.15, 0.0),
    ("memory", "backend+family", 0.15, 0.0),
    ("memory", "runtime+era", 0.1, 0.0),
    ("memory", "moe", 0.3, 0.0),
    ("memory", "backend+moe+era", 0.2, 0.0),
    ("memory", "vendor+moe", 0.15, 0.0),
    ("memory", "bandwidth^vendor", 0.15, 0.0),
    ("memory", "bandwidth^vendor+family", 0.1, 0.0),
    ("cache", "all", 1.0, 0.5),
    ("cache", "vendor+backend", 0.5, 0.0),
    ("cache", "backend+attention", 0.4, 0.0),
    ("compute", "all", 1.0, 0.0),
    ("compute", "device_class", 0.5, 0.0),
    ("compute", "architecture", 0.3, 0.0),
    ("compute", "family", 0.5, 0.0),
    ("compute", "vendor+family", 0.4, 0.0),
    ("layer", "all", 1.0, 1.5),
    ("layer", "device_class", 0.5, 0.0),
    ("layer", "architecture", 0.15, 0.0),
    ("layer", "vendor+backend", 0.3, 0.0),
    ("layer", "runtime", 0.4, 0.0),
    ("layer", "engine", 0.2, 0.0),
    ("layer", "runtime+era", 0.2, 0.0),
    ("layer", "shape", 0.3, 0.0),
    ("experts", "all", 1.0, 1.0),
    ("experts", "device_class", 0.4, 0.0),
    ("experts", "backend", 0.4, 0.0),
    ("experts", "runtime", 0.3, 0.0),
    ("experts", "engine", 0.15, 0.0),
    ("step", "all", 1.0, -1.5),
    ("step", "device_class", 0.5, 0.0),
    ("step", "runtime", 0.5, 0.0),
    ("step", "engine", 0.3, 0.0),
    ("hop", "all", 1.0, 0.0),
    ("sync", "all", 1.0, 0.5),
    ("sync", "engine", 0.5, 0.0),
    ("prompt_sync", "all", 1.0, 0.0),
    ("prompt_sync", "engine", 0.5, 0.0),
    ("batch", "all", 1.0, 0.7),
    ("batch", "engine", 0.5, 0.0),
    ("sequence", "all", 1.0, 0.0),
    ("sequence", "engine", 0.7, 0.0),
    ("request", "all", 1.0, 0.0),
    ("whole", "device", 0.06, 0.0),
    ("prompt_compute", "all", 1.0, 0.7),
    ("prompt_compute", "device_class", 0.4, 0.0),
    ("prompt_compute", "architecture", 0.3, 0.0),
    ("prompt_compute", "family", 0.2, 0.0),
    ("prompt_compute", "architecture+family", 0.15, 0.0),
    ("prompt_compute", "runtime", 0.3, 0.0),
    ("prompt_compute", "engine", 0.15, 0.0),
    ("prompt_compute", "backend", 0.3, 0.0),
    ("prompt_compute", "backend+era", 0.2, 0.0),
    ("prompt_compute", "backend+moe+era", 0.2, 0.0),
    ("prompt_compute", "backend+family", 0.2, 0.0),
    ("prompt_compute", "moe", 0.4, 0.0),
    ("prompt_compute", "vendor+moe", 0.3, 0.0),
    ("prompt_compute", "attention", 0.2, 0.0),
    ("prompt_compute", "device", 0.15, 0.0),
    ("prompt_attention", "all", 1.0, 0.7),
    ("prompt_attention", "device_class", 0.4, 0.0),
    ("prompt_attention", "backend+attention", 0.4, 0.0),
    ("prompt_memory", "all", 1.0, 0.0),
    ("prompt_memory", "moe", 0.5, 0.0),
    ("prompt_layer", "all", 1.0, 1.0),
    ("prompt_layer", "device_class", 0.4, 0.0),
    ("prompt_layer", "runtime", 0.5, 0.0),
    ("prompt_layer", "engine", 0.2, 0.0),
    ("prompt_request", "all", 1.0, -2.0),
    ("prompt_request", "runtime", 1.0, 0.0),
    ("prompt_request", "engine", 0.5, 0.0),
)


@dataclass(frozen=True)
class Cell:
    """The middle one of the rows that measured the same thing on the same rig."""

    row: Row
    case: Case
    tokens: float
    demands: list[Demand]
    speed: float
    device: str
    rig: str
    """Who measured it: sources of one author count as one."""
    rows: tuple[Row, ...]


# Measurements


def read(path: Path) -> list[Row]:
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def rig_of(row: Row) -> str:
    """The author (and for collections of many people's runs the machine) behind a row."""
    source = row["source"].removeprefix("https://")
    machine = row["hardware_as_reported"] + row["cpu"]
    if "localmaxxing" in source:
        return f"localmaxxing/{row['hw_id'] or machine}"
    if "llmfit" in source:
        return f"llmfit/{machine}"
    if "localscore" in source.lower():
        return "localscore"
    if source.startswith("github:"):
        return "/".join(source.split()[0].split("/")[:2])
    return re.split(r"[ (#?]", source)[0].rsplit("/", 1)[0] if "geerling" in source else re.split(r"[ (#?]", source)[0]


_UNUSABLE = re.compile(
    "implausible|outlier|contended|suspect_too_fast|host_limited|multi_node|exceeds|mixed_gpus|uncertain|"
    "memory_pressure|apple_via|suspect_slow|pp_low"
)


def cells_of(rows: Iterable[Row], catalog: Catalog) -> list[Cell]:
    """What the fit uses: plausible rows, one cell for each thing measured on a rig."""
    neutral = _Neutral()
    groups: dict[tuple[object, ...], list[tuple[float, Row, Case]]] = defaultdict(list)
    for row in rows:
        if _UNUSABLE.search(row["flags"]) or not row["tok_per_s"]:
            continue
        if row["metric"] == "prefill" and row["engine"] == "ollama":
            continue  # its rate counts prompt tokens that it took from its cache
        try:
            case = case_of(row, catalog, neutral)
            tokens, _ = case.demands()
        except Unpredictable:
            continue
        speed = float(row["tok_per_s"])
        if speed > 1.02 * tokens / case.limit_s() or (case.partial and row["offload"] == "partial_presumed"):
            continue
        kernels = tuple(share.kernel for share in case.setup.shares)
        depth = round(np.log2(sum(case.depths) / len(case.depths) + 256) * 2)
        prompt = round(np.log2(case.prompt_tokens)) if row["metric"] != "decode" else 0
        named = ("model", "quant", "metric", "n_devices", "hardware_as_reported", "split_mode", "power_limit_W")
        key = (kernels, rig_of(row), case.users, depth, prompt, *(row[name] for name in named))
        groups[key].append((speed, row, case))
    cells = []
    for group in groups.values():
        group.sort(key=lambda item: (item[0], item[1]["id"]))
        speed, row, case = group[len(group) // 2]
        tokens, demands = case.demands()
        device = case.setup.shares[0].kernel.device or row["hw_id"] or row["hardware_as_reported"]
        cells.append(Cell(row, case, tokens, demands, speed, device, rig_of(row), tuple(r for _, r, _ in group)))
    return cells


class _Neutral(EfficiencyModel):
    """Knows every kernel, and all factors are 1."""

    def __init__(self) -> None:
        super().__init__(())

    def _coefficients(self, kernel: Kernel) -> Coefficients:
        return Coefficients(by_term=dict.fromkeys(TERMS, 1.0), measured=True)


# The fit


LESS_CAREFUL = 0.35


def is_casual(cell: Cell) -> bool:
    """A dense model whose size nobody published, or a row with a remark: chats and leaderboards rather than benches."""
    setup = cell.case.setup
    return setup.shares[0].kernel.moe == "dense" and (not setup.sized or bool(cell.row["flags"]))


class Problem:
    """Cells as arrays: each demand's seconds, and the parameters whose sum is the logarithm of its coefficient."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = cells
        self.names: dict[tuple[str, str, str], int] = {}
        spreads: list[float] = []
        means: list[float] = []
        scopes = [(term, scope, scope.split("^")[-1].split("+"), spread, mean) for term, scope, spread, mean in PRIORS]
        by_kernel: dict[tuple[str, Kernel], list[tuple[int, float]]] = {}

        def parameters(term: str, kernel: Kernel) -> list[tuple[int, float]]:
            found = by_kernel.get((term, kernel))
            if found is None:
                found = []
                for of, scope, fields, spread, mean in scopes:
                    if of not in (term, "whole"):
                        continue
                    if of == "whole" and term.startswith("prompt"):
                        continue
                    name = (of, scope, key_of(kernel, fields))
                    if name not in self.names:
                        self.names[name] = len(spreads)
                        spreads.append(spread)
                        means.append(mean)
                    factor = np.log(kernel.bandwidth_bytes_per_s / 300e9) if "^" in scope else 1.0
                    found.append((self.names[name], float(factor)))
                by_kernel[term, kernel] = found
            return found

        cell, ideal, indices, factors = [], [], [], []
        for number, item in enumerate(cells):
            for term, share, seconds in item.demands:
                kernel = item.case.setup.shares[share].kernel
                if seconds > 0:
                    cell.append(number)
                    ideal.append(seconds)
                    found = parameters(term, kernel)
                    indices.append([i for i, _ in found])
                    factors.append([f for _, f in found])
        width = max(map(len, indices))
        self.count = len(spreads)
        self.cell = np.array(cell)
        self.ideal = np.array(ideal)
        self.index = np.array([row + [self.count] * (width - len(row)) for row in indices])
        self.factor = np.array([row + [0.0] * (width - len(row)) for row in factors])
        self.spread = np.array(spreads)
        self.mean = np.array(means)
        self.log_time = np.log([c.tokens / c.speed for c in cells])
        groups: dict[tuple[str, str, str], int] = defaultdict(int)
        for c in cells:
            groups[c.device, c.rig, c.case.measure] += 1
        self.weight = np.array([groups[c.device, c.rig, c.case.measure] ** -0.5 for c in cells])
        self.weight *= [0.5 if c.case.partial else LESS_CAREFUL if is_casual(c) else 1.0 for c in cells]

    def terms(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of each demand, and of each cell."""
        full = np.append(theta, 0.0)
        seconds = self.ideal * np.exp((full[self.index] * self.factor).sum(1))
        return seconds, np.bincount(self.cell, seconds, len(self.cells))

    def solve(self, used: np.ndarray, start: np.ndarray | None = None, steps: int = 15) -> np.ndarray:
        """Parameters from the cells where `used`."""
        theta = self.mean.copy() if start is None else start.copy()
        wanted = 1 / self.spread**2
        selected = used[self.cell]
        flat_cell, flat_index = self.cell[selected], self.index[selected]
        width = self.count + 1
        for _ in range(steps):
            seconds, total = self.terms(theta)
            error = self.log_time - np.log(np.where(total > 0, total, 1.0))
            share = (seconds / total[self.cell])[selected]
            positions = (flat_cell[:, None] * width + flat_index).ravel()
            values = (share[:, None] * self.factor[selected]).ravel()
            jacobian = np.bincount(positions, values, len(self.cells) * width).reshape(-1, width)[used, : self.count]
            robust = 1 / (1 + (error[used] / (4 * NOISE)) ** 2)  # far outliers pull less and less
            weight = self.weight[used] * robust / NOISE**2
            hessian = (jacobian * weight[:, None]).T @ jacobian + np.diag(wanted)
            gradient = (jacobian * weight[:, None]).T @ error[used] - wanted * (theta - self.mean)
            step = np.clip(np.linalg.solve(hessian, gradient), -0.7, 0.7)
            theta = theta + step
            if np.abs(step).max() < 1e-3:
                break
        return theta

    def predicted(self, theta: np.ndarray) -> np.ndarray:
        return np.array([c.tokens for c in self.cells]) / self.terms(theta)[1]


def held_out(problem: Problem, theta: np.ndarray, group: Callable[[Cell], str], folds: int = 12) -> np.ndarray:
    """Predictions of each cell from a fit without its whole group."""
    names = sorted({group(c) for c in problem.cells})
    sizes = {name: sum(group(c) == name for c in problem.cells) for name in names}
    loads = [0] * folds
    fold_of = {}
    for name in sorted(names, key=lambda n: (-sizes[n], n)):
        fold_of[name] = loads.index(min(loads))
        loads[fold_of[name]] += sizes[name]
    fold = np.array([fold_of[group(c)] for c in problem.cells])
    result = np.zeros(len(problem.cells))
    for number in range(folds):
        left_out = fold == number
        if left_out.any():
            # Devices left out have no factor of their own: their parameters stay at the prior.
            start = theta.copy()
            fitted = problem.solve(~left_out, start, 6)
            result[left_out] = problem.predicted(fitted)[left_out]
    return result


# Intervals


@dataclass(frozen=True)
class Tail:
    """What is left out on either side. Authors agree with themselves more than with each other, so a tenth of the rows
    of some is more of the rows of others: how much less it has to be was found on authors and devices left out (see
    `coverage_of`)."""

    share: float
    by_pair: float
    """Less for a group of few pairs of device and author, as in conformal prediction: this over their number."""

    def of(self, pairs: int) -> float:
        return max(LEAST_TAIL, self.share - self.by_pair / pairs)


LEAST_TAIL = 0.02


def tail_of(measure: str, group: str) -> Tail:
    fresh = group.endswith("unmeasured")
    if measure == "prefill":
        return Tail(0.08, 0.5) if fresh else Tail(0.11, 0.1)
    if group.startswith("partial"):
        return Tail(0.09, 0.25)
    if measure == "decode" and group.startswith("dense/sized"):
        return Tail(0.1, 0.25 if fresh else 0.0)
    return Tail(0.09, 0.25 if fresh or group.startswith("moe") else 0.0)


MINIMUM_CELLS, MINIMUM_RIGS = 40, 3
"""Fewer than this and a group takes the next wider one's interval."""


def interval_records(
    problem: Problem,
    device_out: np.ndarray,
    source_out: np.ndarray,
    author_out: np.ndarray,
    chosen: Sequence[int] | None = None,
) -> list[SpeedInterval]:
    """Quantiles of measured over expected: of devices that are in the fit from rows whose source, and again whose
    author, was left out; of others from rows whose device was. Of n rows of one author on one device each weighs
    1 / sqrt(n), so that none decides alone."""
    ratios: dict[tuple[str, str], list[tuple[float, float, tuple[str, str]]]] = defaultdict(list)
    used = list(range(len(problem.cells)) if chosen is None else chosen)
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    for number in used:
        cell = problem.cells[number]
        counts[cell.case.measure, cell.device, cell.rig] += len(cell.rows)
    for number in used:
        cell = problem.cells[number]
        weight = counts[cell.case.measure, cell.device, cell.rig] ** -0.5
        setup = cell.case.setup
        limit = cell.tokens / cell.case.limit_s()
        known = ((True, source_out[number]), (True, author_out[number]))
        for measured, predicted in (*known, (False, device_out[number])):
            ratio = cell.speed / min(predicted, limit)
            for group in interval_groups(
                setup.shares[0].kernel, measured, devices=setup.devices, partial=setup.partial, sized=setup.sized
            ):
                for row in cell.rows:
                    item = (ratio * float(row["tok_per_s"]) / cell.speed, weight, (cell.device, cell.rig))
                    ratios[cell.case.measure, group].append(item)
    records = []
    for (measure, group), found in sorted(ratios.items()):
        pairs = {pair for _, _, pair in found}
        rigs = {rig for _, rig in pairs}
        if len(found) < MINIMUM_CELLS or len(rigs) < MINIMUM_RIGS:
            continue
        tail = tail_of(measure, group).of(len(pairs))
        records.append(
            SpeedInterval(
                measure=measure,  # type: ignore[arg-type]
                group=group,
                low_ratio=_rounded(min(1.0, weighted_quantile(found, tail))),
                high_ratio=_rounded(max(1.0, weighted_quantile(found, 1 - tail))),
                samples=len(found),
                sources=len(rigs),
                source=SOURCE,
            )
        )
    return records


def weighted_quantile(items: Iterable[tuple[float, float, object]], share: float) -> float:
    ordered = sorted((value, weight) for value, weight, _ in items)
    total = sum(weight for _, weight in ordered)
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        if reached >= share * total:
            return value
    return ordered[-1][0]


# Writing


def _rounded(value: float) -> float:
    """Three significant digits: the same text whatever the machine's linear algebra does in the last bits."""
    return float(f"{value:.3g}")


NEGLIGIBLE = 0.004
"""A factor nearer to 1 than this is left out."""


def efficiency_records(problem: Problem, theta: np.ndarray) -> list[Efficiency]:
    touched: dict[int, set[int]] = defaultdict(set)
    for cell, indices in zip(problem.cell, problem.index, strict=True):
        for index in indices:
            touched[int(index)].add(int(cell))
    tables: dict[tuple[str, str], dict[str, tuple[float, int]]] = defaultdict(dict)
    for (term, scope, key), index in problem.names.items():
        value = float(theta[index]) if "^" in scope else float(np.exp(theta[index]))
        if scope not in ("all", "device_class", "device") and abs(value - (0.0 if "^" in scope else 1.0)) < NEGLIGIBLE:
            continue
        if not key or not re.fullmatch(r"[\w.+ -]*\w[\w.+ -]*", key):
            continue
        tables[term, scope][key] = (_rounded(value), len(touched[index]))
    return [
        Efficiency(
            term=term,  # type: ignore[arg-type]
            scope=scope,
            factors={key: value for key, (value, _) in sorted(table.items())},
            samples={key: count for key, (_, count) in sorted(table.items())},
            source=SOURCE,
        )
        for (term, scope), table in sorted(tables.items())
    ]


HEAD = """\
#:schema ./schema/efficiency.json
# Written by `make fit` from tests/accuracy/measurements/speed.csv.gz; do not edit.
# How it is used: docs/how-speed-is-predicted.md; how well it does: efficiency-report.md.

"""


def toml_of(records: Sequence[Efficiency], intervals: Sequence[SpeedInterval]) -> str:
    blocks = []
    for record in records:
        lines = [
            "[[efficiency]]",
            f'term = "{record.term}"',
            f'scope = "{record.scope}"',
            f'source = "{record.source}"',
        ]
        for name, table in (("factors", record.factors), ("samples", record.samples)):
            lines.append(f"[efficiency.{name}]")
            lines += [f'"{key}" = {value}' for key, value in table.items()]
        blocks.append("\n".join(lines))
    for interval in intervals:
        blocks.append(
            f'[[interval]]\nmeasure = "{interval.measure}"\ngroup = "{interval.group}"\n'
            f"low_ratio = {interval.low_ratio}\nhigh_ratio = {interval.high_ratio}\n"
            f"samples = {interval.samples}\nsources = {interval.sources}\n"
            f'source = "{interval.source}"'
        )
    return HEAD + "\n\n".join(blocks) + "\n"


# Report


Filter = Callable[[Cell], bool]


def _kernel(cell: Cell) -> Kernel:
    return cell.case.setup.shares[0].kernel


def is_resident_decode(cell: Cell) -> bool:
    return cell.case.metric == "decode" and not cell.case.setup.partial and cell.case.setup.devices == 1


def is_clean_dense(cell: Cell) -> bool:
    """One stream, dense, one GPU, published size, nothing odd about the row: what the accuracy is promised for."""
    kernel = _kernel(cell)
    published = cell.case.setup.sized and not cell.row["flags"]
    return is_resident_decode(cell) and published and kernel.moe == "dense" and kernel.device_class != "cpu"


def is_modern(cell: Cell) -> bool:
    return _kernel(cell).device_class == "nvidia-gddr"


SUBSETS: tuple[tuple[str, Filter], ...] = (
    ("decode, dense, one GPU, published size", is_clean_dense),
    ("- NVIDIA GDDR, Ampere and later", lambda c: is_clean_dense(c) and is_modern(c)),
    ("- NVIDIA, others", lambda c: is_clean_dense(c) and _kernel(c).vendor == "nvidia" and not is_modern(c)),
    ("- AMD", lambda c: is_clean_dense(c) and _kernel(c).vendor == "amd"),
    ("- Apple", lambda c: is_clean_dense(c) and _kernel(c).vendor == "apple"),
    ("decode, dense, one GPU, all", lambda c: is_resident_decode(c) and _kernel(c).moe == "dense"),
    ("decode, mixture of experts, one GPU", lambda c: is_resident_decode(c) and _kernel(c).moe == "moe"),
    ("decode, several GPUs", lambda c: c.case.metric == "decode" and c.case.setup.devices > 1),
    ("decode, partly from host memory", lambda c: c.case.metric == "decode" and c.case.setup.partial),
    ("prefill", lambda c: c.case.metric == "prefill"),
    ("many users: decode", lambda c: c.case.metric == "aggregate_decode"),
    ("many users: output, prompts included", lambda c: c.case.metric in ("aggregate_output", "output_e2e")),
)


def errors_of(problem: Problem, predicted: np.ndarray, chosen: Filter) -> tuple[int, float, float]:
    """Cells, median and 90th percentile of the absolute error as a share of what was measured."""
    errors = []
    for cell, value in zip(problem.cells, predicted, strict=True):
        if chosen(cell):
            errors.append(abs(min(value, cell.tokens / cell.case.limit_s()) / cell.speed - 1))
    if not errors:
        return 0, float("nan"), float("nan")
    return len(errors), float(np.median(errors)), float(np.quantile(errors, 0.9))


def coverage_of(problem: Problem, predicted: np.ndarray, *, measured: bool, folds: int = 5) -> dict[str, float]:
    """Share of measured rows inside intervals that were taken from rows of other authors, for devices in the fit, or of
    other devices, for those that are not."""

    def owner(cell: Cell) -> str:
        return cell.rig if measured else cell.device

    rigs = sorted({owner(cell) for cell in problem.cells})
    inside: dict[str, list[bool]] = defaultdict(list)
    for fold in range(folds):
        own = {rig for number, rig in enumerate(rigs) if number % folds == fold}
        others = [number for number, cell in enumerate(problem.cells) if owner(cell) not in own]
        records = interval_records(problem, predicted, predicted, predicted, others)
        lookup = EfficiencyModel((), records)
        for cell, value in zip(problem.cells, predicted, strict=True):
            if owner(cell) not in own:
                continue
            setup = cell.case.setup
            groups = interval_groups(
                setup.shares[0].kernel, measured, devices=setup.devices, partial=setup.partial, sized=setup.sized
            )
            interval = lookup.interval(cell.case.measure, groups)
            expected = min(value, cell.tokens / cell.case.limit_s())
            for row in cell.rows:
                ratio = float(row["tok_per_s"]) / expected
                inside[cell.case.measure].append(interval.low_ratio <= ratio <= interval.high_ratio)
    return {measure: sum(found) / len(found) for measure, found in inside.items()}


def report_of(problem: Problem, theta: np.ndarray, device_out: np.ndarray, source_out: np.ndarray) -> str:
    rows = sum(len(cell.rows) for cell in problem.cells)
    rigs = {(cell.device, cell.rig) for cell in problem.cells}
    lines = [
        "# How well the speed model does",
        "",
        "Written by `make fit`; do not edit. How the model works: docs/how-speed-is-predicted.md.",
        "",
        f"Fitted on {rows} rows in {len(problem.cells)} cells (what one author measured of one thing on one device) on "
        f"{len({cell.device for cell in problem.cells})} devices, {len(rigs)} pairs of device and author, with "
        f"{problem.count} factors, each drawn towards 1. Errors are absolute, as a share of what was measured: median "
        "and 90th percentile over cells.",
        "",
        "| | cells | in the fit | source left out | device left out |",
        "|---|---|---|---|---|",
    ]
    fitted_values = problem.predicted(theta)
    for name, chosen in SUBSETS:
        count, *_ = errors_of(problem, fitted_values, chosen)
        figures = [errors_of(problem, values, chosen)[1:] for values in (fitted_values, source_out, device_out)]
        lines.append(f"| {name} | {count} | " + " | ".join(f"{m:.1%}, {p:.0%}" for m, p in figures) + " |")
    lines += [
        "",
        "Share of rows inside the 80 % interval, the interval taken from rows of other authors, or of other devices:",
        "",
        "| | source left out | device left out |",
        "|---|---|---|",
    ]
    by_source = coverage_of(problem, source_out, measured=True)
    by_device = coverage_of(problem, device_out, measured=False)
    for measure in sorted(by_source):
        lines.append(f"| {measure} | {by_source[measure]:.0%} | {by_device[measure]:.0%} |")
    return "\n".join(lines) + "\n"


def pair_of(cell: Cell) -> str:
    """One device in one source: what is left out to judge a device that is known from other sources."""
    source = cell.rig + cell.row["model"] if "localmaxxing" in cell.row["source"] else cell.row["source"]
    return f"{cell.device} {source}"


def fitted(rows: Iterable[Row], catalog: Catalog) -> tuple[Problem, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    problem = Problem(cells_of(rows, catalog))
    theta = problem.solve(np.ones(len(problem.cells), bool))
    device_out = held_out(problem, theta, lambda cell: cell.device)
    source_out = held_out(problem, theta, pair_of)
    author_out = held_out(problem, theta, lambda cell: f"{cell.device} {cell.rig}")
    return problem, theta, device_out, source_out, author_out


def main(arguments: Sequence[str]) -> int:
    path = next((Path(a) for a in arguments if not a.startswith("-")), MEASUREMENTS)
    problem, theta, device_out, source_out, author_out = fitted(read(path), load_catalog())
    text = toml_of(efficiency_records(problem, theta), interval_records(problem, device_out, source_out, author_out))
    target = ROOT / "catalog" / "efficiency.toml"
    if "--check" in arguments:
        return int(target.read_text() != text)
    target.write_text(text)
    REPORT.write_text(report_of(problem, theta, device_out, source_out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
