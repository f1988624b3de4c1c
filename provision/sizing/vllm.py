"""vLLM: whether it starts, how many tokens of cache remain, and how many requests they hold at once.

    budget    = fraction x what the runtime sees of a device's memory
    available = budget - weights - activations and sampler of one full step - CUDA graphs - runtime
    starts    = available holds one request of the whole context, and one block more
    fits      = available holds one such request for each user

From vllm/v1/worker/gpu_worker.py (determine_available_memory), utils/mem_utils.py (memory_profiling), cpu_worker.py
and engine/arg_utils.py (get_batch_defaults), version 0.32; blocks are in kv_blocks.py. What the engine measures at
start (sampler, graphs, runtime) is constants of its catalog record, from logs; the rest is counted.

Every card holds its part of every layer: there is no partial offload, and the fewest equal cards that hold the model
are taken. Left out: encoders of multimodal models, draft models, adapters, pipeline and expert parallelism, the
engine's own host memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor

from provision.domain.finding import Finding
from provision.domain.hardware import Machine, MemoryKind, MemoryPool
from provision.domain.llm import (
    AttentionLayers,
    EngineSpec,
    Experts,
    LatentAttentionLayers,
    Layers,
    ModelBuild,
    ModelSpec,
    ModelTask,
    PagedCache,
    Quantization,
    ServingTier,
)
from provision.domain.plan import Candidate, CapacityBasis, DeviceMemory, MemoryEstimate, Placement, Workload
from provision.sizing.kv_blocks import BlockPool, CacheShape, block_pool
from provision.sizing.memory import KV_BYTES_PER_VALUE
from provision.sizing.safetensors import HALF_BYTES, weight_format, weight_shapes
from provision.units import format_bytes, format_tokens


def place(
    machine: Machine,
    model: ModelSpec,
    build: ModelBuild,
    quantization: Quantization,
    engine: EngineSpec,
    workload: Workload,
    basis: CapacityBasis = "total",
) -> tuple[Placement, MemoryEstimate]:
    """The fewest equal cards that hold the model and every user's whole context; else the most that can be used.

    A machine without an accelerator that vLLM runs on gets the CPU's rule. Always answers: whether it fits is
    `memory.fits(estimate)`.
    """
    case = _Case(machine, model, build, engine, _paged(engine), workload, basis)
    layouts = list(_layouts(case))
    for cards in layouts:
        if cards is not layouts[-1] and case.hopeless(cards):
            continue
        answer = case.bill(cards)
        if all(d.headroom_bytes is None or d.headroom_bytes >= 0 for d in answer[1].devices):
            return answer
    return answer if layouts else case.host_bill()


def cache_pool(
    model: ModelSpec,
    engine: EngineSpec,
    workload: Workload,
    tier: ServingTier,
    *,
    devices: int = 1,
    host: bool = False,
) -> BlockPool | None:
    """The blocks that each of `devices` cards, or a CPU, keeps; None for encoders, which keep nothing.

    A CPU has larger blocks, but for latent attention, and one step in flight.
    """
    if not model.keeps_cache:
        return None
    paged = _paged(engine)
    latent = any(isinstance(group, LatentAttentionLayers) for group in model.layers)
    return block_pool(
        CacheShape(
            layers=model.layers,
            bytes_per_value=KV_BYTES_PER_VALUE[workload.kv_cache_type],
            block_tokens=paged.host_block_tokens if host and not latent else paged.block_tokens,
            state_blocks=paged.state_blocks,
            in_flight_tokens=(1 if host else paged.steps_in_flight) * tier.step_tokens,
            tensor_parallel=devices,
        )
    )


def device_weights(model: ModelSpec, build: ModelBuild, devices: int) -> int:
    """Bytes of weights on each of `devices` cards under tensor parallelism.

    Cut evenly: attention by heads, feed-forward parts and experts by inner width, both tables by rows. Whole on each:
    norms, biases, routers, the compressing projections of latent attention; key and value heads that are fewer than
    the devices are copied. Added: the table of rotary embeddings, and the 16-bit copy of the latent expansion that the
    engine keeps of quantized models, the padding of MXFP4 experts (inner width to 128, hidden size to 256).
    """
    shapes = weight_shapes(model)
    stored = weight_format(build.quantization)
    half = stored is None or stored.bits_per_weight == 16 or (stored.experts_only and shapes.experts.weights > 0)
    latent = 0 if half else shapes.latent_up * HALF_BYTES
    rotary = max((_rotary_dim(group) for group in model.layers), default=0) * model.context_tokens_max * HALF_BYTES
    padding = _padding(model, devices) * shapes.experts.bytes(stored) if stored and stored.experts_only else 0.0
    if devices == 1 or stored is None:
        return ceil((build.weights_bytes + latent + padding) / devices) + rotary
    copied, key_value = (
        part.weights * HALF_BYTES if half else part.bytes(stored) for part in (shapes.copied, shapes.key_value)
    )
    copied += shapes.rest * HALF_BYTES
    cut = max(0.0, build.weights_bytes - copied - key_value)
    return ceil(cut / devices + copied + key_value * _kv_share(model, devices) + (latent + padding) / devices) + rotary


def findings(machine: Machine, engine: EngineSpec, candidate: Candidate, workload: Workload) -> list[Finding]:
    """The arithmetic behind the answer, with the version whose rules it follows."""
    memory = candidate.memory
    device = memory.devices[0]
    if memory.kv_blocks is None or device.capacity_bytes is None:
        return []
    share = f"{engine.memory_fraction or 1:.0%}"
    found = []
    if memory.starts:
        found.append(
            Finding(
                code="engine-arithmetic",
                message=f"{engine.id} {engine.version} takes {share} of each device "
                f"({format_bytes(device.capacity_bytes)} of {device.name}); beside weights, activations and graphs "
                f"that leaves {memory.kv_blocks:,} blocks: {memory.kv_capacity_tokens or 0:,} tokens of KV cache, "
                f"{memory.concurrent_sequences_max or 0:,} requests of {format_tokens(workload.context_tokens)} at once"
                + (f"; largest context {memory.context_tokens_max:,}" if memory.context_tokens_max is not None else ""),
            )
        )
    if not candidate.fits:
        text, hint = refusal_text(engine, candidate, workload)
        code = "requests-wait" if memory.starts else "engine-does-not-start"
        found.append(Finding(code=code, message=f"{engine.id} {engine.version}: {candidate.model} {text}", hint=hint))
    unusable = {a.name for a in machine.accelerators if not _runs_on(engine, a.vendor)}
    if unusable and not candidate.placement.split:
        found.append(
            Finding(
                code="accelerator-unused",
                message=f"{engine.id} {engine.version} does not run on {', '.join(sorted(unusable))}: "
                "sized for the CPU",
                hint="--engine ollama",
            )
        )
    return found


def refusal_text(engine: EngineSpec, candidate: Candidate, workload: Workload) -> tuple[str, str | None]:
    """Why it does not fit, and what to type: it does not start, or it starts and holds fewer users."""
    memory = candidate.memory
    device = min(memory.devices, key=lambda d: d.headroom_bytes or 0)
    context = format_tokens(workload.context_tokens)
    if memory.starts:
        held = memory.concurrent_sequences_max or 0
        return (
            f"starts, but holds {held} of {workload.users} requests of {context} at once "
            f"(KV cache of {memory.kv_capacity_tokens or 0:,} tokens)",
            f"--users {held}",
        )
    cards = f" on each of {len(memory.devices)} cards" if len(memory.devices) > 1 else ""
    text = (
        f"does not start: weights {format_bytes(device.weights_bytes)}, activations and graphs "
        f"{format_bytes(device.compute_bytes)} and the cache of one request of {context} exceed "
        f"{engine.memory_fraction or 1:.0%} of {device.name} ({format_bytes(device.capacity_bytes)}){cards}"
    )
    fitting = memory.context_tokens_max or 0
    return text, f"--context {fitting}" if fitting >= 2048 else None


@dataclass(frozen=True, slots=True)
class _Case:
    """The arguments that every step below needs."""

    machine: Machine
    model: ModelSpec
    build: ModelBuild
    engine: EngineSpec
    paged: PagedCache
    workload: Workload
    basis: CapacityBasis

    def hopeless(self, cards: tuple[int, ...]) -> bool:
        """Not even the weights go: nothing to itemise."""
        total = self.machine.pool_of(self.machine.accelerators[cards[0]]).total_bytes
        return total is not None and self.build.weights_bytes > total * len(cards)

    def bill(self, cards: tuple[int, ...]) -> tuple[Placement, MemoryEstimate]:
        """On `cards`, indices of equal accelerators, under tensor parallelism where there are several."""
        count = len(cards)
        accelerator = self.machine.accelerators[cards[0]]
        pool = self._pool_of(cards[0])
        reserved = self.paged.driver_bytes if _driver_keeps(accelerator.vendor, accelerator.memory_kind) else 0
        seen = None if pool.total_bytes is None else max(0, pool.total_bytes - reserved)
        tier = _tier(self.paged, seen, accelerator.name)
        fixed = self._fixed(count, tier)
        blocks = cache_pool(self.model, self.engine, self.workload, tier, devices=count)
        budgets = [self._budget(seen, self._pool_of(index).available_bytes) for index in cards]
        # All devices get as many blocks as the one with the least room.
        row, facts = self._row(fixed, blocks, None if seen is None else min(b for b in budgets if b is not None))
        devices = tuple(
            _device(f"gpu{index}", accelerator.name, fixed, row, budget)
            for index, budget in zip(cards, budgets, strict=True)
        )
        layers, extra = divmod(self.model.layer_count, count)
        shares = {index: layers + (position < extra) for position, index in enumerate(cards)}
        split = tuple(shares.get(index, 0) for index in range(len(self.machine.accelerators)))
        placement = Placement(
            gpu_layers=self.model.layer_count, layers=self.model.layer_count, tensor_parallel=count, split=split
        )
        return placement, _estimate(devices, facts)

    def host_bill(self) -> tuple[Placement, MemoryEstimate]:
        """On the CPU: a share of the host's memory less what the process holds; activations are not reserved."""
        memory = self.machine.memory
        fixed = (device_weights(self.model, self.build, 1), 0, self.paged.host_bytes)
        blocks = cache_pool(self.model, self.engine, self.workload, self.paged.host_tier, host=True)
        budget = self._budget(memory.total_bytes, memory.available_bytes)
        row, facts = self._row(fixed, blocks, budget)
        devices = (_device("host", "host memory", fixed, row, budget),)
        return Placement(gpu_layers=0, layers=self.model.layer_count), _estimate(devices, facts)

    def _pool_of(self, index: int) -> MemoryPool:
        return self.machine.pool_of(self.machine.accelerators[index])

    def _budget(self, seen: int | None, available: int | None) -> int | None:
        """What the engine takes of a device; what is free where that is less, with a smaller fraction set."""
        if seen is None:
            return None
        budget = ceil(seen * (self.engine.memory_fraction or 1.0))
        return min(budget, available) if self.basis == "available" and available is not None else budget

    def _fixed(self, count: int, tier: ServingTier) -> tuple[int, int, int]:
        """Weights, activations with graphs, and the runtime, on each of `count` devices."""
        model = self.model
        scratch = _scratch_bytes(
            model.hidden_size,
            model.feed_forward_size,
            model.attention_heads,
            0 if model.task is ModelTask.EMBEDDING else model.vocabulary_size,
            model.layers,
            model.experts,
            count,
            tier.step_tokens,
            min(tier.step_tokens, max(tier.sequences, self.workload.users)),
            self.paged.scratch_bytes_per_logit,
        )
        overhead = self.engine.device_overhead_bytes + (self.paged.parallel_bytes if count > 1 else 0)
        weights = device_weights(model, self.build, count)
        return weights, scratch + _graph_bytes(model, self.paged), overhead

    def _row(
        self, fixed: tuple[int, int, int], pool: BlockPool | None, budget: int | None
    ) -> tuple[tuple[int, int], dict[str, int | bool | None]]:
        """Bytes of cache and of state for all users on one device, and what the pool holds."""
        if pool is None:
            return (0, 0), {"starts": None if budget is None else sum(fixed) <= budget}
        users, context = self.workload.users, self.workload.context_tokens
        state = pool.state_blocks()
        request = pool.blocks(context)
        row = ((users * (request - state) + 1) * pool.bytes_per_block, users * state * pool.bytes_per_block)
        if budget is None:
            return row, {}
        blocks = pool.count(budget - sum(fixed))
        return row, {
            "starts": request < blocks,
            "kv_blocks": blocks,
            "kv_block_tokens": pool.block_tokens,
            "kv_capacity_tokens": pool.capacity_tokens(blocks, context),
            "concurrent_sequences_max": max(0, blocks - 1) // request,
            "context_tokens_max": pool.context_tokens_max(blocks, self.model.context_tokens_max),
        }


