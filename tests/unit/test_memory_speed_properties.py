"""What has to hold for every model, machine and workload: laws that no table of examples can show.

All of it goes through `planner.assess`, the one function behind every command that sizes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from provision.catalog import Catalog, load_catalog
from provision.domain.hardware import Accelerator, Machine, MemoryPool, Origin
from provision.domain.llm import (
    AttentionLayers,
    Experts,
    LatentAttentionLayers,
    ModelBuild,
    ModelSpec,
    Precision,
    StateLayers,
)
from provision.domain.plan import Candidate, SpeedRange, Workload
from provision.sizing.planner import assess, is_resident, plan_builds, refusal
from provision.sizing.speed import efficiency_lookup
from provision.units import GIB, format_bytes, parse_bytes
from tests.helpers import run_cli

GB = 10**9
ENGINES = ("llamacpp", "ollama")
KINDS = ("Q4_K_M", "Q8_0", "F16")

# More examples in one go than by default finds more here: one example takes a millisecond.
laws = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@cache
def catalog() -> Catalog:
    return load_catalog()


@cache
def efficiency_of():
    return efficiency_lookup(catalog().efficiency, catalog().intervals)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Any shape that llama.cpp could load: grouped-query, sliding window, latent, recurrent, mixtures of experts."""
    head_dim = draw(st.sampled_from((64, 128, 256)))
    heads = draw(st.sampled_from((8, 16, 32, 64)))
    hidden = draw(st.sampled_from((1024, 2048, 4096, 8192)))
    count = draw(st.integers(4, 80))
    kv_heads = draw(st.sampled_from([n for n in (1, 2, 4, 8, 16) if heads % n == 0]))
    attention = AttentionLayers(count=count, kv_heads=kv_heads, key_dim=head_dim, value_dim=head_dim)
    kind = draw(st.sampled_from(("full", "window", "latent", "state")))
    if kind == "window":
        full = max(1, count // 6)
        window = draw(st.sampled_from((512, 1024, 4096)))
        layers = (replace(attention, count=count - full, window_tokens=window), replace(attention, count=full))
    elif kind == "latent":
        layers = (LatentAttentionLayers(count=count, latent_dim=512, rope_dim=64, key_dim=192, value_dim=128),)
    elif kind == "state":
        full = max(1, count // 4)
        layers = (StateLayers(count=count - full, state_bytes_per_sequence=2 * 2**20), replace(attention, count=full))
    else:
        layers = (attention,)
    feed_forward = draw(st.sampled_from((2, 3, 4))) * hidden
    vocabulary = draw(st.sampled_from((32_000, 128_256, 262_144)))
    experts = None
    if draw(st.integers(0, 3)) == 0:
        experts = Experts(count=draw(st.sampled_from((8, 64, 128))), used=4, feed_forward_size=hidden // 2)
    per_layer = 2 * hidden * head_dim * (heads + kv_heads)
    each = 3 * hidden * (experts.feed_forward_size * experts.count if experts else feed_forward)
    used = 3 * hidden * (experts.feed_forward_size * experts.used if experts else feed_forward)
    tied = draw(st.booleans())
    tables = vocabulary * hidden * (1 if tied else 2)
    return ModelSpec(
        id="generated",
        name="Generated",
        family="generated",
        parameters=count * (per_layer + each) + tables,
        active_parameters=count * (per_layer + used) + tables if experts else None,
        hidden_size=hidden,
        feed_forward_size=feed_forward,
        attention_heads=heads,
        vocabulary_size=vocabulary,
        context_tokens_max=2**20,
        tied_embeddings=tied,
        layers=layers,
        experts=experts,
        provenance={},
    )


@st.composite
def builds(draw: st.DrawFn):
    model = draw(models())
    quantization = catalog().quantization(draw(st.sampled_from(KINDS)))
    size = round(model.parameters * quantization.bits_per_weight / 8)
    build = ModelBuild(
        model=model.id,
        quantization=quantization.id,
        weights_bytes=size,
        precision=Precision.COMPUTED,
        ollama_tag="generated",
        source="generated",
    )
    return model, build, quantization


def card(index: int, memory_bytes: int, bandwidth: float) -> Accelerator:
    return Accelerator(
        index=index,
        vendor="nvidia",
        name=f"card {index}",
        device_class="nvidia-gddr",
        memory=MemoryPool(total_bytes=memory_bytes, bandwidth_bytes_per_s=bandwidth),
        fp16_flops_per_s=150e12,
    )


def machine(memory: list[int], bandwidth: float = 800e9, host_bandwidth: float = 70e9) -> Machine:
    return Machine(
        name="generated",
        origin=Origin.DECLARED,
        memory=MemoryPool(total_bytes=4096 * GIB, bandwidth_bytes_per_s=host_bandwidth),
        accelerators=tuple(card(index, size, bandwidth) for index, size in enumerate(memory)),
    )


sizes = st.integers(2, 160).map(lambda gib: gib * GIB)
bandwidths = st.floats(100e9, 8000e9)
workloads = st.builds(
    Workload,
    context_tokens=st.sampled_from((2048, 4096, 8192, 10_000, 32_768, 131_072)),
    users=st.sampled_from((1, 1, 2, 4, 16)),
    prompt_tokens=st.integers(1, 1024),
    output_tokens=st.integers(2, 1024),
    kv_cache_type=st.sampled_from(("f16", "q8_0", "q4_0")),
)
engines = st.sampled_from(ENGINES)


def sized(where: Machine, build, asked: Workload, engine: str = "llamacpp") -> Candidate:
    return assess(where, *build, catalog().engine(engine), asked, efficiency_of())


def decode(candidate: Candidate) -> SpeedRange:
    """Its decode speed; leaves the example out where nothing has been measured that a speed could be told from."""
    assume(candidate.speed is not None)
    return candidate.speed.decode_tokens_per_s


def at_most(smaller: float, larger: float) -> bool:
    return smaller <= larger * (1 + 1e-9)


def assert_takes_no_more(small: Candidate, large: Candidate) -> None:
    """Cache and state always; the whole where the same layers lie on the same devices: an empty card costs nothing."""
    for name in ("kv_cache_bytes", "state_bytes"):
        totals = [sum(getattr(device, name) for device in one.memory.devices) for one in (small, large)]
        assert totals == sorted(totals)
    if small.placement == large.placement:
        assert small.memory.total_bytes <= large.memory.total_bytes


def moves_whole_layers(*found: Candidate) -> bool:
    """Engines move the experts of a mixture to the host before whole layers, whichever of the two is faster: with
    experts moved, less room can by their own rule give the faster placement."""
    return not any(one.placement.expert_layers_on_host for one in found)


# Monotone


@laws
@given(builds(), sizes, bandwidths, st.floats(1, 4), workloads, engines)
def test_more_bandwidth_is_never_slower(build, size, bandwidth, factor, asked, engine):
    slow = decode(sized(machine([size], bandwidth), build, asked, engine))
    fast = decode(sized(machine([size], bandwidth * factor), build, asked, engine))
    for name in ("expected", "low", "high", "ceiling"):
        assert at_most(getattr(slow, name), getattr(fast, name)), name


@laws
@given(builds(), st.integers(2, 24), st.floats(10e9, 400e9), st.floats(1, 4), workloads)
def test_a_faster_host_memory_is_never_slower(build, gib, bandwidth, factor, asked):
    slow = decode(sized(machine([gib * GIB], host_bandwidth=bandwidth), build, asked))
    fast = decode(sized(machine([gib * GIB], host_bandwidth=bandwidth * factor), build, asked))
    assert at_most(slow.expected, fast.expected)
    assert at_most(slow.ceiling, fast.ceiling)


@laws
@given(builds(), st.lists(sizes, min_size=1, max_size=4), st.floats(1, 4), workloads, engines)
def test_more_memory_on_every_card_never_holds_fewer_layers(build, memory, factor, asked, engine):
    small = sized(machine(memory), build, asked, engine)
    large = sized(machine([round(size * factor) for size in memory]), build, asked, engine)
    assert small.placement.gpu_layers <= large.placement.gpu_layers
    assert small.fits <= large.fits
    assert is_resident(small) <= is_resident(large)


@laws
@given(builds(), sizes, st.floats(1, 4), workloads)
def test_a_larger_card_is_never_slower(build, size, factor, asked):
    small, large = (sized(machine([one]), build, asked) for one in (size, round(size * factor)))
    assume(moves_whole_layers(small, large))
    assert at_most(decode(small).expected, decode(large).expected)


@laws
@given(builds(), sizes, workloads, st.integers(2, 8))
def test_a_longer_context_takes_more_memory_and_is_never_faster(build, size, asked, factor):
    longer = replace(asked, context_tokens=asked.context_tokens * factor)
    short, long = (sized(machine([size]), build, one) for one in (asked, longer))
    assert_takes_no_more(short, long)
    assert short.fits >= long.fits
    assert short.placement.gpu_layers >= long.placement.gpu_layers
    assume(moves_whole_layers(short, long))
    assert at_most(decode(long).expected, decode(short).expected)


@laws
@given(builds(), sizes, workloads, st.integers(1, 1000))
def test_a_deeper_context_is_never_faster(build, size, asked, more):
    deeper = replace(asked, context_tokens=131_072, prompt_tokens=asked.prompt_tokens + more)
    asked = replace(asked, context_tokens=131_072)
    shallow, deep = (sized(machine([size]), build, one) for one in (asked, deeper))
    assert at_most(decode(deep).expected, decode(shallow).expected)
    assert at_most(decode(deep).ceiling, decode(shallow).ceiling)


@laws
@given(builds(), sizes, workloads, st.integers(1, 16))
def test_more_users_take_more_memory_and_are_each_served_no_faster(build, size, asked, more):
    crowd = replace(asked, users=asked.users + more)
    few, many = (sized(machine([size]), build, one) for one in (asked, crowd))
    assert_takes_no_more(few, many)
    assert few.fits >= many.fits
    assert few.placement.gpu_layers >= many.placement.gpu_layers
    assume(few.speed and many.speed and moves_whole_layers(few, many))
    each, each_of_many = (
        one.speed.system_output_tokens_per_s.expected / users
        for one, users in ((few, asked.users), (many, crowd.users))
    )
    assert at_most(each_of_many, each)


@laws
@given(builds(), workloads)
def test_a_smaller_cache_type_never_takes_a_larger_cache(build, asked):
    """The cache alone: engines need scratch memory to unpack a quantized one."""
    bills = [
        sized(machine([80 * GIB]), build, replace(asked, kv_cache_type=kind)).memory for kind in ("q4_0", "q8_0", "f16")
    ]
    totals = [sum(device.kv_cache_bytes for device in bill.devices) for bill in bills]
    assert totals == sorted(totals)


# Continuous where a layer first spills


@laws
@given(builds(), workloads, st.floats(20e9, 200e9))
def test_the_first_layer_that_spills_costs_no_more_than_itself(build, asked, host_bandwidth):
    """At the size of card where the last layer just goes on it, one byte less costs that layer's time and no cliff."""
    model, built, _ = build

    def at(size: int) -> Candidate:
        return sized(machine([size], host_bandwidth=host_bandwidth), build, asked)

    low, high = GIB // 4, 4096 * GIB
    assume(is_resident(at(high)))
    assert not is_resident(at(low))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_resident(at(middle)) else (middle, high)
    above, below = at(high), at(low)
    assert decode(below).expected <= decode(above).expected * (1 + 1e-9)
    # One layer, or the output matrix, read at the host's pace: what it reads there at most, times what is ever lost.
    tables = model.vocabulary_size * model.hidden_size * 2
    layer = (built.weights_bytes + kv_read_bytes(model, asked)) / model.layer_count
    worst_s = 3 * (2 * layer + tables) / host_bandwidth + 2e-3
    assert 1 / decode(below).expected - 1 / decode(above).expected <= worst_s
    moved = above.placement.gpu_layers - below.placement.gpu_layers
    assert moved <= 1 + model.layer_count // 16


def kv_read_bytes(model: ModelSpec, asked: Workload) -> float:
    """At 16 bits, at most."""
    depth = asked.prompt_tokens + asked.output_tokens
    total = 0.0
    for group in model.layers:
        if isinstance(group, AttentionLayers):
            total += group.count * depth * group.kv_heads * (group.key_dim + group.value_dim) * 2
        elif isinstance(group, LatentAttentionLayers):
            total += group.count * depth * (model.attention_heads * 320) * 2
    return total


# Limits


@laws
@given(builds(), st.lists(sizes, min_size=0, max_size=4), bandwidths, workloads, engines)
def test_nothing_is_predicted_above_its_ceiling(build, memory, bandwidth, asked, engine):
    speed = sized(machine(memory, bandwidth), build, asked, engine).speed
    if speed is None:
        return
    for figure in (speed.decode_tokens_per_s, speed.prefill_tokens_per_s, speed.system_output_tokens_per_s):
        if figure is not None:
            assert 0 < figure.low <= figure.expected <= figure.high
            assert figure.ceiling is None or at_most(figure.high, figure.ceiling)
    ttft = speed.ttft_s
    if ttft is not None:
        assert ttft.low <= ttft.expected <= ttft.high
        assert ttft.ceiling is None or at_most(ttft.ceiling, ttft.low)


@laws
@given(builds(), bandwidths, workloads)
def test_the_ceiling_of_a_dense_model_reads_its_weights_once(build, bandwidth, asked):
    model, built, _ = build
    assume(model.experts is None)
    found = sized(machine([4096 * GIB], bandwidth), build, replace(asked, users=1))
    tables = model.vocabulary_size * model.hidden_size * 2
    assert (
        decode(found).ceiling <= bandwidth / (built.weights_bytes - tables) * 1.02 or built.weights_bytes < 2 * tables
    )
    assert decode(found).ceiling >= 0.5 * bandwidth / (built.weights_bytes + kv_read_bytes(model, asked))


@laws
@given(builds(), st.lists(sizes, min_size=0, max_size=4), workloads, engines)
def test_the_bill_adds_up_and_no_weight_is_lost(build, memory, asked, engine):
    model, built, _ = build
    found = sized(machine(memory), build, asked, engine)
    for device in found.memory.devices:
        parts = (
            device.weights_bytes, device.kv_cache_bytes, device.state_bytes, device.compute_bytes,
            device.overhead_bytes,
        )  # fmt: skip
        assert min(parts) >= 0
        assert sum(parts) == device.total_bytes
    assert sum(device.total_bytes for device in found.memory.devices) == found.memory.total_bytes
    weights = sum(device.weights_bytes for device in found.memory.devices)
    # A tied table may be held twice; header and vocabulary are no tensors.
    tables = model.vocabulary_size * model.hidden_size * 2
    assert built.weights_bytes * 0.99 - 32 * 2**20 <= weights <= built.weights_bytes * 1.01 + tables
    assert sum(found.placement.split) == found.placement.gpu_layers <= found.placement.layers == model.layer_count


@laws
@given(builds(), st.lists(sizes, min_size=1, max_size=3), workloads, engines)
def test_the_same_question_has_the_same_answer(build, memory, asked, engine):
    assert sized(machine(memory), build, asked, engine) == sized(machine(memory), build, asked, engine)


# One function behind all commands


@laws
@given(builds(), st.lists(sizes, min_size=0, max_size=3), workloads, engines)
def test_a_plan_holds_what_assess_says(build, memory, asked, engine):
    where, spec = machine(memory), catalog().engine(engine)
    alone = assess(where, *build, spec, asked, efficiency_of())
    candidates, rejections = plan_builds(where, [build], [spec], asked, efficiency_of())
    if refusal(*build, spec, asked) is not None or not alone.fits:
        assert not candidates
        assert len(rejections) == 1
    else:
        (planned,) = candidates
        for name in ("memory", "placement", "speed", "fits", "context_tokens", "users"):
            assert getattr(planned, name) == getattr(alone, name), name


@pytest.mark.parametrize("gpu", ["RTX 4090", "2x RTX 3090", "RTX 4070 Ti Super"])
def test_plan_and_estimate_print_the_same_figures(gpu):
    where = ("--gpu", gpu, "--ram", "64GiB", "--memory-platform", "ddr5-5600-2ch", "--context", "8k", "--json")
    planned = run_cli("plan", "--model", "llama3.1:8b", "--model", "qwen2.5-coder:32b", *where).json["data"][
        "candidates"
    ]
    assert planned
    for candidate in planned:
        alone = run_cli("estimate", candidate["model"], "--quant", candidate["quantization"], *where)
        (case,) = alone.json["data"]["cases"]
        for name in ("memory", "placement", "speed", "fits"):
            assert case[name] == candidate[name], (candidate["id"], name)


# Units


@given(st.integers(1, 4096))
def test_a_gb_is_never_a_gib(size):
    assert parse_bytes(f"{size}GiB") == size * GIB
    assert parse_bytes(f"{size}GB") == size * GB
    assert parse_bytes(f"{size} gib") - parse_bytes(f"{size} gb") == size * (GIB - GB)


@given(st.integers(1, 2**52))
def test_what_is_printed_reads_back_as_what_it_was(size):
    printed = format_bytes(size)
    assert printed.split()[1] in ("B", "KiB", "MiB", "GiB", "TiB")
    assert parse_bytes(printed) == pytest.approx(size, rel=0.005)


@settings(max_examples=20, deadline=None)
@given(st.integers(8, 512))
def test_ram_in_gb_is_less_than_in_gib(size):
    decimal, binary = (
        run_cli("estimate", "llama3.1:8b", "--gpu", "RTX 4090", "--ram", f"{size}{unit}", "--json").json
        for unit in ("GB", "GiB")
    )
    capacities = [
        next(d["capacity_bytes"] for d in document["data"]["cases"][0]["memory"]["devices"] if d["device"] == "host")
        for document in (decimal, binary)
    ]
    assert capacities == [size * GB, size * GIB]


def test_capacity_weights_and_bandwidth_keep_their_own_units():
    """A card of 24 GiB at 1,008 GB/s and a file of 16.06 GB: no mix-up of the 7 % between them goes unseen."""
    document = run_cli("estimate", "llama3.1:8b", "--quant", "F16", "--gpu", "RTX 4090", "--context", "4k", "--json")
    (case,) = document.json["data"]["cases"]
    card_row = case["memory"]["devices"][0]
    assert 23.9 * GIB < card_row["capacity_bytes"] < 24.1 * GIB
    assert 61 < case["speed"]["decode_tokens_per_s"]["ceiling"] < 64
