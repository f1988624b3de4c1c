"""Where every byte goes: weights, KV cache, state, compute buffers and overhead, per device.

Engine modelled: llama.cpp, alone or inside Ollama. A device is one accelerator or the host; two cards of 24 GiB are
never one of 48: layers are split over them whole, and each card pays its own compute buffer and runtime context.

Counted: the published weight bytes, split into input embedding (stays on the host), repeating layers and output matrix;
the KV cache by layer kind, for every slot; one prefill step's compute buffer; the runtime's context on each device.
Left out: multimodal projectors, draft models, and the page cache of a memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from provision.domain.hardware import Machine, MemoryPool
from provision.domain.llm import (
    AttentionLayers,
    EngineSpec,
    LatentAttentionLayers,
    Layers,
    ModelBuild,
    ModelSpec,
    ModelTask,
    Quantization,
    StateLayers,
)
from provision.domain.plan import CapacityBasis, DeviceMemory, MemoryEstimate, Placement, Workload

KV_BYTES_PER_VALUE = {"f16": 2.0, "fp8": 1.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""ggml block sizes: 32 values in 34 or 18 bytes. fp8 is vLLM's, with one scale per tensor."""

_KV_PADDING_TOKENS = 256
"""llama.cpp rounds a cache up to this many cells."""

_PIPELINE_COPIES = 4
"""llama.cpp keeps this many copies of the graph's inputs when layers are split over several devices."""


@dataclass(frozen=True, slots=True)
class WeightParts:
    """Bytes of one build by where llama.cpp can put them."""

    embedding_bytes: int
    """Input embedding table: always in host memory."""
    layer_bytes: float
    """One repeating layer, the mean over all."""
    output_bytes: int
    """Output matrix; for tied embeddings the copy that an accelerator needs."""
    tied: bool


def weight_parts(model: ModelSpec, build: ModelBuild, quantization: Quantization) -> WeightParts:
    """Split the published size. Layers are taken as equal, which is off by a few MB in mixes that favour some
    layers.
    """
    table = model.vocabulary_size * model.hidden_size
    embedding = round(table * quantization.embedding_bits_per_weight / 8)
    output = round(table * quantization.output_bits_per_weight / 8)
    if model.tied_embeddings:
        # The one table serves both ends and is kept in the better of the two types.
        repeating = build.weights_bytes - output
        return WeightParts(output, repeating / model.layer_count, output, tied=True)
    if model.task is ModelTask.EMBEDDING:
        return WeightParts(embedding, (build.weights_bytes - embedding) / model.layer_count, 0, tied=False)
    repeating = build.weights_bytes - embedding - output
    return WeightParts(embedding, repeating / model.layer_count, output, tied=False)


def kv_bytes(group: Layers, workload: Workload, engine: EngineSpec) -> float:
    """Cache of all layers of `group`, all users; state layers keep none.

    Full attention: users x context x kv_heads x (key + value dimension) x bytes per value. Sliding window: llama.cpp
    keeps users x window + one prefill step of tokens. Latent attention: latent + rope per token.
    """
    per_value = KV_BYTES_PER_VALUE[workload.kv_cache_type]
    tokens = workload.users * _padded(workload.context_tokens)
    if isinstance(group, AttentionLayers):
        if group.window_tokens is not None:
            tokens = min(tokens, _padded(workload.users * group.window_tokens + engine.batch_tokens))
        return group.count * tokens * group.kv_heads * (group.key_dim + group.value_dim) * per_value
    if isinstance(group, LatentAttentionLayers):
        return group.count * tokens * (group.latent_dim + group.rope_dim) * per_value
    return 0.0


def kv_bytes_per_token_at(model: ModelSpec, workload: Workload, depth_tokens: float) -> float:
    """KV bytes that one decode step of one user reads when `depth_tokens` are in its context."""
    per_value = KV_BYTES_PER_VALUE[workload.kv_cache_type]
    total = 0.0
    for group in model.layers:
        if isinstance(group, AttentionLayers):
            seen = min(depth_tokens, group.window_tokens or depth_tokens)
            total += group.count * seen * group.kv_heads * (group.key_dim + group.value_dim) * per_value
        elif isinstance(group, LatentAttentionLayers):
            total += group.count * depth_tokens * (group.latent_dim + group.rope_dim) * per_value
    return total