def _layouts(case: _Case) -> Iterator[tuple[int, ...]]:
    """Sets of equal cards that tensor parallelism can use, fewest first."""
    alike: dict[tuple[str, int | None], list[int]] = {}
    for index, accelerator in enumerate(case.machine.accelerators):
        if _runs_on(case.engine, accelerator.vendor):
            total = case.machine.pool_of(accelerator).total_bytes
            alike.setdefault((accelerator.name, total), []).append(index)
    for count in range(1, max((len(cards) for cards in alike.values()), default=0) + 1):
        if count == 1 or _divides(case.model, case.build, count):
            for cards in alike.values():
                if len(cards) >= count:
                    yield tuple(cards[:count])


def _divides(model: ModelSpec, build: ModelBuild, count: int) -> bool:
    """Whether heads and inner widths can be cut into `count`, in whole quantization groups."""
    if model.attention_heads % count:
        return False
    for group in model.layers:
        heads = group.kv_heads if isinstance(group, AttentionLayers) else 0
        if heads and heads % count and count % heads:
            return False
    stored = weight_format(build.quantization)
    unit = stored.group_columns if stored else 1
    mixture = model.experts
    padded = mixture is not None and stored is not None and stored.experts_only
    widths = [mixture.feed_forward_size] if mixture and not padded else []
    if mixture is None or mixture.dense_layers:
        widths.append(model.feed_forward_size or 0)
    return all(width % (count * (unit if width % unit == 0 else 1)) == 0 for width in widths)


