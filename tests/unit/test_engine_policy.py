"""What engines decide by themselves, against the rules read in their sources; figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provision.catalog import load_catalog
from provision.domain.hardware import MemoryKind, MemoryPool
from provision.domain.llm import ModelTask
from provision.domain.plan import Workload
from provision.sizing import engine_policy as policy
from provision.sizing.placing import place
from provision.sizing.planner import assess
from provision.sizing.remarks import default_context_spills
from provision.units import GIB, MIB
from tests.unit.records import (
    LLAMA_8B,
    LLAMA_F16,
    LLAMA_Q4,
    LLAMACPP,
    Q4_K_M,
    QWEN_32B,
    QWEN_Q4,
    card,
    efficiency_of,
    machine,
)

OLLAMA = load_catalog().engine("ollama")
OLDER = load_catalog().engine("ollama@0.24.0")
LLAMACPP_NOW = load_catalog().engine("llamacpp")
QWEN = (QWEN_32B, QWEN_Q4, Q4_K_M)
ONE_USER = Workload(context_tokens=4096, users=1)
MIB_4090 = 24564


@pytest.mark.parametrize(
    ("cards_mib", "tokens"),
    [
        ([], 4096),
        ([16376], 4096),
        ([23551], 4096),
        ([23552], 32_768),  # 23 GiB exactly
        ([MIB_4090], 32_768),
        ([46068], 32_768),  # an A6000 with ECC
        ([MIB_4090, MIB_4090], 131_072),  # 262,144, capped by what the model was trained for
        ([12288, 12288], 32_768),  # two small cards count together
    ],
)
def test_ollama_takes_its_context_from_the_memory_of_all_cards_together(cards_mib, tokens):
    where = machine(*(card(i, memory_bytes=mib * MIB) for i, mib in enumerate(cards_mib)))
    assert policy.default_context_tokens(OLLAMA, where, LLAMA_8B) == tokens


def test_llamacpp_takes_what_fits():
    assert policy.default_context_tokens(load_catalog().engine("llamacpp"), machine(card()), LLAMA_8B) is None


def test_ollamas_prediction_is_the_file_and_a_plain_f16_cache():
    # 2 x 64 layers x 8 heads x 128 x 8,192 tokens x 2 bytes
    assert policy.predicted_bytes(QWEN_32B, QWEN_Q4, 8192) == 19_851_336_576 + 2_147_483_648
    # It takes the head size as hidden size / heads, whatever the model says.
    odd = replace(QWEN_32B, attention_heads=80)
    assert policy.predicted_bytes(odd, QWEN_Q4, 8192) == 19_851_336_576 + 2_147_483_648 // 2


@pytest.mark.parametrize(
    ("context", "free_gib", "batch"),
    [
        (4096, 48, 512),
        (8192, 48, 1024),
        (32_768, 48, 1024),
        (33_024, 80, 2048),
        (33_024, 48, 2048),  # 28.5 GB predicted are 55 % of 48 GiB
        (33_024, 44, 1024),  # and 60.3 % of 44 GiB
        (8192, 24, 512),  # 22 GB predicted are more than 75 % of 24 GiB
        (8192, 0, 1024),  # no device: nothing is held against anything
    ],
)
def test_ollama_takes_longer_prefill_steps_for_longer_contexts_where_it_sees_room(context, free_gib, batch):
    predicted = policy.predicted_bytes(QWEN_32B, QWEN_Q4, context)
    assert policy.batch_tokens(OLLAMA, predicted, free_gib * GIB, context) == batch


def test_a_prediction_of_at_most_80_percent_puts_a_model_on_one_card_alone():
    two = machine(card(0), card(1))

    def chosen(context):
        return policy.launch(two, QWEN_32B, QWEN_Q4, OLLAMA, Workload(context_tokens=context))

    # 80 % of 24,564 MiB are 20,605,776,691 bytes: 19,851,336,576 and 2,878 tokens of cache
    assert (chosen(2816).devices, chosen(2816).alone) == ((0,), True)
    assert (chosen(3072).devices, chosen(3072).alone) == ((0, 1), False)
    assert policy.launch(two, QWEN_32B, QWEN_Q4, OLDER, Workload(context_tokens=2816)).devices == (0, 1)


def test_a_model_over_80_percent_of_one_card_is_split_over_both_though_one_would_hold_it():
    two, build, load = machine(card(0), card(1)), (QWEN_32B, QWEN_Q4, Q4_K_M), Workload(context_tokens=8192)
    assert place(machine(card()), build, OLLAMA, load).resident, "one card holds it"
    split = place(two, build, OLLAMA, load).placement.split
    assert sum(split) == 64
    assert min(split) >= 31
    assert place(two, build, OLDER, load).placement.split == (64, 0), "older ones take as few cards as will do"
    unequal = machine(card(0, memory_bytes=24 * GIB), card(1, memory_bytes=12 * GIB))
    first, second = place(unequal, build, load_catalog().engine("llamacpp"), load).placement.split
    assert 1.6 < first / second < 2.4, "in proportion to what is free"


def test_of_several_cards_that_would_do_the_emptiest_is_taken():
    pools = [
        MemoryPool(total_bytes=24 * GIB, available_bytes=free * GIB, bandwidth_bytes_per_s=1e12)
        for free in (10, 22, 22)
    ]
    cards = [replace(card(i), memory=pool) for i, pool in enumerate(pools)]
    found = policy.launch(machine(*cards), LLAMA_8B, LLAMA_Q4, OLLAMA, Workload(context_tokens=4096), "available")
    assert found.devices == (1,)
    placed = place(machine(*cards), (LLAMA_8B, LLAMA_Q4, Q4_K_M), OLLAMA, Workload(context_tokens=4096), "available")
    assert placed.placement.split == (0, 32, 0)
    assert [d.device for d in placed.memory.devices] == ["gpu1", "host"]


def test_cards_come_before_integrated_parts_and_makers_are_not_mixed():
    integrated = replace(card(0), memory_kind=MemoryKind.UNIFIED, memory=None)
    assert policy.launch(
        machine(integrated, card(1), ram_bytes=96 * GIB), LLAMA_8B, LLAMA_Q4, OLLAMA, Workload(context_tokens=4096)
    ).devices == (1,)
    amd = replace(card(2, memory_bytes=20 * GIB), vendor="amd")
    mixed = machine(card(0), card(1), amd)
    assert policy.launch(mixed, QWEN_32B, QWEN_Q4, OLLAMA, Workload(context_tokens=16_384)).devices == (0, 1)


def test_some_graphs_are_served_one_request_at_a_time():
    serial = replace(LLAMA_8B, architecture="qwen3next")
    load = Workload(context_tokens=4096, users=8)
    one = assess(machine(card()), serial, LLAMA_Q4, Q4_K_M, OLLAMA, load, efficiency_of)
    assert (one.users, one.slots) == (8, 1)
    assert one.speed.system_output_tokens_per_s == one.speed.decode_tokens_per_s
    assert (
        one.memory
        == assess(machine(card()), serial, LLAMA_Q4, Q4_K_M, OLLAMA, replace(load, users=1), efficiency_of).memory
    )
    (finding,) = (f for f in one.findings if f.code == "one-at-a-time")
    assert "ollama 0.32.15 serves qwen3next models one request at a time" in finding.message
    eight = assess(machine(card()), LLAMA_8B, LLAMA_Q4, Q4_K_M, OLLAMA, load, efficiency_of)
    assert (eight.slots, eight.findings) == (None, ())


def test_an_embedding_model_gets_one_slot_and_no_more_context_than_it_was_trained_for():
    encoder = replace(LLAMA_8B, task=ModelTask.EMBEDDING, context_tokens_max=2048)
    load = Workload(context_tokens=16_384, users=8)
    served = policy.launch(machine(card()), encoder, LLAMA_Q4, OLLAMA, load)
    assert (served.workload.users, served.workload.context_tokens, served.engine.batch_tokens) == (1, 2048, 2048)


def test_the_engine_of_a_step_is_always_the_same_record():
    load = Workload(context_tokens=8192)
    first, second = (policy.launch(machine(card()), LLAMA_8B, LLAMA_Q4, OLLAMA, load).engine for _ in range(2))
    assert first is second
    assert first.batch_tokens == 1024


def test_a_32b_spills_on_a_24_gb_card_when_ollama_chooses_the_context():
    build, load = (QWEN_32B, QWEN_Q4, Q4_K_M), Workload(context_tokens=8192)
    where = machine(card())
    finding = default_context_spills(where, build, OLLAMA, load, place(where, build, OLLAMA, load).placement)
    # 19.85 GB of weights and 32,768 x 262,144 bytes of cache are 28.44 GB
    assert finding.code == "engine-default-spills"
    for figure in ("32k tokens", "18.49 GiB of weights", "8.00 GiB of KV cache", "26.49 GiB", "of 64 layers"):
        assert figure in finding.message
    assert finding.hint.startswith("OLLAMA_CONTEXT_LENGTH=8192 ")


@pytest.mark.parametrize(
    ("cards", "build", "context"),
    [
        ([card(memory_bytes=48 * GIB)], (QWEN_32B, QWEN_Q4, Q4_K_M), 8192),  # it would hold 32k as well
        ([card()], (QWEN_32B, QWEN_Q4, Q4_K_M), 32_768),  # nobody asked for less
        ([card(memory_bytes=16 * GIB)], (QWEN_32B, QWEN_Q4, Q4_K_M), 8192),  # it spills anyway
        ([], (LLAMA_8B, LLAMA_Q4, Q4_K_M), 2048),
    ],
)
def test_no_warning_where_the_default_changes_nothing(cards, build, context):
    where, load = machine(*cards), Workload(context_tokens=context)
    assert default_context_spills(where, build, OLLAMA, load, place(where, build, OLLAMA, load).placement) is None
    assert default_context_spills(where, build, LLAMACPP, load, place(where, build, LLAMACPP, load).placement) is None


def test_the_version_is_said_and_can_be_chosen():
    load = Workload(context_tokens=4096)
    for engine, version in ((OLLAMA, "0.32.15"), (OLDER, "0.24.0")):
        found = assess(machine(card()), LLAMA_8B, LLAMA_F16, Q4_K_M, engine, load, efficiency_of)
        assert found.engine_version == version


@pytest.mark.parametrize("engine", [LLAMACPP_NOW, OLLAMA], ids=lambda e: e.id)
def test_a_fit_leaves_its_margin_free_beside_the_runtimes_context(engine):
    """One byte less than model, context and margin need, and the engine moves something off the card."""
    bill = place(machine(card(memory_bytes=80 * GIB)), QWEN, engine, ONE_USER).memory.devices[0]
    model = bill.total_bytes - bill.overhead_bytes
    enough = model + engine.device_overhead_bytes + GIB
    assert place(machine(card(memory_bytes=enough)), QWEN, engine, ONE_USER).resident
    assert not place(machine(card(memory_bytes=enough - 1)), QWEN, engine, ONE_USER).resident


def test_an_older_ollama_sets_aside_457_mib_for_that_context():
    bill = place(machine(card(memory_bytes=80 * GIB)), QWEN, OLDER, ONE_USER).memory.devices[0]
    assert bill.overhead_bytes == 457 * MIB
