"""A measurement held against its prediction and its physical ceiling, and what explains the gap."""

from __future__ import annotations

from provision.domain.finding import Finding
from provision.domain.measurement import BenchResult
from provision.domain.plan import SpeedRange

_CEILING_TOLERANCE_RATIO = 1.05
"""Measured above the ceiling by more than this means that something else was measured."""


def single_stream_tokens_per_s(result: BenchResult) -> float | None:
    """Median decode of the level with one user, or None where no such request finished."""
    for level in result.levels:
        if level.users == 1 and level.decode_tokens_per_s:
            return level.decode_tokens_per_s.p50
    return None


def explain(measured: float, predicted: SpeedRange) -> tuple[Finding, ...]:
    """Where `measured` lies between ceiling and prediction, both for one user; the likely cause where it is outside.

    Codes: `above-ceiling` (the figure cannot be right), `above-prediction`, `as-predicted`, `below-prediction`.
    """
    findings = []
    share = measured / predicted.ceiling if predicted.ceiling else None
    if share is not None and share > _CEILING_TOLERANCE_RATIO:
        return (
            Finding(
                code="above-ceiling",
                message=f"measured {share:.0%} of the ceiling: the size, the bandwidth or the measurement is wrong",
                hint="look for cached prompts, speculative decoding or another model under this name",
            ),
        )
    if share is not None:
        memory = "host memory" if predicted.bound_by == "host_memory" else "the accelerators' memory"
        findings.append(
            Finding(code="share-of-ceiling", message=f"measured is {share:.0%} of what {memory} could stream at best")
        )
    if measured < predicted.low:
        cause = (
            "the CPU computes slower than its memory delivers, or is busy with other work"
            if predicted.bound_by == "host_memory"
            else "look for a power limit, other users of the card, a slow link or layers on the CPU"
        )
        findings.append(Finding(code="below-prediction", message=f"measured below the predicted range: {cause}"))
    elif measured > predicted.high:
        message = "measured above the predicted range: this machine is better than the public average of its class"
        findings.append(Finding(code="above-prediction", message=message))
    else:
        findings.append(Finding(code="as-predicted", message="measured within the predicted range"))
    return tuple(findings)
