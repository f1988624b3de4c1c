"""The command line: finds the command, runs it, and is the only place that catches errors and exits.

A command is the function `command` in `provision/cli/<name>.py` (or an `app` where it has subcommands): it takes
typer-annotated options and returns a `Result`. The global flags (--json, --quiet, --verbose, --debug) are taken out of
the arguments before typer sees them, because even a usage error must be answered as JSON when JSON was asked for.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from provision.cli.commands import COMMANDS
from provision.errors import ExitCode, Interrupted, ProvisionError

if TYPE_CHECKING:
    from types import ModuleType

    import typer

    from provision.output.console import Screen

_GLOBAL_FLAGS = {"--json", "--quiet", "-q", "--verbose", "-v", "--debug"}
COMPLETION_VARIABLE = "_PROVISION_COMPLETE"
GLOBAL_OPTIONS_NOTE = "Every command also takes --json, --quiet, --verbose and --debug."


def root_help() -> str:
    """Text of `provision --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return f"""Usage: provision COMMAND [OPTIONS]

From "what should we buy?" to "it serves N tokens/s for us, and here is the proof".

Commands:
{rows}

Options for every command:
  --json      One JSON envelope on stdout, also on errors
  --quiet     No progress and no notes on stderr
  --verbose   More detail on stderr
  --debug     Show the traceback of an error
  --help      Help of the command, with examples
  --version   Version of provision

Start with:
  provision quickstart
  provision plan --gpu "RTX 4090" --ram 64GiB
"""


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Never raises, and leaves a traceback only with --debug."""
    flags, rest = _take_global_flags(arguments)
    if not rest or rest[0] in ("--help", "-h"):
        sys.stdout.write(root_help())
        return ExitCode.DONE
    if rest[0] == "--version":
        from provision import __version__

        sys.stdout.write(f"provision {__version__}\n")
        return ExitCode.DONE

    from provision.output.console import Screen, Verbosity
    from provision.output.documents import Result

    debug = "--debug" in flags
    verbosity = (
        Verbosity.QUIET
        if flags & {"--quiet", "-q"}
        else Verbosity.VERBOSE
        if flags & {"--verbose", "-v", "--debug"}
        else Verbosity.NORMAL
    )
    screen = Screen(as_json="--json" in flags, verbosity=verbosity)
    name = rest[0]
    try:
        outcome = _run(name, rest[1:], screen)
        if not isinstance(outcome, Result):
            return int(outcome) if isinstance(outcome, int) else ExitCode.DONE  # typer printed help itself
        return screen.show(name, outcome)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        return screen.show(name if name in COMMANDS else "provision", Result.of_error(_as_provision_error(error)))


def entry_point() -> None:
    """The `provision` script."""
    if COMPLETION_VARIABLE in os.environ:
        from provision.cli.completion import whole_app

        whole_app()(prog_name="provision")
    sys.exit(main(sys.argv[1:]))


def typer_app(module: ModuleType) -> typer.Typer:
    """The typer app of one command's module: its own `app` when it has subcommands, else its function `command`."""
    import typer

    if hasattr(module, "app"):
        return module.app  # type: ignore[no-any-return]
    app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=GLOBAL_OPTIONS_NOTE)(module.command)
    return app


def _run(name: str, arguments: list[str], screen: Screen) -> object:
    """What the command returned: a Result, or an exit code when typer answered by itself (--help)."""
    import importlib

    from provision.errors import UsageError

    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        raise UsageError(
            f"no command '{name}'",
            hint=f"provision {near[0]} --help" if near else "provision --help",
        )
    os.environ.setdefault("TYPER_USE_RICH", "0")  # importing rich for help texts doubles their time
    import typer
    from typer import TyperException

    try:
        app = typer_app(importlib.import_module(f"provision.cli.{name}"))
        outcome = app(arguments, prog_name=f"provision {name}", standalone_mode=False, obj=screen)
        if outcome == ExitCode.INTERRUPTED:  # typer's own answer to Ctrl-C
            raise KeyboardInterrupt
        return outcome
    except typer.Abort:
        raise KeyboardInterrupt from None
    except TyperException as error:
        raise UsageError(error.format_message().rstrip("."), hint=f"provision {name} --help") from None


def _take_global_flags(arguments: list[str]) -> tuple[set[str], list[str]]:
    """The global flags found before any `--`, and the arguments without them."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head = arguments[:end]
    return {a for a in head if a in _GLOBAL_FLAGS}, [a for a in head if a not in _GLOBAL_FLAGS] + arguments[end:]


def _as_provision_error(error: BaseException) -> ProvisionError:
    if isinstance(error, ProvisionError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted", code="interrupted")
    return ProvisionError(
        f"unexpected {type(error).__name__}: {error}",
        hint="this is a bug: run it again with --debug and report the traceback",
        code="bug",
    )
