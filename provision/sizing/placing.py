"""Where one build goes: which devices the engine takes, then how many layers on each, then every byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from provision.domain.hardware import Machine
from provision.domain.llm import EngineSpec, ModelBuild, ModelSpec, Quantization
from provision.domain.plan import CapacityBasis, MemoryEstimate, Placement, Workload
from provision.sizing import memory, vllm
from provision.sizing.engine_policy import Launch, free_bytes, launch

Build = tuple[ModelSpec, ModelBuild, Quantization]


@dataclass(frozen=True, slots=True)
class Placed:
    """A build on a machine, before its speed."""

    launch: Launch
    placement: Placement
    memory: MemoryEstimate

    @property
    def resident(self) -> bool:
        """All layers on accelerators, none of their experts elsewhere."""
        return is_resident(self.placement)

    @property
    def fits(self) -> bool:
        """Every device holds its share, and nothing is spilled into host memory of a size that nobody gave."""
        return memory.fits(self.memory) and not spills_into_the_unknown(self.placement, self.memory)


def place(
    machine: Machine, build: Build, engine: EngineSpec, workload: Workload, basis: CapacityBasis = "total"
) -> Placed:
    """The placement that `engine` would choose, with its own context, slots, devices and prefill step."""
    chosen = launch(machine, build[0], build[1], engine, workload, basis)
    where, devices = machine, chosen.devices
    if len(devices) < len(machine.accelerators):
        where = replace(machine, accelerators=tuple(machine.accelerators[i] for i in devices))
    found = _spread(where, build, chosen, basis) if engine.spreads and len(devices) > 1 else None
    if found is None:
        decide = memory.place if engine.paged is None else vllm.place
        found = decide(where, *build, chosen.engine, chosen.workload, basis)
    placement, estimate = found
    if where is not machine:
        placement, estimate = _renumbered(placement, estimate, devices, len(machine.accelerators))
    return Placed(chosen, placement, estimate)


def _spread(
    where: Machine, build: Build, chosen: Launch, basis: CapacityBasis
) -> tuple[Placement, MemoryEstimate] | None:
    """All layers on all accelerators, in proportion to what is free there, as llama.cpp splits them when it is not
    told otherwise; None where one of them does not hold its part, and the fit has to choose."""
    layers = build[0].layer_count
    split = memory.default_split(layers, [free or 0 for free in free_bytes(where, basis)])
    placement = Placement(gpu_layers=layers, layers=layers, split=tuple(split))
    estimate = memory.itemise(where, *build, chosen.engine, chosen.workload, placement, basis)
    held = all(d.headroom_bytes is None or d.headroom_bytes >= 0 for d in estimate.devices if d.device != "host")
    return (placement, estimate) if held else None


def is_resident(placement: Placement) -> bool:
    """All layers on accelerators, none of their experts elsewhere."""
    return placement.gpu_layers == placement.layers and not placement.expert_layers_on_host


def where(placement: Placement) -> Literal["accelerators", "host"] | None:
    """What the layers run on; None: on both."""
    if is_resident(placement):
        return "accelerators"
    return None if placement.gpu_layers else "host"


def spills_into_the_unknown(placement: Placement, estimate: MemoryEstimate) -> bool:
    """Layers would lie in host memory of a size that nobody gave: "fits" would be a guess."""
    return not is_resident(placement) and any(d.device == "host" and d.capacity_bytes is None for d in estimate.devices)


def _renumbered(
    placement: Placement, estimate: MemoryEstimate, devices: Sequence[int], count: int
) -> tuple[Placement, MemoryEstimate]:
    """A placement on some of `count` accelerators, told by their places in the whole machine."""
    if not placement.split:
        return placement, estimate
    split = [0] * count
    for index, layers in zip(devices, placement.split, strict=True):
        split[index] = layers
    names = {f"gpu{place}": f"gpu{index}" for place, index in enumerate(devices)}
    rows = tuple(replace(row, device=names.get(row.device, row.device)) for row in estimate.devices)
    return replace(placement, split=tuple(split)), replace(estimate, devices=rows)
