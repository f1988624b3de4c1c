"""What each layer keeps, by architecture: from metadata as converters write it."""

from __future__ import annotations

import pytest

from provision.domain.llm import AttentionLayers, LatentAttentionLayers, Layers, StateLayers
from provision.errors import InvalidFile
from provision.gguf.header import Header, Value
from provision.gguf.layers import Metadata, layers_of
from tests.gguf_files import llama

_MIB = 2**20


def _layers(architecture: str, **more: object) -> tuple[tuple[Layers, ...], tuple[int, ...]]:
    """Of the small model of `llama` (4 heads of 64, 2 of them for keys and values) with other metadata on top."""
    metadata: dict[str, Value] = {}
    for key, value in llama(architecture=architecture, **more).items():
        metadata[key] = tuple(value) if isinstance(value, list) else value  # type: ignore[assignment]
    return layers_of(Metadata(Header(label="model.gguf", metadata=metadata, tensors={}, file_bytes=0)))


def _attention(count: int, window: int | None = None, *, heads: int = 2, dim: int = 64) -> AttentionLayers:
    return AttentionLayers(count=count, kv_heads=heads, key_dim=dim, value_dim=dim, window_tokens=window)


def test_heads_alike_are_one_group() -> None:
    assert _layers("llama", block_count=5) == ((_attention(5),), ())


def test_head_size_is_what_the_file_says_before_what_the_width_gives() -> None:
    (group,), _ = _layers("qwen3", attention__key_length=128, attention__value_length=96)
    assert (group.key_dim, group.value_dim) == (128, 96)  # type: ignore[union-attr]


def test_without_a_number_of_key_heads_every_head_has_its_own() -> None:
    assert _layers("phi2", attention__head_count_kv=None) == ((_attention(2, heads=4),), ())


def test_heads_by_layer_make_groups_and_layers_without_heads_keep_nothing() -> None:
    groups, pattern = _layers("deci", block_count=4, attention__head_count_kv=[2, 0, 1, 2])
    nothing = StateLayers(count=1, state_bytes_per_sequence=0)
    assert groups == (_attention(2), nothing, _attention(1, heads=1))
    assert pattern == (0, 1, 2)  # the fourth layer begins the next round


@pytest.mark.parametrize(
    ("architecture", "more", "windows", "pattern"),
    [
        ("gemma2", {"attention__sliding_window": 4096}, (3, 3, 4096), (0, 1)),
        ("gemma2", {}, (3, 3, 4096), (0, 1)),
        ("gemma3", {"attention__sliding_window": 1024}, (5, 1, 1024), (0, 0, 0, 0, 0, 1)),
        ("cohere2", {"attention__sliding_window": 4096}, (5, 1, 4096), (0, 0, 0, 1)),
        ("gpt-oss", {"attention__sliding_window": 128}, (3, 3, 128), (0, 1)),
        ("llama4", {}, (5, 1, 8192), (0, 0, 0, 1)),
        ("olmo2", {"attention__sliding_window": 4096}, (5, 1, 4096), (0, 0, 0, 1)),
        ("gemma3", {"attention__sliding_window": 512, "attention__sliding_window_pattern": 3}, (4, 2, 512), (0, 0, 1)),
    ],
)
def test_windows_come_in_the_order_of_the_architecture(
    architecture: str, more: dict[str, object], windows: tuple[int, int, int], pattern: tuple[int, ...]
) -> None:
    in_window, full, tokens = windows
    expected = (_attention(in_window, tokens), _attention(full))
    assert _layers(architecture, block_count=6, **more) == (expected, pattern)


@pytest.mark.parametrize("architecture", ["gemma3", "olmo2", "cohere2"])
def test_without_a_window_size_every_layer_sees_everything(architecture: str) -> None:
    assert _layers(architecture, block_count=6) == ((_attention(6),), ())


def test_where_the_first_of_each_period_sees_everything() -> None:
    groups, pattern = _layers("smallthinker", block_count=8, attention__sliding_window=4096)
    assert groups == (_attention(2), _attention(6, 4096))
    assert pattern == (0, 1, 1, 1)


def test_windows_that_llama_cpp_does_not_use_are_not_counted_on() -> None:
    for architecture in ("phi3", "llama", "qwen2"):
        assert _layers(architecture, attention__sliding_window=2048) == ((_attention(2),), ())
    assert _layers("exaone4", block_count=32, attention__sliding_window=4096) == ((_attention(32),), ())
    groups, _ = _layers("exaone4", block_count=64, attention__sliding_window=4096)
    assert groups == (_attention(48, 4096), _attention(16))


