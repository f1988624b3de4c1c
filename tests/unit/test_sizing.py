"""Memory and speed: figures worked out by hand, and relations that must always hold."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.domain.llm import AttentionLayers, LatentAttentionLayers
from provision.domain.plan import RejectionReason, Workload
from provision.sizing import memory
from provision.sizing.planner import assess, plan_builds
from provision.units import GIB, MIB
from tests.unit.records import (
    F16,
    LLAMA_8B,
    LLAMA_F16,
    LLAMA_Q4,
    LLAMACPP,
    OLLAMA,
    Q4_K_M,
    QWEN_32B,
    QWEN_Q4,
    card,
    efficiency_of,
    machine,
)

CASES = {"f16": (LLAMA_8B, LLAMA_F16, F16), "q4": (LLAMA_8B, LLAMA_Q4, Q4_K_M), "32b": (QWEN_32B, QWEN_Q4, Q4_K_M)}


def assessed(name="f16", *cards, ram_bytes=64 * GIB, ram_bandwidth=89.6e9, **workload):
    workload = {"context_tokens": 4096} | workload
    where = machine(*(cards or [card()]), ram_bytes=ram_bytes, ram_bandwidth=ram_bandwidth)
    return assess(where, *CASES[name], OLLAMA, Workload(**workload), efficiency_of)


@pytest.mark.parametrize(
    ("layers", "bytes_per_token"),
    [
        # Llama 3.1 70B: 2 x 80 x 8 x 128 x 2 bytes
        ((AttentionLayers(count=80, kv_heads=8, key_dim=128, value_dim=128),), 327_680),
        # DeepSeek V3: (512 + 64) x 61 x 2 bytes
        ((LatentAttentionLayers(count=61, latent_dim=512, rope_dim=64),), 70_272),
    ],
)
def test_kv_bytes_per_token(layers, bytes_per_token):
    workload = Workload(context_tokens=1024)
    assert sum(memory.kv_bytes(g, workload, OLLAMA) for g in layers) == 1024 * bytes_per_token


def test_a_quantized_cache_counts_its_block_scales():
    group = AttentionLayers(count=1, kv_heads=1, key_dim=32, value_dim=32)
    # 64 values in 2 blocks of 34 bytes
    assert memory.kv_bytes(group, Workload(context_tokens=256, kv_cache_type="q8_0"), OLLAMA) == 256 * 68


def test_a_sliding_window_is_cut_to_the_window_and_one_batch():
    group = AttentionLayers(count=1, kv_heads=1, key_dim=1, value_dim=1, window_tokens=1024)
    # Gemma-4 in a published log: pad256(4 x 1024 + 512) = 4,608 cells
    cells = memory.kv_bytes(group, Workload(context_tokens=131_072, users=4), OLLAMA) / 4
    assert cells == 4608


def test_the_decode_ceiling_of_an_f16_8b_on_a_4090_is_what_the_physics_says():
    # 1,008 GB/s over 16.06 GB and 84 MB of cache at a mean depth of 640 tokens
    speed = assessed("f16").speed.decode_tokens_per_s
    assert speed.ceiling == pytest.approx(1008e9 / (16_061_054_976 + 640 * 131_072))
    assert 61 < speed.ceiling < 64


def test_memory_is_itemised_and_adds_up():
    estimate = assessed("q4").memory
    gpu, host = estimate.devices
    assert gpu.kv_cache_bytes == 4096 * 131_072
    assert host.weights_bytes == 128_256 * 4096 * 4.5 / 8
    assert gpu.weights_bytes + host.weights_bytes == 4_912_898_048, "published tensors of this mix, to the byte"
    for device in estimate.devices:
        parts = (
            device.weights_bytes,
            device.kv_cache_bytes,
            device.state_bytes,
            device.compute_bytes,
            device.overhead_bytes,
        )
        assert device.total_bytes == sum(parts)
    assert estimate.total_bytes == gpu.total_bytes + host.total_bytes


def test_two_cards_of_24_are_not_one_of_48():
    one = assessed("f16", card(memory_bytes=48 * GIB), context_tokens=98_304)
    two = assessed("f16", card(0), card(1), context_tokens=98_304)
    assert one.placement.split == (32,)
    assert sum(two.placement.split) == 32
    assert all(two.placement.split)
    on_cards = [
        sum(d.compute_bytes + d.overhead_bytes for d in c.memory.devices if d.device != "host") for c in (one, two)
    ]
    assert on_cards[1] > 1.5 * on_cards[0], "each card pays its own buffers"


def test_a_model_that_one_card_holds_stays_on_one_card():
    assert assessed("q4", card(0), card(1)).placement.split == (32, 0)


def test_what_spills_says_how_many_layers_fit_and_what_it_costs():
    small = assessed("32b", card(memory_bytes=16376 * MIB, bandwidth=672e9), ram_bytes=32 * GIB, context_tokens=8192)
    resident = assessed("32b", card(memory_bytes=24564 * MIB, bandwidth=672e9), context_tokens=8192)
    assert small.fits
    assert 35 < small.placement.gpu_layers < 60
    assert [f.code for f in small.findings] == ["partial-offload"]
    assert small.speed.decode_tokens_per_s.expected < resident.speed.decode_tokens_per_s.expected / 2
    assert small.speed.decode_tokens_per_s.bound_by == "host_memory"
    gpu = small.memory.devices[0]
    one_more_layer = QWEN_Q4.weights_bytes / 64 + gpu.kv_cache_bytes / small.placement.gpu_layers
    assert 0 <= gpu.headroom_bytes < 1.1 * one_more_layer, "one more layer would not have fitted"


def test_unknown_host_bandwidth_gives_no_speed_but_says_how_to_get_one():
    spilled = assessed("32b", card(memory_bytes=16 * GIB), ram_bandwidth=None)
    assert spilled.speed is None
    assert any(f.code == "host-bandwidth-unknown" and f.hint for f in spilled.findings)


def test_rejections_carry_reason_and_shortfall():
    tiny = machine(card(memory_bytes=4 * GIB), ram_bytes=8 * GIB)
    candidates, rejections = plan_builds(
        tiny, [CASES["32b"], CASES["q4"]], [LLAMACPP], Workload(context_tokens=65_536), efficiency_of
    )
    reasons = {r.model: r for r in rejections}
    assert reasons["qwen2.5-coder:32b"].reason is RejectionReason.CONTEXT_TOO_LONG
    assert reasons["qwen2.5-coder:32b"].hint == "--context 32768"
    assert reasons["llama3.1:8b"].reason is RejectionReason.DOES_NOT_FIT
    assert reasons["llama3.1:8b"].shortfall_bytes > 0
    assert candidates == []


cards = st.lists(
    st.builds(lambda g, b: (int(g * GIB), b * 1e9), st.floats(2, 96), st.floats(50, 4000)), min_size=0, max_size=4
)
situations = st.tuples(st.sampled_from(sorted(CASES)), cards, st.integers(512, 32_768), st.integers(1, 16))


def _candidate(name, cards, context, users, *, memory_bytes=0, bandwidth=1.0):
    made = [card(i, memory_bytes=m + memory_bytes, bandwidth=b * bandwidth) for i, (m, b) in enumerate(cards)]
    where = machine(*made, ram_bytes=1024 * GIB)
    return assess(where, *CASES[name], OLLAMA, Workload(context_tokens=context, users=users), efficiency_of)


@given(situations)
def test_nothing_is_predicted_above_its_ceiling(situation):
    speed = _candidate(*situation).speed
    for name in ("decode_tokens_per_s", "system_output_tokens_per_s", "prefill_tokens_per_s"):
        rate = getattr(speed, name)
        if rate:
            assert 0 < rate.low <= rate.expected <= rate.high <= rate.ceiling * (1 + 1e-9)


@given(situations)
def test_all_layers_and_all_weights_are_somewhere(situation):
    candidate = _candidate(*situation)
    _, build, _ = CASES[situation[0]]
    assert sum(candidate.placement.split) == candidate.placement.gpu_layers <= candidate.placement.layers
    assert sum(d.weights_bytes for d in candidate.memory.devices) == pytest.approx(build.weights_bytes, rel=2e-3), (
        "all but the file's vocabulary and header"
    )
    assert all(d.headroom_bytes >= 0 for d in candidate.memory.devices), "the host has a TiB: nothing may overflow"


@given(situations)
def test_more_context_or_users_never_needs_less_memory(situation):
    name, cards_, context, users = situation
    base = _candidate(name, cards_, context, users).memory.total_bytes
    slack = len(cards_) * GIB  # fewer cards in use means fewer fixed buffers
    assert _candidate(name, cards_, context + 1024, users).memory.total_bytes >= base - slack
    assert _candidate(name, cards_, context, users + 1).memory.total_bytes >= base - slack


@given(situations, st.floats(1.0, 3.0))
def test_more_bandwidth_is_never_slower_and_more_vram_never_fewer_layers(situation, factor):
    name, cards_, context, users = situation
    base = _candidate(name, cards_, context, users)
    faster = _candidate(name, cards_, context, users, bandwidth=factor)
    assert faster.speed.decode_tokens_per_s.expected >= base.speed.decode_tokens_per_s.expected * (1 - 1e-9)
    larger = _candidate(name, cards_, context, users, memory_bytes=int(factor * GIB))
    assert larger.placement.gpu_layers >= base.placement.gpu_layers


def test_speed_is_continuous_where_the_first_layer_spills():
    def decode(memory_bytes):
        return assessed("q4", card(memory_bytes=memory_bytes)).speed.decode_tokens_per_s.expected

    sizes = range(4 * GIB, 8 * GIB, 64 * MIB)
    rates = [decode(size) for size in sizes]
    jumps = [b / a for a, b in itertools.pairwise(rates)]
    # One of 32 layers from host memory at a tenth of the bandwidth costs about a third, and no more.
    assert max(jumps) < 2.5
    assert min(jumps) >= 1 - 1e-9


def test_layers_in_host_memory_of_unknown_size_do_not_count_as_fitting():
    spilled = assessed("32b", card(memory_bytes=16 * GIB), ram_bytes=None)
    assert not spilled.fits
    resident = assessed("q4", card(), ram_bytes=None)
    assert resident.fits, "only the embedding table is on the host"


def test_resident_goes_before_spilled_and_usable_before_crawling():
    candidates, _ = plan_builds(
        machine(card(memory_bytes=16 * GIB), ram_bytes=128 * GIB),
        [CASES["32b"], CASES["q4"], CASES["f16"]],
        [LLAMACPP],
        Workload(context_tokens=4096),
        efficiency_of,
    )
    assert [(c.quantization, c.placement.gpu_layers == c.placement.layers) for c in candidates] == [
        ("F16", True),
        ("Q4_K_M", True),
        ("Q4_K_M", False),
    ]
    assert candidates[-1].model == "qwen2.5-coder:32b", "larger, but spilled"


def test_of_builds_too_slow_to_read_along_the_fastest_goes_first():
    crawling = machine(ram_bytes=128 * GIB, ram_bandwidth=20e9)
    candidates, _ = plan_builds(
        crawling, [CASES["f16"], CASES["q4"]], [LLAMACPP], Workload(context_tokens=4096), efficiency_of
    )
    assert [c.quantization for c in candidates] == ["Q4_K_M", "F16"]


def test_a_build_that_ollama_cannot_pull_is_not_planned_for_it():
    _, rejections = plan_builds(machine(card()), [CASES["q4"]], [OLLAMA], Workload(context_tokens=4096), efficiency_of)
    assert [r.reason for r in rejections] == [RejectionReason.NOT_PUBLISHED]


def test_an_expert_mixture_reads_more_experts_for_more_users_but_its_limit_does_not():
    moe = replace(LLAMA_8B, active_parameters=LLAMA_8B.parameters // 10)
    speeds = {}
    for users in (1, 8):
        load = Workload(context_tokens=4096, users=users)
        case = assess(machine(card()), moe, LLAMA_Q4, Q4_K_M, LLAMACPP, load, efficiency_of)
        speeds[users] = case.speed.system_output_tokens_per_s
    assert speeds[1].expected < speeds[8].expected < 8 * speeds[1].expected
    # All eight could need the same experts: a tenth of the weights once, and eight caches at 640 tokens.
    assert speeds[8].ceiling == pytest.approx(8 * 1008e9 / (0.1 * 4_912_898_048 + 8 * 640 * 131_072), rel=1e-6)


def test_many_users_without_a_known_matrix_rate_range_from_no_gain_to_the_roofline():
    without = replace(card(), fp16_flops_per_s=None)
    load = Workload(context_tokens=4096, users=8)
    case = assess(machine(without), *CASES["q4"], LLAMACPP, load, efficiency_of)
    alone, together = case.speed.decode_tokens_per_s, case.speed.system_output_tokens_per_s
    assert together.low <= alone.low < alone.expected < together.expected < together.high <= together.ceiling
