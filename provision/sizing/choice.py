"""How far a build can be stretched: the longest context and the most users before more of it leaves the accelerators.

Bisection over the one function that places (`placing.place`), so the answer is what `plan` and `estimate` then say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from provision.domain.hardware import Machine
from provision.domain.llm import EngineSpec, ModelTask
from provision.domain.plan import CapacityBasis, Placement, Workload
from provision.sizing.engine_policy import is_serial
from provision.sizing.placing import Build, Placed, place

CONTEXT_STEP_TOKENS = 256
"""Caches grow in steps of this many cells."""

_USERS_MOST = 4096


def largest_context_tokens(
    machine: Machine,
    build: Build,
    engine: EngineSpec,
    workload: Workload,
    placed: Placed,
    basis: CapacityBasis = "total",
) -> int | None:
    """Longest context for the users of `workload`, in steps of 256 tokens up to the training context, with what is on
    accelerators in `placed` staying there. None where `placed` does not fit."""
    if not placed.fits:
        return None
    model = build[0]
    asked = placed.launch.workload.context_tokens

    def holds(steps: int) -> bool:
        load = replace(workload, context_tokens=steps * CONTEXT_STEP_TOKENS)
        return _as_good(place(machine, build, engine, load, basis), placed.placement)

    most = model.context_tokens_max // CONTEXT_STEP_TOKENS
    return max(asked, largest(holds, asked // CONTEXT_STEP_TOKENS, most) * CONTEXT_STEP_TOKENS)


def most_users(
    machine: Machine,
    build: Build,
    engine: EngineSpec,
    workload: Workload,
    placed: Placed,
    basis: CapacityBasis = "total",
) -> int | None:
    """Most users with the context of `workload`, up to 4,096, with what is on accelerators in `placed` staying there.

    Memory alone; how fast it then is, `Speed` tells. None where `placed` does not fit, and where the engine serves one
    request at a time, so that users cost no memory.
    """
    model = build[0]
    if not placed.fits or model.task is ModelTask.EMBEDDING or is_serial(engine, model):
        return None

    def holds(users: int) -> bool:
        return _as_good(place(machine, build, engine, replace(workload, users=users), basis), placed.placement)

    return largest(holds, workload.users, max(workload.users, _USERS_MOST))


def largest(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Largest number in low..high for which `holds`, given that it does for `low` and that beyond some number it never
    does. Looks at `high` and then doubles its steps, because most answers are near one of the ends."""
    if high <= low or holds(high):
        return max(low, high)
    step = 1
    while low + step < high and holds(low + step):
        low += step
        step *= 2
    high = min(high, low + step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _as_good(tried: Placed, base: Placement) -> bool:
    placement = tried.placement
    return (
        tried.fits
        and placement.gpu_layers >= base.gpu_layers
        and placement.expert_layers_on_host <= base.expert_layers_on_host
    )
