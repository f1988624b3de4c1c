"""`provision remove`: take off a host what apply put there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli import remote
from provision.cli import where as options
from provision.errors import ExitCode
from provision.output.documents import Result

if TYPE_CHECKING:
    from provision.output.console import Screen


def command(
    context: typer.Context,
    host: options.Hosts = None,
    inventory: options.Inventory = None,
    ssh_key: options.SshKey = None,
    ssh_config: options.SshConfig = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Leave the pulled models there.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say whether there is something to remove.")] = False,
    yes: remote.Yes = False,
) -> Result:
    """Put hosts back as they were before the first apply: engine, service, user, settings and models go.

    \b
    Examples:
      provision remove --host admin@gpu1
      provision remove -i inventory.ini --keep-models --yes
    """
    from provision.deploy import remove_from

    screen: Screen = context.obj
    where = options.Where(hosts=host or (), inventory=inventory, ssh_key=ssh_key, ssh_config=ssh_config)
    hosts = remote.ready_hosts(where, "remove")
    names = ", ".join(one.name for one in hosts)
    what = "Ollama as provision installed it, its service, user and settings" + (
        "" if keep_models else ", and its models"
    )
    remote.ask(
        screen,
        "Remove this?",
        [f"On {names}: remove {what}"],
        yes=yes or check,
        again="provision remove ... --yes",
    )
    with screen.progress() as progress:
        report = remove_from(hosts, lambda event: remote.follow(progress, event), keep_models=keep_models, check=check)
    failed = report.failed
    return Result(
        data=report,
        errors=tuple(one.failure for one in failed if one.failure),
        exit_code=ExitCode.APPLY_FAILED if failed else ExitCode.DONE,
        partial=bool(failed) and len(failed) < len(report.hosts),
        show=lambda screen: remote.show_report(screen, report, "removed"),
    )
