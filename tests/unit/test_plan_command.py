"""`plan` and `estimate` as they are typed: the real catalog, known hardware, figures that the physics fixes."""

from __future__ import annotations

import json

import pytest

from provision.catalog import load_catalog
from tests.helpers import run_cli

ARTICLE = ("--tier", "workstation-minimum", "--model", "qwen2.5-coder:32b", "--quant", "Q4_K_M", "--context", "8k")


def data_of(*arguments):
    return run_cli(*arguments, "--json").json["data"]


def test_the_minimum_workstation_does_not_hold_a_32b_and_plan_says_all_about_it():
    run = run_cli("plan", *ARTICLE, "--json")
    assert run.code == 0
    envelope = run.json
    (candidate,) = envelope["data"]["candidates"]
    placement = candidate["placement"]
    assert 40 <= placement["gpu_layers"] < placement["layers"] == 64
    messages = {w["code"]: w["message"] for w in envelope["warnings"]}
    assert "does not fit in 15.99 GiB of VRAM" in messages["partial-offload"]
    assert f"{placement['gpu_layers']} of 64 layers do" in messages["partial-offload"]
    assert "tokens/s" in messages["partial-offload"]
    assert [w["hint"] for w in envelope["warnings"] if w["code"] == "would-fit"], "says what would fit"
    assert "impossible" in messages["claim"]
    assert candidate["speed"]["decode_tokens_per_s"]["ceiling"] < 15, "the article's figure is above the ceiling"

    text = run_cli("plan", *ARTICLE)
    assert "layers on GPU" in text.stdout
    assert "does not fit in 15.99 GiB" in text.stderr


def test_every_would_fit_hint_is_true():
    base = ["plan", "--tier", "workstation-minimum", "--context", "8k"]
    for warning in run_cli("plan", *ARTICLE, "--json").json["warnings"]:
        if warning["code"] != "would-fit":
            continue
        hint = warning["hint"].split(" ", 1)
        if hint[0] == "--gpu":
            changed = ["plan", "--gpu", hint[1].strip('"'), "--ram", "64GiB", *ARTICLE[2:]]
        else:
            changed = [*base, *warning["hint"].split()]
            if "--model" not in changed:
                changed += ["--model", "qwen2.5-coder:32b"]
            if "--quant" not in changed:
                changed += ["--quant", "Q4_K_M"]
        best = data_of(*changed)["candidates"][0]["placement"]
        assert best["gpu_layers"] == best["layers"], warning


def test_an_f16_8b_on_a_4090_has_its_physical_ceiling():
    (case,) = data_of("estimate", "llama3.1:8b", "--quant", "F16", "--gpu", "RTX 4090")["cases"]
    assert 61 < case["speed"]["decode_tokens_per_s"]["ceiling"] < 64


@pytest.mark.parametrize(
    ("gpu", "model", "quant", "measured"),
    [
        # Published single-stream figures (XiongjieDai, GPU-Benchmarks-on-LLM-Inference; localvram.com for the 3090 32B)
        ("2x RTX 4090", "llama3.1:70b", "Q4_K_M", 19.06),
        ("RTX 4090", "llama3.1:8b", "F16", 54.8),
        ("RTX A6000", "llama3.1:70b", "Q4_K_M", 14.58),
        ("RTX 4090", "llama3.1:8b", "Q4_K_M", 124),
        ("RTX 3090", "qwen2.5-coder:32b", "Q4_K_M", 38.4),
    ],
)
def test_published_measurements_fall_into_the_interval(gpu, model, quant, measured):
    arguments = ["estimate", model, "--quant", quant, "--gpu", gpu, "--ram", "128GiB", "--context", "2k"]
    (case,) = data_of(*arguments)["cases"]
    decode = case["speed"]["decode_tokens_per_s"]
    assert decode["low"] * 0.95 <= measured <= decode["high"] * 1.05
    assert measured < decode["ceiling"]


def test_a_plan_file_is_complete_and_read_back(tmp_path):
    path = tmp_path / "plan.json"
    asked = ["--gpu", "2x RTX 4090", "--ram", "128GiB", "--model", "qwen2.5-coder:32b", "--quant", "Q5_K_M"]
    run = run_cli("plan", *asked, "--context", "16k", "--users", "2", "-o", path, "--json")
    assert run.code == 0
    document = json.loads(path.read_text())
    assert document == run.json["data"]
    assert document["plan_version"] == 1
    assert document["workload"]["users"] == 2
    assert document["selected"] == ["qwen2.5-coder:32b/Q5_K_M@ollama"]
    from provision.domain.plan import Plan
    from provision.records import read_json

    plan = read_json(path, Plan, what="plan", version_key="plan_version", version=1, hint="")
    assert plan.candidates[0].ollama_tag == "qwen2.5-coder:32b-instruct-q5_K_M"


def test_nothing_is_written_when_the_folder_is_not_there(tmp_path):
    run = run_cli("plan", "--gpu", "RTX 4090", "--ram", "64GiB", "-o", tmp_path / "no" / "plan.json", "--json")
    assert run.code == 3
    assert run.json["errors"][0]["hint"]


