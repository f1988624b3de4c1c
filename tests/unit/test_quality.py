"""What quantization costs: ranges over what was measured, nothing where nothing was."""

import pytest

from provision.catalog import load_catalog
from provision.domain.llm import Claim, QualityLoss, QualityMetric
from provision.sizing.quality import judge_quality, loss, losses

PERPLEXITY = QualityMetric.PERPLEXITY_INCREASE_PERCENT
SAME_TOKEN = QualityMetric.SAME_TOP_TOKEN_PERCENT


def measured(quantization, model, value, metric=PERPLEXITY, source="table"):
    return QualityLoss(quantization=quantization, metric=metric, model=model, value=value, source=source)


def test_the_range_names_the_models_it_is_of():
    entries = [measured("Q4_K_M", "a", 1.5), measured("Q4_K_M", "b", 4.8, source="other"), measured("Q8_0", "c", 0.1)]
    found = loss("Q4_K_M", PERPLEXITY, entries)
    assert found is not None
    assert (found.low, found.high, found.models, found.sources) == (1.5, 4.8, ("a", "b"), ("table", "other"))


def test_what_was_not_measured_is_unknown_and_not_zero():
    entries = [measured("Q4_K_M", "a", 1.5)]
    assert loss("Q5_K_M", PERPLEXITY, entries) is None
    assert loss("Q4_K_M", SAME_TOKEN, entries) is None
    assert losses("FP8", entries) == ()


def test_each_metric_once():
    entries = [
        measured("Q6_K", "a", 0.4),
        measured("Q6_K", "a", 96.0, SAME_TOKEN),
        measured("Q6_K", "b", 97.5, SAME_TOKEN),
    ]
    assert [(found.metric, found.low, found.high) for found in losses("Q6_K", entries)] == [
        (PERPLEXITY, 0.4, 0.4),
        (SAME_TOKEN, 96.0, 97.5),
    ]


def test_the_article_s_95_percent_does_not_hold_for_q4_k_m():
    found = loss("Q4_K_M", SAME_TOKEN, load_catalog().quality)
    assert found is not None
    assert (found.low, found.high) == (91.901, 94.665)
    assert found.models == ("llama2:7b", "llama3:8b")


@pytest.mark.parametrize("metric", [PERPLEXITY, QualityMetric.KL_DIVERGENCE])
def test_more_bits_lose_less(metric):
    entries = load_catalog().quality
    ladder = [loss(name, metric, entries) for name in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")]
    highs = [found.high for found in ladder if found is not None]
    assert len(highs) == 6
    assert highs == sorted(highs, reverse=True)


def test_a_claim_about_quality_says_what_was_not_measured():
    claim = Claim(text="all is kept", source="s", quality_of=("Q4_K_M", "Q5_K_M", "Q8_0"))
    entries = [measured("Q4_K_M", "a", 91.901, SAME_TOKEN), measured("Q5_K_M", "b", 1.2)]
    told = judge_quality(claim, entries)
    assert told is not None
    assert "Q4_K_M chooses the same top token as 16 bits in 91.9 % (a; source table)" in told.message
    assert "Q5_K_M has +1.2 % (b; source table) perplexity" in told.message
    assert "Q8_0 was not measured" in told.message
    assert judge_quality(Claim(text="fast", source="s"), entries) is None
