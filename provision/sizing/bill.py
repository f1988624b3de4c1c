"""What one case costs on one device: prefix sums over its layers, so that any range of layers is priced at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from provision.domain.hardware import Machine, MemoryPool
from provision.domain.llm import EngineSpec, ModelBuild, ModelSpec, Quantization
from provision.domain.plan import CapacityBasis, Workload
from provision.sizing import compute_buffer, kv_cache, weights
from provision.sizing.cached import by_identity
from provision.sizing.compute_buffer import GraphShape
from provision.sizing.tensors import layer_kinds


@dataclass(frozen=True, slots=True)
class WeightParts:
    """Bytes of one build by where llama.cpp can put them; `layers[b] - layers[a]` is what layers a to b weigh."""

    embedding: int
    """Input embedding table: always in host memory; of a tied model the last device has a copy."""
    output: int
    """Output matrix and last norm, as a device needs them; of a tied model with the copy of the table."""
    output_on_host: int
    """The same where it stays on the host, which has the table already."""
    layers: tuple[int, ...]
    experts: tuple[int, ...]
    """Of `layers`, the routed experts; zeros for dense models."""
    largest_expert_matrix: int
    largest_layer_matrix: int


@by_identity
def weight_parts(model: ModelSpec, build: ModelBuild, quantization: Quantization) -> WeightParts:
    """Prefix sums of `weights.layout`."""
    layout = weights.layout(model, build, quantization)
    copy = layout.embedding_bytes if model.tied_embeddings else 0
    experts = layout.expert_bytes or (0,) * len(layout.layer_bytes)
    dense = [whole - routed for whole, routed in zip(layout.layer_bytes, experts, strict=True)]
    return WeightParts(
        embedding=layout.embedding_bytes,
        output=layout.output_bytes + copy,
        output_on_host=layout.output_bytes,
        layers=(0, *accumulate(layout.layer_bytes)),
        experts=(0, *accumulate(experts)),
        largest_expert_matrix=round(max(experts, default=0) * weights.largest_expert_share(model, quantization)),
        largest_layer_matrix=round(max(dense, default=0) * weights.LARGEST_DENSE_SHARE),
    )


@dataclass(frozen=True, slots=True)
class Bill:
    """One build under one workload: bytes of any range of layers, and of the buffers each device pays besides."""

    parts: WeightParts
    cache: tuple[float, ...]
    """Prefix sums over layers, all slots."""
    state: tuple[float, ...]
    graph: GraphShape
    output_bytes: int
    """Logits kept for the caller."""
    layers: int
    old_order: bool
    """Whether the output matrix is the last to go to a device (llama.cpp before 2026), not the first."""

    def weights(self, start: int, end: int, experts_on_host: int = 0) -> int:
        """Of layers start to end on a device; the first `experts_on_host` of all layers leave their experts behind."""
        parts = self.parts
        kept = parts.layers[end] - parts.layers[start]
        cut = min(end, experts_on_host)
        return kept - (parts.experts[cut] - parts.experts[start] if cut > start else 0)

    def held(self, start: int, end: int, experts_on_host: int = 0) -> float:
        """Weights, cache and state of layers start to end on a device."""
        cached = self.cache[end] - self.cache[start] + self.state[end] - self.state[start]
        return self.weights(start, end, experts_on_host) + cached

    def device_compute(
        self,
        *,
        with_output: bool,
        first: bool,
        pipelined: bool,
        spilled: bool,
        experts_on_host: bool = False,
        all_experts_on_host: bool = False,
    ) -> int:
        """Compute buffer of an accelerator. The first one also multiplies what is kept on the host, a prefill step at
        a time, and has room for the matrix it copies in; the others then do attention only."""
        copies = first and bool(self.graph.expert) and (experts_on_host or spilled)
        return compute_buffer.device_bytes(
            self.graph,
            with_output=with_output,
            first=first,
            pipelined=pipelined,
            attention_only=all_experts_on_host and not first,
            copied_expert_bytes=self.parts.largest_expert_matrix if copies else 0,
            copied_layer_bytes=self.parts.largest_layer_matrix if spilled and first else 0,
        )

    def host_compute(self, *, accelerators: bool, pipelined: bool, with_output: bool) -> int:
        """Of the host: everything on a machine without accelerators; else what it stages for them. Layers that it keeps
        are computed on the first accelerator in a prefill step, and one token at a time need next to nothing."""
        if not accelerators:
            return compute_buffer.device_bytes(self.graph, with_output=True, whole=True, unpacks_cache=False)
        return compute_buffer.host_bytes(self.graph, pipelined=pipelined, with_output=with_output)


def bill_for(
    model: ModelSpec, build: ModelBuild, quantization: Quantization, engine: EngineSpec, workload: Workload
) -> Bill:
    """Prices for one case."""
    cache, state = kv_cache.bytes_by_group(model, build, workload, engine)
    counts = _group_counts(model)
    return Bill(
        parts=weight_parts(model, build, quantization),
        cache=_prefix(counts, cache),
        state=_prefix(counts, state) if any(state) else (0.0,) * (model.layer_count + 1),
        graph=compute_buffer.shape_for(model, engine, workload, expanded=build.expanded_cache),
        output_bytes=compute_buffer.output_bytes(model, workload.users),
        layers=model.layer_count,
        old_order=engine.graph != "llama.cpp",
    )


@lru_cache(maxsize=4096)
def _prefix(counts: tuple[tuple[int, ...], ...], per_layer: tuple[float, ...]) -> tuple[float, ...]:
    if len(counts) == 1:
        each = per_layer[0]
        return tuple(index * each for index in counts[0])
    return tuple(
        sum(n * each for n, each in zip(column, per_layer, strict=True)) for column in zip(*counts, strict=True)
    )


@by_identity
def _group_counts(model: ModelSpec) -> tuple[tuple[int, ...], ...]:
    """For every group of layers: how many of the first 0, 1, 2, ... layers are of it."""
    kinds = layer_kinds(model)
    return tuple((0, *accumulate(int(kind == group) for kind in kinds)) for group in range(len(model.layers)))


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the devices of a machine have, on the basis asked for."""

    machine: Machine
    basis: CapacityBasis
    overhead_bytes: int
    """The runtime's context on a device and what the engine leaves free there (`EngineSpec.device_kept_bytes`)."""

    def capacity_bytes(self, index: int) -> int | None:
        """Of one accelerator."""
        return self.room_in(self.machine.usable_pool_of(self.machine.accelerators[index]))

    def room_in(self, pool: MemoryPool) -> int | None:
        """Of one pool: what is free now where that is asked for and known."""
        available = self.basis == "available" and pool.available_bytes is not None
        return pool.available_bytes if available else pool.total_bytes

    def is_unified(self, index: int) -> bool:
        """Whether an accelerator works in the host's memory."""
        return self.machine.pool_of(self.machine.accelerators[index]) is self.machine.memory
