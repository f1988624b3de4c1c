"""What we say a model takes is what the real llama.cpp prints when it loads it.

Two small real models and one shape of every kind, on the CPU: cache types and slots. The cache is exact; so are weights
and the buffer for logits, to the rounding of the log and the padding between tensors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provision import synthetic
from provision.catalog import load_catalog
from provision.domain.hardware import Machine, MemoryPool, Origin
from provision.domain.llm import EngineSpec, ModelBuild, ModelSpec, Precision, Quantization
from provision.domain.plan import DeviceMemory, Workload
from provision.sizing import memory
from provision.units import GIB, MIB
from tests.integration.loading import load
from tests.models import gemma3_270m_gguf, smollm2_gguf
from tests.shapes import SHAPES, attention, model, quantization

pytestmark = pytest.mark.slow

CONTEXT_TOKENS = 2048
ROUNDED = 0.006 * MIB
"""The log has hundredths of a MiB."""
HOST = Machine(name="host", origin=Origin.DECLARED, memory=MemoryPool(total_bytes=64 * GIB))
ENGINE = replace(load_catalog().engine("llamacpp"), unified_cache=False)
"""Slots that are asked for by number have a cache each in this engine; automatic ones share one."""

GEMMA_270M = model(
    "gemma3", attention(15, 1, 256, 512), attention(3, 1, 256), hidden=640, heads=4, feed_forward=2048,
    vocabulary=262_144, tied=True, pattern=(0, 0, 0, 0, 0, 1),
)  # fmt: skip

Records = tuple[ModelSpec, ModelBuild, Quantization]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def records(name: str) -> Records:
    """What sizing knows of a case: catalog records, or the shape's own."""
    if name == "smollm2":
        catalog = load_catalog()
        return catalog.model("smollm2:135m"), catalog.build("smollm2:135m", "Q4_1"), catalog.quantization("Q4_1")
    if name == "gemma3-270m":
        build = ModelBuild(
            model="gemma3:270m", quantization="Q4_K_M", weights_bytes=253_113_024, precision=Precision.EXACT, source="t"
        )
        return GEMMA_270M, build, quantization("Q4_K_M")
    shape = SHAPES[name]
    return shape.model, shape.build, quantization(shape.quantization)


def file_of(name: str, folder: Path) -> Path:
    if name == "smollm2":
        return smollm2_gguf()
    if name == "gemma3-270m":
        return gemma3_270m_gguf()
    path = folder / f"{name}.gguf"
    if not path.exists():
        shape = SHAPES[name]
        synthetic.write(path, shape.model, shape.quantization, expanded_latent=shape.expanded_latent)
    return path


def predicted(found: Records, workload: Workload, engine: EngineSpec = ENGINE) -> DeviceMemory:
    _, estimate = memory.place(HOST, *found, engine, workload)
    (host,) = estimate.devices
    return host


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("kv_cache_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m", *SHAPES])
def test_buffers_are_those_that_llama_cpp_prints(name: str, kv_cache_type, slots: int, folder: Path) -> None:
    workload = Workload(context_tokens=CONTEXT_TOKENS, users=slots, kv_cache_type=kv_cache_type)
    found = records(name)
    real = load(file_of(name, folder), context_tokens=CONTEXT_TOKENS, slots=slots, kv_cache_type=kv_cache_type)
    assert (real.context_tokens, real.slots) == (CONTEXT_TOKENS * slots, slots)
    ours = predicted(found, workload)
    caches = ROUNDED * len(real.caches)
    assert ours.kv_cache_bytes == pytest.approx(sum(real.kv_cache.values()), abs=caches)
    assert ours.state_bytes == pytest.approx(sum(real.state.values()), abs=caches)
    mapped = real.weights["CPU_Mapped"]
    assert ours.weights_bytes == pytest.approx(mapped, rel=2e-4, abs=2 * ROUNDED)
    buffers = sum(real.compute.values()) + sum(real.output.values())
    assert ours.compute_bytes == pytest.approx(buffers, rel=0.05, abs=ROUNDED)
