"""The terminal: results to stdout, progress and notes to stderr. The only user of rich; imported only when it prints.

Without a terminal there is no colour and no live display, only plain lines. `NO_COLOR` is honoured by rich.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

from provision.domain.finding import Finding

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from provision.output.documents import Result

_PLAIN_WIDTH = 120
"""Columns of tables where the width is not known: pipes and files."""


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
        """To stdout."""
        self.out.print(*renderables, style=style, highlight=False)

    def note(self, text: str) -> None:
        """A plain line on stderr; not with --quiet."""
        if self.verbosity >= Verbosity.NORMAL:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

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
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def table(self, *columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
        """An empty table in the house style; columns named in `right` are right-aligned."""
        from rich import box
        from rich.table import Table

        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left")
        return table

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
        sys.stderr.write(f"{kind}: {finding.message}\n")
        if finding.hint:
            sys.stderr.write(f"hint: {finding.hint}\n")


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
                self._ids[task] = self._rich.add_task(task, total=total)
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
            self._rich.console.print(text, highlight=False, markup=False)
        else:
            self._screen.note(text)


def _console(stream: object) -> Console:
    from rich.console import Console

    is_terminal = stream.isatty()  # type: ignore[attr-defined]
    return Console(file=stream, width=None if is_terminal else _PLAIN_WIDTH, soft_wrap=False)  # type: ignore[arg-type]


def _live_progress(screen: Screen):  # type: ignore[no-untyped-def]
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=screen.err,
        transient=True,
    )
