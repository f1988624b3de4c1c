"""The loop on a real host: apply, apply again, verify, remove, with the host's state compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.records import write_json
from tests.integration.applying import CONTEXT_TOKENS, MODEL_BYTES, site, small_plan
from tests.lab.fixtures import HostFactory
from tests.lab.mirror import ReleaseMirror
from tests.lab.ollama_release import OLLAMA_VERSION
from tests.lab.registry import MODEL, ModelRegistry

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_whole_loop(
    lab_host: HostFactory, release_mirror: ReleaseMirror, model_registry: ModelRegistry, tmp_path: Path
) -> None:
    host = lab_host("loop", nvml="2x-rtx-4090")
    here = site(host, release_mirror, model_registry, tmp_path)
    before = host.snapshot()

    checked = here.apply("--check")
    assert checked.exit_code == 0
    (outcome,) = checked.envelope["data"]["hosts"]
    assert outcome["status"] == "changed"
    assert "Pull the models" in outcome["changes"]
    assert before.diff(host.snapshot()) == []

    unconfirmed = here.apply_without_yes()
    assert (unconfirmed.exit_code, unconfirmed.codes) == (2, ["not-confirmed"])
    assert "--yes" in unconfirmed.envelope["errors"][0]["hint"]
    assert before.diff(host.snapshot()) == []

    first = here.apply()
    assert first.exit_code == 0, first.envelope["errors"]
    assert f"{host.name}: pulling {MODEL}" in first.stderr
    assert before.diff(host.snapshot(), ignore=()) != []

    again = here.apply()
    (outcome,) = again.envelope["data"]["hosts"]
    assert (outcome["status"], outcome["changes"]) == ("unchanged", [])

    on_cpu = here.verify()
    assert (on_cpu.exit_code, on_cpu.codes) == (7, ["runs-on-cpu"])
    allowed = here.verify("--allow-cpu")
    assert allowed.exit_code == 0
    (state,) = allowed.envelope["data"]["hosts"]
    assert state["version"] == OLLAMA_VERSION
    assert state["listens_on"] == ["127.0.0.1"]
    assert state["models"][0]["size_bytes"] > MODEL_BYTES
    assert [warning["code"] for warning in allowed.envelope["warnings"]] == ["runs-on-cpu"]

    removed = here.remove()
    assert removed.exit_code == 0, removed.envelope["errors"]
    assert before.diff(host.snapshot()) == []
    nothing_left = here.remove()
    assert nothing_left.envelope["data"]["hosts"][0]["status"] == "unchanged"


def test_changed_plan_and_drift(
    lab_host: HostFactory, release_mirror: ReleaseMirror, model_registry: ModelRegistry, tmp_path: Path
) -> None:
    host = lab_host("drift")
    host.write("/usr/local/bin/ollama", "#!/bin/sh\necho the user's own\n", mode=0o755)
    here = site(host, release_mirror, model_registry, tmp_path)
    before = host.snapshot()
    assert here.apply().exit_code == 0

    write_json(here.plan, small_plan(context_tokens=2 * CONTEXT_TOKENS, users=2))
    differs = here.verify("--allow-cpu")
    assert differs.exit_code == 7
    assert set(differs.codes) <= {"setting-differs", "context-differs"}
    messages = " ".join(error["message"] for error in differs.envelope["errors"])
    assert "OLLAMA_CONTEXT_LENGTH=2048, planned is 4096" in messages
    assert "OLLAMA_NUM_PARALLEL=1, planned is 2" in messages

    (outcome,) = here.apply().envelope["data"]["hosts"]
    assert outcome["changes"] == [
        "Write unit, settings, folders and links of the service",
        "Start the service with these settings",
    ]
    assert here.verify("--allow-cpu").exit_code == 0

    host.run(["sudo", "ollama", "rm", MODEL])
    missing = here.verify("--allow-cpu")
    assert (missing.exit_code, missing.codes) == (7, ["model-missing"])
    host.run("systemctl disable --now --quiet ollama")
    stopped = here.verify("--allow-cpu")
    assert (stopped.exit_code, stopped.codes) == (7, ["not-running"])
    assert here.apply().exit_code == 0
    assert here.verify("--allow-cpu").exit_code == 0

    kept = here.remove("--keep-models")
    assert kept.exit_code == 0
    left = before.diff(host.snapshot())
    assert all("/usr/share/ollama" in line or "/var/lib/provision" in line for line in left), left
    assert any("/blobs/sha256-" in line for line in left)
    model_registry.reset()
    assert here.apply().exit_code == 0
    assert not any("/blobs/" in request.path or "/data/" in request.path for request in model_registry.requests)
    assert here.remove().exit_code == 0
    assert before.diff(host.snapshot()) == []
