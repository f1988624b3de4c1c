"""Hosts of an Ansible inventory, INI or YAML, as Ansible itself reads it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

from provision.errors import InvalidFile, Unreachable
from provision.probes.ssh import SshTarget

_TIMEOUT_S = 30


def inventory_targets(
    path: Path, *, key_file: Path | None = None, config_file: Path | None = None
) -> tuple[SshTarget, ...]:
    """Every host of the inventory, once, in its order. The inventory's own user, port, key and ssh arguments win.

    Raises InvalidFile when it is missing, malformed or empty.
    """
    hint = f"ansible-inventory -i {shlex.quote(str(path))} --list"
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

    tool = Path(sys.executable).parent / "ansible-inventory"
    settings = {
        # A file that no parser takes is otherwise only a warning and an empty inventory.
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "LC_ALL": "C.UTF-8",
    }
    try:
        done = subprocess.run(
            [tool, "--inventory", str(path), "--list"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            env={**os.environ, **settings},
            check=False,
        )
        document = json.loads(done.stdout) if done.returncode == 0 else None
    except FileNotFoundError:
        raise Unreachable(
            f"there is no {tool.name} beside {sys.executable}", hint="pip install ansible-core", code="no-ansible"
        ) from None
    except subprocess.TimeoutExpired:
        raise InvalidFile(f"reading inventory {path} took more than {_TIMEOUT_S} s", hint=hint) from None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise InvalidFile(f"inventory {path}: {_reason(done.stderr.decode(errors='replace'))}", hint=hint)
    return document


def _reason(stderr: str) -> str:
    """The most telling of Ansible's lines: what a parser found, rather than that none was left."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for words in ("error parsing", "Syntax error", "YAML parsing failed", "expected ", "Failed to parse", "ERROR"):
        for line in lines:
            if words.lower() in line.lower():
                return line.removeprefix("[WARNING]:").removeprefix("[ERROR]:").removeprefix("ERROR!").strip()[:300]
    return lines[-1][:300] if lines else "Ansible cannot read it"


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