def test_windows_by_layer_with_heads_of_another_size() -> None:
    groups, pattern = _layers(
        "gemma4",
        block_count=6,
        attention__sliding_window=1024,
        attention__sliding_window_pattern=[True, True, False] * 2,
        attention__head_count_kv=[2, 2, 1] * 2,
        attention__key_length=512,
        attention__value_length=512,
        attention__key_length_swa=256,
        attention__value_length_swa=256,
    )
    assert groups == (_attention(4, 1024, dim=256), _attention(2, heads=1, dim=512))
    assert pattern == (0, 0, 1)


def test_layers_that_use_the_cache_of_earlier_ones_have_no_heads_of_their_own() -> None:
    groups, _ = _layers(
        "gemma4",
        block_count=6,
        attention__sliding_window=512,
        attention__sliding_window_pattern=[True, False] * 3,
        attention__shared_kv_layers=4,
    )
    assert groups == (_attention(1, 512), _attention(1), _attention(2, 512, heads=0), _attention(2, heads=0))
    groups, _ = _layers("gemma3n", block_count=35, attention__sliding_window=512)
    assert groups == (_attention(16, 512), _attention(4), _attention(12, 512, heads=0), _attention(3, heads=0))


def test_without_the_pattern_that_only_the_file_can_say_nothing_is_guessed() -> None:
    with pytest.raises(InvalidFile, match=r"its 'attention\.sliding_window_pattern' is missing"):
        _layers("gemma4", attention__sliding_window=1024)


_LATENT = {
    "attention__kv_lora_rank": 512,
    "attention__q_lora_rank": 1536,
    "rope__dimension_count": 64,
}


def test_latent_attention_keeps_the_latent_vector_and_its_rope_part() -> None:
    split = {
        "attention__head_count_kv": 1,
        "attention__key_length": 576,
        "attention__value_length": 512,
        "attention__key_length_mla": 192,
        "attention__value_length_mla": 128,
    }
    expected = LatentAttentionLayers(count=2, latent_dim=512, rope_dim=64, key_dim=192, value_dim=128, query_rank=1536)
    assert _layers("deepseek2", **_LATENT, **split) == ((expected,), ())
    older = {"attention__head_count_kv": 4, "attention__key_length": 192, "attention__value_length": 128}
    assert _layers("deepseek2", **_LATENT, **older) == ((expected,), ())


# Bytes of recurrent state as llama.cpp prints them for one sequence (memory_recurrent: "R (f32)" and "S (f32)").


def test_the_state_of_gated_delta_nets() -> None:
    """Qwen3-Next-80B-A3B: 75.38 MiB over 36 layers, of 48."""
    groups, pattern = _layers(
        "qwen3next",
        block_count=48,
        ssm__conv_kernel=4,
        ssm__inner_size=4096,
        ssm__state_size=128,
        ssm__group_count=16,
        ssm__time_step_rank=32,
    )
    state, attention = groups
    assert isinstance(state, StateLayers)
    assert (state.count, attention) == (36, _attention(12))
    assert round(state.count * state.state_bytes_per_sequence / _MIB, 2) == 75.38
    assert pattern == (0, 0, 0, 1)


def test_an_interval_and_a_list_of_recurrent_layers() -> None:
    ssm = {"ssm__conv_kernel": 4, "ssm__inner_size": 64, "ssm__state_size": 16, "ssm__group_count": 2}
    assert _layers("qwen35", block_count=6, full_attention_interval=3, **ssm)[1] == (0, 0, 1)
    listed = _layers("qwen35", block_count=4, attention__recurrent_layers=[True, False, False, True], **ssm)
    assert listed[1] == (0, 1, 1)


def test_layers_for_predicting_further_tokens_are_left_out() -> None:
    ssm = {"ssm__conv_kernel": 4, "ssm__inner_size": 64, "ssm__state_size": 16, "ssm__group_count": 2}
    groups, _ = _layers("qwen35", block_count=9, nextn_predict_layers=1, **ssm)
    assert [group.count for group in groups] == [6, 2]
    assert _layers("glm4moe", block_count=5, nextn_predict_layers=1) == ((_attention(4),), ())


def test_mamba_keeps_a_state_in_every_layer() -> None:
    """Mamba-130M: 24 layers, inner 1536, state 16, kernel 4, all f32."""
    groups, _ = _layers(
        "mamba", block_count=24, attention__head_count=0, attention__head_count_kv=None,
        ssm__conv_kernel=4, ssm__inner_size=1536, ssm__state_size=16, ssm__time_step_rank=48,
    )  # fmt: skip
    assert groups == (StateLayers(count=24, state_bytes_per_sequence=4 * (3 * 1536 + 16 * 1536)),)


