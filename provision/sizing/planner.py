"""Which builds run on a machine: enumerate, place, check, predict, rank. Every "no" keeps its reason and its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from provision.domain.finding import Finding
from provision.domain.hardware import Accelerator, AcceleratorSpec, Machine, MemoryKind, MemoryPool
from provision.domain.llm import EngineSpec, ModelBuild, ModelSpec, ModelTask, Quantization
from provision.domain.measurement import LocalMeasurement
from provision.domain.plan import (
    Candidate,
    CapacityBasis,
    MemoryEstimate,
    Placement,
    Rejection,
    RejectionReason,
    Workload,
)
from provision.sizing import memory
from provision.sizing.calibration import calibrated
from provision.sizing.speed import EfficiencyOf, speed
from provision.units import format_bytes, format_tokens, format_tokens_per_s

Build = tuple[ModelSpec, ModelBuild, Quantization]

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
    placement, estimate = memory.place(machine, model, build, quantization, engine, workload, basis)
    predicted = speed(machine, model, build, quantization, engine.id, placement, workload, efficiency_of)
    if predicted is not None and measured_here:
        predicted = calibrated(predicted, model.id, build.quantization, engine.id, measured_here)
    candidate = Candidate(
        id=f"{model.id}/{build.quantization}@{engine.id}",
        model=model.id,
        quantization=build.quantization,
        engine=engine.id,
        ollama_tag=build.ollama_tag,
        weights_bytes=build.weights_bytes,
        context_tokens=workload.context_tokens,
        users=workload.users,
        memory=estimate,
        fits=memory.fits(estimate) and not _spills_into_the_unknown(placement, estimate),
        placement=placement,
        speed=predicted,
    )
    findings = _findings(machine, model, candidate, workload)
    if not findings:
        return candidate
    return replace(candidate, findings=tuple(findings))


def plan_builds(
    machine: Machine,
    builds: Iterable[Build],
    engines: Sequence[EngineSpec],
    workload: Workload,
    efficiency_of: EfficiencyOf,
    *,
    basis: CapacityBasis = "total",
    disk_free_bytes: int | None = None,
) -> tuple[list[Candidate], list[Rejection]]:
    """Candidates, best first, and rejections, nearest miss first.

    Ranked by: text models before embedding models; builds that are fully on accelerators; those that decode at a
    reader's pace for each user; then parameters, quantization and speed. A smaller model that is resident goes before
    a larger one that spills; of builds too slow to read along the fastest goes first.
    """
    candidates: list[tuple[Candidate, ModelSpec, Quantization]] = []
    rejections: list[Rejection] = []
    for model, build, quantization in builds:
        for engine in engines:
            refused = refusal(model, build, quantization, engine, workload, disk_free_bytes)
            if refused is not None:
                rejections.append(refused)
                continue
            candidate = assess(machine, model, build, quantization, engine, workload, efficiency_of, basis)
            if candidate.fits:
                candidates.append((candidate, model, quantization))
            else:
                rejections.append(_does_not_fit(candidate, machine))
    candidates.sort(key=lambda item: _rank(machine, *item), reverse=True)
    rejections.sort(key=lambda r: (r.shortfall_bytes is None, r.shortfall_bytes or 0, r.model, r.quantization))
    return [candidate for candidate, _, _ in candidates], rejections


def select(candidates: Sequence[Candidate], models: Sequence[str]) -> tuple[str, ...]:
    """Ids of the candidates to install: the best of each model asked for, or the best of all when none was named."""
    if not models:
        return tuple(candidate.id for candidate in candidates[:1])
    first: dict[str, str] = {}
    for candidate in candidates:
        first.setdefault(candidate.model, candidate.id)
    return tuple(first[model] for model in models if model in first)


def planned_accelerator(spec: AcceleratorSpec, index: int) -> Accelerator:
    """A card of the catalog as part of a machine; what drivers report as total wins over the nominal size."""
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
        fp16_flops_per_s=spec.fp16_flops_per_s,
        fp32_flops_per_s=spec.fp32_flops_per_s,
        power_limit_w=spec.power_limit_w,
        pcie=spec.pcie,
    )


def is_resident(candidate: Candidate) -> bool:
    """All layers on accelerators."""
    return candidate.placement.gpu_layers == candidate.placement.layers


def _rank(machine: Machine, candidate: Candidate, model: ModelSpec, quantization: Quantization) -> tuple[float, ...]:
    system = candidate.speed.system_output_tokens_per_s.expected if candidate.speed else 0.0
    per_user = system / candidate.users
    resident = bool(machine.accelerators) and is_resident(candidate)
    usable = resident or per_user >= _READING_TOKENS_PER_S
    return (
        float(model.task is ModelTask.TEXT),
        float(resident),
        float(usable),
        float(model.parameters or 0) if usable else 0.0,
        float(quantization.rank) if usable else 0.0,
        per_user,
        -float(candidate.weights_bytes),
    )


def refusal(
    model: ModelSpec,
    build: ModelBuild,
    quantization: Quantization,
    engine: EngineSpec,
    workload: Workload,
    disk_free_bytes: int | None = None,
) -> Rejection | None:
    """What can be judged without placing anything."""

    def because(
        reason: RejectionReason, message: str, *, shortfall: int | None = None, hint: str | None = None
    ) -> Rejection:
        return Rejection(
            model=model.id,
            quantization=build.quantization,
            engine=engine.id,
            reason=reason,
            shortfall_bytes=shortfall,
            message=message,
            hint=hint,
        )

    if quantization.container not in engine.containers:
        return because(
            RejectionReason.ENGINE_CANNOT_LOAD,
            f"{engine.id} {engine.version} does not load {quantization.container} files",
            hint="--engine ollama" if quantization.container == "gguf" else "--engine vllm",
        )
    if engine.id == "ollama" and build.ollama_tag is None:
        return because(
            RejectionReason.NOT_PUBLISHED,
            "Ollama's library has no tag for this build that is known",
            hint="another --quant, or --engine llamacpp",
        )
    if workload.context_tokens > model.context_tokens_max:
        return because(
            RejectionReason.CONTEXT_TOO_LONG,
            f"{model.id} was trained for {format_tokens(model.context_tokens_max)} tokens of context, "
            f"{format_tokens(workload.context_tokens)} asked for",
            hint=f"--context {model.context_tokens_max}",
        )
    if disk_free_bytes is not None and build.weights_bytes > disk_free_bytes:
        return because(
            RejectionReason.DISK_TOO_SMALL,
            f"the download of {format_bytes(build.weights_bytes)} exceeds the {format_bytes(disk_free_bytes)} "
            "free at the model path",
            shortfall=build.weights_bytes - disk_free_bytes,
        )
    return None


def _spills_into_the_unknown(placement: Placement, estimate: MemoryEstimate) -> bool:
    """Layers would lie in host memory of a size that nobody gave: "fits" would be a guess."""
    spilled = placement.gpu_layers < placement.layers
    return spilled and any(d.device == "host" and d.capacity_bytes is None for d in estimate.devices)


def _does_not_fit(candidate: Candidate, machine: Machine) -> Rejection:
    if _spills_into_the_unknown(candidate.placement, candidate.memory):
        host = next(d for d in candidate.memory.devices if d.device == "host")
        return Rejection(
            model=candidate.model,
            quantization=candidate.quantization,
            engine=candidate.engine,
            reason=RejectionReason.UNKNOWN_HARDWARE,
            message=f"{candidate.placement.gpu_layers} of {candidate.placement.layers} layers fit the accelerators; "
            f"{format_bytes(host.total_bytes)} would lie in host memory, whose size is not known",
            hint="--ram 64GiB",
        )
    worst = min(
        (d for d in candidate.memory.devices if d.headroom_bytes is not None), key=lambda d: d.headroom_bytes or 0
    )
    return Rejection(
        model=candidate.model,
        quantization=candidate.quantization,
        engine=candidate.engine,
        reason=RejectionReason.DOES_NOT_FIT,
        shortfall_bytes=memory.shortfall_bytes(candidate.memory),
        message=f"needs {format_bytes(worst.total_bytes)} on {worst.name}, "
        f"which has {format_bytes(worst.capacity_bytes)}"
        + (f"; {candidate.placement.gpu_layers} of {candidate.placement.layers} layers would be on accelerators"
           if machine.accelerators else ""),
    )  # fmt: skip


def _findings(machine: Machine, model: ModelSpec, candidate: Candidate, workload: Workload) -> list[Finding]:
    findings = []
    placement = candidate.placement
    if machine.accelerators and placement.gpu_layers < placement.layers:
        findings.append(_partial_offload(machine, candidate))
    if candidate.speed is None and model.task is ModelTask.TEXT:
        findings.append(_unknown_speed(machine, placement))
    if any(d.device == "host" and d.capacity_bytes is None for d in candidate.memory.devices):
        findings.append(
            Finding(
                code="host-memory-unknown",
                message="the size of the host's memory is not given; whether its share fits is not judged",
                hint="--ram 64GiB",
            )
        )
    return findings


def _partial_offload(machine: Machine, candidate: Candidate) -> Finding:
    placement = candidate.placement
    cards = [d for d in candidate.memory.devices if d.device != "host"]
    capacity = sum(d.capacity_bytes or 0 for d in cards) or sum(
        machine.pool_of(a).total_bytes or 0 for a in machine.accelerators
    )
    host = next(d for d in candidate.memory.devices if d.device == "host")
    text = (
        f"{candidate.model} {candidate.quantization} does not fit in {format_bytes(capacity)} of VRAM: "
        f"{placement.gpu_layers} of {placement.layers} layers do, {format_bytes(host.total_bytes)} stay in host memory"
    )
    if candidate.speed:
        decode = candidate.speed.decode_tokens_per_s
        text += (
            f"; decode about {format_tokens_per_s(decode.expected)} tokens/s "
            f"({format_tokens_per_s(decode.low)} to {format_tokens_per_s(decode.high)})"
        )
    return Finding(code="partial-offload", message=text)


def _unknown_speed(machine: Machine, placement: Placement) -> Finding:
    if placement.gpu_layers < placement.layers and machine.memory.bandwidth_bytes_per_s is None:
        return Finding(
            code="host-bandwidth-unknown",
            message=f"{placement.layers - placement.gpu_layers} of {placement.layers} layers run from host memory, "
            "whose bandwidth is not known, so no speed is given",
            hint="--memory-platform ddr5-5600-2ch",
        )
    return Finding(
        code="efficiency-unknown",
        message="no measurement of this class of accelerator is in the catalog, so no speed is given",
        hint="provision catalog list hardware",
    )
