"""`provision quickstart`: the whole loop on this machine, from what is in it to what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.output.documents import Result
from provision.units import format_tokens_per_s

if TYPE_CHECKING:
    from provision.cli.quickstart_steps import Loop
    from provision.output.console import Screen


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
    from provision.catalog import load_catalog
    from provision.cli.quickstart_steps import run_loop

    screen: Screen = ctx.obj
    with screen.progress() as progress:
        loop = run_loop(load_catalog(), gguf, embedded, progress)
    ceiling = loop.decode and loop.decode.ceiling
    data = {
        "machine": loop.machine,
        "plan": {"candidates": loop.plan.candidates[:5], "rejections": len(loop.plan.rejections)},
        "served": {"url": loop.served.url, "engine": loop.served.engine, "model": loop.served.title},
        "predicted": loop.predicted,
        "measured": loop.measured,
        "decode_tokens_per_s": {"ceiling": ceiling, "predicted": loop.decode, "measured": loop.rate},
        "findings": loop.findings,
    }
    return Result(data=data, show=lambda screen: _show(screen, loop))


def _show(screen: Screen, loop: Loop) -> None:
    from provision.output import views

    served, measured, decode = loop.served, loop.measured, loop.decode
    screen.print(f"This machine: {views.machine_line(loop.machine)}")
    if loop.plan.candidates:
        screen.print("What it runs best, of the catalog:")
        views.show_candidates(screen, loop.plan, views.best_of_each_model(loop.plan.candidates)[:5])
    table = screen.table("decode, 1 user", "tokens/s", "of ceiling", right=("tokens/s", "of ceiling"))
    ceiling = decode.ceiling if decode else None

    def share(value: float | None) -> str:
        return f"{value / ceiling:.0%}" if value is not None and ceiling else "unknown"

    table.add_row("ceiling", format_tokens_per_s(ceiling), share(ceiling))
    table.add_row("predicted", views.rate(decode), share(decode.expected if decode else None))
    requests = sum(len(level.requests) for level in measured.levels)
    table.add_row(f"measured, median of {requests}", format_tokens_per_s(loop.rate), share(loop.rate))
    screen.print(f"{served.title} on {served.engine}, {measured.prompt_tokens} tokens in, {measured.output_tokens} out")
    screen.print(table)
    for finding in loop.findings:
        screen.print(f"- {finding.message}" + (f" (try: {finding.hint})" if finding.hint else ""))
    screen.print("Next:")
    screen.print('  provision plan --gpu "RTX 4090" --ram 64GiB          what a machine would run before you buy it')
    screen.print("  provision plan --host USER@HOST -o plan.json         what your server runs")
    screen.print("  provision apply plan.json --host USER@HOST           install it there")
