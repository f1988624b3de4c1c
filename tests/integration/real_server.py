"""A real llama.cpp server in a process of its own, with a small real model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.models import smollm2_gguf

_PROGRAM = """
import sys, xllamacpp as x
p = x.CommonParams()
p.model.path = sys.argv[1]; p.model_alias = {"smollm2"}; p.port = 0; p.n_parallel = int(sys.argv[2])
p.n_ctx = 2048 * p.n_parallel; p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1; p.n_threads_http = 4
s = x.Server(p); print(s.listening_address, flush=True); sys.stdin.read()
"""


@contextmanager
def llamacpp_server(parallel: int = 2) -> Iterator[str]:
    """Its address; `parallel` slots of 2,048 tokens each, one thread."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: no real llama.cpp server to test with")
    command = [sys.executable, "-c", _PROGRAM, str(smollm2_gguf()), str(parallel)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("http"):
                yield line.strip()
                return
        raise AssertionError("the llama.cpp server ended before it listened")
    finally:
        process.kill()
        process.communicate()
