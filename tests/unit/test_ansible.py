"""The runner of playbooks, on this machine: `verify.yml` only reads."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from provision.ansible import AnsibleHost, PlayEvent, run_playbook
from provision.errors import ApplyFailed

SECRET = "hf_do-not-write-me-down"

pytestmark = pytest.mark.slow


def this_machine(**variables: object) -> AnsibleHost:
    connection = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "ansible_become": False,
        "verify_base_url": "http://127.0.0.1:9",
        "models_wanted": [],
    }
    return AnsibleHost("here", connection | variables)


def private_folders() -> set[Path]:
    return set(Path("/tmp").glob("provision-*"))


def test_run_leaves_no_trace_and_writes_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", "no.such.callback")
    # As in a virtual environment that is not activated.
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    before, environment = private_folders(), dict(os.environ)
    modes, written = [], []

    def look(event: PlayEvent) -> None:
        for folder in private_folders() - before:
            modes.append(stat.S_IMODE(folder.stat().st_mode))
            for path in folder.rglob("*"):
                if path.is_file():
                    written.append(path.read_bytes())

    result = run_playbook("verify", [this_machine()], on_event=look)
    (host,) = result.hosts
    assert (host.ok, host.changed, host.failed, host.unreachable) == (1, 0, 0, False)
    assert host.results["Read the state of the running Ollama"]["version"] is None
    assert set(modes) == {0o700}
    assert written
    assert not any(SECRET.encode() in content for content in written)
    assert private_folders() == before
    assert dict(os.environ) == environment


def test_broken_display_does_not_stop_the_run() -> None:
    def broken(event: PlayEvent) -> None:
        raise RuntimeError("display")

    handler = signal.getsignal(signal.SIGINT)
    (host,) = run_playbook("verify", [this_machine()], on_event=broken).hosts
    assert host.ok == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_failures_are_told_with_their_task_and_other_hosts_go_on() -> None:
    bad = AnsibleHost("bad", {**this_machine().variables, "models_wanted": "{{ nobody_knows_this }}"})
    closed_port = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
    away = AnsibleHost("away", {**this_machine().variables, **closed_port})
    events = []
    result = run_playbook("verify", [this_machine(), bad, away], on_event=events.append)
    good_result, bad_result, away_result = result.hosts
    assert good_result.failure is None
    assert bad_result.failure is not None
    assert bad_result.failure.task == "Read the state of the running Ollama"
    assert "nobody_knows_this" in bad_result.failure.message
    assert away_result.unreachable
    assert {event.kind for event in events if event.host == "away"} >= {"unreachable"}


def test_ansible_that_cannot_run_says_why() -> None:
    with pytest.raises(ApplyFailed) as failed:
        run_playbook("no-such-playbook", [this_machine()])
    assert failed.value.code == "ansible-failed"
    assert "no-such-playbook" in failed.value.message