@pytest.mark.parametrize("architecture", ["jamba", "granitehybrid", "plamo2"])
def test_layers_without_key_heads_are_recurrent_in_hybrids(architecture: str) -> None:
    groups, pattern = _layers(
        architecture, block_count=8, attention__head_count_kv=[0, 0, 0, 2] * 2,
        ssm__conv_kernel=4, ssm__inner_size=512, ssm__state_size=128, ssm__group_count=1, ssm__time_step_rank=8,
    )  # fmt: skip
    bytes_each = 4 * (3 * (512 + 2 * 128) + 512 * 128)
    assert groups == (StateLayers(count=6, state_bytes_per_sequence=bytes_each), _attention(2))
    assert pattern == (0, 0, 0, 1)


def test_feed_forward_layers_of_nemotron_h_keep_nothing() -> None:
    groups, _ = _layers(
        "nemotron_h", block_count=4, attention__head_count_kv=[0, 0, 2, 0], feed_forward_length=[0, 512, 0, 512],
        ssm__conv_kernel=4, ssm__inner_size=512, ssm__state_size=128, ssm__group_count=8, ssm__time_step_rank=8,
    )  # fmt: skip
    state = StateLayers(count=1, state_bytes_per_sequence=4 * (3 * (512 + 2 * 8 * 128) + 512 * 128))
    assert groups == (state, StateLayers(count=2, state_bytes_per_sequence=0), _attention(1))


def test_falcon_h1_keeps_both_in_every_layer() -> None:
    (group,), _ = _layers(
        "falcon-h1", block_count=4, ssm__conv_kernel=4, ssm__inner_size=512, ssm__state_size=128, ssm__group_count=1,
    )  # fmt: skip
    assert isinstance(group, AttentionLayers)
    assert (group.count, group.kv_heads) == (4, 2)
    assert group.state_bytes_per_sequence == 4 * (3 * (512 + 2 * 128) + 512 * 128)


def test_short_convolutions_keep_their_last_columns() -> None:
    groups, _ = _layers("lfm2", block_count=3, attention__head_count_kv=[0, 2, 0], shortconv__l_cache=3)
    assert groups == (StateLayers(count=2, state_bytes_per_sequence=4 * 256 * 2), _attention(1))


def test_rwkv_keeps_a_matrix_for_each_head() -> None:
    groups, _ = _layers(
        "rwkv7", block_count=3, attention__head_count=0, attention__head_count_kv=None, wkv__head_size=64,
    )  # fmt: skip
    assert groups == (StateLayers(count=3, state_bytes_per_sequence=4 * (2 * 256 + 256 * 64)),)


def test_kimi_linear_mixes_latent_attention_and_states() -> None:
    split = {"attention__key_length": 576, "attention__key_length_mla": 192, "attention__value_length_mla": 128}
    groups, pattern = _layers(
        "kimi-linear", block_count=4, attention__head_count_kv=[0, 0, 0, 1], attention__head_count=32,
        kda__head_dim=128, ssm__conv_kernel=4, **_LATENT, **split,
    )  # fmt: skip
    state, latent = groups
    assert state == StateLayers(count=3, state_bytes_per_sequence=4 * (3 * 3 * 4096 + 128 * 4096))
    assert isinstance(latent, LatentAttentionLayers)
    assert pattern == (0, 0, 0, 1)


def test_an_unknown_architecture_is_said_to_be_one() -> None:
    with pytest.raises(InvalidFile, match="'deepseek99' is not known here, so its cache is not guessed"):
        _layers("deepseek99")


def test_a_state_beside_attention_is_counted_for_every_user() -> None:
    from provision.catalog import load_catalog
    from provision.domain.llm import ModelBuild, ModelSpec, Precision
    from provision.domain.plan import Workload
    from provision.sizing.kv_cache import bytes_by_group

    group = AttentionLayers(count=4, kv_heads=2, key_dim=64, value_dim=64, state_bytes_per_sequence=1000)
    model = ModelSpec(
        id="m", name="m", family="f", hidden_size=256, attention_heads=4, vocabulary_size=320, context_tokens_max=4096,
        tied_embeddings=True, layers=(group,), provenance={},
    )  # fmt: skip
    build = ModelBuild(model="m", quantization="Q8_0", weights_bytes=1, precision=Precision.EXACT, source="s")
    cache, state = bytes_by_group(
        model, build, Workload(context_tokens=1024, users=3), load_catalog().engine("llamacpp")
    )
    assert state == (3000,)
    assert cache == (3 * 1024 * 2 * 128 * 2,)
