"""Loads a GGUF file in the real llama.cpp, in a process of its own, and reads what it prints of its buffers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from provision.engines.llamacpp_log import LoadedBuffers, parse

_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}
_FLASH_ATTENTION = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}
_PROGRAM = """
import json, os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.port, params.warmup, params.fit_params, params.verbosity = 0, False, False, 4
for name, value in json.loads(sys.argv[2]).items():
    kind = type(getattr(params, name))
    if not isinstance(getattr(params, name), (bool, int)) or kind not in (bool, int):
        value = kind(value) if isinstance(value, int) else getattr(kind, value)
    setattr(params, name, value)
params.model.path = sys.argv[1]
server = xllamacpp.Server(params)  # kept: taking it down right after its start can hang
sys.stderr.flush()
os._exit(0)
"""


def load(
    gguf: Path,
    *,
    context_tokens: int,
    slots: int = 1,
    kv_cache_type: Literal["f16", "q8_0", "q4_0"] = "f16",
    batch_tokens: int = 512,
    flash_attention: Literal["auto", "on", "off"] = "auto",
    unified: bool = False,
) -> LoadedBuffers:
    """`context_tokens` is per slot. Fails the test with llama.cpp's own words when it does not load the file."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: no real llama.cpp to compare with")
    settings = {
        "n_ctx": context_tokens * slots,
        "n_parallel": slots,
        "n_ubatch": batch_tokens,
        "cache_type_k": _TYPES[kv_cache_type],
        "cache_type_v": _TYPES[kv_cache_type],
        "flash_attn_type": f"LLAMA_FLASH_ATTN_TYPE_{_FLASH_ATTENTION[flash_attention]}",
        "kv_unified": unified,
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(gguf), json.dumps(settings)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if " E " in line] or done.stderr.splitlines()[-3:]
        pytest.fail(f"llama.cpp does not load {gguf.name}: {' '.join(said)}")
    return parse(done.stderr)