@lru_cache(maxsize=4096)
def _scratch_bytes(
    hidden: int,
    feed_forward: int | None,
    heads: int,
    vocabulary: int,
    layers: tuple[Layers, ...],
    experts: Experts | None,
    count: int,
    step_tokens: int,
    sequences: int,
    scratch_bytes_per_logit: float,
) -> int:
    """Peak of the step that the engine runs before it counts what is left: the widest layer or the sampler.

    A layer holds two hidden states a token, and of its own the larger of: query, key, value and attention output; gate,
    up and their product; for experts the same for each expert that a token goes through, with its output.
    """
    attention = max(
        (
            heads * (group.key_dim + group.value_dim) + group.kv_heads * (group.key_dim + group.value_dim)
            for group in layers
            if isinstance(group, AttentionLayers)
        ),
        default=4 * hidden,
    )
    wide = attention / count
    if experts is not None:
        inner = experts.feed_forward_size / count
        wide = max(wide, experts.used * (max(2 * inner, hidden) + inner))
        wide = max(wide, 3 * experts.shared_feed_forward_size / count)
    if experts is None or experts.dense_layers:
        wide = max(wide, 3 * (feed_forward or 0) / count)
    layer = step_tokens * (2 * hidden + wide) * HALF_BYTES
    return floor(max(layer, sequences * vocabulary * scratch_bytes_per_logit))


