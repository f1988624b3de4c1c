"""apply, verify and remove refuse bad input before any host is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provision.records import write_json
from tests.integration.applying import provision, small_plan


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    write_json(path, small_plan())
    return path


@pytest.mark.parametrize("command", ["apply", "verify"])
def test_bad_plan_files(command: str, plan: Path, tmp_path: Path) -> None:
    document = json.loads(plan.read_text())
    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps(document | {"plan_version": 99, "future": True}))
    found = provision(command, newer, "--host", "h")
    assert (found.exit_code, found.codes) == (3, ["newer-version"])
    assert provision(command, tmp_path / "none.json", "--host", "h").exit_code == 3
    newer.write_text("{")
    assert provision(command, newer, "--host", "h").exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--listen", "0.0.0.0:11434"], "exposed"),
        (["--engine-version", "0.16.0"], "unsafe-version"),
        (["--mirror", "mirror.example"], "usage"),
        (["--registry", "https://registry.example"], "usage"),
        (["--models-path", "/home/me/models"], "usage"),
    ],
)
def test_bad_options(plan: Path, arguments: list[str], code: str) -> None:
    found = provision("apply", plan, "--host", "h.invalid", "--yes", *arguments)
    assert (found.exit_code, found.codes) == (2, [code])
    assert found.envelope["errors"][0]["hint"]


def test_a_host_must_be_named(plan: Path) -> None:
    for arguments in (["apply", plan], ["verify", plan], ["remove"]):
        found = provision(*arguments)
        assert (found.exit_code, found.codes) == (2, ["no-host"])


def test_unknown_host_is_told_before_anything_is_done(plan: Path) -> None:
    found = provision("apply", plan, "--host", "no-such-host.invalid", "--yes")
    assert (found.exit_code, found.codes) == (5, ["unreachable"])
    assert "nothing was done" in found.envelope["errors"][0]["message"]
