"""What to change when a model does not fit, and whether a published figure can be true."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from provision.domain.finding import Finding
from provision.domain.hardware import AcceleratorSpec, Machine, MemoryKind
from provision.domain.llm import Claim, EngineSpec
from provision.domain.plan import Candidate, CapacityBasis, SpeedRange, Workload
from provision.sizing.arithmetic import decode_arithmetic
from provision.sizing.choice import largest
from provision.sizing.placing import Build, Placed, place
from provision.sizing.planner import FOUR_BIT_RANK, planned_accelerator, predicted
from provision.sizing.remarks import refusal
from provision.sizing.speed import EfficiencyOf, Setup
from provision.units import format_tokens, format_tokens_per_s


def would_fit(
    machine: Machine,
    wanted: Build,
    others: Sequence[Build],
    engine: EngineSpec,
    workload: Workload,
    efficiency_of: EfficiencyOf,
    cards: Sequence[AcceleratorSpec],
    priced: Collection[str],
    basis: CapacityBasis = "total",
) -> list[Finding]:
    """What to change so that everything is on accelerators, for a build that is not: each with an option to type.

    Looked at in turn: a smaller quantization, less context, another model, one larger card of the same vendor.
    `priced` names the cards of which a price is known: those can be bought, those of a laptop or of one country cannot.
    """
    model, build, _ = wanted
    others = [other for other in others if refusal(*other, engine, workload) is None]

    def resident(candidate_build: Build, where: Machine, load: Workload) -> Candidate | None:
        placed = place(where, candidate_build, engine, load, basis)
        if not (placed.fits and placed.resident):
            return None
        return predicted(where, candidate_build, engine, load, placed, efficiency_of)

    findings: list[Finding] = []

    def offer(text: str, hint: str) -> None:
        findings.append(Finding(code="would-fit", message=text, hint=hint))

    same = [b for b in others if b[0].id == model.id and b[1].weights_bytes < build.weights_bytes]
    for smaller in sorted(same, key=lambda b: b[1].weights_bytes, reverse=True):
        if found := resident(smaller, machine, workload):
            offer(f"{model.id} {found.quantization} fits, {_speed_text(found)}", f"--quant {found.quantization}")
            break
    tokens = _shorter_context(lambda c: resident(wanted, machine, replace(workload, context_tokens=c)) is not None,
                              workload.context_tokens)  # fmt: skip
    if tokens:
        offer(
            f"{model.id} {build.quantization} fits with {format_tokens(tokens)} tokens of context",
            f"--context {tokens}",
        )
    smaller_models = [b for b in others if b[0].id != model.id and b[0].task is model.task]

    def order(b: Build) -> tuple[bool, int, int]:
        return b[2].rank >= FOUR_BIT_RANK, b[0].parameters or 0, b[2].rank

    for other in sorted(smaller_models, key=order, reverse=True):
        if (other[0].parameters or 0) <= (model.parameters or 0) and (found := resident(other, machine, workload)):
            offer(
                f"{found.model} {found.quantization} fits, {_speed_text(found)}",
                f"--model {found.model} --quant {found.quantization}",
            )
            break
    for spec, text in _larger(machine, cards, priced, build.weights_bytes):
        if found := resident(wanted, spec, workload):
            offer(f"{text[0]} {model.id} {build.quantization}, {_speed_text(found)}", f'--gpu "{text[1]}"')
            if len(spec.accelerators) == 1:
                break
    return findings


def _larger(
    machine: Machine, cards: Sequence[AcceleratorSpec], priced: Collection[str], weights_bytes: int
) -> Iterator[tuple[Machine, tuple[str, str]]]:
    """`machine` with other cards, the smallest first: twice as many of its own, then one larger of the same vendor.

    With each how it is told, and what to type. Cards that cannot hold the weights are left out.
    """
    own = machine.accelerators[0] if machine.accelerators else None
    by_id = {spec.id: spec for spec in cards}
    spec = by_id.get(own.catalog_id or "") if own else None
    if spec and spec.memory_kind is not MemoryKind.UNIFIED and all(a.name == spec.name for a in machine.accelerators):
        count = 2 * len(machine.accelerators)
        doubled = replace(machine, accelerators=tuple(planned_accelerator(spec, i) for i in range(count)))
        yield doubled, (f"{count} {spec.name} hold", f"{count}x {spec.id}")
    vendors = {a.vendor for a in machine.accelerators}
    sized = [
        c
        for c in cards
        if (c.memory_bytes or 0) >= weights_bytes and c.vendor in vendors and c.memory_kind is not MemoryKind.UNIFIED
    ]
    for one in sorted(
        sized, key=lambda c: (c.memory_bytes or 0, c.id not in priced, -(c.memory_bandwidth_bytes_per_s or 0))
    ):
        yield (
            replace(machine, accelerators=(planned_accelerator(one, 0),)),
            (f"one {one.name} holds", one.id),
        )


def resident_with_less_context(
    machine: Machine,
    build: Build,
    engine: EngineSpec,
    workload: Workload,
    efficiency_of: EfficiencyOf,
    basis: CapacityBasis = "total",
) -> Candidate | None:
    """`build` at the longest context below that of `workload`, in steps of 1,024, with which everything is on
    accelerators; None where no such context of 2,048 tokens or more exists."""

    def placed(tokens: int) -> Placed:
        return place(machine, build, engine, replace(workload, context_tokens=tokens), basis)

    def holds(tokens: int) -> bool:
        found = placed(tokens)
        return found.fits and found.resident

    tokens = _shorter_context(holds, workload.context_tokens)
    if tokens is None:
        return None
    load = replace(workload, context_tokens=tokens)
    return predicted(machine, build, engine, load, placed(tokens), efficiency_of)


def judge_claim(
    claim: Claim, computed: Candidate, setup: Setup | None, workload: Workload, resident: Candidate | None = None
) -> Finding | None:
    """A published single-stream figure against what is computed for the same build on the same hardware.

    `setup` is what the computed speed was worked out from; with it the arithmetic is told. `resident` is the same build
    with a shorter context where `computed` spills and that one does not: a figure that only the spill explains is not
    what the hardware gives.
    """
    if claim.claimed_tokens_per_s is None or computed.speed is None:
        return None
    decode = computed.speed.decode_tokens_per_s
    whole = resident.speed.decode_tokens_per_s if resident is not None and resident.speed is not None else None
    claimed = claim.claimed_tokens_per_s
    if decode.ceiling is not None and claimed > decode.ceiling:
        verdict = "impossible for one user"
    elif claimed > decode.high:
        verdict = "not likely"
    elif claimed < decode.low:
        verdict = "slower than it should be"
    elif whole is not None and claimed < whole.low:
        verdict = "true only of a spill, slower than it should be"
    else:
        verdict = "plausible"
    told = ""
    if setup is not None:
        told = "; " + decode_arithmetic(setup, computed.placement, workload.mean_depth_tokens, claimed)
    if whole is not None and resident is not None:
        told += f"; with {format_tokens(resident.context_tokens)} tokens of context everything is on the GPU: computed "
        told += _range_text(whole) + (", so the claim describes a spill" if claimed < whole.low else "")
    return Finding(
        code="claim",
        message=f"claimed {format_tokens_per_s(claimed)} tokens/s for {computed.model} {computed.quantization}: "
        f"{verdict}; computed {_range_text(decode)}{told}",
    )


def _range_text(found: SpeedRange) -> str:
    low, high = format_tokens_per_s(found.low), format_tokens_per_s(found.high)
    return f"{format_tokens_per_s(found.expected)} ({low}-{high})"


def _speed_text(candidate: Candidate) -> str:
    if candidate.speed is None:
        return "at a speed that is not known"
    return f"about {format_tokens_per_s(candidate.speed.decode_tokens_per_s.expected)} tokens/s"


def _shorter_context(holds: Callable[[int], bool], limit: int) -> int | None:
    """Most tokens below `limit`, in steps of 1,024, for which `holds`; None where not even 2,048 do."""
    high = (limit - 1) // 1024
    if high < 2 or not holds(2048):
        return None
    return largest(lambda steps: holds(steps * 1024), 2, high) * 1024
