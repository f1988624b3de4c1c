"""How plans, candidates and machines look on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from provision.domain.hardware import Machine, MemoryKind
from provision.domain.plan import Candidate, Rejection, SpeedRange, Workload
from provision.units import (
    format_bandwidth,
    format_bytes,
    format_seconds,
    format_tokens,
    format_tokens_per_s,
)

if TYPE_CHECKING:
    from provision.output.console import Screen

_REJECTIONS_SHOWN = 6


def machine_line(machine: Machine) -> str:
    """One line: `2 x NVIDIA GeForce RTX 4090 (23.99 GiB, 1,008 GB/s), 128.00 GiB RAM`."""
    parts: list[str] = []
    kinds: dict[tuple[str, int | None, float | None, MemoryKind], int] = {}
    for accelerator in machine.accelerators:
        pool = machine.pool_of(accelerator)
        key = (accelerator.name, pool.total_bytes, pool.bandwidth_bytes_per_s, accelerator.memory_kind)
        kinds[key] = kinds.get(key, 0) + 1
    for (name, total, bandwidth, kind), count in kinds.items():
        unified = " unified" if kind is MemoryKind.UNIFIED else ""
        memory = f"{format_bytes(total)}{unified}, {format_bandwidth(bandwidth)}"
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
    """`gpu0`, `2 GPUs: 32+32`, `45/64 layers on GPU`, `CPU`."""
    placement = candidate.placement
    used = [(i, n) for i, n in enumerate(placement.split) if n]
    if not used:
        return "CPU"
    if placement.gpu_layers < placement.layers:
        return f"{placement.gpu_layers}/{placement.layers} layers on GPU"
    if len(used) == 1:
        return f"gpu{used[0][0]}"
    return f"{len(used)} GPUs: {'+'.join(str(n) for _, n in used)}"


def best_of_each_model(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first, that is the best ranked, candidate of each model."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.model, candidate)
    return list(first.values())


def show_candidates(screen: Screen, candidates: Sequence[Candidate], selected: Sequence[str] = ()) -> None:
    users = candidates[0].users if candidates else 1
    columns = [" ", "model", "quant", "memory", "placement", "decode tok/s", "ceiling"]
    if users > 1:
        columns.append(f"{users} users tok/s")
    columns.append("TTFT")
    table = screen.table(*columns, right=("memory", "decode tok/s", "ceiling", "TTFT", columns[-2]))
    for column in table.columns:
        column.no_wrap = True
        column.min_width = len(str(column.header))
    for candidate in candidates:
        speed = candidate.speed
        decode = speed.decode_tokens_per_s if speed else None
        row = [
            "*" if candidate.id in selected else "",
            candidate.model,
            candidate.quantization,
            format_bytes(candidate.memory.total_bytes),
            placement_text(candidate),
            rate(decode),
            format_tokens_per_s(decode.ceiling if decode else None),
        ]
        if users > 1:
            row.append(rate(speed.system_output_tokens_per_s if speed else None))
        row.append(format_seconds(speed.ttft_s.expected if speed and speed.ttft_s else None))
        table.add_row(*row)
    screen.print(table)


def show_memory(screen: Screen, candidate: Candidate) -> None:
    """The itemised bill of one candidate, a row per device."""
    table = screen.table(
        "device", "weights", "KV cache", "state", "compute", "overhead", "total", "capacity", "headroom",
        right=("weights", "KV cache", "state", "compute", "overhead", "total", "capacity", "headroom"),
    )  # fmt: skip
    for device in candidate.memory.devices:
        table.add_row(
            device.device,
            format_bytes(device.weights_bytes),
            format_bytes(device.kv_cache_bytes),
            format_bytes(device.state_bytes),
            format_bytes(device.compute_bytes),
            format_bytes(device.overhead_bytes),
            format_bytes(device.total_bytes),
            format_bytes(device.capacity_bytes),
            format_bytes(device.headroom_bytes),
        )
    screen.print(table)


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
        screen.print(f"TTFT     {format_seconds(ttft.expected)} ({low}-{high})")
    else:
        screen.print("TTFT     unknown")


def show_rejections(screen: Screen, rejections: tuple[Rejection, ...]) -> None:
    """Why the rest do not run, nearest misses first."""
    if not rejections:
        return
    screen.print("Why not:")
    nearest: dict[tuple[str, str], Rejection] = {}
    for rejection in rejections:
        nearest.setdefault((rejection.model, rejection.reason), rejection)
    for rejection in list(nearest.values())[:_REJECTIONS_SHOWN]:
        short = f" (short by {format_bytes(rejection.shortfall_bytes)})" if rejection.shortfall_bytes else ""
        screen.print(f"  {rejection.model} {rejection.quantization}: {rejection.message}{short}")
    more = len(rejections) - min(len(nearest), _REJECTIONS_SHOWN)
    if more > 0:
        screen.print(f"  and {more} more builds: --json lists them all")
