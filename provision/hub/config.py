"""A model's shape from its config.json and the headers of its safetensors files, for the engines that load those.

The configuration is brought to the names that GGUF headers have, so that one set of rules says which layers keep what.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from provision.domain.llm import Experts, ModelBuild, ModelSpec, ModelTask, Precision, Quantization, WeightLayout
from provision.errors import InvalidFile
from provision.gguf.architectures import ENCODERS
from provision.gguf.header import Header, Value
from provision.gguf.layers import NO_GUESS_HINT, Metadata, layers_of, main_layer_count
from provision.safetensors import StoredTensor

_ARCHITECTURES = {
    "bert": "bert", "cohere2": "cohere2", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3": "gemma3", "gemma3_text": "gemma3", "glm4": "glm4", "glm4_moe": "glm4moe",
    "gpt_oss": "gpt-oss", "granite": "granite", "llama": "llama", "llama4_text": "llama4", "ministral": "llama",
    "mistral": "llama", "mixtral": "llama", "modernbert": "modern-bert", "nomic_bert": "nomic-bert", "olmo2": "olmo2",
    "phi3": "phi3", "qwen2": "qwen2", "qwen2_5_vl": "qwen2vl", "qwen2_5_vl_text": "qwen2vl", "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3", "qwen3_5_moe_text": "qwen35moe", "qwen3_5_text": "qwen35", "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next", "qwen3_vl_text": "qwen3vl", "seed_oss": "seed_oss", "smollm3": "smollm3",
    "xlm-roberta": "bert",
}  # fmt: skip
"""`model_type` of transformers: llama.cpp's architecture of the same graph."""

