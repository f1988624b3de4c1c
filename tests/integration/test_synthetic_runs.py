"""A file of made-up weights generates tokens in the real llama.cpp, with numbers that are numbers."""

from __future__ import annotations

import math
from pathlib import Path

import httpx
import pytest

from provision.engines import llamacpp
from provision.gguf import synthetic
from tests.shapes import SHAPES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["dense-gqa", "experts", "latent"])
def test_random_weights_generate_tokens(name: str, tmp_path: Path) -> None:
    if not llamacpp.is_installed():
        pytest.skip("xllamacpp is not installed: no real llama.cpp to run the file")
    shape = SHAPES[name]
    path = tmp_path / "model.gguf"
    synthetic.write(path, shape.model, shape.quantization, fill="random")
    log = tmp_path / "log"
    with llamacpp.serve(path, context_tokens=512, slots=1, threads=1, log=log) as server:
        answer = httpx.post(
            f"{server.url}/completion",
            json={"prompt": [300, 301, 302, 303], "n_predict": 6, "n_probs": 3, "ignore_eos": True, "temperature": 0.0},
            timeout=60,
            trust_env=False,
        ).json()
    assert answer["tokens_predicted"] == 6
    likely = [token["logprob"] for step in answer["completion_probabilities"] for token in step["top_logprobs"]]
    assert all(math.isfinite(value) and value <= 0 for value in likely)
    assert len({round(value, 6) for value in likely}) > 3, "logits that are all alike would come from zeros"
