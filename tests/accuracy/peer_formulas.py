"""What other tools compute, restated from what they publish: pure functions of true facts about model and hardware.

Read in the versions of `VERSIONS`. Each tool is given the true parameter count, architecture and bandwidth, which is
kinder than what it does alone: a bandwidth or a model missing from its tables is no error here. What a formula needs
and the facts do not have makes it answer None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

VERSIONS = {
    "llmfit": "1.1.10 at 3f44fd3; partial offload as 1.1.17 does it",
    "whichllm": "0.5.21",
    "ggufit": "0.3.0",
    "fitlab": "0.1.1",
    "clickllm": "1.2.2",
    "localdeploy": "0.6.3",
    "llm-cal": "0.2.0",
    "llmvram": "1.7.0",
    "Ollama": "0.33, PredictServerVRAM at fb3076099",
}

_GB, _GIB = 1e9, 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One model on one accelerator. None is unknown."""

    quantization: str
    bandwidth_bytes_per_s: float
    vendor: str
    is_unified: bool = False
    capacity_bytes: float | None = None
    weights_bytes: float | None = None
    parameters: float | None = None
    active_parameters: float | None = None
    """None for dense models."""
    is_moe: bool = False
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    latent_dim: int | None = None
    """Of latent attention, rope part included."""
    vocabulary: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    expert_size: int | None = None
    shared_expert_size: int = 0
    context_tokens: float = 0.0
    """Tokens in the context: of a speed those that were there, of memory those that are allocated."""
    gpu_share: float = 1.0
    """Of the layers."""
    host_bandwidth_bytes_per_s: float | None = None

    @property
    def kv_bytes_per_token(self) -> float | None:
        """With 16-bit values, every layer with full attention and the true heads: what all of them assume."""
        if None in (self.layers, self.kv_heads, self.key_dim, self.value_dim):
            return None
        return self.layers * self.kv_heads * (self.key_dim + self.value_dim) * 2.0  # type: ignore[operator]

    @property
    def latent_bytes_per_token(self) -> float | None:
        if self.latent_dim is None or self.layers is None:
            return self.kv_bytes_per_token
        return self.layers * self.latent_dim * 2.0


Formula = Callable[[Facts], float | None]


def _per_weight(table: Mapping[str, float], quantization: str, otherwise: float | None) -> float | None:
    """Of a table by quantization; a mix that it does not name is taken for the one whose name begins most alike."""
    name = quantization.upper().removeprefix("UD-").replace("BF16", "F16").replace("FP16", "F16")
    nearest = max(table, key=lambda key: _alike(key, name))
    return table[nearest] if _alike(nearest, name) >= 2 else otherwise


