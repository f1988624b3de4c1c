"""What an engine decides by itself: context, slots, devices, prefill step; for machines that need not be there.

The rules are data (catalog/engines.toml, one record per version); this module only applies them. Where they come from:

- Ollama 0.32: default context by summed memory (server/routes.go); the prediction, file size plus a plain f16 cache
  (llm/llama_server.go, PredictServerVRAM), which decides on one card or all, on the prefill step and on eviction at
  80 % of the free memory; graphs that are served one request at a time (server/sched.go). It then starts llama-server
  with the context set, whose own fit moves layers or experts to the host, and leaves 1 GiB free on each device.
- llama.cpp: common/fit.cpp. A context that nobody set is lowered until the model fits, not below 4,096 tokens; one that
  was set never is. Layers fill the devices back to front; of a mixture of experts the experts leave first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from provision.domain.hardware import Machine, MemoryKind
from provision.domain.llm import AttentionLayers, EngineSpec, ModelBuild, ModelSpec, ModelTask
from provision.domain.plan import CapacityBasis, Workload
from provision.sizing.cached import by_identity


@dataclass(frozen=True, slots=True)
class Launch:
    """How an engine starts one model for a workload."""

    engine: EngineSpec
    """With the prefill step that it takes."""
    workload: Workload
    """As served: the context that the model can have, the slots that the engine gives."""
    devices: tuple[int, ...]
    """Accelerators the engine uses, by place in the machine; empty on a CPU."""
    alone: bool
    """The engine keeps the model on the one device in `devices` by its own rule, whatever spills then."""


def launch(
    machine: Machine,
    model: ModelSpec,
    build: ModelBuild,
    engine: EngineSpec,
    workload: Workload,
    basis: CapacityBasis = "total",
) -> Launch:
    """What `engine` makes of `workload` on `machine`, before anything is placed."""
    served = served_workload(engine, model, workload)
    frees = free_bytes(machine, basis)
    usable = tuple(index for index, free in enumerate(frees) if free is not None)
    devices, alone = usable, False
    if len(usable) > 1 and engine.predicted_share is not None:
        predicted = predicted_bytes(model, build, served.context_tokens * served.users)
        devices, alone = choose_devices(engine, machine, frees, predicted)
    batch = engine.batch_tokens
    if model.task is ModelTask.EMBEDDING:
        batch = min(engine.embedding_batch_tokens or batch, served.context_tokens)
    elif engine.batch_tiers:
        free = sum(frees[index] or 0 for index in devices)
        context = served.context_tokens * served.users
        batch = batch_tokens(engine, predicted_bytes(model, build, context), free, context)
    return Launch(engine=_with_batch(engine, batch), workload=served, devices=devices, alone=alone)


@by_identity
def _with_batch(engine: EngineSpec, tokens: int) -> EngineSpec:
    """Always the same record for the same step, so that what others remember by record is found again."""
    return engine if tokens == engine.batch_tokens else replace(engine, batch_tokens=tokens)


def slots(engine: EngineSpec, model: ModelSpec, users: int) -> int:
    """Requests that are really served at the same time when `users` slots are asked for.

    Embedding models get one slot, which batches whole requests; some graphs are served one request at a time.
    """
    if model.task is ModelTask.EMBEDDING or is_serial(engine, model):
        return 1
    return users


def is_serial(engine: EngineSpec, model: ModelSpec) -> bool:
    """Whether this version serves the model's graph one request at a time; an unknown graph is taken as parallel."""
    return model.architecture is not None and model.architecture in engine.serial_architectures


def served_workload(engine: EngineSpec, model: ModelSpec, workload: Workload) -> Workload:
    """`workload` with the slots that the engine gives; embedding models get no more context than they were trained
    for, and their requests are cut to it."""
    users = slots(engine, model, workload.users)
    context = workload.context_tokens
    if model.task is ModelTask.EMBEDDING:
        context = min(context, model.context_tokens_max)
    if users == workload.users and context == workload.context_tokens:
        return workload
    return replace(workload, users=users, context_tokens=context)


