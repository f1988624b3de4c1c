"""What a machine is made of: what the driver reported, or what the catalog knows about a part.

`None` means "not known", never "none". All memory in bytes, bandwidth in bytes/s.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from enum import StrEnum
from typing import Annotated

from annotated_types import Ge, Gt

from provision.domain.finding import Finding
from provision.domain.record import record

DEFAULT_MODEL_PATH = "/usr/share/ollama/.ollama/models"
"""Where Ollama's service keeps its models; its nearest existing parent tells the free space."""
DEFAULT_TIMEOUT_S = 30.0
"""For looking at one host."""

# Of machines only: they come from files that anybody may have written. Checked where those are read.
_Count = Annotated[int, Gt(0)]
_Bytes = Annotated[int, Ge(0)]
_Rate = Annotated[float, Gt(0)]
_Watts = Annotated[float, Ge(0)]


class MemoryKind(StrEnum):
    DEDICATED = "dedicated"
    """Memory on the card."""
    UNIFIED = "unified"
    """The accelerator works in the host's memory; the pool belongs to the host."""


class Origin(StrEnum):
    DETECTED = "detected"
    CATALOG = "catalog"
    DECLARED = "declared"


@record
class MemoryShare:
    """Share of the host's memory that its accelerator may take by default, where the host has `from_bytes` or more.

    Apple's `iogpu.wired_limit_mb` when nobody has set it, which Metal reports as `recommendedMaxWorkingSetSize`.
    """

    from_bytes: int
    fraction: float


@record
class AcceleratorSpec:
    """A card (or the accelerator of a chip) as the catalog knows it."""

    id: str
    name: str
    vendor: str
    """nvidia, amd, intel or apple."""
    device_class: str
    """Key into efficiency.toml: parts that share memory kind and software stack, e.g. `nvidia-gddr`."""
    architecture: str | None = None
    """Generation as one lower-case word: pascal, turing, ampere, ada, blackwell, rdna3, cdna2, battlemage, apple-m4."""
    reported_names: tuple[str, ...] = ()
    """Exact names that drivers print for it; variants that differ in memory may share one."""
    aliases: tuple[str, ...] = ()
    """What people type, e.g. "RTX 4090"."""
    memory_kind: MemoryKind
    memory_bytes: int | None = None
    """Nominal size; for unified memory the largest pool sold."""
    reported_memory_bytes: int | None = None
    """What the driver reports as total, where known; it wins over the nominal size when planning."""
    memory_bandwidth_bytes_per_s: float | None = None
    memory_type: str | None = None
    """gddr6x, hbm3, lpddr5x, ..."""
    memory_bus_bits: int | None = None
    usable_memory: tuple[MemoryShare, ...] = ()
    """Of unified memory, by size of the pool; empty where nothing but the pool's size limits the accelerator."""
    fp16_flops_per_s: float | None = None
    """Dense FP16 matrix rate, with FP16 accumulation where that is faster; None for parts without fast FP16."""
    fp32_flops_per_s: float | None = None
    """FP32 rate of the shaders: what parts without matrix units compute with."""
    power_limit_w: float | None = None
    pcie: str | None = None
    """Width and generation, "PCIe 4.0 x16": the name of an `Interconnect`."""
    nvlink_bytes_per_s: float | None = None
    """Per direction, over all its links together; None where it has none or its rate is not known."""
    released: date | None = None
    provenance: dict[str, str]
    """Field name to source id, for every number."""
    notes: str | None = None

    def usable_memory_bytes(self, pool_bytes: int | None) -> int | None:
        """What the accelerator may take by default of a host's memory of that size; None where nothing limits it, or
        the size is not known."""
        if pool_bytes is None:
            return None
        shares = [share for share in self.usable_memory if share.from_bytes <= pool_bytes]
        if not shares:
            return None
        return int(pool_bytes * max(shares, key=lambda share: share.from_bytes).fraction)


@record
class Interconnect:
    """A link between devices, or between a device and its host."""

    id: str
    name: str
    """As `AcceleratorSpec.pcie` writes it, e.g. "PCIe 4.0 x16"."""
    bandwidth_bytes_per_s: float
    """Per direction, after line coding; packet headers take some per cent more."""
    provenance: dict[str, str]


@record
class MemoryPool:
    total_bytes: _Count | None
    available_bytes: _Bytes | None = None
    bandwidth_bytes_per_s: _Rate | None = None


@record
class Accelerator:
    index: int
    vendor: str
    name: str
    """As the driver reports it, or the catalog's name for a planned part."""
    catalog_id: str | None = None
    device_class: str | None = None
    architecture: str | None = None
    """Generation, as in AcceleratorSpec."""
    memory_kind: MemoryKind = MemoryKind.DEDICATED
    memory: MemoryPool | None = None
    """The card's own pool; None for unified memory and where the driver says nothing."""
    usable_bytes: _Bytes | None = None
    """Of unified memory, the most that the system lets it take; None: all of the host's."""
    fp16_flops_per_s: _Rate | None = None
    fp32_flops_per_s: _Rate | None = None
    power_limit_w: _Watts | None = None
    uuid: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    compute_capability: str | None = None
    ecc_enabled: bool | None = None
    pcie: str | None = None


@record
class Cpu:
    model: str | None
    architecture: str | None
    physical_cores: _Count | None = None
    logical_cores: _Count | None = None


@record
class Disk:
    path: str
    """The directory asked about (the model path), not the mount point."""
    total_bytes: _Bytes | None
    free_bytes: _Bytes | None


@record
class OperatingSystem:
    id: str | None
    """`debian`, `ubuntu`, ... as in os-release."""
    version: str | None
    name: str | None
    kernel: str | None


@record
class InstalledModel:
    name: str
    size_bytes: _Bytes | None
    digest: str | None = None
    quantization: str | None = None


@record
class RunningEngine:
    id: str
    """ollama, vllm or llamacpp."""
    url: str
    version: str | None
    models: tuple[InstalledModel, ...] = ()


@record
class Machine:
    name: str
    origin: Origin
    cpu: Cpu | None = None
    memory: MemoryPool
    accelerators: tuple[Accelerator, ...] = ()
    disks: tuple[Disk, ...] = ()
    operating_system: OperatingSystem | None = None
    engines: tuple[RunningEngine, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What was noticed while looking, each with a hint."""

    def pool_of(self, accelerator: Accelerator) -> MemoryPool:
        """The memory that `accelerator` computes from: its own, or the host's when it is unified."""
        if accelerator.memory_kind is MemoryKind.UNIFIED or accelerator.memory is None:
            return self.memory
        return accelerator.memory

    def usable_pool_of(self, accelerator: Accelerator) -> MemoryPool:
        """`pool_of`, cut to what the system lets an accelerator take of the host's memory (`usable_bytes`)."""
        pool, limit = self.pool_of(accelerator), accelerator.usable_bytes
        if limit is None or pool is not self.memory:
            return pool
        total, available = (
            None if size is None else min(size, limit) for size in (pool.total_bytes, pool.available_bytes)
        )
        return replace(pool, total_bytes=limit if total is None else total, available_bytes=available)
