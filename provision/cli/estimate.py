"""`provision estimate`: one model on one device layout, itemised to the buffer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli import where
from provision.cli.batch import COLUMNS, estimate_rows
from provision.cli.local import Local, NoLocal, measured_on
from provision.cli.workload import (
    DEFAULT_CONTEXT,
    CacheOption,
    ContextOption,
    OutputOption,
    PromptOption,
    UsersOption,
    workload,
)
from provision.domain.finding import Finding
from provision.errors import ExitCode, NothingFits, UsageError
from provision.output.documents import Result
from provision.units import format_bytes

if TYPE_CHECKING:
    from provision.catalog import Catalog
    from provision.domain.llm import EngineSpec, ModelBuild, ModelSpec, Quantization
    from provision.domain.plan import Candidate, JointPlan, Workload
    from provision.output.console import Screen
    from provision.sizing.placing import Build

_LAID_OUT_ROWS = 200
"""More rows than this are printed as they come, without fitting them to the terminal."""


def command(
    model: Annotated[str | None, typer.Argument(help="Model of the catalog, or a local .gguf file.")] = None,
    quant: Annotated[str | None, typer.Option("--quant", help="Quantization. Default: the usual pull, Q4_K_M.")] = None,
    context: ContextOption = DEFAULT_CONTEXT,
    users: UsersOption = 1,
    prompt_tokens: PromptOption = None,
    output_tokens: OutputOption = None,
    kv_cache: CacheOption = "f16",
    engine: Annotated[str, typer.Option(help="Engine to size for.")] = "ollama",
    batch: Annotated[
        Path | None,
        typer.Option("--batch", help=f"Many cases: a CSV with the columns {', '.join(COLUMNS)}."),
    ] = None,
    draft: Annotated[
        str | None, typer.Option("--draft", metavar="MODEL", help="Estimate speculation with this small model.")
    ] = None,
    draft_tokens: Annotated[
        int, typer.Option("--draft-tokens", min=1, max=64, help="Tokens drafted in each round.")
    ] = 4,
    no_local: NoLocal = False,
    tier: where.TierId = None,
    gpu: where.Gpus = None,
    ram: where.Ram = None,
    disk: where.DiskSize = None,
    cpu: where.CpuName = None,
    memory_platform: where.Platform = None,
    machine: where.MachineFile = None,
    host: where.Hosts = None,
    inventory: where.Inventory = None,
    ssh_key: where.SshKey = None,
    ssh_config: where.SshConfig = None,
) -> Result:
    """One model on one device layout: memory itemised per device, speed with its range.

    \b
    Examples:
      provision estimate llama3.1:8b --quant F16 --gpu "RTX 4090" --ram 64GiB --context 4k
      provision estimate ./model.gguf --gpu "2x RTX 3090" --ram 64GiB
      provision estimate qwen2.5-coder:32b --draft qwen2.5-coder:7b --engine llamacpp --gpu "RTX A6000" --ram 64GiB
      provision estimate --batch rows.csv --json
    """
    from provision.catalog import load_catalog

    catalog = load_catalog()
    chosen = where.Where(
        hosts=host or (), inventory=inventory, ssh_key=ssh_key, ssh_config=ssh_config, tier=tier, gpus=gpu or (),
        ram=ram, disk=disk, cpu=cpu, memory_platform=memory_platform, machine_file=machine,
    )  # fmt: skip
    if batch is not None:
        if model or quant or draft or users != 1 or context != DEFAULT_CONTEXT or chosen != where.Where():
            raise UsageError(
                "--batch takes models, machines and workloads from the file alone", hint=f"--batch {batch}"
            )
        cases, errors = estimate_rows(batch, catalog, engine)
        return _result(tuple(cases), (), tuple(errors))
    if model is None:
        raise UsageError("no model given", hint="provision estimate llama3.1:8b")
    asked = workload(context, users, kv_cache, prompt_tokens, output_tokens)
    if draft is not None:
        return _with_draft(catalog, chosen, (model, draft), quant, engine, asked, draft_tokens, not no_local)
    case, local = _case(catalog, chosen, model, quant, engine, asked, not no_local)
    return _result((case,), case.findings, again=_typed(chosen), local=local)


def _case(
    catalog: Catalog, chosen: where.Where, model: str, quant: str | None, engine: str, asked: Workload, measured: bool
) -> tuple[Candidate, Local]:
    """With its limits, and what the engine would do if left to itself."""
    from dataclasses import replace

    from provision.cli.planning import completed
    from provision.sizing.planner import assess
    from provision.sizing.speed import efficiency_lookup

    build = named_build(catalog, model, quant)
    engine_spec = catalog.engine(engine)
    refuse(*build, engine_spec, asked)
    machine = where.one_machine(chosen, catalog)
    local = measured_on(machine, catalog, [engine_spec.id], wanted=measured)
    efficiency_of = efficiency_lookup(catalog.efficiency, catalog.intervals)
    case = assess(machine, *build, engine_spec, asked, efficiency_of, measured_here=local.measurements)
    case = replace(case, findings=(*case.findings, *local.findings))
    return completed(machine, build, engine_spec, asked, case), local


def named_build(catalog: Catalog, model: str, quant: str | None) -> Build:
    """A build of the catalog, by default in the quantization that people usually pull, or a local .gguf file."""
    from provision.cli.planning import builds, default_quantization

    if model.lower().endswith(".gguf"):
        from provision.gguf import read_model

        return read_model(Path(model))
    spec = catalog.model(model)
    return builds(catalog, [spec], [quant or default_quantization(catalog, spec)])[0]


def refuse(spec: ModelSpec, build: ModelBuild, quantization: Quantization, engine: EngineSpec, asked: Workload) -> None:
    """Raises NothingFits for what needs no machine to be refused."""
    from provision.domain.plan import RejectionReason
    from provision.sizing.remarks import refusal

    refused = refusal(spec, build, quantization, engine, asked)
    if refused is not None and refused.reason is not RejectionReason.NOT_PUBLISHED:  # sizing needs no tag
        code = refused.reason.value.replace("_", "-")
        raise NothingFits(f"{spec.id} {build.quantization}: {refused.message}", hint=refused.hint, code=code)


def _with_draft(
    catalog: Catalog,
    chosen: where.Where,
    models: tuple[str, str],
    quant: str | None,
    engine: str,
    asked: Workload,
    draft_tokens: int,
    measured: bool,
) -> Result:
    """A model and its draft side by side, the draft loaded first, so that the model has what is left."""
    from dataclasses import replace

    from provision.sizing.speculation import VOCABULARY_DIFFERENCE_MAX, speculate
    from provision.sizing.speed import efficiency_lookup
    from provision.sizing.together import together

    spec = catalog.engine(engine)
    if not spec.draft_models:
        raise UsageError(
            f"{spec.id} {spec.version} takes no draft model", hint="--engine llamacpp", code="engine-cannot-draft"
        )
    target, draft = named_build(catalog, models[0], quant), named_build(catalog, models[1], None)
    refuse(*target, spec, asked)
    refuse(*draft, spec, asked)
    if abs(target[0].vocabulary_size - draft[0].vocabulary_size) > VOCABULARY_DIFFERENCE_MAX:
        raise UsageError(
            f"{draft[0].id} cannot draft for {target[0].id}: {draft[0].vocabulary_size:,} tokens in the vocabulary "
            f"against {target[0].vocabulary_size:,}",
            hint=f"--draft with a small model of the family {target[0].family}",
            code="vocabulary-differs",
        )
    machine = where.one_machine(chosen, catalog)
    local = measured_on(machine, catalog, [spec.id], wanted=measured)
    efficiency_of = efficiency_lookup(catalog.efficiency, catalog.intervals)
    joint = together(machine, [draft, target], spec, asked, efficiency_of, measured_here=local.measurements)
    helper, case = joint.candidates
    case = replace(case, speculation=speculate(target, case, helper, draft_tokens))
    joint = replace(joint, candidates=(helper, case))
    result = _result((case,), local.findings, again=_typed(chosen))
    data = {"cases": (case,), "together": joint, "measured_here": local.runs}
    return replace(result, data=data, show=lambda screen: _show(screen, (case,), joint))


def _result(
    cases: tuple[Candidate, ...],
    warnings: tuple[Finding, ...],
    errors: tuple[Finding, ...] = (),
    *,
    again: str = "",
    local: Local | None = None,
) -> Result:
    missing = [case for case in cases if not case.fits]
    too_big = tuple(_too_big(case, again) for case in missing) if len(cases) == 1 else _some_too_big(missing, cases)
    code = ExitCode.INVALID_FILE if errors else ExitCode.NOTHING_FITS if too_big else ExitCode.DONE
    return Result(
        data={"cases": cases, "measured_here": local.runs if local else ()},
        warnings=warnings,
        errors=errors + too_big,
        exit_code=code,
        partial=bool(errors or too_big) and any(case.fits for case in cases),
        show=lambda screen: _show(screen, cases, local=local),
    )


def _some_too_big(missing: Sequence[Candidate], cases: Sequence[Candidate]) -> tuple[Finding, ...]:
    """Of many cases their number: each says for itself whether it fits."""
    if not missing:
        return ()
    first = missing[0]
    message = f"{len(missing):,} of {len(cases):,} cases do not fit, case {first.id} first"
    return (Finding(code="does-not-fit", message=message, hint=f"provision plan --model {first.model}"),)


def _too_big(case: Candidate, again: str) -> Finding:
    from provision.sizing.memory import shortfall_bytes

    missing = shortfall_bytes(case.memory)
    what = (
        f"does not fit: {format_bytes(missing)} are missing"
        if missing
        else "spills into host memory whose size is not known"
    )
    return Finding(
        code="does-not-fit" if missing else "host-memory-unknown",
        message=f"{case.model} {case.quantization} {what}",
        hint=f"provision plan --model {case.model}{again}" if missing else "--ram 64GiB",
    )


def _typed(chosen: where.Where) -> str:
    """The machine options as one would type them again, each with a space before it."""
    import shlex

    pairs: list[tuple[str, str | None]] = [("--gpu", gpu) for gpu in chosen.gpus]
    pairs += [("--host", host) for host in chosen.hosts]
    pairs += [("--tier", chosen.tier), ("--ram", chosen.ram), ("--machine", chosen.machine_file)]
    return "".join(f" {option} {shlex.quote(value)}" for option, value in pairs if value)


def _show(
    screen: Screen, cases: tuple[Candidate, ...], joint: JointPlan | None = None, local: Local | None = None
) -> None:
    from provision.output import views

    if len(cases) != 1:
        _show_many(screen, cases)
        return
    (case,) = cases
    screen.print(
        f"{case.model} {case.quantization} with {case.engine} {case.engine_version}: {views.placement_text(case)}"
    )
    views.show_memory(screen, case)
    views.show_kv_pool(screen, case)
    views.show_speed(screen, case)
    views.show_measured_here(screen, local.runs if local else ())
    if joint is not None:
        views.show_speculation(screen, case)
        views.show_together(screen, joint)
    else:
        screen.print(views.room_line(case))


def _show_many(screen: Screen, cases: tuple[Candidate, ...]) -> None:
    from provision.output import views

    columns = ("id", "model", "quant", "memory", "placement", "fits", "decode tok/s")
    rows = [
        (
            case.id,
            case.model,
            case.quantization,
            format_bytes(case.memory.total_bytes),
            views.placement_text(case),
            "yes" if case.fits else "no",
            views.rate(case.speed.decode_tokens_per_s if case.speed else None),
        )
        for case in cases
    ]
    if len(rows) > _LAID_OUT_ROWS:
        screen.print_rows(columns, rows, right=("memory",))
        return
    table = screen.table(*columns, right=("memory",))
    for row in rows:
        table.add_row(*row)
    screen.print(table)
