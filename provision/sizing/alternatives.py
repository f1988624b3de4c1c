"""What to change when a model does not fit, and whether a published figure can be true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from provision.domain.finding import Finding
from provision.domain.hardware import AcceleratorSpec, Machine, MemoryKind
from provision.domain.llm import Claim, EngineSpec
from provision.domain.plan import Candidate, CapacityBasis, Workload
from provision.sizing.placing import Build
from provision.sizing.planner import assess, is_resident, planned_accelerator
from provision.sizing.speed import EfficiencyOf
from provision.units import format_tokens, format_tokens_per_s


def would_fit(
    machine: Machine,
    wanted: Build,
    others: Sequence[Build],
    engine: EngineSpec,
    workload: Workload,
    efficiency_of: EfficiencyOf,
    cards: Sequence[AcceleratorSpec],
    basis: CapacityBasis = "total",
) -> list[Finding]:
    """What to change so that everything is on accelerators, for a build that is not: each with an option to type.

    Looked at in turn: a smaller quantization, less context, another model, one larger card of the same vendor.
    """
    model, build, _ = wanted

    def resident(candidate_build: Build, where: Machine, load: Workload) -> Candidate | None:
        candidate = assess(where, *candidate_build, engine, load, efficiency_of, basis)
        return candidate if candidate.fits and is_resident(candidate) else None

    findings: list[Finding] = []

    def offer(text: str, hint: str) -> None:
        findings.append(Finding(code="would-fit", message=text, hint=hint))

    same = [b for b in others if b[0].id == model.id and b[1].weights_bytes < build.weights_bytes]
    for smaller in sorted(same, key=lambda b: b[1].weights_bytes, reverse=True):
        if found := resident(smaller, machine, workload):
            offer(f"{model.id} {found.quantization} fits, {_speed_text(found)}", f"--quant {found.quantization}")
            break
    tokens = _largest_context(lambda c: resident(wanted, machine, replace(workload, context_tokens=c)) is not None,
                              workload.context_tokens)  # fmt: skip
    if tokens:
        offer(
            f"{model.id} {build.quantization} fits with {format_tokens(tokens)} tokens of context",
            f"--context {tokens}",
        )
    smaller_models = [b for b in others if b[0].id != model.id and b[0].task is model.task]
    for other in sorted(smaller_models, key=lambda b: (b[0].parameters or 0, b[2].rank), reverse=True):
        if (found := resident(other, machine, workload)) and (other[0].parameters or 0) <= (model.parameters or 0):
            offer(
                f"{found.model} {found.quantization} fits, {_speed_text(found)}",
                f"--model {found.model} --quant {found.quantization}",
            )
            break
    vendors = {a.vendor for a in machine.accelerators}
    sized = [c for c in cards if c.memory_bytes and c.vendor in vendors and c.memory_kind is not MemoryKind.UNIFIED]
    for spec in sorted(sized, key=lambda c: (c.memory_bytes or 0, -(c.memory_bandwidth_bytes_per_s or 0))):
        alone = replace(machine, accelerators=(planned_accelerator(spec, 0),))
        if found := resident(wanted, alone, workload):
            offer(f"one {spec.name} holds {model.id} {build.quantization}, {_speed_text(found)}", f'--gpu "{spec.id}"')
            break
    return findings


def judge_claim(claim: Claim, computed: Candidate) -> Finding | None:
    """A published single-stream figure against what is computed for the same build on the same hardware."""
    if claim.claimed_tokens_per_s is None or computed.speed is None:
        return None
    decode = computed.speed.decode_tokens_per_s
    claimed = claim.claimed_tokens_per_s
    if decode.ceiling is not None and claimed > decode.ceiling:
        verdict = "impossible for one user"
    elif claimed > decode.high:
        verdict = "not likely"
    elif claimed >= decode.low:
        verdict = "plausible"
    else:
        verdict = "slower than it should be"
    spilled = "" if is_resident(computed) else (
        f", {computed.placement.gpu_layers} of {computed.placement.layers} layers on the GPU"
    )  # fmt: skip
    return Finding(
        code="claim",
        message=f"claimed {format_tokens_per_s(claimed)} tokens/s for {computed.model} {computed.quantization}: "
        f"{verdict}; computed {format_tokens_per_s(decode.expected)} ({format_tokens_per_s(decode.low)}-"
        f"{format_tokens_per_s(decode.high)}), ceiling {format_tokens_per_s(decode.ceiling)}{spilled}",
    )


def _speed_text(candidate: Candidate) -> str:
    if candidate.speed is None:
        return "at a speed that is not known"
    return f"about {format_tokens_per_s(candidate.speed.decode_tokens_per_s.expected)} tokens/s"


def _largest_context(holds: Callable[[int], bool], limit: int) -> int | None:
    """Most tokens below `limit`, in steps of 1,024, for which `holds`; None where not even 2,048 do."""
    low, high = 2, limit // 1024
    if high <= low or not holds(low * 1024):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle * 1024) else (low, middle)
    return low * 1024
