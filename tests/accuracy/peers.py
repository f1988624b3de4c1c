"""Our errors and those of the peers' published formulas, side by side on the same rows.

    python -m tests.accuracy.peers [FILE.csv ...]

Files hold measurements of speed or of memory in the format of `tests/accuracy/scoring.py`; without any, the committed
ones. A formula is judged on the rows that it answers; `n` says how many those are. Speeds are medians of device,
engine, model and quantization, so that a rig that was measured a hundred times counts once for each model.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from provision.catalog import Catalog, load_catalog  # noqa: E402
from provision.domain.hardware import AcceleratorSpec, MemoryKind  # noqa: E402
from provision.domain.llm import AttentionLayers, LatentAttentionLayers, ModelSpec  # noqa: E402
from provision.errors import UsageError  # noqa: E402
from provision.units import GIB, MIB  # noqa: E402
from tests.accuracy import peer_formulas, scoring  # noqa: E402
from tests.accuracy.peer_formulas import Facts  # noqa: E402
from tests.accuracy.scoring import Errors, Row, number  # noqa: E402

OURS = "provision"
HOST_BANDWIDTH_BYTES_PER_S = 70e9
"""Of a host whose memory no row describes: the figure that llmfit is given in the published comparison."""


@dataclass(frozen=True, slots=True)
class Line:
    """One tool on one subset."""

    subset: str
    tool: str
    errors: Errors
    asked: int
    """Rows or configurations of the subset."""
    coverage: float | None = None
    """Share inside the interval, where the tool gives one."""
    ours: Errors | None = None
    """Our errors on just the rows that this tool answers, of a tool that is not ours."""


def main() -> None:
    from tests.accuracy import committed

    paths = [Path(name) for name in sys.argv[1:]]
    speeds, memories = committed.rows() if not paths else ([], [])
    for path in paths:
        rows = scoring.read_rows(path)
        (speeds if rows and "tok_per_s" in rows[0] else memories).extend(rows)
    if speeds:
        print(render(speed_lines(speeds), "Decode, one stream: predicted against measured"))
    if memories:
        print(
            render(memory_lines(memories), "Memory on the accelerators, everything offloaded: predicted against logs")
        )


def render(lines: Sequence[Line], title: str) -> str:
    heads = ("n", "median ratio", "MdAPE", "p90", "within 20 %", "too low", "inside interval", "our MdAPE there")
    out = [title, f"{'subset':<22} {'tool':<12} " + " ".join(f"{head:>{max(5, len(head)) + 1}}" for head in heads)]
    previous = ""
    for line in lines:
        found = line.errors
        cells = (
            str(found.n), f"{found.median_ratio:.2f}", f"{found.mdape:.1%}", f"{found.p90:.1%}",
            f"{found.within_20:.0%}", f"{found.under:.0%}", "-" if line.coverage is None else f"{line.coverage:.0%}",
            "" if line.ours is None else f"{line.ours.mdape:.1%}",
        )  # fmt: skip
        shown = line.subset if line.subset != previous else ""
        figures = " ".join(f"{cell:>{max(5, len(head)) + 1}}" for cell, head in zip(cells, heads, strict=True))
        out.append(f"{shown:<22} {line.tool:<12} {figures}")
        previous = line.subset
    return "\n".join(out) + "\n"


# Speed


def speed_lines(rows: Sequence[Row], ours: Mapping[str, Row] | None = None) -> list[Line]:
    """`ours`: predictions by row id; by default made now, without the measured columns."""
    chosen = [row for row in rows if number(row, "tok_per_s") and scoring.is_decode(row)]
    ours = our_speeds(chosen) if ours is None else ours
    facts = {row["id"]: speed_facts(row) for row in chosen}
    lines = []
    for subset, rule in scoring.SPEED_SUBSETS.items():
        asked = [row for row in chosen if rule(row)]
        if not asked:
            continue
        lines += _speed_subset(subset, asked, ours, facts)
    return lines


def _speed_subset(
    subset: str, rows: Sequence[Row], ours: Mapping[str, Row], facts: Mapping[str, Facts | None]
) -> list[Line]:
    expected = {i: value for i, p in ours.items() if (value := number(p, "expected")) is not None}
    lines = []
    cells = len(scoring.cells(rows, {row["id"]: 1.0 for row in rows}))
    mine = scoring.errors(scoring.cells(rows, expected))
    if mine is not None:
        inside = [
            number(ours[row["id"]], "low") <= float(row["tok_per_s"]) <= number(ours[row["id"]], "high")  # type: ignore[operator]
            for row in rows
            if row["id"] in expected
        ]
        lines.append(Line(subset, OURS, mine, cells, sum(inside) / len(inside)))
    for tool, formula in peer_formulas.SPEED.items():
        values, bounds = {}, []
        for row in rows:
            known = facts[row["id"]]
            value = formula(known) if known else None
            if value is None:
                continue
            values[row["id"]] = value
            if tool in peer_formulas.INTERVALS and known:
                low, high = peer_formulas.INTERVALS[tool](known) or (0.0, 0.0)
                bounds.append(low <= float(row["tok_per_s"]) <= high)
        theirs = scoring.errors(scoring.cells(rows, values))
        if theirs is not None:
            same = scoring.errors(scoring.cells([row for row in rows if row["id"] in values], expected))
            lines.append(Line(subset, tool, theirs, cells, sum(bounds) / len(bounds) if bounds else None, same))
    return lines


def our_speeds(rows: Sequence[Row]) -> dict[str, Row]:
    from tests.accuracy import speed_rows

    return {p["id"]: _texts(p) for p in speed_rows.predict(scoring.without(rows, scoring.SPEED_MEASURED))}


def our_memory(rows: Sequence[Row]) -> dict[str, Row]:
    from tests.accuracy import memory_rows

    return {p["id"]: _texts(p) for p in memory_rows.predict(scoring.without(rows, scoring.MEMORY_MEASURED))}


def _texts(prediction: Mapping[str, object]) -> dict[str, str]:
    return {key: "" if value is None else str(value) for key, value in prediction.items()}


def speed_facts(row: Row) -> Facts | None:
    """What every tool is told of a row; None where the device is not known."""
    spec = _accelerator(row["hw_id"])
    if spec is None or spec.memory_bandwidth_bytes_per_s is None:
        return None
    active = number(row, "params_active") if row["is_moe"] == "yes" else None
    facts = Facts(
        quantization=row["quant"],
        bandwidth_bytes_per_s=spec.memory_bandwidth_bytes_per_s,
        vendor=spec.vendor,
        is_unified=spec.memory_kind is MemoryKind.UNIFIED,
        capacity_bytes=spec.memory_bytes,
        weights_bytes=number(row, "weight_bytes"),
        parameters=number(row, "params_total"),
        active_parameters=active,
        is_moe=row["is_moe"] == "yes",
        context_tokens=(number(row, "depth_tokens") or 0.0) + (number(row, "n_gen") or 0.0),
        gpu_share=_gpu_share(row),
        host_bandwidth_bytes_per_s=HOST_BANDWIDTH_BYTES_PER_S,
    )
    return with_shape(facts, row)


def _gpu_share(row: Row) -> float:
    """Of the layers, as the notes of a row with partial offload give their number; 1 where all are on the GPU."""
    import re

    if row["offload"] != "partial":
        return 1.0
    layers, all_of_them = number(row, "n_gpu_layers"), re.search(r"of (\d+)\+1 layers", row.get("notes") or "")
    return min(1.0, layers / float(all_of_them[1])) if layers and all_of_them else 0.5


def with_shape(facts: Facts, row: Row) -> Facts:
    """The facts with what is known of the model by its name; of experts only what the catalog holds."""
    model = _model(row["model"])
    if model is not None:
        return _of_model(facts, model)
    from tests.accuracy.speed_rows import Unpredictable, model_of

    try:
        stand_in = model_of(row["model"], row["hf_repo"], row["params_total"], row["params_active"], row["is_moe"])
    except Unpredictable:
        return facts
    return replace(_of_model(facts, stand_in), experts=None, experts_used=None, expert_size=None)


def _of_model(facts: Facts, model: ModelSpec) -> Facts:
    attention = next((group for group in model.layers if isinstance(group, AttentionLayers)), None)
    latent = next((group for group in model.layers if isinstance(group, LatentAttentionLayers)), None)
    experts = model.experts
    return replace(
        facts,
        parameters=facts.parameters or model.parameters,
        active_parameters=facts.active_parameters or (model.active_parameters if facts.is_moe else None),
        layers=model.layer_count,
        hidden=model.hidden_size,
        heads=model.attention_heads,
        kv_heads=attention.kv_heads if attention else model.attention_heads if latent else None,
        key_dim=attention.key_dim if attention else latent.key_dim if latent else None,
        value_dim=attention.value_dim if attention else latent.value_dim if latent else None,
        latent_dim=latent.latent_dim + latent.rope_dim if latent else None,
        vocabulary=model.vocabulary_size,
        experts=experts.count if experts else None,
        experts_used=experts.used if experts else None,
        expert_size=experts.feed_forward_size if experts else None,
        shared_expert_size=experts.shared_feed_forward_size if experts else 0,
    )


@cache
def _catalog() -> Catalog:
    return load_catalog()


@cache
def _accelerator(hw_id: str) -> AcceleratorSpec | None:
    try:
        return _catalog().accelerator(hw_id) if hw_id else None
    except UsageError:
        return None


@cache
def _model(name: str) -> ModelSpec | None:
    try:
        return _catalog().model(name)
    except UsageError:
        return None


# Memory

_PARTS = ("model_buffer_MiB", "kv_buffer_MiB", "rs_buffer_MiB", "compute_buffer_MiB")


def memory_lines(rows: Sequence[Row], ours: Mapping[str, Row] | None = None) -> list[Line]:
    """By engine and architecture: whole logs with every layer on accelerators, no tensor moved by hand, and an
    unquantized cache, each configuration once."""
    starts = _starts(rows)
    ours = our_memory([row for group in starts for row in group]) if ours is None else ours
    subsets: dict[str, list[list[Row]]] = defaultdict(list)
    for group in starts:
        engine = "llama.cpp, Ollama" if scoring.is_mainline(group[0]) else "ik_llama.cpp"
        subsets[engine].append(group)
        subsets[
            f"  {group[0]['arch'] or 'unnamed'}" if engine != "ik_llama.cpp" else f"  ik {group[0]['arch']}"
        ].append(group)
    lines = []
    for subset, groups in subsets.items():
        mine = scoring.errors([pair for group in groups if (pair := _our_pair(group, ours))])
        if mine is not None:
            lines.append(Line(subset, OURS, mine, len(groups)))
        for tool, formula in peer_formulas.MEMORY.items():
            answers = [(g, value) for g in groups if (value := formula(memory_facts(g[0]))) is not None]
            theirs = scoring.errors([(value, _measured(g)) for g, value in answers])
            same = scoring.errors([pair for g, _ in answers if (pair := _our_pair(g, ours))])
            if theirs is not None:
                lines.append(Line(subset, tool, theirs, len(groups), None, same))
    return lines


def _starts(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of the accelerators of each log that can be compared, one log for each configuration."""
    logs: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if scoring.is_log(row):
            logs[row["log_id"]].append(row)
    seen, starts = set(), []
    for group in logs.values():
        first, cards = group[0], [row for row in group if not scoring.is_host(row)]
        whole = first["offloaded_layers"] and first["offloaded_layers"] == first["total_layers"]
        plain = not first["tensor_override"] and first["kv_type_k"].removeprefix("mla:") in ("", "f16")
        complete = cards and all(
            number(row, "model_buffer_MiB") and number(row, "compute_buffer_MiB") is not None for row in cards
        )
        key = tuple(
            first[name] for name in ("engine", "arch", "params_B", "quant", "n_ctx", "n_ubatch", "flash_attn", "n_gpus")
        )
        if whole and plain and complete and first["n_ctx"] and first["params_B"] and key not in seen:
            seen.add(key)
            starts.append(cards)
    return starts


