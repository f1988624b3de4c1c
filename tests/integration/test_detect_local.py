"""This machine, with the NVML stand-in: what the libraries tell and what the tools print make the same machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab.nvml import standin_env

ROOT = Path(__file__).parents[2]
MIB = 2**20

BOTH_WAYS = """
import json, subprocess, sys
from provision import probes
from provision.records import to_plain
here = probes.detect_local("/")
script = probes._SCRIPT.read_text()
text = subprocess.run(["sh", "-s", "--", "/"], input=script, capture_output=True, text=True, check=True).stdout
there = probes.machine_of(probes.parse_sections(text, "x"), "/", name="x")
json.dump([here, there], sys.stdout, default=to_plain)
"""


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the NVML stand-in with")


def both_ways(profile: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Through NVML and psutil, and through the text of the tools alone; without what changes from second to second."""
    done = subprocess.run(
        [sys.executable, "-c", BOTH_WAYS],
        env=standin_env(profile),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    here, there = json.loads(done.stdout)
    for machine in (here, there):
        del machine["memory"]["available_bytes"], machine["disks"][0]["free_bytes"]
    return here, there


@pytest.mark.parametrize(
    "profile", ["2x-rtx-4090", "rtx-a6000", "rtx-a6000-ecc", "gb10", "mig", "driver-mismatch", "driver-not-loaded"]
)
def test_libraries_and_tools_agree(profile: str) -> None:
    here, there = both_ways(profile)
    assert here == there


def test_two_cards_are_two_pools() -> None:
    here, _ = both_ways("2x-rtx-4090")
    assert [card["memory"]["total_bytes"] for card in here["accelerators"]] == [24564 * MIB] * 2
    assert {card["name"] for card in here["accelerators"]} == {"NVIDIA GeForce RTX 4090"}


def test_unified_memory_belongs_to_the_host() -> None:
    (card,) = both_ways("gb10")[0]["accelerators"]
    assert (card["memory_kind"], card["memory"]) == ("unified", None)


def test_driver_mismatch_is_no_card_and_a_reboot() -> None:
    here, _ = both_ways("driver-mismatch")
    assert here["accelerators"] == []
    assert [(f["code"], f["hint"]) for f in here["findings"] if f["code"] == "driver-library-mismatch"] == [
        ("driver-library-mismatch", "sudo reboot")
    ]


def test_a_card_in_parts_is_said() -> None:
    assert "mig-enabled" in [finding["code"] for finding in both_ways("mig")[0]["findings"]]


def test_a_tool_that_hangs_does_not_hold_up_detection(tmp_path: Path) -> None:
    hanging = tmp_path / "nvidia-smi"
    hanging.write_text("#!/bin/sh\nsleep 60\n")
    hanging.chmod(0o755)
    env = standin_env("2x-rtx-4090")
    done = subprocess.run(
        [sys.executable, "-m", "provision", "detect", "--json", "--timeout", "2"],
        env=env | {"PATH": f"{tmp_path}:{env['PATH']}"}, cwd=ROOT, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert done.returncode == 5
    assert answer["errors"][0]["code"] == "timeout"
