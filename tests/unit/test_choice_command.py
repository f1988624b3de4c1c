"""Choosing as it is typed: engines, order, several models at once, drafts, claims; the real catalog."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.helpers import run_cli

CARD = ("--gpu", "RTX 4090", "--ram", "64GiB", "--memory-platform", "ddr5-5600-2ch")


def messages(run, code):
    return [w["message"] for w in run.json["warnings"] if w["code"] == code]


def test_a_24_gb_card_is_warned_of_ollamas_own_context():
    asked = ("qwen2.5-coder:32b", "--quant", "Q4_K_M", *CARD, "--json")
    for run in (run_cli("plan", "--model", *asked), run_cli("estimate", *asked)):
        found = run.json["data"].get("candidates") or run.json["data"]["cases"]
        (finding,) = (f for f in found[0]["findings"] if f["code"] == "engine-default-spills")
        assert "ollama 0.32.15 takes 32k tokens of context on 23.99 GiB of VRAM" in finding["message"]
        assert "18.49 GiB of weights and 8.00 GiB of KV cache are 26.49 GiB" in finding["message"]
        assert "OLLAMA_CONTEXT_LENGTH=8192" in finding["hint"]
    (told,) = messages(run_cli("plan", "--model", *asked), "engine-default-spills")
    assert told == finding["message"]


@pytest.mark.parametrize(
    ("tier", "claim", "arithmetic"),
    [
        (
            "workstation-minimum",
            "15.0 tokens/s for qwen2.5-coder:32b Q4_K_M: impossible",
            r"of 64 layers are on the GPU, so one token streams [\d.]+ GB from VRAM at 672 GB/s \(\d+ ms\) and [\d.]+ "
            r"GB from host memory at 90 GB/s \(\d+ ms\): [\d.]+ tokens/s at most; 15.0 leave 67 ms a token",
        ),
        (
            "workstation-recommended",
            "80.0 tokens/s for llama3.1:8b F16: impossible",
            r"one token streams 16.\d\d GB, and 1,008 GB/s / 16.\d\d GB are 6\d.\d tokens/s at most; 80.0 would need "
            r"1,2\d\d GB/s",
        ),
        (
            "workstation-recommended",
            "25.0 tokens/s for qwen2.5-coder:32b Q5_K_M: true only of a spill, slower than it should be",
            r"tokens/s at most; with [4-7]k tokens of context everything is on the GPU: computed 3\d.\d "
            r"\([\d.]+-[\d.]+\), so the claim describes a spill$",
        ),
    ],
)
def test_the_articles_figures_are_judged_with_the_arithmetic(tier, claim, arithmetic):
    (told,) = (m for m in messages(run_cli("plan", "--tier", tier, "--json"), "claim") if claim in m)
    assert re.search(arithmetic, told), told
    plain = run_cli("plan", "--tier", tier)
    assert told in plain.stderr, "on the screen as well"


def test_the_numbers_of_a_refuted_claim_are_right():
    (told,) = (
        m for m in messages(run_cli("plan", "--tier", "workstation-recommended", "--json"), "claim") if "80" in m
    )
    streamed, ceiling, needed = (
        float(text.replace(",", ""))
        for text in re.search(r"streams ([\d.]+) GB.* are ([\d.]+) tokens.*need ([\d,]+) GB/s", told).groups()
    )
    assert 1008 / streamed == pytest.approx(ceiling, rel=0.002)
    assert 80 * streamed == pytest.approx(needed, rel=0.002)
    (spilled,) = messages(run_cli("plan", "--tier", "workstation-minimum", "--json"), "claim")
    numbers = re.search(r"([\d.]+) GB from VRAM .*and ([\d.]+) GB from host .*: ([\d.]+) tokens/s at most", spilled)
    card, host, ceiling = (float(text) for text in numbers.groups())
    assert 1 / (card / 672 + host / 89.6) == pytest.approx(ceiling, rel=0.005)


def test_a_spill_that_less_context_ends_is_told_with_a_context_that_does():
    (told,) = (
        m for m in messages(run_cli("plan", "--tier", "workstation-recommended", "--json"), "claim") if "25.0" in m
    )
    context = re.search(r"with (\d+k) tokens of context", told).group(1)
    asked = ("estimate", "qwen2.5-coder:32b", "--quant", "Q5_K_M", *CARD, "--context")
    (case,) = run_cli(*asked, context, "--json").json["data"]["cases"]
    assert case["placement"]["gpu_layers"] == case["placement"]["layers"]
    decode = case["speed"]["decode_tokens_per_s"]
    assert f"computed {decode['expected']:.1f} ({decode['low']:.1f}-{decode['high']:.1f})" in told
    assert decode["low"] > 25, "resident, the card is faster than what was claimed"
    (minimum,) = messages(run_cli("plan", "--tier", "workstation-minimum", "--json"), "claim")
    assert "everything is on the GPU" not in minimum, "no context makes it fit 16 GB"


@pytest.mark.parametrize("tier", ["workstation-minimum", "workstation-recommended", "team-server"])
def test_the_claim_about_quality_is_held_against_what_was_measured(tier):
    (told,) = messages(run_cli("plan", "--tier", tier, "--json"), "claim-quality")
    assert "95-98 % of quality" in told
    assert re.search(
        r"Q4_K_M chooses the same top token as 16 bits in 91\.9-94\.7 % \(llama2:7b, llama3:8b; source", told
    )
    assert re.search(r"Q5_K_M has \+[\d.-]+ % \(.*\) perplexity, its top token was not compared", told)


def test_every_engine_in_one_plan():
    data = run_cli("plan", *CARD, "--engine", "all", "--json").json["data"]
    pairs = {(c["engine"], c["engine_version"]) for c in data["candidates"]}
    assert {("ollama", "0.32.15"), ("llamacpp", "2026.10.11549")} <= pairs
    assert {r["engine"] for r in data["rejections"]} >= {"vllm"}
    both = run_cli("plan", *CARD, "--engine", "ollama", "--engine", "llamacpp", "--json").json["data"]
    assert {c["engine"] for c in both["candidates"]} == {"ollama", "llamacpp"}
    assert "engine" in next(
        line for line in run_cli("plan", *CARD, "--engine", "all", "--all").stdout.splitlines() if "quant" in line
    )


def test_an_engine_version_can_be_named():
    older = run_cli("plan", *CARD, "--engine", "ollama@0.24.0", "--json").json["data"]["candidates"]
    assert {c["engine_version"] for c in older} == {"0.24.0"}
    unknown = run_cli("plan", *CARD, "--engine", "ollama@0.1", "--json")
    assert unknown.code == 2
    assert "ollama@0." in unknown.json["errors"][0]["hint"]


@pytest.mark.parametrize("prefer", ["balanced", "quality", "speed", "context"])
def test_the_order_is_said_in_words(prefer):
    run = run_cli("plan", *CARD, "--model", "llama3.1:8b", "--model", "qwen2.5-coder:14b", "--prefer", prefer, "--json")
    words = run.json["data"]["ranked_by"]
    plain = run_cli("plan", *CARD, "--model", "llama3.1:8b", "--prefer", prefer).stdout
    assert f"Ranked by {words}." in " ".join(plain.split())
    assert run_cli("plan", *CARD, "--prefer", "beauty", "--json").json["errors"][0]["hint"].startswith("--prefer")


def test_speed_and_quality_choose_different_builds_of_one_model():
    found = {
        prefer: run_cli("plan", *CARD, "--model", "llama3.1:8b", "--prefer", prefer, "--json").json["data"][
            "candidates"
        ]
        for prefer in ("speed", "quality", "context")
    }
    assert found["quality"][0]["quantization"] == "F16"
    rates = [c["speed"]["decode_tokens_per_s"]["expected"] for c in found["speed"]]
    assert rates[0] > 2 * min(rates)
    assert found["speed"][0]["quantization"].startswith(("Q4", "IQ4")), "four bits: less loses too much"
    assert found["context"][0]["context_tokens_max"] == max(c["context_tokens_max"] for c in found["context"])


def test_the_quality_of_a_quantization_is_shown_with_the_models_it_was_measured_on():
    base = ("plan", *CARD, "--model", "llama3.1:8b", "--engine", "llamacpp")
    found = {(q["quantization"], q["metric"]): q for q in run_cli(*base, "--json").json["data"]["quality"]}
    loss = found["Q4_K_M", "perplexity_increase_percent"]
    assert 0 < loss["low"] < loss["high"] < 10
    assert "llama3:8b" in loss["models"]
    text = run_cli(*base, "--all").stdout
    assert f"+{loss['low']:.1f}-{loss['high']:.1f} %" in text
    assert "as measured on llama2:7b" in " ".join(text.split())


def test_the_room_of_what_is_selected_is_true():
    base = ("plan", *CARD, "--model", "qwen2.5-coder:32b", "--quant", "Q4_K_M")
    best = run_cli(*base, "--json").json["data"]["candidates"][0]

    def resident(*more):
        placement = run_cli(*base, *more, "--json").json["data"]["candidates"][0]["placement"]
        return placement["gpu_layers"] == placement["layers"]

    assert resident("--context", str(best["context_tokens_max"]))
    assert not resident("--context", str(best["context_tokens_max"] + 256))
    assert resident("--users", str(best["users_max"]))
    assert not resident("--users", str(best["users_max"] + 1))
    text = " ".join(run_cli(*base).stdout.split())
    assert "Room without moving anything to the host:" in text


@pytest.mark.parametrize("model", ["qwen3:30b", "qwen3-coder:30b"])
def test_of_a_mixture_that_does_not_fit_the_experts_leave_first_which_is_faster(model):
    asked = ("estimate", model, "--quant", "Q4_K_M", "--tier", "workstation-minimum", "--json")
    (by_experts,) = run_cli(*asked).json["data"]["cases"]
    (by_layers,) = run_cli(*asked, "--engine", "ollama@0.24.0").json["data"]["cases"]
    placed = by_experts["placement"]
    assert placed["gpu_layers"] == placed["layers"]
    assert 0 < placed["expert_layers_on_host"] < placed["layers"]
    assert by_layers["placement"]["gpu_layers"] < placed["layers"]
    fast, slow = (c["speed"]["decode_tokens_per_s"]["expected"] for c in (by_experts, by_layers))
    assert fast > slow
    (told,) = (f["message"] for f in by_experts["findings"] if f["code"] == "partial-offload")
    assert f"all but the experts of {placed['expert_layers_on_host']} of {placed['layers']} layers do" in told


THREE = ("--model", "qwen2.5-coder:14b", "--model", "llama3.1:8b", "--model", "nomic-embed-text", "--context", "16k")


def test_models_that_do_not_stay_loaded_together_are_said_and_chosen_together_on_demand():
    apart = run_cli("plan", *CARD, *THREE, "--json")
    assert apart.code == 0
    assert apart.json["data"]["together"]["resident"] is False
    (finding,) = (w for w in apart.json["warnings"] if w["code"] == "not-together")
    joint = run_cli("plan", *CARD, *THREE, *shlex.split(finding["hint"]), "--json").json
    plan = joint["data"]["together"]
    assert plan["resident"] is True
    assert [w for w in joint["warnings"] if w["code"] == "not-together"] == []
    assert joint["data"]["selected"] == [c["id"] for c in plan["candidates"]]
    for device in plan["devices"]:
        assert device["total_bytes"] == sum(device["used_bytes"]) + device["reserve_bytes"]
        assert device["headroom_bytes"] >= 0
    text = run_cli("plan", *CARD, *THREE, "--together").stdout
    assert "All stay loaded at once" in text


def test_a_plan_of_several_models_is_read_back(tmp_path):
    path = tmp_path / "plan.json"
    assert run_cli("plan", *CARD, *THREE, "--together", "-o", path, "--json").code == 0
    from provision.domain.plan import Plan
    from provision.records import read_json

    plan = read_json(path, Plan, what="plan", version_key="plan_version", version=1, hint="")
    assert plan.together.resident
    assert len(plan.selected) == 3


def test_together_needs_two_models():
    run = run_cli("plan", *CARD, "--model", "llama3.1:8b", "--together", "--json")
    assert (run.code, run.json["errors"][0]["code"]) == (2, "usage")


def test_an_embedding_model_is_planned_beside_a_longer_context():
    data = run_cli("plan", *CARD, *THREE, "--json").json["data"]
    encoder = next(c for c in data["candidates"] if c["model"] == "nomic-embed-text")
    assert encoder["context_tokens"] == 2048
    assert [f["code"] for f in encoder["findings"]] == ["context-capped"]


DRAFT = ("estimate", "qwen2.5-coder:32b", "--draft", "qwen2.5-coder:7b", "--gpu", "RTX A6000", "--ram", "64GiB")


def test_a_draft_is_an_estimate_with_its_memory():
    data = run_cli(*DRAFT, "--engine", "llamacpp", "--json").json["data"]
    (case,) = data["cases"]
    found = case["speculation"]
    assert found["draft_model"] == "qwen2.5-coder:7b"
    assert found["speedup_low"] < found["speedup_expected"] < found["speedup_high"]
    assert [c["model"] for c in data["together"]["candidates"]] == ["qwen2.5-coder:7b", "qwen2.5-coder:32b"]
    text = run_cli(*DRAFT, "--engine", "llamacpp").stdout
    assert "an estimate" in text
    assert "All stay loaded at once" in text


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((*DRAFT, "--engine", "ollama"), "engine-cannot-draft"),
        (
            ("estimate", "qwen2.5-coder:32b", "--draft", "llama3.1:8b", "--engine", "llamacpp", "--gpu", "RTX A6000"),
            "vocabulary-differs",
        ),
    ],
)
def test_a_draft_that_cannot_be_is_refused(arguments, code):
    run = run_cli(*arguments, "--json")
    assert (run.code, run.json["errors"][0]["code"]) == (2, code)
    assert run.json["errors"][0]["hint"]
