"""What we read of recurrent and hybrid models from a header is what the real llama.cpp keeps when it loads the file.

Small models of every kind of recurrence, all weights zero, written tensor by tensor as llama.cpp wants them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.catalog import load_catalog
from provision.domain.plan import Workload
from provision.gguf import read_model
from provision.sizing.kv_cache import bytes_by_group
from provision.units import MIB
from tests import gguf_files
from tests.gguf_files import F16, F32, TensorSpec, llama
from tests.integration.loading import Settings, load

pytestmark = pytest.mark.slow

_VOCABULARY = 300
_WIDTH, _INNER, _FEED_FORWARD = 256, 512, 512
_GROUPS, _STATE, _HEADS = 2, 128, 8
"""Of the recurrent branch."""
_CONTEXT_TOKENS = 512


def _tokens() -> dict[str, object]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [f"t{number}" for number in range(_VOCABULARY)],
        "tokenizer.ggml.token_type": [1] * _VOCABULARY,
        "tokenizer.ggml.merges": ["t 1"],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 0,
    }


def _norm(layer: int, name: str, size: int = _WIDTH) -> TensorSpec:
    return f"blk.{layer}.{name}.weight", (size,), F32


def _matrix(layer: int, name: str, columns: int, rows: int) -> TensorSpec:
    return f"blk.{layer}.{name}.weight", (columns, rows), F16


def _heads(layer: int, *, gated: bool = False, norms: bool = False) -> Iterator[TensorSpec]:
    """4 heads of 64, 2 of them for keys and values."""
    yield _matrix(layer, "attn_q", _WIDTH, 512 if gated else 256)
    yield _matrix(layer, "attn_k", _WIDTH, 128)
    yield _matrix(layer, "attn_v", _WIDTH, 128)
    yield _matrix(layer, "attn_output", 256, _WIDTH)
    if norms:
        yield _norm(layer, "attn_q_norm", 64)
        yield _norm(layer, "attn_k_norm", 64)


def _feed_forward(layer: int) -> Iterator[TensorSpec]:
    yield _matrix(layer, "ffn_gate", _WIDTH, _FEED_FORWARD)
    yield _matrix(layer, "ffn_up", _WIDTH, _FEED_FORWARD)
    yield _matrix(layer, "ffn_down", _FEED_FORWARD, _WIDTH)


def _mamba(layer: int) -> Iterator[TensorSpec]:
    rank, state = 16, 16
    yield _matrix(layer, "ssm_in", _WIDTH, 2 * _INNER)
    yield f"blk.{layer}.ssm_conv1d.weight", (4, _INNER), F32
    yield f"blk.{layer}.ssm_conv1d.bias", (_INNER,), F32
    yield _matrix(layer, "ssm_x", _INNER, rank + 2 * state)
    yield _matrix(layer, "ssm_dt", rank, _INNER)
    yield f"blk.{layer}.ssm_dt.bias", (_INNER,), F32
    yield f"blk.{layer}.ssm_a", (state, _INNER), F32
    yield f"blk.{layer}.ssm_d", (_INNER,), F32
    yield _matrix(layer, "ssm_out", _INNER, _WIDTH)


def _mamba2(layer: int, *, norm: bool = True) -> Iterator[TensorSpec]:
    convolved = _INNER + 2 * _GROUPS * _STATE
    yield _matrix(layer, "ssm_in", _WIDTH, _INNER + convolved + _HEADS)
    yield f"blk.{layer}.ssm_conv1d.weight", (4, convolved), F32
    yield f"blk.{layer}.ssm_conv1d.bias", (convolved,), F32
    yield f"blk.{layer}.ssm_dt.bias", (_HEADS,), F32
    yield f"blk.{layer}.ssm_a", (1, _HEADS), F32
    yield f"blk.{layer}.ssm_d", (1, _HEADS), F32
    if norm:
        yield f"blk.{layer}.ssm_norm.weight", (_INNER // _GROUPS, _GROUPS), F32
    yield _matrix(layer, "ssm_out", _INNER, _WIDTH)


def _delta_net(layer: int) -> Iterator[TensorSpec]:
    """4 heads of 128 for values, 2 for keys."""
    convolved = _INNER + 2 * _GROUPS * _STATE
    yield _matrix(layer, "attn_qkv", _WIDTH, convolved)
    yield _matrix(layer, "attn_gate", _WIDTH, _INNER)
    yield f"blk.{layer}.ssm_conv1d.weight", (4, convolved), F32
    yield f"blk.{layer}.ssm_dt.bias", (4,), F32
    yield f"blk.{layer}.ssm_a", (4,), F32
    yield _matrix(layer, "ssm_beta", _WIDTH, 4)
    yield _matrix(layer, "ssm_alpha", _WIDTH, 4)
    yield _norm(layer, "ssm_norm", _STATE)
    yield _matrix(layer, "ssm_out", _INNER, _WIDTH)


_SSM2 = {
    "ssm.conv_kernel": 4, "ssm.inner_size": _INNER, "ssm.state_size": _STATE, "ssm.time_step_rank": _HEADS,
    "ssm.group_count": _GROUPS,
}  # fmt: skip


def _model(name: str) -> tuple[dict[str, object], list[TensorSpec]]:
    """Metadata and tensors of one kind."""
    tensors: list[TensorSpec] = [("token_embd.weight", (_WIDTH, _VOCABULARY), F16)]
    final = "token_embd_norm" if name == "lfm2" else "output_norm"
    tensors.append((f"{final}.weight", (_WIDTH,), F32))
    more: dict[str, object] = {"attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": _VOCABULARY}
    more["attention.layer_norm_epsilon"] = 1e-5
    layers = 4
    attends = [layer == 3 for layer in range(layers)]
    kv_heads = [2 if attention else 0 for attention in attends]
    for layer in range(layers):
        tensors.append(_norm(layer, "attn_norm"))
    if name == "mamba":
        more |= {"ssm.conv_kernel": 4, "ssm.inner_size": _INNER, "ssm.state_size": 16, "ssm.time_step_rank": 16}
        more |= {"attention.head_count": 0, "attention.head_count_kv": None, "feed_forward_length": 0}
        for layer in range(layers):
            tensors += _mamba(layer)
    elif name == "mamba2":
        more |= _SSM2 | {"attention.head_count": 0, "attention.head_count_kv": None, "feed_forward_length": 0}
        for layer in range(layers):
            tensors += _mamba2(layer)
    elif name == "lfm2":
        more |= {"attention.head_count_kv": kv_heads, "shortconv.l_cache": 3}
        for layer in range(layers):
            tensors += [_norm(layer, "ffn_norm"), *_feed_forward(layer)]
            if attends[layer]:
                tensors += _heads(layer, norms=True)
            else:
                tensors.append((f"blk.{layer}.shortconv.conv.weight", (3, _WIDTH), F32))
                tensors.append(_matrix(layer, "shortconv.in_proj", _WIDTH, 3 * _WIDTH))
                tensors.append(_matrix(layer, "shortconv.out_proj", _WIDTH, _WIDTH))
    elif name == "qwen35":
        more |= _SSM2 | {"ssm.time_step_rank": 4, "attention.key_length": 64, "attention.value_length": 64}
        more |= {"rope.dimension_sections": [8, 8, 8, 0], "rope.dimension_count": 32}
        for layer in range(layers):
            tensors += [_norm(layer, "post_attention_norm"), *_feed_forward(layer)]
            tensors += _heads(layer, gated=True, norms=True) if attends[layer] else _delta_net(layer)
    elif name == "nemotron_h":
        more |= _SSM2 | {"attention.head_count_kv": [0, 0, 2, 0], "feed_forward_length": [0, _FEED_FORWARD, 0, 0]}
        for layer, kind in enumerate("mfam"):
            if kind == "m":
                tensors += _mamba2(layer)
            elif kind == "a":
                tensors += _heads(layer)
            else:
                tensors.append(_matrix(layer, "ffn_up", _WIDTH, _FEED_FORWARD))
                tensors.append(_matrix(layer, "ffn_down", _FEED_FORWARD, _WIDTH))
    elif name == "granitehybrid":
        more |= _SSM2 | {"attention.head_count_kv": kv_heads, "attention.scale": 1.0, "residual_scale": 1.0}
        more |= {"embedding_scale": 1.0, "logit_scale": 1.0}
        for layer in range(layers):
            tensors += [_norm(layer, "ffn_norm"), *_feed_forward(layer)]
            tensors += _heads(layer) if attends[layer] else _mamba2(layer)
    elif name == "falcon-h1":
        more |= _SSM2
        for layer in range(layers):
            tensors += [*_heads(layer), *_mamba2(layer), *_feed_forward(layer)]
            tensors.append((f"blk.{layer}.ffn_norm", (_WIDTH,), F32))
    shape = {key.replace(".", "__"): value for key, value in more.items()}
    return llama(layers, architecture=name, **shape) | _tokens() | {"general.file_type": 1}, tensors


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", ["mamba", "mamba2", "lfm2", "qwen35", "nemotron_h", "granitehybrid", "falcon-h1"])
def test_states_are_those_that_llama_cpp_keeps(name: str, slots: int, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.gguf"
    file.write_bytes(gguf_files.whole(*_model(name)))
    model, build, _ = read_model(file)
    workload = Workload(context_tokens=_CONTEXT_TOKENS, users=slots)
    cache, state = bytes_by_group(model, build, workload, load_catalog().engine("llamacpp"))
    ours = [sum(g.count * each for g, each in zip(model.layers, kind, strict=True)) for kind in (cache, state)]
    (real,) = load(file, Settings(_CONTEXT_TOKENS, slots))
    rounding = 0.006 * MIB * max(1, len(real.caches))
    assert ours[0] == pytest.approx(sum(real.kv_cache.values()), abs=rounding)
    assert ours[1] == pytest.approx(sum(real.state.values()), abs=rounding)
    assert ours[1] > 0
    assert build.layout is not None
    held = build.layout.embedding_bytes + build.layout.output_bytes + sum(build.layout.layer_bytes)
    assert held == pytest.approx(sum(real.weights.values()), rel=1e-3, abs=rounding)
