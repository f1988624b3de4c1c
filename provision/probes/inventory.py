"""Hosts of an Ansible inventory, INI or YAML, as Ansible itself reads it."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

from provision.errors import InvalidFile, Unreachable
from provision.probes.ssh import SshTarget

_TIMEOUT_S = 30
_TOOL = Path(sys.executable).parent / "ansible-inventory"
"""Ours; it need not be on the user's PATH."""


def inventory_targets(
    path: Path, *, key_file: Path | None = None, config_file: Path | None = None
) -> tuple[SshTarget, ...]:
    """Every host of the inventory, once, in its order. The inventory's own user, port, key and ssh arguments win.

    Raises InvalidFile when it is missing, malformed or empty.
    """
    hint = shlex.join([str(_TOOL), "-i", str(path), "--list"])
    if not path.exists():
        raise InvalidFile(f"there is no inventory {path}", hint="provision detect --host user@host")
    document = _listed(path, hint)
    variables = document.get("_meta", {}).get("hostvars", {})
    names = dict.fromkeys(
        name
        for group, content in document.items()
        if group != "_meta" and isinstance(content, dict)
        for name in content.get("hosts", ())
    )
    if not names:
        raise InvalidFile(f"inventory {path} has no host", hint=hint)
    return tuple(_target(path, name, variables.get(name, {}), key_file, config_file) for name in names)


def _listed(path: Path, hint: str) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    import subprocess

    settings = {
        # A file that no parser takes is otherwise only a warning and an empty inventory.
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "LC_ALL": "C.UTF-8",
    }
    try:
        done = subprocess.run(
            [_TOOL, "--inventory", str(path), "--list"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            env={**os.environ, **settings},
            check=False,
        )
        document = json.loads(done.stdout) if done.returncode == 0 else None
    except FileNotFoundError:
        raise Unreachable(
            f"there is no {_TOOL.name} beside {sys.executable}", hint="pip install ansible-core", code="no-ansible"
        ) from None
    except subprocess.TimeoutExpired:
        raise InvalidFile(f"reading inventory {path} took more than {_TIMEOUT_S} s", hint=hint) from None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise InvalidFile(f"inventory {path}: {_reason(path, done.stderr.decode(errors='replace'))}", hint=hint)
    return document


def _reason(path: Path, stderr: str) -> str:
    """What the parser that the file is meant for found; Ansible tries several and tells what each of them thinks."""
    readers = ("script", "yaml", "ini") if path.suffix in (".yml", ".yaml", ".json") else ("script", "ini", "yaml")
    for reader in readers:
        told = re.search(rf"Failed to parse inventory with '{reader}' plugin: (.+)", stderr)
        if told:
            reason = re.sub(r"<class '[\w.]*?_?AnsibleTagged(\w+)'>", lambda kind: kind[1].lower(), told[1])
            return reason.removeprefix("Failed to parse inventory: ").strip()[:300]
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("[ERROR]:").strip()[:300] if lines else "Ansible cannot read it"


def _target(
    path: Path, name: str, variables: dict[str, object], key_file: Path | None, config_file: Path | None
) -> SshTarget:
    def variable(*keys: str) -> str | None:
        value = next((str(variables[key]) for key in keys if variables.get(key) not in (None, "")), None)
        if value and "{{" in value:
            raise InvalidFile(
                f"inventory {path}: {keys[0]} of {name} is a template, which only a playbook can fill",
                hint=f"write the value itself, or use --host {name}",
            )
        return value

    port = variable("ansible_port", "ansible_ssh_port")
    if port and not port.isdecimal():
        raise InvalidFile(f"inventory {path}: ansible_port of {name} is '{port}', not a number", hint="ansible_port=22")
    key = variable("ansible_ssh_private_key_file", "ansible_private_key_file")
    arguments = [variable("ansible_ssh_common_args"), variable("ansible_ssh_extra_args")]
    host = variable("ansible_host", "ansible_ssh_host") or name
    if host.startswith("-"):
        raise InvalidFile(f"inventory {path}: '{host}' is not a host", hint="ansible_host=192.0.2.1")
    return SshTarget(
        host=host,
        user=variable("ansible_user", "ansible_ssh_user"),
        port=int(port) if port else None,
        key_file=Path(key).expanduser() if key else key_file,
        config_file=config_file,
        options=tuple(word for text in arguments if text for word in shlex.split(text)),
        local=variable("ansible_connection") == "local",
    )
