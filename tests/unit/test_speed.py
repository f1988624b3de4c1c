"""The speed model: what terms a step is made of, whose factors apply, and what a measurement of one's own changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.domain.llm import Efficiency, Experts, SpeedInterval
from provision.domain.measurement import LocalMeasurement
from provision.domain.plan import Placement, Workload
from provision.sizing.calibration import calibrated
from provision.sizing.concurrency import output_tokens_per_s
from provision.sizing.demand import traffic
from provision.sizing.efficiency import Kernel, efficiency_lookup, family_of, interval_groups
from provision.sizing.planner import assess
from provision.sizing.speed import link_bytes_per_s, prepare
from tests.unit.records import F16, LLAMA_8B, LLAMA_F16, LLAMA_Q4, LLAMACPP, Q4_K_M, card, efficiency_of, machine

KERNEL = Kernel("nvidia-gddr", "nvidia", "ada", "nvidia-rtx-4090", "llamacpp", "cuda", "q45")


def table(term, scope, **factors):
    keys = {key.replace("_", "-"): value for key, value in factors.items()}
    return Efficiency(term=term, scope=scope, factors=keys, samples=dict.fromkeys(keys, 5), source="test")


CLASS = table("memory", "device_class", nvidia_gddr=1.2)


def test_factors_of_all_scopes_that_know_the_kernel_multiply():
    model = efficiency_lookup(
        [CLASS, table("memory", "architecture", ada=1.1, ampere=5.0), table("memory", "engine", vllm=9)]
    )
    assert model(KERNEL).by_term["memory"] == pytest.approx(1.32)


def test_a_joined_scope_needs_every_part():
    joined = Efficiency(
        term="memory", scope="architecture+family", factors={"ada+q45": 2.0}, samples={"ada+q45": 1}, source="test"
    )
    model = efficiency_lookup([CLASS, joined])
    assert model(KERNEL).by_term["memory"] == pytest.approx(2.4)
    assert model(replace(KERNEL, family="f16")).by_term["memory"] == pytest.approx(1.2)


def test_wider_buses_are_harder_to_fill():
    model = efficiency_lookup([CLASS, table("memory", "bandwidth^vendor", nvidia=0.5)])
    assert model(replace(KERNEL, bandwidth_bytes_per_s=1200e9)).by_term["memory"] == pytest.approx(2.4)


def test_a_class_that_nobody_measured_has_no_speed():
    assert efficiency_lookup([CLASS])(replace(KERNEL, device_class="intel-gddr")) is None


def test_a_device_is_measured_when_the_fit_has_it():
    model = efficiency_lookup([CLASS, Efficiency(
        term="whole", scope="device", factors={"nvidia-rtx-4090": 0.97}, samples={"nvidia-rtx-4090": 3}, source="test"
    )])  # fmt: skip
    assert model(KERNEL).measured
    assert not model(replace(KERNEL, device="nvidia-rtx-4080")).measured


def test_the_narrowest_interval_that_exists_is_taken():
    intervals = [
        SpeedInterval(measure="decode", group=group, low_ratio=low, high_ratio=1.5, samples=9, sources=9, source="test")
        for group, low in (("dense", 0.5), ("dense/sized/nvidia-gddr/measured", 0.8))
    ]
    model = efficiency_lookup([CLASS], intervals)
    assert model.interval("decode", interval_groups(KERNEL, True)).low_ratio == 0.8
    assert model.interval("decode", interval_groups(KERNEL, False)).low_ratio == 0.5


@pytest.mark.parametrize(
    ("name", "family"),
    [("F16", "f16"), ("BF16", "bf16"), ("Q4_K_M", "q45"), ("UD-Q4_K_XL", "q45"), ("Q6_K", "q6"), ("Q8_0", "q8"),
     ("IQ4_NL", "q4_0"), ("IQ2_XXS", "iq"), ("Q3_K_S", "q23"), ("MXFP4", "q4_0"), ("NVFP4", "nvfp4"), ("AWQ", "int4")],
)  # fmt: skip
def test_families(name, family):
    assert family_of(name) == family


def test_decode_does_not_stream_the_input_embedding_table():
    work = traffic(LLAMA_8B, LLAMA_F16, F16)
    table_bytes = 128_256 * 4096 * 2
    assert work.weights_bytes() == pytest.approx(LLAMA_F16.weights_bytes - table_bytes, rel=1e-3)
    assert work.limit_bytes == LLAMA_F16.weights_bytes


def mixture():
    return replace(
        LLAMA_8B, active_parameters=2_000_000_000, experts=Experts(count=64, used=4, feed_forward_size=448)
    )  # 64 experts of 448 make up the dense 28,672 / 14,336 twice over


def test_a_mixture_streams_the_experts_that_are_used_and_more_for_more_tokens():
    work = traffic(mixture(), LLAMA_Q4, Q4_K_M)
    assert work.expert_bytes > LLAMA_Q4.weights_bytes / 2
    one, two = work.weights_bytes(1), work.weights_bytes(2)
    assert one == pytest.approx(work.shared_bytes + work.output_bytes + work.expert_bytes / 16)
    assert one < two < 2 * one
    assert work.weights_bytes(1e9) == pytest.approx(work.shared_bytes + work.output_bytes + work.expert_bytes)


def setup(where=None, placement=None, model=LLAMA_8B, engine="llamacpp"):
    placement = placement or Placement(gpu_layers=32, layers=32, split=(32,))
    return prepare(where or machine(card()), model, LLAMA_Q4, Q4_K_M, engine, placement, efficiency_of)


def test_experts_on_the_host_are_read_over_its_bus():
    resident = setup(model=mixture())
    spilled = setup(
        model=mixture(), placement=Placement(gpu_layers=32, layers=32, split=(32,), expert_layers_on_host=32)
    )
    gpu, host = spilled.shares
    work = resident.work
    assert (gpu.experts, host.experts, host.layers) == (0.0, 1.0, 0.0)
    extra = work.expert_bytes / 16
    assert spilled.limit_s(0) - resident.limit_s(0) == pytest.approx(
        (extra / 89.6e9 - extra / 1008e9) * work.limit_bytes / work.weights_bytes()
    )


def test_tensor_parallel_cards_read_their_shares_at_the_same_time_and_exchange():
    two = machine(card(0), card(1))
    split = setup(two, Placement(gpu_layers=32, layers=32, split=(16, 16)), engine="vllm")
    parallel = setup(two, Placement(gpu_layers=32, layers=32, split=(32, 32), tensor_parallel=2), engine="vllm")
    assert parallel.limit_s(0) == pytest.approx(split.limit_s(0) / 2)
    assert "sync" in {term for term, _, _ in parallel.step_demands(0)}
    assert "hop" in {term for term, _, _ in split.step_demands(0)}


def test_beyond_the_slots_more_users_give_no_more_output():
    case = setup()
    at_slots = output_tokens_per_s(case, 640, 4, slots=4)
    assert output_tokens_per_s(case, 640, 100, slots=4) == at_slots > output_tokens_per_s(case, 640, 2, slots=4)


@given(st.floats(0, 100_000), st.integers(1, 64))
def test_more_users_and_more_depth_never_make_a_step_shorter(depth, users):
    case = setup()
    assert case.step_s(depth + 1000, users) >= case.step_s(depth, users)
    assert case.step_s(depth, users + 1) >= case.step_s(depth, users)
    assert case.step_s(depth, users) >= case.limit_s(depth, users) * (1 - 1e-9)


def test_links():
    assert link_bytes_per_s("PCIe 4.0 x16") == pytest.approx(31.5e9, rel=0.01)
    assert link_bytes_per_s("PCIe 5.0 x8") == pytest.approx(31.5e9, rel=0.01)
    assert link_bytes_per_s("SXM5") is link_bytes_per_s(None) is None


def measured(tokens_per_s, expected, model="llama3.1:8b", quantization="Q4_K_M"):
    return LocalMeasurement(
        model=model, quantization=quantization, engine="llamacpp", measure="decode",
        tokens_per_s=tokens_per_s, expected_tokens_per_s=expected,
    )  # fmt: skip


def predicted(*here):
    load = Workload(context_tokens=4096)
    return assess(machine(card()), LLAMA_8B, LLAMA_Q4, Q4_K_M, LLAMACPP, load, efficiency_of, "total", here).speed


def test_a_measurement_of_the_same_build_replaces_the_expectation_and_narrows_the_range():
    before = predicted().decode_tokens_per_s
    after = predicted(measured(80, 100)).decode_tokens_per_s
    assert after.basis == "measured_here"
    assert after.expected == pytest.approx(0.8 * before.expected)
    assert after.high / after.low < before.high / before.low


def test_measurements_of_other_builds_move_part_of_the_way():
    before = predicted().decode_tokens_per_s
    one = predicted(measured(80, 100, model="other")).decode_tokens_per_s
    three = predicted(*(measured(80, 100, model=name) for name in "abc")).decode_tokens_per_s
    again = predicted(*[measured(80, 100, model="other")] * 3).decode_tokens_per_s
    assert 0.8 < three.expected / before.expected < one.expected / before.expected < 1
    assert three.high / three.low < one.high / one.low < before.high / before.low
    assert one.basis == before.basis != "measured_here"
    assert again == one, "one build has one voice, however often it was measured"


def test_a_measurement_never_lifts_the_expectation_above_the_ceiling():
    after = predicted(measured(900, 100)).decode_tokens_per_s
    assert after.expected <= after.high <= after.ceiling


def test_measurements_that_say_nothing_change_nothing():
    speed = predicted()
    other_engine = replace(measured(50, 100), engine="vllm")
    assert calibrated(speed, "llama3.1:8b", "Q4_K_M", "llamacpp", [other_engine]) == speed


def test_prompts_of_layers_on_the_host_wait_for_the_link_and_not_for_the_cpu():
    slow, fast = (replace(card(), pcie=pcie) for pcie in ("PCIe 3.0 x16", "PCIe 5.0 x16"))
    half = Placement(gpu_layers=16, layers=32, split=(16,))
    over_slow, over_fast = (setup(machine(where), half).prompt_s(512) for where in (slow, fast))
    resident = setup(machine(slow)).prompt_s(512)
    assert resident < over_fast < over_slow
    spilled_bytes = 0.5 * traffic(LLAMA_8B, LLAMA_Q4, Q4_K_M).shared_bytes
    assert over_slow - over_fast == pytest.approx(spilled_bytes / 15.76e9 - spilled_bytes / 63.0e9, rel=0.01)
