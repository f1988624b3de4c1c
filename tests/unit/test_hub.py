"""Addresses, tokens, and what hubs say: nothing secret is shown or sent, and nothing they say is a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provision.domain.llm import AttentionLayers, LatentAttentionLayers, StateLayers
from provision.errors import ProvisionError, UsageError
from provision.hub import huggingface, ollama
from provision.hub.config import model_of_config
from provision.hub.found import name_from
from provision.hub.http import Remote, endpoint_of, joined, shown
from provision.safetensors import StoredTensor
from tests.helpers import run_cli

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def test_addresses_as_people_write_them() -> None:
    assert endpoint_of("mirror.example/", "a hub") == "https://mirror.example"
    assert endpoint_of("127.0.0.1:5000", "a registry") == "http://127.0.0.1:5000"
    for text in ("ftp://x", "http://", "https://x:99999", "https://[", "https://x?y", "https://x#y"):
        with pytest.raises(UsageError):
            endpoint_of(text, "a hub")


def test_what_may_be_secret_is_not_shown() -> None:
    assert shown("https://user:word@x.example:8443/a/b?signature=1#c") == "https://x.example:8443/a/b"
    assert shown("http://[::1]:80/a") == "http://[::1]:80/a"
    assert "word" not in shown("https://user:word@[x/a?b=word")


def test_a_token_is_not_sent_in_clear_over_a_network() -> None:
    def sends(endpoint: str, url: str) -> bool:
        return bool(Remote(endpoint, token="secret")._authorization(url))

    assert sends("https://hub.example", "https://hub.example/api")
    assert sends("https://hub.example", "https://HUB.example:443/api")
    assert sends("http://127.0.0.1:8080", "http://127.0.0.1:8080/api")
    assert not sends("http://hub.example", "http://hub.example/api")
    assert not sends("https://hub.example", "http://hub.example/api")
    assert not sends("https://hub.example", "https://hub.example:8443/api")
    assert not sends("https://hub.example", "https://hub.example.evil.example/api")
    assert not sends("https://hub.example", "https://user@evil.example/hub.example")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=40), st.from_regex(r"(https?:)?//[^/]{0,20}(:[0-9]{0,6})?/.{0,10}")))
def test_wherever_a_redirect_leads_it_is_an_address_or_nothing(target: str) -> None:
    url = joined("https://hub.example/a/b", target)
    assert url is None or url.startswith(("http://", "https://"))
    shown(url or target)


@settings(max_examples=300, deadline=None)
@given(_JSON)
def test_listings_and_manifests_of_any_json(document: Any) -> None:
    remote = Remote("https://hub.example")
    for act in (lambda: huggingface._files(document, remote), lambda: huggingface._files([document], remote)):
        try:
            files = act()
        except ProvisionError:
            continue
        repository = huggingface.Repository(name="x/y", files=tuple(files))
        assert len(repository.gguf_files()) <= len(files)
    ollama._sized(document, None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen2.5-Coder-32B-Instruct-Q4_K_M.gguf", "qwen2.5-coder-32b-instruct"),
        ("Llama-3.3-70B-Instruct-UD-Q4_K_XL-00001-of-00002.gguf", "llama-3.3-70b-instruct"),
        ("gemma-3-27b-it-GGUF", "gemma-3-27b-it"),
        ("model.Q8_0.gguf", "model"),
        ("DeepSeek-R1-0528-bf16.GGUF", "deepseek-r1-0528"),
        ("\x1b[2J", "2j"),
        ("..", "model"),
        ("日本語", "model"),
    ],
)
def test_names_of_files_give_names_of_models(text: str, name: str) -> None:
    assert name_from(text) == name


@pytest.mark.parametrize("text", ["a/b:c", "a/b", "a.b-c_d/E.f"])
def test_references_to_repositories(text: str) -> None:
    assert huggingface.split_reference(text)[0] == text.partition(":")[0]


# Configurations


def _tensors(count: int = 2) -> dict[str, StoredTensor]:
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(count))]
    return {n: StoredTensor(n, "BF16", (100, 64), i * 12_800, 12_800) for i, n in enumerate(names)}


_SMALL = {
    "model_type": "qwen3", "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 90,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
}  # fmt: skip


def _layers(**more: object) -> tuple[tuple[object, ...], tuple[int, ...]]:
    config = {**_SMALL, **more}
    model, _, _ = model_of_config(config, _tensors(4), 10**6, name="m", label="x/y", source="s")
    assert model.vocabulary_size == 100  # the table's rows, padded, before what the configuration says
    return model.layers, model.layer_pattern


def test_windows_and_states_are_read_from_the_kinds_of_layers() -> None:
    full = AttentionLayers(count=1, kv_heads=2, key_dim=32, value_dim=32)
    window = AttentionLayers(count=3, kv_heads=2, key_dim=32, value_dim=32, window_tokens=512)
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    assert _layers(model_type="gemma3_text", sliding_window=512, layer_types=kinds) == ((window, full), (0, 0, 0, 1))
    linear = {
        "linear_conv_kernel_dim": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    }  # fmt: skip
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    state = StateLayers(count=3, state_bytes_per_sequence=2_195_456)
    assert _layers(model_type="qwen3_next", layer_types=kinds, **linear) == ((state, full), (0, 0, 0, 1))


def test_latent_attention_is_read_from_its_ranks() -> None:
    ranks = {
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    }  # fmt: skip
    (group,), _ = _layers(model_type="deepseek_v3", num_key_value_heads=4, head_dim=None, **ranks)
    assert group == LatentAttentionLayers(
        count=4, latent_dim=512, rope_dim=64, key_dim=192, value_dim=128, query_rank=1536
    )


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_configurations_with_anything_in_them(data: st.DataObject) -> None:
    config: dict[str, Any] = dict(_SMALL) | {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "layer_types": ["full_attention"] * 4,
        "sliding_window": 512, "quantization_config": {"quant_method": "awq", "bits": 4}, "text_config": None,
        "kv_lora_rank": None, "first_k_dense_replace": 1, "n_shared_experts": 1, "linear_num_value_heads": 1,
    }  # fmt: skip
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=4)):
        config[key] = data.draw(_JSON)
    config = json.loads(json.dumps(config))
    try:
        model, build, _ = model_of_config(config, _tensors(), 10**6, name="m", label="x/y", source="s")
    except ProvisionError as error:
        refused: ProvisionError | None = error
    else:
        refused = None
        assert model.layer_count >= 1
        assert build.weights_bytes == 10**6
    assert refused is None or (refused.hint and "\n" not in refused.message)


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("https://example.com/x.gguf", "hf:OWNER/REPO --endpoint https://HOST"),
        ("hf:", "provision catalog add hf:"),
        ("ollama:", "provision catalog add ollama:"),
        ("foo", "ollama:foo"),
    ],
)
def test_what_names_no_model_gets_a_hint_that_does(what, hint):
    error = run_cli("catalog", "add", what, "--json")
    assert error.json["exit_code"] == 2
    assert error.json["errors"][0]["hint"].startswith(hint)
