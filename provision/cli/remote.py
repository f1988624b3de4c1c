"""What `apply`, `verify` and `remove` share: hosts that can be worked on, and the options of the service."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provision.cli import where as options
from provision.errors import ApplyFailed, ProvisionError, Unreachable, UsageError

if TYPE_CHECKING:
    from provision.ansible import AnsibleHost
    from provision.deploy import DeployProgress, DeployReport
    from provision.domain.plan import Plan
    from provision.output.console import Progress, Screen
    from provision.probes.ssh import SshTarget

_CHECK_TIMEOUT_S = 20.0
_HOSTS_AT_ONCE = 16
# Prints what is missing; root needs no sudo.
_CHECK_SCRIPT = """
if [ "$(id -u)" = 0 ]; then echo root; else sudo -n true >/dev/null 2>&1 || echo no-sudo; fi
[ -x /usr/bin/python3 ] || echo no-python
"""

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="What `plan -o` wrote.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Mirror = Annotated[
    str | None,
    typer.Option("--mirror", metavar="URL", envvar="PROVISION_MIRROR", help="Where releases of Ollama lie."),
]
Registry = Annotated[
    str | None,
    typer.Option(
        "--registry", metavar="HOST[:PORT]", envvar="PROVISION_REGISTRY", help="Where models are pulled from."
    ),
]
InsecureRegistry = Annotated[
    bool,
    typer.Option("--insecure-registry", envvar="PROVISION_INSECURE_REGISTRY", help="That registry speaks plain HTTP."),
]
EngineVersion = Annotated[
    str | None,
    typer.Option(
        "--engine-version",
        metavar="V",
        envvar="PROVISION_ENGINE_VERSION",
        help="Ollama's version, else the pinned.",
    ),
]
AllowOld = Annotated[bool, typer.Option("--allow-old-engine", help="Accept a version with known holes.")]
Listen = Annotated[str | None, typer.Option("--listen", metavar="ADDR[:PORT]", help="Where Ollama listens.")]
Expose = Annotated[
    bool, typer.Option("--expose-without-auth", help="Accept that everybody in reach controls the engine.")
]
ModelsPath = Annotated[str | None, typer.Option("--models-path", metavar="PATH", help="Folder for models on the host.")]


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises InvalidFile."""
    from provision.domain.plan import PLAN_VERSION, Plan
    from provision.records import read_json

    hint = "provision plan -o plan.json"
    return read_json(path, Plan, what="plan", version_key="plan_version", version=PLAN_VERSION, hint=hint)