def compute_bytes(
    model: ModelSpec, workload: Workload, engine: EngineSpec, *, with_output: bool, devices: int = 1
) -> int:
    """Scratch memory of one prefill step with flash attention on, on one device.

    The device with the output matrix holds logits for a whole step: batch x vocabulary x 4 bytes. Others hold the
    widest activations of a layer. Every device holds the attention mask of one user's cache, several copies of it when
    layers are split. Checked against published logs: 250 of 258 MiB (Llama-3-8B, 512 tokens) and 297 of 301 MiB
    (Qwen2.5-3B, 4k) are the logits.
    """
    batch = min(engine.batch_tokens, workload.context_tokens)
    widest = 3 * model.hidden_size + 2 * (model.feed_forward_size or 4 * model.hidden_size)
    layer = batch * widest * 4
    logits = batch * (model.vocabulary_size + 2 * model.hidden_size) * 4 if with_output else 0
    if model.task is ModelTask.EMBEDDING:
        logits = 0
    mask = batch * _padded(workload.context_tokens) * 4
    return max(layer, logits) + mask * (_PIPELINE_COPIES if devices > 1 else 1)


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

    All layers on the first single accelerator that holds them; else split over all accelerators in proportion to their
    room; else as many layers as go, the rest and the output matrix in host memory. Always answers: whether it fits is
    `fits(estimate)`.
    """
    case = _Case(machine, model, weight_parts(model, build, quantization), engine, workload, basis)
    usable = [index for index in range(len(machine.accelerators)) if case.capacity_bytes(index) is not None]
    if not usable:
        return _itemise(case, {})
    for subset in [[index] for index in usable] + ([usable] if len(usable) > 1 else []):
        whole = _whole(case, subset)
        if whole is not None:
            return whole
    return _partial(case, usable)


def fits(estimate: MemoryEstimate) -> bool:
    """Whether every device holds its share; unknown capacity counts as not known to be too small."""
    return all(device.headroom_bytes is None or device.headroom_bytes >= 0 for device in estimate.devices)


def shortfall_bytes(estimate: MemoryEstimate) -> int:
    """Bytes missing, summed over the devices that are too small; 0 when it fits."""
    return sum(-d.headroom_bytes for d in estimate.devices if d.headroom_bytes is not None and d.headroom_bytes < 0)


@dataclass(frozen=True, slots=True)
class _Case:
    """What is placed where: the arguments that every step below needs."""

    machine: Machine
    model: ModelSpec
    parts: WeightParts
    engine: EngineSpec
    workload: Workload
    basis: CapacityBasis

    def capacity_bytes(self, index: int) -> int | None:
        """Of one accelerator, on the basis asked for."""
        return self.room_in(self.machine.pool_of(self.machine.accelerators[index]))

    def room_in(self, pool: MemoryPool) -> int | None:
        available = self.basis == "available" and pool.available_bytes is not None
        return pool.available_bytes if available else pool.total_bytes

    @property
    def kv_bytes(self) -> float:
        if self.model.task is ModelTask.EMBEDDING:
            return 0.0  # an encoder sees the whole input at once and keeps nothing
        return sum(kv_bytes(group, self.workload, self.engine) for group in self.model.layers)

    @property
    def state_bytes(self) -> int:
        groups = (group for group in self.model.layers if isinstance(group, StateLayers))
        return sum(group.count * group.state_bytes_per_sequence for group in groups) * self.workload.users

    @property
    def overhead_bytes(self) -> int:
        """The runtime's context on a device, or what the engine leaves free for it."""
        return max(self.engine.device_overhead_bytes, self.engine.device_reserve_bytes)

    def compute_bytes(self, *, with_output: bool, devices: int = 1) -> int:
        return compute_bytes(self.model, self.workload, self.engine, with_output=with_output, devices=devices)


def _whole(case: _Case, subset: Sequence[int]) -> tuple[Placement, MemoryEstimate] | None:
    """All layers and the output on the accelerators of `subset`, or None where they do not hold them."""
    rooms = _rooms(case, subset, with_output=True)
    layers = dict(zip(subset, _proportional(case.model.layer_count, rooms), strict=True))
    placement, estimate = _itemise(case, layers)
    # Rounding can overload one card while another has room: move layers one by one.
    while shortfall_bytes(estimate) and len(subset) > 1:
        headroom = {d.device: d.headroom_bytes or 0 for d in estimate.devices}
        worst = min(subset, key=lambda i: headroom.get(f"gpu{i}", 0))
        best = max(subset, key=lambda i: headroom.get(f"gpu{i}", 0))
        if worst == best or not layers[worst]:
            break
        moved = layers | {worst: layers[worst] - 1, best: layers[best] + 1}
        tried = _itemise(case, moved)
        if shortfall_bytes(tried[1]) >= shortfall_bytes(estimate):
            break
        layers, (placement, estimate) = moved, tried
    on_accelerators = [d.headroom_bytes for d in estimate.devices if d.device != "host"]
    return (placement, estimate) if all(h is None or h >= 0 for h in on_accelerators) else None


