"""The restated formulas give what the tools themselves gave when they were run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.accuracy import peer_formulas as peers

LLAMA_8B = peers.Facts(
    quantization="Q4_K_M", bandwidth_bytes_per_s=1008e9, vendor="nvidia", weights_bytes=4.92e9, parameters=8.03e9,
    layers=32, hidden=4096, heads=32, kv_heads=8, key_dim=128, value_dim=128, vocabulary=128_256,
)  # fmt: skip
QWEN_32B = replace(LLAMA_8B, weights_bytes=19.85e9, parameters=32.76e9, layers=64, hidden=5120, heads=40)
F16 = replace(LLAMA_8B, quantization="F16", weights_bytes=16.06e9)


@pytest.mark.parametrize(
    ("formula", "facts", "printed"),
    [
        (peers.llmfit_speed, LLAMA_8B, 138),
        (peers.llmfit_speed, F16, 34.5),
        (peers.llmfit_speed, replace(LLAMA_8B, bandwidth_bytes_per_s=672.3e9), 92.1),
        (peers.llmfit_speed, QWEN_32B, 33.8),
        (peers.llmfit_speed, replace(QWEN_32B, quantization="Q5_K_M"), 27.1),
        (peers.whichllm_speed, LLAMA_8B, 113),
        (peers.whichllm_speed, F16, 25.2),
        (peers.whichllm_speed, replace(F16, bandwidth_bytes_per_s=672.3e9, gpu_share=0.95), 7.5),
        (peers.ggufit_speed, LLAMA_8B, 180),
        (peers.ggufit_speed, F16, 53.9),
        (peers.ggufit_speed, QWEN_32B, 44.0),
        (peers.fitlab_speed, LLAMA_8B, 129),
    ],
)
def test_speeds_are_those_that_the_tools_printed(formula, facts, printed):
    assert formula(facts) == pytest.approx(printed, rel=0.01)


def test_whichllm_reads_no_less_than_a_quarter_of_a_mixture_on_a_fast_card():
    lite = replace(
        LLAMA_8B, is_moe=True, weights_bytes=10.36e9, parameters=15.7e9, active_parameters=2.4e9,
        bandwidth_bytes_per_s=672.3e9,
    )  # fmt: skip
    assert peers.whichllm_speed(lite) == pytest.approx(234, rel=0.02)


def test_llmfit_adds_the_two_sides_of_a_split():
    split = replace(QWEN_32B, bandwidth_bytes_per_s=672.3e9, gpu_share=0.8, host_bandwidth_bytes_per_s=70e9)
    weights = 32.76e9 * 0.5
    assert 1 / peers.llmfit_speed(split) == pytest.approx(weights * 0.8 / (672.3e9 * 0.55) + weights * 0.2 / 70e9)


def test_memory_of_an_8b_at_8k_is_what_the_tools_print():
    at_8k = replace(LLAMA_8B, context_tokens=8192)
    assert peers.llmfit_memory(at_8k) == pytest.approx(8.03e9 * 0.58 + 1.0737e9 + 0.5e9, rel=1e-3)
    assert peers.ollama_memory(at_8k) == pytest.approx(4.92e9 + 1.0737e9, rel=1e-3)
    assert peers.whichllm_memory(at_8k) == pytest.approx(4.92e9 + 0.2357e9 + 0.4e9 + 0.642e9 + 0.3e9 + 0.5e9, rel=1e-2)
    thirty_two = replace(at_8k, parameters=32.76e9)
    cache = peers.localdeploy_memory(thirty_two) - peers.localdeploy_memory(replace(thirty_two, context_tokens=0))
    assert cache == pytest.approx(18.4e9, rel=0.01)


@pytest.mark.parametrize("formula", [*peers.SPEED.values(), *peers.MEMORY.values()])
def test_what_is_not_known_is_not_guessed(formula):
    nothing = peers.Facts(quantization="Q4_K_M", bandwidth_bytes_per_s=1e12, vendor="nvidia")
    assert formula(nothing) is None


def test_names_of_quantizations_that_no_table_has_fall_to_their_like():
    dynamic = replace(LLAMA_8B, quantization="UD-Q4_K_XL")
    assert peers.fitlab_speed(dynamic) == peers.fitlab_speed(LLAMA_8B)
    assert peers.llmfit_speed(replace(F16, quantization="BF16")) == peers.llmfit_speed(F16)
