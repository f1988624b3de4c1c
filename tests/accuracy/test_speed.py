"""The speed model's accuracy on rows that the fit did not see, and what every prediction must keep."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.accuracy.speed_rows import COLUMNS, predict

np = pytest.importorskip("numpy", reason="the fit needs numpy (development dependency)")

SAMPLE = Path(__file__).parent / "speed_sample.csv"


def sample():
    with SAMPLE.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_row_gets_a_figure_below_its_ceiling_or_a_reason():
    for row, answer in zip(sample(), predict([row | {"tok_per_s": ""} for row in sample()]), strict=True):
        assert tuple(answer) == COLUMNS
        assert answer["id"] == row["id"]
        if answer["reason"]:
            assert answer["expected"] == ""
            continue
        low, expected, high, ceiling = (float(answer[name]) for name in ("low", "expected", "high", "ceiling"))
        assert 0 < low <= expected <= high <= ceiling


def test_predictions_do_not_look_at_who_measured_what():
    rows = sample()
    blind = [row | {"id": str(number), "source": "", "tok_per_s": ""} for number, row in enumerate(rows)]
    figures = [{**answer, "id": ""} for answer in predict(rows)]
    assert figures == [{**answer, "id": ""} for answer in predict(blind)]


@pytest.fixture(scope="module")
def decode():
    """The part of the fit that is about one user's answers, whose factors do not meet those of prompts."""
    from provision.catalog import load_catalog
    from tests.accuracy import fit

    rows = [row for row in fit.read(fit.MEASUREMENTS) if row["metric"] == "decode"]
    problem = fit.Problem(fit.cells_of(rows, load_catalog()))
    return fit, problem, problem.solve(np.ones(len(problem.cells), bool), steps=8)


def test_the_error_on_devices_left_out(decode):
    fit, problem, theta = decode
    predicted = fit.held_out(problem, theta, lambda cell: cell.device, folds=10)
    _, median, p90 = fit.errors_of(problem, predicted, fit.is_clean_dense)
    assert median <= 0.10
    assert p90 <= 0.45  # a few old cards and one maker's largest chips, each alone in its kind
    _, median, _ = fit.errors_of(problem, predicted, lambda c: fit.is_clean_dense(c) and fit.is_modern(c))
    assert median <= 0.07


def test_the_error_and_the_interval_on_sources_left_out(decode):
    fit, problem, theta = decode
    predicted = fit.held_out(problem, theta, fit.pair_of, folds=10)
    _, median, p90 = fit.errors_of(problem, predicted, fit.is_clean_dense)
    assert median <= 0.08
    assert p90 <= 0.25
    _, median, _ = fit.errors_of(problem, predicted, lambda c: fit.is_clean_dense(c) and fit.is_modern(c))
    assert median <= 0.055
    mixture = dict(fit.SUBSETS)["decode, mixture of experts, one GPU"]
    assert fit.errors_of(problem, predicted, mixture)[1] <= 0.17
    assert 0.70 <= fit.coverage_of(problem, predicted, measured=True)["decode"] <= 0.90
