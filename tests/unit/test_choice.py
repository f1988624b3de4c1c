"""Choosing: how far a build can be stretched, several models at once, the order of a plan, drafts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provision.catalog import load_catalog
from provision.domain.llm import AttentionLayers, ModelSpec, ModelTask
from provision.domain.plan import Workload
from provision.sizing import speculation
from provision.sizing.choice import largest, largest_context_tokens, most_users
from provision.sizing.placing import place
from provision.sizing.planner import assess, plan_builds, select
from provision.sizing.together import choose_together, together
from provision.units import GIB, MIB
from tests.unit.records import (
    F16,
    LLAMA_8B,
    LLAMA_F16,
    LLAMA_Q4,
    Q4_K_M,
    QWEN_32B,
    QWEN_Q4,
    SOURCE,
    build,
    card,
    efficiency_of,
    machine,
)

OLLAMA, LLAMACPP = load_catalog().engine("ollama"), load_catalog().engine("llamacpp")
CODER, SMALL, SMALL_F16 = (QWEN_32B, QWEN_Q4, Q4_K_M), (LLAMA_8B, LLAMA_Q4, Q4_K_M), (LLAMA_8B, LLAMA_F16, F16)
ENCODER_SPEC = ModelSpec(
    id="nomic-embed-text", name="Nomic Embed Text", family="nomic", task=ModelTask.EMBEDDING, parameters=136_731_648,
    hidden_size=768, feed_forward_size=3072, attention_heads=12, vocabulary_size=30_522, context_tokens_max=2048,
    tied_embeddings=False, layers=(AttentionLayers(count=12, kv_heads=12, key_dim=64, value_dim=64),),
    provenance=SOURCE,
)  # fmt: skip
ENCODER = (ENCODER_SPEC, build(ENCODER_SPEC, "F16", 274_290_656), F16)
LOAD = Workload(context_tokens=8192)


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000))
def test_largest_finds_the_last_that_holds(low, high, last):
    low, high = min(low, high), max(low, high)
    last = max(low, last)
    calls = []
    found = largest(lambda n: calls.append(n) or n <= last, low, high)
    assert found == min(last, high)
    assert len(calls) <= 2 * 13 + 2


@pytest.mark.parametrize("engine", [OLLAMA, LLAMACPP])
def test_the_longest_context_stays_resident_and_one_step_more_does_not(engine):
    where = machine(card())
    placed = place(where, CODER, engine, LOAD)
    tokens = largest_context_tokens(where, CODER, engine, LOAD, placed)
    assert LOAD.context_tokens < tokens < QWEN_32B.context_tokens_max
    assert place(where, CODER, engine, replace(LOAD, context_tokens=tokens)).resident
    assert not place(where, CODER, engine, replace(LOAD, context_tokens=tokens + 256)).resident


def test_the_most_users_stay_resident_and_one_more_does_not():
    where = machine(card(0), card(1))
    placed = place(where, CODER, OLLAMA, LOAD)
    users = most_users(where, CODER, OLLAMA, LOAD, placed)
    assert 5 < users < 20
    assert place(where, CODER, OLLAMA, replace(LOAD, users=users)).resident
    assert not place(where, CODER, OLLAMA, replace(LOAD, users=users + 1)).resident


def test_a_model_that_is_short_of_memory_has_no_room_and_an_encoder_has_as_many_users_as_you_like():
    tiny = machine(card(memory_bytes=4 * GIB), ram_bytes=8 * GIB)
    placed = place(tiny, CODER, OLLAMA, LOAD)
    assert largest_context_tokens(tiny, CODER, OLLAMA, LOAD, placed) is None
    assert most_users(tiny, CODER, OLLAMA, LOAD, placed) is None
    where = machine(card())
    assert most_users(where, ENCODER, OLLAMA, LOAD, place(where, ENCODER, OLLAMA, LOAD)) is None


sizes = st.integers(6, 96)


@settings(deadline=None, max_examples=40)
@given(sizes, st.floats(0.1, 24), st.integers(1, 8), st.sampled_from([SMALL, CODER, SMALL_F16]))
def test_more_vram_never_gives_fewer_users_or_a_shorter_context(gib, more, users, what):
    """Where all of it is on the card; for llama.cpp, whose rules are the same at every size."""
    load = Workload(context_tokens=2048, users=users)

    def limits(size):
        where = machine(card(memory_bytes=int(size * GIB)), ram_bytes=1024 * GIB)
        placed = place(where, what, LLAMACPP, load)
        if not placed.resident:
            return None
        args = (where, what, LLAMACPP, load, placed)
        return largest_context_tokens(*args), most_users(*args)

    small, large = limits(gib), limits(gib + more)
    if small is not None:
        assert large is not None
        assert large[0] >= small[0]
        assert large[1] >= small[1]


@settings(deadline=None, max_examples=40)
@given(st.lists(sizes, max_size=3), st.integers(512, 32_768), st.integers(1, 16), st.sampled_from([OLLAMA, LLAMACPP]))
def test_plan_and_estimate_agree(sizes_gib, context, users, engine):
    where = machine(*(card(i, memory_bytes=g * GIB) for i, g in enumerate(sizes_gib)), ram_bytes=64 * GIB)
    load = Workload(context_tokens=context, users=users)
    tagged = [(m, replace(b, ollama_tag="x"), q) for m, b, q in (SMALL, CODER)]
    candidates, rejections = plan_builds(where, tagged, [engine], load, efficiency_of)
    for one in tagged:
        alone = assess(where, *one, engine, load, efficiency_of)
        ranked = [c for c in candidates if c.id == alone.id]
        assert ranked == ([alone] if alone.fits else [])
        assert len([r for r in rejections if r.model == alone.model]) == (not alone.fits)


def test_coder_8b_and_embeddings_share_a_48_gb_card():
    where = machine(card(memory_bytes=48 * GIB))
    plan = together(where, [CODER, SMALL, ENCODER], OLLAMA, LOAD, efficiency_of)
    assert plan.resident
    assert plan.evicted == ()
    gpu, host = plan.devices
    # Each one's bill alone, without what is left free, and with its own runtime context.
    alone = [place(where, one, OLLAMA, LOAD).memory.devices[0] for one in (CODER, SMALL, ENCODER)]
    for used, row in zip(gpu.used_bytes, alone, strict=True):
        parts = row.weights_bytes + row.kv_cache_bytes + row.state_bytes + row.compute_bytes
        assert used == parts + OLLAMA.device_overhead_bytes
    assert gpu.total_bytes == sum(gpu.used_bytes) + gpu.reserve_bytes
    assert GIB - OLLAMA.device_overhead_bytes <= gpu.reserve_bytes <= GIB
    assert gpu.headroom_bytes == 48 * GIB - gpu.total_bytes
    assert host.headroom_bytes > 0


def test_each_model_has_what_those_before_it_left():
    where = machine(card(memory_bytes=48 * GIB))
    plan = together(where, [CODER, SMALL], LLAMACPP, LOAD, efficiency_of)
    first, second = (c.memory.devices[0] for c in plan.candidates)
    assert second.capacity_bytes == 48 * GIB - plan.devices[0].used_bytes[0]
    assert first.capacity_bytes == 48 * GIB


def test_ollama_unloads_what_leaves_no_room_by_its_own_prediction_and_llamacpp_spills():
    where = machine(card())
    by_ollama = together(where, [CODER, SMALL], OLLAMA, LOAD, efficiency_of)
    assert by_ollama.evicted == (f"{QWEN_32B.id}/Q4_K_M@ollama",)
    assert by_ollama.devices[0].used_bytes[0] == 0
    by_hand = together(where, [CODER, SMALL], LLAMACPP, LOAD, efficiency_of)
    assert by_hand.evicted == ()
    assert not by_hand.resident
    assert by_hand.candidates[1].placement.gpu_layers < 32
    assert all(d.headroom_bytes >= 0 for d in by_hand.devices)


def test_two_models_go_to_two_cards():
    where = machine(card(0), card(1))
    plan = together(where, [SMALL_F16, SMALL], OLLAMA, LOAD, efficiency_of)
    assert [c.placement.split for c in plan.candidates] == [(32, 0), (0, 32)]


def test_smaller_builds_are_chosen_until_all_stay_loaded():
    where = machine(card())
    options = [[SMALL_F16, SMALL], [ENCODER]]
    assert choose_together(where, options, LLAMACPP, LOAD) == [SMALL_F16, ENCODER]
    # 16.1 GB and 4.9 GB hold as well; two of 16.1 GB do not, and the first named keeps the better one.
    assert choose_together(where, [[SMALL_F16, SMALL], [SMALL_F16, SMALL]], LLAMACPP, LOAD) == [SMALL_F16, SMALL]
    assert choose_together(where, [[CODER], [SMALL_F16]], LLAMACPP, LOAD) is None


def test_unified_memory_is_counted_once():
    from provision.domain.hardware import MemoryKind

    chip = replace(card(), memory_kind=MemoryKind.UNIFIED, memory=None)
    plan = together(machine(chip, ram_bytes=64 * GIB), [CODER, SMALL], LLAMACPP, LOAD, efficiency_of)
    gpu, host = plan.devices
    assert host.headroom_bytes == 64 * GIB - host.total_bytes - sum(gpu.used_bytes)
    # The host's own rows know of the other model as well.
    assert plan.candidates[1].memory.devices[0].capacity_bytes <= 64 * GIB - gpu.used_bytes[0]


def test_each_order_puts_first_what_it_says():
    where = machine(card(memory_bytes=16376 * MIB), ram_bytes=128 * GIB)

    def first(prefer, *builds):
        found, _ = plan_builds(where, builds, [LLAMACPP], LOAD, efficiency_of, prefer=prefer)
        return found[0]

    assert first("balanced", CODER, SMALL, SMALL_F16).quantization == "Q4_K_M"
    assert first("balanced", CODER, SMALL, SMALL_F16).model == LLAMA_8B.id, "resident before spilled"
    quality = first("quality", CODER, SMALL, SMALL_F16)
    assert quality.model == QWEN_32B.id, "larger, spilled, and still fast enough to read along"
    assert quality.placement.gpu_layers < quality.placement.layers
    everything, _ = plan_builds(where, [CODER, SMALL, SMALL_F16], [LLAMACPP], LOAD, efficiency_of, prefer="speed")
    rates = [c.speed.system_output_tokens_per_s.expected for c in everything]
    assert rates == sorted(rates, reverse=True)
    longest, _ = plan_builds(where, [CODER, SMALL, SMALL_F16], [LLAMACPP], LOAD, efficiency_of, prefer="context")
    assert longest[0].context_tokens_max == max(c.context_tokens_max for c in longest if c.placement.gpu_layers == 32)


def test_what_is_installed_is_of_one_engine():
    tagged = [(m, replace(b, ollama_tag="x"), q) for m, b, q in (SMALL,)] + [ENCODER]
    candidates, _ = plan_builds(machine(card()), tagged, [OLLAMA, LLAMACPP], LOAD, efficiency_of)
    assert {c.engine for c in candidates if c.model == LLAMA_8B.id} == {"ollama", "llamacpp"}
    # The encoder has no tag, so Ollama does not have all.
    assert select(candidates, [LLAMA_8B.id, "nomic-embed-text"]) == (
        "llama3.1:8b/Q4_K_M@llamacpp",
        "nomic-embed-text/F16@llamacpp",
    )
    assert select(candidates, [LLAMA_8B.id]) == ("llama3.1:8b/Q4_K_M@ollama",)


@pytest.mark.parametrize(
    ("acceptance", "drafted", "tokens"), [(0.0, 4, 1.0), (1.0, 4, 5.0), (0.5, 1, 1.5), (0.8, 4, 3.3616)]
)
def test_tokens_of_a_round(acceptance, drafted, tokens):
    assert speculation.tokens_per_round(acceptance, drafted) == pytest.approx(tokens)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 32), st.floats(0.01, 1))
def test_speculation_is_bounded_and_grows_with_acceptance(a, b, drafted, cost):
    low, high = sorted((a, b))
    assert speculation.speedup(low, drafted, cost) <= speculation.speedup(high, drafted, cost) * (1 + 1e-9)
    assert 1 <= speculation.tokens_per_round(high, drafted) <= drafted + 1
    assert speculation.speedup(0, drafted, cost) < 1, "a draft that is never right costs its own time"


def test_a_published_draft_run_lies_in_the_range():
    """llama3.1:8b Q8_0 with llama3.2:1b Q8_0 drafting 5 on an RTX 3060: 32.5 tokens/s became 55.5 (llama.cpp issue
    5877); the draft's file is 0.155 of the model's."""
    low, high = (speculation.speedup(a, 5, 0.155) for a in (speculation.ACCEPTANCE_LOW, speculation.ACCEPTANCE_HIGH))
    assert low < 55.5 / 32.5 < high


def test_a_draft_takes_its_memory_and_never_lifts_the_rate_above_its_ceiling():
    where = machine(card())
    plan = together(where, [SMALL, SMALL_F16], LLAMACPP, Workload(context_tokens=2048), efficiency_of)
    draft, target = plan.candidates
    found = speculation.speculate(SMALL_F16, target, draft, 4)
    assert found.speedup_low < found.speedup_expected < found.speedup_high
    rate = found.decode_tokens_per_s
    assert rate.low <= rate.expected <= rate.high <= rate.ceiling
    assert rate.ceiling == pytest.approx(5 * target.speed.decode_tokens_per_s.ceiling)
    unknown = replace(target, speed=None)
    assert speculation.speculate(SMALL_F16, unknown, draft, 4) is None
