"""Our estimates beside those of the installed llmfit, on ten published measurements."""

from __future__ import annotations

import pytest

from tests.accuracy.llmfit_cases import CASES, Unavailable, llmfit_tokens_per_s
from tests.accuracy.scoring import errors
from tests.helpers import run_cli


def _ours(case) -> dict:
    document = run_cli(
        "estimate", case.models[1], "--quant", case.quantization, "--gpu", case.card, "--ram", "64GiB",
        "--memory-platform", "ddr5-5600-2ch", "--engine", "llamacpp", "--context", "8k",
        "--prompt-tokens", "1", "--output-tokens", "2048", "--json",
    ).json  # fmt: skip
    (answer,) = document["data"]["cases"]
    return answer["speed"]["decode_tokens_per_s"]


def test_our_error_is_smaller_than_that_of_the_installed_llmfit(tmp_path):
    ours, theirs, inside = [], [], 0
    print(f"\n{'card':<16} {'model':<20} {'quant':<7} {'measured':>8} {'ours':>7}  {'80 % interval':<15} {'llmfit':>7}")
    for case in CASES:
        try:
            their = llmfit_tokens_per_s(case, tmp_path)
        except Unavailable as reason:
            pytest.skip(str(reason))
        our = _ours(case)
        ours.append((our["expected"], case.measured))
        theirs.append((their, case.measured))
        inside += our["low"] <= case.measured <= our["high"]
        interval = f"{our['low']:.1f}-{our['high']:.1f}"
        print(
            f"{case.card:<16} {case.models[1]:<20} {case.quantization:<7} {case.measured:8.1f} {our['expected']:7.1f}  "
            f"{interval:<15} {their:7.1f}"
        )
    our_errors, their_errors = errors(ours), errors(theirs)
    print(
        f"median error: ours {our_errors.mdape:.1%}, llmfit {their_errors.mdape:.1%}; {inside} of {len(CASES)} inside"
    )
    assert our_errors.mdape < their_errors.mdape
    assert our_errors.p90 < their_errors.p90
