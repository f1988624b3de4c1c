"""How fast: the physical limit, and what engines have been measured to reach of it.

Decode is bound by memory: one token streams the weights and the cache once. With several resources (cards in layer
split, host memory under partial offload) the times add up, because llama.cpp runs the layers one after the other.

    ceiling   1 / sum(bytes_i / bandwidth_i)
    expected  1 / (sum(slowdown_i x bytes_i / bandwidth_i) + overhead)

`slowdown` and `overhead` come from the catalog's fit on published measurements (catalog/efficiency.toml), by class of
device and family of quantization; so do the ratios of the 80 % interval. Bytes are the whole published weight file,
the input embedding table included, exactly as in the fit: for models that do not tie it, a strict limit would be
higher by that table's share (6 % for Llama 3.1 8B).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt

from provision.domain.hardware import Machine
from provision.domain.llm import Efficiency, ModelBuild, ModelSpec, ModelTask
from provision.domain.plan import BoundBy, MemoryEstimate, Placement, Speed, SpeedRange, Workload
from provision.sizing.memory import kv_bytes_per_token_at

EfficiencyOf = Callable[[str, str, str], Efficiency | None]
"""(device class, engine, quantization family) to the fitted record, or None where nothing was measured."""

HOST_CLASS = "cpu"

_BATCHING_LOW, _BATCHING_HIGH = 0.5, 1.1
"""Width of the estimate for many users, relative to the roofline of the batch: public data on it is thin."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What one decode step reads through one memory bus."""

    weights_bytes: float
    kv_bytes: float
    bandwidth_bytes_per_s: float
    efficiency: Efficiency | None
    is_host: bool

    @property
    def limit_s(self) -> float:
        return (self.weights_bytes + self.kv_bytes) / self.bandwidth_bytes_per_s


def efficiency_family(model: ModelSpec, quantization: str) -> str:
    """Families that the fit tells apart: unquantized kernels reach more of the bandwidth; routing to experts takes time
    that does not shrink with the bytes."""
    if model.active_parameters is not None:
        return "moe"
    return "f16" if quantization.upper() in ("F16", "BF16", "FP16") else "quantized"


def active_ratio(model: ModelSpec, users: int = 1) -> float:
    """Share of the weights that one decode step of `users` reads: all of a dense model; of a mixture of experts what
    one token activates, and for several users what independent tokens activate together."""
    if model.active_parameters is None or model.parameters is None:
        return 1.0
    return 1.0 - (1.0 - model.active_parameters / model.parameters) ** users


def efficiency_lookup(records: Iterable[Efficiency]) -> EfficiencyOf:
    """Look-up over the catalog's records; `any` stands for every engine, or dense family, without its own record.

    A mixture of experts is never predicted from a dense fit: that has been wrong by several times.
    """
    table = {(r.device_class, r.engine, r.quantization_family): r for r in records}

    def find(device_class: str, engine: str, family: str) -> Efficiency | None:
        families = (family,) if family == "moe" else (family, "any")
        for key in ((name, kind) for name in (engine, "any") for kind in families):
            found = table.get((device_class, *key))
            if found is not None:
                return found
        return None

    return find


def speed(
    machine: Machine,
    model: ModelSpec,
    build: ModelBuild,
    engine: str,
    placement: Placement,
    memory: MemoryEstimate,
    workload: Workload,
    efficiency_of: EfficiencyOf,
) -> Speed | None:
    """Decode, prefill, time to first token and output of all users; None where a bandwidth or the efficiency is
    unknown.

    Embedding models have no decode and get None.
    """
    if model.task is ModelTask.EMBEDDING:
        return None
    streams = _streams(machine, model, build, engine, placement, workload, efficiency_of)
    if streams is None or any(s.efficiency is None for s in streams):
        return None
    decode = _decode(streams)
    prefill = _prefill(machine, model, build, engine, placement, efficiency_of)
    ttft = _ttft(prefill, decode, workload)
    return Speed(
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        ttft_s=ttft,
        system_output_tokens_per_s=_system(streams, decode, prefill, model, workload),
    )


def decode_ceiling_tokens_per_s(bytes_per_token: float, bandwidth_bytes_per_s: float) -> float:
    """Upper limit of single-stream decode on one memory bus."""
    return bandwidth_bytes_per_s / bytes_per_token


def _streams(
    machine: Machine,
    model: ModelSpec,
    build: ModelBuild,
    engine: str,
    placement: Placement,
    workload: Workload,
    efficiency_of: EfficiencyOf,
) -> list[Stream] | None:
    """Bytes per token by memory bus, or None where a bandwidth in use is unknown."""
    family = efficiency_family(model, build.quantization)
    weights = build.weights_bytes * active_ratio(model)
    kv = kv_bytes_per_token_at(model, workload, workload.mean_depth_tokens)
    streams = []
    for index, count in enumerate(placement.split):
        if count == 0:
            continue
        accelerator = machine.accelerators[index]
        bandwidth = machine.pool_of(accelerator).bandwidth_bytes_per_s
        if bandwidth is None:
            return None
        share = count / placement.layers
        efficiency = efficiency_of(accelerator.device_class, engine, family) if accelerator.device_class else None
        streams.append(Stream(weights * share, kv * share, bandwidth, efficiency, is_host=False))
    host_layers = placement.layers - placement.gpu_layers
    if host_layers:
        bandwidth = machine.memory.bandwidth_bytes_per_s
        if bandwidth is None:
            return None
        share = host_layers / placement.layers
        streams.append(
            Stream(weights * share, kv * share, bandwidth, efficiency_of(HOST_CLASS, engine, family), is_host=True)
        )
    return streams


