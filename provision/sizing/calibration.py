"""What was measured on this very machine outranks the fit on everybody else's.

A measurement of the same build under the same engine replaces the expectation: its ratio to what was predicted for it
is applied to the workload asked for. Measurements of other builds move the expectation by their mean ratio, drawn
towards 1 as if one more had come out exactly as predicted, and narrow the interval the more builds there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log, sqrt
from statistics import median
from typing import Literal

from provision.domain.measurement import LocalMeasurement
from provision.domain.plan import Basis, Speed, SpeedRange

_RUN_TO_RUN = 0.05
"""Half width of the interval of a figure measured here: careful runs of one thing differ by 3 % in the median."""


def calibrated(
    speed: Speed, model: str, quantization: str, engine: str, measurements: Sequence[LocalMeasurement]
) -> Speed:
    """`speed` of that build under that engine, corrected by what was measured on the same machine.

    Without a usable measurement it comes back as it is. Ceilings stay: nothing is expected above them.
    """
    decode = _corrected(speed.decode_tokens_per_s, "decode", model, quantization, engine, measurements)
    prefill = speed.prefill_tokens_per_s
    if prefill is not None:
        prefill = _corrected(prefill, "prefill", model, quantization, engine, measurements)
    together = speed.system_output_tokens_per_s
    if decode is not speed.decode_tokens_per_s:
        shift = decode.expected / speed.decode_tokens_per_s.expected
        # How far many users scale was not measured: the shift is taken over, the width and the origin are not.
        together = decode if together is speed.decode_tokens_per_s else _scaled(together, shift, 1.0, together.basis)
    ttft = speed.ttft_s
    if ttft is not None and prefill is not None and speed.prefill_tokens_per_s is not None:
        shift = speed.prefill_tokens_per_s.expected / prefill.expected
        ttft = replace(
            ttft,
            expected=max(ttft.expected * shift, ttft.ceiling or 0.0),
            low=max(ttft.low * shift, ttft.ceiling or 0.0),
            high=max(ttft.high * shift, ttft.expected * shift),
            basis=prefill.basis,
        )
    return replace(
        speed,
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        ttft_s=ttft,
        system_output_tokens_per_s=together,
    )


def on_the_same(
    measurements: Sequence[LocalMeasurement], where: Literal["accelerators", "host"] | None
) -> Sequence[LocalMeasurement]:
    """Those that ran where a candidate would: a run on the CPU says nothing of the card beside it. `where` None, for a
    model on both, takes those that do not tell."""
    return [m for m in measurements if m.where is None or m.where == where]


def _corrected(
    value: SpeedRange, measure: str, model: str, quantization: str, engine: str, given: Sequence[LocalMeasurement]
) -> SpeedRange:
    usable = [m for m in given if m.measure == measure and m.tokens_per_s > 0 and m.expected_tokens_per_s > 0]
    same = [m for m in usable if (m.model, m.quantization, m.engine) == (model, quantization, engine)]
    if same:
        ratios = sorted(m.tokens_per_s / m.expected_tokens_per_s for m in same)
        middle = median(ratios)
        low = min(ratios[0] / middle, 1 - _RUN_TO_RUN)
        high = max(ratios[-1] / middle, 1 + _RUN_TO_RUN)
        expected = min(value.expected * middle, value.ceiling or float("inf"))
        return replace(
            value,
            expected=expected,
            low=expected * low,
            high=max(expected, min(expected * high, value.ceiling or float("inf"))),
            basis="measured_here",
        )
    by_build: dict[tuple[str, str], list[float]] = {}
    for m in usable:
        if m.engine == engine:
            ratio = log(m.tokens_per_s / m.expected_tokens_per_s)
            by_build.setdefault((m.model, m.quantization), []).append(ratio)
    if not by_build:
        return value
    # One voice for each build: measuring one again and again says no more of the others.
    others = [median(ratios) for ratios in by_build.values()]
    shift = exp(sum(others) / (len(others) + 1))
    return _scaled(value, shift, 1 / sqrt(1 + len(others)), value.basis)


def _scaled(value: SpeedRange, shift: float, width: float, basis: Basis) -> SpeedRange:
    """Moved by `shift`; `width` below 1 draws the interval towards the expectation (on the logarithm)."""
    limit = value.ceiling or float("inf")
    expected = min(value.expected * shift, limit)
    return replace(
        value,
        expected=expected,
        low=expected * (value.low / value.expected) ** width,
        high=max(expected, min(expected * (value.high / value.expected) ** width, limit)),
        basis=basis,
    )
