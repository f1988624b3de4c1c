"""Shapes of models that published measurements name and the catalog does not hold: what their configurations say, as
far as speed depends on it. By pattern of the name, more special ones first; sizes in 1e9 parameters.

Key-value width is of one layer: heads x head dimension, of latent attention latent + rope. `full_layers` have full
attention, the others a window or a recurrent state. `active` is None where all parameters are.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Shape(NamedTuple):
    parameters: float
    active: float | None
    layers: int
    hidden: int
    kv_width: int
    full_layers: int
    vocabulary: int
    tied: int


_SHAPES: list[tuple[str, Shape]] = [
    (r"mistral-small-4.*<119b>", Shape(119.0, 6.5, 36, 4096, 2048, 36, 131072, 0)),
    (r"deepseek-(r1|v3).*<671b>", Shape(671.0, 37.0, 61, 7168, 576, 61, 129280, 0)),
    (r"llama-?3\.1-<405b>", Shape(405.9, None, 126, 16384, 2048, 126, 128256, 0)),
    (r"llama.?3\.?[13]?.*?(<70b>)", Shape(70.55, None, 80, 8192, 2048, 80, 128256, 0)),
    (r"llama-?3\.2.*<1b>|llama3\.2:<1b>", Shape(1.236, None, 16, 2048, 1024, 16, 128256, 1)),
    (r"llama-?3\.2.*<3b>|llama3\.2(:<3b>)?$", Shape(3.213, None, 28, 3072, 2048, 28, 128256, 1)),
    (r"llama-?3(\.1)?.*<8b>|llama3", Shape(8.03, None, 32, 4096, 2048, 32, 128256, 0)),
    (r"llama-?2.*<7b>", Shape(6.738, None, 32, 4096, 8192, 32, 32000, 0)),
    (r"llama-?2.*<13b>", Shape(13.02, None, 40, 5120, 10240, 40, 32000, 0)),
    (r"llama-?4.*16x17b|llama-4-scout", Shape(107.77, 17.2, 48, 5120, 2048, 48, 202048, 0)),
    (r"qwen2\.5.*<0\.5b>", Shape(0.494, None, 24, 896, 256, 24, 151936, 1)),
    (r"qwen2\.5.*<1\.5b>", Shape(1.544, None, 28, 1536, 512, 28, 151936, 1)),
    (r"qwen2\.5.*<3b>", Shape(3.086, None, 36, 2048, 512, 36, 151936, 1)),
    (r"qwen2\.5.*<7b>|deepseek-r1.*qwen.*<7b>", Shape(7.616, None, 28, 3584, 1024, 28, 152064, 0)),
    (r"qwen2\.5.*<14b>|deepseek-r1.*<14b>", Shape(14.77, None, 48, 5120, 2048, 48, 152064, 0)),
    (r"qwen2\.5.*<32b>|deepseek-r1.*<32b>|qwq", Shape(32.76, None, 64, 5120, 2048, 64, 152064, 0)),
    (r"qwen2\.5.*<72b>", Shape(72.7, None, 80, 8192, 2048, 80, 152064, 0)),
    (r"qwen.?3-<0\.6b>|qwen3:<0\.6b>", Shape(0.596, None, 28, 1024, 2048, 28, 151936, 1)),
    (r"qwen.?3[-: ]<1\.7b>", Shape(1.72, None, 28, 2048, 2048, 28, 151936, 1)),
    (r"qwen.?3[-: ]<4b>", Shape(4.02, None, 36, 2560, 2048, 36, 151936, 1)),
    (r"qwen.?3[-: ]<8b>", Shape(8.19, None, 36, 4096, 2048, 36, 151936, 0)),
    (r"qwen.?3[-: ]<14b>", Shape(14.77, None, 40, 5120, 2048, 40, 151936, 0)),
    (r"qwen.?3[-: ]<32b>", Shape(32.76, None, 64, 5120, 2048, 64, 151936, 0)),
    (r"qwen.?3[-: ]?.*<30b>", Shape(30.53, 3.35, 48, 2048, 1024, 48, 151936, 0)),
    (r"qwen.?3[-: ]<235b>", Shape(235.1, 22.2, 94, 4096, 1024, 94, 151936, 0)),
    (r"qwen3-coder-next|qwen3-next", Shape(79.7, 3.9, 48, 2048, 1024, 12, 151936, 0)),
    (r"qwen.?3\.[568][-: ]?<0\.8b>", Shape(0.87, None, 24, 1024, 1024, 6, 248320, 1)),
    (r"qwen.?3\.[568][-: ]?<2b>", Shape(2.27, None, 24, 2048, 1024, 6, 248320, 1)),
    (r"qwen.?3\.[568][-: ]?<4b>", Shape(4.66, None, 32, 2560, 2048, 8, 248320, 1)),
    (r"qwen.?3\.[568][-: ]?<9b>", Shape(9.65, None, 32, 4096, 2048, 8, 248320, 0)),
    (
        r"qwen.?3\.[568][-: ]?<27b>|ornstein-3.6-<27b>|ornstein-hermes-3.6-<27b>",
        Shape(27.3, None, 64, 5120, 2048, 16, 248320, 0),
    ),
    (
        r"qwen.?3\.[56][-: ]?<35b>|ornith-1.0-<35b>|ornstein3.6-<35b>|<35b>-a3b|btl-4",
        Shape(34.66, 3.0, 40, 2048, 1024, 10, 248320, 0),
    ),
    (r"qwen.?3\.5[-: ]?<122b>", Shape(122.1, 10.0, 48, 3072, 1024, 12, 248320, 0)),
    (r"gpt-oss.*<20b>", Shape(20.91, 3.6, 24, 2880, 1024, 12, 201088, 0)),
    (r"gpt-oss.*<120b>", Shape(116.83, 5.1, 36, 2880, 1024, 18, 201088, 0)),
    (r"gemma.?3.*270m", Shape(0.268, None, 18, 640, 512, 3, 262144, 1)),
    (r"gemma.?3.*<1b>", Shape(1.0, None, 26, 1152, 512, 4, 262144, 1)),
    (r"gemma.?3.*<4b>", Shape(3.88, None, 34, 2560, 2048, 6, 262208, 1)),
    (r"gemma.?3.*<12b>", Shape(11.77, None, 48, 3840, 4096, 8, 262208, 1)),
    (r"gemma.?3.*<27b>", Shape(27.01, None, 62, 5376, 4096, 10, 262208, 1)),
    (r"gemma.?4.*<26b>|gemma4:<26b>", Shape(25.23, 3.8, 30, 2816, 4096, 5, 262144, 1)),
    (r"gemma.?4.*<31b>", Shape(30.7, None, 60, 5376, 4096, 10, 262144, 1)),
    (r"gemma.?4.*<12b>", Shape(12.0, None, 48, 3840, 4096, 8, 262144, 1)),
    (r"gemma-?2.*<2b>", Shape(2.61, None, 26, 2304, 2048, 13, 256000, 1)),
    (r"gemma-?2.*<9b>", Shape(9.24, None, 42, 3584, 4096, 21, 256000, 1)),
    (r"gemma-?2.*<27b>", Shape(27.2, None, 46, 4608, 4096, 23, 256000, 1)),
    (r"gemma.?4.*e2b|gemma.?3n.*e2b", Shape(4.6, 1.9, 35, 1536, 512, 7, 262144, 1)),
    (r"gemma.?4.*e4b|gemma.?3n.*e4b", Shape(7.5, 4.0, 42, 2560, 1024, 7, 262144, 1)),
    (
        r"mistral-small|devstral-small|magistral-small|mistral.*<24b>|devstral.*<24b>",
        Shape(23.57, None, 40, 5120, 2048, 40, 131072, 0),
    ),
    (r"mistral-nemo|mistral-nemo.*<12b>", Shape(12.25, None, 40, 5120, 2048, 40, 131072, 0)),
    (r"ministral-3.*<3b>", Shape(3.4, None, 26, 3072, 2048, 26, 131072, 1)),
    (r"ministral-3.*<8b>", Shape(8.5, None, 34, 4096, 2048, 34, 131072, 0)),
    (r"ministral-3.*<14b>", Shape(13.5, None, 40, 5120, 2048, 40, 131072, 0)),
    (r"mistral.*<7b>", Shape(7.25, None, 32, 4096, 2048, 32, 32768, 0)),
    (r"mixtral.*8x7b", Shape(46.7, 12.9, 32, 4096, 2048, 32, 32000, 0)),
    (
        r"deepseek-coder-v2-lite|deepseek-coder-v2:<16b>|deepseek-v2-lite",
        Shape(15.7, 2.66, 27, 2048, 576, 27, 102400, 0),
    ),
    (r"deepseek-v4-flash", Shape(291, 13, 43, 4096, 576, 43, 129280, 0)),
    (r"glm-4\.5-air", Shape(110.5, 12, 47, 4096, 2048, 47, 151552, 0)),
    (r"glm-4\.7-flash", Shape(29.94, 3.6, 47, 2048, 576, 47, 154880, 0)),
    (r"minimax-m2", Shape(228.7, 10, 62, 3072, 2048, 62, 200064, 0)),
    (r"hunyuan-a13b", Shape(80.4, 13, 32, 4096, 2048, 32, 128167, 1)),
    (r"hunyuan-<4b>", Shape(4.0, None, 36, 3072, 2048, 36, 120818, 1)),
    (r"hunyuan-<1\.8b>", Shape(1.8, None, 32, 2048, 1024, 32, 120818, 1)),
    (r"lfm2.*<8b>", Shape(8.34, 1.5, 24, 2048, 1024, 6, 65536, 1)),
    (r"lfm2\.5.*<2\.6b>|lfm2.*<2\.6b>", Shape(2.6, None, 30, 2048, 1024, 8, 65536, 1)),
    (r"trinity-mini", Shape(26.1, 3.0, 32, 2048, 1024, 8, 200192, 0)),
    (r"laguna-xs", Shape(33, 3.0, 40, 2048, 2048, 10, 100352, 0)),
    (r"laguna-s", Shape(118, 8.0, 48, 3072, 2048, 12, 100352, 0)),
    (r"north-mini-code", Shape(30.5, 3.3, 49, 2048, 1024, 12, 256000, 1)),
    (
        r"nemotron-3-nano.*<30b>|nemotron-3-nano-omni|nemotron-cascade-2-<30b>|nemotron3:<33b>|nemotron-cascade-2:<30b>",
        Shape(31.6, 3.2, 26, 2688, 512, 6, 131072, 0),
    ),
    (r"nemotron-3-super", Shape(120.67, 12, 44, 4096, 512, 8, 131072, 0)),
    (r"nemotron-3-nano.*<4b>|nemotron-3-nano:<4b>", Shape(4.0, None, 21, 3136, 2048, 4, 131072, 0)),
    (r"kat-coder", Shape(34.66, 3.0, 40, 2048, 1024, 10, 248320, 0)),
    (r"muse-glimmer", Shape(30.0, None, 64, 5120, 2048, 64, 131072, 0)),
    (r"phi-?4-mini", Shape(3.84, None, 32, 3072, 2048, 32, 200064, 1)),
    (r"phi-?4|phi-?3-medium", Shape(14.66, None, 40, 5120, 2560, 40, 100352, 0)),
    (r"phi-3\.5-mini|phi-?3-mini", Shape(3.82, None, 32, 3072, 6144, 32, 32064, 0)),
    (r"granite-4\.0-h-small", Shape(32.2, 9, 40, 4096, 1024, 4, 100352, 1)),
    (r"granite-4\.0-h-tiny", Shape(6.9, 1.0, 40, 1536, 512, 4, 100352, 1)),
    (r"granite-3\.1-<3b>-a800m", Shape(3.3, 0.88, 32, 1536, 1024, 32, 49155, 1)),
    (r"granite-4\.0-micro", Shape(3.4, None, 40, 2560, 1024, 40, 100352, 1)),
    (r"step-3\.7-flash", Shape(198, 11, 45, 4096, 2048, 45, 128896, 0)),
    (r"unlimited-ocr", Shape(3.3, 0.6, 12, 1280, 2560, 12, 129280, 0)),
    (r"ai21-jamba2-mini|jamba.*mini", Shape(51.6, 12, 32, 4096, 2048, 4, 65536, 0)),
    (r"codestral.*<22b>", Shape(22.2, None, 56, 6144, 2048, 56, 32768, 0)),
    (r"kimi-linear-<48b>", Shape(49.1, 3.0, 27, 2304, 576, 7, 163840, 0)),
    (r"minicpm-v-4\.6", Shape(1.3, None, 24, 1024, 1024, 24, 150000, 1)),
    (r"3[56]b(?!.*dense)", Shape(34.66, 3.0, 40, 2048, 1024, 10, 248320, 0)),
    (r"ernie-4\.5-<21b>", Shape(21.8, 3.0, 28, 2560, 1024, 28, 103424, 1)),
    (r"lfm2-<24b>", Shape(23.8, 2.3, 40, 2048, 1024, 10, 65536, 1)),
    (r"smallthinker-<4b>", Shape(4.3, 0.6, 32, 1536, 512, 32, 151936, 1)),
    (r"command-r7b", Shape(8.03, None, 32, 4096, 2048, 8, 256000, 1)),
    (r"qwen3\.[56]$|qwen3\.[56]:latest", Shape(9.65, None, 32, 4096, 2048, 8, 248320, 0)),
]
_SIZE = re.compile(r"<(.+?)>")  # <8b> in a pattern: that size as a word of its own
_PATTERNS = [(re.compile(_SIZE.sub(r"(?<![\\d.a-z])(?:\1)(?![a-z0-9])", pattern)), shape) for pattern, shape in _SHAPES]


def shape_of(name: str) -> Shape | None:
    """Of a folded model name, or None."""
    for pattern, shape in _PATTERNS:
        if pattern.search(name):
            return shape
    return None
