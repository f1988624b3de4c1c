"""For tests of apply, verify and remove: a plan for the lab's model, and the command line as a user has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from provision.domain.hardware import Accelerator, Machine, MemoryPool, Origin
from provision.domain.plan import (
    Candidate,
    DeviceMemory,
    MemoryEstimate,
    Placement,
    Plan,
    Workload,
)
from provision.records import write_json
from tests.lab.host import LabHost
from tests.lab.mirror import ReleaseMirror
from tests.lab.ollama_release import OLLAMA_VERSION
from tests.lab.registry import MODEL, ModelRegistry

MODEL_BYTES = 98_363_439
CONTEXT_TOKENS = 2048
ROOT = Path(__file__).parents[2]


def small_plan(*, context_tokens: int = CONTEXT_TOKENS, users: int = 1) -> Plan:
    """SmolLM2-135M on two cards of 24 GiB, all layers on the first."""
    device = DeviceMemory(
        device="gpu0", name="NVIDIA GeForce RTX 4090", capacity_bytes=24 * 2**30, weights_bytes=MODEL_BYTES,
        kv_cache_bytes=0, state_bytes=0, compute_bytes=0, overhead_bytes=0, total_bytes=MODEL_BYTES,
        headroom_bytes=None,
    )  # fmt: skip
    candidate = Candidate(
        id=f"{MODEL}/Q4_1@ollama", model=MODEL, quantization="Q4_1", engine="ollama", ollama_tag=MODEL,
        weights_bytes=MODEL_BYTES, context_tokens=context_tokens, users=users,
        memory=MemoryEstimate(devices=(device,), total_bytes=MODEL_BYTES), fits=True,
        placement=Placement(gpu_layers=30, layers=30, split=(30, 0)), speed=None,
    )  # fmt: skip
    cards = tuple(
        Accelerator(
            index=index, vendor="nvidia", name="NVIDIA GeForce RTX 4090", memory=MemoryPool(total_bytes=24 * 2**30)
        )
        for index in range(2)
    )
    return Plan(
        created_at=datetime(2026, 1, 1, tzinfo=UTC), provision_version="0", catalog_revision="test",
        capacity_basis="total",
        machine=Machine(name="test", origin=Origin.DECLARED, memory=MemoryPool(total_bytes=2**36), accelerators=cards),
        workload=Workload(context_tokens=context_tokens, users=users), candidates=(candidate,), rejections=(),
        selected=(candidate.id,),
    )  # fmt: skip


@dataclass(frozen=True)
class Answer:
    exit_code: int
    envelope: dict[str, Any]
    stderr: str

    @property
    def codes(self) -> list[str]:
        return [error["code"] for error in self.envelope["errors"]]


def provision(*arguments: str | Path, timeout_s: float = 120) -> Answer:
    """Run a command with --json; checks that exactly one envelope with the right exit code came out."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False)
    return answer(done.returncode, done.stdout, done.stderr)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "provision", *map(str, arguments), "--json"]


def answer(exit_code: int, stdout: str, stderr: str) -> Answer:
    assert stdout.count("\n") == 1, f"not one envelope:\n{stdout}\n{stderr}"
    envelope = json.loads(stdout)
    assert set(envelope) == {
        "provision_result_version", "command", "status", "exit_code", "data", "warnings", "errors"
    }  # fmt: skip
    assert envelope["exit_code"] == exit_code, envelope
    assert (exit_code == 0) == (envelope["errors"] == []), envelope
    for error in envelope["errors"]:
        assert "\n" not in error["message"], error
    return Answer(exit_code, envelope, stderr)


@dataclass(frozen=True)
class Site:
    """A host with mirror and registry in its reach, and the plan in a file."""

    host: LabHost
    mirror: ReleaseMirror
    registry: ModelRegistry
    plan: Path

    @property
    def where(self) -> list[str]:
        return ["--host", self.host.name, "--ssh-config", str(self.host.ssh_config)]

    @property
    def sources(self) -> list[str]:
        address = self.host.controller_address
        return [
            "--mirror", self.mirror.url(address), "--engine-version", OLLAMA_VERSION, "--allow-old-engine",
            "--registry", self.registry.url(address).removeprefix("http://"), "--insecure-registry",
        ]  # fmt: skip

    def apply_arguments(self, *more: str) -> list[str]:
        return ["apply", str(self.plan), *self.where, *self.sources, *more]

    def apply(self, *more: str) -> Answer:
        return provision(*self.apply_arguments("--yes", *more))

    def apply_without_yes(self) -> Answer:
        return provision(*self.apply_arguments())

    def verify(self, *more: str) -> Answer:
        return provision("verify", self.plan, *self.where, *more)

    def remove(self, *more: str) -> Answer:
        return provision("remove", *self.where, "--yes", *more)


def site(host: LabHost, mirror: ReleaseMirror, registry: ModelRegistry, folder: Path) -> Site:
    plan = folder / "plan.json"
    write_json(plan, small_plan())
    return Site(host, mirror, registry, plan)


def ours_running_here() -> list[str]:
    """Command lines of this machine that a run of Ansible may leave behind."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "ns" / "pid") == os.readlink("/proc/self/ns/pid"):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes()
                if b"ANSIBLE_HOME=" in environment:
                    found.append(words)
        except OSError:
            continue
    return found