def _graph_bytes(model: ModelSpec, paged: PagedCache) -> int:
    layers = model.layer_count
    expert_layers = layers - model.experts.dense_layers if model.experts else 0
    if model.experts is None and model.active_parameters is not None:
        expert_layers = layers
    return (
        paged.graph_bytes
        + (layers - expert_layers) * paged.graph_bytes_per_layer
        + expert_layers * paged.graph_bytes_per_expert_layer
    )


def _tier(paged: PagedCache, seen: int | None, name: str) -> ServingTier:
    if seen is None or any(word in name for word in paged.smallest_tier_names):
        return paged.tiers[-1]
    return next((tier for tier in paged.tiers if seen >= tier.from_memory_bytes), paged.tiers[-1])


def _padding(model: ModelSpec, devices: int) -> float:
    """Share that experts gain by rounding up their sizes on each device."""
    if model.experts is None:
        return 0.0
    hidden, inner = model.hidden_size, model.experts.feed_forward_size / devices
    return ceil(hidden / 256) * 256 * ceil(inner / 128) * 128 / (hidden * inner) - 1


def _rotary_dim(group: Layers) -> int:
    if isinstance(group, AttentionLayers):
        return group.key_dim
    return group.rope_dim if isinstance(group, LatentAttentionLayers) else 0


def _kv_share(model: ModelSpec, devices: int) -> float:
    """Of the key and value projections on each device."""
    heads = max((group.kv_heads for group in model.layers if isinstance(group, AttentionLayers)), default=1) or 1
    return max(1, heads // devices) / heads


def _paged(engine: EngineSpec) -> PagedCache:
    if engine.paged is None:
        raise ValueError(f"{engine.id} has no pool of cache blocks")
    return engine.paged


def _runs_on(engine: EngineSpec, vendor: str) -> bool:
    return not engine.accelerator_vendors or vendor in engine.accelerator_vendors


def _driver_keeps(vendor: str, kind: MemoryKind) -> bool:
    return vendor == "nvidia" and kind is MemoryKind.DEDICATED


def _device(
    device: str, name: str, fixed: tuple[int, int, int], row: tuple[int, int], capacity: int | None
) -> DeviceMemory:
    weights, compute, overhead = fixed
    total = sum(fixed) + sum(row)
    return DeviceMemory(
        device=device,
        name=name,
        capacity_bytes=capacity,
        weights_bytes=weights,
        kv_cache_bytes=row[0],
        state_bytes=row[1],
        compute_bytes=compute,
        overhead_bytes=overhead,
        total_bytes=total,
        headroom_bytes=None if capacity is None else capacity - total,
    )


def _estimate(devices: tuple[DeviceMemory, ...], facts: dict[str, int | bool | None]) -> MemoryEstimate:
    return MemoryEstimate(devices=devices, total_bytes=sum(d.total_bytes for d in devices), **facts)  # type: ignore[arg-type]
