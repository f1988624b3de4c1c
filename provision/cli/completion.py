"""`provision completion bash`: the script that a shell sources for completion."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli import COMPLETION_VARIABLE, typer_app
from provision.cli.commands import COMMANDS
from provision.output.documents import Result

if TYPE_CHECKING:
    from provision.output.console import Screen


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def command(shell: Annotated[Shell, typer.Argument(help="The shell to complete in.")] = Shell.BASH) -> Result:
    """Print the completion script of a shell.

    Example: provision completion bash > ~/.local/share/bash-completion/completions/provision
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    script = get_completion_script(prog_name="provision", complete_var=COMPLETION_VARIABLE, shell=shell.value)

    def show(screen: Screen) -> None:
        screen.print(script)

    return Result(data={"shell": shell.value, "script": script}, show=show)


def whole_app() -> typer.Typer:
    """All commands in one app: only shell completion needs them together."""
    import importlib

    app = typer.Typer(rich_markup_mode=None)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"provision.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(typer_app(module), name=name, help=summary)
        else:
            app.command(name, help=summary)(module.command)
    return app
