"""Stored runs of one machine as measurements beside what the fit expects of the same workload.

The expectation is worked out anew from each run's own workload and placement, so that a later fit corrects itself.
Left out is a run on other hardware, of a model, engine or quantization that is not known, whose placement is not known
or neither all on accelerators nor all on the host, and one above the physical ceiling (something else was measured).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

from provision.domain.hardware import Machine, Origin
from provision.domain.llm import EngineSpec
from provision.domain.measurement import BenchResult, HardwareIdentity, LocalMeasurement, StoredRun
from provision.domain.plan import Speed, Workload
from provision.sizing.placing import Build, is_resident, place
from provision.sizing.speed import EfficiencyOf, speed

_MEMORY_TOLERANCE_RATIO = 0.02
"""What a kernel reports as the host's memory changes a little with its version."""

_CEILING_TOLERANCE_RATIO = 1.05
"""As when a benchmark is judged: further above the ceiling, something else was measured."""

_CONTEXT_TOKENS_MIN = 512


def identity_of(machine: Machine) -> HardwareIdentity | None:
    """What `machine` is told apart by; None for one that nobody has looked at, or that tells neither card nor CPU."""
    cpu = machine.cpu.model if machine.cpu else None
    if machine.origin is not Origin.DETECTED or not (cpu or machine.accelerators):
        return None
    return HardwareIdentity(
        accelerators=tuple(sorted(card.name for card in machine.accelerators)),
        cpu=cpu,
        logical_cores=machine.cpu.logical_cores if machine.cpu else None,
        memory_bytes=machine.memory.total_bytes,
    )


def is_same_hardware(one: HardwareIdentity, other: HardwareIdentity) -> bool:
    """Same cards, processor and cores, and host memory within 2 %."""
    if (one.accelerators, one.cpu, one.logical_cores) != (other.accelerators, other.cpu, other.logical_cores):
        return False
    a, b = one.memory_bytes, other.memory_bytes
    return a == b or (a is not None and b is not None and abs(a - b) <= _MEMORY_TOLERANCE_RATIO * max(a, b))


def stored_runs(result: BenchResult, path: str | None = None) -> tuple[StoredRun, ...]:
    """The levels of `result` that say something of its machine: one user, whole, not void. Empty without a machine."""
    if result.machine is None or result.engine is None or not result.complete:
        return ()
    return tuple(
        StoredRun(
            measured_at=result.started_at.isoformat(timespec="seconds"),
            machine=result.machine,
            model=result.catalog_model or result.model,
            quantization=result.quantization,
            engine=result.engine,
            engine_version=result.engine_version,
            context_tokens=result.context_tokens,
            prompt_tokens=result.prompt_tokens,
            output_tokens=result.output_tokens,
            decode_tokens_per_s=level.decode_tokens_per_s.p50,
            prefill_tokens_per_s=level.prefill_tokens_per_s.p50 if level.prefill_tokens_per_s else None,
            offload_ratio=result.offload_ratio,
            result=path,
        )
        for level in result.levels
        if level.users == 1 and level.valid and level.decode_tokens_per_s is not None
    )


def local_measurements(
    runs: Iterable[StoredRun],
    machine: Machine,
    build_of: Callable[[StoredRun], Build | None],
    engine_of: Callable[[str], EngineSpec | None],
    efficiency_of: EfficiencyOf,
) -> tuple[tuple[StoredRun, ...], tuple[LocalMeasurement, ...]]:
    """The runs that count for `machine`, under the catalog's names for their builds, and their figures.

    Runs of the same build and workload share one expectation.
    """
    own = identity_of(machine)
    if own is None:
        return (), ()
    used: list[StoredRun] = []
    found: list[LocalMeasurement] = []
    expected: dict[tuple[object, ...], tuple[Build, _Where, Speed] | None] = {}
    for run in runs:
        if not is_same_hardware(own, run.machine):
            continue
        key = (
            run.model, run.quantization, run.engine, run.context_tokens, run.prompt_tokens, run.output_tokens,
            run.offload_ratio,
        )  # fmt: skip
        if key not in expected:
            expected[key] = _expected(run, machine, build_of, engine_of, efficiency_of)
        known = expected[key]
        if known is None:
            continue
        build, where, rates = known
        decode, prefill = rates.decode_tokens_per_s, rates.prefill_tokens_per_s
        if decode.ceiling and run.decode_tokens_per_s > _CEILING_TOLERANCE_RATIO * decode.ceiling:
            continue
        used.append(replace(run, model=build[0].id, quantization=build[1].quantization))
        one = LocalMeasurement(
            model=build[0].id,
            quantization=build[1].quantization,
            engine=run.engine,
            measure="decode",
            tokens_per_s=run.decode_tokens_per_s,
            expected_tokens_per_s=decode.expected,
            where=where,
        )
        found.append(one)
        read = run.prefill_tokens_per_s
        if prefill is None or read is None:
            continue
        if prefill.ceiling is None or read <= _CEILING_TOLERANCE_RATIO * prefill.ceiling:
            found.append(replace(one, measure="prefill", tokens_per_s=read, expected_tokens_per_s=prefill.expected))
    return tuple(used), tuple(found)


_Where = Literal["accelerators", "host"]


def _expected(
    run: StoredRun,
    machine: Machine,
    build_of: Callable[[StoredRun], Build | None],
    engine_of: Callable[[str], EngineSpec | None],
    efficiency_of: EfficiencyOf,
) -> tuple[Build, _Where, Speed] | None:
    """What the fit expects of `run`; None where it cannot be told or the run was placed otherwise than sizing would."""
    build, engine = build_of(run), engine_of(run.engine)
    if build is None or engine is None:
        return None
    on_host = not machine.accelerators or run.offload_ratio == 0
    if not on_host and (engine.partial_offload if run.offload_ratio is None else run.offload_ratio < 1):
        return None
    where = replace(machine, accelerators=()) if on_host else machine
    longest = run.prompt_tokens + run.output_tokens
    load = Workload(
        context_tokens=max(run.context_tokens or 0, longest, _CONTEXT_TOKENS_MIN),
        prompt_tokens=run.prompt_tokens,
        output_tokens=run.output_tokens,
    )
    placed = place(where, build, engine, load)
    if not on_host and not is_resident(placed.placement):
        return None
    rates = speed(where, *build, engine.id, placed.placement, placed.launch.workload, efficiency_of)
    return None if rates is None else (build, "host" if on_host else "accelerators", rates)