def default_context_tokens(engine: EngineSpec, machine: Machine, model: ModelSpec) -> int | None:
    """What each slot gets when nobody sets a context, or None where the engine takes what fits.

    By the *total* memory of all accelerators together, whether or not the model is there; 4,096 tokens without any.
    Capped by the training context.
    """
    if engine.context_tiers:
        total = sum(machine.usable_pool_of(card).total_bytes or 0 for card in machine.accelerators)
        tier = next(tier for tier in engine.context_tiers if total >= tier.from_memory_bytes)
        return min(tier.context_tokens, model.context_tokens_max)
    if engine.fit_context_tokens_min is not None:
        return None
    return min(engine.default_context_tokens or model.context_tokens_max, model.context_tokens_max)


def predicted_bytes(model: ModelSpec, build: ModelBuild, context_tokens: int) -> int:
    """What Ollama reckons before it loads: the file and a plain f16 cache of `context_tokens`, all slots together.

    No compute buffer; windows, latent attention and head sizes of their own are not seen. The heads are the fewest of
    any layer, and 1 where there are none: it decides by this figure, so it is computed as Ollama does, errors included.
    """
    return build.weights_bytes + _plain_cache_bytes_per_token(model) * context_tokens


@by_identity
def _plain_cache_bytes_per_token(model: ModelSpec) -> int:
    heads = min((g.kv_heads for g in model.layers if isinstance(g, AttentionLayers)), default=1)
    head_dim = model.hidden_size // model.attention_heads if model.attention_heads else 0
    return 2 * model.layer_count * heads * head_dim * 2


def batch_tokens(engine: EngineSpec, predicted: int, free: int, context_tokens: int) -> int:
    """Tokens per prefill step: the largest tier for this context (all slots together) that the engine sees room for."""
    share = engine.predicted_share or 1.0
    for tier in engine.batch_tiers:
        if context_tokens <= tier.above_context_tokens:
            continue
        # Without a device nothing is held against anything, and the longest step is taken.
        room = not free or (predicted <= tier.memory_share * free and predicted + tier.surcharge_bytes <= share * free)
        if room:
            return tier.batch_tokens
    return engine.batch_tokens


def batch_surcharge_bytes(engine: EngineSpec) -> int:
    """What the engine reckons for a prefill step of `engine.batch_tokens`, as `launch` has set it."""
    return next((t.surcharge_bytes for t in engine.batch_tiers if t.batch_tokens == engine.batch_tokens), 0)


def choose_devices(
    engine: EngineSpec, machine: Machine, frees: Sequence[int | None], predicted: int
) -> tuple[tuple[int, ...], bool]:
    """Accelerators for a model of `predicted` bytes, and whether it is one by the engine's own rule.

    One device alone where the prediction is at most `predicted_share` of what is free there: the one with the most
    free memory, cards before integrated parts. Else all accelerators of the kind with the most free memory together.
    """
    usable = [index for index, free in enumerate(frees) if free is not None]
    share = engine.predicted_share or 1.0

    def order(index: int) -> tuple[bool, int, int]:
        return not _is_unified(machine, index), frees[index] or 0, -index

    holding = [index for index in usable if predicted <= share * (frees[index] or 0)]
    if holding:
        return (max(holding, key=order),), True
    groups: dict[str, list[int]] = {}
    for index in usable:
        groups.setdefault(machine.accelerators[index].vendor, []).append(index)
    best = max(
        groups.values(),
        key=lambda g: (any(not _is_unified(machine, i) for i in g), sum(frees[i] or 0 for i in g)),
    )
    return tuple(best), False


def free_bytes(machine: Machine, basis: CapacityBasis) -> tuple[int | None, ...]:
    """Of every accelerator, on the basis asked for; None where it is not known."""
    frees = []
    for card in machine.accelerators:
        pool = machine.usable_pool_of(card)
        known = basis == "available" and pool.available_bytes is not None
        frees.append(pool.available_bytes if known else pool.total_bytes)
    return tuple(frees)


def _is_unified(machine: Machine, index: int) -> bool:
    return machine.accelerators[index].memory_kind is MemoryKind.UNIFIED
