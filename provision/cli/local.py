"""What was measured on the machine that is sized: from the measurements file to what sizing takes, and its remark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from provision.domain.finding import Finding

if TYPE_CHECKING:
    from pathlib import Path

    from provision.catalog import Catalog
    from provision.domain.hardware import Machine
    from provision.domain.llm import EngineSpec
    from provision.domain.measurement import BenchResult, LocalMeasurement, StoredRun
    from provision.sizing.placing import Build

NoLocal = Annotated[
    bool,
    typer.Option(
        "--no-local",
        help="Leave out what was measured on this machine, so that the answer is the same on every computer.",
    ),
]


@dataclass(frozen=True, slots=True)
class Local:
    """What counts for one machine; nothing by default."""

    runs: tuple[StoredRun, ...] = ()
    measurements: tuple[LocalMeasurement, ...] = ()
    findings: tuple[Finding, ...] = ()


def measured_on(machine: Machine, catalog: Catalog, engines: list[str] | None = None, *, wanted: bool = True) -> Local:
    """Runs on `machine` under `engines` (ids; None: all). Nothing for a machine that nobody has looked at."""
    from provision.domain.hardware import Origin

    if not wanted or machine.origin is not Origin.DETECTED:
        return Local()
    from provision import measurements

    if not measurements.path().exists():
        return Local()
    from provision.errors import UsageError
    from provision.sizing.local import local_measurements
    from provision.sizing.speed import efficiency_lookup

    stored, findings = measurements.read()

    def engine_of(name: str) -> EngineSpec | None:
        try:
            return catalog.engine(name)
        except UsageError:
            return None

    chosen = [run for run in stored if engines is None or run.engine in engines]
    runs, figures = local_measurements(
        chosen,
        machine,
        lambda run: _build(catalog, run),
        engine_of,
        efficiency_lookup(catalog.efficiency, catalog.intervals),
    )
    if runs:
        findings += (_remark(runs, measurements.path()),)
    return Local(runs, figures, findings)


def _build(catalog: Catalog, run: StoredRun) -> Build | None:
    """The catalog's build of what was measured: by its tag or by name and quantization; None where it has none."""
    from provision.errors import UsageError

    try:
        spec = catalog.model(run.model)
        if run.quantization is None:
            tag = run.model.removesuffix(":latest")
            build = next(b for b in catalog.builds_of(spec.id) if b.ollama_tag and tag == b.ollama_tag)
        else:
            build = catalog.build(spec.id, run.quantization)
        return spec, build, catalog.quantization(build.quantization)
    except (UsageError, StopIteration):
        return None


def _remark(runs: tuple[StoredRun, ...], file: Path) -> Finding:
    last = max(run.measured_at for run in runs)
    builds = dict.fromkeys(f"{run.model} {run.quantization} with {run.engine}" for run in runs)
    named = ", ".join(list(builds)[:3]) + (" ..." if len(builds) > 3 else "")
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return Finding(
        code="measured-here",
        message=f"{count} on this machine outrank the fit ({named}; the last of {last[:10]}), kept in {file}",
        hint="--no-local",
    )


def remember(result: BenchResult, file: Path | None) -> str | None:
    """Keep what `result` says of its machine; what went wrong with it, or None."""
    from provision import measurements
    from provision.sizing.local import stored_runs

    try:
        measurements.append(stored_runs(result, None if file is None else str(file.resolve())))
    except OSError as error:
        return f"cannot write to {measurements.path()} ({error.strerror}), so sizing will not use this run"
    return None
