"""`estimate --batch`: many cases from one CSV file.

Ten thousand rows name a few hundred machines, builds and workloads: each is made once, and a case that comes again is
not worked out again. Sizing is pure, so that what was found for a row holds for every row that says the same. Large
files are shared out over the cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from provision.cli import where
from provision.cli.workload import DEFAULT_CONTEXT, workload
from provision.domain.finding import Finding
from provision.errors import InvalidFile, ProvisionError, UsageError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from provision.catalog import Catalog
    from provision.domain.hardware import Machine
    from provision.domain.plan import Candidate, Workload

COLUMNS = ("id", "model", "quant", "gpu", "ram", "memory_platform", "context", "users", "kv_cache")

_ROWS_PER_PROCESS = 1000
_PROCESSES_MAX = 8

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Row = tuple[int, list[str]]
"""Line number and cells in the order of COLUMNS."""


def estimate_rows(path: Path, catalog: Catalog, engine: str) -> tuple[list[Candidate], list[Finding]]:
    """A case for every row of `path`, and an error with its line for every row that cannot be estimated.

    Raises InvalidFile for a file that is not such a CSV, and UsageError for an engine that is not known.
    """
    from dataclasses import replace

    from provision.cli.estimate import named_build, refuse
    from provision.cli.planning import with_default_context
    from provision.sizing.planner import assess
    from provision.sizing.speed import efficiency_lookup

    engine_spec = catalog.engine(engine)
    efficiency_of = efficiency_lookup(catalog.efficiency, catalog.intervals)

    @_once
    def asked(context: str, users: str, kv_cache: str) -> Workload:
        return workload(context or DEFAULT_CONTEXT, _whole(users), kv_cache or "f16")

    build_of = _once(lambda model, quant: named_build(catalog, model, quant or None))

    bare_machine = _once(
        lambda gpu, ram: where.one_machine(where.Where(gpus=(gpu,) if gpu else (), ram=ram or None), catalog)
    )

    @_once
    def machine_of(gpu: str, ram: str, platform: str) -> Machine:
        machine = bare_machine(gpu, ram)
        return where.with_platform(machine, platform, catalog) if platform else machine

    @_once
    def case(
        model: str, quant: str, gpu: str, ram: str, platform: str, context: str, users: str, kv_cache: str
    ) -> Candidate:
        wanted = asked(context, users, kv_cache)
        build = build_of(model, quant)
        refuse(*build, engine_spec, wanted)
        machine = machine_of(gpu, ram, platform)
        found = assess(machine, *build, engine_spec, wanted, efficiency_of)
        return with_default_context(machine, build, engine_spec, wanted, found)

    def answers(rows: Sequence[_Row]) -> list[Candidate | Finding]:
        found: list[Candidate | Finding] = []
        for line, (name, *given) in rows:
            try:
                found.append(replace(case(*given), id=name or str(line)))
            except ProvisionError as error:
                message = f"{path.name}:{line}: {error.message}"
                found.append(Finding(code=error.code, message=message, hint=error.hint))
        return found

    cases: list[Candidate] = []
    errors: list[Finding] = []
    rows = list(_rows(path))
    if not rows:
        raise InvalidFile(
            f"{path} has no rows below its first line", hint="model,quant,gpu,context and a line for each"
        )
    for answer in _shared_out(rows, answers):
        if isinstance(answer, Finding):
            errors.append(answer)
        else:
            cases.append(answer)
    return cases, errors


@contextmanager
def _without_collector() -> Iterator[None]:
    """Cases hold no cycles, and looking for some among ten thousand of them is a fifth of the time."""
    import gc

    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor are they looked through while they are printed
        if was:
            gc.enable()


def _shared_out(rows: Sequence[_Row], work: Callable[[Sequence[_Row]], list[_T]]) -> list[_T]:
    """`work` on all rows, in order, with a process for each core where there are enough rows to pay for it.

    What a process does not answer, whatever the reason, is worked out here, so that its error is raised here too.
    """
    parts = min(_cores(), _PROCESSES_MAX, len(rows) // _ROWS_PER_PROCESS)
    if parts < 2:
        return work(rows)
    from multiprocessing import get_context

    fork = get_context("fork")  # what has been loaded is there at once
    bounds = [len(rows) * part // parts for part in range(parts + 1)]
    shares = [rows[low:high] for low, high in pairwise(bounds)]
    helpers = []
    for share in shares[1:]:
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_send, args=(sender, work, share), daemon=True)
        process.start()
        sender.close()
        helpers.append((process, receiver, share))
    answers = work(shares[0])
    for process, receiver, share in helpers:
        try:
            answers += receiver.recv()
        except EOFError:
            answers += work(share)
        process.join()
    return answers


def _send(sender: Connection, work: Callable[[Sequence[_Row]], list[_T]], share: Sequence[_Row]) -> None:
    with sender, suppress(BaseException):  # nothing sent is an answer too
        sender.send(work(share))


def _cores() -> int:
    """That this process may use; 1 where a fork is not to be had or not safe."""
    import os
    import sys
    import threading

    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return len(os.sched_getaffinity(0))


def _once(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """`functools.cache` that keeps refusals too: the search for the name that was meant takes longest of all."""
    from functools import cache

    @cache
    def outcome(*arguments: _P.args, **named: _P.kwargs) -> tuple[_T | None, ProvisionError | None]:
        try:
            return function(*arguments, **named), None
        except ProvisionError as error:
            return None, error

    def answer(*arguments: _P.args, **named: _P.kwargs) -> _T:
        found, error = outcome(*arguments, **named)  # type: ignore[arg-type]  # all of them are text
        if error is not None:
            raise error.with_traceback(None)
        return found  # type: ignore[return-value]

    return answer


def _rows(path: Path) -> Iterator[_Row]:
    """All rows; a cell is empty where the file has no such column."""
    import csv

    hint = f"the first line names the columns: {','.join(COLUMNS)}"
    try:
        if path.exists() and not path.is_file():
            raise InvalidFile(f"{path} is not a file", hint=hint)
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = next((cells for cells in reader if cells), [])
            unknown = set(header) - set(COLUMNS)
            if "model" not in header or unknown:
                raise InvalidFile(
                    f"{path}: unknown or missing columns: {', '.join(sorted(unknown)) or 'model'}", hint=hint
                )
            places = [header.index(name) if name in header else -1 for name in COLUMNS]
            for cells in reader:
                if cells:
                    yield reader.line_num, [cells[i].strip() if 0 <= i < len(cells) else "" for i in places]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidFile(f"cannot read {path}: {reason}", hint=hint) from error


def _whole(text: str) -> int:
    try:
        return int(text or 1)
    except ValueError:
        raise UsageError(f"users '{text}' is not a whole number", hint="users,8") from None
