"""What a quantization costs, as far as it was measured: on a few models, which is said with every figure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from provision.domain.finding import Finding
from provision.domain.llm import Claim, QualityLoss, QualityMetric


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRange:
    """Smallest and largest value of one metric over the models measured."""

    metric: QualityMetric
    low: float
    high: float
    models: tuple[str, ...]
    """Catalog ids of the models measured."""
    sources: tuple[str, ...]


def loss(quantization: str, metric: QualityMetric, measured: Iterable[QualityLoss]) -> LossRange | None:
    """Range of `metric` over all models on which `quantization` was measured; None where it was not.

    Files with and without importance matrix both count: which of them somebody pulls is not known. The range is of
    these models alone; smaller models lose more (Qwen2.5 0.5B far more), and no figure of another quantization or
    metric stands in for a missing one.
    """
    found = [entry for entry in measured if entry.quantization == quantization and entry.metric is metric]
    if not found:
        return None
    values = [entry.value for entry in found]
    return LossRange(
        metric=metric,
        low=min(values),
        high=max(values),
        models=tuple(dict.fromkeys(entry.model for entry in found)),
        sources=tuple(dict.fromkeys(entry.source for entry in found)),
    )


def losses(quantization: str, measured: Iterable[QualityLoss]) -> tuple[LossRange, ...]:
    """`loss` for every metric that was measured of `quantization`; empty where none was."""
    known = tuple(measured)
    ranges = (loss(quantization, metric, known) for metric in QualityMetric)
    return tuple(found for found in ranges if found is not None)


def judge_quality(claim: Claim, measured: Iterable[QualityLoss]) -> Finding | None:
    """A claim about the quality of quantizations beside how often they choose the same token as 16 bits do, as
    measured; the increase in perplexity where that alone was. None for other claims."""
    if not claim.quality_of:
        return None
    known = tuple(measured)
    told = []
    for name in claim.quality_of:
        same = loss(name, QualityMetric.SAME_TOP_TOKEN_PERCENT, known)
        perplexity = loss(name, QualityMetric.PERPLEXITY_INCREASE_PERCENT, known)
        if same:
            told.append(f"{name} chooses the same top token as 16 bits in {_measured(same, '')}")
        elif perplexity:
            told.append(f"{name} has {_measured(perplexity, '+')} perplexity, its top token was not compared")
        else:
            told.append(f"{name} was not measured")
    return Finding(code="claim-quality", message=f'claimed "{claim.text}": depends on the metric; {"; ".join(told)}')


def _measured(found: LossRange, sign: str) -> str:
    values = dict.fromkeys(f"{value:.1f}" for value in (found.low, found.high))
    return f"{sign}{'-'.join(values)} % ({', '.join(found.models)}; source {', '.join(found.sources)})"
