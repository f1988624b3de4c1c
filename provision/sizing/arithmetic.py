"""A decode ceiling in words: which bytes pass which memory bus for one token, and what a claimed rate would need."""

from __future__ import annotations

from dataclasses import dataclass

from provision.domain.hardware import Machine
from provision.domain.plan import Candidate
from provision.units import format_bandwidth, format_seconds, format_tokens_per_s


@dataclass(frozen=True, slots=True)
class _Bus:
    name: str
    share: float
    """Of the layers."""
    bandwidth_bytes_per_s: float


def decode_arithmetic(machine: Machine, candidate: Candidate, claimed_tokens_per_s: float) -> str:
    """`; one token streams 16.06 GB ...`, or nothing where the ceiling is not known.

    The bytes are those that the ceiling was computed from: layers are taken as equal, as the ceiling takes them.
    """
    decode = candidate.speed.decode_tokens_per_s if candidate.speed else None
    buses = _buses(machine, candidate)
    if decode is None or decode.ceiling is None or not buses:
        return ""
    ceiling = format_tokens_per_s(decode.ceiling)
    total = 1 / decode.ceiling / sum(bus.share / bus.bandwidth_bytes_per_s for bus in buses)
    if len(buses) == 1:
        (bus,) = buses
        text = (
            f"; one token streams {_gb(total)}, and {format_bandwidth(bus.bandwidth_bytes_per_s)} / {_gb(total)} are "
            f"{ceiling} tokens/s at most"
        )
        if claimed_tokens_per_s > decode.ceiling:
            text += f"; {format_tokens_per_s(claimed_tokens_per_s)} would need {_rate(total * claimed_tokens_per_s)}"
        return text
    parts = [
        f"{_gb(total * bus.share)} from {bus.name} at {format_bandwidth(bus.bandwidth_bytes_per_s)} "
        f"({format_seconds(total * bus.share / bus.bandwidth_bytes_per_s)})"
        for bus in buses
    ]
    layers = f"{candidate.placement.gpu_layers} of {candidate.placement.layers} layers are on the GPU"
    text = f"; {layers}, so one token streams {' and '.join(parts)}: {ceiling} tokens/s at most"
    if claimed_tokens_per_s > decode.ceiling:
        text += (
            f"; {format_tokens_per_s(claimed_tokens_per_s)} leave {format_seconds(1 / claimed_tokens_per_s)} a token"
        )
    return text


def _buses(machine: Machine, candidate: Candidate) -> list[_Bus]:
    """Memory that a token's bytes come through, cards of one bandwidth taken together; none where one is unknown."""
    placement = candidate.placement
    by_bandwidth: dict[float, int] = {}
    for index, layers in enumerate(placement.split):
        bandwidth = machine.pool_of(machine.accelerators[index]).bandwidth_bytes_per_s
        if layers and bandwidth is None:
            return []
        if layers and bandwidth is not None:
            by_bandwidth[bandwidth] = by_bandwidth.get(bandwidth, 0) + layers
    buses = [_Bus("VRAM", layers / placement.layers, rate) for rate, layers in by_bandwidth.items()]
    on_host = placement.layers - placement.gpu_layers
    if on_host:
        host = machine.memory.bandwidth_bytes_per_s
        if host is None:
            return []
        buses.append(_Bus("host memory", on_host / placement.layers, host))
    return buses


def _gb(size_bytes: float) -> str:
    """Decimal, as bandwidths are."""
    return f"{size_bytes / 1e9:.2f} GB"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:,.0f} GB/s"
