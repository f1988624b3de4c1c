"""Draft-model speculation, as an estimate: what a small model that guesses ahead may bring, from published formulas.

A round: the draft model decodes `draft_tokens` tokens one after the other, the model checks them all in one pass. With
an acceptance rate a (the chance that a drafted token is taken, given that those before it were) a round gives

    (1 - a^(k+1)) / (1 - a)    tokens, for k drafted

(Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023, equation 1). The pass
over k + 1 tokens streams the weights once, which is why it pays; it costs the arithmetic of k further tokens, and in a
mixture of experts the further experts that they need. Left out: sampling, drafts that stop early, several users (whose
batches use the same arithmetic: with many the gain shrinks and turns).

The acceptance rate is the text's and the pair's, not the hardware's. Runs that were published with llama.cpp come to
0.76 (36 % of 8 drafted were taken, pull request 2926), 0.86 (34 % of 16, pull request 10455) and 0.89 (72 % of 5, issue
5877); free text and pairs of different makers fall below. So the range is wide, and the result never more than an
estimate.
"""

from __future__ import annotations

from provision.domain.plan import Candidate, Speculation, SpeedRange
from provision.sizing.demand import traffic
from provision.sizing.placing import Build

ACCEPTANCE_LOW, ACCEPTANCE, ACCEPTANCE_HIGH = 0.6, 0.75, 0.9

VOCABULARY_DIFFERENCE_MAX = 128
"""llama.cpp takes a draft whose vocabulary differs by no more tokens (common/speculative.cpp)."""


def tokens_per_round(acceptance: float, draft_tokens: int) -> float:
    """Expected tokens that one round gives, the model's own one included: from 1 to `draft_tokens` + 1."""
    if acceptance >= 1:
        return draft_tokens + 1.0
    return float((1 - acceptance ** (draft_tokens + 1)) / (1 - acceptance))


def speedup(acceptance: float, draft_tokens: int, draft_cost: float, verify_cost: float = 1.0) -> float:
    """How many times faster than without a draft.

    `draft_cost` is one step of the draft, `verify_cost` the pass over all drafted tokens, both in steps of the model
    alone. Below 1 where the draft costs more than it brings.
    """
    return tokens_per_round(acceptance, draft_tokens) / (draft_tokens * draft_cost + verify_cost)


def speculate(build: Build, target: Candidate, draft: Candidate, draft_tokens: int) -> Speculation | None:
    """What `draft` brings to one user of `target`, both placed side by side; None where a speed is not known."""
    if target.speed is None or draft.speed is None:
        return None
    alone = target.speed.decode_tokens_per_s
    draft_cost = alone.expected / draft.speed.decode_tokens_per_s.expected
    # The further experts of k + 1 tokens that go their own ways: at most, because neighbours often share.
    moved = traffic(*build)
    verify_cost = moved.weights_bytes(draft_tokens + 1) / moved.weights_bytes()
    prefill = target.speed.prefill_tokens_per_s
    if prefill is not None:
        verify_cost += draft_tokens * alone.expected / prefill.expected
    low, middle, high = (
        speedup(acceptance, draft_tokens, draft_cost, verify_cost)
        for acceptance in (ACCEPTANCE_LOW, ACCEPTANCE, ACCEPTANCE_HIGH)
    )
    return Speculation(
        draft_model=draft.model,
        draft_quantization=draft.quantization,
        draft_tokens=draft_tokens,
        acceptance_low=ACCEPTANCE_LOW,
        acceptance_high=ACCEPTANCE_HIGH,
        speedup_low=low,
        speedup_expected=middle,
        speedup_high=high,
        decode_tokens_per_s=SpeedRange(
            expected=alone.expected * middle,
            low=min(alone.low * low, alone.expected * middle),
            high=max(alone.high * high, alone.expected * middle),
            ceiling=None if alone.ceiling is None else alone.ceiling * (draft_tokens + 1),
            basis="computed",
            bound_by=alone.bound_by,
        ),
    )
