"""Hand-made catalog records for the sizing tests: figures that can be checked on paper."""

from __future__ import annotations

from dataclasses import replace

from provision.domain.hardware import Accelerator, Machine, MemoryPool, Origin
from provision.domain.llm import (
    AttentionLayers,
    Efficiency,
    EngineSpec,
    ModelBuild,
    ModelSpec,
    Precision,
    Quantization,
    SpeedInterval,
)
from provision.sizing.efficiency import efficiency_lookup
from provision.units import GIB, MIB

SOURCE = {"*": "test"}

LLAMA_8B = ModelSpec(
    id="llama3.1:8b",
    name="Llama 3.1 8B",
    family="llama",
    parameters=8_030_261_248,
    hidden_size=4096,
    feed_forward_size=14336,
    attention_heads=32,
    vocabulary_size=128_256,
    context_tokens_max=131_072,
    tied_embeddings=False,
    layers=(AttentionLayers(count=32, kv_heads=8, key_dim=128, value_dim=128),),
    provenance=SOURCE,
)
QWEN_32B = ModelSpec(
    id="qwen2.5-coder:32b",
    name="Qwen2.5-Coder 32B",
    family="qwen2",
    parameters=32_763_876_352,
    hidden_size=5120,
    feed_forward_size=27648,
    attention_heads=40,
    vocabulary_size=152_064,
    context_tokens_max=32_768,
    tied_embeddings=False,
    layers=(AttentionLayers(count=64, kv_heads=8, key_dim=128, value_dim=128),),
    provenance=SOURCE,
)


def build(model: ModelSpec, quantization: str, weights_bytes: int) -> ModelBuild:
    return ModelBuild(
        model=model.id,
        quantization=quantization,
        weights_bytes=weights_bytes,
        precision=Precision.EXACT,
        source="test",
    )


LLAMA_F16 = build(LLAMA_8B, "F16", 16_061_054_976)
LLAMA_Q4 = build(LLAMA_8B, "Q4_K_M", 4_912_898_048)
QWEN_Q4 = build(QWEN_32B, "Q4_K_M", 19_851_336_576)

F16 = Quantization(
    id="F16", container="gguf", bits_per_weight=16, embedding_bits_per_weight=16, output_bits_per_weight=16, rank=100,
    provenance=SOURCE,
)  # fmt: skip
Q4_K_M = Quantization(
    id="Q4_K_M", container="gguf", bits_per_weight=4.89, embedding_bits_per_weight=4.5, output_bits_per_weight=6.5625,
    rank=50, provenance=SOURCE,
)  # fmt: skip

OLLAMA = EngineSpec(
    id="ollama",
    version="0.32.15",
    containers=("gguf",),
    multi_device="layer_split",
    partial_offload=True,
    default_context_tokens=None,
    device_overhead_bytes=250 * MIB,
    device_reserve_bytes=457 * MIB,
    reserve_holds_overhead=True,
    batch_tokens=512,
    provenance=SOURCE,
)
LLAMACPP = replace(OLLAMA, id="llamacpp")


def card(index: int = 0, *, memory_bytes: int = 24564 * MIB, bandwidth: float = 1008e9) -> Accelerator:
    return Accelerator(
        index=index,
        vendor="nvidia",
        name="NVIDIA GeForce RTX 4090",
        device_class="nvidia-gddr",
        memory=MemoryPool(total_bytes=memory_bytes, bandwidth_bytes_per_s=bandwidth),
        fp16_flops_per_s=330.3e12,
    )


def machine(*cards: Accelerator, ram_bytes: int | None = 64 * GIB, ram_bandwidth: float | None = 89.6e9) -> Machine:
    return Machine(
        name="test",
        origin=Origin.DECLARED,
        memory=MemoryPool(total_bytes=ram_bytes, bandwidth_bytes_per_s=ram_bandwidth),
        accelerators=cards,
    )


def _factors(term: str, scope: str, **factors: float) -> Efficiency:
    keys = {key.replace("_", "-"): value for key, value in factors.items()}
    return Efficiency(term=term, scope=scope, factors=keys, samples=dict.fromkeys(keys, 10), source="test")


efficiency_of = efficiency_lookup(
    [
        _factors("memory", "device_class", nvidia_gddr=1.25, cpu=1.5),
        _factors("compute", "all", all=0.01),
        _factors("prompt_compute", "all", all=2.0),
    ],
    [
        SpeedInterval(measure=m, group="all", low_ratio=0.8, high_ratio=1.2, samples=9, sources=9, source="test")
        for m in ("decode", "prefill", "together")
    ],
)
"""Weights at 1 / 1.25 of the bandwidth (1 / 1.5 on the host), no card of another class."""
