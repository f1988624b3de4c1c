"""Which ggml type each tensor of a GGUF file has: block sizes, and the mixes that `llama-quantize` writes.

The rules are llama.cpp's own (src/llama-quant.cpp), restated: a mix names a base type, and some tensors of some layers
get a better one. Files made with an importance matrix differ in a few tensors of Q4_0, Q5_0 and IQ3_XXS; makers' own
recipes (`UD-*`, `*_XL`, ik_llama.cpp's mixes) have no definite rule, so their layers are scaled to the published size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

BLOCK = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20),
    "Q5_0": (32, 22), "Q5_1": (32, 24), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144),
    "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136), "MXFP4": (32, 17), "TQ1_0": (256, 54), "TQ2_0": (256, 66),
}  # fmt: skip
"""ggml type: (values, bytes) of one block."""

_BASE = {
    "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S",
}  # fmt: skip
"""Base type of the mixes that are not named after it."""

_FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
"""For rows that are not a whole number of blocks; the IQ types fall back to IQ4_NL."""

_TINY = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
_QKV = {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "IQ3_M": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}
"""Fused projections, as published files have them (Phi 3.1 mini and Phi 4 in Q4_K_M match to the byte). Versions of
2026 treat them, and the joined expansion of latent attention, like a value matrix instead."""


@dataclass(frozen=True, slots=True)
class MixShape:
    """What of a model's shape the rules look at."""

    layers: int
    query_heads_per_kv_head: int
    experts: int
    tied: bool
    is_70b: bool
    """Llama's 80-layer model: many query heads share one value head, so the value matrix is kept better."""


def mix_of(quantization: str) -> str | None:
    """The `llama-quantize` mix that a file label names, or the nearest one of a maker's own label (`UD-Q4_K_XL`,
    `Q4_K - Medium`, `IQ4_K_R4`); None where none is near."""
    name = quantization.upper().replace("MOSTLY_", "").removeprefix("UD-").replace("I1-", "")
    for word, letter in ((" - MEDIUM", "_M"), (" - SMALL", "_S"), (" - LARGE", "_L")):
        name = name.replace(word, letter)
    name = name.removesuffix("_R4").removesuffix("_R8").replace("_XL", "_M").split(" ")[0]
    if name in ("Q2_K_M", "Q2_K_L"):
        name = "Q2_K"
    if name.startswith(("Q8_", "Q6_K")):
        name = name[:4]
    if name == "Q4_K_L":
        name = "Q4_K_M"
    if name == "Q5_K_L":
        name = "Q5_K_M"
    if name in ("Q3_K", "Q4_K", "Q5_K"):
        name += "_M"
    if name.startswith("MXFP4"):
        name = "MXFP4"
    return name if name in BLOCK or name in _BASE else None


def has_definite_rule(quantization: str) -> bool:
    """Whether the label is one of `llama-quantize`'s own, so that bytes follow from the shape alone."""
    name = quantization.upper()
    return name in BLOCK or name in _BASE


def fitting_type(ggml_type: str, columns: int) -> str:
    """`ggml_type`, or what stands in for it where a row is not a whole number of its blocks."""
    if columns % BLOCK[ggml_type][0]:
        ggml_type = _FALLBACK.get(ggml_type, "IQ4_NL" if ggml_type.startswith("IQ") else "F16")
        if columns % BLOCK[ggml_type][0]:
            return "F16"
    return ggml_type


def row_bytes(ggml_type: str, columns: int) -> float:
    """Bytes of one row; a row that is not a whole number of blocks is stored in the fallback type."""
    values, size = BLOCK[fitting_type(ggml_type, columns)]
    return columns // values * size


def end_type(mix: str, shape: MixShape, *, output: bool, columns: int) -> str:
    """Of the output matrix, or of the input embedding table; a table that serves as both is typed as the output."""
    base = _BASE.get(mix, mix)
    if base in ("F32", "F16", "BF16"):
        return base
    if mix == "MXFP4":
        return "Q8_0"
    if output or shape.tied:
        if columns % BLOCK[base][0]:
            return "Q8_0"
        if mix in _TINY or mix == "IQ3_XXS":
            return "Q5_K"
        return "Q8_0" if base == "Q8_0" else "Q6_K"
    if mix in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
        return "Q2_K"
    if mix in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
        return "IQ3_S"
    return "Q4_K" if base.startswith("TQ") else base


