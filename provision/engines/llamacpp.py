"""llama.cpp inside our own process group: serves one local GGUF on loopback through the `xllamacpp` wheel.

The server runs in a child process, so that it can be stopped whatever it does, and dies with us: the child watches a
pipe that closes when this process ends, even by SIGKILL.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from provision.errors import ProvisionError, Unreachable

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0

MODEL_ALIAS = "local"
"""The model name that the embedded server answers to."""


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    url: str
    log: Path
    """llama.cpp's own log of this run."""


def is_installed() -> bool:
    """Whether the optional extra `embedded` is there."""
    return importlib.util.find_spec("xllamacpp") is not None


@contextmanager
def serve(gguf: Path, *, context_tokens: int, slots: int, threads: int, log: Path) -> Iterator[EmbeddedServer]:
    """Serve `gguf` until the block ends. `context_tokens` is per slot.

    Raises ProvisionError where the extra is missing, Unreachable when the model does not load (with llama.cpp's last
    line), and stops the server on the way out.
    """
    if not is_installed():
        raise ProvisionError(
            "the embedded llama.cpp is not installed",
            hint="pip install 'provision-llm[embedded]'",
            code="embedded-missing",
        )
    reader, writer = os.pipe()
    arguments = [gguf, context_tokens * slots, slots, threads, reader]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "provision.engines.llamacpp_child", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            pass_fds=(reader,),
            start_new_session=True,  # Ctrl-C is ours to handle; the child must outlive it until we stop it
        )
        os.close(reader)
        try:
            yield EmbeddedServer(url=_wait_for_address(process, log, gguf), log=log)
        finally:
            os.close(writer)
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


def _wait_for_address(process: subprocess.Popen[bytes], log: Path, gguf: Path) -> str:
    import select

    assert process.stdout is not None
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        ready, _, _ = select.select([process.stdout], [], [], 0.5)
        if ready:
            line = process.stdout.readline().decode().strip()
            if line.startswith("http://"):
                return line
        if process.poll() is not None:
            lines = [text for text in log.read_text(errors="replace").splitlines() if text.strip()]
            raise Unreachable(
                f"llama.cpp could not load {gguf.name}: {lines[-1] if lines else 'no message'}",
                hint=f"the whole log: {log}",
                code="engine-start",
            )
    raise Unreachable(
        f"llama.cpp did not start within {_START_TIMEOUT_S:.0f} s", hint=f"the log: {log}", code="engine-start"
    )