_KEYS = {
    "block_count": ("num_hidden_layers", "n_layer"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "context_length": ("max_position_embeddings", "n_positions"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.sliding_window": ("sliding_window", "attention_chunk_size"),
    "attention.kv_lora_rank": ("kv_lora_rank",),
    "attention.q_lora_rank": ("q_lora_rank",),
    "attention.value_length_mla": ("v_head_dim",),
    "rope.dimension_count": ("qk_rope_head_dim",),
    "full_attention_interval": ("full_attention_interval",),
    "ssm.conv_kernel": ("linear_conv_kernel_dim",),
    "ssm.group_count": ("linear_num_key_heads",),
    "ssm.state_size": ("linear_key_head_dim",),
}
_REQUIRED = ("block_count", "embedding_length", "context_length", "attention.head_count")
_EXPERT_COUNT = ("num_experts", "num_local_experts", "n_routed_experts")
_PACKED = re.compile(r"\.(?:qweight|weight_packed)$|_blocks$")
_BESIDE = re.compile(r"(?:scale|scales|scale_inv|zeros|qzeros|zero_point|g_idx|weight_shape|scale_2|amax)$")
"""What quantization adds: not parameters of the model."""
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.")
_TABLE = re.compile(
    r"(?:embed_tokens|word_embeddings|position_embeddings|token_type_embeddings|tok_embeddings)\.weight$"
)
_WORDS = ("embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight")
_FORMAT_BITS = {"AWQ": 4, "GPTQ-INT4": 4, "GPTQ-INT8": 8, "W4A16": 4, "MXFP4": 4, "NVFP4": 4}


def model_of_config(
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    file_bytes: int,
    *,
    name: str,
    label: str,
    source: str,
) -> tuple[ModelSpec, ModelBuild, Quantization]:
    """Records of a safetensors repository. `file_bytes` is the sum of its files, headers included.

    Raises InvalidFile for a `model_type` or a quantization method that is not known here; nothing is guessed.
    """
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, Mapping)
    architecture = _architecture(config, text, label)
    renamed = _renamed(architecture, text)
    for key in _REQUIRED:
        if f"{architecture}.{key}" not in renamed:
            raise _unusable(label, f"has no whole number as '{_KEYS[key][0]}'")
    metadata = Metadata(Header(label=label, metadata=renamed, tensors={}, file_bytes=file_bytes))
    layers, pattern = layers_of(metadata)
    format_name = _format(config, text, tensors, label)
    bits = _FORMAT_BITS.get(format_name)
    parameters, routed = _parameters(tensors.values(), bits)
    experts = _experts(text, label)
    tables = (t.shape[0] for t in tensors.values() if len(t.shape) == 2 and t.name.endswith(_WORDS))
    vocabulary = next(tables, None) or text.get("vocab_size")
    if type(vocabulary) is not int or not 0 < vocabulary < 2**31:
        raise _unusable(label, "has no whole number as 'vocab_size'")
    encoder = architecture in ENCODERS
    model = ModelSpec(
        id=name,
        name=name,
        family=architecture,
        architecture=architecture,
        task=ModelTask.EMBEDDING if encoder else ModelTask.TEXT,
        parameters=parameters,
        active_parameters=parameters - routed + routed * experts.used // experts.count if experts else None,
        hidden_size=metadata.number("embedding_length"),
        feed_forward_size=metadata.optional("feed_forward_length"),
        attention_heads=metadata.number("attention.head_count"),
        vocabulary_size=vocabulary,
        context_tokens_max=metadata.number("context_length"),
        tied_embeddings=not encoder and not any(n.endswith("lm_head.weight") for n in tensors),
        layers=layers,
        layer_pattern=pattern,
        experts=experts,
        provenance={"*": source},
    )
    stored_bits = 8 * sum(t.size_bytes for t in tensors.values()) / max(1, parameters)
    quantization = Quantization(
        id=format_name,
        container="safetensors",
        bits_per_weight=round(stored_bits, 4),
        embedding_bits_per_weight=16.0,
        output_bits_per_weight=16.0,
        rank=0,
        provenance={"*": source},
    )
    build = ModelBuild(
        model=name,
        quantization=format_name,
        weights_bytes=file_bytes,
        precision=Precision.EXACT,
        artifact=label,
        layout=_layout(tensors.values(), main_layer_count(metadata)),
        source=source,
    )
    return model, build, quantization


def _architecture(config: Mapping[str, Any], text: Mapping[str, Any], label: str) -> str:
    names = [str(part.get("model_type")) for part in (text, config) if part.get("model_type")]
    for name in names:
        if name in _ARCHITECTURES:
            return _ARCHITECTURES[name]
    raise InvalidFile(
        f"{label}: the model_type '{(names or ['none'])[0][:60]}' is not known here, so its cache is not guessed",
        hint=NO_GUESS_HINT,
        code="unknown-architecture",
    )


def _renamed(architecture: str, text: Mapping[str, Any]) -> dict[str, Value]:
    """The configuration under the names of GGUF metadata; values that are no numbers are left out."""
    found: dict[str, Value] = {"general.architecture": architecture}

    def put(key: str, value: object) -> None:
        if type(value) is int or (isinstance(value, tuple) and value):
            found[f"{architecture}.{key}"] = value

    for key, names in _KEYS.items():
        put(key, next((text[name] for name in names if type(text.get(name)) is int), None))
    nope, rope, latent = (text.get(k) for k in ("qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank"))
    if type(nope) is int and type(rope) is int and type(latent) is int:
        put("attention.key_length_mla", nope + rope)
        put("attention.key_length", latent + rope)
    heads, size = text.get("linear_num_value_heads"), text.get("linear_value_head_dim")
    if type(heads) is int and type(size) is int:
        put("ssm.inner_size", heads * size)
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and len(kinds) <= 1024 and all(isinstance(kind, str) for kind in kinds):
        put(
            "attention.sliding_window_pattern",
            tuple(kind in ("sliding_attention", "chunked_attention") for kind in kinds),
        )
        if "linear_attention" in kinds:
            put("attention.recurrent_layers", tuple(kind == "linear_attention" for kind in kinds))
    elif type(text.get("sliding_window_pattern")) is int:
        put("attention.sliding_window_pattern", text["sliding_window_pattern"])
    return found


def _format(config: Mapping[str, Any], text: Mapping[str, Any], tensors: Mapping[str, StoredTensor], label: str) -> str:
    """Name of the weight format, as the catalog's quantizations have it."""
    settings = config.get("quantization_config") or text.get("quantization_config")
    if not isinstance(settings, dict):
        widths = {"F32": "F32", "F16": "BF16", "BF16": "BF16"}
        most = max(tensors.values(), key=lambda t: t.size_bytes).dtype if tensors else ""
        if most not in widths:
            raise _unusable(label, f"keeps most weights as {most or 'nothing'} without saying how they are quantized")
        return widths[most]
    method, bits = settings.get("quant_method"), settings.get("bits", settings.get("w_bit"))
    if method == "awq" and bits == 4:
        return "AWQ"
    if method == "gptq" and bits in (4, 8):
        return f"GPTQ-INT{bits}"
    if method in ("fp8", "fbgemm_fp8"):
        return "FP8"
    if method == "mxfp4":
        return "MXFP4"
    if method == "compressed-tensors":
        by_format = {"float-quantized": "FP8", "naive-quantized": "FP8", "pack-quantized": "W4A16",
                     "nvfp4-pack-quantized": "NVFP4", "int-quantized": "W8A8"}  # fmt: skip
        if settings.get("format") in by_format:
            return by_format[settings["format"]]
    raise _unusable(label, f"is quantized by '{str(method)[:40]}' in a way that is not known here")


def _parameters(tensors: Iterable[StoredTensor], bits: int | None) -> tuple[int, int]:
    """All weights, and those of routed experts; packed values are counted one by one, scales not at all."""
    total = routed = 0
    for tensor in tensors:
        if _BESIDE.search(tensor.name):
            continue
        packed = bits is not None and (_PACKED.search(tensor.name) or tensor.dtype == "U8")
        count = tensor.size_bytes * 8 // bits if packed and bits else tensor.elements
        total += count
        routed += count if _EXPERT.search(tensor.name) else 0
    return total, routed


def _experts(text: Mapping[str, Any], label: str) -> Experts | None:
    count = next((text[key] for key in _EXPERT_COUNT if type(text.get(key)) is int and text[key] > 0), None)
    if count is None:
        return None
    used = text.get("num_experts_per_tok")
    width = text.get("moe_intermediate_size", text.get("intermediate_size"))
    if type(used) is not int or type(width) is not int or not 1 <= used <= count:
        raise _unusable(label, "does not say how many experts a token goes through")
    shared = text.get("shared_expert_intermediate_size")
    if type(shared) is not int:
        number = text.get("n_shared_experts", text.get("num_shared_experts"))
        shared = number * width if type(number) is int else 0
    first = text.get("first_k_dense_replace")
    return Experts(
        count=count,
        used=used,
        feed_forward_size=width,
        shared_feed_forward_size=shared,
        dense_layers=first if type(first) is int else 0,
    )


def _layout(tensors: Iterable[StoredTensor], layer_count: int) -> WeightLayout | None:
    embedding = output = 0
    layers, experts = [0] * layer_count, [0] * layer_count
    for tensor in tensors:
        found = _LAYER.search(tensor.name)
        if found and "visual" not in tensor.name and "vision" not in tensor.name:
            if int(found[1]) < layer_count:  # later ones predict further tokens
                layers[int(found[1])] += tensor.size_bytes
                if _EXPERT.search(tensor.name):
                    experts[int(found[1])] += tensor.size_bytes
        elif _TABLE.search(tensor.name):
            embedding += tensor.size_bytes
        else:
            output += tensor.size_bytes
    if not all(layers):
        return None
    return WeightLayout(
        embedding_bytes=embedding,
        output_bytes=output,
        layer_bytes=tuple(layers),
        expert_bytes=tuple(experts) if any(experts) else (),
    )


def _unusable(label: str, what: str) -> InvalidFile:
    return InvalidFile(f"{label}: its config.json {what}", hint=NO_GUESS_HINT, code="unknown-architecture")
