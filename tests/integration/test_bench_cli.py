"""`provision bench` as users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import run_cli
from tests.integration.scripted_server import ollama_reply, ollama_server, openai_reply, openai_server

SMALL = ("--prompt-tokens", "60", "--output-tokens", "8", "--requests", "2")


def test_table_and_file(tmp_path):
    path = tmp_path / "result.json"
    with ollama_server() as server:
        run = run_cli("bench", server.url, "--model", "fake", "--users", "1,2", "-o", path, *SMALL)

    assert run.code == 0
    assert "decode tok/s per user p50" in run.stdout
    assert "fake:latest on ollama 0.32.1" in run.stdout
    assert f"saved to {path}" in run.stderr
    assert json.loads(path.read_text())["complete"]


def test_json_and_default_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with openai_server() as server:
        run = run_cli("bench", server.url, "--json", *SMALL)

    assert run.code == 0
    data = run.json["data"]
    assert (data["model"], data["api"], len(data["levels"])) == ("fake", "openai", 1)
    assert {warning["code"] for warning in run.json["warnings"]} >= {"too-few-samples"}
    (path,) = (tmp_path / "provision" / "results").iterdir()
    assert path.name.endswith("-fake.json")


@pytest.mark.parametrize(("limit", "code"), [("1", 0), ("100000", 7)])
def test_fail_below(limit, code, tmp_path):
    with openai_server() as server:
        run = run_cli("bench", server.url, "--json", "--fail-below", limit, "-o", tmp_path / "r.json", *SMALL)

    assert run.code == code
    assert [error["code"] for error in run.json["errors"]] == ["below-threshold"] * (code == 7)
    assert run.json["data"]["levels"], "the result is there also when it is too slow"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--model", "llama3.2:3b"), "has no model 'llama3.2:3b'; it has llama3.1:8b, qwen:7b", "--model llama3.1:8b"),
        (("--model", "zzz"), "has no model 'zzz'; it has", "ollama pull zzz"),
        ((), "has llama3.1:8b, qwen:7b: which one?", "--model llama3.1:8b"),
        (("--model", "qwen:7b", "--users", "1,x"), "--users '1,x'", "--users 1,4,8"),
        (("--model", "qwen:7b", "--users", "0"), "--users '0'", "--users 1,4,8"),
        (("--model", "qwen:7b", "--prompt-tokens", "many"), "--prompt-tokens: 'many'", None),
        (("--model", "qwen:7b", "--context", "0"), "--context", None),
        (("--model", "qwen:7b", "--api-key-env", "NOT_SET_XYZ"), "NOT_SET_XYZ is not set", "export NOT_SET_XYZ=..."),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, hint):
    with ollama_server(names=("llama3.1:8b", "qwen:7b")) as server:
        run = run_cli("bench", server.url, "--json", *arguments)

        assert server.bodies("/api/generate") == []
    (error,) = run.json["errors"]
    assert run.code == 2
    assert message in error["message"]
    assert hint is None or error["hint"] == hint


def test_nothing_there():
    run = run_cli("bench", "http://127.0.0.1:9", "--model", "x", "--json")

    assert run.code == 5
    (error,) = run.json["errors"]
    assert error["code"] == "connection-refused"
    assert error["hint"] == "curl -sv http://127.0.0.1:9/", "it need not be Ollama that is missing"


def test_key_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "sesame")
    with openai_server() as server:
        run_cli("bench", server.url, "--api-key-env", "MY_KEY", "-o", tmp_path / "r.json", *SMALL)

        assert {request.headers["authorization"] for request in server.requests} == {"Bearer sesame"}
    assert "sesame" not in (tmp_path / "r.json").read_text()


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    path = tmp_path / "result.json"
    with openai_server(openai_reply) as server:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "provision",
                "bench",
                server.url,
                "--json",
                "-o",
                str(path),
                *SMALL[:4],
                "--requests",
                "500",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        deadline = time.monotonic() + 30
        while len(server.bodies("/v1/chat/completions")) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)

    envelope = json.loads(out)
    assert process.returncode == envelope["exit_code"] == 130
    assert [error["code"] for error in envelope["errors"]] == ["interrupted"]
    assert str(path) in envelope["errors"][0]["message"]
    kept = json.loads(path.read_text())
    assert not kept["complete"]
    assert len(kept["levels"][0]["requests"]) >= 3


def test_all_requests_failing_is_not_a_success(tmp_path):
    from tests.integration.scripted_server import json_reply

    seen = []

    def generate(body):
        seen.append(body)
        return ollama_reply(body) if len(seen) <= 2 else json_reply({"error": "out of memory"}, status=500)

    with ollama_server(generate) as server:
        run = run_cli("bench", server.url, "--json", "-o", tmp_path / "r.json", *SMALL)

    assert run.code == 5
    assert run.json["errors"][0]["code"] == "nothing-measured"
    assert "out of memory" in run.json["warnings"][0]["message"]


@pytest.mark.slow
def test_self_test_passes_here_and_shows_the_error():
    run = run_cli("bench", "--self-test", "--json")
    if run.code == 7:  # a machine that was busy for a moment
        run = run_cli("bench", "--self-test", "--json")

    assert run.code == 0
    rows = run.json["data"]["rows"]
    assert [(row["users"], row["figure"]) for row in rows] == [(1, "ttft"), (1, "tpot"), (8, "ttft"), (8, "tpot")]
    assert rows[0]["true_s"] == pytest.approx(0.1, abs=0.02)
    assert rows[1]["true_s"] == pytest.approx(0.01, abs=0.002)


def test_self_test_fails_for_a_client_that_is_off(monkeypatch):
    from provision.bench import stats

    honest = stats.ttft_s
    monkeypatch.setattr(stats, "ttft_s", lambda request: honest(request) + 0.02)
    run = run_cli("bench", "--self-test", "--json")

    assert run.code == 7
    assert {error["code"] for error in run.json["errors"]} == {"client-inaccurate"}
    assert not run.json["data"]["passed"]


def _plan_for_another_model(tmp_path):
    path = tmp_path / "plan.json"
    run_cli("plan", "--gpu", "RTX 4090", "--ram", "64GiB", "--model", "llama3.1:8b", "-o", path)
    return path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (lambda folder: ("-o", folder / "none" / "x.json"), 3, "cannot write"),
        (lambda folder: ("-o", folder), 3, "it is a folder"),
        (lambda folder: ("-o", "-"), 3, "-o takes a file"),
        (lambda folder: ("--plan", _plan_for_another_model(folder)), 2, "the plan does not install"),
        (lambda _: ("--fail-below", "nan"), 2, "--fail-below nan"),
        (lambda _: ("--fail-below", "inf"), 2, "--fail-below inf"),
    ],
)
def test_what_would_spoil_the_end_is_said_at_the_start(arguments, code, message, tmp_path):
    with openai_server() as server:
        run = run_cli("bench", server.url, "--json", *arguments(tmp_path), *SMALL)

        assert server.bodies("/v1/chat/completions") == [], "nothing was measured"
    assert run.code == code
    (error,) = run.json["errors"]
    assert message in error["message"]
    assert error["hint"]


def test_without_a_home_the_result_is_kept_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", "/dev/null/nowhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with openai_server() as server:
        run = run_cli("bench", server.url, *SMALL)

    assert run.code == 0
    (path,) = tmp_path.glob("provision-results-*/result.json")
    assert f"saved to {path}" in run.stderr
    assert "cannot write to the data folder" in run.stderr
    assert json.loads(path.read_text())["complete"]
