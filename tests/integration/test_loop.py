"""The loop as the README tells it: detect, plan, apply, verify, bench, remove, through the commands alone."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.applying import provision
from tests.lab.fixtures import HostFactory
from tests.lab.host import LabHost
from tests.lab.mirror import ReleaseMirror
from tests.lab.ollama_release import OLLAMA_VERSION
from tests.lab.registry import MODEL, ModelRegistry

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@contextmanager
def tunnel(host: LabHost, port: int = 11434) -> Iterator[str]:
    """The host's loopback port on a port of ours, as a user reaches an engine that listens on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        local = free.getsockname()[1]
    forward = ["ssh", "-F", str(host.ssh_config), "-N", "-o", "ExitOnForwardFailure=yes"]
    with subprocess.Popen([*forward, "-L", f"{local}:127.0.0.1:{port}", host.name]) as process:
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", local)) == 0:
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{local}"
        finally:
            process.terminate()


def test_detect_plan_apply_verify_bench_remove(
    lab_host: HostFactory, release_mirror: ReleaseMirror, model_registry: ModelRegistry, tmp_path: Path
) -> None:
    host = lab_host("readme", nvml="2x-rtx-4090")
    before = host.snapshot()
    where = ["--host", host.name, "--ssh-config", host.ssh_config]
    plan_file = tmp_path / "plan.json"

    (machine,) = provision("detect", *where).envelope["data"]["machines"]
    assert [card["memory"]["total_bytes"] for card in machine["accelerators"]] == [24564 * 2**20] * 2
    assert {card["catalog_id"] for card in machine["accelerators"]} == {"nvidia-rtx-4090"}

    everything = provision("plan", *where).envelope["data"]
    assert len({c["model"] for c in everything["candidates"]}) > 10
    assert everything["candidates"][0]["placement"]["gpu_layers"] == everything["candidates"][0]["placement"]["layers"]

    chosen = ["--model", "smollm2:135m", "--quant", "Q4_1", "--context", "2k", "-o", plan_file]
    plan = provision("plan", *where, *chosen).envelope["data"]
    assert plan["candidates"][0]["ollama_tag"] == MODEL

    address = host.controller_address
    sources = [
        "--mirror", release_mirror.url(address), "--engine-version", OLLAMA_VERSION, "--allow-old-engine",
        "--registry", model_registry.url(address).removeprefix("http://"), "--insecure-registry",
    ]  # fmt: skip
    applied = provision("apply", plan_file, *where, *sources, "--yes")
    assert applied.exit_code == 0, applied.envelope["errors"]
    verified = provision("verify", plan_file, *where, "--allow-cpu")
    assert verified.exit_code == 0, verified.envelope["errors"]

    with tunnel(host) as url:
        bench = ["bench", url, "--model", MODEL, "--users", "1", "--requests", "3", "--prompt-tokens", "64"]
        measured = provision(*bench, "--output-tokens", "24", "--plan", plan_file, "-o", tmp_path / "bench.json")
    assert measured.exit_code == 0, measured.envelope["errors"]
    (level,) = measured.envelope["data"]["levels"]
    assert level["decode_tokens_per_s"]["p50"] > 1
    codes = {warning["code"] for warning in measured.envelope["warnings"]}
    assert {"spilled-to-cpu", "below-prediction"} <= codes, "the plan was for cards that only the stand-in has"

    assert provision("remove", *where, "--yes").exit_code == 0
    assert before.diff(host.snapshot()) == []
