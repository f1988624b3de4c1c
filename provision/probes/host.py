"""What any host has: processor, memory, disk, operating system. Text in, records out; `read_host` asks psutil."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from provision.domain.finding import Finding
from provision.domain.hardware import Cpu, Disk, MemoryPool, OperatingSystem
from provision.units import KIB, format_bytes

_CGROUP_UNLIMITED_BYTES = 2**60
"""cgroup v1 writes "no limit" as a number near 2^63."""


@dataclass(frozen=True, slots=True)
class HostFigures:
    """What psutil says of this machine; the same figures that the text of /proc gives, also where there is no /proc."""

    memory: MemoryPool
    physical_cores: int | None
    logical_cores: int | None
    disk: Disk


def read_host(model_path: str) -> HostFigures:
    """Memory, core counts and the disk of `model_path` (of its nearest existing parent) on this machine."""
    import psutil

    memory = psutil.virtual_memory()
    disk = Disk(path=model_path, total_bytes=None, free_bytes=None)
    try:
        usage = psutil.disk_usage(str(_nearest_existing(model_path)))
        disk = replace(disk, total_bytes=usage.total, free_bytes=usage.free)
    except OSError:
        pass  # not ours to look at: unknown
    return HostFigures(
        memory=MemoryPool(total_bytes=memory.total, available_bytes=memory.available),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(),
        disk=disk,
    )


def parse_cpu(cpuinfo: str, lscpu: str, cores: str, online: str, architecture: str | None) -> Cpu | None:
    """The processor; None when nothing at all is known.

    `cores` is one line of sibling threads per thread (sysfs `core_cpus_list`), so its distinct lines are the physical
    cores; `online` is `getconf _NPROCESSORS_ONLN`. Where they are missing, /proc/cpuinfo and lscpu answer.
    """
    pairs = [_pair(line) for line in cpuinfo.splitlines()]
    listed = _fields(lscpu)
    # lscpu prints "-" for what it does not know.
    model = next((v for k, v in pairs if k == "model name" and v), None) or listed.get("model name", "").strip("- ")
    physical = len({line for line in cores.split() if line}) or _positive_product(
        listed.get("core(s) per socket"), listed.get("socket(s)")
    )
    logical = (
        _positive(online.strip()) or sum(key == "processor" for key, _ in pairs) or _positive(listed.get("cpu(s)"))
    )
    if not (model or physical or logical or architecture):
        return None
    return Cpu(
        model=model or None,
        architecture=architecture,
        physical_cores=physical or None,
        logical_cores=logical or None,
    )


def parse_memory(meminfo: str) -> MemoryPool:
    """Host memory from /proc/meminfo: MemTotal (what the kernel left of the modules) and MemAvailable."""
    fields = _fields(meminfo)
    return MemoryPool(total_bytes=_kib(fields.get("memtotal")), available_bytes=_kib(fields.get("memavailable")))


def limited_memory(pool: MemoryPool, cgroups: str) -> tuple[MemoryPool, tuple[Finding, ...]]:
    """`pool` cut to the tightest memory limit of the control groups that the probe runs in.

    `cgroups` has a line per level: limit, use, and the part of the use that is file cache and can be had back.
    """
    tightest: tuple[int, int] | None = None
    for line in cgroups.splitlines():
        limit, used, cache = (*(_positive(word) for word in line.split()), None, None, None)[:3]
        if limit is None or limit >= min(pool.total_bytes or _CGROUP_UNLIMITED_BYTES, _CGROUP_UNLIMITED_BYTES):
            continue
        left = max(0, limit - max(0, (used or 0) - (cache or 0)))
        if tightest is None or limit < tightest[0]:
            tightest = (limit, left)
    if tightest is None:
        return pool, ()
    limit, left = tightest
    available = left if pool.available_bytes is None else min(left, pool.available_bytes)
    finding = Finding(
        code="cgroup-memory-limit",
        message=f"a control group limits memory to {format_bytes(limit)} of {format_bytes(pool.total_bytes)}; "
        "the limit is what counts here",
        hint="run provision outside the container to plan for the whole host",
    )
    return replace(pool, total_bytes=limit, available_bytes=available), (finding,)


def parse_disk(text: str, path: str) -> Disk:
    """The disk under `path` from `df -kP`: size, and what an ordinary user may still write."""
    for line in text.splitlines():
        # The first column may contain blanks (network shares), so figures are found by their shape.
        match = re.search(r"\s(\d{1,18})\s+\d+\s+(-?\d{1,18})\s+(?:\d+%|-)\s+\S", line)
        if match:
            return Disk(path=path, total_bytes=int(match[1]) * KIB, free_bytes=max(0, int(match[2])) * KIB)
    return Disk(path=path, total_bytes=None, free_bytes=None)


def parse_operating_system(os_release: str, uname: Uname) -> OperatingSystem | None:
    """From os-release (values may be quoted as a shell would) and uname; None when both are empty."""
    fields = {}
    for line in os_release.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and not key.startswith("#"):
            fields[key] = _unquoted(value)
    if not fields and uname.kernel is None:
        return None
    return OperatingSystem(
        id=fields.get("ID") or (uname.system.lower() if uname.system and not fields else None),
        version=fields.get("VERSION_ID") or None,
        name=fields.get("PRETTY_NAME") or fields.get("NAME") or None,
        kernel=uname.kernel,
    )


@dataclass(frozen=True, slots=True)
class Uname:
    name: str | None = None
    system: str | None = None
    kernel: str | None = None
    architecture: str | None = None


def parse_uname(text: str) -> Uname:
    """From `uname -n`, `-s`, `-r` and `-m`, one a line."""
    lines = [line.strip() or None for line in text.splitlines()[:4]]
    return Uname(*lines)


def parse_systemd(text: str) -> tuple[Finding, ...]:
    """A finding where the host was not booted with systemd; no finding when nothing is known."""
    if text.strip() != "absent":
        return ()
    return (
        Finding(
            code="no-systemd",
            message="this host was not booted with systemd, so no service can be installed on it",
            hint="provision detect --host user@host",
        ),
    )


def _nearest_existing(path: str) -> Path:
    nearest = Path(path)
    while not nearest.exists() and nearest.parent != nearest:
        nearest = nearest.parent
    return nearest


def _unquoted(value: str) -> str:
    try:
        return "".join(shlex.split(value)[:1])
    except ValueError:
        return value.strip("\"'")


def _fields(text: str) -> dict[str, str]:
    """`Key: value` lines; the first of a key counts, keys in lower case."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, value = _pair(line)
        if value:
            fields.setdefault(key, value)
    return fields


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip().lower(), value.strip()


def _kib(value: str | None) -> int | None:
    count = _positive((value or "").removesuffix("kB").strip())
    return None if count is None else count * KIB


def _positive(word: str | None) -> int | None:
    """A whole number above zero, else None. ASCII digits only; absurd lengths are no numbers."""
    if word is None or not re.fullmatch(r"[0-9]{1,19}", word):
        return None
    return int(word) or None


def _positive_product(one: str | None, other: str | None) -> int | None:
    left, right = _positive(one), _positive(other)
    return left * right if left and right else None
