"""`quickstart` with the real embedded llama.cpp and a real small model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from provision import measurements
from provision.engines import demo_model
from tests.gguf_files import llama, llama_tensors, whole
from tests.helpers import checked_envelope, run_cli
from tests.models import smollm2_gguf

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder that has the demonstration model already, so that no test downloads it again."""
    folder = tmp_path_factory.mktemp("cache")
    target = folder / "provision" / "models" / demo_model.path().name
    target.parent.mkdir(parents=True)
    target.symlink_to(smollm2_gguf())
    return folder


def _start(cache: Path | str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "provision", "quickstart", *arguments],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _served_by(process: subprocess.Popen[str]) -> psutil.Process:
    """The embedded server's process, as soon as there is one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children():
            if "provision.engines.llamacpp_child" in child.cmdline():
                return child
        time.sleep(0.05)
    raise AssertionError("no embedded server was started")


def _ended(process: psutil.Process) -> bool:
    try:
        process.wait(timeout=10)
    except psutil.TimeoutExpired:
        return False
    return True


def test_it_ends_with_ceiling_predicted_and_measured(cache):
    process = _start(cache, "--embedded", "--json")
    out, _ = process.communicate(timeout=180)
    data = checked_envelope(json.loads(out), process.returncode)["data"]
    decode = data["decode_tokens_per_s"]
    assert process.returncode == 0
    assert 0 < decode["measured"] <= 1.05 * decode["ceiling"]
    assert 0 < decode["predicted"]["low"] <= decode["predicted"]["expected"] <= decode["ceiling"]
    assert {"as-predicted", "below-prediction", "above-prediction"} & {f["code"] for f in data["findings"]}
    assert data["measured"]["levels"][0]["requests"][0]["output_tokens"] == 64
    (run,), _ = measurements.read()
    assert (run.model, run.offload_ratio, run.decode_tokens_per_s) == ("smollm2:135m", 0.0, decode["measured"])


def test_a_model_of_ones_own_and_a_table(cache):
    process = _start(cache, "--gguf", str(smollm2_gguf()))
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    for word in ("ceiling", "predicted", "measured", "Next:"):
        assert word in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_server_goes_with_us_however_we_go(cache, number, code):
    process = _start(cache, "--embedded", "--json")
    server = _served_by(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert _ended(server)
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert checked_envelope(json.loads(out), 130)["errors"][0]["code"] == "interrupted"


def test_a_cache_that_cannot_be_written_is_replaced_by_a_folder_that_goes_again(tmp_path):
    process = _start("/dev/null/nowhere", "--gguf", str(smollm2_gguf()), "--json", TMPDIR=str(tmp_path))
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out
    assert checked_envelope(json.loads(out), 0)["data"]["decode_tokens_per_s"]["measured"] > 0
    assert list(tmp_path.iterdir()) == [], "the temporary folder is gone"


def test_the_log_of_a_server_that_fails_stays_where_the_hint_says(tmp_path):
    """The header is whole, but there is no tokenizer: only loading finds out."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(whole(llama(), llama_tensors()))
    process = _start("/dev/null/nowhere", "--gguf", str(bad), "--json", TMPDIR=str(tmp_path))
    out, _ = process.communicate(timeout=180)
    (error,) = checked_envelope(json.loads(out), process.returncode)["errors"]
    assert (process.returncode, error["code"]) == (5, "engine-start")
    assert Path(error["hint"].removeprefix("the whole log: ")).is_file()


@pytest.mark.parametrize("name", ["missing.gguf", "bad.gguf"])
def test_a_wrong_file_is_said_before_anything_is_measured(name, monkeypatch, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    monkeypatch.setattr("provision.cli.where.one_machine", lambda *_: pytest.fail("it has looked at the machine"))
    run = run_cli("quickstart", "--gguf", tmp_path / name, "--json")
    assert run.code == (2 if name == "missing.gguf" else 3)
    assert name in run.json["errors"][0]["message"]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model", b"\0" * 100_000])
def test_a_file_that_is_no_model_is_one_clear_error(cache, tmp_path, content):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content)
    process = _start(cache, "--gguf", str(bad), "--json")
    out, _ = process.communicate(timeout=60)
    error = checked_envelope(json.loads(out), process.returncode)["errors"][0]
    assert process.returncode == 3
    assert "bad.gguf" in error["message"]
    assert error["hint"]
