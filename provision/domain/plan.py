"""What is asked of a machine, and what the answer is."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from provision.domain.finding import Finding
from provision.domain.hardware import Machine
from provision.domain.llm import QualityMetric
from provision.domain.measurement import StoredRun
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
    kv_cache_type: Literal["f16", "q8_0", "q4_0", "fp8"] = "f16"
    value_cache_type: str | None = None
    """ggml type of the values, where it differs from that of the keys."""

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
    """For an engine that takes a share of a device's memory (vLLM) the capacity is that share."""
    total_bytes: int
    # What follows is of engines with one pool of cache blocks for all requests; None for others, and where the
    # capacity is not known.
    starts: bool | None = None
    """Whether the pool holds one request of the whole context, without which the engine refuses to start."""
    kv_capacity_tokens: int | None = None
    """What the engine prints as cache size: requests of the whole context that the pool holds, times the context."""
    kv_blocks: int | None = None
    kv_block_tokens: int | None = None
    concurrent_sequences_max: int | None = None
    """Requests of the whole context that the pool holds at once; more wait, or are thrown out and computed again."""
    context_tokens_max: int | None = None
    """Largest context that the engine would start with, at most what the model was trained for."""


@record
class Placement:
    gpu_layers: int
    """Layers on accelerators, the output layer not counted."""
    layers: int
    tensor_parallel: int = 1
    split: tuple[int, ...] = ()
    """Layers per accelerator, in the machine's order; empty on a CPU. Under tensor parallelism every card computes its
    part of every layer, at the same time: its share is given as that many layers."""
    output_on_host: bool = False
    """Whether the output matrix stays in host memory with some of the layers."""
    expert_layers_on_host: int = 0
    """Of the mixture layers on accelerators, the first so many keep their routed experts in host memory
    (`--n-cpu-moe`)."""


@record
class Speed:
    decode_tokens_per_s: SpeedRange
    """One user alone."""
    prefill_tokens_per_s: SpeedRange | None
    ttft_s: SpeedRange | None
    system_output_tokens_per_s: SpeedRange
    """All users together."""


@record
class Speculation:
    """What a draft model may bring: an estimate from a range of acceptance rates, never a measurement."""

    draft_model: str
    draft_quantization: str
    draft_tokens: int
    """Drafted in each round."""
    acceptance_low: float
    acceptance_high: float
    speedup_low: float
    speedup_expected: float
    speedup_high: float
    decode_tokens_per_s: SpeedRange
    """One user alone. `low` and `high` go with the ends of the acceptance rate."""


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
    engine_version: str | None = None
    """Whose rules the placement follows."""
    slots: int | None = None
    """Requests that the engine serves at the same time, where these are fewer than `users`."""
    context_tokens_max: int | None = None
    """Longest context for these users with everything that is on accelerators now staying there (without any: in host
    memory); None: not looked for."""
    users_max: int | None = None
    """Most users with this context, likewise."""
    speculation: Speculation | None = None
    """With the draft model that was asked for."""


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
class SharedDevice:
    """One device and what each of several models takes of it."""

    device: str
    name: str
    capacity_bytes: int | None
    used_bytes: tuple[int, ...]
    """By model, in the order of `JointPlan.candidates`."""
    reserve_bytes: int
    """Left free by the engine."""
    total_bytes: int
    headroom_bytes: int | None


@record
class JointPlan:
    """Models that stay loaded at the same time, placed one after the other, each in what those before it left."""

    candidates: tuple[Candidate, ...]
    """In order of loading; capacities are what was still free."""
    devices: tuple[SharedDevice, ...]
    resident: bool
    """All of them at once, with every layer on accelerators; on a CPU, in host memory."""
    evicted: tuple[str, ...] = ()
    """Candidate ids that the engine unloads to make room for a later one."""


@record
class MeasuredLoss:
    """What a quantization cost the models on which somebody measured it; others may lose more or less."""

    quantization: str
    metric: QualityMetric
    low: float
    high: float
    models: tuple[str, ...]
    sources: tuple[str, ...]


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
    ranked_by: str = ""
    """What the order of the candidates optimises, in words."""
    together: JointPlan | None = None
    """The selected candidates side by side, where several models were asked for."""
    quality: tuple[MeasuredLoss, ...] = ()
    """Of the candidates' quantizations, where it was measured."""
    measured_here: tuple[StoredRun, ...] = ()
    """Runs on this machine that outranked the fit."""
    findings: tuple[Finding, ...] = ()
