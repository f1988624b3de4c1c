"""`provision apply`: carry a plan out on hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli import remote
from provision.cli import where as options
from provision.domain.finding import Finding
from provision.errors import ExitCode
from provision.output.documents import Result
from provision.units import format_bytes, format_tokens

if TYPE_CHECKING:
    from provision.ansible import AnsibleHost
    from provision.domain.plan import Plan
    from provision.engines.ollama_role import OllamaOptions
    from provision.output.console import Screen


def command(
    context: typer.Context,
    plan: remote.PlanFile,
    host: options.Hosts = None,
    inventory: options.Inventory = None,
    ssh_key: options.SshKey = None,
    ssh_config: options.SshConfig = None,
    yes: remote.Yes = False,
    check: Annotated[bool, typer.Option("--check", help="Only show what would change.")] = False,
    mirror: remote.Mirror = None,
    registry: remote.Registry = None,
    insecure_registry: remote.InsecureRegistry = False,
    engine_version: remote.EngineVersion = None,
    allow_old_engine: remote.AllowOld = False,
    listen: remote.Listen = None,
    expose_without_auth: remote.Expose = False,
    models_path: remote.ModelsPath = None,
) -> Result:
    """Install the engine on hosts, configure it as planned, and pull the models. Asks first; can be repeated.

    \b
    Examples:
      provision apply plan.json --host admin@gpu1 --check
      provision apply plan.json -i inventory.ini --yes
    """
    from provision.deploy import apply_plan
    from provision.engines.ollama_role import OllamaOptions, role_vars

    screen: Screen = context.obj
    wanted = remote.read_plan(plan)
    given = remote.given_options(
        mirror=mirror,
        registry=registry,
        insecure_registry=insecure_registry,
        engine_version=engine_version,
        allow_old=allow_old_engine,
        listen=listen,
        expose=expose_without_auth,
        models_path=models_path,
    )
    settings = OllamaOptions(**{"version": remote.pinned_version(), **given})
    role_vars(wanted, settings)  # Refuses what cannot be done before any host is asked.
    where = options.Where(hosts=host or (), inventory=inventory, ssh_key=ssh_key, ssh_config=ssh_config)
    hosts = remote.ready_hosts(where, f"apply {plan}")
    remote.ask(
        screen,
        f"Apply this to {len(hosts)} host{'s' if len(hosts) > 1 else ''}?",
        _intentions(wanted, settings, hosts),
        yes=yes or check,
        again=f"provision apply {plan} ... --yes",
    )
    with screen.progress() as progress:
        report = apply_plan(wanted, hosts, settings, lambda event: remote.follow(progress, event), check=check)
    failed = report.failed
    return Result(
        data=report,
        warnings=_warnings(settings),
        errors=tuple(one.failure for one in failed if one.failure),
        exit_code=ExitCode.APPLY_FAILED if failed else ExitCode.DONE,
        partial=bool(failed) and len(failed) < len(report.hosts),
        show=lambda screen: remote.show_report(screen, report, "applied"),
    )


def _intentions(plan: Plan, settings: OllamaOptions, hosts: tuple[AnsibleHost, ...]) -> list[str]:
    from provision.engines.ollama_role import model_name, planned_models

    chosen = planned_models(plan)
    models = ", ".join(f"{model_name(one)} ({format_bytes(one.weights_bytes)})" for one in chosen)
    context = format_tokens(max(one.context_tokens for one in chosen))
    return [
        f"On {', '.join(one.name for one in hosts)}:",
        f"  install Ollama {settings.version} from {settings.mirror} into /opt/ollama, checksum verified",
        f"  serve it on {settings.listen}, {max(one.users for one in chosen)} at a time, context {context}",
        f"  pull {models} into {settings.models_path}" + (f" from {settings.registry}" if settings.registry else ""),
    ]


def _warnings(settings: OllamaOptions) -> tuple[Finding, ...]:
    if not settings.expose_without_auth:
        return ()
    message = f"Ollama on {settings.listen} has no authentication: whoever reaches it can run, delete and upload models"
    return (Finding(code="exposed", message=message, hint="allow the port only for addresses that you trust"),)