def test_more_users_on_the_same_cards_never_fit_more():
    counts = []
    for users in (1, 4, 16):
        found = data_of("plan", "--gpu", "RTX 4090", "--ram", "8GiB", "--users", str(users))["candidates"]
        counts.append(len(found))
    assert counts == sorted(counts, reverse=True)


def test_two_models_by_name_are_both_selected_and_a_missing_one_is_partial():
    base = ["plan", "--gpu", "RTX 4090", "--ram", "64GiB"]
    both = run_cli(*base, "--model", "llama3.1:8b", "--model", "nomic-embed-text", "--context", "2k", "--json").json
    assert len(both["data"]["selected"]) == 2
    partial = run_cli(*base, "--model", "llama3.1:8b", "--model", "qwen2.5-coder:32b", "--context", "64k", "--json")
    assert partial.json["status"] == "partial"
    assert partial.code == 4
    assert "--context 32768" in partial.json["errors"][0]["hint"]


def test_estimate_batch_goes_on_after_a_bad_row(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "id,model,quant,gpu,ram,context,users\n"
        "a,llama3.1:8b,Q4_K_M,RTX 4090,64GiB,4k,1\n"
        "b,nonsense,Q4_K_M,RTX 4090,64GiB,4k,1\n"
        "c,qwen2.5-coder:32b,,2x RTX 4090,128GiB,8k,4\n"
    )
    run = run_cli("estimate", "--batch", rows, "--json")
    assert [case["id"] for case in run.json["data"]["cases"]] == ["a", "c"]
    assert run.json["status"] == "partial"
    assert "rows.csv:3" in run.json["errors"][0]["message"]
    assert run.code == 3


def test_estimate_reads_a_local_gguf_and_refuses_a_broken_one(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 16)
    run = run_cli("estimate", broken, "--gpu", "RTX 4090", "--json")
    assert run.code == 3
    assert "broken.gguf" in run.json["errors"][0]["message"]


def test_what_plan_selects_apply_can_pull():
    for gpu in ("RTX 3090", "RTX 4090", "RTX 5090"):
        data = data_of("plan", "--gpu", gpu, "--ram", "64GiB")
        selected = [c for c in data["candidates"] if c["id"] in data["selected"]]
        assert [c["ollama_tag"] is not None for c in selected] == [True]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["llama3.1:8b", "--context", "1m", "--gpu", "RTX 4090", "--ram", "640GiB"], "context-too-long"),
        (["llama3.1:8b", "--engine", "vllm", "--gpu", "RTX 4090", "--ram", "64GiB"], "engine-cannot-load"),
        (["llama3.1:8b", "--gpu", "RTX 4090", "--users", "90000"], "host-memory-unknown"),
    ],
)
def test_estimate_refuses_what_plan_refuses(arguments, code):
    run = run_cli("estimate", *arguments, "--json")
    assert run.code == 4
    assert run.json["errors"][0]["code"] == code


def test_the_hint_of_an_estimate_that_does_not_fit_can_be_typed():
    asked = ["--gpu", "RTX 4090", "--ram", "8GiB"]
    error = run_cli("estimate", "llama3.1:70b", *asked, "--json").json["errors"][0]
    import shlex

    again = run_cli(*shlex.split(error["hint"])[1:], "--json")
    assert again.json["data"]["machine"]["accelerators"][0]["catalog_id"] == "nvidia-rtx-4090"


def test_batch_takes_nothing_from_the_command_line_and_reads_what_excel_writes(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "id,model,gpu,ram,context\nfirst,llama3.1:8b,RTX 4090,64GiB,4k\nb,phi4,RTX 4090,64GiB,4k\n",
        encoding="utf-8-sig",
    )
    assert run_cli("estimate", "--batch", rows, "--json").code == 0
    assert run_cli("estimate", "--batch", rows, "--users", "8", "--json").code == 2
    assert "first " in run_cli("estimate", "--batch", rows).stdout


def test_a_prompt_that_the_context_cannot_hold_is_refused():
    run = run_cli(
        "estimate", "llama3.1:8b", "--gpu", "RTX 4090", "--context", "8k", "--prompt-tokens", "100000", "--json"
    )
    assert run.code == 2
    assert "--context" in run.json["errors"][0]["hint"]


@pytest.mark.parametrize("width", [72, 80, 100, 140])
def test_the_table_keeps_marker_model_and_speeds_at_any_width(monkeypatch, width):
    from provision.output import console

    monkeypatch.setattr(console, "_PLAIN_WIDTH", width)
    lines = run_cli("plan", "--gpu", "2x RTX 4090", "--ram", "128GiB", "--users", "8").stdout.splitlines()
    header = next(line for line in lines if "8 users tok/s" in line)
    assert "model" in header
    marked = [line for line in lines if line.lstrip().startswith("*")]
    assert len(marked) == 1
    assert any(model.id in marked[0] for model in load_catalog().models)
