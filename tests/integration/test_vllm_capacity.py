"""The KV cache that the real vLLM makes of a given memory, against what is predicted: on a CPU, for several shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provision.catalog import load_catalog
from provision.domain.llm import AttentionLayers, LatentAttentionLayers, Layers, ModelSpec, StateLayers
from provision.domain.plan import Workload
from provision.sizing.safetensors import safetensors_bytes
from provision.sizing.vllm import cache_pool
from provision.units import GIB
from tests.lab.vllm_engine import cache_sizes, served_cache, vllm_python, write_model
from tests.unit.records import LLAMA_8B

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CONTEXT, STEP = 2048, 512

_BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = (AttentionLayers(count=4, kv_heads=2, key_dim=64, value_dim=64),)

SHAPES: dict[str, tuple[dict[str, Any], tuple[Layers, ...]]] = {
    "grouped-query": ({}, _GROUPED),
    "window-everywhere": (
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 256},
        (replace(_GROUPED[0], window_tokens=256),),
    ),
    "five-windows-to-one": (
        {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "num_hidden_layers": 12,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "sliding_window": 256,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2,
            "query_pre_attn_scalar": 64,
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_local_base_freq": 10000.0,
            "tie_word_embeddings": True,
        },
        (
            AttentionLayers(count=10, kv_heads=1, key_dim=128, value_dim=128, window_tokens=256),
            AttentionLayers(count=2, kv_heads=1, key_dim=128, value_dim=128),
        ),
    ),
    "latent": (
        {
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "num_key_value_heads": 4,
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "head_dim": 192,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 128,
            "moe_layer_freq": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "greedy",
            "scoring_func": "softmax",
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": False,
        },
        (LatentAttentionLayers(count=4, latent_dim=512, rope_dim=64, key_dim=192, value_dim=128),),
    ),
    "recurrent": (
        {
            "architectures": ["Qwen3NextForCausalLM"],
            "model_type": "qwen3_next",
            "num_hidden_layers": 8,
            "head_dim": 128,
            "full_attention_interval": 4,
            "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 128,
            "shared_expert_intermediate_size": 128,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "partial_rotary_factor": 0.25,
        },
        (
            # 8 heads of 64 x 64 and the last 3 inputs of 2 x 4 x 64 + 8 x 64 channels, 16 bits each.
            StateLayers(count=6, state_bytes_per_sequence=2 * (8 * 64 * 64 + 3 * 1024)),
            AttentionLayers(count=2, kv_heads=2, key_dim=128, value_dim=128),
        ),
    ),
}


@pytest.fixture(scope="module")
def vllm() -> Path:
    """Skipped where it cannot be installed, also where the lab must run: its torch is not on the public index."""
    try:
        return vllm_python()
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no vLLM for the CPU here: {error}")


def test_cache_of_every_kind_of_layer_is_what_vllm_makes_of_it(vllm: Path, tmp_path: Path) -> None:
    folders = [write_model(tmp_path / name, _BASE | changes) for name, (changes, _) in SHAPES.items()]
    made = cache_sizes(vllm, folders, CONTEXT, STEP, kv_bytes=GIB)
    assert [Path(m["folder"]).name for m in made] == list(SHAPES)
    for result, (name, (_, layers)) in zip(made, SHAPES.items(), strict=True):
        blocks, tokens, concurrency = predicted(layers, CONTEXT, result["step"])
        assert blocks == result["blocks"], name
        assert tokens == pytest.approx(result["tokens"], rel=0.03), name
        assert concurrency == pytest.approx(result["concurrency"], rel=0.03), name


def test_served_model_prints_the_predicted_cache_and_weighs_what_its_shape_says(vllm: Path, tmp_path: Path) -> None:
    spec = spec_of(_GROUPED)
    folder = write_model(tmp_path / "model", _BASE, _llama_tensors())
    stored = (folder / "model.safetensors").read_bytes()
    header_bytes = 8 + int.from_bytes(stored[:8], "little")
    assert safetensors_bytes(spec, "BF16") == len(stored) - header_bytes
    tokens, concurrency = served_cache(vllm, folder, CONTEXT, GIB, tmp_path / "vllm.log")
    _, expected_tokens, expected_concurrency = predicted(_GROUPED, CONTEXT, STEP)
    assert expected_tokens == pytest.approx(tokens, rel=0.03)
    assert expected_concurrency == pytest.approx(concurrency, rel=0.03)


def predicted(layers: tuple[Layers, ...], context: int, step: int) -> tuple[int, int, float]:
    """Blocks, tokens and concurrency in 1 GiB."""
    engine = load_catalog().engine("vllm")
    assert engine.paged is not None
    tier = replace(engine.paged.host_tier, step_tokens=step)
    pool = cache_pool(spec_of(layers), engine, Workload(context_tokens=context), tier, host=True)
    assert pool is not None
    blocks = pool.count(GIB)
    tokens = pool.capacity_tokens(blocks, context)
    return blocks, tokens, tokens / context


def spec_of(layers: tuple[Layers, ...]) -> ModelSpec:
    return replace(
        LLAMA_8B,
        parameters=None,
        hidden_size=_BASE["hidden_size"],
        feed_forward_size=_BASE["intermediate_size"],
        attention_heads=_BASE["num_attention_heads"],
        vocabulary_size=_BASE["vocab_size"],
        context_tokens_max=_BASE["max_position_embeddings"],
        layers=layers,
    )


def _llama_tensors() -> dict[str, tuple[int, ...]]:
    hidden, inner, vocabulary = 256, 512, 1024
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(4):
        own = {
            "self_attn.q_proj": (256, hidden),
            "self_attn.k_proj": (128, hidden),
            "self_attn.v_proj": (128, hidden),
            "self_attn.o_proj": (hidden, 256),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return tensors | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