def _partial(case: _Case, usable: Sequence[int]) -> tuple[Placement, MemoryEstimate]:
    """As many layers as the accelerators hold, the rest and the output in host memory.

    At least one layer stays on the host: were all on accelerators but the output not, each token would stream the
    output matrix from the host, which costs about as much.
    """
    per_layer = case.parts.layer_bytes + case.kv_bytes / case.model.layer_count
    rooms = _rooms(case, usable, with_output=False)
    layers = {index: int(room // per_layer) for index, room in zip(usable, rooms, strict=True)}
    excess = sum(layers.values()) - (case.model.layer_count - 1)
    for index in usable:
        taken = max(0, min(excess, layers[index]))
        layers[index] -= taken
        excess -= taken
    return _itemise(case, layers, output_on_host=True)


def _rooms(case: _Case, subset: Sequence[int], *, with_output: bool) -> list[float]:
    """Bytes each accelerator has for layers and their cache, after its fixed costs; the last one holds the output."""
    rooms = []
    for index in subset:
        output = with_output and index == subset[-1]
        fixed = case.overhead_bytes + case.compute_bytes(with_output=output, devices=len(subset))
        matrix = case.parts.output_bytes if output else 0
        rooms.append(max(0.0, (case.capacity_bytes(index) or 0) - fixed - matrix))
    return rooms


def _itemise(case: _Case, layers: dict[int, int], *, output_on_host: bool = False) -> tuple[Placement, MemoryEstimate]:
    """The bill for a given number of layers per accelerator, the rest on the host."""
    parts, total = case.parts, case.model.layer_count
    in_use = {index: count for index, count in layers.items() if count > 0}
    last = None if output_on_host else max(in_use, default=None)
    devices = []
    for index, count in in_use.items():
        devices.append(
            _device(
                f"gpu{index}",
                case.machine.accelerators[index].name,
                case.capacity_bytes(index),
                weights=parts.layer_bytes * count + (parts.output_bytes if index == last else 0),
                kv=case.kv_bytes * count / total,
                state=case.state_bytes * count / total,
                compute=case.compute_bytes(with_output=index == last, devices=len(in_use)),
                overhead=case.overhead_bytes,
            )
        )
    on_accelerators = sum(in_use.values())
    rest = total - on_accelerators
    # With everything on accelerators the host only stages a step's inputs.
    staging = case.engine.batch_tokens * case.model.hidden_size * 4
    unified = [d for d, index in zip(devices, in_use, strict=True) if _is_unified(case.machine, index)]
    devices.append(
        _device(
            "host",
            "host memory",
            case.room_in(case.machine.memory),
            weights=parts.embedding_bytes
            + parts.layer_bytes * rest
            + (0 if last is not None or parts.tied else parts.output_bytes),
            kv=case.kv_bytes * rest / total,
            state=case.state_bytes * rest / total,
            compute=case.compute_bytes(with_output=last is None) if rest else staging,
            overhead=0,
            shared=sum(device.total_bytes for device in unified),
        )
    )
    split = tuple(layers.get(index, 0) for index in range(len(case.machine.accelerators))) if in_use else ()
    placement = Placement(gpu_layers=on_accelerators, layers=total, tensor_parallel=1, split=split)
    return placement, MemoryEstimate(devices=tuple(devices), total_bytes=sum(d.total_bytes for d in devices))


def _proportional(count: int, weights: Sequence[float]) -> list[int]:
    """`count` whole layers in proportion to `weights`, largest remainders first; sums to `count`."""
    total = sum(weights) or 1.0
    exact = [count * w / total for w in weights]
    shares = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: exact[i] - shares[i], reverse=True)
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


def _is_unified(machine: Machine, index: int) -> bool:
    return machine.pool_of(machine.accelerators[index]) is machine.memory


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


def _padded(tokens: int) -> int:
    return ceil(tokens / _KV_PADDING_TOKENS) * _KV_PADDING_TOKENS
