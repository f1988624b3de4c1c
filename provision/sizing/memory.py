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

from provision.domain.hardware import Machine
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

KV_BYTES_PER_VALUE = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""ggml block sizes: 32 values in 34 or 18 bytes."""

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
    parts = weight_parts(model, build, quantization)
    usable = [i for i, a in enumerate(machine.accelerators) if _capacity(machine, i, basis) is not None]
    if usable:
        for subset in [[i] for i in usable] + ([usable] if len(usable) > 1 else []):
            whole = _whole(machine, model, parts, engine, workload, basis, subset)
            if whole is not None:
                return whole
        return _partial(machine, model, parts, engine, workload, basis, usable)
    return _estimate(machine, model, parts, engine, workload, basis, {})


def fits(estimate: MemoryEstimate) -> bool:
    """Whether every device holds its share; unknown capacity counts as not known to be too small."""
    return all(device.headroom_bytes is None or device.headroom_bytes >= 0 for device in estimate.devices)


def shortfall_bytes(estimate: MemoryEstimate) -> int:
    """Bytes missing, summed over the devices that are too small; 0 when it fits."""
    return sum(-d.headroom_bytes for d in estimate.devices if d.headroom_bytes is not None and d.headroom_bytes < 0)


def _whole(
    machine: Machine,
    model: ModelSpec,
    parts: WeightParts,
    engine: EngineSpec,
    workload: Workload,
    basis: CapacityBasis,
    subset: Sequence[int],
) -> tuple[Placement, MemoryEstimate] | None:
    """All layers and the output on the accelerators of `subset`, or None where they do not hold them."""
    room = _room(machine, model, parts, engine, workload, basis, subset, with_output=True)
    split = _proportional(model.layer_count, room)
    placement, estimate = _estimate(
        machine, model, parts, engine, workload, basis, dict(zip(subset, split, strict=True))
    )
    # Rounding can overload one card while another has room: move layers one by one.
    for _ in range(model.layer_count):
        short = {d.device: d.headroom_bytes for d in estimate.devices if d.device != "host"}
        worst = min(subset, key=lambda i: short.get(f"gpu{i}") or 0)
        best = max(subset, key=lambda i: short.get(f"gpu{i}") or 0)
        if (short.get(f"gpu{worst}") or 0) >= 0 or worst == best:
            break
        layers = dict(zip(subset, placement.split, strict=True)) if len(subset) == len(placement.split) else None
        if layers is None or layers[worst] == 0:
            break
        layers[worst] -= 1
        layers[best] += 1
        moved = _estimate(machine, model, parts, engine, workload, basis, layers)
        if shortfall_bytes(moved[1]) >= shortfall_bytes(estimate):
            break
        placement, estimate = moved
    accelerators_fit = all(
        d.headroom_bytes is None or d.headroom_bytes >= 0 for d in estimate.devices if d.device != "host"
    )
    return (placement, estimate) if accelerators_fit else None


def _partial(
    machine: Machine,
    model: ModelSpec,
    parts: WeightParts,
    engine: EngineSpec,
    workload: Workload,
    basis: CapacityBasis,
    usable: Sequence[int],
) -> tuple[Placement, MemoryEstimate]:
    """As many layers as the accelerators hold; the rest in host memory. None at all where the engine can't split so."""
    per_layer = parts.layer_bytes + _kv_per_layer(model, workload, engine)
    room = _room(machine, model, parts, engine, workload, basis, usable, with_output=False)
    layers = {i: max(0, int(r // per_layer)) for i, r in zip(usable, room, strict=True)}
    excess = sum(layers.values()) - model.layer_count
    for i in usable:
        if excess <= 0:
            break
        taken = min(excess, layers[i])
        layers[i] -= taken
        excess -= taken
    return _estimate(machine, model, parts, engine, workload, basis, layers, output_on_host=True)


def _estimate(
    machine: Machine,
    model: ModelSpec,
    parts: WeightParts,
    engine: EngineSpec,
    workload: Workload,
    basis: CapacityBasis,
    layers: dict[int, int],
    *,
    output_on_host: bool = False,
) -> tuple[Placement, MemoryEstimate]:
    """Itemise a given number of layers per accelerator."""
    kv = sum(kv_bytes(group, workload, engine) for group in model.layers)
    if model.task is ModelTask.EMBEDDING:
        kv = 0.0  # an encoder sees the whole input at once and keeps nothing
    state = (
        sum(g.count * g.state_bytes_per_sequence for g in model.layers if isinstance(g, StateLayers)) * workload.users
    )
    total_layers = model.layer_count
    in_use = {i: n for i, n in layers.items() if n > 0}
    on_gpu = sum(in_use.values())
    last = max(in_use, default=None)
    output_on_gpu = last is not None and not output_on_host
    devices: list[DeviceMemory] = []
    for index, count in in_use.items():
        with_output = output_on_gpu and index == last
        devices.append(
            _device(
                machine,
                index,
                basis,
                weights=parts.layer_bytes * count + (parts.output_bytes if with_output else 0),
                kv=kv * count / total_layers,
                state=state * count / total_layers,
                compute=compute_bytes(model, workload, engine, with_output=with_output, devices=len(in_use)),
                overhead=max(engine.device_overhead_bytes, engine.device_reserve_bytes),
            )
        )
    rest = total_layers - on_gpu
    host_output = 0 if output_on_gpu or parts.tied else parts.output_bytes
    devices.append(
        _host(
            machine,
            basis,
            weights=parts.embedding_bytes + parts.layer_bytes * rest + host_output,
            kv=kv * rest / total_layers,
            state=state * rest / total_layers,
            # With everything on accelerators the host only stages a step's inputs.
            compute=compute_bytes(model, workload, engine, with_output=not output_on_gpu)
            if rest
            else engine.batch_tokens * model.hidden_size * 4,
            shared=sum(d.total_bytes for d, i in zip(devices, in_use, strict=True) if _is_unified(machine, i)),
        )
    )
    placement = Placement(
        gpu_layers=on_gpu,
        layers=total_layers,
        tensor_parallel=1,
        split=tuple(layers.get(i, 0) for i in range(len(machine.accelerators))) if in_use else (),
    )
    return placement, MemoryEstimate(devices=tuple(devices), total_bytes=sum(d.total_bytes for d in devices))


def _room(
    machine: Machine,
    model: ModelSpec,
    parts: WeightParts,
    engine: EngineSpec,
    workload: Workload,
    basis: CapacityBasis,
    subset: Sequence[int],
    *,
    with_output: bool,
) -> list[float]:
    """Bytes each accelerator has for layers and their cache, after its fixed costs; the last one holds the output."""
    rooms = []
    for index in subset:
        output = with_output and index == subset[-1]
        fixed = max(engine.device_overhead_bytes, engine.device_reserve_bytes)
        fixed += compute_bytes(model, workload, engine, with_output=output, devices=len(subset))
        capacity = _capacity(machine, index, basis) or 0
        rooms.append(max(0.0, capacity - fixed - (parts.output_bytes if output else 0)))
    return rooms


def _proportional(count: int, weights: Sequence[float]) -> list[int]:
    """`count` whole layers in proportion to `weights`, largest remainders first; sums to `count`."""
    total = sum(weights) or 1.0
    exact = [count * w / total for w in weights]
    shares = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: exact[i] - shares[i], reverse=True)
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


def _kv_per_layer(model: ModelSpec, workload: Workload, engine: EngineSpec) -> float:
    return sum(kv_bytes(group, workload, engine) for group in model.layers) / model.layer_count


def _capacity(machine: Machine, index: int, basis: CapacityBasis) -> int | None:
    pool = machine.pool_of(machine.accelerators[index])
    return pool.available_bytes if basis == "available" and pool.available_bytes is not None else pool.total_bytes


def _device(
    machine: Machine,
    index: int,
    basis: CapacityBasis,
    *,
    weights: float,
    kv: float,
    state: float,
    compute: int,
    overhead: int,
) -> DeviceMemory:
    return _memory(
        f"gpu{index}",
        machine.accelerators[index].name,
        _capacity(machine, index, basis),
        weights,
        kv,
        state,
        compute,
        overhead,
    )


def _host(
    machine: Machine, basis: CapacityBasis, *, weights: float, kv: float, state: float, compute: int, shared: int
) -> DeviceMemory:
    """The host's share; `shared` bytes of the same pool are already taken by accelerators with unified memory."""
    pool = machine.memory
    capacity = pool.available_bytes if basis == "available" and pool.available_bytes is not None else pool.total_bytes
    return _memory("host", "host memory", capacity, weights, kv, state, compute, 0, shared)


def _is_unified(machine: Machine, index: int) -> bool:
    return machine.pool_of(machine.accelerators[index]) is machine.memory


def _memory(
    device: str,
    name: str,
    capacity: int | None,
    weights: float,
    kv: float,
    state: float,
    compute: int,
    overhead: int,
    shared: int = 0,
) -> DeviceMemory:
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
