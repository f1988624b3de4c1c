"""The machines beside this file are readable, and are what the probes make of the raw text of the same name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provision.catalog import load_catalog
from provision.cli.where import Where, machines
from provision.domain.hardware import DEFAULT_MODEL_PATH
from provision.probes import machine_of
from provision.probes.match import with_catalog

FOLDER = Path(__file__).parent
ZOO = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", ZOO)
def test_machine_file(name: str) -> None:
    catalog = load_catalog()
    (read,) = machines(Where(machine_file=str(FOLDER / f"{name}.json")), catalog)
    case = json.loads((FOLDER.parent / "probes" / "machine" / f"{name}.json").read_text(encoding="utf-8"))
    assert read == with_catalog(machine_of(case["input"]["sections"], DEFAULT_MODEL_PATH, name="host"), catalog)
    assert [card.name for card in read.accelerators if card.catalog_id is None] == [], "the catalog knows every card"
    assert all(read.pool_of(card).bandwidth_bytes_per_s for card in read.accelerators)
