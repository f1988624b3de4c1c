"""Judging what a host reported; the reports have the shape of the module `ollama_state`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provision.ansible import HostResult, TaskFailure
from provision.deploy import failure_of, model_findings, service_findings
from provision.domain.plan import Placement
from provision.engines.ollama_role import OllamaOptions, role_vars
from tests.integration.applying import small_plan

OPTIONS = OllamaOptions(version="0.32.15")
PLAN = small_plan()
CANDIDATE = PLAN.candidates[0]
NAME = CANDIDATE.ollama_tag or ""
VARIABLES = role_vars(PLAN, OPTIONS)


def seen(**changes: Any) -> dict[str, Any]:
    as_planned = {
        "unit_active": True,
        "unit_enabled": True,
        "environment": dict(VARIABLES["ollama_environment"]),  # type: ignore[call-overload]
        "addresses": ["127.0.0.1"],
        "recorded_models": {NAME: {"digest": "aa"}},
        "version": OPTIONS.version,
        "models": {NAME: {"digest": "aa", "size_bytes": 98}},
        "loaded": {NAME: {"size_bytes": 200, "vram_bytes": 200, "context_tokens": CANDIDATE.context_tokens}},
        "load_errors": {},
    }
    return as_planned | changes


def test_as_planned() -> None:
    assert service_findings(seen(), VARIABLES, OPTIONS) == []
    assert model_findings(seen(), CANDIDATE) == ([], [])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": "0.31.0"}, "wrong-version"),
        ({"version": None, "unit_active": False}, "not-running"),
        ({"unit_active": False}, "foreign-ollama"),
        ({"unit_enabled": False}, "not-enabled"),
        ({"addresses": ["127.0.0.1", "0.0.0.0"]}, "exposed"),
        ({"addresses": ["*"]}, "exposed"),
        ({"addresses": ["::"]}, "exposed"),
    ],
)
def test_drift_of_the_service(changes: dict[str, Any], code: str) -> None:
    assert [finding.code for finding in service_findings(seen(**changes), VARIABLES, OPTIONS)] == [code]


def test_a_setting_of_the_running_process_counts() -> None:
    environment = seen()["environment"] | {"OLLAMA_CONTEXT_LENGTH": "4096"}
    (finding,) = service_findings(seen(environment=environment), VARIABLES, OPTIONS)
    assert finding.code == "setting-differs"
    assert "4096" in finding.message


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"models": {}}, "model-missing"),
        ({"models": {NAME: {"digest": "bb", "size_bytes": 98}}}, "model-differs"),
        ({"loaded": {}, "load_errors": {NAME: "out of memory"}}, "load-failed"),
        ({"loaded": {NAME: {"size_bytes": 2, "vram_bytes": 2, "context_tokens": 512}}}, "context-differs"),
    ],
)
def test_drift_of_a_model(changes: dict[str, Any], code: str) -> None:
    found, on_cpu = model_findings(seen(**changes), CANDIDATE)
    assert [finding.code for finding in found] == [code]
    assert on_cpu == []


@pytest.mark.parametrize(
    ("gpu_layers", "vram_bytes", "is_finding"),
    [(30, 200, False), (30, 0, True), (30, 150, True), (10, 60, False), (10, 0, True), (0, 0, False)],
)
def test_the_cpu_is_held_against_the_plan(gpu_layers: int, vram_bytes: int, is_finding: bool) -> None:
    planned = replace(CANDIDATE, placement=Placement(gpu_layers=gpu_layers, layers=30))
    loaded = {NAME: {"size_bytes": 200, "vram_bytes": vram_bytes, "context_tokens": None}}
    _, on_cpu = model_findings(seen(loaded=loaded), planned)
    assert [finding.code for finding in on_cpu] == (["runs-on-cpu"] if is_finding else [])


@pytest.mark.parametrize(
    ("message", "unreachable", "code"),
    [
        ("Missing sudo password", False, "no-sudo"),
        ("Failed to connect to the host via ssh: Connection timed out", True, "host-lost"),
        ("could not write: [Errno 28] No space left on device", False, "disk-full"),
        ("something else", False, "apply-failed"),
    ],
)
def test_causes_without_a_code_of_ours(message: str, unreachable: bool, code: str) -> None:
    failure = TaskFailure("Write the service's unit", message)
    result = HostResult("gpu1", 1, 0, 0 if unreachable else 1, unreachable, (), failure, {})
    found = failure_of(result)
    assert found is not None
    assert found.code == code
    assert found.message.startswith("gpu1: ")
