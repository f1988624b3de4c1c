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
from provision.errors import ExitCode, InvalidFile, NothingFits, ProvisionError, UsageError
from provision.output.documents import Result
from provision.units import format_bytes

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
    prompt_tokens: PromptOption = None,
    output_tokens: OutputOption = None,
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
    chosen = where.Where(
        hosts=host or (), inventory=inventory, ssh_key=ssh_key, ssh_config=ssh_config, tier=tier, gpus=gpu or (),
        ram=ram, disk=disk, cpu=cpu, memory_platform=memory_platform, machine_file=machine,
    )  # fmt: skip
    if batch is not None:
        if model or quant or users != 1 or context != DEFAULT_CONTEXT or chosen != where.Where():
            raise UsageError(
                "--batch takes models, machines and workloads from the file alone", hint=f"--batch {batch}"
            )
        return _batch(batch, catalog, engine)
    if model is None:
        raise UsageError("no model given", hint="provision estimate llama3.1:8b")
    asked = workload(context, users, kv_cache, prompt_tokens, output_tokens)
    case = _case(catalog, chosen, model, quant, engine, asked)
    return _result((case,), case.findings, again=_typed(chosen))


def _case(
    catalog: Catalog, chosen: where.Where, model: str, quant: str | None, engine: str, asked: Workload
) -> Candidate:
    from provision.cli.planning import builds, default_quantization
    from provision.domain.plan import RejectionReason
    from provision.sizing.planner import assess, refusal
    from provision.sizing.speed import efficiency_lookup

    if model.lower().endswith(".gguf"):
        from provision.gguf import read_model

        spec, build, quantization = read_model(Path(model))
    else:
        spec = catalog.model(model)
        spec, build, quantization = builds(catalog, [spec], [quant or default_quantization(catalog, spec)])[0]
    engine_spec = catalog.engine(engine)
    refused = refusal(spec, build, quantization, engine_spec, asked)
    if refused is not None and refused.reason is not RejectionReason.NOT_PUBLISHED:  # sizing needs no tag
        code = refused.reason.value.replace("_", "-")
        raise NothingFits(f"{spec.id} {build.quantization}: {refused.message}", hint=refused.hint, code=code)
    machine = where.one_machine(chosen, catalog)
    return assess(machine, spec, build, quantization, engine_spec, asked, efficiency_lookup(catalog.efficiency, catalog.intervals))


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
        if path.exists() and not path.is_file():
            raise InvalidFile(f"{path} is not a file", hint=hint)
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="", restkey="extra")
            unknown = set(reader.fieldnames or ()) - set(_BATCH_COLUMNS)
            if "model" not in (reader.fieldnames or ()) or unknown:
                raise InvalidFile(
                    f"{path}: unknown or missing columns: {', '.join(sorted(unknown)) or 'model'}", hint=hint
                )
            for row in reader:
                yield reader.line_num, {name: (row.get(name) or "").strip() for name in _BATCH_COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidFile(f"cannot read {path}: {reason}", hint=hint) from error


def _whole(text: str) -> int:
    try:
        return int(text or 1)
    except ValueError:
        raise UsageError(f"users '{text}' is not a whole number", hint="users,8") from None


def _result(
    cases: tuple[Candidate, ...],
    warnings: tuple[Finding, ...],
    errors: tuple[Finding, ...] = (),
    *,
    again: str = "",
) -> Result:
    too_big = tuple(_too_big(case, again) for case in cases if not case.fits)
    code = ExitCode.INVALID_FILE if errors else ExitCode.NOTHING_FITS if too_big else ExitCode.DONE
    return Result(
        data={"cases": cases},
        warnings=warnings,
        errors=errors + too_big,
        exit_code=code,
        partial=bool(errors or too_big) and any(case.fits for case in cases),
        show=lambda screen: _show(screen, cases),
    )


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


def _show(screen: Screen, cases: tuple[Candidate, ...]) -> None:
    from provision.output import views

    if len(cases) != 1:
        table = screen.table("id", "model", "quant", "memory", "placement", "fits", "decode tok/s", right=("memory",))
        for case in cases:
            decode = views.rate(case.speed.decode_tokens_per_s if case.speed else None)
            memory = format_bytes(case.memory.total_bytes)
            fits = "yes" if case.fits else "no"
            where_to = views.placement_text(case)
            table.add_row(case.id, case.model, case.quantization, memory, where_to, fits, decode)
        screen.print(table)
        return
    (case,) = cases
    screen.print(f"{case.model} {case.quantization} with {case.engine}: {views.placement_text(case)}")
    views.show_memory(screen, case)
    views.show_speed(screen, case)
