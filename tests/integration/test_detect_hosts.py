"""`provision detect --host` against booted hosts: near and far agree, and every way to fail is told apart."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab.fixtures import HostFactory
from tests.lab.host import LabHost

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
MIB = 2**20


def detect(*arguments: object) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "provision", "detect", "--json", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def ssh_config(folder: Path, hosts: Sequence[LabHost]) -> Path:
    path = folder / "ssh_config"
    path.write_text("".join(host.ssh_config.read_text() for host in hosts))
    return path


@pytest.fixture(scope="module")
def gpu_host(module_lab_host: HostFactory) -> LabHost:
    return module_lab_host("gpu1", nvml="2x-rtx-4090")


def test_two_cards_of_a_remote_host(gpu_host: LabHost) -> None:
    code, answer = detect("--host", "gpu1", "--ssh-config", gpu_host.ssh_config)
    assert (code, answer["status"]) == (0, "success")
    (machine,) = answer["data"]["machines"]
    assert machine["name"] == "gpu1"
    assert machine["operating_system"]["id"] == "debian"
    assert [card["memory"]["total_bytes"] for card in machine["accelerators"]] == [24564 * MIB] * 2
    assert machine["cpu"]["logical_cores"] > 0
    assert machine["disks"][0]["free_bytes"] > 0


def test_a_user_without_rights_sees_the_same(gpu_host: LabHost) -> None:
    as_root, as_nobody = (
        detect("--host", f"{user}@gpu1", "--ssh-config", gpu_host.ssh_config)[1]["data"]["machines"][0]
        for user in ("root", "nosudo")
    )
    for machine in (as_root, as_nobody):
        del machine["memory"]["available_bytes"], machine["disks"][0]["free_bytes"]
    assert as_root == as_nobody


def test_detection_changes_nothing_on_the_host(gpu_host: LabHost) -> None:
    before = gpu_host.snapshot()
    detect("--host", "gpu1", "--ssh-config", gpu_host.ssh_config)
    assert gpu_host.snapshot() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hosts.ini", "[gpu]\nbox ansible_host={address} ansible_user=deploy ansible_ssh_private_key_file={key}\n"
                      "[gpu:vars]\nansible_ssh_common_args=-o UserKnownHostsFile={known}\n"),
        ("hosts.yml", "gpu:\n  hosts:\n    box:\n      ansible_host: {address}\n      ansible_user: deploy\n"
                      "      ansible_ssh_private_key_file: {key}\n"
                      "      ansible_ssh_common_args: -o UserKnownHostsFile={known}\n"),
    ],
)  # fmt: skip
def test_inventory(gpu_host: LabHost, tmp_path: Path, name: str, text: str) -> None:
    inventory = tmp_path / name
    inventory.write_text(text.format(address=gpu_host.address, key=gpu_host.identity_file, known=gpu_host.known_hosts))
    code, answer = detect("--inventory", inventory)
    assert code == 0, answer["errors"]
    assert [machine["name"] for machine in answer["data"]["machines"]] == ["gpu1"]


def test_wrong_key(gpu_host: LabHost, tmp_path: Path) -> None:
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    config = tmp_path / "config"
    config.write_text(f"Host *\nUserKnownHostsFile {gpu_host.known_hosts}\n")
    code, answer = detect("--host", f"deploy@{gpu_host.address}", "--ssh-config", config, "--ssh-key", key)
    assert (code, answer["status"]) == (5, "error")
    assert answer["errors"][0]["code"] == "ssh-auth"


def test_unknown_host_key(gpu_host: LabHost, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(f"Host *\nUserKnownHostsFile {tmp_path / 'empty'}\nGlobalKnownHostsFile /dev/null\n")
    code, answer = detect("--host", f"deploy@{gpu_host.address}", "--ssh-config", config)
    assert (code, answer["errors"][0]["code"]) == (5, "host-key-unknown")


def test_one_good_host_among_bad_ones(lab_host: HostFactory, gpu_host: LabHost, tmp_path: Path) -> None:
    renewed, silent = lab_host("renewed"), lab_host("silent")
    renewed.rotate_host_key()
    silent.unplug()
    config = ssh_config(tmp_path, [gpu_host, renewed, silent])
    started = time.monotonic()
    code, answer = detect(
        "--host", "renewed", "--host", "silent", "--host", f"deploy@{gpu_host.address}:1", "--host", "gpu1",
        "--ssh-config", config, "--timeout", 5,
    )  # fmt: skip
    assert time.monotonic() - started < 15
    assert (code, answer["status"]) == (5, "partial")
    assert [machine["name"] for machine in answer["data"]["machines"]] == ["gpu1"]
    codes = {failure["host"]: failure["code"] for failure in answer["data"]["failures"]}
    assert codes["renewed"] == "host-key-changed"
    assert codes["silent"] in ("timeout", "unreachable")
    assert codes[f"deploy@{gpu_host.address}:1"] == "connection-refused"
    assert all(failure["hint"] for failure in answer["data"]["failures"])
