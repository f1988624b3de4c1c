"""The catalog that we ship: every rule holds, and figures that others rely on are there."""

import json
import tomllib
from datetime import date

import pytest

from provision import catalog as catalog_module
from provision.catalog import SCHEMAS, load_catalog, schema
from provision.catalog_rules import check_catalog
from provision.domain.llm import AttentionLayers, LatentAttentionLayers
from provision.resources import data_dir

FILES = sorted(data_dir("catalog").rglob("*.toml"))
NAMED_MODELS = (
    "qwen2.5-coder:32b",
    "deepseek-coder-v2:16b",
    "codestral:22b",
    "llama3.1:8b",
    "qwen2.5:32b",
    "mistral-small:24b",
    "nomic-embed-text",
    "llama3.1:70b",
    "llama3.3:70b",
    "smollm2:135m",
)


@pytest.fixture(autouse=True)
def _no_entries_of_the_user(monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "shared-cache"))


def test_every_rule_holds():
    report = check_catalog(today=date(2026, 12, 1))
    assert [finding.message for finding in report.errors] == []
    assert report.warnings == ()


def test_sources_grow_old():
    report = check_catalog(today=date(2028, 1, 1))
    assert len(report.warnings) == len(load_catalog().sources)
    assert "was last checked on 2026-11-" in report.warnings[0].message


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_those_of_the_types(name):
    written = json.loads((data_dir("catalog") / "schema" / f"{name}.json").read_text())
    assert written == schema(name), 'run: python -c "from provision.catalog import write_schemas; write_schemas()"'


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_files_validate_against_the_schema_on_their_first_line(path):
    jsonschema = pytest.importorskip("jsonschema")
    first = path.read_text().splitlines()[0]
    assert first.startswith("#:schema ")
    document = json.loads((path.parent / first.removeprefix("#:schema ")).resolve().read_text())
    entries = json.loads(json.dumps(tomllib.loads(path.read_text()), default=str))
    jsonschema.Draft202012Validator(document).validate(entries)


@pytest.mark.parametrize("model", NAMED_MODELS)
def test_models_have_the_usual_quantizations(model):
    found = {build.quantization for build in load_catalog().builds_of(model)}
    assert {"Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16"} <= found


def test_breadth():
    catalog = load_catalog()
    vendors = [spec.vendor for spec in catalog.accelerators]
    assert len(vendors) >= 330
    assert len(catalog.models) >= 110
    assert len(catalog.builds) >= 900
    assert set(vendors) == {"nvidia", "amd", "intel", "apple"}
    assert {tier.id for tier in catalog.tiers} == {
        "workstation-minimum",
        "workstation-recommended",
        "team-server",
        "production",
    }


def test_figures_of_the_published_files():
    catalog = load_catalog()
    qwen = catalog.build("qwen2.5-coder:32b", "Q4_K_M")
    assert 19_851_300_000 < qwen.weights_bytes < 19_851_400_000
    assert qwen.ollama_tag == "qwen2.5-coder:32b"
    # Ollama's default of this one is not Q4_K_M.
    deepseek = catalog.build("deepseek-coder-v2:16b", "Q4_0")
    assert (deepseek.weights_bytes, deepseek.ollama_tag) == (8_905_126_121, "deepseek-coder-v2:16b")
    assert catalog.build("smollm2:135m", "Q4_1").weights_bytes == 98_362_432
    card = catalog.accelerator("RTX 4090")
    assert card.memory_bandwidth_bytes_per_s == 1_008e9
    assert card.reported_memory_bytes == 24564 * 2**20


def test_builds_lie_between_plausible_bits_per_parameter():
    catalog = load_catalog()
    for build in catalog.builds:
        model, quantization = catalog.model(build.model), catalog.quantization(build.quantization)
        assert model.parameters is not None
        bits = build.weights_bytes * 8 / model.parameters
        # The nominal figure is of an 8B. Above it lie small models (their table is large and their rows are too short
        # for 256-value blocks) and files with a vision part (gemma3).
        highest = 1.45 if model.parameters > 10**9 else 1.8
        assert 0.78 * quantization.bits_per_weight < bits < highest * quantization.bits_per_weight, build


KV_CACHE_BYTES_PER_TOKEN = {
    "llama3.1:8b": 131_072,
    "llama3.1:70b": 327_680,
    "llama3.3:70b": 327_680,
    "qwen2.5-coder:32b": 262_144,
    "qwen2.5:32b": 262_144,
    "qwen2.5-coder:14b": 196_608,
    "qwen2.5-coder:7b": 57_344,
    "deepseek-coder-v2:16b": 31_104,
    "codestral:22b": 229_376,
    "mistral-small:24b": 163_840,
    "devstral:24b": 163_840,
    "qwen3:32b": 262_144,
    "qwen3:30b": 98_304,
    "qwen3-coder:30b": 98_304,
    "qwen3:8b": 147_456,
    "qwen3:235b": 192_512,
    "qwen3.5:27b": 65_536,
    "qwen3.5:35b": 20_480,
    "qwen3.6:27b": 65_536,
    "qwen3.6:35b": 20_480,
    "gpt-oss:20b": 24_576,
    "gpt-oss:120b": 36_864,
    "gemma3:27b": 81_920,
    "gemma3:12b": 65_536,
    "phi4:14b": 204_800,
    "deepseek-r1:32b": 262_144,
    "deepseek-r1:14b": 196_608,
    "deepseek-r1:671b": 70_272,
    "glm-4.5-air:106b": 188_416,
    "qwen3-coder:480b": 253_952,
    # From llama.cpp logs: 128 MiB at 8,192 tokens; 544 MiB of q8_0 at 65,536.
    "gemma4:12b": 16_384,
    "gemma4:e4b": 16_384,
}
"""At f16, of the layers whose cache grows with the context: collected from published logs and configurations."""


