"""How fast: the physical limit, and what engines have been measured to reach of it.

Decode is bound by memory: one token streams the active weights and the cache once. With several resources (cards in
layer split, host memory under partial offload) the times add up, because llama.cpp runs the layers one after the other.

    ceiling   1 / sum(bytes_i / bandwidth_i)
    expected  1 / sum(coefficient_t x demand_t)

The demands are physical quantities in seconds (`demand.py`), the coefficients come from the catalog's fit on published
measurements (`efficiency.py`, catalog/efficiency.toml), and so do the ratios of the 80 % interval. The ceiling counts
the whole published weight file, input embedding table included; the expected value what is really streamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provision.domain.hardware import Machine
from provision.domain.llm import ModelBuild, ModelSpec, ModelTask, Precision, Quantization, StateLayers
from provision.domain.plan import Basis, BoundBy, Placement, Speed, SpeedRange, Workload
from provision.sizing.concurrency import system_output
from provision.sizing.demand import Demand, Share, Traffic, decode_demands, prompt_demands, seconds, traffic
from provision.sizing.efficiency import (
    HOST_CLASS,
    EfficiencyOf,
    Interval,
    Kernel,
    backend_of,
    efficiency_lookup,
    family_of,
    is_moe,
)
from provision.sizing.memory import KV_BYTES_PER_VALUE

__all__ = ["EfficiencyOf", "Setup", "decode_ceiling_tokens_per_s", "efficiency_lookup", "prepare", "speed"]

_RATE_OF_FAMILY = {"fp8": 2.0, "q8": 2.0, "q4_0": 2.0, "q45": 2.0, "q6": 2.0, "q23": 2.0, "iq": 2.0, "nvfp4": 4.0}
"""Prompt arithmetic may run at this multiple of the FP16 rate: in 8-bit integers, FP8 or FP4."""

HOST_FLOPS_PER_BYTE = 10.0
"""Arithmetic of CPUs is not in the catalog: taken from what is usual beside a memory of that bandwidth."""

_VECTOR_RATE = 4.0
"""Four 8-bit products per FP32 lane (dp4a): the most that parts without matrix units can do."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One build on one machine under one engine, ready to be asked for steps: what all figures are worked out from."""

    work: Traffic
    shares: tuple[Share, ...]
    coefficients: tuple[Mapping[str, float], ...]
    """By share and term."""
    intervals: Mapping[str, Interval]
    basis: Basis
    devices: int
    partial: bool
    kv_bytes_per_value: float
    family: str
    sized: bool
    """Whether the size of the weights is a published file's, not an estimate."""
    batch_tokens: int = 512

    def step_demands(self, depth_tokens: float, users: float = 1.0) -> list[Demand]:
        return decode_demands(self.work, self.shares, depth_tokens, self.kv_bytes_per_value, users)

    def prompt_demands(
        self, prompt_tokens: float, depth_tokens: float = 0.0, prompts: float = 1.0
    ) -> list[Demand] | None:
        return prompt_demands(self.work, self.shares, prompt_tokens, depth_tokens, self.batch_tokens, prompts)

    def step_s(self, depth_tokens: float, users: float = 1.0) -> float:
        """Expected seconds of one step in which each of `users` gets a token."""
        return seconds(self.step_demands(depth_tokens, users), self.coefficients)

    def limit_s(self, depth_tokens: float, users: float = 1.0) -> float:
        """Least possible seconds of that step: everything streamed once at the full bandwidth.

        For several users it grants that all tokens go to the same experts.
        """
        cache = self.work.cache_bytes(depth_tokens, self.kv_bytes_per_value) * users
        work = self.work
        streamed = work.weights_bytes() or 1.0
        scale = work.limit_bytes / streamed
        return sum(
            (share.weights_bytes(work) * scale + share.layers * cache / share.devices) / share.bandwidth_bytes_per_s
            for share in self.shares
        )

    def prompt_s(self, prompt_tokens: float, depth_tokens: float = 0.0, prompts: float = 1.0) -> float | None:
        """Expected seconds to read `prompts` prompts; None where a device's rate is not known."""
        demands = self.prompt_demands(prompt_tokens, depth_tokens, prompts)
        return None if demands is None else seconds(demands, self.coefficients)

    def prompt_limit_s(self, prompt_tokens: float) -> float | None:
        """Least possible: twice the active parameters in operations per token at the fastest rate of the device."""
        if not self.work.active_parameters:
            return None
        total = 0.0
        for own in self.shares:
            share = self.shares[0] if own.is_host else own  # prompts are computed on the accelerator where there is one
            rate = max(share.fp16_flops_per_s or 0.0, 0.0) * _RATE_OF_FAMILY.get(self.family, 1.0)
            rate = max(rate, _VECTOR_RATE * (share.fp32_flops_per_s or 0.0))
            if not rate:
                return None
            part = (own.layers + own.experts) / 2
            total += 2 * self.work.active_parameters * part * prompt_tokens / rate / share.devices
        return total

    def bound_by(self, demands: Sequence[Demand]) -> BoundBy:
        """What takes the largest part of a step."""
        sums: dict[BoundBy, float] = {"bandwidth": 0.0, "compute": 0.0, "interconnect": 0.0, "host_memory": 0.0}
        for term, number, ideal_s in demands:
            kind: BoundBy = "bandwidth"
            if term in ("compute", "batch"):
                kind = "compute"
            elif term in ("sync", "hop"):
                kind = "interconnect"
            elif self.shares[number].is_host:
                kind = "host_memory"
            sums[kind] += ideal_s * self.coefficients[number][term]
        return max(sums, key=sums.__getitem__)


