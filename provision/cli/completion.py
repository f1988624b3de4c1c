"""`provision completion bash`: the script that a shell sources for completion."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provision.cli import COMPLETION_VARIABLE, GLOBAL_FLAGS, typer_app
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

    \b
    Example:
      provision completion bash > ~/.local/share/bash-completion/completions/provision
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    script = get_completion_script(prog_name="provision", complete_var=COMPLETION_VARIABLE, shell=shell.value)

    def show(screen: Screen) -> None:
        screen.raw(script + "\n")

    return Result(data={"shell": shell.value, "script": script}, show=show)


def whole_app() -> typer.Typer:
    """All commands in one app: only shell completion needs them together."""
    import importlib

    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"provision.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(typer_app(module), name=name, help=summary)
        else:
            app.command(name, help=summary)(module.command)
    return app


def complete() -> None:
    """Answer the shell's question, which it asks in the environment; exits when there is one."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()
    command = typer.main.get_command(whole_app())
    _add_global_flags(command)
    command(prog_name="provision")


def _add_global_flags(command: Any) -> None:
    """`provision.cli` takes the global flags before typer sees them; here typer must know them to complete them."""
    from typer.core import TyperOption

    for flag in sorted(GLOBAL_FLAGS):
        if flag.startswith("--"):
            command.params.append(TyperOption(param_decls=[flag], is_flag=True, help="For every command."))
    for inner in getattr(command, "commands", {}).values():
        _add_global_flags(inner)
