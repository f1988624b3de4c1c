"""What a quantization costs, as far as it was measured: on a few models, which is said with every figure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from provision.domain.llm import QualityLoss, QualityMetric


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
