"""Many users at once: one step gives each of them a token, the weights are read once for all.

Each further user costs the reading of an own cache, own arithmetic, some handling, and in a mixture of experts the
further experts that its tokens need (expected number of distinct ones). An engine admits as many sequences as it has
slots (Ollama's parallel, llama.cpp's -np) or as its cache holds (vLLM); who comes later waits.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from provision.domain.plan import BoundBy, SpeedRange

if TYPE_CHECKING:
    from provision.sizing.speed import Setup


def output_tokens_per_s(setup: Setup, depth_tokens: float, users: float, slots: float | None = None) -> float:
    """All users together while all are decoding; beyond `slots` nothing is gained."""
    together = min(users, slots) if slots else users
    return together / setup.step_s(depth_tokens, together)


def end_to_end_tokens_per_s(
    setup: Setup, prompt_tokens: float, output_tokens: float, users: float = 1.0, slots: float | None = None
) -> float | None:
    """Output tokens over the whole time, prompts included: all of a batch read their prompts, then decode together."""
    together = min(users, slots) if slots else users
    prompts = setup.prompt_s(max(1.0, prompt_tokens), prompts=together)
    if prompts is None:
        return None
    decode = output_tokens * setup.step_s(prompt_tokens + output_tokens / 2, together)
    return together * output_tokens / (prompts + decode)


def system_output(
    setup: Setup, decode: SpeedRange, prefill: SpeedRange | None, depth_tokens: float, users: int
) -> SpeedRange:
    """Output of all users together, decoding in one batch."""
    if users == 1:
        return decode
    limit_s = setup.limit_s(depth_tokens, users)
    if prefill and prefill.ceiling:
        limit_s = max(limit_s, users / prefill.ceiling)
    ceiling = users / limit_s
    most = min(users / setup.step_s(depth_tokens, users), ceiling)
    if prefill is None:
        # How much arithmetic a batch costs is not known: between no gain at all and all that memory allows.
        expected = max(decode.expected, sqrt(decode.expected * most))
        return _range(expected, min(decode.low, expected), max(most, expected), ceiling, decode)
    interval = setup.intervals["together"]
    bound: BoundBy = decode.bound_by
    if setup.step_s(depth_tokens, users) > 2 * setup.step_s(depth_tokens):
        bound = "compute"
    return _range(most, most * interval.low_ratio, most * interval.high_ratio, ceiling, decode, bound)


def _range(
    expected: float, low: float, high: float, ceiling: float, decode: SpeedRange, bound: BoundBy | None = None
) -> SpeedRange:
    expected = min(expected, ceiling)
    return SpeedRange(
        expected=expected,
        low=min(low, expected),
        high=max(min(high, ceiling), expected),
        ceiling=ceiling,
        basis=decode.basis,
        bound_by=bound or decode.bound_by,
    )
