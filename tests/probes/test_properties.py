"""No text, however broken, makes a parser raise: what cannot be read is not known."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.domain.hardware import Cpu, Disk, Machine, MemoryPool, OperatingSystem
from provision.errors import Unreachable
from provision.probes import engines, host, machine_of, nvidia, parse_sections, ssh
from provision.records import to_plain, validate

CASES = Path(__file__).parent
WORDS = sorted(
    {
        line
        for path in CASES.glob("*/*.json")
        for text in json.loads(path.read_text(encoding="utf-8"))["input"].values()
        if isinstance(text, str)
        for line in text.splitlines()
    }
)
BROKEN = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(WORDS), max_size=6).map("\n".join),
    # Real lines with something wrong in the middle.
    st.builds(
        lambda line, cut, junk: line[: cut % (len(line) + 1)] + junk + line[cut % (len(line) + 1) :],
        st.sampled_from(WORDS),
        st.integers(0, 500),
        st.text(max_size=8),
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["models", "data", "name", "id", "size", "details", "owned_by", "meta"]), inner
        )
    ),
    max_leaves=12,
).map(json.dumps)


@given(cards=BROKEN, summary=BROKEN, driver=BROKEN)
def test_nvidia_smi(cards: str, summary: str, driver: str) -> None:
    report = nvidia.parse_nvidia_smi(cards, summary, driver)
    for accelerator in report.accelerators:
        assert accelerator.memory is None or accelerator.memory.total_bytes != 0, "unknown is None, never 0"


@given(texts=st.tuples(BROKEN, BROKEN, BROKEN, BROKEN))
def test_cpu(texts: tuple[str, str, str, str]) -> None:
    found = host.parse_cpu(*texts, None)
    assert found is None or isinstance(found, Cpu)


@given(text=BROKEN, cgroups=BROKEN)
def test_memory(text: str, cgroups: str) -> None:
    pool, _ = host.limited_memory(host.parse_memory(text), cgroups)
    assert isinstance(pool, MemoryPool)
    assert pool.total_bytes is None or pool.total_bytes > 0, "unknown is None, never 0"


@given(text=BROKEN)
def test_disk(text: str) -> None:
    assert isinstance(host.parse_disk(text, "/srv"), Disk)


@given(text=BROKEN, uname=BROKEN)
def test_operating_system(text: str, uname: str) -> None:
    found = host.parse_operating_system(text, host.parse_uname(uname))
    assert found is None or isinstance(found, OperatingSystem)


@given(one=BROKEN | JSON, other=BROKEN | JSON)
def test_engines(one: str, other: str) -> None:
    engines.parse_ollama(one, other)
    engines.parse_openai(8000, one, other, one)


@given(stderr=BROKEN)
def test_ssh_messages(stderr: str) -> None:
    error = ssh.classify(ssh.parse_target("user@host"), stderr)
    assert "\n" not in error.message


@given(text=BROKEN)
def test_sections_are_read_or_refused(text: str) -> None:
    with pytest.raises(Unreachable):
        parse_sections(text, "host")


SECTIONS = ("uname", "os-release", "cpuinfo", "lscpu", "cores", "online", "meminfo", "cgroup-memory", "disk", "systemd",
            "nvidia-driver", "nvidia-smi", "nvidia-smi-summary", "nvidia-pci", "ollama-version", "ollama-tags",
            "openai-8000-models")  # fmt: skip


@given(sections=st.dictionaries(st.sampled_from(SECTIONS), BROKEN))
def test_whatever_the_tools_print_there_is_a_machine_that_can_be_saved_and_read_again(sections: dict[str, str]) -> None:
    machine = machine_of(sections, "/srv", name="host")
    assert validate(json.loads(json.dumps(machine, default=to_plain)), Machine, source="test", hint="") == machine
    assert {field.name for field in fields(machine)} >= {"memory", "accelerators", "findings"}
