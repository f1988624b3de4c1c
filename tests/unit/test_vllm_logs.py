"""Predictions against what real starts of vLLM printed; every log with its place.

The constants of the engine's record (scratch per logit, graphs, runtime, driver) come from the same logs: this holds
them together, it does not show how well they do elsewhere. Weights and blocks have no such constants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pytest

from provision.catalog import load_catalog
from provision.domain.hardware import Accelerator, Machine, MemoryPool, Origin
from provision.domain.llm import AttentionLayers, EngineSpec, Experts, ModelSpec, Precision, ServingTier, StateLayers
from provision.domain.plan import MemoryEstimate, Workload
from provision.sizing.kv_blocks import BlockPool, CacheShape, block_pool
from provision.sizing.safetensors import safetensors_bytes
from provision.sizing.vllm import device_weights, place
from provision.units import GIB, MIB
from tests.unit import records
from tests.unit.records import LLAMA_8B
from tests.unit.test_safetensors import GPT_OSS_20B, LLAMA_70B


def dense(
    parameters: int, hidden: int, inner: int, heads: int, layers: int, kv_heads: int, *, dim: int = 128,
    vocabulary: int = 151_936, context: int = 32_768, tied: bool = False,
) -> ModelSpec:  # fmt: skip
    return replace(
        LLAMA_8B,
        parameters=parameters,
        hidden_size=hidden,
        feed_forward_size=inner,
        attention_heads=heads,
        vocabulary_size=vocabulary,
        context_tokens_max=context,
        tied_embeddings=tied,
        layers=(AttentionLayers(count=layers, kv_heads=kv_heads, key_dim=dim, value_dim=dim),),
    )


QWEN25_7B = dense(7_615_616_512, 3584, 18944, 28, 28, 4, vocabulary=152_064)
QWEN25_05B = dense(494_032_768, 896, 4864, 14, 24, 2, dim=64, tied=True)
QWEN3_4B = dense(4_022_468_096, 2560, 9728, 32, 36, 8, context=40_960, tied=True)
QWEN3_8B = dense(8_190_735_360, 4096, 12288, 32, 36, 8, context=40_960)
QWEN3_30B_A3B = replace(
    dense(30_532_122_624, 2048, 6144, 32, 48, 4, context=40_960),
    active_parameters=3_345_000_000,
    experts=Experts(count=128, used=8, feed_forward_size=768),
)


@pytest.mark.parametrize(
    ("model", "quantization", "devices", "printed_gib"),
    [
        (LLAMA_8B, "BF16", 1, 14.9889),  # vllm pull/17122
        (LLAMA_70B, "INT8", 1, 67.7229),  # vllm pull/12569
        (QWEN25_7B, "AWQ", 1, 5.2032),  # vllm issues/13882
        (QWEN3_8B, "AWQ", 1, 5.7071),  # public GitHub file index id 62412218909
        (GPT_OSS_20B, "MXFP4", 1, 13.72),  # https://myoceane.fr/index.php/ai-vllm-a100-gemma-4/
        (QWEN3_30B_A3B, "BF16", 2, 28.4767),  # public GitHub file index id 59657012071
        (QWEN3_30B_A3B, "BF16", 4, 14.2474),  # vllm issues/17469
        (QWEN3_30B_A3B, "NVFP4", 2, 8.44),  # public GitHub file index id 56288543507
    ],
)
def test_weights_on_each_device_are_what_model_loading_took(
    model: ModelSpec, quantization: str, devices: int, printed_gib: float
) -> None:
    build = records.build(model, quantization, safetensors_bytes(model, quantization))
    assert device_weights(model, build, devices) / GIB == pytest.approx(printed_gib, rel=0.005)


@dataclass(frozen=True)
class Start:
    model: ModelSpec
    quantization: str
    card: str
    memory_mib: int
    """As nvidia-smi reports it."""
    fraction: float
    context: int
    printed_tokens: int
    source: str
    charges_graphs: bool = True
    """Graphs count since 0.21."""
    step_tokens: int | None = None


STARTS = [
    Start(QWEN25_7B, "BF16", "RTX 4090", 24564, 0.85, 2048, 83_376, "0.24.0, public file index id 54570340937"),
    Start(QWEN25_05B, "BF16", "RTX 4090", 24564, 0.85, 2048, 1_579_808, "0.24.0, the same"),
    Start(QWEN3_8B, "BF16", "RTX A5000", 24564, 0.9764, 16384, 46_368, "0.21.0, LMCache issues/3430", step_tokens=8192),
    Start(QWEN3_4B, "AWQ", "RTX 6000 Ada", 49140, 0.85, 2048, 268_560, "2026-09, vllm pull/57047"),
    Start(LLAMA_8B, "BF16", "A100-SXM4-40GB", 40960, 0.90, 32768, 163_168, "public file index id 53366851321", False),
    Start(LLAMA_8B, "BF16", "RTX A6000", 49140, 0.90, 32768, 221_824, "the same", False),
    Start(LLAMA_8B, "BF16", "H100 NVL", 95830, 0.90, 32768, 545_456, "the same", False),
]


def predicted(start: Start) -> MemoryEstimate:
    engine = load_catalog().engine("vllm")
    paged = engine.paged
    assert paged is not None
    if not start.charges_graphs:
        paged = replace(paged, graph_bytes=0, graph_bytes_per_layer=0, graph_bytes_per_expert_layer=0)
    if start.step_tokens:
        tier = ServingTier(from_memory_bytes=0, step_tokens=start.step_tokens, sequences=256)
        paged = replace(paged, tiers=(tier,))
    engine = replace(engine, memory_fraction=start.fraction, paged=paged)
    return sized(start.model, start.quantization, engine, start.context, start.card, start.memory_mib * MIB)


def sized(
    model: ModelSpec, quantization: str, engine: EngineSpec, context: int, card: str, memory_bytes: int
) -> MemoryEstimate:
    build = records.build(model, quantization, safetensors_bytes(model, quantization))
    build = replace(build, precision=Precision.COMPUTED)
    accelerator = Accelerator(index=0, vendor="nvidia", name=card, memory=MemoryPool(total_bytes=memory_bytes))
    machine = Machine(
        name="test",
        origin=Origin.DECLARED,
        memory=MemoryPool(total_bytes=64 * GIB),
        accelerators=(accelerator,),
    )
    return place(machine, model, build, records.F16, engine, Workload(context_tokens=context))[1]


@pytest.mark.parametrize("start", STARTS, ids=lambda s: f"{s.card}-{s.printed_tokens}")
def test_cache_is_what_the_start_printed(start: Start) -> None:
    assert predicted(start).kv_capacity_tokens == pytest.approx(start.printed_tokens, rel=0.05)


def test_most_starts_are_met_within_a_percent() -> None:
    errors = [abs((predicted(s).kv_capacity_tokens or 0) / s.printed_tokens - 1) for s in STARTS]
    assert median(errors) < 0.01


def pool(layers: tuple[Any, ...], *, state_blocks: int = 2, in_flight: int = 0) -> BlockPool:
    found = block_pool(CacheShape(layers, 2.0, 16, state_blocks, in_flight, 1))
    assert found is not None
    return found


def test_blocks_grow_until_a_page_of_attention_holds_a_recurrent_state() -> None:
    """Qwen3.5 9B, 0.19 (public file index id 51781852921): 528 tokens to a block, 2.52 requests of 256k in 20.27 GiB,
    itself rounded.
    """
    state = 4 * 32 * 128 * 128 + 2 * 3 * (2 * 16 * 128 + 32 * 128)  # of 32 heads in 32 bits, of the inputs in 16
    layers = (
        StateLayers(count=24, state_bytes_per_sequence=state),
        AttentionLayers(count=8, kv_heads=4, key_dim=256, value_dim=256),
    )
    made = pool(layers, state_blocks=1)
    assert made.block_tokens == 528
    blocks = made.count(int(20.27 * GIB))
    # That version printed blocks / tables x block as its size: 165,792.
    assert blocks // 4 * made.block_tokens == 165_792
    assert blocks / made.blocks(262_144) == pytest.approx(2.52, abs=0.01)


def test_the_same_of_a_larger_model() -> None:
    """Qwen3.6 27B with an fp8 cache (club-3090 issues/1047): 1,568 tokens to a block."""
    state = 4 * 48 * 128 * 128 + 2 * 3 * (2 * 16 * 128 + 48 * 128)
    layers = (
        StateLayers(count=48, state_bytes_per_sequence=state),
        AttentionLayers(count=16, kv_heads=4, key_dim=256, value_dim=256),
    )
    made = block_pool(CacheShape(layers, 1.0, 16, 2, 0, 1))
    assert made is not None
    assert made.block_tokens == 1568


def test_narrower_layers_take_more_tokens_to_a_page() -> None:
    """Gemma 4 E4B, 0.22.1 (public file index id 54492899325): 224,353 tokens, 6.85 requests of 32k in 4.1 GiB.

    24 of its layers have a cache of their own: 20 windows of 512 with heads of 256, 4 full ones with heads of 512.
    """
    layers = (
        AttentionLayers(count=20, kv_heads=2, key_dim=256, value_dim=256, window_tokens=512),
        AttentionLayers(count=4, kv_heads=2, key_dim=512, value_dim=512),
    )
    made = pool(layers, in_flight=2048)
    blocks = made.count(int(4.1 * GIB))
    assert blocks / made.blocks(32_768) == pytest.approx(6.85, abs=0.01)
    assert made.capacity_tokens(blocks, 32_768) == pytest.approx(224_353, rel=0.003)
