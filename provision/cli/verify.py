"""`provision verify`: is what runs on a host what was planned?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli import remote
from provision.cli import where as options
from provision.errors import ExitCode
from provision.output.documents import Result
from provision.units import format_bytes, format_tokens

if TYPE_CHECKING:
    from provision.deploy import HostState
    from provision.domain.finding import Finding
    from provision.output.console import Screen


def command(
    context: typer.Context,
    plan: remote.PlanFile,
    host: options.Hosts = None,
    inventory: options.Inventory = None,
    ssh_key: options.SshKey = None,
    ssh_config: options.SshConfig = None,
    allow_cpu: Annotated[bool, typer.Option("--allow-cpu", help="Models may run on the CPU.")] = False,
    engine_version: remote.EngineVersion = None,
    listen: remote.Listen = None,
    expose_without_auth: remote.Expose = False,
    models_path: remote.ModelsPath = None,
) -> Result:
    """Ask hosts what runs, load every planned model, and hold it against the plan. Exit code 7 when something differs.

    Version, address and folder of models are expected as apply was told, unless an option says otherwise.

    \b
    Examples:
      provision verify plan.json --host admin@gpu1
      provision verify plan.json -i inventory.ini --json
    """
    from provision.deploy import verify_plan

    screen: Screen = context.obj
    wanted = remote.read_plan(plan)
    given = remote.given_options(
        engine_version=engine_version, listen=listen, expose=expose_without_auth, models_path=models_path
    )
    where = options.Where(hosts=host or (), inventory=inventory, ssh_key=ssh_key, ssh_config=ssh_config)
    hosts = remote.ready_hosts(where, f"verify {plan}")
    screen.note(f"loading the planned models on {', '.join(one.name for one in hosts)}")
    states = verify_plan(wanted, hosts, remote.pinned_version(), given, allow_cpu=allow_cpu)
    drift = [state for state in states if state.findings]
    return Result(
        data={"hosts": states},
        warnings=tuple(_named(state, finding) for state in states for finding in state.remarks),
        errors=tuple(_named(state, finding) for state in states for finding in state.findings),
        exit_code=ExitCode.BELOW_THRESHOLD if drift else ExitCode.DONE,
        partial=bool(drift) and len(drift) < len(states),
        show=lambda screen: _show(screen, states),
    )


def _named(state: HostState, finding: Finding) -> Finding:
    named = finding.message.startswith(f"{state.host}: ")
    return finding if named else replace(finding, message=f"{state.host}: {finding.message}")


def _show(screen: Screen, states: tuple[HostState, ...]) -> None:
    table = screen.table("Host", "Ollama", "Model", "In memory", "On cards", "Context", "Verdict")
    for state in states:
        verdict = "as planned" if not state.findings else "differs"
        for model in state.models or (None,):
            table.add_row(
                state.host,
                state.version or "does not answer",
                model.name if model else "-",
                format_bytes(model.size_bytes if model else None),
                format_bytes(model.vram_bytes if model else None),
                format_tokens(model.context_tokens if model else None),
                verdict,
            )
    screen.print(table)
