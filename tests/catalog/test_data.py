"""The catalog that we ship: every rule holds, and figures that others rely on are there."""

import json
import tomllib
from datetime import date

import pytest

from provision import catalog as catalog_module
from provision.catalog import SCHEMAS, load_catalog, schema
from provision.catalog_rules import check_catalog
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
    assert len(vendors) >= 100
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
        # The table's nominal figure is of an 8B; small embedding-heavy models and vision parts (gemma3) lie above it.
        assert 0.8 * quantization.bits_per_weight < bits < 1.45 * quantization.bits_per_weight, build


def test_better_quantizations_are_larger():
    catalog = load_catalog()
    for model in catalog.models:
        sizes = {build.quantization: build.weights_bytes for build in catalog.builds_of(model.id)}
        ladder = [sizes[name] for name in ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16") if name in sizes]
        assert ladder == sorted(ladder), model.id


def test_each_card_has_a_class_that_was_measured():
    catalog = load_catalog()
    measured = {entry.device_class for entry in catalog.efficiency}
    assert {spec.device_class for spec in catalog.accelerators} <= measured


def test_every_alias_and_reported_name_finds_its_card():
    catalog = load_catalog()
    for spec in catalog.accelerators:
        for name in (spec.id, *spec.aliases):
            assert catalog.accelerator(name) is spec, name


def test_catalog_of_another_day_has_another_revision(tmp_path):
    before = load_catalog().revision
    (tmp_path / "mine.toml").write_text(
        '[[source]]\nid = "mine"\ntitle = "mine"\nkind = "measured"\nchecked_on = 2026-11-24\n'
    )
    assert load_catalog(tmp_path).revision != before
    assert catalog_module.load_catalog().revision == before
