"""Checkpoint sizes from shapes, against what published checkpoints weigh to the byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.domain.llm import AttentionLayers, Experts, LatentAttentionLayers, ModelSpec, StateLayers
from provision.sizing.safetensors import FORMATS, safetensors_bytes, weight_format, weight_shapes
from tests.unit.records import LLAMA_8B, SOURCE

LLAMA_70B = replace(
    LLAMA_8B,
    id="llama3.1:70b",
    parameters=70_553_706_496,
    hidden_size=8192,
    feed_forward_size=28672,
    attention_heads=64,
    layers=(AttentionLayers(count=80, kv_heads=8, key_dim=128, value_dim=128),),
)
GPT_OSS_20B = ModelSpec(
    id="gpt-oss:20b",
    name="gpt-oss 20B",
    family="gpt-oss",
    parameters=20_914_757_184,
    active_parameters=3_600_000_000,
    hidden_size=2880,
    feed_forward_size=2880,
    attention_heads=64,
    vocabulary_size=201_088,
    context_tokens_max=131_072,
    tied_embeddings=False,
    layers=(
        AttentionLayers(count=12, kv_heads=8, key_dim=64, value_dim=64, window_tokens=128),
        AttentionLayers(count=12, kv_heads=8, key_dim=64, value_dim=64),
    ),
    experts=Experts(count=32, used=4, feed_forward_size=2880),
    provenance=SOURCE,
)
DEEPSEEK_V2_LITE = ModelSpec(
    id="deepseek-coder-v2:16b",
    name="DeepSeek Coder V2 Lite",
    family="deepseek",
    parameters=15_706_484_224,
    active_parameters=2_661_150_208,
    hidden_size=2048,
    feed_forward_size=10944,
    attention_heads=16,
    vocabulary_size=102_400,
    context_tokens_max=163_840,
    tied_embeddings=False,
    layers=(LatentAttentionLayers(count=27, latent_dim=512, rope_dim=64, key_dim=192, value_dim=128),),
    experts=Experts(count=64, used=6, feed_forward_size=1408, shared_feed_forward_size=2816, dense_layers=1),
    provenance=SOURCE,
)
MODELS = (LLAMA_8B, LLAMA_70B, GPT_OSS_20B, DEEPSEEK_V2_LITE)


@pytest.mark.parametrize(
    ("model", "quantization", "published"),
    [
        # Sums over the headers of the published files: public GitHub file index id 69638059123.
        (LLAMA_8B, "BF16", 16_060_522_496),
        (LLAMA_8B, "FP8", 9_083_953_152),  # RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic
        (LLAMA_8B, "GPTQ_INT4", 5_735_587_840),  # RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16 (AutoGPTQ)
        (LLAMA_70B, "W4A16", 39_525_311_232),  # RedHatAI/Llama-3.3-70B-Instruct-quantized.w4a16
        # `total_size` of the published index: public GitHub file index id 49343980400.
        (LLAMA_70B, "AWQ", 39_767_785_472),
        (GPT_OSS_20B, "MXFP4", 13_761_264_768),  # index id 31112482743
    ],
)
def test_bytes_of_published_checkpoints_are_met_exactly(model: ModelSpec, quantization: str, published: int) -> None:
    assert safetensors_bytes(model, quantization) == published


def test_nvfp4_is_met_but_for_scalars() -> None:
    # nvidia/Llama-3.3-70B-Instruct-FP4, same index id; scalar scales are stored in a mix of types.
    assert safetensors_bytes(LLAMA_70B, "NVFP4") == pytest.approx(42_709_045_632, rel=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_shapes_add_up_to_the_published_parameter_count(model: ModelSpec) -> None:
    assert safetensors_bytes(model, "BF16") == 2 * (model.parameters or 0)
    # What the count has beyond matrices, tables and two norms a layer is small: biases and a few more norms.
    without = weight_shapes(replace(model, parameters=None))
    explained = safetensors_bytes(replace(model, parameters=None), "BF16") / 2
    assert explained == pytest.approx(model.parameters, rel=0.002)
    assert without.state.weights == 0


def test_mxfp4_leaves_attention_alone_where_there_are_experts() -> None:
    attention = weight_shapes(GPT_OSS_20B).split.weights
    experts = weight_shapes(GPT_OSS_20B).experts.weights
    assert safetensors_bytes(GPT_OSS_20B, "MXFP4") > 2 * attention + experts * 4.25 / 8
    assert safetensors_bytes(LLAMA_8B, "MXFP4") < safetensors_bytes(LLAMA_8B, "NVFP4")


def test_a_feed_forward_part_without_a_gate_is_told_by_the_parameter_count() -> None:
    two = replace(LLAMA_8B, parameters=8_030_261_248 - 32 * 4096 * 14336)
    assert safetensors_bytes(two, "BF16") == 2 * (two.parameters or 0)


def test_experts_of_some_layers_only_take_what_the_parameter_count_leaves() -> None:
    sparse = replace(GPT_OSS_20B, parameters=10_000_000_000)
    assert safetensors_bytes(sparse, "BF16") == 20_000_000_000
    assert 0.7 * 10e9 < weight_shapes(sparse).experts.weights < 10e9


def test_recurrent_layers_take_what_the_parameter_count_leaves() -> None:
    hybrid = replace(
        LLAMA_8B,
        parameters=8_630_261_248,
        layers=(*LLAMA_8B.layers, StateLayers(count=1, state_bytes_per_sequence=1 << 20)),
    )
    shapes = weight_shapes(hybrid)
    assert shapes.state.weights > 0.4e9
    # 8-bit formats quantize those projections, AWQ does not.
    assert safetensors_bytes(hybrid, "BF16") == 2 * 8_630_261_248
    assert safetensors_bytes(hybrid, "AWQ") - safetensors_bytes(LLAMA_8B, "AWQ") > 2 * shapes.state.weights


def test_names_are_folded_and_unknown_formats_refused() -> None:
    assert weight_format("gptq-int4") is FORMATS["GPTQ_INT4"]
    assert weight_format("fp8-dynamic") is FORMATS["FP8"]
    assert weight_format("Q4_K_M") is None
    with pytest.raises(ValueError, match="not a safetensors format"):
        safetensors_bytes(LLAMA_8B, "Q4_K_M")


@given(
    layers=st.integers(1, 100),
    hidden=st.sampled_from([512, 2048, 5120]),
    inner=st.sampled_from([1024, 8192]),
    tied=st.booleans(),
)
def test_fewer_bits_never_weigh_more(layers: int, hidden: int, inner: int, tied: bool) -> None:
    model = replace(
        LLAMA_8B,
        parameters=None,
        hidden_size=hidden,
        feed_forward_size=inner,
        tied_embeddings=tied,
        layers=(AttentionLayers(count=layers, kv_heads=4, key_dim=128, value_dim=128),),
    )
    sizes = [safetensors_bytes(model, name) for name in ("BF16", "GPTQ_INT8", "FP8", "NVFP4", "GPTQ_INT4", "AWQ")]
    assert sizes == sorted(sizes, reverse=True)
