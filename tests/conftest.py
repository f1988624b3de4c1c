"""Isolation: no test reads or writes the user's own catalog, results or settings; and skips are told."""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["tests.lab.fixtures"]

_FOREIGN = ("ANSIBLE_", "OLLAMA_", "PROVISION_API", "PROVISION_MIRROR", "PROVISION_REGISTRY", "PROVISION_ENGINE")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_DATA_HOME", str(base / "data"))
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        monkeypatch.delenv(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests were skipped; pytest's own -ra lists each with its reason."""
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"{skipped} tests were skipped" if skipped else "no test was skipped")