@pytest.mark.parametrize("model", KV_CACHE_BYTES_PER_TOKEN)
def test_shapes_give_the_cache_that_logs_show(model):
    total = 0
    for group in load_catalog().model(model).layers:
        if isinstance(group, AttentionLayers) and group.window_tokens is None:
            total += group.count * group.kv_heads * (group.key_dim + group.value_dim) * 2
        elif isinstance(group, LatentAttentionLayers):
            total += group.count * (group.latent_dim + group.rope_dim) * 2
    assert total == KV_CACHE_BYTES_PER_TOKEN[model]


TENSOR_BYTES = {
    ("llama2:7b", "Q4_0"): 3_825_065_984,
    ("llama2:7b", "Q4_K_M"): 4_080_263_168,
    ("llama3.1:8b", "Q8_0"): 8_532_934_912,
    ("llama3.3:70b", "Q4_K_M"): 42_512_531_712,
    ("qwen3:32b", "Q8_0"): 34_811_744_256,
    ("qwen2.5:32b", "Q4_K_M"): 19_845_357_568,
    ("deepseek-coder-v2:16b", "Q4_K_M"): 10_360_420_352,
    ("phi4:14b", "Q5_K_M"): 10_600_632_320,
    ("gemma3:27b", "Q8_0"): 28_701_409_280,
    ("glm-4.7-flash:30b", "F16"): 59_904_000_000,
    ("gemma4:31b", "F16"): 61_397_000_000,
    ("qwen3.6:35b", "F16"): 69_364_000_000,
    ("ministral-3:14b", "F16"): 27_015_000_000,
}
"""What llama.cpp sums up on loading published files; what ends in 000000 was printed with two decimals of a GiB."""


@pytest.mark.parametrize(("model", "quantization"), TENSOR_BYTES)
def test_computed_sizes_are_those_of_published_files(model, quantization):
    build = load_catalog().build(model, quantization)
    assert build.weights_bytes == pytest.approx(TENSOR_BYTES[model, quantization], rel=5e-4)


def test_parameters_are_those_that_llama_bench_prints():
    printed = {
        "qwen3.5:27b": 26.90,
        "qwen3.5:35b": 34.66,
        "qwen3.5:9b": 8.95,
        "gemma4:26b": 25.23,
        "gemma4:31b": 30.70,
        "glm-4.7-flash:30b": 29.94,
        "gpt-oss:20b": 20.91,
        "qwen3:235b": 235.09,
        "llama4:16x17b": 107.77,
        "deepseek-r1:671b": 671.03,
    }
    for name, billions in printed.items():
        assert round((load_catalog().model(name).parameters or 0) / 1e9, 2) == billions, name


def test_layer_patterns_name_every_group_and_experts_fit_in_the_parameters():
    for model in load_catalog().models:
        assert model.architecture, model.id
        if model.layer_pattern:
            assert set(model.layer_pattern) == set(range(len(model.layers))), model.id
        if len(model.layers) > 1:
            assert model.layer_pattern, model.id
        if model.experts and model.parameters and model.active_parameters:
            routed = model.experts.count * model.experts.feed_forward_size * model.hidden_size
            assert routed * 2 < model.parameters, model.id
            assert model.active_parameters < model.parameters, model.id
            assert model.experts.used <= model.experts.count, model.id


def test_each_default_tag_pulls_one_build():
    tags = [build.ollama_tag for build in load_catalog().builds if build.ollama_tag]
    assert sorted({tag for tag in tags if tags.count(tag) > 1}) == []


