"""What is to be said of a candidate, and why a build is none: findings and typed rejections, each with its bytes."""

from __future__ import annotations

from collections.abc import Sequence

from provision.domain.finding import Finding
from provision.domain.hardware import Machine
from provision.domain.llm import EngineSpec, ModelBuild, ModelSpec, ModelTask, Quantization
from provision.domain.plan import (
    Candidate,
    CapacityBasis,
    JointPlan,
    Placement,
    Rejection,
    RejectionReason,
    Workload,
)
from provision.sizing import memory, vllm
from provision.sizing.engine_policy import default_context_tokens
from provision.sizing.placing import Build, is_resident, place, spills_into_the_unknown
from provision.units import format_bytes, format_tokens, format_tokens_per_s


def refusal(
    model: ModelSpec,
    build: ModelBuild,
    quantization: Quantization,
    engine: EngineSpec,
    workload: Workload,
    disk_free_bytes: int | None = None,
) -> Rejection | None:
    """What can be judged without placing anything."""

    if quantization.container not in engine.containers:
        return _because(
            model,
            build,
            engine,
            RejectionReason.ENGINE_CANNOT_LOAD,
            f"{engine.id} {engine.version} does not load {quantization.container} files",
            hint="--engine ollama" if quantization.container == "gguf" else "--engine vllm",
        )
    if workload.kv_cache_type not in engine.kv_cache_types:
        return _because(
            model,
            build,
            engine,
            RejectionReason.ENGINE_CANNOT_LOAD,
            f"{engine.id} {engine.version} has no {workload.kv_cache_type} KV cache",
            hint=f"--kv-cache {engine.kv_cache_types[-1]}",
        )
    if engine.id == "ollama" and build.ollama_tag is None:
        return _because(
            model,
            build,
            engine,
            RejectionReason.NOT_PUBLISHED,
            "Ollama's library has no tag for this build that is known",
            hint="another --quant, or --engine llamacpp",
        )
    # Embedding models are sized for what they can take; requests are cut to it.
    if workload.context_tokens > model.context_tokens_max and model.task is not ModelTask.EMBEDDING:
        return _because(
            model,
            build,
            engine,
            RejectionReason.CONTEXT_TOO_LONG,
            f"{model.id} was trained for {format_tokens(model.context_tokens_max)} tokens of context, "
            f"{format_tokens(workload.context_tokens)} asked for",
            hint=f"--context {model.context_tokens_max}",
        )
    if disk_free_bytes is not None and build.weights_bytes > disk_free_bytes:
        return _because(
            model,
            build,
            engine,
            RejectionReason.DISK_TOO_SMALL,
            f"the download of {format_bytes(build.weights_bytes)} exceeds the {format_bytes(disk_free_bytes)} "
            "free at the model path",
            shortfall=build.weights_bytes - disk_free_bytes,
        )
    return None


