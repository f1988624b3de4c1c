"""The terminal: results to stdout, progress and notes to stderr. The only user of rich; imported only when it prints.

Without a terminal there is no colour and no live display, only plain lines. `NO_COLOR` is honoured by rich.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TextIO

from provision.domain.finding import Finding

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from provision.output.documents import Result

_PLAIN_WIDTH = 120
"""Columns of tables where the width is not known: pipes and files."""


# Control characters but tab and newline, and marks that turn the direction of text: data must not steer the terminal.
_CONTROL = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def printable(text: str) -> str:
    """`text` with its control characters spelt out, so that a name cannot move the cursor or rewrite the screen."""
    return text.translate(_CONTROL)


def discard(stream: TextIO) -> None:
    """Send what is still to be written to `stream`, whose reader or disk has gone, to nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Verbosity(IntEnum):
    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


class Screen:
    """Where a command's words go. One per process."""

    def __init__(self, *, as_json: bool = False, verbosity: Verbosity = Verbosity.NORMAL) -> None:
        self.as_json = as_json
        self.verbosity = verbosity
        self._out: Console | None = None
        self._err: Console | None = None

    @property
    def out(self) -> Console:
        if self._out is None:
            self._out = _console(sys.stdout)
        return self._out

    @property
    def err(self) -> Console:
        if self._err is None:
            self._err = _console(sys.stderr)
        return self._err

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked."""
        return not self.as_json and sys.stdin.isatty() and sys.stderr.isatty()

    def print(self, *renderables: RenderableType, style: str | None = None) -> None:
        """To stdout. Text is printed as it is: it may hold data, so nothing in it is markup."""
        self.out.print(*(printable(r) if isinstance(r, str) else r for r in renderables), style=style, highlight=False)

    def raw(self, text: str) -> None:
        """To stdout for machines: neither wrapped nor changed."""
        sys.stdout.write(text)

    def note(self, text: str) -> None:
        """A plain line on stderr; not with --quiet."""
        if self.verbosity >= Verbosity.NORMAL:
            _say(f"{text}\n")

    def detail(self, text: str) -> None:
        """A line on stderr with --verbose only."""
        if self.verbosity >= Verbosity.VERBOSE:
            self.note(text)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Progress bars on a terminal, else a plain line at the start, every ten per cent and at the end of a task."""
        if self.verbosity == Verbosity.QUIET:
            yield Progress(self, live=False, silent=True)
        elif sys.stderr.isatty() and not self.as_json:
            progress = Progress(self, live=True)
            with progress:
                yield progress
        else:
            yield Progress(self, live=False)

    def confirm(self, question: str) -> bool:
        """Ask on stderr; anything but y or yes is no."""
        _say(f"{question} [y/N] ")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def table(self, *columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
        """An empty table in the house style; columns named in `right` are right-aligned.

        Cells are data: nothing in them is markup, and where the terminal is too narrow they fold, nothing is cut off.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        class DataTable(Table):
            def add_row(self, *cells: RenderableType | None, **settings: Any) -> None:
                super().add_row(*(Text(printable(c)) if isinstance(c, str) else c for c in cells), **settings)

        table = DataTable(
            title=None if title is None else Text(printable(title)),
            box=box.SIMPLE_HEAD,
            title_justify="left",
            pad_edge=False,
        )
        for column in columns:
            table.add_column(Text(printable(column)), justify="right" if column in right else "left", overflow="fold")
        return table

    def print_rows(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: tuple[str, ...] = ()) -> None:
        """Aligned columns, never wrapped, for thousands of rows: rich takes longer to lay them out than sizing them.

        Cells are data here too: nothing in them is markup or an escape sequence.
        """
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(columns)]
        pads = [str.rjust if name in right else str.ljust for name in columns]
        for row in (columns, ["-" * width for width in widths], *cells):
            line = "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True))
            self.raw(line.rstrip() + "\n")

    def fits(self, table: Table) -> bool:
        """Whether stdout is wide enough to print every row of `table` on one line."""
        unlimited = self.out.options.update(max_width=10_000)
        return self.out.measure(table, options=unlimited).maximum <= self.out.width

    def show(self, command: str, result: Result) -> int:
        """Print a result in the form asked for and return its exit code."""
        if self.as_json:
            from provision.output.documents import envelope

            sys.stdout.write(envelope(command, result))
            sys.stdout.flush()
            return int(result.exit_code)
        if result.show is not None:
            result.show(self)
            sys.stdout.flush()
        for warning in result.warnings:
            self._finding("warning", warning)
        for error in result.errors:
            self._finding("error", error)
        return int(result.exit_code)

    def _finding(self, kind: str, finding: Finding) -> None:
        if kind == "warning" and self.verbosity == Verbosity.QUIET:
            return
        _say(f"{kind}: {finding.message}\n")
        if finding.hint:
            _say(f"hint: {finding.hint}\n")


class Progress:
    """Named tasks with an amount done out of a total, in any unit; fed by name: callers keep no handles."""

    def __init__(self, screen: Screen, *, live: bool, silent: bool = False) -> None:
        self._screen = screen
        self._silent = silent
        self._rich = _live_progress(screen) if live else None
        self._ids: dict[str, object] = {}
        self._told: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> Progress:
        if self._rich:
            self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._rich:
            self._rich.stop()

    def update(self, task: str, done: float | None = None, total: float | None = None) -> None:
        """`done` of `total`; without them the task is only known to run."""
        if self._silent:
            return
        if self._rich:
            if task not in self._ids:
                self._ids[task] = self._rich.add_task(printable(task), total=total)
            self._rich.update(self._ids[task], completed=done, total=total)
            return
        tenth = int(10 * done / total) if done is not None and total else 0
        last_tenth, last_time = self._told.get(task, (-1, 0.0))
        now = time.monotonic()
        if tenth > last_tenth and (now - last_time > 1 or tenth == 10 or last_tenth < 0):
            self._told[task] = (tenth, now)
            self._screen.note(f"{task}: {tenth * 10} %" if total else task)

    def line(self, text: str) -> None:
        """A lasting line above the bars."""
        if self._silent:
            return
        if self._rich:
            self._rich.console.print(printable(text), highlight=False)
        else:
            self._screen.note(text)


def _say(text: str) -> None:
    """To stderr. When nobody can read it any more, the command goes on without."""
    try:
        sys.stderr.write(printable(text))
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    class DataConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1; `provision.cli` decides

    width = None if stream.isatty() else _PLAIN_WIDTH
    return DataConsole(file=stream, width=width, soft_wrap=False, markup=False, emoji=False)


def _live_progress(screen: Screen):  # type: ignore[no-untyped-def]
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=screen.err,
        transient=True,
    )
