"""Small real models that come as wheels of the package index, kept in the lab's cache outside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, 98 MB. Skips the test when its wheel is not to be had."""
    from tests.lab.registry import model_gguf

    try:
        return model_gguf()
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no small real model: {error}")