def test_better_quantizations_are_larger():
    catalog = load_catalog()
    for model in catalog.models:
        # A published file may hold a vision part besides, or be of a maker's own mix.
        computed = [build for build in catalog.builds_of(model.id) if build.precision == "computed"]
        sizes = {build.quantization: build.weights_bytes for build in computed}
        ladder = [sizes[name] for name in ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16") if name in sizes]
        assert ladder == sorted(ladder), model.id


def test_each_card_has_a_class_that_was_measured():
    catalog = load_catalog()
    measured = {key for e in catalog.efficiency if (e.term, e.scope) == ("memory", "device_class") for key in e.factors}
    assert {spec.device_class for spec in catalog.accelerators} <= measured


def test_every_alias_and_reported_name_finds_its_card():
    catalog = load_catalog()
    for spec in catalog.accelerators:
        for name in (spec.id, *spec.aliases):
            assert catalog.accelerator(name) is spec, name


def test_each_card_has_a_generation():
    words = {spec.architecture for spec in load_catalog().accelerators}
    assert None not in words
    assert {
        "pascal",
        "volta",
        "turing",
        "ampere",
        "ada",
        "hopper",
        "blackwell",
        "rdna2",
        "rdna3",
        "rdna3.5",
        "rdna4",
    } <= words
    assert {"cdna1", "cdna2", "cdna3", "cdna4", "alchemist", "battlemage", "apple-m1", "apple-m5"} <= words


PIN_RATES_GBIT_PER_S = {
    "gddr5": (4, 9.1),
    "gddr5x": (8, 11.5),
    "gddr6": (9.9, 20.2),
    "gddr6x": (18.9, 23.1),
    "gddr7": (17.9, 30.1),
    "hbm2": (1.4, 2.5),
    "hbm2e": (2.4, 3.3),
    "hbm3": (5.1, 5.3),
    "hbm3e": (5.2, 8.1),
    "lpddr4x": (3.1, 4.3),
    "lpddr5": (4.2, 6.5),
    "lpddr5x": (7.4, 9.7),
}
"""What one pin of each kind of memory carries on the cards sold."""


def test_bandwidth_is_bus_width_times_a_rate_that_such_memory_has():
    checked = 0
    for spec in load_catalog().accelerators:
        if spec.memory_bus_bits is None or spec.memory_bandwidth_bytes_per_s is None:
            continue
        low, high = PIN_RATES_GBIT_PER_S[str(spec.memory_type)]
        rate = spec.memory_bandwidth_bytes_per_s * 8 / spec.memory_bus_bits / 1e9
        assert low <= rate <= high, (spec.id, spec.memory_type, rate)
        checked += 1
    assert checked >= 280


def test_matrix_rates_are_those_of_the_generation():
    """Of one generation the ratio of the two rates is a property of the chip: a slip in one figure shows."""
    ratios = {"ampere": (3.9, 16.2), "ada": (3.9, 4.1), "turing": (1.99, 8.2), "rdna2": (1.9, 2.1), "rdna4": (3.9, 4.1)}
    ratios |= {"volta": (7.9, 8.2), "apple-m1": (1, 1), "apple-m5": (4, 4), "alchemist": (7.9, 8.1)}
    for spec in load_catalog().accelerators:
        if spec.fp16_flops_per_s and spec.fp32_flops_per_s and spec.architecture in ratios:
            low, high = ratios[spec.architecture]
            assert low <= spec.fp16_flops_per_s / spec.fp32_flops_per_s <= high, spec.id


def test_reported_memory_is_a_little_less_than_what_is_sold():
    for spec in load_catalog().accelerators:
        if spec.reported_memory_bytes and spec.memory_bytes:
            assert 0.93 <= spec.reported_memory_bytes / spec.memory_bytes <= 1, spec.id


def test_apple_gpus_may_take_a_share_of_the_memory():
    chip = load_catalog().accelerator("M2 Max")
    assert round(chip.usable_memory_bytes(32 * 2**30) / 2**30, 1) == 21.3
    assert chip.usable_memory_bytes(64 * 2**30) == 48 * 2**30
    assert load_catalog().accelerator("RTX 4090").usable_memory_bytes(10) is None
    assert chip.usable_memory_bytes(None) is None


def test_links():
    catalog = load_catalog()
    assert catalog.interconnect("PCIe 4.0 x16").bandwidth_bytes_per_s == 31_508_000_000
    assert catalog.interconnect(str(catalog.accelerator("RTX 4060").pcie)).bandwidth_bytes_per_s == 15_754_000_000
    assert catalog.accelerator("RTX 4090").nvlink_bytes_per_s is None


def test_names_of_published_benchmark_tables_find_their_card():
    """As data sets of measurements write them: rows of these join to our cards."""
    catalog = load_catalog()
    names = """
        rtx-3060-12 rtx-3070-8 rtx-3080-10 rtx-4060-ti-8 rtx-4060-ti-16 rtx-5060-ti-16 rtx-4000-ada l40s a40 h100-nvl
        a100-sxm-80 v100 v100-sxm2 tesla-p100 tesla-m40-24 titan-rtx quadro-rtx-8000 dgx-spark strix-halo mi50-32 r9700
        apple-m3-max-40 apple-m4-max-32 apple-m5-max arc-pro-b50 rx-7900-gre rtx-pro-6000-blackwell-maxq
    """
    for name in names.split():
        assert catalog.accelerator(name)


def test_catalog_of_another_day_has_another_revision(tmp_path):
    before = load_catalog().revision
    (tmp_path / "mine.toml").write_text(
        '[[source]]\nid = "mine"\ntitle = "mine"\nkind = "measured"\nchecked_on = 2026-11-24\n'
    )
    assert load_catalog(tmp_path).revision != before
    assert catalog_module.load_catalog().revision == before
