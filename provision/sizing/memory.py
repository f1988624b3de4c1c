"""Where every byte goes: weights, KV cache, state, compute buffers and overhead, per device.

Engine modelled: llama.cpp, alone or inside Ollama. A device is one accelerator or the host; two cards of 24 GiB are
never one of 48: layers are split over them whole, and each card pays its own compute buffer and runtime context.

Counted: the tensors (embedding table on the host, each layer, the output matrix; a tied table twice when the output is
on an accelerator); the KV cache by layer kind and recurrent state, for every slot; the compute buffer of one prefill
step, on accelerators and on the host; the runtime's context on each device. Left out: multimodal projectors, draft
models, a file's metadata, and the page cache of a memory-mapped file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import ceil

from provision.domain.hardware import Machine
from provision.domain.llm import EngineSpec, ModelBuild, ModelSpec, Quantization
from provision.domain.plan import CapacityBasis, DeviceMemory, MemoryEstimate, Placement, Workload
from provision.sizing.bill import Bill, Rooms, bill_for
from provision.sizing.kv_cache import KV_BYTES_PER_VALUE, kv_bytes, kv_bytes_per_token_at

__all__ = [
    "KV_BYTES_PER_VALUE",
    "default_split",
    "fits",
    "itemise",
    "kv_bytes",
    "kv_bytes_per_token_at",
    "place",
    "shortfall_bytes",
]


def place(
    machine: Machine,
    model: ModelSpec,
    build: ModelBuild,
    quantization: Quantization,
    engine: EngineSpec,
    workload: Workload,
    basis: CapacityBasis = "total",
) -> tuple[Placement, MemoryEstimate]:
    """The placement that llama.cpp or Ollama would choose, and its bytes.

    All layers on the first single accelerator that holds them; else split over all accelerators; else, for a mixture
    of experts and an engine that can, the experts of as few layers as need be in host memory; else as many layers as
    go, from the last one down, the rest in host memory. Always answers: whether it fits is `fits(estimate)`.
    """
    bill = bill_for(model, build, quantization, engine, workload)
    rooms = Rooms(machine, basis, engine.device_kept_bytes)
    usable = [i for i in range(len(machine.accelerators)) if rooms.capacity_bytes(i) is not None]
    if not usable:
        return _itemise(bill, rooms, {})
    alike = {rooms.capacity_bytes(index): index for index in reversed(usable)}  # the first card of each size
    for subset in [[index] for index in sorted(alike.values())] + _groups(rooms, usable):
        layers = _whole(bill, rooms, subset)
        if layers is not None:
            return _itemise(bill, rooms, layers)
    if engine.experts_on_host and bill.parts.experts[-1]:
        found = _experts_spilled(bill, rooms, usable)
        if found is not None:
            return _itemise(bill, rooms, found[0], experts_on_host=found[1])
    layers, output_on_host = _partial(bill, rooms, usable)
    return _itemise(bill, rooms, layers, output_on_host=output_on_host)


def itemise(
    machine: Machine,
    model: ModelSpec,
    build: ModelBuild,
    quantization: Quantization,
    engine: EngineSpec,
    workload: Workload,
    placement: Placement,
    basis: CapacityBasis = "total",
) -> MemoryEstimate:
    """The bill of a placement that is given, device by device; nothing is chosen, nothing need fit.

    `placement.split` says how many layers each accelerator has, in order from the first that is not on the host.
    """
    bill = bill_for(model, build, quantization, engine, workload)
    rooms = Rooms(machine, basis, engine.device_kept_bytes)
    return _itemise(
        bill,
        rooms,
        dict(enumerate(placement.split)),
        output_on_host=placement.output_on_host,
        experts_on_host=placement.expert_layers_on_host,
    )[1]


def fits(estimate: MemoryEstimate) -> bool:
    """Whether every device holds its share; unknown capacity counts as not known to be too small."""
    return all(device.headroom_bytes is None or device.headroom_bytes >= 0 for device in estimate.devices)


def shortfall_bytes(estimate: MemoryEstimate) -> int:
    """Bytes missing, summed over the devices that are too small; 0 when it fits."""
    return sum(-d.headroom_bytes for d in estimate.devices if d.headroom_bytes is not None and d.headroom_bytes < 0)


def default_split(layers: int, weights: Sequence[float], *, output: bool = True) -> list[int]:
    """Layers per device as llama.cpp splits them: in proportion to free memory (or to `--tensor-split`), the output
    matrix counted as one more layer at the end. Without `output` it stays on the host and all layers are split.
    """
    places = layers + 1 if output else layers
    total = sum(weights) or 1.0
    bounds, reached = [], 0.0
    for weight in weights:
        reached += weight
        bounds.append(reached / total)
    counts = [0] * len(weights)
    start = 0
    for index, bound in enumerate(bounds):
        # The layers below this device's upper bound, as `upper_bound(splits, layer / places)` gives them.
        end = layers if index == len(bounds) - 1 else max(start, min(layers, ceil(bound * places - 1e-6)))
        counts[index] = end - start
        start = end
    return counts


def _whole(bill: Bill, rooms: Rooms, subset: Sequence[int]) -> dict[int, int] | None:
    """All layers and the output on the accelerators of `subset`, or None where they do not hold them."""
    many = len(subset) > 1
    fixed = [
        rooms.overhead_bytes
        + bill.device_compute(
            with_output=index == subset[-1],
            first=index == subset[0],
            pipelined=many,
            spilled=False,
        )
        + (bill.parts.output if index == subset[-1] else 0)
        for index in subset
    ]
    space = [(rooms.capacity_bytes(index) or 0) - cost for index, cost in zip(subset, fixed, strict=True)]
    if not many:
        return {subset[0]: bill.layers} if bill.held(0, bill.layers) <= space[0] else None
    if min(space) < 0 or bill.held(0, bill.layers) > sum(space):
        return None
    capacities = [rooms.capacity_bytes(index) or 0 for index in subset]
    for weights in (capacities, space):
        counts = default_split(bill.layers, weights)
        if _holds(bill, counts, space):
            return dict(zip(subset, counts, strict=True))
    filled = _filled(bill, space, 0)
    return dict(zip(subset, filled, strict=True)) if filled else None


def _groups(rooms: Rooms, usable: Sequence[int]) -> list[list[int]]:
    """All accelerators together; then without smaller ones at the end, which may not hold the output matrix."""
    groups, together = [], list(usable)
    while len(together) > 1:
        groups.append(together)
        if (rooms.capacity_bytes(together[-1]) or 0) >= max(rooms.capacity_bytes(i) or 0 for i in together):
            break
        together = together[:-1]
    return groups


def _holds(bill: Bill, counts: Sequence[int], space: Sequence[float]) -> bool:
    start = 0
    if not counts[-1]:
        return False
    for count, room in zip(counts, space, strict=True):
        if bill.held(start, start + count) > room:
            return False
        start += count
    return True


def _filled(bill: Bill, space: Sequence[float], experts_on_host: int) -> list[int] | None:
    """All layers front to back, each device as full as it goes; None where they do not hold them, or where the last
    one would have the output alone."""
    counts, start = [], 0
    for room in space:
        low, high = start, bill.layers
        while low < high:
            middle = (low + high + 1) // 2
            if bill.held(start, middle, experts_on_host) <= room:
                low = middle
            else:
                high = middle - 1
        counts.append(low - start)
        start = low
    return counts if start == bill.layers and counts[-1] else None


def _experts_spilled(bill: Bill, rooms: Rooms, usable: Sequence[int]) -> tuple[dict[int, int], int] | None:
    """Every layer on an accelerator, the experts of the first so many in host memory: the fewest that will do."""
    space = [
        (rooms.capacity_bytes(index) or 0)
        - rooms.overhead_bytes
        - bill.device_compute(
            with_output=index == usable[-1],
            first=index == usable[0],
            pipelined=False,
            spilled=False,
            experts_on_host=True,
        )
        - (bill.parts.output if index == usable[-1] else 0)
        for index in usable
    ]
    low, high = 1, bill.layers
    best = _filled(bill, space, high)
    if best is None or not best[0]:
        # The first one in use does the copying: without the one that is too small for it, another is the first.
        return _experts_spilled(bill, rooms, usable[1:]) if len(usable) > 1 else None
    while low < high:
        middle = (low + high) // 2
        counts = _filled(bill, space, middle)
        if counts is None:
            low = middle + 1
        else:
            best, high = counts, middle
    return dict(zip(usable, best, strict=True)), high


def _partial(bill: Bill, rooms: Rooms, usable: Sequence[int]) -> tuple[dict[int, int], bool]:
    """As many layers as the accelerators hold, from the last one down, and whether the output stays on the host.

    At least one layer stays on the host. Engines since 2026 put the output matrix on the last accelerator before any
    layer, so an accelerator at the end without room for it and a layer is left out; in older ones it stays on the host.
    """
    costs = [sum(column) for column in zip(bill.parts.layers, bill.cache, bill.state, strict=True)]
    output_on_host = bill.old_order
    layers: dict[int, int] = {}
    end = bill.layers
    for index in reversed(usable):
        last = index == usable[-1] and not output_on_host
        fixed = rooms.overhead_bytes + bill.device_compute(
            with_output=last, first=index == usable[0], pipelined=False, spilled=True
        )
        room = (rooms.capacity_bytes(index) or 0) - fixed - (bill.parts.output if last else 0)
        start = max(1, bisect_left(costs, costs[end] - room)) if room > 0 else end
        layers[index] = max(0, end - start)
        end = min(end, start)
    if not layers[usable[0]] and any(layers.values()):
        return _partial(bill, rooms, usable[1:])
    if output_on_host or layers[usable[-1]]:
        return dict(sorted(layers.items())), output_on_host
    return _partial(bill, rooms, usable[:-1]) if len(usable) > 1 else ({}, True)


def _itemise(
    bill: Bill, rooms: Rooms, layers: dict[int, int], *, output_on_host: bool = False, experts_on_host: int = 0
) -> tuple[Placement, MemoryEstimate]:
    """The bill for a given number of layers per accelerator, the rest on the host."""
    parts, total, machine = bill.parts, bill.layers, rooms.machine
    in_use = {index: count for index, count in layers.items() if count > 0}
    on_accelerators = sum(in_use.values())
    rest = total - on_accelerators
    last = None if output_on_host else max(in_use, default=None)
    first = min(in_use, default=None)
    pipelined = len(in_use) > 1 and not rest and last is not None and not experts_on_host
    devices: list[DeviceMemory] = []
    shared, start = 0, rest
    for index, count in in_use.items():
        end = start + count
        row = _device(
            f"gpu{index}",
            machine.accelerators[index].name,
            rooms.capacity_bytes(index),
            weights=bill.weights(start, end, experts_on_host) + (parts.output if index == last else 0),
            kv=bill.cache[end] - bill.cache[start],
            state=bill.state[end] - bill.state[start],
            compute=bill.device_compute(
                with_output=index == last,
                first=index == first,
                pipelined=pipelined,
                spilled=rest > 0,
                experts_on_host=experts_on_host > 0,
                all_experts_on_host=experts_on_host >= end,
            ),
            overhead=rooms.overhead_bytes,
        )
        devices.append(row)
        if rooms.is_unified(index):
            shared += row.total_bytes
        start = end
    left_behind = parts.experts[max(rest, min(experts_on_host, total))] - parts.experts[rest]
    devices.append(
        _device(
            "host",
            "host memory",
            rooms.room_in(machine.memory),
            weights=parts.embedding + parts.layers[rest] + left_behind + (parts.output_on_host if last is None else 0),
            kv=bill.cache[rest],
            state=bill.state[rest],
            compute=bill.host_compute(accelerators=bool(in_use), pipelined=pipelined, with_output=last is None)
            + bill.output_bytes,
            overhead=0,
            shared=shared,
        )
    )
    split = tuple(layers.get(index, 0) for index in range(len(machine.accelerators))) if in_use else ()
    placement = Placement(
        gpu_layers=on_accelerators,
        layers=total,
        tensor_parallel=1,
        split=split,
        output_on_host=last is None,
        expert_layers_on_host=experts_on_host,
    )
    return placement, MemoryEstimate(devices=tuple(devices), total_bytes=sum(d.total_bytes for d in devices))


def _device(
    device: str,
    name: str,
    capacity: int | None,
    *,
    weights: float,
    kv: float,
    state: float,
    compute: int,
    overhead: int,
    shared: int = 0,
) -> DeviceMemory:
    """One row; `shared` bytes of the same pool are already taken by accelerators with unified memory."""
    rounded = (ceil(weights), ceil(kv), ceil(state), compute, overhead)
    total = sum(rounded)
    return DeviceMemory(
        device=device,
        name=name,
        capacity_bytes=capacity,
        weights_bytes=rounded[0],
        kv_cache_bytes=rounded[1],
        state_bytes=rounded[2],
        compute_bytes=rounded[3],
        overhead_bytes=rounded[4],
        total_bytes=total,
        headroom_bytes=None if capacity is None else capacity - shared - total,
    )
