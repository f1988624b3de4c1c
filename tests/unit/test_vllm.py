"""Sizing by vLLM's rules: what must hold for any model and machine, and the cases that decide."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.catalog import load_catalog
from provision.cli.workload import workload as parse_workload
from provision.domain.hardware import Accelerator, Machine, MemoryKind, MemoryPool
from provision.domain.llm import AttentionLayers, LatentAttentionLayers, ModelSpec, ModelTask, Quantization, StateLayers
from provision.domain.plan import MemoryEstimate, Placement, RejectionReason, Workload
from provision.errors import UsageError
from provision.sizing import memory
from provision.sizing.kv_blocks import CacheShape, block_pool
from provision.sizing.planner import assess, plan_builds, refusal
from provision.sizing.safetensors import safetensors_bytes
from provision.sizing.vllm import device_weights, place
from provision.units import GIB, MIB
from tests.unit import records
from tests.unit.records import LLAMA_8B, LLAMACPP, OLLAMA, SOURCE
from tests.unit.test_safetensors import DEEPSEEK_V2_LITE, GPT_OSS_20B, LLAMA_70B

VLLM = load_catalog().engine("vllm")
BF16 = Quantization(
    id="BF16", container="safetensors", bits_per_weight=16, embedding_bits_per_weight=16, output_bits_per_weight=16,
    rank=100, provenance=SOURCE,
)  # fmt: skip
GEMMA = replace(
    LLAMA_8B,
    id="gemma",
    parameters=None,
    hidden_size=2560,
    feed_forward_size=10240,
    attention_heads=8,
    vocabulary_size=262_208,
    tied_embeddings=True,
    layers=(
        AttentionLayers(count=29, kv_heads=4, key_dim=256, value_dim=256, window_tokens=1024),
        AttentionLayers(count=5, kv_heads=4, key_dim=256, value_dim=256),
    ),
)
HYBRID = replace(
    LLAMA_8B,
    id="hybrid",
    layers=(
        StateLayers(count=24, state_bytes_per_sequence=2_146_304),
        AttentionLayers(count=8, kv_heads=8, key_dim=128, value_dim=128),
    ),
)
MODELS = (LLAMA_8B, GEMMA, HYBRID, DEEPSEEK_V2_LITE, GPT_OSS_20B)
models = st.sampled_from(MODELS)


def cards(count: int = 1, mib: int = 24564, name: str = "NVIDIA GeForce RTX 4090") -> tuple[Accelerator, ...]:
    return tuple(replace(records.card(i, memory_bytes=mib * MIB), name=name) for i in range(count))


def sized(
    model: ModelSpec,
    *accelerators: Accelerator,
    quantization: str = "BF16",
    context: int = 8192,
    users: int = 1,
    kv: str = "f16",
    fraction: float = 0.92,
) -> tuple[Placement, MemoryEstimate]:
    build = records.build(model, quantization, safetensors_bytes(model, quantization))
    load = Workload(context_tokens=context, users=users, kv_cache_type=kv)  # type: ignore[arg-type]
    engine = replace(VLLM, memory_fraction=fraction)
    return place(records.machine(*accelerators), model, build, BF16, engine, load)


# What holds for any


@given(model=models, mib=st.integers(8_000, 64_000), more=st.integers(0, 8_000))
def test_more_memory_never_holds_less(model: ModelSpec, mib: int, more: int) -> None:
    """Up to 70 GiB; from there the engine reserves four times the step, and may hold less."""
    small, large = (sized(model, *cards(mib=m), quantization="AWQ")[1] for m in (mib, mib + more))
    assert (large.kv_capacity_tokens or 0) >= (small.kv_capacity_tokens or 0)
    assert (large.concurrent_sequences_max or 0) >= (small.concurrent_sequences_max or 0)
    assert (large.context_tokens_max or 0) >= (small.context_tokens_max or 0)
    assert memory.fits(large) or not memory.fits(small)


@given(model=models, fraction=st.floats(0.5, 0.98), more=st.floats(0, 0.02))
def test_a_larger_share_never_holds_less(model: ModelSpec, fraction: float, more: float) -> None:
    small, large = (sized(model, *cards(mib=49140), fraction=f)[1] for f in (fraction, fraction + more))
    assert (large.kv_blocks or 0) >= (small.kv_blocks or 0)


@given(model=models, users=st.integers(1, 400), context=st.integers(256, 65_536), more=st.integers(0, 5_000))
def test_more_users_or_context_never_need_less(model: ModelSpec, users: int, context: int, more: int) -> None:
    base = sized(model, *cards(), users=users, context=context)[1]
    assert sized(model, *cards(), users=users + 1, context=context)[1].total_bytes >= base.total_bytes
    assert sized(model, *cards(), users=users, context=context + more)[1].total_bytes >= base.total_bytes


@given(model=models, users=st.integers(1, 64), context=st.integers(256, 40_000), mib=st.integers(12_000, 48_000))
def test_it_fits_exactly_when_every_user_is_held_at_once(model: ModelSpec, users: int, context: int, mib: int) -> None:
    estimate = sized(model, *cards(mib=mib), quantization="AWQ", users=users, context=context)[1]
    assert memory.fits(estimate) == (users <= (estimate.concurrent_sequences_max or 0))
    assert estimate.starts == ((estimate.concurrent_sequences_max or 0) >= 1)


@given(model=models, mib=st.integers(18_000, 64_000))
def test_the_largest_context_starts_and_the_next_does_not(model: ModelSpec, mib: int) -> None:
    largest = sized(model, *cards(mib=mib), quantization="AWQ", context=512)[1].context_tokens_max or 0
    if largest >= 512:
        assert sized(model, *cards(mib=mib), quantization="AWQ", context=largest)[1].starts
    if 512 <= largest < model.context_tokens_max:
        assert not sized(model, *cards(mib=mib), quantization="AWQ", context=largest + 1)[1].starts


@given(model=models, quantization=st.sampled_from(["BF16", "FP8", "AWQ", "NVFP4"]), devices=st.integers(1, 4))
def test_more_cards_never_carry_more_weights_each(model: ModelSpec, quantization: str, devices: int) -> None:
    build = records.build(model, quantization, safetensors_bytes(model, quantization))
    one, twice = device_weights(model, build, devices), device_weights(model, build, 2 * devices)
    assert twice < one
    assert 2 * twice >= one - 2  # nothing vanishes by being cut


@given(model=models, kv=st.sampled_from(["f16", "fp8"]), users=st.integers(1, 8))
def test_items_add_up(model: ModelSpec, kv: str, users: int) -> None:
    estimate = sized(model, *cards(2), kv=kv, users=users)[1]
    for device in estimate.devices:
        items = device.weights_bytes + device.kv_cache_bytes + device.state_bytes + device.compute_bytes
        assert device.total_bytes == items + device.overhead_bytes
        assert device.headroom_bytes == (device.capacity_bytes or 0) - device.total_bytes


# Cards


def test_the_fewest_equal_cards_that_hold_it_are_taken() -> None:
    assert sized(LLAMA_8B, *cards(4))[0] == Placement(gpu_layers=32, layers=32, tensor_parallel=1, split=(32, 0, 0, 0))
    placement, estimate = sized(LLAMA_70B, *cards(4), quantization="AWQ")
    assert (placement.tensor_parallel, placement.split) == (4, (20, 20, 20, 20))
    assert [d.device for d in estimate.devices] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert memory.fits(estimate)
    assert not memory.fits(sized(LLAMA_70B, *cards(2), quantization="AWQ")[1])


def test_unequal_cards_are_not_pooled() -> None:
    other = replace(records.card(1, memory_bytes=24576 * MIB), name="NVIDIA GeForce RTX 3090")
    placement, estimate = sized(LLAMA_70B, *cards(1), other, quantization="AWQ")
    assert placement.tensor_parallel == 1
    assert not memory.fits(estimate)


def test_heads_and_groups_decide_into_how_many_parts_a_model_is_cut() -> None:
    forty_heads = replace(LLAMA_70B, attention_heads=40, layers=(replace(LLAMA_70B.layers[0], kv_heads=8),))
    assert sized(forty_heads, *cards(3), quantization="AWQ")[0].tensor_parallel != 3
    # 29,568 / 128 = 231 groups: an odd number is not cut in two, unless the matrices are not in groups.
    odd = replace(LLAMA_70B, feed_forward_size=29568, parameters=None)
    assert sized(odd, *cards(2), quantization="AWQ")[0].tensor_parallel == 1
    assert sized(odd, *cards(2), quantization="FP8")[0].tensor_parallel == 2


def test_heads_fewer_than_cards_are_copied_and_latent_vectors_are_whole() -> None:
    def bytes_per_block(layers: tuple[AttentionLayers | LatentAttentionLayers, ...], devices: int) -> int:
        pool = block_pool(CacheShape(layers, 2.0, 16, 2, 4096, devices))
        assert pool is not None
        return pool.bytes_per_block

    two = (AttentionLayers(count=4, kv_heads=2, key_dim=128, value_dim=128),)
    assert bytes_per_block(two, 2) * 2 == bytes_per_block(two, 1)
    assert bytes_per_block(two, 4) == bytes_per_block(two, 2)
    latent = (LatentAttentionLayers(count=4, latent_dim=512, rope_dim=64),)
    assert bytes_per_block(latent, 8) == bytes_per_block(latent, 1) == 4 * 16 * 576 * 2


def test_layers_without_a_cache_of_their_own_take_no_blocks() -> None:
    own = AttentionLayers(count=20, kv_heads=2, key_dim=128, value_dim=128)
    readers = AttentionLayers(count=12, kv_heads=0, key_dim=128, value_dim=128)
    plain = StateLayers(count=12, state_bytes_per_sequence=0)
    alone, with_readers, with_plain = (
        block_pool(CacheShape(layers, 2.0, 16, 2, 4096, 1)) for layers in ((own,), (own, readers), (own, plain))
    )
    assert alone == with_readers == with_plain
    shared = replace(LLAMA_8B, layers=(own, readers), parameters=None)
    assert memory.fits(sized(shared, *cards(2))[1])


def test_a_recurrent_branch_beside_attention_takes_blocks_of_its_own() -> None:
    branch = AttentionLayers(count=8, kv_heads=2, key_dim=64, value_dim=64, state_bytes_per_sequence=100_000)
    pool = block_pool(CacheShape((branch,), 2.0, 16, 2, 4096, 1))
    assert pool is not None
    assert [(group.kind, group.tables) for group in pool.groups] == [("full", 1), ("state", 1)]
    assert pool.block_tokens * 2 * 128 * 2 >= 100_000


def test_an_eight_bit_cache_holds_twice_the_tokens() -> None:
    half, eighth = (sized(LLAMA_8B, *cards(), kv=kv)[1].kv_capacity_tokens or 0 for kv in ("f16", "fp8"))
    assert eighth == pytest.approx(2 * half, rel=0.001)


def test_large_cards_reserve_a_larger_step_but_not_the_a100() -> None:
    h100, a100 = (sized(LLAMA_8B, *cards(mib=81559, name=name))[1] for name in ("NVIDIA H100 80GB HBM3", "NVIDIA A100"))
    assert h100.devices[0].compute_bytes - a100.devices[0].compute_bytes > GIB


def test_the_driver_keeps_a_part_of_a_dedicated_card_only() -> None:
    capacity = sized(LLAMA_8B, *cards())[1].devices[0].capacity_bytes
    assert VLLM.paged is not None
    assert capacity == pytest.approx(0.92 * (24564 * MIB - VLLM.paged.driver_bytes), abs=1)
    unified = replace(cards()[0], name="NVIDIA GB10", memory=None, memory_kind=MemoryKind.UNIFIED)
    assert sized(LLAMA_8B, unified)[1].devices[0].capacity_bytes == pytest.approx(0.92 * 64 * GIB, abs=1)


def test_a_memory_that_is_not_known_gives_no_verdict() -> None:
    nameless = replace(cards()[0], memory=MemoryPool(total_bytes=None))
    estimate = sized(LLAMA_8B, nameless)[1]
    assert estimate.devices[0].headroom_bytes is None
    assert (estimate.starts, estimate.kv_capacity_tokens, estimate.concurrent_sequences_max) == (None, None, None)


def test_what_is_free_limits_it_when_asked_for() -> None:
    busy = replace(cards()[0], memory=MemoryPool(total_bytes=24564 * MIB, available_bytes=18 * GIB))
    build = records.build(LLAMA_8B, "BF16", safetensors_bytes(LLAMA_8B, "BF16"))
    estimate = place(records.machine(busy), LLAMA_8B, build, BF16, VLLM, Workload(context_tokens=4096), "available")[1]
    assert estimate.devices[0].capacity_bytes == 18 * GIB


# A CPU


def test_without_an_accelerator_a_share_of_the_host_is_taken() -> None:
    placement, estimate = sized(LLAMA_8B)
    (host,) = estimate.devices
    assert (placement.gpu_layers, placement.split, host.device) == (0, (), "host")
    assert host.capacity_bytes == pytest.approx(0.92 * 64 * GIB, abs=1)
    assert estimate.kv_block_tokens == 128


def test_an_accelerator_it_does_not_run_on_is_left_and_said() -> None:
    apple = replace(cards()[0], vendor="apple", name="Apple M4 Max", memory_kind=MemoryKind.UNIFIED, memory=None)
    build = records.build(LLAMA_8B, "BF16", safetensors_bytes(LLAMA_8B, "BF16"))
    candidate = assess(
        records.machine(apple), LLAMA_8B, build, BF16, VLLM, Workload(context_tokens=4096), records.efficiency_of
    )
    assert candidate.placement.gpu_layers == 0
    codes = [finding.code for finding in candidate.findings]
    assert "accelerator-unused" in codes
    assert "partial-offload" not in codes


def test_an_encoder_keeps_no_cache() -> None:
    encoder = replace(LLAMA_8B, task=ModelTask.EMBEDDING, architecture="bert")
    estimate = sized(encoder, *cards())[1]
    assert estimate.devices[0].kv_cache_bytes == 0
    assert estimate.starts
    assert estimate.kv_capacity_tokens is None


# Answers


def plan(machine: Machine, model: ModelSpec, quantization: str, load: Workload):  # type: ignore[no-untyped-def]
    build = records.build(model, quantization, safetensors_bytes(model, quantization))
    return plan_builds(machine, [(model, build, BF16)], [VLLM], load, records.efficiency_of)


def test_the_answer_names_the_version_and_its_arithmetic() -> None:
    (candidate,), _ = plan(records.machine(*cards()), LLAMA_8B, "BF16", Workload(context_tokens=4096, users=4))
    finding = next(f for f in candidate.findings if f.code == "engine-arithmetic")
    assert f"vllm {VLLM.version} takes 92%" in finding.message
    assert f"{candidate.memory.kv_capacity_tokens:,} tokens" in finding.message


def test_a_model_that_does_not_start_is_told_from_one_that_holds_fewer_users() -> None:
    machine = records.machine(*cards())
    _, (refused,) = plan(machine, LLAMA_70B, "AWQ", Workload(context_tokens=4096))
    assert refused.reason is RejectionReason.DOES_NOT_FIT
    assert "does not start" in refused.message
    assert (refused.shortfall_bytes or 0) > 10 * GIB
    _, (crowded,) = plan(machine, LLAMA_8B, "BF16", Workload(context_tokens=8192, users=64))
    assert crowded.message.startswith("starts, but holds")
    held = int((crowded.hint or "").removeprefix("--users "))
    (candidate,), _ = plan(machine, LLAMA_8B, "BF16", Workload(context_tokens=8192, users=held))
    assert candidate.memory.concurrent_sequences_max == held


@pytest.mark.parametrize(
    ("users", "context", "code"), [(64, 8192, "requests-wait"), (1, 131_072, "engine-does-not-start")]
)
def test_an_estimate_says_which_of_the_two_it_is(users: int, context: int, code: str) -> None:
    build = records.build(LLAMA_8B, "BF16", safetensors_bytes(LLAMA_8B, "BF16"))
    load = Workload(context_tokens=context, users=users)
    candidate = assess(records.machine(*cards()), LLAMA_8B, build, BF16, VLLM, load, records.efficiency_of)
    assert not candidate.fits
    assert code in [finding.code for finding in candidate.findings]


def test_a_context_that_would_start_is_offered() -> None:
    _, (refused,) = plan(records.machine(*cards()), LLAMA_8B, "BF16", Workload(context_tokens=131_072))
    tokens = int((refused.hint or "").removeprefix("--context "))
    (candidate,), _ = plan(records.machine(*cards()), LLAMA_8B, "BF16", Workload(context_tokens=tokens))
    assert candidate.fits


@pytest.mark.parametrize(
    ("engine", "kv", "offered"), [(VLLM, "q8_0", "fp8"), (OLLAMA, "fp8", "q4_0"), (LLAMACPP, "fp8", "q4_0")]
)
def test_a_cache_type_that_the_engine_has_not_is_refused_in_one_line(engine, kv, offered) -> None:  # type: ignore[no-untyped-def]
    quantization = BF16 if engine is VLLM else records.F16
    refused = refusal(
        LLAMA_8B, replace(records.LLAMA_F16, ollama_tag="x"), quantization, engine,
        Workload(context_tokens=4096, kv_cache_type=kv),
    )  # fmt: skip
    assert refused is not None
    assert refused.reason is RejectionReason.ENGINE_CANNOT_LOAD
    assert f"no {kv} KV cache" in refused.message
    assert refused.hint == f"--kv-cache {offered}"


def test_a_cache_type_of_no_engine_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="f16, q8_0, q4_0, fp8"):
        parse_workload("8k", 1, kv_cache="int3")
    assert parse_workload("8k", 1, kv_cache="fp8").kv_cache_type == "fp8"