def _alike(first: str, second: str) -> int:
    """How many letters both begin with."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


# llmfit

_LLMFIT_MEMORY = {
    "F32": 4.0, "F16": 2.0, "Q8_0": 1.05, "Q6_K": 0.80, "Q5_K_M": 0.68, "Q4_K_M": 0.58, "Q4_0": 0.58,
    "Q3_K_M": 0.48, "Q2_K": 0.37,
}  # fmt: skip
_LLMFIT_SPEED = {
    "F16": 2.0, "Q8_0": 1.0, "Q6_K": 0.75, "Q5_K_M": 0.625, "Q4_K_M": 0.5, "Q4_0": 0.5, "Q3_K_M": 0.375, "Q2_K": 0.25,
}  # fmt: skip
_LLMFIT_EFFICIENCY = 0.55
_LLMFIT_OVERHEAD_GB = 0.5
_LLMFIT_FIXED_BYTES = 3.2
"""Per parameter that every token goes through in a mixture of experts, whatever the quantization."""


def llmfit_speed(facts: Facts) -> float | None:
    if facts.parameters is None:
        return None
    if facts.is_moe:
        return _llmfit_moe(facts)
    weights = facts.parameters * (_per_weight(_LLMFIT_SPEED, facts.quantization, 0.5) or 0.5)
    if facts.gpu_share >= 1:
        return facts.bandwidth_bytes_per_s / weights * _LLMFIT_EFFICIENCY
    if not facts.host_bandwidth_bytes_per_s:
        return None
    on_gpu = weights * facts.gpu_share / (facts.bandwidth_bytes_per_s * _LLMFIT_EFFICIENCY)
    return 1 / (on_gpu + weights * (1 - facts.gpu_share) / facts.host_bandwidth_bytes_per_s)


def _llmfit_moe(facts: Facts) -> float | None:
    if facts.gpu_share < 1:
        return None
    per_weight = _per_weight(_LLMFIT_MEMORY, facts.quantization, 0.58) or 0.58
    pressure = _llmfit_pressure(facts, per_weight)
    shape = (
        facts.hidden, facts.layers, facts.experts_used, facts.expert_size, facts.vocabulary, facts.heads,
        facts.kv_heads, facts.key_dim,
    )  # fmt: skip
    if None not in shape:
        hidden, layers, used, size, vocabulary, heads, kv_heads, head_dim = (float(value or 0) for value in shape)
        routed = layers * used * 3 * hidden * size
        attention = layers * 2 * hidden * head_dim * (heads + kv_heads)
        shared = layers * hidden * (3 * facts.shared_expert_size + (facts.experts or 8))
        fixed = attention + shared + 2 * vocabulary * hidden
        return facts.bandwidth_bytes_per_s / (routed * per_weight + fixed * _LLMFIT_FIXED_BYTES) * pressure
    if facts.active_parameters is None:
        return None
    steps = ((8, 0.90), (16, 0.85), (32, 0.80), (64, 0.70))
    experts = facts.experts
    overhead = 0.60 if experts is None else next((f for limit, f in steps if experts <= limit), 0.40)
    active = facts.active_parameters * per_weight
    return facts.bandwidth_bytes_per_s / active * _LLMFIT_EFFICIENCY * overhead * pressure


def _llmfit_pressure(facts: Facts, per_weight: float) -> float:
    if facts.capacity_bytes is None or facts.parameters is None:
        return 1.0
    used = facts.parameters * per_weight / facts.capacity_bytes
    if not 0.6 <= used <= 1.0:
        return 1.0
    inactive = 1 - (facts.experts_used or 1) / facts.experts if facts.experts else 0.5
    return max(0.3, 1 - (used - 0.6) * inactive)


def llmfit_memory(facts: Facts) -> float | None:
    if facts.parameters is None:
        return None
    weights = facts.parameters * (_per_weight(_LLMFIT_MEMORY, facts.quantization, 0.58) or 0.58)
    per_token = facts.kv_bytes_per_token
    cache = facts.parameters * 8e-6 if per_token is None else per_token
    return weights + cache * facts.context_tokens + _LLMFIT_OVERHEAD_GB * _GB


# whichllm

_WHICHLLM_EFFICIENCY = {
    "F16": 0.40, "Q8_0": 0.45, "Q6_K": 0.50, "Q5_K_M": 0.52, "Q5_K_S": 0.52, "Q5_0": 0.50, "Q4_K_M": 0.55,
    "Q4_K_S": 0.55, "Q4_0": 0.53, "NVFP4": 0.56, "MXFP4": 0.55, "Q3_K_M": 0.50, "Q3_K_S": 0.48, "Q2_K": 0.45,
    "IQ4_XS": 0.52, "IQ4_NL": 0.50, "IQ3_S": 0.45,
}  # fmt: skip
_WHICHLLM_VENDOR = {"nvidia": 1.0, "amd": 0.78, "apple": 0.82, "intel": 0.65}
_WHICHLLM_RANGE = (0.60, 1.60)
"""Of the estimate: what its medium confidence says."""


def whichllm_speed(facts: Facts) -> float | None:
    if facts.weights_bytes is None:
        return None
    read = facts.weights_bytes
    if facts.is_moe:
        if not facts.active_parameters or not facts.parameters:
            return None
        floor = min(0.25, 0.05 * max(1.0, facts.bandwidth_bytes_per_s / 256e9))
        read *= min(1.0, max(facts.active_parameters / facts.parameters, floor))
    efficiency = (_per_weight(_WHICHLLM_EFFICIENCY, facts.quantization, 0.45) or 0.45) * _WHICHLLM_VENDOR.get(
        facts.vendor, 0.7
    )
    if facts.gpu_share < 1:
        efficiency *= 0.85 if facts.is_unified else 0.45
    return facts.bandwidth_bytes_per_s / read * efficiency


def whichllm_interval(facts: Facts) -> tuple[float, float] | None:
    expected = whichllm_speed(facts)
    return None if expected is None else (expected * _WHICHLLM_RANGE[0], expected * _WHICHLLM_RANGE[1])


def whichllm_memory(facts: Facts) -> float | None:
    """With the exact file size, which it has where the hub lists one."""
    if facts.weights_bytes is None or facts.parameters is None:
        return None
    effective = (facts.active_parameters or facts.parameters) if facts.is_moe else facts.parameters
    attention = effective * 4 if facts.is_moe and facts.active_parameters else facts.parameters
    cache = attention / 1e9 * facts.context_tokens / 1024 * 3.5 * 2**20
    activations = 400e6 + 0.08 * effective + facts.context_tokens / 4096 * 150e6
    return facts.weights_bytes + cache + activations + 0.5 * _GB


# ggufit

_GGUFIT = {"F32": 4.0, "F16": 2.0, "Q8": 1.05, "Q6": 0.8, "Q5": 0.7, "Q4": 0.6, "Q3": 0.5, "Q2": 0.4}


def _ggufit_weights_gib(facts: Facts, parameters: float) -> float | None:
    per_weight = _per_weight(
        _GGUFIT, facts.quantization[:2] if facts.quantization[:1] == "Q" else facts.quantization, None
    )
    return None if per_weight is None else parameters * per_weight / _GIB


def ggufit_speed(facts: Facts) -> float | None:
    """Gibibytes over gigabytes a second, as it divides them."""
    parameters = facts.active_parameters if facts.is_moe else facts.parameters
    read_gib = _ggufit_weights_gib(facts, parameters) if parameters else None
    if read_gib is None:
        return None
    seconds = read_gib * facts.gpu_share / (facts.bandwidth_bytes_per_s / _GB * 0.80)
    if facts.gpu_share < 1:
        if not facts.host_bandwidth_bytes_per_s:
            return None
        seconds += read_gib * (1 - facts.gpu_share) / (facts.host_bandwidth_bytes_per_s / _GB * 0.85)
    return 1 / seconds


def ggufit_interval(facts: Facts) -> tuple[float, float] | None:
    expected = ggufit_speed(facts)
    return None if expected is None else (expected * 0.7, expected * 1.3)


def ggufit_memory(facts: Facts) -> float | None:
    weights_gib = _ggufit_weights_gib(facts, facts.parameters) if facts.parameters else None
    per_token = facts.latent_bytes_per_token
    if weights_gib is None or per_token is None:
        return None
    return (weights_gib * 1.05 + 0.6) * _GIB + per_token * facts.context_tokens


# fitlab

_FITLAB_BITS = {
    "Q2_K": 2.6, "Q3_K_M": 3.9, "Q4_0": 4.55, "Q4_K_M": 4.85, "Q5_K_M": 5.7, "Q6_K": 6.6, "Q8_0": 8.5, "MXFP4": 4.25,
    "F16": 16.0,
}  # fmt: skip


def fitlab_speed(facts: Facts) -> float | None:
    parameters = facts.active_parameters if facts.is_moe else facts.parameters
    bits = _per_weight(_FITLAB_BITS, facts.quantization, None)
    if not parameters or bits is None or facts.gpu_share < 1:
        return None
    read = parameters * bits / 8 + (facts.kv_bytes_per_token or 0.0) * 64
    return 0.62 * facts.bandwidth_bytes_per_s / read


def fitlab_memory(facts: Facts) -> float | None:
    bits, per_token = _per_weight(_FITLAB_BITS, facts.quantization, None), facts.kv_bytes_per_token
    if not facts.parameters or bits is None or per_token is None:
        return None
    return facts.parameters * bits / 8 * 1.03 + per_token * facts.context_tokens + 0.9 * _GB


# clickllm

_CLICKLLM_BITS = {"F16": 16.0, "FP8": 8.0, "Q8": 8.0, "Q6": 6.0, "Q5": 5.0, "Q4": 4.5, "Q3": 3.5}


def _clickllm_bits(facts: Facts) -> float | None:
    name = facts.quantization.upper().removeprefix("UD-")
    return _per_weight(_CLICKLLM_BITS, name[:2] if name[:1] == "Q" else name, None)


def clickllm_speed(facts: Facts) -> float | None:
    """Its cache term counts the whole context; here the context of the measurement."""
    parameters, bits = facts.active_parameters if facts.is_moe else facts.parameters, _clickllm_bits(facts)
    if not parameters or bits is None or facts.gpu_share < 1:
        return None
    read = parameters * bits / 8 + (facts.latent_bytes_per_token or 0.0) * facts.context_tokens
    return 0.72 * facts.bandwidth_bytes_per_s / read


def clickllm_memory(facts: Facts) -> float | None:
    bits, per_token = _clickllm_bits(facts), facts.latent_bytes_per_token
    if not facts.parameters or bits is None or per_token is None:
        return None
    weights = facts.parameters * bits / 8
    return weights * 1.08 + 1.5 * _GIB + per_token * facts.context_tokens


# localdeploy, llm-cal, llmvram, Ollama

_LOCALDEPLOY_GB = {"F16": 2.0, "Q8": 1.0, "Q6": 0.75, "Q5": 0.65, "Q4": 0.5, "Q3": 0.42, "Q2": 0.34}


def localdeploy_memory(facts: Facts) -> float | None:
    if not facts.parameters:
        return None
    name = facts.quantization.upper()
    per_billion = next((gb for kind, gb in _LOCALDEPLOY_GB.items() if kind in name), 0.55)
    billions = facts.parameters / 1e9
    return (billions * per_billion + 0.07 * billions * facts.context_tokens / 1024 + 0.8) * _GB


def llm_cal_speed(facts: Facts) -> float | None:
    """Half of the roofline of all weights."""
    if facts.weights_bytes is None or facts.gpu_share < 1:
        return None
    return 0.50 * facts.bandwidth_bytes_per_s / facts.weights_bytes


def llmvram_speed(facts: Facts) -> float | None:
    """The roofline itself."""
    if facts.weights_bytes is None or facts.gpu_share < 1:
        return None
    return facts.bandwidth_bytes_per_s / facts.weights_bytes


def ollama_memory(facts: Facts) -> float | None:
    """What its scheduler holds against the free memory before it loads: no compute buffer."""
    if facts.weights_bytes is None or None in (facts.layers, facts.hidden, facts.heads, facts.kv_heads):
        return None
    per_token = 2 * facts.layers * facts.kv_heads * (facts.hidden / facts.heads) * 2  # type: ignore[operator]
    return facts.weights_bytes + per_token * facts.context_tokens


SPEED: dict[str, Formula] = {
    "llmfit": llmfit_speed,
    "whichllm": whichllm_speed,
    "ggufit": ggufit_speed,
    "fitlab": fitlab_speed,
    "clickllm": clickllm_speed,
    "llm-cal": llm_cal_speed,
    "llmvram": llmvram_speed,
}
INTERVALS: dict[str, Callable[[Facts], tuple[float, float] | None]] = {
    "whichllm": whichllm_interval,
    "ggufit": ggufit_interval,
}
MEMORY: dict[str, Formula] = {
    "llmfit": llmfit_memory,
    "whichllm": whichllm_memory,
    "ggufit": ggufit_memory,
    "fitlab": fitlab_memory,
    "clickllm": clickllm_memory,
    "localdeploy": localdeploy_memory,
    "Ollama": ollama_memory,
}
