"""How plans, candidates and machines look on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from provision.domain.hardware import Machine, MemoryKind
from provision.domain.llm import QualityMetric
from provision.domain.plan import (
    Candidate,
    JointPlan,
    MeasuredLoss,
    Plan,
    Rejection,
    RejectionReason,
    SpeedRange,
    Workload,
)
from provision.units import (
    format_bandwidth,
    format_bytes,
    format_seconds,
    format_tokens,
    format_tokens_per_s,
)

if TYPE_CHECKING:
    from rich.table import Table

    from provision.domain.measurement import StoredRun
    from provision.output.console import Screen

_REJECTIONS_SHOWN = 6

HERE = " h"
"""Mark of a figure that was measured on the machine itself."""

_RUNS_SHOWN = 4

_REASONS = {
    RejectionReason.CONTEXT_TOO_LONG: "trained for less context",
    RejectionReason.DISK_TOO_SMALL: "the disk is too small",
    RejectionReason.DOES_NOT_FIT: "does not fit",
    RejectionReason.ENGINE_CANNOT_LOAD: "the engine cannot load it",
    RejectionReason.NOT_PUBLISHED: "no tag in Ollama's library is known",
    RejectionReason.TOO_SLOW: "too slow",
    RejectionReason.UNKNOWN_HARDWARE: "would spill into host memory of unknown size",
}


def machine_line(machine: Machine) -> str:
    """One line: `2 x NVIDIA GeForce RTX 4090 (23.99 GiB, 1,008 GB/s), 128.00 GiB RAM`."""
    parts: list[str] = []
    kinds: dict[tuple[str, int | None, float | None, MemoryKind, int | None], int] = {}
    for accelerator in machine.accelerators:
        pool = machine.pool_of(accelerator)
        key = (
            accelerator.name,
            pool.total_bytes,
            pool.bandwidth_bytes_per_s,
            accelerator.memory_kind,
            accelerator.usable_bytes,
        )
        kinds[key] = kinds.get(key, 0) + 1
    for (name, total, bandwidth, kind, usable), count in kinds.items():
        unified = " unified" if kind is MemoryKind.UNIFIED else ""
        limit = f" of which it may take {format_bytes(usable)}" if usable is not None else ""
        memory = f"{format_bytes(total)}{unified}{limit}, {format_bandwidth(bandwidth)}"
        parts.append(f"{count} x {name} ({memory})" if count > 1 else f"{name} ({memory})")
    if not parts:
        parts.append("no accelerator")
    ram = machine.memory
    if ram.total_bytes is not None:
        speed = f" at {format_bandwidth(ram.bandwidth_bytes_per_s)}" if ram.bandwidth_bytes_per_s else ""
        parts.append(f"{format_bytes(ram.total_bytes)} RAM{speed}")
    return ", ".join(parts)


def workload_line(workload: Workload) -> str:
    users = "1 user" if workload.users == 1 else f"{workload.users} users"
    return (
        f"{format_tokens(workload.context_tokens)} tokens of context for {users}, {workload.kv_cache_type} KV cache; "
        f"speeds for a prompt of {workload.prompt_tokens} and an answer of {workload.output_tokens} tokens"
    )


def rate(value: SpeedRange | None) -> str:
    """`34.1 (28-38)`: expected and the 80 % interval."""
    if value is None:
        return "unknown"
    return f"{format_tokens_per_s(value.expected)} ({_rounded(value.low)}-{_rounded(value.high)})"


def _rounded(tokens_per_s: float) -> str:
    """Ends of an interval carry no more digits than they deserve."""
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 10 else f"{tokens_per_s:.1f}"


def placement_text(candidate: Candidate) -> str:
    """`gpu0`, `2 GPUs: 32+32`, `2 GPUs, tensor parallel`, `45/64 layers on GPU`, `CPU`."""
    placement = candidate.placement
    used = [(i, n) for i, n in enumerate(placement.split) if n]
    if not used:
        return "CPU"
    if placement.gpu_layers < placement.layers:
        return f"{placement.gpu_layers}/{placement.layers} layers on GPU"
    if placement.expert_layers_on_host:
        return f"experts of {placement.expert_layers_on_host}/{placement.layers} on host"
    if len(used) == 1:
        return f"gpu{used[0][0]}"
    if placement.tensor_parallel > 1:
        return f"{placement.tensor_parallel} GPUs, tensor parallel"
    return f"{len(used)} GPUs: {'+'.join(str(n) for _, n in used)}"


def best_of_each_model(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first, that is the best ranked, candidate of each model."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.model, candidate)
    return list(first.values())


def show_candidates(screen: Screen, plan: Plan, candidates: Sequence[Candidate]) -> None:
    """A row for each candidate; where the terminal is narrow, the columns that can be asked for otherwise go first."""
    users = plan.workload.users
    together = f"{users} users tok/s"
    optional = ["TTFT", "memory", "perplexity", "ceiling", "placement"]
    while True:
        table = _candidate_table(screen, plan, candidates, together if users > 1 else None, optional)
        if screen.fits(table) or not optional:
            break
        optional = optional[1:]
    screen.print(table)


def _candidate_table(
    screen: Screen, plan: Plan, candidates: Sequence[Candidate], together: str | None, optional: list[str]
) -> Table:
    losses = {q.quantization: q for q in plan.quality if q.metric is QualityMetric.PERPLEXITY_INCREASE_PERCENT}
    engine = "engine" if len({c.engine for c in candidates}) > 1 else None
    order = [" ", "model", "quant", engine, "memory", "placement", "decode tok/s", "ceiling", together, "TTFT"]
    order.insert(3, "perplexity")
    may_go = ("memory", "perplexity", "placement", "ceiling", "TTFT")
    columns = [c for c in order if c and (c in optional or c not in may_go)]
    numbers = ("memory", "perplexity", "decode tok/s", "ceiling", "TTFT", together or "")
    table = screen.table(*columns, right=numbers)
    for column in table.columns:
        column.no_wrap = True
    for candidate in candidates:
        speed = candidate.speed
        decode = speed.decode_tokens_per_s if speed else None
        cells = {
            " ": "*" if candidate.id in plan.selected else "",
            "model": candidate.model,
            "quant": candidate.quantization,
            "perplexity": _loss_text(losses.get(candidate.quantization), candidate.quantization),
            "engine": candidate.engine,
            "memory": format_bytes(candidate.memory.total_bytes),
            "placement": placement_text(candidate),
            "decode tok/s": rate(decode) + (HERE if decode and decode.basis == "measured_here" else ""),
            "ceiling": format_tokens_per_s(decode.ceiling if decode else None),
            together or "": rate(speed.system_output_tokens_per_s if speed else None),
            "TTFT": format_seconds(speed.ttft_s.expected if speed and speed.ttft_s else None),
        }
        table.add_row(*(cells[column] for column in columns))
    return table


def _loss_text(loss: MeasuredLoss | None, quantization: str) -> str:
    """`+1.4-4.8 %`: what others measured of this quantization, not of this model."""
    if loss is None:
        return "+0 %" if quantization in ("F16", "BF16", "F32") else "unknown"
    low, high = f"{loss.low:.1f}", f"{loss.high:.1f}"
    return f"+{low} %" if low == high else f"+{low}-{high} %"


def quality_line(plan: Plan) -> str:
    """Where the figures of the perplexity column are from."""
    models = dict.fromkeys(
        model for q in plan.quality if q.metric is QualityMetric.PERPLEXITY_INCREASE_PERCENT for model in q.models
    )
    named = ", ".join(sorted(models))
    return f"Perplexity against 16 bits as measured on {named}; other models, small ones above all, differ."


def show_memory(screen: Screen, candidate: Candidate) -> None:
    """The itemised bill of one candidate, a row per device; recurrent state only where there is any."""
    items = {
        "weights": "weights_bytes",
        "KV cache": "kv_cache_bytes",
        "state": "state_bytes",
        "compute": "compute_bytes",
        "overhead": "overhead_bytes",
        "total": "total_bytes",
        "capacity": "capacity_bytes",
        "headroom": "headroom_bytes",
    }
    if not any(device.state_bytes for device in candidate.memory.devices):
        del items["state"]
    table = screen.table("device", *items, right=tuple(items))
    for device in candidate.memory.devices:
        table.add_row(device.device, *(format_bytes(getattr(device, field)) for field in items.values()))
    screen.print(table)


def room_line(candidate: Candidate) -> str:
    """How far the candidate can be stretched where it lies."""
    parts = []
    if candidate.context_tokens_max is not None:
        users = "1 user" if candidate.users == 1 else f"{candidate.users} users"
        parts.append(f"{format_tokens(candidate.context_tokens_max)} tokens of context for {users}")
    if candidate.users_max is not None:
        users = "1 user" if candidate.users_max == 1 else f"{candidate.users_max:,} users"
        parts.append(f"{users} at {format_tokens(candidate.context_tokens)}")
    spilled = candidate.placement.gpu_layers < candidate.placement.layers or candidate.placement.expert_layers_on_host
    where = f"Room without moving {'more' if spilled else 'anything'} to the host"
    if not candidate.placement.split:
        where = "Room in host memory"
    return f"{where}: {' or '.join(parts)}." if parts else ""


def show_together(screen: Screen, plan: JointPlan) -> None:
    """What each model takes of each device when they are loaded one after the other."""
    verdict = "All stay loaded at once" if plan.resident else "Not all stay loaded at once"
    screen.print(f"{verdict}, in this order:")
    names = [f"{c.model} {c.quantization}" for c in plan.candidates]
    columns = [*names, "left free", "total", "capacity", "headroom"]
    table = screen.table("device", *columns, right=tuple(columns))
    for device in plan.devices:
        numbers = (*device.used_bytes, device.reserve_bytes, device.total_bytes)
        cells = [format_bytes(n) for n in numbers]
        table.add_row(device.device, *cells, format_bytes(device.capacity_bytes), format_bytes(device.headroom_bytes))
    screen.print(table)
    for candidate, name in zip(plan.candidates, names, strict=True):
        fate = "unloaded again" if candidate.id in plan.evicted else placement_text(candidate)
        screen.print(f"{name}: {fate}")


def show_speculation(screen: Screen, candidate: Candidate) -> None:
    found = candidate.speculation
    if found is None:
        screen.print("with a draft: unknown, because a speed is not known")
        return
    screen.print(
        f"drafted  {rate(found.decode_tokens_per_s)} tokens/s with {found.draft_model} {found.draft_quantization} "
        f"drafting {found.draft_tokens}: an estimate, {found.speedup_low:.1f} to {found.speedup_high:.1f} times for "
        f"{found.acceptance_low:.0%} to {found.acceptance_high:.0%} accepted"
    )


def show_kv_pool(screen: Screen, candidate: Candidate) -> None:
    """What an engine with one pool of cache blocks holds; nothing for others."""
    memory = candidate.memory
    if not memory.kv_capacity_tokens:
        return
    screen.print(
        f"KV pool  {memory.kv_capacity_tokens:,} tokens ({memory.kv_blocks:,} blocks of {memory.kv_block_tokens}), "
        f"{memory.concurrent_sequences_max:,} requests of {format_tokens(candidate.context_tokens)} at once, "
        f"largest context {format_tokens(memory.context_tokens_max)}"
    )


def show_speed(screen: Screen, candidate: Candidate) -> None:
    speed = candidate.speed
    if speed is None:
        screen.print("speed: unknown")
        return
    decode = speed.decode_tokens_per_s
    screen.print(
        f"decode   {rate(decode)} tokens/s for one user, ceiling {format_tokens_per_s(decode.ceiling)}, "
        f"bound by {decode.bound_by.replace('_', ' ')} ({decode.basis.replace('_', ' ')})"
    )
    if candidate.users > 1:
        system = speed.system_output_tokens_per_s
        screen.print(
            f"together {rate(system)} tokens/s for {candidate.users} users, "
            f"ceiling {format_tokens_per_s(system.ceiling)}, bound by {system.bound_by.replace('_', ' ')}"
        )
    prefill = speed.prefill_tokens_per_s
    screen.print(f"prefill  {rate(prefill)} tokens/s" if prefill else "prefill  unknown")
    ttft = speed.ttft_s
    if ttft:
        low, high = format_seconds(ttft.low), format_seconds(ttft.high)
        screen.print(f"TTFT     {format_seconds(ttft.expected)} ({low}-{high}) for a request alone")
    else:
        screen.print("TTFT     unknown")


def show_measured_here(screen: Screen, runs: Sequence[StoredRun]) -> None:
    """Which runs on this machine the figures go by: a line for each of the last few builds, nothing without any."""
    if not runs:
        return
    last = {(run.model, run.quantization, run.engine): run for run in sorted(runs, key=lambda run: run.measured_at)}
    counts = Counter((run.model, run.quantization, run.engine) for run in runs)
    screen.print(f"{HERE.strip()}: measured on this machine; other builds are predicted with these runs in mind:")
    for build, run in list(last.items())[: -_RUNS_SHOWN - 1 : -1]:
        count = f", the last of {counts[build]} runs" if counts[build] > 1 else ""
        screen.print(
            f"  {run.model} {run.quantization} with {run.engine}: {format_tokens_per_s(run.decode_tokens_per_s)} "
            f"tokens/s on {run.measured_at[:10]}{count}" + (f" ({run.result})" if run.result else "")
        )
    if len(last) > _RUNS_SHOWN:
        screen.print(f"  and {len(last) - _RUNS_SHOWN} more builds: --json lists every run")


def show_rejections(screen: Screen, rejections: Sequence[Rejection]) -> None:
    """Why the rest do not run: the nearest miss of each model, and how many builds share a reason that is not size."""
    if not rejections:
        return
    screen.print("Why not:")
    sized = [r for r in rejections if r.shortfall_bytes is not None]
    nearest: dict[str, Rejection] = {}
    for rejection in sized:
        nearest.setdefault(rejection.model, rejection)
    for rejection in list(nearest.values())[:_REJECTIONS_SHOWN]:
        short = f" (short by {format_bytes(rejection.shortfall_bytes)})"
        screen.print(f"  {rejection.model} {rejection.quantization}: {rejection.message}{short}")
    others: dict[RejectionReason, list[Rejection]] = {}
    for rejection in rejections:
        if rejection.shortfall_bytes is None:
            others.setdefault(rejection.reason, []).append(rejection)
    for reason, same in others.items():
        models = list(dict.fromkeys(r.model for r in same))
        named = ", ".join(models[:3]) + (" ..." if len(models) > 3 else "")
        builds = "1 build" if len(same) == 1 else f"{len(same)} builds"
        screen.print(f"  {_REASONS[reason]}: {builds} ({named})")
    if len(nearest) > _REJECTIONS_SHOWN or others:
        screen.print("  --json lists every build with its reason")
