"""Weights to the byte of published files, buffers as llama.cpp's own allocator gives them, and where things are put."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from provision.catalog import load_catalog
from provision.domain.llm import AttentionLayers, Experts, LatentAttentionLayers, ModelSpec, ModelTask, Quantization
from provision.domain.plan import Placement, Workload
from provision.sizing import compute_buffer, kv_cache, memory, weights
from provision.sizing.demand import traffic
from provision.sizing.kv_cache import CacheShape
from provision.units import GIB, MIB
from tests.unit.records import LLAMA_8B, LLAMA_Q4, LLAMACPP, Q4_K_M, QWEN_32B, QWEN_Q4, card, machine


def model(architecture, count, hidden, heads, kv_heads, head_dim, inner, vocabulary, *, tied=False, **more):
    groups = (AttentionLayers(count=count, kv_heads=kv_heads, key_dim=head_dim, value_dim=head_dim),)
    return ModelSpec(
        id=architecture, name=architecture, family="", architecture=architecture, hidden_size=hidden,
        feed_forward_size=inner, attention_heads=heads, vocabulary_size=vocabulary, context_tokens_max=131_072,
        tied_embeddings=tied, provenance={}, **({"layers": groups} | more),
    )  # fmt: skip


def latent(layers, *, query_rank=None):
    return (
        LatentAttentionLayers(
            count=layers, latent_dim=512, rope_dim=64, key_dim=192, value_dim=128, query_rank=query_rank
        ),
    )


def windows(windowed, full, kv_heads, head_dim, window):
    common = {"kv_heads": kv_heads, "key_dim": head_dim, "value_dim": head_dim}
    return {
        "layers": (
            AttentionLayers(count=windowed, window_tokens=window, **common),
            AttentionLayers(count=full, **common),
        ),
        "layer_pattern": (0, 0, 0, 0, 0, 1),
    }


LLAMACPP_NOW = load_catalog().engine("llamacpp")
USED = Workload(context_tokens=4096, users=1)
LLAMA_70B = model("llama", 80, 8192, 64, 8, 128, 28_672, 128_256)
LLAMA = replace(LLAMA_8B, architecture="llama")
QWEN = model("qwen2", 64, 5120, 40, 8, 128, 27_648, 152_064)
QWEN_MOE = model(
    "qwen3moe", 48, 2048, 32, 4, 128, None, 151_936, experts=Experts(count=128, used=8, feed_forward_size=768)
)
GEMMA = model("gemma3", 62, 5376, 32, 16, 128, 21_504, 262_208, tied=True, **windows(52, 10, 16, 128, 1024))
GPT_OSS = model(
    "gpt-oss", 24, 2880, 64, 8, 64, None, 201_088, **windows(12, 12, 8, 64, 128),
    experts=Experts(count=32, used=4, feed_forward_size=2880),
)  # fmt: skip
DEEPSEEK_LITE = model(
    "deepseek2", 27, 2048, 16, 16, 128, 10_944, 102_400, layers=latent(27),
    experts=Experts(count=64, used=6, feed_forward_size=1408, shared_feed_forward_size=2816, dense_layers=1),
)  # fmt: skip
DEEPSEEK_V3 = model(
    "deepseek2", 61, 7168, 128, 1, 128, 18_432, 129_280, layers=latent(61, query_rank=1536),
    experts=Experts(count=256, used=8, feed_forward_size=2048, shared_feed_forward_size=2048, dense_layers=3),
)  # fmt: skip
SMOL = model("llama", 30, 576, 9, 3, 64, 1536, 49_152, tied=True)


def quantization(name):
    return Quantization(
        id=name, container="gguf", bits_per_weight=4.0, embedding_bits_per_weight=4.0, output_bits_per_weight=4.0,
        rank=0, provenance={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "mix", "tensor_bytes"),
    [
        (LLAMA, "Q4_K_M", 4_912_898_048),
        (LLAMA, "Q6_K", 6_588_170_240),
        (LLAMA_70B, "Q4_K_M", 42_512_531_456),
        (QWEN, "Q4_K_M", 19_845_357_568),
        (QWEN, "Q5_K_M", 23_256_178_688),
        (QWEN_MOE, "Q4_K_M", 18_550_716_416),
        (QWEN_MOE, "Q8_0", 32_477_962_240),
        (GEMMA, "Q5_K_M", 19_265_112_704),
    ],
)
def test_published_tensor_bytes_follow_from_the_shape(spec, mix, tensor_bytes):
    assert weights.computed_bytes(spec, quantization(mix)) == tensor_bytes


@pytest.mark.parametrize(
    ("mix", "bits_per_weight"),
    # llama.cpp's own table for Llama-3.1-8B (tools/quantize/README.md)
    [("Q2_K", 3.1593), ("Q3_K_S", 3.6429), ("Q3_K_L", 4.2979), ("Q4_K_S", 4.6672), ("Q5_K_S", 5.5704),
     ("IQ2_XXS", 2.3824), ("IQ3_XXS", 3.2548)],
)  # fmt: skip
def test_mixes_have_the_published_bits_per_weight(mix, bits_per_weight):
    assert weights.computed_bytes(LLAMA, quantization(mix)) * 8 / LLAMA.parameters == pytest.approx(
        bits_per_weight, abs=1e-4
    )


def test_an_old_latent_file_has_the_joined_matrix():
    joined = weights.computed_bytes(DEEPSEEK_LITE, quantization("Q4_K_M"), expanded_cache=True)
    assert joined == pytest.approx(10_360_420_352, abs=8192), "router biases of later models are counted"


def test_a_makers_own_mix_is_scaled_to_its_file():
    build = replace(LLAMA_Q4, weights_bytes=4_500_000_000)
    layout = weights.layout(LLAMA, build, Q4_K_M)
    assert layout.embedding_bytes == 128_256 * 4096 * 144 // 256
    assert layout.embedding_bytes + layout.output_bytes + sum(layout.layer_bytes) == pytest.approx(4.5e9, abs=64)


@pytest.mark.parametrize(
    ("spec", "settings", "device_mib", "host_mib"),
    # (context, step, slots, flash attention, outputs): what llama.cpp of 2026 reserves with one accelerator
    [
        (LLAMA, (8192, 512, 1, True, 1), 116.01, 24.01),
        (LLAMA, (8192, 512, 1, False, 1), 564.01, 36.01),
        (LLAMA, (8192, 512, 1, True, 512), 258.50, 24.01),
        (LLAMA, (32_768, 2048, 1, True, 1), 560.04, 192.05),
        (LLAMA, (4096, 512, 4, True, 4), 112.01, 20.01),
        (QWEN, (32_768, 256, 1, False, 1), 1334.00, 44.00),
        (QWEN_MOE, (8192, 512, 1, True, 1), 92.01, 16.01),
        (QWEN_MOE, (8192, 512, 1, False, 1), 554.01, 26.01),
        (GEMMA, (8192, 512, 1, True, 1), 164.52, 30.52),
        (GEMMA, (4096, 512, 4, True, 4), 163.02, 29.02),
        (GPT_OSS, (8192, 512, 1, True, 1), 95.52, 20.02),
        (GPT_OSS, (32_768, 256, 1, False, 1), 2096.13, 40.13),
        (DEEPSEEK_V3, (8192, 512, 1, True, 1), 386.01, 36.01),
        (DEEPSEEK_V3, (8192, 512, 1, False, 1), 2442.01, 44.01),
        (SMOL, (8192, 512, 1, True, 1), 20.38, 10.26),
        (SMOL, (8192, 512, 1, True, 512), 97.12, 10.26),
    ],
)
def test_compute_buffers_are_what_the_allocator_reserves(spec, settings, device_mib, host_mib):
    context, step, slots, flash, outputs = settings
    engine = replace(LLAMACPP, flash_attention=flash, batch_tokens=step)
    cache = CacheShape(context_tokens=context, streams=1, slots=slots, batch_tokens=step)
    graph = compute_buffer.graph_shape(spec, engine, cache, step, outputs)
    assert compute_buffer.device_bytes(graph, with_output=True) / MIB == pytest.approx(device_mib, rel=0.016)
    assert compute_buffer.host_bytes(graph) / MIB == pytest.approx(host_mib, rel=0.05)


def test_devices_that_share_layers_keep_copies_of_the_inputs():
    engine = replace(LLAMACPP, flash_attention=False)
    cache = CacheShape(context_tokens=8192, streams=1, slots=1, batch_tokens=512)
    graph = compute_buffer.graph_shape(LLAMA, engine, cache, 512, 512)
    of = [compute_buffer.device_bytes(graph, with_output=i == 3, first=i == 0, pipelined=True) for i in range(4)]
    assert [round(b / MIB) for b in of] == [656, 688, 688, 688]
    old = compute_buffer.graph_shape(LLAMA, replace(engine, graph="llama.cpp-2024"), cache, 512, 512)
    assert compute_buffer.device_bytes(old, with_output=True, pipelined=True) == 640 * MIB, "a public log of May 2024"


def test_a_quantized_cache_is_unpacked_on_accelerators_only():
    f16 = CacheShape(context_tokens=131_072, streams=1, slots=1, batch_tokens=512)
    q8 = replace(f16, key_type="q8_0", value_type="q8_0")
    plain, packed = (compute_buffer.graph_shape(LLAMA, LLAMACPP, c, 512, 1) for c in (f16, q8))
    one_layer = 131_072 * 2 * 1024 * 2
    assert packed.cache_as_f16 == one_layer
    assert compute_buffer.device_bytes(packed, with_output=True) > compute_buffer.device_bytes(plain, with_output=True)
    on_host = compute_buffer.device_bytes(packed, with_output=True, unpacks_cache=False)
    assert on_host == compute_buffer.device_bytes(plain, with_output=True)


@pytest.mark.parametrize(
    ("group", "shape", "expected"),
    [
        # gpt-oss in public logs: 128 x slots + step, rounded up to 256
        (GPT_OSS.layers[0], CacheShape(8192, 1, 1, 512), 768),
        (GPT_OSS.layers[0], CacheShape(8192, 1, 1, 2048), 2304),
        (AttentionLayers(count=1, kv_heads=1, key_dim=1, value_dim=1, window_tokens=1024),
         CacheShape(8192, 1, 4, 2048), 6144),
        # slots with caches of their own have windows of their own
        (AttentionLayers(count=1, kv_heads=1, key_dim=1, value_dim=1, window_tokens=1024),
         CacheShape(8192, 4, 4, 512), 1536),
        (AttentionLayers(count=1, kv_heads=1, key_dim=1, value_dim=1, window_tokens=1024),
         CacheShape(512, 1, 1, 512), 512),
        (AttentionLayers(count=1, kv_heads=1, key_dim=1, value_dim=1, window_tokens=1024),
         CacheShape(8192, 1, 4, 512, full_window=True), 8192),
    ],
)  # fmt: skip
def test_cells_of_a_sliding_window(group, shape, expected):
    assert kv_cache.cells(group, shape) == expected


@pytest.mark.parametrize(
    ("shape", "expanded", "mib"),
    # DeepSeek R1, 61 layers, in public logs
    [
        (CacheShape(16_384, 1, 1, 512), False, 1098.0),
        (CacheShape(32_768, 1, 1, 512, key_type="q8_0"), False, 1166.62),
        (CacheShape(512, 1, 1, 512), True, 2440.0),
        (CacheShape(8192, 1, 1, 512, key_type="q8_0"), True, 28_060.0),
        (CacheShape(16_384, 1, 1, 512, latent_values=True), False, 2074.0),
    ],
)
def test_a_latent_cache_depends_on_file_and_engine(shape, expanded, mib):
    of_layer = kv_cache.layer_bytes(DEEPSEEK_V3.layers[0], shape, expanded=expanded, heads=128)
    assert 61 * of_layer / MIB == pytest.approx(mib, abs=0.01)


def test_layers_are_split_as_llama_cpp_splits_them():
    # Public logs of two, four and six equal cards: the output counts as one more layer at the end
    assert memory.default_split(32, [24] * 2) == [17, 15]
    assert memory.default_split(32, [24] * 4) == [9, 8, 8, 7]
    assert memory.default_split(32, [24] * 6) == [6, 5, 6, 5, 6, 4]
    assert memory.default_split(61, [24] * 16) == [4, 4, 4, 4, 4, 4, 4, 3, 4, 4, 4, 4, 4, 4, 4, 2]
    assert memory.default_split(32, [1, 0]) == [32, 0]


MOE_BUILD = replace(LLAMA_Q4, model="qwen3moe", weights_bytes=18_550_716_416)
MOE_ENGINE = replace(LLAMACPP, experts_on_host=True)


def placed(memory_gib, spec=QWEN_MOE, build=MOE_BUILD, engine=MOE_ENGINE, cards=1, **workload):
    where = machine(*(card(i, memory_bytes=int(memory_gib * GIB)) for i in range(cards)), ram_bytes=256 * GIB)
    load = Workload(**({"context_tokens": 8192} | workload))
    return memory.place(where, spec, build, Q4_K_M, engine, load)


def test_experts_go_to_the_host_before_whole_layers_do():
    resident, _ = placed(24)
    assert (resident.gpu_layers, resident.expert_layers_on_host) == (48, 0)
    spilled, bill = placed(12)
    assert spilled.gpu_layers == 48
    assert 10 < spilled.expert_layers_on_host < 40
    assert memory.fits(bill)
    gpu, host = bill.devices
    assert host.weights_bytes > gpu.weights_bytes / 4
    assert gpu.kv_cache_bytes == 48 * 8192 * 2048, "the cache stays on the card"
    without, _ = placed(12, engine=LLAMACPP)
    assert without.expert_layers_on_host == 0
    assert without.gpu_layers < 48


def test_more_memory_never_leaves_more_behind():
    moved = [placed(gib / 4, cards=cards)[0] for cards in (1, 2) for gib in range(8, 100, 3)]
    for one, more in itertools.pairwise(moved):
        if one.split and len(one.split) == len(more.split):
            assert (more.gpu_layers, -more.expert_layers_on_host) >= (one.gpu_layers, -one.expert_layers_on_host)


@pytest.mark.parametrize("cards", [0, 1, 2])
@pytest.mark.parametrize("gib", [6, 12, 16, 24])
@pytest.mark.parametrize(("spec", "build"), [(QWEN_MOE, MOE_BUILD), (QWEN_32B, QWEN_Q4)])
def test_a_placement_that_is_given_back_costs_the_same(spec, build, gib, cards):
    where = machine(*(card(i, memory_bytes=gib * GIB) for i in range(cards)), ram_bytes=256 * GIB)
    load = Workload(context_tokens=8192)
    placement, bill = memory.place(where, spec, build, Q4_K_M, MOE_ENGINE, load)
    assert memory.itemise(where, spec, build, Q4_K_M, MOE_ENGINE, load, placement) == bill
    assert memory.fits(bill)


def test_older_engines_leave_the_output_matrix_on_the_host():
    where = machine(card(memory_bytes=12 * GIB), ram_bytes=64 * GIB)
    load = Workload(context_tokens=8192)
    new, new_bill = memory.place(where, QWEN, QWEN_Q4, Q4_K_M, LLAMACPP, load)
    old_engine = replace(LLAMACPP, graph="llama.cpp-2024")
    old, old_bill = memory.place(where, QWEN, QWEN_Q4, Q4_K_M, old_engine, load)
    assert (new.output_on_host, old.output_on_host) == (False, True)
    assert memory.fits(new_bill)
    assert memory.fits(old_bill)
    total = 19_845_357_568
    for bill in (new_bill, old_bill):
        assert sum(d.weights_bytes for d in bill.devices) == total


def test_a_tied_table_is_on_the_host_and_again_with_the_output():
    where = machine(card(), ram_bytes=64 * GIB)
    build = replace(LLAMA_Q4, model="gemma3", weights_bytes=16_540_125_824)
    split = Placement(gpu_layers=62, layers=62, split=(62,))
    bill = memory.itemise(where, GEMMA, build, Q4_K_M, LLAMACPP, Workload(context_tokens=4096), split)
    gpu, host = bill.devices
    table = 262_208 * 5376 * 210 // 256
    assert host.weights_bytes == table
    assert gpu.weights_bytes == 16_540_125_824


def test_decoders_that_embed_keep_a_cache_and_encoders_do_not():
    embedder = replace(LLAMA_8B, task=ModelTask.EMBEDDING, architecture="qwen3")
    load = Workload(context_tokens=4096)
    cache, _ = kv_cache.bytes_by_group(embedder, LLAMA_Q4, load, LLAMACPP)
    assert cache == kv_cache.bytes_by_group(LLAMA_8B, LLAMA_Q4, load, LLAMACPP)[0] != (0.0,)
    for name in ("bert", "nomic-bert", "jina-bert-v2", "modern-bert"):
        assert kv_cache.bytes_by_group(replace(embedder, architecture=name), LLAMA_Q4, load, LLAMACPP)[0] == (0.0,)


def test_a_state_beside_attention_is_streamed_like_one_of_its_own():
    (group,) = LLAMA_8B.layers
    both = replace(LLAMA_8B, layers=(replace(group, state_bytes_per_sequence=1000),))
    plain, beside = (traffic(model, LLAMA_Q4, Q4_K_M) for model in (LLAMA_8B, both))
    assert beside.state_bytes == 32 * 1000
    assert beside.cache_bytes(100) == plain.cache_bytes(100) + 2 * 32 * 1000


def test_the_output_matrix_goes_to_a_card_before_any_layer():
    """llama.cpp counts layers from the end, the output first: no card has layers without it, and none more of them
    for having less room."""
    found = [
        memory.place(machine(card(memory_bytes=GIB + mib * MIB)), QWEN_32B, QWEN_Q4, Q4_K_M, LLAMACPP_NOW, USED)[0]
        for mib in range(0, 4096, 64)
    ]
    layers = [placement.gpu_layers for placement in found]
    assert layers == sorted(layers)
    assert layers[0] == 0 < layers[-1] < QWEN_32B.layer_count
    assert all(placement.output_on_host == (placement.gpu_layers == 0) for placement in found)