def speed(
    machine: Machine,
    model: ModelSpec,
    build: ModelBuild,
    quantization: Quantization,
    engine: str,
    placement: Placement,
    workload: Workload,
    efficiency_of: EfficiencyOf,
) -> Speed | None:
    """Decode, prefill, time to first token and output of all users; None where a bandwidth or the efficiency is
    unknown.

    Embedding models have no decode and get None.
    """
    if model.task is ModelTask.EMBEDDING:
        return None
    setup = prepare(machine, model, build, quantization, engine, placement, efficiency_of, workload.kv_cache_type)
    if setup is None:
        return None
    depth = workload.mean_depth_tokens
    decode = decode_range(setup, depth)
    prefill = prefill_range(setup, workload.prompt_tokens)
    return Speed(
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        ttft_s=_ttft(prefill, decode, workload),
        system_output_tokens_per_s=system_output(setup, decode, prefill, depth, workload.users),
    )


def decode_ceiling_tokens_per_s(bytes_per_token: float, bandwidth_bytes_per_s: float) -> float:
    """Upper limit of single-stream decode on one memory bus."""
    return bandwidth_bytes_per_s / bytes_per_token


def prepare(
    machine: Machine,
    model: ModelSpec,
    build: ModelBuild,
    quantization: Quantization,
    engine: str,
    placement: Placement,
    efficiency_of: EfficiencyOf,
    kv_cache_type: str = "f16",
    *,
    backend: str | None = None,
    attention: str = "flash",
    era: str = "current",
    batch_tokens: int = 512,
) -> Setup | None:
    """Who carries what; None where a bandwidth in use is unknown or nothing of a device's class was measured."""
    family = family_of(quantization.id)
    moe = "moe" if is_moe(model) else "dense"
    shape = "hybrid" if any(isinstance(group, StateLayers) for group in model.layers) else "transformer"

    def kernel(device_class: str, vendor: str, architecture: str, device: str, bandwidth: float, on: str) -> Kernel:
        return Kernel(
            device_class, vendor, architecture, device, engine, on, family, moe, attention, era, shape, bandwidth
        )

    shares: list[Share] = []
    on_host = placement.expert_layers_on_host / max(1, placement.layers)
    used = [(index, count) for index, count in enumerate(placement.split) if count]
    parallel = placement.tensor_parallel if placement.tensor_parallel > 1 else 1
    output_on_host = placement.output_on_host or not used
    for position, (index, count) in enumerate(used[:1] if parallel > 1 else used):
        accelerator = machine.accelerators[index]
        bandwidth = machine.pool_of(accelerator).bandwidth_bytes_per_s
        if bandwidth is None or accelerator.device_class is None:
            return None
        part = (placement.gpu_layers if parallel > 1 else count) / placement.layers
        share = Share(
            kernel=kernel(
                accelerator.device_class,
                accelerator.vendor,
                accelerator.architecture or "",
                accelerator.catalog_id or "",
                bandwidth,
                backend or backend_of(accelerator.vendor, engine),
            ),
            bandwidth_bytes_per_s=bandwidth,
            fp32_flops_per_s=accelerator.fp32_flops_per_s,
            fp16_flops_per_s=accelerator.fp16_flops_per_s,
            layers=part,
            experts=max(0.0, part - on_host * part / max(part, placement.gpu_layers / placement.layers)),
            output=0.0 if output_on_host or (parallel == 1 and position < len(used) - 1) else 1.0,
            link_bytes_per_s=link_bytes_per_s(accelerator.pcie),
            devices=parallel,
        )
        shares.append(share)
    host_layers = 1 - placement.gpu_layers / placement.layers
    if host_layers > 0 or on_host > 0 or output_on_host:
        bandwidth = machine.memory.bandwidth_bytes_per_s
        if bandwidth is None:
            return None
        architecture = machine.cpu.architecture if machine.cpu and machine.cpu.architecture else ""
        processor = machine.cpu.model if machine.cpu and machine.cpu.model else ""
        shares.append(
            Share(
                kernel=kernel(HOST_CLASS, "cpu", architecture, processor, bandwidth, "cpu"),
                bandwidth_bytes_per_s=bandwidth,
                fp32_flops_per_s=None,
                fp16_flops_per_s=HOST_FLOPS_PER_BYTE * bandwidth,
                layers=host_layers,
                experts=min(1.0, host_layers + on_host),
                output=1.0 if output_on_host else 0.0,
                is_host=True,
            )
        )
    found = [efficiency_of(share.kernel) for share in shares]
    coefficients = [one.by_term for one in found if one is not None]
    if len(coefficients) < len(shares):
        return None
    partial = bool(used) and (host_layers > 0 or on_host > 0)
    measured = found[0] is not None and found[0].measured
    sized = build.precision is not Precision.ROUNDED
    devices = max(parallel, len(used))
    return Setup(
        work=traffic(model, build, quantization),
        shares=tuple(shares),
        coefficients=tuple(coefficients),
        intervals=efficiency_of.intervals(
            shares[0].kernel, measured=measured, devices=devices, partial=partial, sized=sized
        ),
        basis="measured_elsewhere" if measured and not partial else "computed",
        devices=devices,
        partial=partial,
        kv_bytes_per_value=KV_BYTES_PER_VALUE.get(kv_cache_type, 2.0),
        family=family,
        sized=sized,
        batch_tokens=batch_tokens,
    )


