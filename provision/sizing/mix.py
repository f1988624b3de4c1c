"""Which type every tensor of a GGUF gets: llama.cpp's quantization mixes.

A mix such as Q4_K_M names the type of most matrices; some get a better one, by their role and layer, and matrices whose
rows are no multiple of the block fall back to a type of smaller blocks. Source of the rules: llama.cpp's quantize
(src/llama-quant.cpp), without an importance matrix; of the block sizes: ggml's type table.

Files that their publisher mixed by hand (dynamic quantizations, types set tensor by tensor) are not covered: their own
header says what they hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from provision.domain.llm import AttentionLayers, ModelSpec
from provision.errors import InvalidFile
from provision.sizing.tensors import Tensor, tensors


@dataclass(frozen=True, slots=True)
class TensorType:
    number: int
    """In GGUF files."""
    block_values: int
    block_bytes: int

    def bytes_of(self, tensor: Tensor) -> int:
        return tensor.values // self.block_values * self.block_bytes


TENSOR_TYPES: Final = {
    "F32": TensorType(0, 1, 4),
    "F16": TensorType(1, 1, 2),
    "BF16": TensorType(30, 1, 2),
    "Q4_0": TensorType(2, 32, 18),
    "Q4_1": TensorType(3, 32, 20),
    "Q5_0": TensorType(6, 32, 22),
    "Q5_1": TensorType(7, 32, 24),
    "Q8_0": TensorType(8, 32, 34),
    "Q2_K": TensorType(10, 256, 84),
    "Q3_K": TensorType(11, 256, 110),
    "Q4_K": TensorType(12, 256, 144),
    "Q5_K": TensorType(13, 256, 176),
    "Q6_K": TensorType(14, 256, 210),
    "IQ4_NL": TensorType(20, 32, 18),
    "IQ4_XS": TensorType(23, 256, 136),
    "MXFP4": TensorType(39, 32, 17),
}

_BASE = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1",
    "Q8_0": "Q8_0", "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
    "MXFP4": "BF16",
}  # fmt: skip
"""Mix to the type of most matrices. MXFP4 is gpt-oss as published: only the experts' matrices are in it."""

_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}


def tensor_types(model: ModelSpec, quantization: str, *, expanded_latent: bool = False) -> tuple[str, ...]:
    """The type of each of `tensors(model)`, a key of TENSOR_TYPES, in a file quantized to `quantization`.

    Raises InvalidFile for an architecture or a mix that is not known.
    """
    if quantization not in _BASE:
        raise InvalidFile(
            f"the mix of quantization {quantization} is not known",
            hint="provision catalog add FILE.gguf reads a file's own",
            code="unknown-quantization",
        )
    mix = _Mix(model, quantization)
    return tuple(mix.type_of(tensor) for tensor in tensors(model, expanded_latent=expanded_latent))


def tensor_bytes(model: ModelSpec, quantization: str, *, expanded_latent: bool = False) -> tuple[int, ...]:
    """Bytes of each of `tensors(model)`. Raises as `tensor_types`."""
    parts = tensors(model, expanded_latent=expanded_latent)
    kinds = tensor_types(model, quantization, expanded_latent=expanded_latent)
    return tuple(TENSOR_TYPES[kind].bytes_of(tensor) for tensor, kind in zip(parts, kinds, strict=True))


class _Mix:
    """The rules look at how many value matrices came before, so one instance sees the tensors of one model in order."""

    def __init__(self, model: ModelSpec, quantization: str) -> None:
        self._model = model
        self._mix = quantization
        self._base = _BASE[quantization]
        self._layers = model.layer_count
        self._experts = model.experts.count if model.experts else 0
        # The one of the first layer: the shapes of all layers that quantize looks at are alike.
        group = model.layers[0]
        kv_heads = group.kv_heads if isinstance(group, AttentionLayers) else 1
        self._queries_per_key = model.attention_heads // kv_heads
        self._is_70b = model.layer_count == 80 and model.architecture in ("llama", "qwen2")

    def type_of(self, tensor: Tensor) -> str:
        name = tensor.name.removeprefix(f"blk.{tensor.layer}.") if tensor.layer is not None else tensor.name
        if len(tensor.shape) < 2 or not name.endswith("weight") or name == "ffn_gate_inp.weight":
            return "F32"
        if self._base in ("F32", "F16", "BF16"):
            return "MXFP4" if self._mix == "MXFP4" and "_exps" in name else self._base
        kind = self._choice(name, tensor)
        if tensor.shape[0] % TENSOR_TYPES[kind].block_values:
            kind = _FALLBACK.get(kind, "F16")
            if tensor.shape[0] % TENSOR_TYPES[kind].block_values:
                return "F16"
        return kind

    def _choice(self, name: str, tensor: Tensor) -> str:
        layer = tensor.layer or 0
        if name == "output.weight" or (name == "token_embd.weight" and self._model.tied_embeddings):
            block = TENSOR_TYPES[self._base].block_values
            return "Q8_0" if self._base == "Q8_0" or tensor.shape[0] % block else "Q6_K"
        part = name.removesuffix(".weight")
        if part in ("attn_v", "attn_kv_b"):
            return self._value(layer)
        if part == "attn_k" and self._experts == 8:
            return "Q8_0"
        if part == "attn_qkv":
            better = {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}
            return better.get(self._mix, self._base)
        if part == "attn_output":
            if self._experts == 8:
                return "Q5_K" if self._mix in _EIGHT_EXPERTS_OUTPUT else self._base
            return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self._mix, self._base)
        if part.startswith("ffn_down"):
            return self._down(layer)
        return self._base

    def _value(self, layer: int) -> str:
        if self._experts == 8:
            return "Q8_0"
        kind, mix = self._base, self._mix
        if mix == "Q2_K":
            kind = "Q4_K" if self._queries_per_key >= 4 else "Q3_K"
        elif mix == "Q3_K_M":
            kind = "Q5_K" if layer < 2 else "Q4_K"
        elif mix == "Q3_K_L" or (mix in ("IQ4_XS", "IQ4_NL") and self._queries_per_key >= 4):
            kind = "Q5_K"
        elif mix in ("Q4_K_M", "Q5_K_M") and self._favoured(layer):
            kind = "Q6_K"
        elif mix == "Q4_K_S" and layer < 4:
            kind = "Q5_K"
        return "Q5_K" if self._is_70b and kind in ("Q3_K", "Q4_K") else kind

    def _down(self, layer: int) -> str:
        mix, eighth = self._mix, self._layers // 8
        if mix == "Q2_K":
            return "Q3_K"
        if mix == "Q3_K_M":
            return "Q5_K" if layer < self._layers // 16 else "Q4_K"
        if mix == "Q3_K_L":
            return "Q5_K"
        if mix in ("Q4_K_M", "Q5_K_M") and self._favoured(layer):
            return "Q6_K"
        if mix in ("IQ4_XS", "IQ4_NL", "Q4_K_S") and layer < eighth:
            return "Q5_K"
        return self._base

    def _favoured(self, layer: int) -> bool:
        """The first and last eighth of the layers, and every third between."""
        eighth = self._layers // 8
        return layer < eighth or layer >= 7 * self._layers // 8 or (layer - eighth) % 3 == 2


_EIGHT_EXPERTS_OUTPUT = {"Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS"}
