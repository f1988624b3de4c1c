"""Which builds run on a machine: enumerate, place, check, predict, rank. Every "no" keeps its reason and its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from provision.domain.hardware import Accelerator, AcceleratorSpec, Machine, MemoryKind, MemoryPool
from provision.domain.llm import EngineSpec, ModelBuild, ModelSpec, ModelTask, Quantization
from provision.domain.measurement import LocalMeasurement
from provision.domain.plan import Candidate, CapacityBasis, Rejection, Speed, Workload
from provision.sizing import placing
from provision.sizing.cached import by_identity
from provision.sizing.calibration import calibrated, on_the_same
from provision.sizing.choice import largest_context_tokens
from provision.sizing.placing import Build, Placed
from provision.sizing.remarks import does_not_fit, findings, refusal
from provision.sizing.speed import EfficiencyOf, speed

Preference = Literal["balanced", "quality", "speed", "context"]

RANKED_BY: dict[Preference, str] = {
    "balanced": "what stays on the accelerators first, then what is fast enough to read along for every user, then "
    "four bits or more, then the larger model, then the better quantization",
    "quality": "what is fast enough to read along for every user first, on the accelerators or not, then four bits "
    "or more, then the larger model, then the better quantization",
    "speed": "four bits or more, then tokens/s for each user, whatever the size of the model",
    "context": "the longest context that stays on the accelerators, then four bits or more, then the larger model, "
    "then the better quantization",
}
"""What each order optimises, in words; text models come before embedding models in all of them."""

_READING_TOKENS_PER_S = 5.0
"""About 240 English words a minute at 0.75 words a token: slower than this, a person waits for every line."""


def assess(
    machine: Machine,
    model: ModelSpec,
    build: ModelBuild,
    quantization: Quantization,
    engine: EngineSpec,
    workload: Workload,
    efficiency_of: EfficiencyOf,
    basis: CapacityBasis = "total",
    measured_here: Sequence[LocalMeasurement] = (),
) -> Candidate:
    """Place one build on `machine`, itemise and predict it: the one function behind `estimate`, `plan` and the rest.

    `fits` says whether the memory holds it; the speed is given either way. What was measured on this machine outranks
    what the fit says.
    """
    triple = (model, build, quantization)
    placed = placing.place(machine, triple, engine, workload, basis)
    return predicted(machine, triple, engine, workload, placed, efficiency_of, measured_here)


def predicted(
    machine: Machine,
    build: Build,
    engine: EngineSpec,
    workload: Workload,
    placed: Placed,
    efficiency_of: EfficiencyOf,
    measured_here: Sequence[LocalMeasurement] = (),
) -> Candidate:
    """`placed` with its speed and its findings."""
    served = placed.launch.workload
    rates = speed(machine, *build, engine.id, placed.placement, served, efficiency_of)
    if rates is not None and measured_here:
        usable = on_the_same(measured_here, placing.where(placed.placement))
        rates = calibrated(rates, build[0].id, build[1].quantization, engine.id, usable)
    candidate = _candidate(build, engine, workload, placed, rates)
    found = findings(machine, build[0], candidate, engine, workload)
    return replace(candidate, findings=found) if found else candidate


def _candidate(
    build: Build, engine: EngineSpec, workload: Workload, placed: Placed, rates: Speed | None = None
) -> Candidate:
    model, built, _ = build
    served = placed.launch.workload
    return Candidate(
        id=f"{model.id}/{built.quantization}@{engine.id}",
        model=model.id,
        quantization=built.quantization,
        engine=engine.id,
        engine_version=engine.version,
        ollama_tag=built.ollama_tag,
        weights_bytes=built.weights_bytes,
        context_tokens=served.context_tokens,
        users=workload.users,
        slots=served.users if served.users < workload.users else None,
        memory=placed.memory,
        fits=placed.fits,
        placement=placed.placement,
        speed=rates,
    )


def plan_builds(
    machine: Machine,
    builds: Iterable[Build],
    engines: Sequence[EngineSpec],
    workload: Workload,
    efficiency_of: EfficiencyOf,
    *,
    basis: CapacityBasis = "total",
    disk_free_bytes: int | None = None,
    prefer: Preference = "balanced",
    measured_here: Sequence[LocalMeasurement] = (),
) -> tuple[list[Candidate], list[Rejection]]:
    """Candidates, best first by `prefer` (RANKED_BY says how), and rejections, nearest miss first.

    In every order a build that is too slow to read along comes after those that are not, the fastest of them first.
    """
    candidates: list[tuple[Candidate, ModelSpec, Quantization]] = []
    rejections: list[Rejection] = []
    for build in builds:
        for engine in engines:
            refused = refusal(*build, engine, workload, disk_free_bytes)
            if refused is not None:
                rejections.append(refused)
                continue
            placed = placing.place(machine, build, engine, workload, basis)
            if not placed.fits:
                # Without its speed, which takes longer to predict than all the rest.
                rejections.append(does_not_fit(machine, _candidate(build, engine, workload, placed), engine, workload))
                continue
            candidate = predicted(machine, build, engine, workload, placed, efficiency_of, measured_here)
            if prefer == "context":
                tokens = largest_context_tokens(machine, build, engine, workload, placed, basis)
                candidate = replace(candidate, context_tokens_max=tokens)
            candidates.append((candidate, build[0], build[2]))
    candidates.sort(key=lambda item: _rank(machine, item[0], item[1], item[2], prefer), reverse=True)
    rejections.sort(key=lambda r: (r.shortfall_bytes is None, r.shortfall_bytes or 0, r.model, r.quantization))
    return [candidate for candidate, _, _ in candidates], rejections


def select(candidates: Sequence[Candidate], models: Sequence[str]) -> tuple[str, ...]:
    """Ids of the candidates to install: the best of each model asked for, or the best of all when none was named.

    All of one engine: the one that has most of the models, and of several the one that is ranked first.
    """
    if not models:
        return tuple(candidate.id for candidate in candidates[:1])
    first: dict[str, dict[str, str]] = {}
    for candidate in candidates:
        first.setdefault(candidate.engine, {}).setdefault(candidate.model, candidate.id)
    best = max(first.values(), key=lambda of_engine: sum(model in of_engine for model in models), default={})
    return tuple(best[model] for model in models if model in best)


@by_identity
def planned_accelerator(spec: AcceleratorSpec, index: int, host_bytes: int | None = None) -> Accelerator:
    """A card of the catalog as part of a machine with `host_bytes` of memory, which limits what an accelerator without
    memory of its own may take; what drivers report as total wins over the nominal size."""
    unified = spec.memory_kind is MemoryKind.UNIFIED
    total = spec.reported_memory_bytes or spec.memory_bytes
    return Accelerator(
        index=index,
        vendor=spec.vendor,
        name=spec.name,
        catalog_id=spec.id,
        device_class=spec.device_class,
        architecture=spec.architecture,
        memory_kind=spec.memory_kind,
        memory=None
        if unified
        else MemoryPool(total_bytes=total, bandwidth_bytes_per_s=spec.memory_bandwidth_bytes_per_s),
        usable_bytes=spec.usable_memory_bytes(host_bytes) if unified else None,
        fp16_flops_per_s=spec.fp16_flops_per_s,
        fp32_flops_per_s=spec.fp32_flops_per_s,
        power_limit_w=spec.power_limit_w,
        pcie=spec.pcie,
    )


def is_resident(candidate: Candidate) -> bool:
    """All layers on accelerators, none of their experts elsewhere."""
    return placing.is_resident(candidate.placement)


FOUR_BIT_RANK = 40
"""Of Q4_0. A larger model in less than four bits goes after a smaller one in four: it loses more than it gains."""


def _rank(
    machine: Machine, candidate: Candidate, model: ModelSpec, quantization: Quantization, prefer: Preference
) -> tuple[float, ...]:
    system = candidate.speed.system_output_tokens_per_s.expected if candidate.speed else 0.0
    per_user = system / candidate.users
    resident = bool(machine.accelerators) and is_resident(candidate)
    is_text = float(model.task is ModelTask.TEXT)
    in_four_bits = float(quantization.rank >= FOUR_BIT_RANK)
    if prefer == "speed":
        return (is_text, in_four_bits, per_user, float(model.parameters or 0), float(quantization.rank))
    usable = per_user >= _READING_TOKENS_PER_S or (resident and prefer != "quality")
    first = {
        "balanced": (float(resident), float(usable)),
        "quality": (float(usable), 0.0),
        "context": (float(resident), float(candidate.context_tokens_max or 0)),
    }[prefer]
    return (
        is_text,
        *first,
        in_four_bits,
        float(model.parameters or 0) if usable else 0.0,
        float(quantization.rank) if usable else 0.0,
        per_user,
        -float(candidate.weights_bytes),
    )