def decode_range(setup: Setup, depth_tokens: float) -> SpeedRange:
    """One user's tokens per second behind that many tokens of context."""
    ceiling = 1 / setup.limit_s(depth_tokens)
    demands = setup.step_demands(depth_tokens)
    expected = min(1 / seconds(demands, setup.coefficients), ceiling)
    return ranged(setup, "decode", expected, ceiling, setup.bound_by(demands))


def prefill_range(setup: Setup, prompt_tokens: float, depth_tokens: float = 0.0) -> SpeedRange | None:
    """Prompt tokens per second; None where a device's rate of arithmetic is not known."""
    prompt = max(1.0, prompt_tokens)
    expected_s, limit_s = setup.prompt_s(prompt, depth_tokens), setup.prompt_limit_s(prompt)
    if expected_s is None or limit_s is None:
        return None
    ceiling = prompt / limit_s
    return ranged(setup, "prefill", min(prompt / expected_s, ceiling), ceiling, "compute")


def ranged(setup: Setup, measure: str, expected: float, ceiling: float, bound_by: BoundBy) -> SpeedRange:
    """With the interval of the setup's group, cut at the ceiling."""
    interval = setup.intervals[measure]
    expected = min(expected, ceiling)
    return SpeedRange(
        expected=expected,
        low=min(expected * interval.low_ratio, expected),
        high=max(min(expected * interval.high_ratio, ceiling), expected),
        ceiling=ceiling,
        basis=setup.basis,
        bound_by=bound_by,
    )


_PCIE_LANE_BYTES_PER_S = {"2.0": 0.5e9, "3.0": 0.985e9, "4.0": 1.969e9, "5.0": 3.938e9, "6.0": 7.563e9}
"""After line coding, per direction."""


def link_bytes_per_s(pcie: str | None) -> float | None:
    """Of "PCIe 4.0 x16" per direction; None for what is not written so."""
    words = (pcie or "").split()
    if len(words) != 3 or words[1] not in _PCIE_LANE_BYTES_PER_S or not words[2][1:].isdigit():
        return None
    return _PCIE_LANE_BYTES_PER_S[words[1]] * int(words[2][1:])


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
        basis=prefill.basis,
        bound_by="compute",
    )
