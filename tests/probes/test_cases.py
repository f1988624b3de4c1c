"""Every case file beside this one: raw text of a tool in, the record that must come out. Adding a case needs no Python.

`expected` leaves out fields that are None.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from provision.domain.hardware import MemoryPool
from provision.probes import engines, host, machine_of, nvidia, ssh
from provision.records import to_plain

FOLDER = Path(__file__).parent

PARSERS = {
    "nvidia_smi": nvidia.parse_nvidia_smi,
    "cpu": host.parse_cpu,
    "memory": host.parse_memory,
    "disk": host.parse_disk,
    "cgroup": lambda pool, cgroups: host.limited_memory(MemoryPool(**pool), cgroups),
    "operating_system": lambda os_release, uname: host.parse_operating_system(os_release, host.parse_uname(uname)),
    "ollama": engines.parse_ollama,
    "openai": engines.parse_openai,
    "machine": lambda sections: machine_of(sections, "/usr/share/ollama/.ollama/models", name="host"),
    "ssh_error": lambda stderr, host: told(ssh.classify(ssh.parse_target(host), stderr)),
}
CASES = sorted(FOLDER.glob("*/*.json"))


def told(error: Any) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "hint": error.hint}


def plain(value: object) -> Any:
    """As JSON, without the fields that are not known."""

    def known(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: known(inner) for key, inner in node.items() if inner is not None}
        return [known(inner) for inner in node] if isinstance(node, list) else node

    return known(json.loads(json.dumps(value, default=to_plain)))


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_case(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    assert case["source"], "a case says where its text is from"
    assert plain(PARSERS[path.parent.name](**case["input"])) == case["expected"]
