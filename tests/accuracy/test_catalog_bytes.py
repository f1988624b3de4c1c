"""Two lists of a model's tensors, kept apart, give the same bytes for every build; published files agree with both."""

from __future__ import annotations

import pytest

from provision.catalog import load_catalog
from provision.domain.llm import ModelBuild, Precision
from provision.gguf.tensor_list import is_known, tensor_types, tensors
from provision.sizing.quantization_mix import has_definite_rule
from provision.sizing.weights import computed_bytes
from provision.units import MIB

METADATA_BYTES = 24 * MIB
"""Vocabulary and header of a file take 1 to 16 MB."""


@pytest.fixture(scope="module")
def sums() -> list[tuple[ModelBuild, int]]:
    """Every GGUF build whose tensors are known, with their sum."""
    catalog = load_catalog()
    found = []
    for build in catalog.builds:
        mix = catalog.quantization(build.quantization)
        model = catalog.model(build.model)
        if mix.container != "gguf" or not is_known(model) or not has_definite_rule(mix.id):
            continue
        parts = tensors(model, expanded_latent=build.expanded_cache)
        kinds = tensor_types(model, parts, mix.id)
        total = sum(part.bytes_as(kind) for part, kind in zip(parts, kinds, strict=True))
        assert total == computed_bytes(model, mix, expanded_cache=build.expanded_cache), f"{build.model} {mix.id}"
        found.append((build, total))
    assert len(found) > 500, "most builds of the catalog have a tensor list"
    return found


def test_what_is_called_computed_is_the_sum_of_the_tensors(sums: list[tuple[ModelBuild, int]]) -> None:
    computed = [(build, total) for build, total in sums if build.precision is Precision.COMPUTED]
    off = [build for build, total in computed if not -1e-5 * total <= build.weights_bytes - total <= METADATA_BYTES]
    # gpt-oss:120b is published with all but the experts in 16 bits, which no mix of this name has.
    assert {build.model for build in off} <= {"gpt-oss:120b"}


def test_published_files_are_their_tensors_and_some_metadata(sums: list[tuple[ModelBuild, int]]) -> None:
    """Ollama's own may hold more: a vision projector, or matrices that its converter keeps in 16 bits or twice."""
    exact = [(build, total) for build, total in sums if build.precision is Precision.EXACT]
    files = [(build, total) for build, total in exact if build.artifact != build.ollama_tag]
    assert all(build.weights_bytes > total for build, total in exact), "no published file lacks a tensor"
    off = [build for build, total in files if build.weights_bytes - total > METADATA_BYTES]
    assert files
    assert not [f"{build.model} {build.quantization}" for build in off]