def _decode(streams: list[Stream]) -> SpeedRange:
    limit_s = sum(s.limit_s for s in streams)
    times = [s.efficiency.slowdown * s.limit_s for s in streams if s.efficiency]
    overhead_s = max(s.efficiency.overhead_s for s in streams if s.efficiency)
    expected_s = sum(times) + overhead_s
    ceiling = 1 / limit_s
    expected = min(1 / expected_s, ceiling)
    # Each resource's own uncertainty, weighted by the time it takes.
    total = sum(times)
    low_ratio = 1 / sum(t / total / s.efficiency.low_ratio for t, s in zip(times, streams, strict=True) if s.efficiency)
    high_ratio = 1 / sum(
        t / total / s.efficiency.high_ratio for t, s in zip(times, streams, strict=True) if s.efficiency
    )
    slowest = max(zip(times, streams, strict=True), key=lambda pair: pair[0])[1]
    bound: BoundBy = "host_memory" if slowest.is_host else "bandwidth"
    return _range(expected, expected * low_ratio, min(expected * high_ratio, ceiling), ceiling, bound)


def _prefill(
    machine: Machine,
    model: ModelSpec,
    build: ModelBuild,
    engine: str,
    placement: Placement,
    efficiency_of: EfficiencyOf,
) -> SpeedRange | None:
    """Prompt tokens per second when everything is on accelerators: 2 x active parameters operations per token.

    In layer split one card works at a time. None under partial offload, on CPUs and where the matrix rate is unknown.
    """
    parameters = model.active_parameters or model.parameters
    if placement.gpu_layers < placement.layers or parameters is None:
        return None
    seconds_per_token, limit_s, low, high = 0.0, 0.0, 1.0, 1.0
    for index, count in enumerate(placement.split):
        if count == 0:
            continue
        accelerator = machine.accelerators[index]
        family = efficiency_family(model, build.quantization)
        efficiency = efficiency_of(accelerator.device_class, engine, family) if accelerator.device_class else None
        if accelerator.fp16_flops_per_s is None or efficiency is None or efficiency.prefill_ratio is None:
            return None
        share_s = 2 * parameters * count / placement.layers / accelerator.fp16_flops_per_s
        limit_s += share_s
        seconds_per_token += share_s / efficiency.prefill_ratio
        low = min(low, efficiency.prefill_low_ratio or 1.0)
        high = max(high, efficiency.prefill_high_ratio or 1.0)
    expected, ceiling = 1 / seconds_per_token, 1 / limit_s
    return _range(expected, expected * low, min(expected * high, ceiling), ceiling, "compute")


def _ttft(prefill: SpeedRange | None, decode: SpeedRange, workload: Workload) -> SpeedRange | None:
    """Prompt time plus one decode step; network and queue are left out. Lower is better: `ceiling` is the least
    possible.
    """
    if prefill is None:
        return None
    prompt = workload.prompt_tokens
    return SpeedRange(
        expected=prompt / prefill.expected + 1 / decode.expected,
        low=prompt / prefill.high + 1 / decode.high,
        high=prompt / prefill.low + 1 / decode.low,
        ceiling=prompt / prefill.ceiling + 1 / decode.ceiling if prefill.ceiling and decode.ceiling else None,
        basis="computed",
        bound_by="compute",
    )


def _system(
    streams: list[Stream], decode: SpeedRange, prefill: SpeedRange | None, model: ModelSpec, workload: Workload
) -> SpeedRange:
    """Output of all users together, decoding in one batch: weights are read once a step, each user's cache separately.

    Each further user also costs its own arithmetic, at the rate that prefill reaches where that is known, and in a
    mixture of experts the further experts that its tokens need.
    """
    users = workload.users
    if users == 1:
        return decode
    experts = active_ratio(model, users) / active_ratio(model) - 1
    extra_s = sum(
        s.efficiency.slowdown * (experts * s.weights_bytes + (users - 1) * s.kv_bytes) / s.bandwidth_bytes_per_s
        for s in streams
        if s.efficiency
    )
    # The limit grants that all users' tokens go to the same experts.
    limit_s = sum((s.weights_bytes + users * s.kv_bytes) / s.bandwidth_bytes_per_s for s in streams)
    if prefill and prefill.ceiling:
        limit_s = max(limit_s, users / prefill.ceiling)
    ceiling = users / limit_s
    step_s = 1 / decode.expected + extra_s
    if prefill is None or any(s.is_host for s in streams):
        # How much arithmetic a batch costs is not known: between no gain at all and all that memory allows.
        most = min(users / step_s, ceiling)
        expected = sqrt(decode.expected * most)
        return _range(expected, min(decode.low, expected), most, ceiling, decode.bound_by)
    arithmetic_s = (users - 1) / prefill.expected
    expected = min(users / (step_s + arithmetic_s), ceiling)
    bound: BoundBy = "compute" if arithmetic_s > 1 / decode.expected else decode.bound_by
    return _range(expected, expected * _BATCHING_LOW, min(expected * _BATCHING_HIGH, ceiling), ceiling, bound)


def _range(expected: float, low: float, high: float, ceiling: float, bound_by: BoundBy) -> SpeedRange:
    expected = min(expected, ceiling)
    return SpeedRange(
        expected=expected,
        low=min(low, expected),
        high=max(high, expected),
        ceiling=ceiling,
        basis="computed",
        bound_by=bound_by,
    )
