"""`provision plan`: which models run on this hardware, how fast, and why the rest do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli import where
from provision.cli.local import NoLocal, measured_on
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
from provision.errors import ExitCode, UsageError
from provision.output.documents import Result
from provision.units import format_bytes, format_tokens

if TYPE_CHECKING:
    from provision.domain.plan import Plan, Rejection
    from provision.output.console import Screen


_MODELS_SHOWN = 20
"""Rows of a plan over the whole catalog; the rest is a question of --all or --json."""


def command(
    ctx: typer.Context,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Model to plan for; repeatable. Default: all.")
    ] = None,
    quant: Annotated[list[str] | None, typer.Option("--quant", help="Only these quantizations, e.g. Q4_K_M.")] = None,
    context: ContextOption = DEFAULT_CONTEXT,
    users: UsersOption = 1,
    prompt_tokens: PromptOption = None,
    output_tokens: OutputOption = None,
    kv_cache: CacheOption = "f16",
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", help="ollama (default), llamacpp, vllm, ollama@0.24.0, or all. Repeatable."),
    ] = None,
    prefer: Annotated[
        str, typer.Option("--prefer", help="What the order optimises: balanced, quality, speed or context.")
    ] = "balanced",
    together: Annotated[
        bool, typer.Option("--together", help="Choose builds of the models named that all stay loaded at once.")
    ] = False,
    available: Annotated[
        bool, typer.Option("--available", help="Hold memory against what is free now instead of the total.")
    ] = False,
    no_local: NoLocal = False,
    every: Annotated[bool, typer.Option("--all", help="Show every build that fits.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan to this file.")] = None,
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
    """Which models run on this hardware, how fast, and why the rest do not.

    Without options: this machine. Ranked: fully on the accelerators first, then fast enough to read along for every
    user, then the larger model, then the better quantization; --prefer changes that. Of several models named the plan
    says whether they stay loaded at once. Exit code 4 when something asked for does not fit.

    \b
    Examples:
      provision plan --gpu "2x RTX 4090" --ram 128GiB --users 8 --context 16k
      provision plan --host admin@gpu1 --model qwen2.5-coder:32b --quant Q5_K_M -o plan.json
      provision plan --gpu "RTX 4090" --ram 64GiB --model qwen2.5-coder:14b --model nomic-embed-text --together
      provision plan --gpu "RTX 4090" --ram 64GiB --engine all --prefer context
      provision plan --tier workstation-minimum
    """
    from provision.catalog import load_catalog
    from provision.cli.planning import claim_findings, engines_named, make_plan
    from provision.records import write_json

    if prefer not in ("balanced", "quality", "speed", "context"):
        raise UsageError(f"--prefer {prefer} is not known", hint="--prefer quality, speed, context or balanced")
    if together and len(model or ()) < 2:
        raise UsageError("--together needs two models at least", hint="--model llama3.1:8b --model nomic-embed-text")
    asked = workload(context, users, kv_cache, prompt_tokens, output_tokens)
    engines = engine or ["ollama"]
    catalog = load_catalog()
    chosen = where.Where(
        hosts=host or (), inventory=inventory, ssh_key=ssh_key, ssh_config=ssh_config, tier=tier, gpus=gpu or (),
        ram=ram, disk=disk, cpu=cpu, memory_platform=memory_platform, machine_file=machine,
    )  # fmt: skip
    found = where.one_machine(chosen, catalog)
    ids = [one.id for one in engines_named(catalog, engines)]
    plan = make_plan(
        found,
        catalog,
        asked,
        models=model or (),
        quantizations=quant or (),
        engines=engines,
        basis="available" if available else "total",
        prefer=prefer,  # type: ignore[arg-type]
        together=together,
        local=measured_on(found, catalog, ids, wanted=not no_local),
    )
    claims = claim_findings(catalog, tier, found, asked, engines_named(catalog, engines)[0]) if tier else ()
    if output is not None:
        write_json(output, plan)
    missing = _missing(plan, [catalog.model(name).id for name in model or ()])
    return Result(
        data=plan,
        warnings=_candidate_findings(plan) + plan.findings + claims,
        errors=missing,
        exit_code=ExitCode.NOTHING_FITS if missing else ExitCode.DONE,
        partial=bool(missing and plan.selected),
        show=lambda screen: _show(screen, plan, output, every or bool(model)),
    )


_OF_OTHERS = ("engine_cannot_load", "not_published")


def _missing(plan: Plan, models: list[str]) -> tuple[Finding, ...]:
    """One error for each model asked for that has no candidate, or one when nothing fits at all."""
    fitting = {candidate.model for candidate in plan.candidates}
    missing: list[str | None] = [m for m in models if m not in fitting]
    tokens = format_tokens(plan.workload.context_tokens)
    users = "1 user" if plan.workload.users == 1 else f"{plan.workload.users} users"
    errors = []
    for name in missing or ([] if plan.candidates else [None]):
        reasons = [r for r in plan.rejections if name in (None, r.model)]
        # A reason that something can be done about says more than a size that is missing by far, and any of the
        # engine's own builds more than those of other engines.
        nearest = min(
            reasons, key=lambda r: (r.reason.value in _OF_OTHERS, r.shortfall_bytes or 0, r.hint is None), default=None
        )
        errors.append(
            Finding(
                code=nearest.reason.value.replace("_", "-") if nearest else "nothing-fits",
                message=f"no build of {name or 'any model'} fits {plan.machine.name} at {tokens} tokens for {users}"
                + (f": {nearest.model} {nearest.quantization}: {nearest.message}" if nearest else ""),
                hint=nearest.hint if nearest and nearest.hint else _smaller(reasons),
            )
        )
    return tuple(errors)


def _smaller(reasons: list[Rejection]) -> str:
    """What to try when memory is what is missing."""
    smallest = min((r.shortfall_bytes for r in reasons if r.shortfall_bytes is not None), default=None)
    short = f" (the nearest is short by {format_bytes(smallest)})" if smallest else ""
    return f"--context 2k, a smaller --model or more memory{short}"


def _candidate_findings(plan: Plan) -> tuple[Finding, ...]:
    """Remarks on what would be installed; those of the other candidates stay with them in the data."""
    return tuple(f for c in plan.candidates if c.id in plan.selected for f in c.findings)


def _show(screen: Screen, plan: Plan, output: Path | None, every: bool) -> None:
    from provision.output import views

    screen.print(f"{plan.machine.name}: {views.machine_line(plan.machine)}")
    screen.print(views.workload_line(plan.workload))
    if plan.candidates:
        best_of_each = views.best_of_each_model(plan.candidates)
        shown = plan.candidates if every else best_of_each[:_MODELS_SHOWN]
        views.show_candidates(screen, plan, shown)
        views.show_measured_here(screen, plan.measured_here)
        screen.print(f"Ranked by {plan.ranked_by}.")
        if plan.quality:
            screen.print(views.quality_line(plan))
        if len(shown) < len(plan.candidates):
            models = f"{len(shown)} of {len(best_of_each)} models" if len(shown) < len(best_of_each) else "Every model"
            screen.print(f"{models}, each in its best build; {len(plan.candidates)} builds fit: --all shows them.")
        best = next(c for c in plan.candidates if c.id in plan.selected)
        screen.print(f"Memory of {best.model} {best.quantization} with {best.engine} {best.engine_version}:")
        views.show_memory(screen, best)
        screen.print(views.room_line(best))
    if plan.together is not None:
        views.show_together(screen, plan.together)
    views.show_rejections(screen, plan.rejections)
    if output is not None:
        screen.print(f"Plan written: provision apply {output} --host USER@HOST")
