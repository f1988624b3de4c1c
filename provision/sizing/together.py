"""Several models on one machine at the same time: loaded one after the other, each into what those before it left.

Every model is a process of its own with a runtime context of its own on each device it uses, and leaves free what the
engine leaves free. An engine that predicts before it loads (Ollama) puts a further model beside the others only where
its prediction is at most a share of what is free (EngineSpec.predicted_share); else it unloads models until it is, by
name, as it does for models of the same keep-alive time. How the models share the time of the cards is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from provision.domain.hardware import Machine, MemoryPool
from provision.domain.llm import EngineSpec
from provision.domain.measurement import LocalMeasurement
from provision.domain.plan import CapacityBasis, JointPlan, SharedDevice, Workload
from provision.sizing.engine_policy import batch_surcharge_bytes, free_bytes, launch, predicted_bytes
from provision.sizing.placing import Build, Placed, place
from provision.sizing.planner import predicted
from provision.sizing.speed import EfficiencyOf

HOST = "host"


def together(
    machine: Machine,
    builds: Sequence[Build],
    engine: EngineSpec,
    workload: Workload,
    efficiency_of: EfficiencyOf,
    basis: CapacityBasis = "total",
    measured_here: Sequence[LocalMeasurement] = (),
) -> JointPlan:
    """`builds` loaded in this order by `engine`, each with the users and the context of `workload`."""
    loaded = _load(machine, builds, engine, workload, basis)
    candidates = tuple(
        predicted(machine, one.build, engine, workload, one.placed, efficiency_of, measured_here)
        for one in loaded.models
    )
    return JointPlan(
        candidates=candidates,
        devices=_devices(machine, loaded, engine, basis),
        resident=loaded.resident,
        evicted=tuple(c.id for c, one in zip(candidates, loaded.models, strict=True) if one.evicted),
    )


def choose_together(
    machine: Machine,
    options: Sequence[Sequence[Build]],
    engine: EngineSpec,
    workload: Workload,
    basis: CapacityBasis = "total",
) -> list[Build] | None:
    """One build of each model (`options`: a list per model, best first) so that all stay loaded at once, or None.

    Begins with the best of each and takes the next smaller one where that frees most, until all are resident; then
    gives back, model by model in the order asked for, what still has room.
    """
    taken = [0] * len(options)

    def resident(places: Sequence[int]) -> bool:
        chosen = [of_model[place] for of_model, place in zip(options, places, strict=True)]
        capacity = sum(free or 0 for free in free_bytes(machine, basis)) or None
        if capacity is not None and sum(build[1].weights_bytes for build in chosen) > capacity:
            return False
        return _load(machine, chosen, engine, workload, basis).resident

    while not resident(taken):
        freed = {
            i: options[i][taken[i]][1].weights_bytes - options[i][taken[i] + 1][1].weights_bytes
            for i in range(len(options))
            if taken[i] + 1 < len(options[i])
        }
        if not freed:
            return None
        taken[max(freed, key=lambda i: (freed[i], i))] += 1
    for i in range(len(options)):
        for better in range(taken[i]):
            tried = [*taken[:i], better, *taken[i + 1 :]]
            if resident(tried):
                taken = tried
                break
    return [of_model[place] for of_model, place in zip(options, taken, strict=True)]


@dataclass(slots=True)
class _Model:
    build: Build
    placed: Placed
    evicted: bool = False


@dataclass(slots=True)
class _Loaded:
    machine: Machine
    models: list[_Model] = field(default_factory=list)

    @property
    def resident(self) -> bool:
        def stays(one: _Model) -> bool:
            return one.placed.fits and (one.placed.resident or not self.machine.accelerators) and not one.evicted

        return all(stays(one) for one in self.models)

    @property
    def present(self) -> list[_Model]:
        return [one for one in self.models if not one.evicted]


def _load(
    machine: Machine, builds: Sequence[Build], engine: EngineSpec, workload: Workload, basis: CapacityBasis
) -> _Loaded:
    loaded = _Loaded(machine)
    for build in builds:
        left = _left(machine, loaded, engine, basis)
        while loaded.present and not _goes_beside(left, build, engine, workload):
            min(loaded.present, key=lambda one: one.build[0].id).evicted = True
            left = _left(machine, loaded, engine, basis)
        loaded.models.append(_Model(build, place(left, build, engine, workload, "available")))
    return loaded


def _goes_beside(left: Machine, build: Build, engine: EngineSpec, workload: Workload) -> bool:
    """Whether the engine loads one more model without unloading another."""
    if engine.predicted_share is None or not left.accelerators:
        return True
    chosen = launch(left, build[0], build[1], engine, workload, "available")
    frees = free_bytes(left, "available")
    free = sum(frees[index] or 0 for index in chosen.devices)
    predicted = predicted_bytes(build[0], build[1], chosen.workload.context_tokens * chosen.workload.users)
    return predicted + batch_surcharge_bytes(chosen.engine) <= engine.predicted_share * free


def _left(machine: Machine, loaded: _Loaded, engine: EngineSpec, basis: CapacityBasis) -> Machine:
    """The machine with what is still free as available."""
    used = _used(loaded, engine)
    frees = free_bytes(machine, basis)
    on_host = used.get(HOST, 0)
    cards = []
    for index, card in enumerate(machine.accelerators):
        taken = used.get(f"gpu{index}", 0)
        if card.memory is None or machine.pool_of(card) is machine.memory:
            on_host += taken
            limit = None if card.usable_bytes is None else max(0, card.usable_bytes - taken)
            cards.append(replace(card, usable_bytes=limit))
            continue
        free = frees[index]
        pool = replace(card.memory, available_bytes=None if free is None else max(0, free - taken))
        cards.append(replace(card, memory=pool))
    room = _host_room(machine.memory, basis)
    host = replace(machine.memory, available_bytes=None if room is None else max(0, room - on_host))
    return replace(machine, accelerators=tuple(cards), memory=host)


def _host_room(pool: MemoryPool, basis: CapacityBasis) -> int | None:
    return pool.available_bytes if basis == "available" and pool.available_bytes is not None else pool.total_bytes


def _used(loaded: _Loaded, engine: EngineSpec) -> dict[str, int]:
    """Bytes by device that all present models take: their bills, with the runtime's context but without what the
    engine only leaves free."""
    used: dict[str, int] = {}
    for one in loaded.present:
        for device, taken in _bill(one, engine).items():
            used[device] = used.get(device, 0) + taken
    return used


def _bill(one: _Model, engine: EngineSpec) -> dict[str, int]:
    """Bytes by device that one model takes from those that come after it."""
    rows = one.placed.memory.devices
    if engine.paged is not None:  # takes its whole share at start and fills it with cache
        return {row.device: row.total_bytes if row.device == HOST else row.capacity_bytes or 0 for row in rows}
    return {
        row.device: row.total_bytes - row.overhead_bytes + min(row.overhead_bytes, engine.device_overhead_bytes)
        for row in rows
    }


def _reserve(device: str, loaded: _Loaded, engine: EngineSpec) -> int:
    """What the engine leaves free on a device in use, beyond the runtimes' contexts."""
    rows = (row for one in loaded.present for row in one.placed.memory.devices if row.device == device)
    return max((max(0, row.overhead_bytes - engine.device_overhead_bytes) for row in rows), default=0)


def _devices(machine: Machine, loaded: _Loaded, engine: EngineSpec, basis: CapacityBasis) -> tuple[SharedDevice, ...]:
    bills = [{} if one.evicted else _bill(one, engine) for one in loaded.models]
    frees = free_bytes(machine, basis)
    rows = [(f"gpu{i}", card.name, frees[i], True) for i, card in enumerate(machine.accelerators)]
    rows.append((HOST, "host memory", _host_room(machine.memory, basis), False))
    shared = sum(
        bill.get(f"gpu{i}", 0)
        for bill in bills
        for i, card in enumerate(machine.accelerators)
        if machine.pool_of(card) is machine.memory
    )
    devices = []
    for device, name, capacity, is_card in rows:
        used = tuple(bill.get(device, 0) for bill in bills)
        reserve = _reserve(device, loaded, engine)
        total = sum(used) + reserve
        taken = total if is_card else total + shared
        devices.append(
            SharedDevice(
                device=device,
                name=name,
                capacity_bytes=capacity,
                used_bytes=used,
                reserve_bytes=reserve,
                total_bytes=total,
                headroom_bytes=None if capacity is None else capacity - taken,
            )
        )
    return tuple(devices)
