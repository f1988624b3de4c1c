"""`provision estimate`: one model on one device layout, itemised to the buffer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli import where
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
from provision.errors import ExitCode, InvalidFile, ProvisionError, UsageError
from provision.output.documents import Result

if TYPE_CHECKING:
    from provision.catalog import Catalog
    from provision.domain.plan import Candidate, Workload
    from provision.output.console import Screen

_BATCH_COLUMNS = ("id", "model", "quant", "gpu", "ram", "memory_platform", "context", "users", "kv_cache")


def command(
    model: Annotated[str | None, typer.Argument(help="Model of the catalog, or a local .gguf file.")] = None,
    quant: Annotated[str | None, typer.Option("--quant", help="Quantization. Default: the usual pull, Q4_K_M.")] = None,
    context: ContextOption = DEFAULT_CONTEXT,
    users: UsersOption = 1,
    prompt_tokens: PromptOption = 512,
    output_tokens: OutputOption = 256,
    kv_cache: CacheOption = "f16",
    engine: Annotated[str, typer.Option(help="Engine to size for.")] = "ollama",
    batch: Annotated[
        Path | None,
        typer.Option("--batch", help=f"Many cases: a CSV with the columns {', '.join(_BATCH_COLUMNS)}."),
    ] = None,
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
      provision estimate --batch rows.csv --json
    """
    from provision.catalog import load_catalog

    catalog = load_catalog()
    if batch is not None:
        return _batch(batch, catalog, engine)
    if model is None:
        raise UsageError("no model given", hint="provision estimate llama3.1:8b")
    asked = workload(context, users, kv_cache, prompt_tokens, output_tokens)
    chosen = where.Where(
        hosts=host or (), inventory=inventory, ssh_key=ssh_key, ssh_config=ssh_config, tier=tier, gpus=gpu or (),
        ram=ram, disk=disk, cpu=cpu, memory_platform=memory_platform, machine_file=machine,
    )  # fmt: skip
    case = _case(catalog, chosen, model, quant, engine, asked)
    return _result((case,), case.findings)


def _case(
    catalog: Catalog, chosen: where.Where, model: str, quant: str | None, engine: str, asked: Workload
) -> Candidate:
    from provision.cli.planning import builds, default_quantization
    from provision.sizing.planner import assess
    from provision.sizing.speed import efficiency_lookup

    if model.endswith(".gguf"):
        from provision.gguf import read_model

        spec, build, quantization = read_model(Path(model))
    else:
        spec = catalog.model(model)
        spec, build, quantization = builds(catalog, [spec], [quant or default_quantization(catalog, spec)])[0]
    machine = where.one_machine(chosen, catalog)
    return assess(
        machine, spec, build, quantization, catalog.engine(engine), asked, efficiency_lookup(catalog.efficiency)
    )


def _batch(path: Path, catalog: Catalog, engine: str) -> Result:
    """Every row of a CSV; a row that cannot be estimated is an error with its line, and the others go on."""
    from dataclasses import replace

    cases, errors = [], []
    for line, row in _rows(path):
        try:
            asked = workload(row["context"] or DEFAULT_CONTEXT, _whole(row["users"]), row["kv_cache"] or "f16")
            chosen = where.Where(
                gpus=[row["gpu"]] if row["gpu"] else (),
                ram=row["ram"] or None,
                memory_platform=row["memory_platform"] or None,
            )
            case = _case(catalog, chosen, row["model"], row["quant"] or None, engine, asked)
            cases.append(replace(case, id=row["id"] or str(line)))
        except ProvisionError as error:
            errors.append(Finding(code=error.code, message=f"{path.name}:{line}: {error.message}", hint=error.hint))
    return _result(tuple(cases), (), tuple(errors))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    import csv

    hint = f"the first line names the columns: {','.join(_BATCH_COLUMNS)}"
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, restval="", restkey="extra")
            unknown = set(reader.fieldnames or ()) - set(_BATCH_COLUMNS)
            if "model" not in (reader.fieldnames or ()) or unknown:
                raise InvalidFile(
                    f"{path}: unknown or missing columns: {', '.join(sorted(unknown)) or 'model'}", hint=hint
                )
            for row in reader:
                yield reader.line_num, {name: (row.get(name) or "").strip() for name in _BATCH_COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidFile(f"cannot read {path}: {error}", hint=hint) from error


def _whole(text: str) -> int:
    try:
        return int(text or 1)
    except ValueError:
        raise UsageError(f"users '{text}' is not a whole number", hint="users,8") from None


def _result(cases: tuple[Candidate, ...], warnings: tuple[Finding, ...], errors: tuple[Finding, ...] = ()) -> Result:
    if errors:
        code = ExitCode.INVALID_FILE
    else:
        code = ExitCode.DONE if all(case.fits for case in cases) else ExitCode.NOTHING_FITS
    return Result(
        data={"cases": cases},
        warnings=warnings,
        errors=errors or tuple(_too_big(case) for case in cases if not case.fits),
        exit_code=code,
        partial=bool(cases and errors),
        show=lambda screen: _show(screen, cases),
    )


def _too_big(case: Candidate) -> Finding:
    from provision.sizing.memory import shortfall_bytes
    from provision.units import format_bytes

    missing = format_bytes(shortfall_bytes(case.memory))
    return Finding(
        code="does-not-fit",
        message=f"{case.model} {case.quantization} does not fit: {missing} are missing",
        hint=f"provision plan --model {case.model}  shows what would",
    )


def _show(screen: Screen, cases: tuple[Candidate, ...]) -> None:
    from provision.output import views

    if len(cases) > 1:
        views.show_candidates(screen, cases)
        return
    for case in cases:
        screen.print(f"{case.model} {case.quantization} with {case.engine}: {views.placement_text(case)}")
        views.show_memory(screen, case)
        views.show_speed(screen, case)