def layer_type(mix: str, shape: MixShape, role: str, layer: int, *, order: int | None = None) -> str:
    """Type of one matrix of a repeating layer.

    `role` is q, k, v, qkv, kv_b, o, gate, up, down, experts_up (and gate), experts_down or other; `layer` the layer's
    index, `order` its rank among the layers that have such a matrix where that differs.
    """
    base = _BASE.get(mix, mix)
    if base in ("F32", "F16", "BF16"):
        return base
    if mix == "MXFP4":
        return "MXFP4" if role.startswith("experts") else "Q8_0"
    role = {"experts_up": "up", "experts_down": "down"}.get(role, role)
    index = layer if order is None else order
    if mix in _TINY:
        return _tiny(mix, base, shape, role, index)
    if role == "v":
        return _value(mix, base, shape, index)
    if role == "qkv":
        return _QKV.get(mix, base)
    if role == "k" or role == "q":
        if role == "k" and shape.experts == 8:
            return "Q8_0"
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(mix, base)
    if role == "down":
        return _down(mix, base, shape, index)
    if role == "o":
        return _attention_output(mix, base, shape)
    if role in ("up", "gate") and mix == "IQ3_XS" and shape.layers // 8 <= index < 7 * shape.layers // 8:
        return "IQ3_XXS"
    return base


@lru_cache(maxsize=2048)
def layer_classes(mix: str, layers: int) -> tuple[int, ...]:
    """For each layer its class: layers of one class have the same type for every role, whatever else the shape is."""
    eighth = layers // 8
    if mix in ("Q4_K_M", "Q5_K_M"):
        return tuple(int(_more_bits(layer, layers)) for layer in range(layers))
    if mix == "IQ3_M":
        return tuple(2 * (layer < eighth) + _more_bits(layer, layers) for layer in range(layers))
    bounds = {"Q3_K_M": (2, layers // 16), "Q4_K_S": (4, eighth), "IQ3_XS": (eighth, 7 * layers // 8)}.get(
        mix, (eighth,) if mix in _TINY or mix == "Q2_K_S" else ()
    )
    return tuple(sum(layer >= bound for bound in bounds) for layer in range(layers))


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _tiny(mix: str, base: str, shape: MixShape, role: str, index: int) -> str:
    """The mixes of two bits and less have rules of their own."""
    better = "IQ3_S" if mix in ("IQ2_S", "IQ2_M") else "Q2_K"
    if role == "v":
        return "Q4_K" if shape.query_heads_per_kv_head >= 4 or shape.experts >= 4 else better
    if role == "k" and shape.experts == 8:
        return "Q4_K"
    if role == "down" and index < shape.layers // 8:
        return better
    if role == "o":
        if shape.experts == 8:
            return "Q5_K"
        return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(mix, base)
    return base


def _value(mix: str, base: str, shape: MixShape, index: int) -> str:
    grouped = shape.query_heads_per_kv_head >= 4
    chosen = base
    if mix == "Q2_K":
        chosen = "Q4_K" if grouped else "Q3_K"
    elif mix in ("Q2_K_S", "IQ3_XS", "IQ3_S") and grouped:
        chosen = "Q4_K"
    elif mix == "IQ3_XXS":
        chosen = "Q4_K" if grouped else "IQ3_XXS"
    elif mix == "IQ3_M":
        chosen = "Q4_K"
    elif mix == "Q3_K_M":
        chosen = "Q5_K" if index < 2 else "Q4_K"
    elif mix == "Q3_K_L" or (mix in ("IQ4_NL", "IQ4_XS") and grouped) or (mix == "Q4_K_S" and index < 4):
        chosen = "Q5_K"
    elif mix in ("Q4_K_M", "Q5_K_M") and _more_bits(index, shape.layers):
        chosen = "Q6_K"
    if shape.is_70b and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"
    return "Q8_0" if shape.experts == 8 else chosen


def _down(mix: str, base: str, shape: MixShape, index: int) -> str:
    early = index < shape.layers // 8
    if mix == "Q2_K":
        return "Q3_K"
    if mix == "Q2_K_S":
        return "Q4_K" if early else base
    if mix == "Q3_K_M":
        return "Q5_K" if index < shape.layers // 16 else "Q4_K"
    if mix == "IQ3_M" and (early or (shape.experts == 8 and _more_bits(index, shape.layers))):
        return "Q4_K"
    if mix == "Q3_K_L":
        return "Q5_K"
    if mix in ("Q4_K_M", "Q5_K_M") and _more_bits(index, shape.layers):
        return "Q6_K"
    return "Q5_K" if mix == "Q4_K_S" and early else base


def _attention_output(mix: str, base: str, shape: MixShape) -> str:
    if shape.experts == 8:
        better = ("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M",
                  "IQ4_XS")  # fmt: skip
        return "Q5_K" if mix in better else base
    return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(mix, base)
