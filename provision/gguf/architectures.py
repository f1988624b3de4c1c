"""What llama.cpp knows of an architecture beyond its metadata: which layers keep what.

Source: the architectures' hyperparameters in llama.cpp (src/llama-model.cpp and src/models/, as of November 2026). An
architecture that is not listed here is unknown: its cache would be guessed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

ENCODERS = frozenset({
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert",
    "nomic-bert-moe",
})  # fmt: skip
"""See the whole input at once and keep no cache."""

_ATTENTION = {
    "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom", "chameleon", "chatglm",
    "codeshell", "cogvlm", "command-r", "dbrx", "deci", "deepseek", "deepseek2-ocr", "dots1", "ernie4_5",
    "ernie4_5-moe", "exaone", "falcon", "gemma", "glm4", "glm4moe", "gpt2", "gptneox", "granite", "granitemoe",
    "grok", "grovemoe", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "internlm2", "jais", "jais2", "llama",
    "maincoder", "minicpm", "minicpm3", "minimax-m2", "mistral3", "mpt", "nemotron", "olmo", "olmoe", "openelm",
    "orion", "paddleocr", "pangu-embedded", "phi2", "phi3", "phimoe", "plamo", "plm", "qwen", "qwen2", "qwen25vl",
    "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss", "smollm3", "stablelm",
    "starcoder", "starcoder2", "xverse",
}  # fmt: skip
"""Key and value heads in every layer that has any. phi3 may name a window; llama.cpp does not use it."""


class Window(NamedTuple):
    """Which layers see a sliding window, where the file has no pattern of its own."""

    period: int
    """One layer in so many sees everything."""
    default_tokens: int | None = None
    """Size where the file names none; None: without a size every layer sees everything."""
    full_first: bool = False
    """The layer that sees everything is the first of each period, else the last."""
    fixed_tokens: int | None = None
    """Size that llama.cpp takes whatever the file says, unless that is zero."""
    only_of_layers: int | None = None
    """Windows are used by the model with so many layers alone."""


WINDOWS = {
    "afmoe": Window(4),
    "cohere2": Window(4),
    "cohere2moe": Window(4),
    "exaone-moe": Window(4, default_tokens=128),
    "exaone4": Window(4, default_tokens=4096, only_of_layers=64),
    "gemma2": Window(2, default_tokens=4096),
    "gemma3": Window(6),
    "gemma3n": Window(5),
    "gpt-oss": Window(2),
    "gptoss": Window(2),
    "llama4": Window(4, default_tokens=8192, fixed_tokens=8192),
    "olmo2": Window(4),
    "plamo3": Window(8),
    "smallthinker": Window(4, full_first=True, fixed_tokens=4096),
}

PATTERN_IN_FILE = frozenset({"gemma4", "laguna", "mimo2", "step35"})
"""Windows by layer, from an array in the metadata; without it there is no telling."""

LATENT = frozenset({"deepseek2", "mistral4"})
"""Multi-head latent attention where the file has the split tensors; older files keep expanded heads."""

Recurrence = Literal["all", "without-heads", "neither", "interval", "both"]

RECURRENT: dict[str, Recurrence] = {
    "arwkv7": "all",
    "falcon-h1": "both",
    "granitehybrid": "without-heads",
    "jamba": "without-heads",
    "kimi-linear": "without-heads",
    "lfm2": "without-heads",
    "lfm2moe": "without-heads",
    "mamba": "all",
    "mamba2": "all",
    "nemotron_h": "neither",
    "nemotron_h_moe": "neither",
    "plamo2": "without-heads",
    "qwen35": "interval",
    "qwen35moe": "interval",
    "qwen3next": "interval",
    "rwkv6": "all",
    "rwkv6qwen2": "all",
    "rwkv7": "all",
}
"""Which layers keep a recurrent state: all; those without key and value heads; those with neither heads nor a
feed-forward part; all but one in an interval; or every layer, beside its attention."""

FIRST_WITH_CACHE = {"gemma3n": 20}
"""Layers from the first on that have a cache of their own; the rest reuse it. Fixed in llama.cpp."""

KNOWN = ENCODERS | _ATTENTION | WINDOWS.keys() | PATTERN_IN_FILE | LATENT | RECURRENT.keys()
