"""What one step takes of the hardware, in seconds at its full rates: the physical side of the speed model.

Counted for decode: the weights that one token streams (all of a dense model but its input embedding table, of which one
row is read; of a mixture of experts the experts that the step's tokens need), each user's cache at its depth, the
arithmetic, and what every layer costs whatever its size. Left out: sampling on the client, tokenisation, the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provision.domain.llm import (
    AttentionLayers,
    LatentAttentionLayers,
    ModelBuild,
    ModelSpec,
    Quantization,
    StateLayers,
)
from provision.sizing.cached import by_identity
from provision.sizing.efficiency import Kernel
from provision.sizing.weights import layout

LAYER_S = 1e-5
"""Unit of the terms by layer: about what launching one layer's kernels takes."""
STEP_S = 1e-3
SEQUENCE_S = 1e-4
REQUEST_S = 1e-2

DEFAULT_LINK_BYTES_PER_S = 15.754e9
"""PCIe 3.0 x16, where the link is not known."""

Demand = tuple[str, int, float]
"""Term, number of the share that carries it, and seconds at the full rate; times its coefficient the expected time."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a build moves and computes, apart from any machine."""

    layers: int
    expert_layers: int
    shared_bytes: float
    """Read by every token: repeating layers without routed experts."""
    expert_bytes: float
    """Routed experts, all of them."""
    experts_used_ratio: float
    output_bytes: float
    """Output matrix; for tied embeddings the one table."""
    limit_bytes: float
    """What the ceiling counts for one token: the whole published file, of a mixture of experts without idle ones."""
    active_parameters: float | None
    cache_bytes_per_token: float
    """Of full attention at 16 bits, all layers."""
    windows: tuple[tuple[float, int], ...]
    """Sliding-window groups: bytes per token at 16 bits, and window."""
    state_bytes: float
    hidden_size: int
    attention_flops_per_pair: float
    """Multiply-adds times two of one query token with one cached token, all full-attention layers."""

    def weights_bytes(self, tokens: float = 1.0) -> float:
        """Streamed by one step of `tokens` independent tokens (expected number of distinct experts)."""
        return self.shared_bytes + self.output_bytes + self.expert_bytes * self.experts_ratio(tokens)

    def experts_ratio(self, tokens: float) -> float:
        return 1.0 - float((1.0 - self.experts_used_ratio) ** tokens)

    def cache_bytes(self, depth_tokens: float, bytes_per_value: float = 2.0) -> float:
        """Read by one step of one user with that many tokens in its context."""
        total = self.cache_bytes_per_token * depth_tokens
        for per_token, window in self.windows:
            total += per_token * min(depth_tokens, window)
        return total * bytes_per_value / 2 + 2 * self.state_bytes


@by_identity
def traffic(model: ModelSpec, build: ModelBuild, quantization: Quantization) -> Traffic:
    """From the tensors' layout where a mixture's experts are known, else active over all parameters."""
    parts = layout(model, build, quantization)
    repeating = float(sum(parts.layer_bytes))
    output = float(parts.embedding_bytes + parts.output_bytes if model.tied_embeddings else parts.output_bytes)
    experts, used, limit = 0.0, 1.0, float(build.weights_bytes)
    ratio = model.active_parameters / model.parameters if model.active_parameters and model.parameters else None
    if model.experts and parts.expert_bytes:
        experts, used = float(sum(parts.expert_bytes)), model.experts.used / model.experts.count
        limit = build.weights_bytes - experts * (1 - used)
    elif ratio is not None and ratio < 1:
        # No list of its experts: all that is not active counts as experts that one token leaves alone.
        experts, used = repeating + output, ratio
        repeating = output = 0.0
        limit = build.weights_bytes * ratio
    cache, windows, state, attention = 0.0, [], 0.0, 0.0
    for group in model.layers:
        if isinstance(group, AttentionLayers):
            per_token = group.count * group.kv_heads * (group.key_dim + group.value_dim) * 2.0
            if group.window_tokens:
                windows.append((per_token, group.window_tokens))
            else:
                cache += per_token
                attention += 2.0 * group.count * model.attention_heads * (group.key_dim + group.value_dim)
            state += group.count * group.state_bytes_per_sequence
        elif isinstance(group, LatentAttentionLayers):
            cache += group.count * (group.latent_dim + group.rope_dim) * 2.0
            attention += 2.0 * group.count * model.attention_heads * (2 * group.latent_dim + group.rope_dim)
        elif isinstance(group, StateLayers):
            state += group.count * group.state_bytes_per_sequence
    return Traffic(
        layers=model.layer_count,
        expert_layers=model.layer_count - model.experts.dense_layers if model.experts else 0,
        shared_bytes=repeating - experts if model.experts and parts.expert_bytes else repeating,
        expert_bytes=experts,
        experts_used_ratio=used,
        output_bytes=output,
        limit_bytes=limit,
        active_parameters=model.active_parameters or model.parameters,
        cache_bytes_per_token=cache,
        windows=tuple(windows),
        state_bytes=state,
        hidden_size=model.hidden_size,
        attention_flops_per_pair=attention,
    )


