"""Files of a model's exact shape: what is written is what the arithmetic says, tensor by tensor."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from provision.errors import InvalidFile
from provision.gguf import read_file, read_model, synthetic
from provision.gguf.tensor_list import ARCHITECTURES, tensor_types, tensors
from provision.sizing.quantization_mix import BLOCK
from provision.sizing.weights import layout
from tests.shapes import SHAPES, Shape, attention, model, quantization

MIXES = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_tensor_is_in_the_file_and_takes_what_its_type_says(shape: Shape, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    size = synthetic.write(path, shape.model, shape.quantization, expanded_latent=shape.expanded_latent)
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 < 2**20, "zeros take no disk"

    parts = tensors(shape.model, expanded_latent=shape.expanded_latent)
    kinds = tensor_types(shape.model, parts, shape.quantization)
    table = read_file(path).tensors
    assert {name: found.shape for name, found in table.items()} == {part.name: part.shape for part in parts}
    offsets = [found.offset for found in table.values()]
    assert offsets == sorted(offsets)
    data = sum(-(-part.bytes_as(kind) // 32) * 32 for part, kind in zip(parts, kinds, strict=True))
    assert all(offset % 32 == 0 for offset in offsets)
    assert size - data < 2**20, "the rest is the header"
    for (kind, part), begin, end in zip(zip(kinds, parts, strict=True), offsets, [*offsets[1:], data], strict=True):
        assert end - begin == -(-part.bytes_as(kind) // 32) * 32


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_shape_that_is_written_is_read_back(shape: Shape, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    size = synthetic.write(path, shape.model, shape.quantization, expanded_latent=shape.expanded_latent)
    found, build, mix = read_model(path)
    for name in ("architecture", "hidden_size", "attention_heads", "vocabulary_size", "tied_embeddings", "experts",
                 "context_tokens_max", "layer_pattern", "feed_forward_size"):  # fmt: skip
        assert getattr(found, name) == getattr(shape.model, name), name
    assert set(found.layers) == set(shape.model.layers)
    assert (build.weights_bytes, mix.id, build.expanded_cache) == (size, shape.quantization, shape.expanded_latent)
    computed = layout(shape.model, shape.build, quantization(shape.quantization))
    assert build.layout is not None
    # The biases of experts (gpt-oss) go where the experts go; the arithmetic leaves them with the router.
    assert build.layout.expert_bytes == pytest.approx(computed.expert_bytes, rel=0.006)
    assert replace(build.layout, expert_bytes=()) == replace(computed, expert_bytes=())


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bytes_by_place_are_those_of_the_tensors_in_the_file(shape: Shape, mix: str) -> None:
    shape = replace(shape, quantization=mix)
    parts = tensors(shape.model, expanded_latent=shape.expanded_latent)
    sizes = [part.bytes_as(kind) for part, kind in zip(parts, tensor_types(shape.model, parts, mix), strict=True)]
    found = layout(shape.model, shape.build, quantization(mix))
    of_layers = [0] * shape.model.layer_count
    of_experts = [0] * shape.model.layer_count
    for part, size in zip(parts, sizes, strict=True):
        if part.layer is not None:
            of_layers[part.layer] += size
            if part.name.endswith("_exps.weight"):
                of_experts[part.layer] += size
    shared = [size for part, size in zip(parts, sizes, strict=True) if part.layer is None]
    assert [found.embedding_bytes, found.output_bytes] == [shared[0], sum(shared[1:])]
    assert list(found.layer_bytes) == of_layers
    assert list(found.expert_bytes or of_experts) == of_experts
    if shape.model.experts:
        assert any(found.expert_bytes)


def test_random_weights_are_the_same_every_time_and_finite(tmp_path: Path) -> None:
    small = model("llama", attention(1, 2, 64), hidden=256, heads=4, feed_forward=512, vocabulary=300)
    for mix in ("F16", "BF16", "Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "Q4_0", "Q5_0", "Q5_1", "Q4_1"):
        first, second, zeros = (tmp_path / f"{mix}-{at}.gguf" for at in range(3))
        size = synthetic.write(first, small, mix, fill="random")
        assert synthetic.write(second, small, mix, fill="random") == size == synthetic.write(zeros, small, mix)
        assert first.read_bytes() == second.read_bytes()
        parts = tensors(small)
        kinds = tensor_types(small, parts, mix)
        end = size
        for part, kind in zip(reversed(parts), reversed(kinds), strict=True):
            length = part.bytes_as(kind)
            end -= -(-length // 32) * 32
            content = first.read_bytes()[end : end + length]
            assert any(content), f"{part.name} is written"
            if kind in ("F32", "F16"):
                letter = {"F32": "f", "F16": "e"}[kind]
                values = struct.unpack(f"<{length // BLOCK[kind][1]}{letter}", content)
                assert all(abs(value) < 10 for value in values)


def test_an_architecture_or_mix_that_is_not_known_is_refused(tmp_path: Path) -> None:
    known = SHAPES["dense-gqa"].model
    with pytest.raises(InvalidFile, match="architecture 'mamba'") as caught:
        synthetic.write(tmp_path / "a.gguf", replace(known, architecture="mamba"), "F16")
    assert caught.value.hint
    with pytest.raises(InvalidFile, match="AWQ"):
        synthetic.write(tmp_path / "a.gguf", known, "AWQ")
    with pytest.raises(InvalidFile, match="cannot write"):
        synthetic.write(tmp_path / "missing" / "a.gguf", known, "F16")
    assert not (tmp_path / "a.gguf").exists()
    assert known.architecture in ARCHITECTURES
