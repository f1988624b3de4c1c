"""What `provision catalog check` holds the catalog's files against: the rules of catalog/README.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from provision.catalog import (
    Catalog,
    Entry,
    entries_of,
    files_of,
    fold_hardware,
    fold_model,
    merged,
    nearest,
    order,
    unlike_builds,
)
from provision.domain.finding import Finding
from provision.domain.hardware import AcceleratorSpec, MemoryKind
from provision.domain.llm import Price, Tier

_STALE_AFTER = timedelta(days=180)


@dataclass(frozen=True, kw_only=True)
class CatalogReport:
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


def check_catalog(extra: Path | None = None, *, root: Path | None = None, today: date | None = None) -> CatalogReport:
    """Every rule of catalog/README.md over our files (or those in `root`) and the user's.

    Errors: wrong types and unknown keys, a number without provenance, unknown and unused sources, entries out of order,
    duplicates, a name that means two entries, references to what is not there. Warnings: sources not checked for 180
    days. Files that do not validate are reported alone, because nothing else can be said of them.
    """
    files = files_of(extra, root)
    problems: list[Finding] = []
    entries = list(entries_of(files, problems.append))
    catalog = merged(entries, "check")
    problems += unlike_builds(entries)
    if not problems:
        for rule in (_unsorted, _without_provenance, _broken_references, _ambiguous):
            problems += [Finding(code="invalid-catalog", message=m, hint=h) for m, h in rule(entries, catalog)]
    limit = (today or date.today()) - _STALE_AFTER
    warnings = tuple(
        Finding(
            code="stale-source",
            message=f"source '{source.id}' was last checked on {source.checked_on}",
            hint=f"look at {source.url or source.title} again and set checked_on",
        )
        for source in catalog.sources
        if source.checked_on < limit
    )
    return CatalogReport(errors=tuple(problems), warnings=warnings)


_Problems = Iterator[tuple[str, str]]

_FIGURES = ("layers", "experts", "layer_pattern", "usable_memory")
"""Fields that are no numbers but hold some."""


def _unsorted(entries: list[Entry], _catalog: Catalog) -> _Problems:
    seen: dict[tuple[str, str, tuple[Any, ...]], str] = {}
    before: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        known = (entry.root, entry.table, entry.key)
        if known in seen:
            yield f"{entry.label} is there twice, also in {seen[known]}", "remove one"
        seen[known] = entry.file
        last = before.get((entry.file, entry.table))
        if last is not None and order((entry.key, entry)) < order((last.key, last)):
            yield f"{entry.label} is out of order", f"move it before {last.label.split(': ')[1]}"
        else:
            before[entry.file, entry.table] = entry


def _without_provenance(entries: list[Entry], _catalog: Catalog) -> _Problems:
    for entry in entries:
        provenance = getattr(entry.record, "provenance", None)
        if provenance is None:
            continue
        names = {field.name for field in fields(entry.record)}
        for name in sorted(names):
            value = getattr(entry.record, name)
            is_number = isinstance(value, int | float | date) and not isinstance(value, bool)
            if (is_number or (name in _FIGURES and value)) and name not in provenance and "*" not in provenance:
                yield f"{entry.label}: {name} has no source", f'add provenance.{name} = "SOURCE-ID"'
        for name in sorted(provenance.keys() - names - {"*"}):
            yield f"{entry.label}: provenance.{name} is of no key here", f"remove provenance.{name}"


def _broken_references(entries: list[Entry], catalog: Catalog) -> _Problems:
    known = {
        "source": {entry.id for entry in catalog.sources},
        "accelerator": {entry.id for entry in catalog.accelerators},
        "model": {entry.id for entry in catalog.models},
        "quantization": {entry.id for entry in catalog.quantizations},
        "platform": {entry.id for entry in catalog.platforms},
        "tier": {entry.id for entry in catalog.tiers},
        "engine": {entry.id for entry in catalog.engines} | {"any"},
        "interconnect": {entry.name for entry in catalog.interconnects},
    }
    used = set()
    for entry in entries:
        for kind, name in _references(entry.record):
            if kind == "source":
                used.add(name)
            if name not in known[kind]:
                near = nearest(name, {k: k for k in known[kind]}, str)
                yield f"{entry.label}: there is no {kind} '{name}'", f"use {near[0]}" if near else f"add the {kind}"
    builds = {(build.model, build.quantization) for build in catalog.builds}
    for entry in entries:
        if entry.table == "claim" and entry.record.quantization:
            pair = (entry.record.model, entry.record.quantization)
            if pair not in builds:
                yield f"{entry.label}: there is no build {pair[0]} {pair[1]}", "add the [[build]]"
        if entry.table == "source" and entry.record.id not in used:
            yield f"{entry.label} is used by nothing", "remove it"


def _references(record: Any) -> Iterator[tuple[str, str]]:
    for source in getattr(record, "provenance", {}).values():
        yield "source", source
    for name in ("source", "verdict_source", "ollama_tag_source", "model", "quantization", "tier", "engine"):
        value = getattr(record, name, None)
        if isinstance(value, str):
            yield "source" if name.endswith("source") else name, value
    if isinstance(record, AcceleratorSpec) and record.pcie:
        yield "interconnect", record.pcie
    if isinstance(record, Price):
        yield "accelerator", record.hardware
    if isinstance(record, Tier):
        for option in (record.accelerators, *record.alternatives):
            yield from (("accelerator", name) for name in option)
        if record.memory_platform:
            yield "platform", record.memory_platform


def _ambiguous(entries: list[Entry], catalog: Catalog) -> _Problems:
    """Names of two entries. Only a reported name may be shared: by cards of different size, or by Apple's chips."""
    labels = {entry.record.id: entry.label for entry in entries if entry.table in ("accelerator", "model")}
    for name, specs in catalog.accelerators_by_name.items():
        if len(specs) < 2:
            continue
        reported = all(name in {fold_hardware(r) for r in (s.name, *s.reported_names)} for s in specs)
        dedicated = [spec.memory_bytes for spec in specs if spec.memory_kind is MemoryKind.DEDICATED]
        if not reported or len(set(dedicated)) < len(dedicated):
            others = ", ".join(f"'{spec.id}'" for spec in specs[1:])
            yield f"{labels[specs[0].id]}: the name '{name}' also means {others}", "make the aliases differ"
    owners: dict[str, str] = {}
    for model in catalog.models:
        for alias in {fold_model(text) for text in (model.id, *model.aliases)}:
            if owners.setdefault(alias, model.id) != model.id:
                yield f"{labels[model.id]}: '{alias}' also means '{owners[alias]}'", "make the aliases differ"
