"""Models that the catalog lacks are predicted from stand-ins of their shape: the cache that these keep must be the true
one, or speeds at depth are fitted to a cache that no model has."""

from __future__ import annotations

import pytest

from provision.domain.llm import AttentionLayers, LatentAttentionLayers
from tests.accuracy.speed_rows import model_of

# (as a row names it, bytes of an f16 cache per token: 2 x layers x KV heads x head dimension x 2, from the model's
# own configuration)
TRUE_CACHE = [
    ("Llama-2-7B", 2 * 32 * 32 * 128 * 2),
    ("Llama-3-8B", 2 * 32 * 8 * 128 * 2),
    ("Llama-3-70B", 2 * 80 * 8 * 128 * 2),
    ("Qwen2.5-14B", 2 * 48 * 8 * 128 * 2),
    ("Qwen3-32B", 2 * 64 * 8 * 128 * 2),
    ("Qwen3-30B-A3B", 2 * 48 * 4 * 128 * 2),
    ("Mistral-7B-Instruct-v0.3", 2 * 32 * 8 * 128 * 2),
    ("Phi-3.5-mini", 2 * 32 * 32 * 96 * 2),
    ("DeepSeek-R1-671B", 61 * 576 * 2),
]


@pytest.mark.parametrize(("name", "true_bytes"), TRUE_CACHE)
def test_a_stand_in_keeps_the_cache_of_the_model(name, true_bytes):
    per_token = 0
    for group in model_of(name, "", "", "", "").layers:
        if isinstance(group, AttentionLayers):
            per_token += group.count * group.kv_heads * (group.key_dim + group.value_dim) * 2
        elif isinstance(group, LatentAttentionLayers):
            per_token += group.count * (group.latent_dim + group.rope_dim) * 2
    assert per_token == true_bytes
