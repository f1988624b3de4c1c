"""Loads a GGUF file in the real llama.cpp, in a process of its own, and reads what it prints of its buffers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.engines.llamacpp_log import START, LoadedBuffers, parse

_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}
_FLASH_ATTENTION = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}
_PROGRAM = """
import json, os, sys, xllamacpp
servers = []  # kept: taking one down right after its start can hang
for settings in json.loads(sys.argv[2]):
    params = xllamacpp.CommonParams()
    params.port, params.warmup, params.fit_params, params.verbosity = 0, False, False, 4
    params.n_threads_http = 1
    # No second copy of some matrices for the CPU's own kernels: it is no part of the model, and hides its size.
    params.no_extra_bufts = True
    params.cache_type_k = params.cache_type_v = type(params.cache_type_k)(settings.pop("cache_type"))
    params.flash_attn_type = getattr(type(params.flash_attn_type), settings.pop("flash_attention"))
    for name, value in settings.items():
        setattr(params, name, value)
    params.model.path = sys.argv[1]
    servers.append(xllamacpp.Server(params))
sys.stderr.flush()
os._exit(0)
"""


@dataclass(frozen=True)
class Settings:
    context_tokens: int
    """Per slot."""
    slots: int = 1
    kv_cache_type: str = "f16"
    batch_tokens: int = 512
    flash_attention: str = "auto"
    unified: bool = False


def load(gguf: Path, *cases: Settings) -> list[LoadedBuffers]:
    """What is printed for each case. Fails the test with llama.cpp's own words when it does not load the file."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: no real llama.cpp to compare with")
    settings = [
        {
            "n_ctx": case.context_tokens * case.slots,
            "n_parallel": case.slots,
            "n_ubatch": case.batch_tokens,
            "kv_unified": case.unified,
            "cache_type": _TYPES[case.kv_cache_type],
            "flash_attention": f"LLAMA_FLASH_ATTN_TYPE_{_FLASH_ATTENTION[case.flash_attention]}",
        }
        for case in cases
    ]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(gguf), json.dumps(settings)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=240,
        check=False,
    )
    logs = done.stderr.split(START)[1:]
    if done.returncode or len(logs) != len(cases):
        pytest.fail(f"llama.cpp does not load {gguf.name}: {_said(done.stderr.splitlines())}")
    return [parse(log) for log in logs]


def _said(lines: Sequence[str]) -> str:
    return " ".join([line for line in lines if " E " in line] or lines[-3:])