def _measured(cards: Sequence[Row]) -> float:
    return sum(number(row, part) or 0.0 for row in cards for part in _PARTS) * MIB


def _our_pair(cards: Sequence[Row], ours: Mapping[str, Row]) -> tuple[float, float] | None:
    """None where one of the devices is not predicted."""
    predictions = [ours.get(row["id"], {}) for row in cards]
    if any(number(p, "model_buffer_MiB") is None or number(p, "compute_buffer_MiB") is None for p in predictions):
        return None
    return sum(number(p, part) or 0.0 for p in predictions for part in _PARTS) * MIB, _measured(cards)


def memory_facts(row: Row) -> Facts:
    def whole(column: str) -> int | None:
        value = number(row, column)
        return int(value) if value else None

    size = number(row, "file_size_GiB")
    billions = number(row, "params_B")
    latent = row["arch"] == "deepseek2" and row["mla_attn"] not in ("", "0")
    return Facts(
        quantization=row["quant"].replace(" - Medium", "_M").replace(" - Small", "_S").replace(" - Large", "_L"),
        bandwidth_bytes_per_s=1.0,
        vendor="",
        weights_bytes=size * GIB if size else None,
        parameters=billions * 1e9 if billions else None,
        is_moe=bool(whole("n_expert")),
        layers=whole("n_layer"),
        hidden=whole("n_embd"),
        heads=whole("n_head"),
        kv_heads=whole("n_head_kv"),
        key_dim=whole("head_dim_k"),
        value_dim=whole("head_dim_v"),
        latent_dim=576 if latent else None,
        context_tokens=number(row, "n_ctx") or 0.0,
    )


if __name__ == "__main__":
    main()
