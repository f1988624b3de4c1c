"""NVIDIA cards: NVML on this machine, the text of nvidia-smi from anywhere. Both give the same records."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from provision.domain.finding import Finding
from provision.domain.hardware import Accelerator, MemoryKind, MemoryPool
from provision.units import MIB

_LIBRARY_NOT_FOUND, _NOT_SUPPORTED, _DRIVER_NOT_LOADED, _MISMATCH = 12, 3, 9, 18
"""NVML return codes (nvml.h)."""

_UNSUPPORTED = ("[N/A]", "N/A", "[Not Supported]", "Not Supported")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlDevice:
    """One device as NVML gave it; None for what NVML refused."""

    index: int
    name: str
    uuid: str | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_supported: bool = True
    """False when NVML says that the device has no memory of its own to report."""
    power_limit_mw: int | None = None
    ecc_enabled: bool | None = None
    mig_enabled: bool = False
    compute_capability: tuple[int, int] | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlReading:
    driver_version: str | None = None
    cuda_version: int | None = None
    """1000 x major + 10 x minor."""
    devices: tuple[NvmlDevice, ...] = ()
    lost_devices: int = 0
    """Counted by the driver, but no longer answering."""
    error: int | None = None
    """NVML's return code, when it answered nothing else."""


@dataclass(frozen=True, slots=True)
class NvidiaReport:
    accelerators: tuple[Accelerator, ...] = ()
    findings: tuple[Finding, ...] = ()


def read_nvml() -> NvmlReading | None:
    """Every device as NVML sees it, or None where there is no NVML (no driver, or a driver without its library)."""
    import pynvml

    nvml: Any = pynvml  # it has no types

    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None if error.value == _LIBRARY_NOT_FOUND else NvmlReading(error=error.value)

    def ask(function: Callable[..., Any], *arguments: object) -> Any:
        try:
            value = function(*arguments)
        except (nvml.NVMLError, UnicodeDecodeError):
            return None
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def device(index: int) -> NvmlDevice | None:
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            return None
        supported, memory = True, None
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            supported = error.value != _NOT_SUPPORTED
        ecc = ask(nvml.nvmlDeviceGetEccMode, handle)
        mig = ask(nvml.nvmlDeviceGetMigMode, handle)
        return NvmlDevice(
            index=index,
            name=ask(nvml.nvmlDeviceGetName, handle) or "",
            uuid=ask(nvml.nvmlDeviceGetUUID, handle),
            memory_total_bytes=memory.total if memory else None,
            memory_free_bytes=memory.free if memory else None,
            memory_supported=supported,
            power_limit_mw=ask(nvml.nvmlDeviceGetPowerManagementLimit, handle),
            ecc_enabled=bool(ecc[0]) if ecc else None,
            mig_enabled=bool(mig and mig[0]),
            compute_capability=ask(nvml.nvmlDeviceGetCudaComputeCapability, handle),
            pcie_generation=ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            pcie_width=ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
        )

    try:
        found = [device(index) for index in range(ask(nvml.nvmlDeviceGetCount) or 0)]
        return NvmlReading(
            driver_version=ask(nvml.nvmlSystemGetDriverVersion),
            cuda_version=ask(nvml.nvmlSystemGetCudaDriverVersion_v2),
            devices=tuple(one for one in found if one),
            lost_devices=found.count(None),
        )
    finally:
        ask(nvml.nvmlShutdown)


def parse_nvml(reading: NvmlReading, driver: str) -> NvidiaReport:
    """Records from an NVML reading; `driver` is /proc/driver/nvidia/version, which names the loaded kernel module."""
    if reading.error == _MISMATCH:
        return NvidiaReport(findings=(_mismatch(driver),))
    if reading.error is not None:
        return NvidiaReport(findings=(_not_running(),))
    if not reading.devices and not reading.lost_devices:
        return NvidiaReport(findings=(_no_devices(),))
    cuda = reading.cuda_version
    return NvidiaReport(
        tuple(
            Accelerator(
                index=one.index,
                vendor="nvidia",
                name=one.name,
                memory_kind=MemoryKind.DEDICATED if one.memory_supported else MemoryKind.UNIFIED,
                # nvidia-smi prints whole MiB; near and far must give the same figure.
                memory=MemoryPool(
                    total_bytes=_whole_mib(one.memory_total_bytes) or None,
                    available_bytes=_whole_mib(one.memory_free_bytes),
                )
                if one.memory_supported
                else None,
                power_limit_w=None if one.power_limit_mw is None else round(one.power_limit_mw / 1000, 2),
                uuid=one.uuid,
                driver_version=reading.driver_version,
                cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
                compute_capability="{}.{}".format(*one.compute_capability) if one.compute_capability else None,
                ecc_enabled=one.ecc_enabled,
                pcie=_pcie(one.pcie_generation, one.pcie_width),
            )
            for one in reading.devices
        ),
        (
            *((_lost(),) if reading.lost_devices else ()),
            *((_mig(),) if any(one.mig_enabled for one in reading.devices) else ()),
        ),
    )


