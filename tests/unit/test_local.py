"""A measurement made on a machine outranks the fit there, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from provision import measurements
from provision.domain.hardware import Origin
from provision.domain.measurement import BenchLevel, BenchResult, Distribution
from provision.domain.plan import Workload
from provision.records import to_plain
from provision.sizing.local import identity_of, is_same_hardware, local_measurements, stored_runs
from provision.sizing.planner import assess
from tests.helpers import run_cli
from tests.unit.records import LLAMA_8B, LLAMA_Q4, LLAMACPP, Q4_K_M, card, efficiency_of
from tests.unit.records import machine as planned

BUILD = (LLAMA_8B, LLAMA_Q4, Q4_K_M)
MACHINE = replace(planned(card()), origin=Origin.DETECTED)


def distribution(value):
    return Distribution(count=10, mean=value, p50=value, p90=None, p95=None, p99=None, min=value, max=value)


def level(decode, prefill=None, *, users=1, valid=True):
    return BenchLevel(
        users=users, requests=(), ttft_s=None, decode_tokens_per_s=distribution(decode),
        system_output_tokens_per_s=None, prefill_tokens_per_s=prefill and distribution(prefill), error_rate=0.0,
        client_cpu_ratio=None, client_lag_p99_s=None, server_decode_delta_ratio=None, valid=valid,
    )  # fmt: skip


def result(*levels, machine=MACHINE, **other):
    given = {
        "provision_version": "1", "started_at": datetime(2026, 11, 20, tzinfo=UTC), "complete": True,
        "url": "http://127.0.0.1:1", "api": "openai", "engine": "llamacpp", "engine_version": "b1",
        "model": "llama3.1:8b", "context_tokens": 4096, "prompt_tokens": 512, "output_tokens": 128,
        "quantization": "Q4_K_M", "offload_ratio": 1.0, "machine": machine and identity_of(machine),
    }  # fmt: skip
    return BenchResult(**(given | other), levels=levels)


def converted(runs, machine=MACHINE):
    return local_measurements(runs, machine, lambda run: BUILD, lambda name: LLAMACPP, efficiency_of)


def expected(context=4096, prompt=512, output=128):
    load = Workload(context_tokens=context, prompt_tokens=prompt, output_tokens=output)
    return assess(MACHINE, *BUILD, LLAMACPP, load, efficiency_of).speed


def test_a_run_is_held_against_what_the_fit_expects_of_its_own_workload():
    runs = stored_runs(result(level(80, 3000), prompt_tokens=2000, context_tokens=8192), "r.json")
    (used,), (decode, prefill) = converted(runs)
    fit = expected(8192, 2000)
    assert (used.model, used.result) == ("llama3.1:8b", "r.json")
    assert (decode.tokens_per_s, decode.where) == (80, "accelerators")
    assert decode.expected_tokens_per_s == pytest.approx(fit.decode_tokens_per_s.expected)
    assert prefill.expected_tokens_per_s == pytest.approx(fit.prefill_tokens_per_s.expected)


@pytest.mark.parametrize(
    "unusable",
    [
        result(level(80, valid=False)),
        result(level(80, users=4)),
        result(level(80), complete=False),
        result(level(80), machine=None),
        result(level(80), machine=planned(card())),
    ],
)
def test_what_says_nothing_of_a_machine_is_not_stored(unusable):
    assert stored_runs(unusable) == ()


@pytest.mark.parametrize(
    "run",
    [
        result(level(80), offload_ratio=0.6),
        result(level(80), offload_ratio=None),
        result(level(100_000)),
        result(level(80), machine=replace(MACHINE, accelerators=(card(), card(1)))),
    ],
    ids=["partial", "placement unknown", "above the ceiling", "another machine"],
)
def test_runs_that_cannot_be_compared_are_left_out(run):
    assert converted(stored_runs(run)) == ((), ())


def test_a_planned_machine_of_the_same_card_takes_nothing():
    assert converted(stored_runs(result(level(80))), planned(card())) == ((), ())


def test_a_run_on_the_cpu_says_nothing_of_the_card():
    runs = stored_runs(result(level(5), offload_ratio=0.0))
    slow = replace(MACHINE, memory=replace(MACHINE.memory, bandwidth_bytes_per_s=60e9))
    _, found = converted(runs, slow)
    load = Workload(context_tokens=4096)
    assert found[0].where == "host"
    before = assess(slow, *BUILD, LLAMACPP, load, efficiency_of)
    assert assess(slow, *BUILD, LLAMACPP, load, efficiency_of, measured_here=found) == before


def test_hardware_is_the_same_whatever_its_name_and_a_little_memory():
    one = identity_of(MACHINE)
    memory = replace(MACHINE.memory, total_bytes=(MACHINE.memory.total_bytes or 0) - 20 * 2**20)
    assert is_same_hardware(one, identity_of(replace(MACHINE, name="other", memory=memory)))
    half = replace(MACHINE.memory, total_bytes=(MACHINE.memory.total_bytes or 0) // 2)
    assert not is_same_hardware(one, identity_of(replace(MACHINE, memory=half)))


def test_lines_survive_and_broken_ones_are_told_once():
    runs = stored_runs(result(level(80, 3000)))
    measurements.append(runs)
    with measurements.path().open("ab") as stream:
        stream.write(b'{"measurement_version": 9}\n[1]\n\xff\xfe\n{"measurement_version": 1, "machine": ')
    measurements.append(runs)
    found, (finding,) = measurements.read()
    assert found == [*runs, *runs]
    assert finding.code == "measurements-unreadable"
    assert "4 lines, the first is line 2" in finding.message


@pytest.mark.parametrize(
    ("field", "value"),
    [("decode_tokens_per_s", -1), ("decode_tokens_per_s", "80"), ("offload_ratio", 7), ("prompt_tokens", True)],
)
def test_a_field_that_cannot_be_makes_its_line_unusable(field, value):
    (run,) = stored_runs(result(level(80)))
    document = json.loads(json.dumps(run, default=to_plain)) | {field: value}
    measurements.path().parent.mkdir(parents=True)
    measurements.path().write_text(json.dumps(document))
    assert measurements.read()[0] == []


# The commands


def box(tmp_path, origin="detected"):
    card_ = {
        "index": 0, "vendor": "nvidia", "name": "NVIDIA GeForce RTX 4090", "memory_kind": "dedicated",
        "memory": {"total_bytes": 25757220864},
    }  # fmt: skip
    document = {
        "name": "box", "origin": origin, "memory": {"total_bytes": 64 * 2**30}, "accelerators": [card_],
        "cpu": {"model": "AMD Ryzen 9 7950X", "architecture": "x86_64", "logical_cores": 32},
    }  # fmt: skip
    path = tmp_path / f"{origin}.json"
    path.write_text(json.dumps(document))
    return path


def remembered(tmp_path, decode, count=1):
    from provision.catalog import load_catalog
    from provision.cli.where import Where, one_machine

    machine = one_machine(Where(machine_file=str(box(tmp_path))), load_catalog())
    run = result(level(decode, 4000), machine=machine, engine="ollama", model="llama3.1:8b-instruct-q8_0")
    measurements.append(stored_runs(replace(run, quantization="Q8_0")) * count)


def planned_for(path, *options):
    return run_cli(
        "plan", "--machine", path, "--model", "llama3.1:8b", "--model", "qwen2.5:7b", "--json", *options
    ).json


def decode_of(document, model, quantization):
    (found,) = [c for c in document["data"]["candidates"] if (c["model"], c["quantization"]) == (model, quantization)]
    return found["speed"]["decode_tokens_per_s"]


def width(value):
    return value["high"] / value["low"]


def test_plan_goes_by_what_was_measured_and_says_so(tmp_path):
    path = box(tmp_path)
    before = planned_for(path)
    a, b = decode_of(before, "llama3.1:8b", "Q8_0"), decode_of(before, "qwen2.5:7b", "Q4_K_M")
    remembered(tmp_path, 0.8 * a["expected"], count=3)
    after = planned_for(path)
    measured, other = decode_of(after, "llama3.1:8b", "Q8_0"), decode_of(after, "qwen2.5:7b", "Q4_K_M")
    assert measured["basis"] == "measured_here"
    assert measured["expected"] == pytest.approx(0.8 * a["expected"], rel=0.02)
    assert other["basis"] == b["basis"]
    assert 0.8 * b["expected"] < other["expected"] < 0.95 * b["expected"]
    assert width(other) < width(b)
    (told,) = [w for w in after["warnings"] if w["code"] == "measured-here"]
    assert "3 runs" in told["message"]
    assert str(measurements.path()) in told["message"]
    assert len(after["data"]["measured_here"]) == 3
    without = planned_for(path, "--no-local")
    assert without["data"]["candidates"] == before["data"]["candidates"]
    assert without["data"]["measured_here"] == []


def test_estimate_agrees_with_plan_and_leaves_planned_machines_alone(tmp_path):
    remembered(tmp_path, 60)
    path = box(tmp_path)
    asked = ("estimate", "llama3.1:8b", "--quant", "Q8_0", "--json")
    (case,) = run_cli(*asked, "--machine", path).json["data"]["cases"]
    assert case["speed"]["decode_tokens_per_s"] == decode_of(planned_for(path), "llama3.1:8b", "Q8_0")
    assert [f["code"] for f in case["findings"]].count("measured-here") == 1
    for where in (("--machine", box(tmp_path, "declared")), ("--gpu", "RTX 4090", "--ram", "64GiB")):
        data = run_cli(*asked, *where).json["data"]
        assert data["measured_here"] == []
        assert data["cases"][0]["speed"]["decode_tokens_per_s"]["basis"] != "measured_here"


def test_the_tables_mark_it_and_name_the_run(tmp_path):
    remembered(tmp_path, 60)
    path = box(tmp_path)
    table = run_cli("plan", "--machine", path, "--model", "llama3.1:8b", "--all").stdout
    (row,) = [line for line in table.splitlines() if "Q8_0" in line and "(5" in line]
    assert ") h" in row
    assert "h: measured on this machine" in table
    assert "llama3.1:8b Q8_0 with ollama: 60.0 tokens/s on 2026-11-20" in table
    shown = run_cli("estimate", "llama3.1:8b", "--quant", "Q8_0", "--machine", path).stdout
    assert "(measured here)" in shown
    assert "on 2026-11-20" in shown


def test_broken_lines_are_one_warning(tmp_path):
    remembered(tmp_path, 60)
    with measurements.path().open("a") as stream:
        stream.write("nonsense\n" * 5)
    document = planned_for(box(tmp_path))
    assert [w["code"] for w in document["warnings"]].count("measurements-unreadable") == 1
    assert decode_of(document, "llama3.1:8b", "Q8_0")["basis"] == "measured_here"


def test_bench_keeps_a_measurement_of_the_machine_that_is_named(tmp_path):
    from tests.integration.scripted_server import ollama_server

    path = box(tmp_path)
    small = ("--prompt-tokens", "60", "--output-tokens", "8", "--requests", "2")
    with ollama_server() as server:
        run = run_cli("bench", server.url, "--machine", path, "-o", tmp_path / "r.json", "--json", *small)
    data = run.json["data"]
    assert run.code == 0
    assert data["machine"]["accelerators"] == ["NVIDIA GeForce RTX 4090"]
    (stored,), findings = measurements.read()
    assert findings == ()
    assert stored.result == str(tmp_path / "r.json")
    assert stored.decode_tokens_per_s == data["levels"][0]["decode_tokens_per_s"]["p50"]


def test_only_addresses_of_this_machine_are_of_this_machine():
    from provision.cli.bench import _is_here

    assert _is_here("http://127.0.0.1:11434")
    assert _is_here("localhost:11434")
    assert _is_here("http://[::1]:8000")
    assert not _is_here("http://gpu1:11434")
