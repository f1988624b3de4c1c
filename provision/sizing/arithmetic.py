"""A decode ceiling in words: which bytes pass which memory bus for one token, and what a claimed rate would need."""

from __future__ import annotations

from provision.domain.plan import Placement
from provision.sizing.speed import Setup
from provision.units import format_bandwidth, format_seconds, format_tokens_per_s


def decode_arithmetic(setup: Setup, placement: Placement, depth_tokens: float, claimed_tokens_per_s: float) -> str:
    """`one token streams 16.06 GB ...`: the sum behind `Setup.limit_s`, and what the claimed rate would take.

    Bytes and bandwidths are decimal, as vendors give them.
    """
    limit_s = setup.limit_s(depth_tokens)
    ceiling = format_tokens_per_s(1 / limit_s)
    claimed = format_tokens_per_s(claimed_tokens_per_s)
    buses = _buses(setup, depth_tokens)
    too_much = claimed_tokens_per_s > 1 / limit_s
    if len(buses) == 1:
        (_, streamed, bandwidth) = buses[0]
        text = (
            f"one token streams {_gb(streamed)}, and {format_bandwidth(bandwidth)} / {_gb(streamed)} are {ceiling} "
            "tokens/s at most"
        )
        return f"{text}; {claimed} would need {format_bandwidth(streamed * claimed_tokens_per_s)}" if too_much else text
    parts = " and ".join(
        f"{_gb(streamed)} from {name} at {format_bandwidth(bandwidth)} ({format_seconds(streamed / bandwidth)})"
        for name, streamed, bandwidth in buses
    )
    if placement.gpu_layers < placement.layers:
        where = f"{placement.gpu_layers} of {placement.layers} layers are on the GPU, so one token streams"
    elif placement.expert_layers_on_host:
        where = f"the experts of {placement.expert_layers_on_host} of {placement.layers} layers are in host memory, so"
        where += " one token streams"
    else:
        where = "one token streams"
    text = f"{where} {parts}: {ceiling} tokens/s at most"
    return f"{text}; {claimed} leave {format_seconds(1 / claimed_tokens_per_s)} a token" if too_much else text


def _buses(setup: Setup, depth_tokens: float) -> list[tuple[str, float, float]]:
    """Name, bytes for one token and bandwidth of each kind of memory in use; cards of one bandwidth taken together."""
    work = setup.work
    cache = work.cache_bytes(depth_tokens, setup.kv_bytes_per_value)
    scale = work.limit_bytes / (work.weights_bytes() or 1.0)
    found: dict[tuple[str, float], float] = {}
    for share in setup.shares:
        key = ("host memory" if share.is_host else "VRAM", share.bandwidth_bytes_per_s)
        streamed = share.weights_bytes(work) * scale + share.layers * cache / share.devices
        found[key] = found.get(key, 0.0) + streamed
    return [(name, streamed, bandwidth) for (name, bandwidth), streamed in found.items()]


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