def given_options(
    *,
    mirror: str | None = None,
    registry: str | None = None,
    insecure_registry: bool = False,
    engine_version: str | None = None,
    allow_old: bool = False,
    listen: str | None = None,
    expose: bool = False,
    models_path: str | None = None,
) -> dict[str, Any]:
    """The options that were given, by their names in OllamaOptions. Raises UsageError."""
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise UsageError(f"--mirror: '{mirror}' is not a URL", hint="--mirror https://mirror.example/ollama")
    if registry is not None and ("/" in registry or not registry):
        raise UsageError(f"--registry: '{registry}' is not a host", hint="--registry registry.example:5000")
    if models_path is not None and (not models_path.startswith("/") or models_path.startswith("/home/")):
        raise UsageError(
            f"--models-path: the service cannot use '{models_path}'", hint="an absolute path outside /home: /srv/models"
        )
    options = {
        "mirror": mirror,
        "registry": registry,
        "insecure_registry": insecure_registry or None,
        "version": engine_version,
        "allow_old_version": allow_old or None,
        "listen": listen,
        "expose_without_auth": expose or None,
        "models_path": models_path.rstrip("/") if models_path else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def pinned_version() -> str:
    """The version of Ollama that the catalog knows and sizes for."""
    from provision.catalog import load_catalog

    return load_catalog().engine("ollama").version


def ready_hosts(where: options.Where, command: str) -> tuple[AnsibleHost, ...]:
    """The hosts named, each reached over SSH and found fit for Ansible; nothing is changed.

    Raises UsageError when none is named, and for the first one that cannot be worked on Unreachable or ApplyFailed:
    before anything is done, so that a typing error in one host leaves the others alone too.
    """
    from concurrent.futures import ThreadPoolExecutor

    if not where.hosts and not where.inventory:
        raise UsageError("which host?", hint=f"provision {command} --host USER@HOST, or -i INVENTORY", code="no-host")
    targets = options.targets(where)
    with ThreadPoolExecutor(_HOSTS_AT_ONCE) as pool:
        checked = list(pool.map(_checked, targets))
    errors = [one for one in checked if isinstance(one, ProvisionError)]
    if errors:
        first = errors[0]
        more = f" (and {len(errors) - 1} more of {len(targets)} hosts cannot be worked on)" if len(errors) > 1 else ""
        raise type(first)(f"{first.message}{more}; nothing was done", hint=first.hint, code=first.code)
    return tuple(one for one in checked if not isinstance(one, ProvisionError))


def _checked(target: SshTarget) -> AnsibleHost | ProvisionError:
    from provision.ansible import AnsibleHost
    from provision.probes.ssh import run_script

    if target.local:
        return AnsibleHost(target.name, {"ansible_connection": "local"})
    try:
        words = run_script(target, _CHECK_SCRIPT, "", _CHECK_TIMEOUT_S).split()
    except Unreachable as error:
        return error
    if "no-sudo" in words:
        return ApplyFailed(
            f"{target.name}: the user may not become root with sudo, or only with a password",
            hint="allow it in /etc/sudoers.d (USER ALL=(ALL) NOPASSWD: ALL), or use --host root@HOST",
            code="no-sudo",
        )
    if "no-python" in words:
        return ApplyFailed(
            f"{target.name}: there is no /usr/bin/python3, which Ansible needs",
            hint=f"ssh {target.name} sudo apt-get install -y python3",
            code="no-python",
        )
    variables: dict[str, object] = {"ansible_host": target.host, "ansible_become": "root" not in words}
    arguments = ["-F", str(target.config_file.resolve())] if target.config_file else []
    if target.user:
        variables["ansible_user"] = target.user
    if target.port:
        variables["ansible_port"] = target.port
    if target.key_file:
        variables["ansible_ssh_private_key_file"] = str(target.key_file.resolve())
        arguments += ["-o", "IdentitiesOnly=yes"]
    arguments += target.options
    if arguments:
        variables["ansible_ssh_common_args"] = shlex.join(arguments)
    return AnsibleHost(target.name, variables)


def ask(screen: Screen, question: str, lines: Sequence[str], *, yes: bool, again: str) -> None:
    """Show what will be done and ask, unless --yes. Raises UsageError where nobody can be asked or the answer is no."""
    for line in lines:
        screen.note(line)
    if yes:
        return
    if not screen.interactive:
        raise UsageError("there is no terminal to ask on", hint=again, code="not-confirmed")
    if not screen.confirm(question):
        raise UsageError("not confirmed; nothing was done", hint=again, code="not-confirmed")


def follow(progress: Progress, event: DeployProgress) -> None:
    """One event as a bar or a line."""
    if event.done_bytes is not None and event.total_bytes:
        progress.update(f"{event.host}: {event.step}", event.done_bytes, event.total_bytes)
    elif event.changed:
        progress.line(f"{event.host}: {event.step}: changed")


def show_report(screen: Screen, report: DeployReport, done: str) -> None:
    """A line for each host that did not fail; the failures are told as errors."""
    for host in report.hosts:
        if host.status == "changed":
            would = "would change" if report.check else done
            screen.print(f"{host.host}: {would} ({len(host.changes)} steps)")
            if report.check:
                for step in host.changes:
                    screen.print(f"  {step}")
        elif host.status == "unchanged":
            screen.print(f"{host.host}: nothing to change")
