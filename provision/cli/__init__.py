"""The command line: finds the command, runs it, and is the only place that catches errors and exits.

A command is the function `command` in `provision/cli/<name>.py` (or an `app` where it has subcommands): it takes
typer-annotated options and returns a `Result`. The global flags (--json, --quiet, --verbose, --debug) are taken out of
the arguments before typer sees them, because even a usage error must be answered as JSON when JSON was asked for.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from provision.cli.commands import COMMANDS
from provision.errors import ExitCode, Interrupted, ProvisionError

if TYPE_CHECKING:
    from types import ModuleType

    import typer

    from provision.output.console import Screen
    from provision.output.documents import Result

GLOBAL_FLAGS = {"--json", "--quiet", "-q", "--verbose", "-v", "--debug"}
COMPLETION_VARIABLE = "_PROVISION_COMPLETE"
CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
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
    try:
        code = _answer(*_take_global_flags(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); there is nobody left to tell.
        _discard_output()
        return ExitCode.DONE
    except OSError as error:  # of our own output: a command's errors have become results
        _discard_output()
        sys.stderr.write(f"error: cannot write the output: {error.strerror}\n")
        return ExitCode.BUG


def _answer(flags: set[str], rest: list[str]) -> int:
    """Run the command and show its result; raises only what writing to stdout raises."""
    as_json = "--json" in flags
    asks_for_root = not rest or rest[0] in ("--help", "-h", "--version")
    if asks_for_root and not as_json:  # typer, rich and dataclasses are not needed for this
        sys.stdout.write(_version_line() if rest and rest[0] == "--version" else root_help())
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
    screen = Screen(as_json=as_json, verbosity=verbosity)
    if asks_for_root:
        version = rest and rest[0] == "--version"
        data = {"version": _version_line().split()[1]} if version else {"help": root_help()}
        return screen.show("provision", Result(data=data))
    name = rest[0]
    shown_name = name if name in COMMANDS else "provision"
    try:
        result = _run(name, rest[1:], screen)
    except (Exception, KeyboardInterrupt) as error:
        result = _failed(error, debug)
    try:
        return screen.show(shown_name, result)
    except OSError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        return screen.show(shown_name, _failed(error, debug))


def _failed(error: BaseException, debug: bool) -> Result:
    from provision.output.documents import Result

    if debug:
        import traceback

        traceback.print_exception(error)
    return Result.of_error(_as_provision_error(error))


def _version_line() -> str:
    from provision import __version__

    return f"provision {__version__}\n"


def _discard_output() -> None:
    from provision.output.console import discard

    discard(sys.stdout)


def entry_point() -> None:
    """The `provision` script."""
    import gc

    # A command's records live until it ends: looking for cycles among them every 700 objects is a tenth of its time.
    gc.set_threshold(100_000, 20, 20)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name is never a crash
    if COMPLETION_VARIABLE in os.environ:
        from provision.cli.completion import complete

        complete()
    sys.exit(main(sys.argv[1:]))


def _open_closed_streams() -> None:
    """Put /dev/null in the place of standard streams that the caller has closed (`<&-`, `>&-`).

    Else the next file or pipe that is opened becomes standard input or output, and `sys.stdout` is None.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def typer_app(module: ModuleType) -> typer.Typer:
    """The typer app of one command's module: its own `app` when it has subcommands, else its function `command`."""
    import typer

    if hasattr(module, "app"):
        return module.app  # type: ignore[no-any-return]
    app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=GLOBAL_OPTIONS_NOTE, context_settings=CONTEXT_SETTINGS)(module.command)
    return app


def _run(name: str, arguments: list[str], screen: Screen) -> Result:
    """What the command returned; the help text when that was asked for."""
    import importlib
    from contextlib import nullcontext, redirect_stdout
    from io import StringIO

    from provision.errors import UsageError
    from provision.output.documents import Result

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
        help_text = StringIO()  # typer prints the help by itself; it belongs into the envelope too
        with redirect_stdout(help_text) if {"-h", "--help"} & set(arguments) else nullcontext():
            outcome = app(arguments, prog_name=f"provision {name}", standalone_mode=False, obj=screen)
        if outcome == ExitCode.INTERRUPTED:  # typer's own answer to Ctrl-C
            raise KeyboardInterrupt
        if isinstance(outcome, Result):
            return outcome
        text = help_text.getvalue()
        return Result(data={"help": text}, show=lambda screen: screen.raw(text))
    except typer.Abort:
        raise KeyboardInterrupt from None
    except TyperException as error:
        raise UsageError(error.format_message().rstrip("."), hint=f"provision {name} --help") from None


def _take_global_flags(arguments: list[str]) -> tuple[set[str], list[str]]:
    """The global flags found before any `--`, and the arguments without them."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head = arguments[:end]
    return {a for a in head if a in GLOBAL_FLAGS}, [a for a in head if a not in GLOBAL_FLAGS] + arguments[end:]


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