def parse_nvidia_smi(cards: str, summary: str, driver: str) -> NvidiaReport:
    """Records from nvidia-smi.

    `cards` is the answer to the query in probe.sh, one card a line, `summary` what it prints without arguments (only
    there is the CUDA version), `driver` /proc/driver/nvidia/version. Empty text: there is no nvidia-smi.
    """
    cuda = re.search(r"CUDA (?:UMD )?Version\s*:\s*([0-9]+\.[0-9]+)", summary)
    accelerators, lost = [], False
    for line in cards.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) not in (10, 11) or not re.fullmatch(r"[0-9]{1,4}", cells[0]):
            lost = lost or "Unable to determine the device handle" in line or "GPU is lost" in line
            continue
        index, name, uuid, total, free, version, power, ecc, generation, width, *capability = cells
        unified = total in _UNSUPPORTED
        accelerators.append(
            Accelerator(
                index=int(index),
                vendor="nvidia",
                name=name,
                memory_kind=MemoryKind.UNIFIED if unified else MemoryKind.DEDICATED,
                memory=None if unified else MemoryPool(total_bytes=_mib(total) or None, available_bytes=_mib(free)),
                power_limit_w=_decimal(power),
                uuid=uuid if uuid.startswith(("GPU-", "MIG-")) else None,
                driver_version=version if re.fullmatch(r"[0-9][0-9.]*", version) else None,
                cuda_version=cuda[1] if cuda else None,
                compute_capability=next((c for c in capability if re.fullmatch(r"[0-9]+\.[0-9]+", c)), None),
                ecc_enabled={"Enabled": True, "Disabled": False}.get(ecc),
                pcie=_pcie(_whole(generation), _whole(width)),
            )
        )
    findings = []
    if lost:
        findings.append(_lost())
    # The column "MIG M." of the table; drivers without MIG have no such line.
    if re.search(r"\|\s+Enabled\*?\s*\|\s*$", summary, re.MULTILINE):
        findings.append(_mig())
    if "Driver/library version mismatch" in cards:
        findings.append(_mismatch(driver))
    elif "No devices were found" in cards:
        findings.append(_no_devices())
    elif not accelerators and not lost and cards.strip():
        findings.append(_not_running() if "has failed" in cards else _unreadable(cards.strip().splitlines()[0]))
    return NvidiaReport(tuple(accelerators), tuple(findings))


def without_driver(pci: str, report: NvidiaReport) -> tuple[Finding, ...]:
    """A finding when NVIDIA cards sit in the machine (`pci`: their addresses) and no tool of the driver is there."""
    addresses = pci.split()
    if not addresses or report.accelerators or report.findings:
        return ()
    return (
        Finding(
            code="nvidia-driver-missing",
            message=f"{len(addresses)} NVIDIA card(s) on the PCI bus ({', '.join(addresses)}), but no NVIDIA driver",
            hint="sudo ubuntu-drivers install && sudo reboot   # Debian: sudo apt install nvidia-driver",
        ),
    )


def _mismatch(driver: str) -> Finding:
    module = re.search(r"Kernel Module(?: for \S+)?\s+([0-9][0-9.]*)", driver)
    loaded = f" (the loaded module is {module[1]})" if module else ""
    return Finding(
        code="driver-library-mismatch",
        message=f"the NVIDIA driver was updated, but the old kernel module still runs{loaded}: no card can be used",
        hint="sudo reboot",
    )


def _not_running() -> Finding:
    return Finding(
        code="nvidia-driver-not-loaded",
        message="the NVIDIA tools are installed, but the driver does not answer: no card can be used",
        hint="sudo modprobe nvidia && nvidia-smi",
    )


def _no_devices() -> Finding:
    return Finding(
        code="nvidia-no-devices",
        message="the NVIDIA driver runs, but sees no card",
        hint="sudo dmesg | grep -i nvrm",
    )


def _unreadable(answer: str) -> Finding:
    return Finding(
        code="nvidia-unreadable",
        message=f"nvidia-smi does not answer what was asked: {answer[:120]}",
        hint="nvidia-smi --query-gpu=index,name,memory.total --format=csv",
    )


def _mig() -> Finding:
    return Finding(
        code="mig-enabled",
        message="a card is cut into MIG instances; it is counted whole, but one engine gets one instance",
        hint="nvidia-smi -L",
    )


def _lost() -> Finding:
    return Finding(
        code="nvidia-card-lost",
        message="an NVIDIA card has stopped answering; it is not counted",
        hint="sudo dmesg | grep -i xid",
    )


def _pcie(generation: int | None, width: int | None) -> str | None:
    return f"PCIe {generation}.0 x{width}" if generation and width else None


def _whole_mib(count: int | None) -> int | None:
    return None if count is None else count // MIB * MIB


def _mib(cell: str) -> int | None:
    count = _whole(cell)
    return None if count is None else count * MIB


def _whole(cell: str) -> int | None:
    return int(cell) if re.fullmatch(r"[0-9]{1,12}", cell) else None


def _decimal(cell: str) -> float | None:
    return float(cell) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", cell) else None