def _because(
    model: ModelSpec,
    build: ModelBuild,
    engine: EngineSpec,
    reason: RejectionReason,
    message: str,
    *,
    shortfall: int | None = None,
    hint: str | None = None,
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


def does_not_fit(machine: Machine, candidate: Candidate, engine: EngineSpec, workload: Workload) -> Rejection:
    """Why `candidate` is none, with the bytes that are missing."""
    placement = candidate.placement

    def because(
        reason: RejectionReason, message: str, *, shortfall: int | None = None, hint: str | None = None
    ) -> Rejection:
        return Rejection(
            model=candidate.model,
            quantization=candidate.quantization,
            engine=candidate.engine,
            reason=reason,
            shortfall_bytes=shortfall,
            message=message,
            hint=hint,
        )

    if spills_into_the_unknown(placement, candidate.memory):
        host = next(d for d in candidate.memory.devices if d.device == "host")
        return because(
            RejectionReason.UNKNOWN_HARDWARE,
            f"{placement.gpu_layers} of {placement.layers} layers fit the accelerators; "
            f"{format_bytes(host.total_bytes)} would lie in host memory, whose size is not known",
            hint="--ram 64GiB",
        )
    missing = memory.shortfall_bytes(candidate.memory)
    if engine.paged is not None:
        message, hint = vllm.refusal_text(engine, candidate, workload)
        return because(RejectionReason.DOES_NOT_FIT, message, shortfall=missing, hint=hint)
    worst = min(
        (d for d in candidate.memory.devices if d.headroom_bytes is not None), key=lambda d: d.headroom_bytes or 0
    )
    layers = f"; {placement.gpu_layers} of {placement.layers} layers would be on accelerators"
    if placement.expert_layers_on_host:
        layers += f", the experts of {placement.expert_layers_on_host} of them not"
    return because(
        RejectionReason.DOES_NOT_FIT,
        f"needs {format_bytes(worst.total_bytes)} on {worst.name}, which has {format_bytes(worst.capacity_bytes)}"
        + (layers if machine.accelerators else ""),
        shortfall=missing,
    )


def findings(
    machine: Machine, model: ModelSpec, candidate: Candidate, engine: EngineSpec, workload: Workload
) -> tuple[Finding, ...]:
    """Remarks on one candidate that need no further placement."""
    found = []
    if machine.accelerators and engine.partial_offload and not is_resident(candidate.placement):
        found.append(_partial_offload(machine, candidate))
    if candidate.slots is not None and model.task is ModelTask.TEXT:
        found.append(_serial(model, candidate, engine))
    if candidate.context_tokens < workload.context_tokens:
        found.append(
            Finding(
                code="context-capped",
                message=f"{model.id} takes {format_tokens(candidate.context_tokens)} tokens at most; "
                "longer inputs must be split",
            )
        )
    if candidate.speed is None and model.task is ModelTask.TEXT:
        found.append(_unknown_speed(machine, candidate.placement))
    if any(d.device == "host" and d.capacity_bytes is None for d in candidate.memory.devices):
        found.append(
            Finding(
                code="host-memory-unknown",
                message="the size of the host's memory is not given; whether its share fits is not judged",
                hint="--ram 64GiB",
            )
        )
    if engine.paged is not None:
        found += vllm.findings(machine, engine, candidate, workload)
    return tuple(found)


def default_context_spills(
    machine: Machine,
    build: Build,
    engine: EngineSpec,
    workload: Workload,
    placement: Placement,
    basis: CapacityBasis = "total",
) -> Finding | None:
    """Whether a model that stays on the accelerators as asked (`placement`) would not with the context that the engine
    takes by itself; None where it would, and where the engine takes no longer one."""
    model, built, _ = build
    tokens = default_context_tokens(engine, machine, model)
    if not machine.accelerators or tokens is None or tokens <= workload.context_tokens or not is_resident(placement):
        return None
    own = Workload(context_tokens=tokens, users=engine.default_slots)
    spilled = place(machine, build, engine, own, basis)
    if spilled.resident:
        return None
    total = sum(machine.usable_pool_of(card).total_bytes or 0 for card in machine.accelerators)
    cache = sum(d.kv_cache_bytes + d.state_bytes for d in spilled.memory.devices)
    left = f"{spilled.placement.layers - spilled.placement.gpu_layers}"
    if spilled.placement.expert_layers_on_host:
        left = f"the experts of {spilled.placement.expert_layers_on_host}"
    return Finding(
        code="engine-default-spills",
        message=f"left to itself, {engine.id} {engine.version} takes {format_tokens(tokens)} tokens of context on "
        f"{format_bytes(total)} of VRAM: {format_bytes(built.weights_bytes)} of weights and {format_bytes(cache)} of "
        f"KV cache are {format_bytes(built.weights_bytes + cache)}, so {left} of "
        f"{spilled.placement.layers} layers of {model.id} {built.quantization} would run from host memory; "
        f"with {format_tokens(workload.context_tokens)} all stay on the accelerators",
        hint=f"OLLAMA_CONTEXT_LENGTH={workload.context_tokens} ollama serve (provision apply sets it)",
    )


def not_together(plan: JointPlan, engine: EngineSpec, machine: Machine, better: Sequence[Build] | None) -> Finding:
    """Why several models are not all loaded at once, and the builds with which they would be."""
    names = [f"{c.model} {c.quantization}" for c in plan.candidates]
    if plan.evicted:
        gone = " and ".join(name for name, c in zip(names, plan.candidates, strict=True) if c.id in plan.evicted)
        text = (
            f"{engine.id} {engine.version} does not keep {', '.join(names)} loaded at once: it loads a further model "
            f"only where it predicts at most {engine.predicted_share or 1:.0%} of what is free, and unloads {gone}; "
            "each change of model then costs a load"
        )
    else:
        spilled = [
            f"{name}: {on_accelerators(c.placement)}"
            for name, c in zip(names, plan.candidates, strict=True)
            if not is_resident(c.placement)
        ]
        where = "on the accelerators" if machine.accelerators else "in memory"
        told = f" ({'; '.join(spilled)})" if spilled and machine.accelerators else ""
        text = f"{', '.join(names)} do not all stay {where} at once{told}"
    if better is None:
        return Finding(
            code="not-together", message=text, hint="fewer or smaller models, --context 4k or a larger --gpu"
        )
    builds = ", ".join(f"{model.id} {built.quantization}" for model, built, _ in better)
    return Finding(code="not-together", message=f"{text}; {builds} do", hint="--together")


def _serial(model: ModelSpec, candidate: Candidate, engine: EngineSpec) -> Finding:
    rate = ""
    if candidate.speed:
        alone = candidate.speed.decode_tokens_per_s.expected
        rate = f": {candidate.users} users share the {format_tokens_per_s(alone)} tokens/s of one"
    return Finding(
        code="one-at-a-time",
        message=f"{engine.id} {engine.version} serves {model.architecture} models one request at a time{rate}; "
        "memory and speed are of one slot",
        hint="--engine llamacpp",
    )


def on_accelerators(placement: Placement) -> str:
    """`48 of 64 layers do`, or which of a mixture's experts do not."""
    if placement.expert_layers_on_host and placement.gpu_layers == placement.layers:
        return f"all but the experts of {placement.expert_layers_on_host} of {placement.layers} layers do"
    return f"{placement.gpu_layers} of {placement.layers} layers do"


def _partial_offload(machine: Machine, candidate: Candidate) -> Finding:
    placement = candidate.placement
    cards = [d for d in candidate.memory.devices if d.device != "host"]
    capacity = sum(d.capacity_bytes or 0 for d in cards) or sum(
        machine.usable_pool_of(a).total_bytes or 0 for a in machine.accelerators
    )
    host = next(d for d in candidate.memory.devices if d.device == "host")
    text = (
        f"{candidate.model} {candidate.quantization} does not fit in {format_bytes(capacity)} of VRAM: "
        f"{on_accelerators(placement)}, {format_bytes(host.total_bytes)} stay in host memory"
    )
    if candidate.speed:
        decode = candidate.speed.decode_tokens_per_s
        text += (
            f"; decode about {format_tokens_per_s(decode.expected)} tokens/s "
            f"({format_tokens_per_s(decode.low)} to {format_tokens_per_s(decode.high)})"
        )
    return Finding(code="partial-offload", message=text)


def _unknown_speed(machine: Machine, placement: Placement) -> Finding:
    if not is_resident(placement) and machine.memory.bandwidth_bytes_per_s is None:
        left = f"{placement.layers - placement.gpu_layers}"
        if placement.expert_layers_on_host:
            left = f"the experts of {placement.expert_layers_on_host}"
        return Finding(
            code="host-bandwidth-unknown",
            message=f"{left} of {placement.layers} layers run from host memory, whose bandwidth is not known, "
            "so no speed is given",
            hint="--memory-platform ddr5-5600-2ch",
        )
    return Finding(
        code="efficiency-unknown",
        message="no measurement of this class of accelerator is in the catalog, so no speed is given",
        hint="provision catalog list hardware",
    )