@dataclass(frozen=True, slots=True)
class Share:
    """One memory bus and the part of the model that runs from it."""

    kernel: Kernel
    bandwidth_bytes_per_s: float
    fp32_flops_per_s: float | None
    fp16_flops_per_s: float | None
    layers: float
    """Share of the layers, their cache and their shared weights, 0 to 1."""
    experts: float
    """Share of the routed experts."""
    output: float
    """1 for the bus that the output matrix is on, else 0."""
    link_bytes_per_s: float | None = None
    """To the other devices, per direction."""
    devices: int = 1
    """That hold this share together under tensor parallelism."""
    is_host: bool = False

    def weights_bytes(self, work: Traffic, tokens: float = 1.0) -> float:
        """Read from each device's bus by one step."""
        routed = self.experts * work.expert_bytes * work.experts_ratio(tokens)
        return (self.layers * work.shared_bytes + self.output * work.output_bytes + routed) / self.devices


def decode_demands(
    work: Traffic, shares: tuple[Share, ...], depth_tokens: float, bytes_per_value: float = 2.0, users: float = 1.0
) -> list[Demand]:
    """One step in which each of `users` gets one token."""
    cache = work.cache_bytes(depth_tokens, bytes_per_value) * users
    demands: list[Demand] = []
    for number, share in enumerate(shares):
        bandwidth = share.bandwidth_bytes_per_s
        demands.append(("memory", number, share.weights_bytes(work, users) / bandwidth))
        demands.append(("cache", number, share.layers * cache / share.devices / bandwidth))
        layers = share.layers * work.layers
        demands.append(("layer", number, layers * LAYER_S))
        if work.expert_layers:
            demands.append(("experts", number, share.experts * work.expert_layers * LAYER_S))
        if work.active_parameters:
            operations = 2 * work.active_parameters * (share.layers + share.experts) / 2 / share.devices
            if share.fp32_flops_per_s:
                demands.append(("compute", number, operations / share.fp32_flops_per_s))
            rate = share.fp16_flops_per_s or share.fp32_flops_per_s
            if users > 1 and rate:
                demands.append(("batch", number, operations * (users - 1) / rate))
        if share.devices > 1:
            demands.append(("sync", number, layers * LAYER_S))
    demands.append(("step", 0, STEP_S))
    if len(shares) > 1:
        demands.append(("hop", 0, (len(shares) - 1) * SEQUENCE_S))
    if users > 1:
        demands.append(("sequence", 0, (users - 1) * SEQUENCE_S))
    return demands


def prompt_demands(
    work: Traffic,
    shares: tuple[Share, ...],
    prompt_tokens: float,
    depth_tokens: float = 0.0,
    batch_tokens: int = 512,
    prompts: float = 1.0,
) -> list[Demand] | None:
    """Reading `prompts` prompts of `prompt_tokens` behind `depth_tokens` of context; None where a rate is not known.

    llama.cpp computes prompts on the accelerator also for layers that lie in host memory, and copies their weights over
    the link once a step.
    """
    if not work.active_parameters:
        return None
    demands: list[Demand] = []
    total = prompt_tokens * prompts
    steps = max(1.0, total / batch_tokens)
    tokens = min(total, batch_tokens)
    for index, share in enumerate(shares):
        copied = share.is_host and not shares[0].is_host
        rate, bus = share.fp16_flops_per_s or share.fp32_flops_per_s, share.bandwidth_bytes_per_s
        number = 0 if copied else index
        if copied:
            rate = shares[0].fp16_flops_per_s or shares[0].fp32_flops_per_s
            bus = min(bus, shares[0].link_bytes_per_s or DEFAULT_LINK_BYTES_PER_S)
        if not rate:
            return None
        part = (share.layers + share.experts) / 2
        demands.append(("prompt_compute", number, 2 * work.active_parameters * part * total / rate / share.devices))
        pairs = total * (depth_tokens + prompt_tokens / 2)
        operations = work.attention_flops_per_pair * share.layers * pairs
        demands.append(("prompt_attention", number, operations / rate / share.devices))
        streamed = share.weights_bytes(work, tokens)
        demands.append(("prompt_memory", number, steps * streamed / bus))
        demands.append(("prompt_layer", number, steps * share.layers * work.layers * LAYER_S))
        if share.devices > 1:
            # Two sums over all devices a layer, of 16-bit activations; each device sends nearly twice that.
            exchanged = 2 * share.layers * work.layers * work.hidden_size * 2 * total * 2 * (1 - 1 / share.devices)
            demands.append(("prompt_sync", number, exchanged / (share.link_bytes_per_s or DEFAULT_LINK_BYTES_PER_S)))
    demands.append(("prompt_request", 0, REQUEST_S))
    return demands


def seconds(demands: list[Demand], coefficients: Sequence[Mapping[str, float]]) -> float:
    """Expected time: each demand times the coefficient that its share has for its term."""
    return sum(ideal_s * coefficients[number][term] for term, number, ideal_s in demands)
