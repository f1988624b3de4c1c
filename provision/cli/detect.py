"""`provision detect`: what is in this machine, or in other hosts over SSH."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from provision.cli import where as options
from provision.domain.finding import Finding
from provision.domain.hardware import DEFAULT_MODEL_PATH, DEFAULT_TIMEOUT_S, Accelerator, Machine, MemoryKind
from provision.errors import ExitCode
from provision.output.documents import Result
from provision.units import format_bandwidth, format_bytes

if TYPE_CHECKING:
    from provision.output.console import Screen


def command(
    host: options.Hosts = None,
    inventory: options.Inventory = None,
    ssh_key: options.SshKey = None,
    ssh_config: options.SshConfig = None,
    model_path: options.ModelPath = DEFAULT_MODEL_PATH,
    timeout: options.Timeout = DEFAULT_TIMEOUT_S,
) -> Result:
    """What is in this machine, or in other hosts over SSH. Reads only; needs no root and installs nothing.

    \b
    Examples:
      provision detect --host admin@gpu1 --host admin@gpu2
      provision detect --json > box.json && provision plan --machine box.json
    """
    from provision.catalog import load_catalog

    place = options.Where(
        hosts=host or (),
        inventory=inventory,
        ssh_key=ssh_key,
        ssh_config=ssh_config,
        model_path=model_path,
        timeout_s=timeout,
    )
    machines, failures = options.look(place, load_catalog())
    return Result(
        data={"machines": machines, "failures": failures},
        warnings=tuple(dict.fromkeys(finding for machine in machines for finding in machine.findings)),
        errors=tuple(Finding(code=one.code, message=one.message, hint=one.hint) for one in failures),
        exit_code=ExitCode.UNREACHABLE if failures else ExitCode.DONE,
        partial=bool(failures and machines),
        show=lambda screen: _show(screen, machines),
    )


def _show(screen: Screen, machines: Sequence[Machine]) -> None:
    for machine in machines:
        table = screen.table(machine.name, "")
        for label, text in _rows(machine):
            table.add_row(label, text)
        screen.print(table)


def _rows(machine: Machine) -> list[tuple[str, str]]:
    rows = []
    if system := machine.operating_system:
        rows.append(("System", _joined(system.name or system.id, system.kernel)))
    if cpu := machine.cpu:
        cores = f"{cpu.physical_cores} cores" if cpu.physical_cores else None
        threads = f"{cpu.logical_cores} threads" if cpu.logical_cores else None
        rows.append(("Processor", _joined(cpu.model, cpu.architecture, cores, threads)))
    memory = machine.memory
    available = None if memory.available_bytes is None else f"{format_bytes(memory.available_bytes)} available"
    bandwidth = format_bandwidth(memory.bandwidth_bytes_per_s) if memory.bandwidth_bytes_per_s else None
    rows.append(("Memory", _joined(format_bytes(memory.total_bytes), available, bandwidth)))
    rows += [(f"Accelerator {card.index}", _accelerator(card)) for card in machine.accelerators]
    if not machine.accelerators:
        rows.append(("Accelerators", "none found"))
    rows += [("Disk", f"{format_bytes(disk.free_bytes)} free at {disk.path}") for disk in machine.disks]
    for engine in machine.engines:
        rows.append(("Engine", _joined(f"{engine.id} {engine.version or ''}".strip(), engine.url)))
        rows += [("", _joined(model.name, format_bytes(model.size_bytes))) for model in engine.models]
    return rows


def _accelerator(card: Accelerator) -> str:
    if card.memory_kind is MemoryKind.UNIFIED or card.memory is None:
        memory: list[str | None] = ["unified with the host's memory"]
    else:
        pool = card.memory
        memory = [
            format_bytes(pool.total_bytes),
            None if pool.available_bytes is None else f"{format_bytes(pool.available_bytes)} free",
            format_bandwidth(pool.bandwidth_bytes_per_s) if pool.bandwidth_bytes_per_s else None,
        ]
    driver = f"driver {card.driver_version}" if card.driver_version else None
    cuda = f"CUDA {card.cuda_version}" if card.cuda_version else None
    return _joined(card.name, *memory, driver, cuda, card.pcie)


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part) or "unknown"
