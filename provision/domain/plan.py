"""What is asked of a machine, and what the answer is."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from provision.domain.finding import Finding
from provision.domain.hardware import Machine
from provision.domain.record import record

PLAN_VERSION = 1

Basis = Literal["measured_here", "measured_elsewhere", "computed"]
BoundBy = Literal["bandwidth", "compute", "interconnect", "host_memory"]
CapacityBasis = Literal["total", "available"]


@record
class Workload:
    context_tokens: int
    """Per user: prompt, answer and history together."""
    users: int = 1
    """Sequences held at the same time, each with its own context."""
    prompt_tokens: int = 512
    output_tokens: int = 256
    """Length of the answer that speeds are given for; decode is at the mean depth prompt + output / 2."""
    kv_cache_type: Literal["f16", "q8_0", "q4_0"] = "f16"

    @property
    def mean_depth_tokens(self) -> float:
        return self.prompt_tokens + self.output_tokens / 2


@record
class SpeedRange:
    """An 80 % interval with its origin. `ceiling` is the physical limit for the same workload."""

    expected: float
    low: float
    high: float
    ceiling: float | None
    basis: Basis
    bound_by: BoundBy


@record
class DeviceMemory:
    device: str
    """`gpu0`, `gpu1`, ... or `host`."""
    name: str
    capacity_bytes: int | None
    weights_bytes: int
    kv_cache_bytes: int
    state_bytes: int
    compute_bytes: int
    overhead_bytes: int
    total_bytes: int
    headroom_bytes: int | None
    """Capacity less total; negative when it does not fit, None when the capacity is unknown."""


@record
class MemoryEstimate:
    devices: tuple[DeviceMemory, ...]
    total_bytes: int


@record
class Placement:
    gpu_layers: int
    """Layers on accelerators, the output layer not counted."""
    layers: int
    tensor_parallel: int = 1
    split: tuple[int, ...] = ()
    """Layers per accelerator, in the machine's order; empty on a CPU."""
    expert_layers_on_host: int = 0
    """MoE layers whose routed experts stay in host memory."""
    output_on_host: bool = False


@record
class Speed:
    decode_tokens_per_s: SpeedRange
    """One user alone."""
    prefill_tokens_per_s: SpeedRange | None
    ttft_s: SpeedRange | None
    system_output_tokens_per_s: SpeedRange
    """All users together."""


class RejectionReason(StrEnum):
    DOES_NOT_FIT = "does_not_fit"
    CONTEXT_TOO_LONG = "context_too_long"
    ENGINE_CANNOT_LOAD = "engine_cannot_load"
    NOT_PUBLISHED = "not_published"
    """The engine pulls models by name and knows none for this build."""
    DISK_TOO_SMALL = "disk_too_small"
    TOO_SLOW = "too_slow"
    UNKNOWN_HARDWARE = "unknown_hardware"


@record
class Candidate:
    id: str
    """`model/quantization@engine`."""
    model: str
    quantization: str
    engine: str
    ollama_tag: str | None
    weights_bytes: int
    context_tokens: int
    users: int
    memory: MemoryEstimate
    fits: bool
    """Every device holds its share, host memory included."""
    placement: Placement
    speed: Speed | None
    """None where the hardware's bandwidth is not known."""
    findings: tuple[Finding, ...] = ()


@record
class Rejection:
    model: str
    quantization: str
    engine: str
    reason: RejectionReason
    shortfall_bytes: int | None = None
    message: str
    hint: str | None = None


@record
class Plan:
    plan_version: int = PLAN_VERSION
    created_at: datetime
    provision_version: str
    catalog_revision: str
    capacity_basis: CapacityBasis
    machine: Machine
    workload: Workload
    candidates: tuple[Candidate, ...]
    """Ranked, best first; `apply` carries out the first one of each model asked for."""
    rejections: tuple[Rejection, ...]
    selected: tuple[str, ...] = ()
    """Candidate ids that `apply` installs; chosen together so that they share one context and one engine."""
    findings: tuple[Finding, ...] = ()
