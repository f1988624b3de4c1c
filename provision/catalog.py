"""What we know about the world, read from catalog/*.toml: models and their builds, hardware, engines, sources.

The user's own entries (`$XDG_DATA_HOME/provision/catalog/*.toml`) are read after ours and replace entries of the same
id. Validated records are kept as a pickle in the cache folder, named by the content of the files, so that a command
that reads the catalog imports neither pydantic nor tomllib.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import provision
from provision.catalog_faults import faults_of, impossible, unlike
from provision.domain import hardware as _hardware
from provision.domain import llm as _llm
from provision.domain.finding import Finding
from provision.domain.hardware import AcceleratorSpec, Interconnect
from provision.domain.llm import (
    Claim,
    Efficiency,
    EngineSpec,
    MemoryPlatform,
    ModelBuild,
    ModelSpec,
    Price,
    QualityLoss,
    Quantization,
    Source,
    SpeedInterval,
    Tier,
    WeightLayout,
)
from provision.errors import InvalidFile, UsageError
from provision.resources import cache_dir, data_dir, user_data_dir

_T = TypeVar("_T", Quantization, EngineSpec, Interconnect, Tier, MemoryPlatform, Source)


_TABLES: dict[str, tuple[type, str, tuple[str, ...]]] = {
    "accelerator": (AcceleratorSpec, "accelerators", ("id",)),
    "build": (ModelBuild, "builds", ("model", "quantization")),
    "claim": (Claim, "claims", ("tier", "model", "quantization", "text")),
    "efficiency": (Efficiency, "efficiency", ("term", "scope")),
    "engine": (EngineSpec, "engines", ("id", "version")),
    "interconnect": (Interconnect, "interconnects", ("id",)),
    "interval": (SpeedInterval, "intervals", ("measure", "group")),
    "model": (ModelSpec, "models", ("id",)),
    "platform": (MemoryPlatform, "platforms", ("id",)),
    "price": (Price, "prices", ("hardware", "on", "kind")),
    "quality": (QualityLoss, "quality", ("quantization", "metric", "model", "importance_matrix")),
    "quantization": (Quantization, "quantizations", ("id",)),
    "source": (Source, "sources", ("id",)),
    "tier": (Tier, "tiers", ("id",)),
}
"""Table name in TOML: type, field of Catalog, and the keys that make an entry unique and by which it is sorted."""

SCHEMAS: dict[str, tuple[str, ...]] = {
    "builds": ("build",),
    "claims": ("claim",),
    "efficiency": ("efficiency", "interval"),
    "engines": ("engine",),
    "hardware": ("accelerator",),
    "interconnects": ("interconnect",),
    "models": ("model",),
    "platforms": ("platform",),
    "prices": ("price",),
    "quality": ("quality",),
    "quantizations": ("quantization",),
    "sources": ("source",),
    "tiers": ("tier",),
}
"""Schema file: the tables that a file of that name, or in a folder of that name, may hold."""


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """All records and lookups by name. A lookup of an unknown name raises UsageError that names the nearest."""

    revision: str
    """Short hash of the files' content."""
    accelerators: tuple[AcceleratorSpec, ...] = ()
    builds: tuple[ModelBuild, ...] = ()
    claims: tuple[Claim, ...] = ()
    efficiency: tuple[Efficiency, ...] = ()
    engines: tuple[EngineSpec, ...] = ()
    interconnects: tuple[Interconnect, ...] = ()
    intervals: tuple[SpeedInterval, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    platforms: tuple[MemoryPlatform, ...] = ()
    prices: tuple[Price, ...] = ()
    quality: tuple[QualityLoss, ...] = ()
    quantizations: tuple[Quantization, ...] = ()
    sources: tuple[Source, ...] = ()
    tiers: tuple[Tier, ...] = ()
    layouts: tuple[WeightLayout | None, ...] = ()
    """Of `builds`, one each, worked out when the catalog was read; None where that is left to who asks."""

    @cached_property
    def sized_builds(self) -> dict[str, tuple[tuple[ModelSpec, ModelBuild, Quantization], ...]]:
        """Every build with its records, by model; sizing knows their layouts from now on."""
        from provision.sizing import weights

        models = {model.id: model for model in self.models}
        named = {entry.id: entry for entry in self.quantizations}
        found: dict[str, list[tuple[ModelSpec, ModelBuild, Quantization]]] = defaultdict(list)
        for build, layout in zip_longest(self.builds, self.layouts):
            if build.model in models and build.quantization in named:
                records = (models[build.model], build, named[build.quantization])
                found[build.model].append(records)
                if layout is not None:
                    weights.layout.remember(layout, *records)
        return {model: tuple(builds) for model, builds in found.items()}

    def model(self, name: str) -> ModelSpec:
        """By id, alias, or the tag of one of its builds; case and a trailing `:latest` do not matter."""
        found = self._models.get(fold_model(name))
        if found is None:
            near = nearest(fold_model(name), self._models, lambda spec: spec.id)
            raise _unknown("model", name, near, "provision catalog list models")
        return found

    def builds_of(self, model: str) -> tuple[ModelBuild, ...]:
        """All builds of the model with exactly this id; none for a model that has none."""
        return self._builds.get(model, ())

    def build(self, model: str, quantization: str) -> ModelBuild:
        """The build of a model (any of its names) in one quantization."""
        spec = self.model(model)
        wanted = self.quantization(quantization).id
        for build in self.builds_of(spec.id):
            if build.quantization == wanted:
                return build
        names = ", ".join(build.quantization for build in self.builds_of(spec.id))
        raise UsageError(
            f"no size of {spec.id} in {wanted} is in the catalog",
            hint=f"use one of {names}" if names else "provision catalog list models",
            code="unknown-build",
        )

    def accelerator(self, name: str) -> AcceleratorSpec:
        """By id, the name that the driver reports, or alias; whole names only, case, spaces and maker do not matter.

        An id or alias goes before a reported name: "RTX 3060" is the one of 12 GB, though one of 8 GB reports it too.
        A name that several memory sizes share and none owns ("RTX 4060 Ti") raises UsageError `ambiguous-gpu`.
        """
        folded = fold_hardware(name)
        found = self.accelerators_by_name.get(folded, ())
        if len(found) > 1:
            owners = tuple(spec for spec in found if folded in map(fold_hardware, (spec.id, *spec.aliases)))
            found = owners if len(owners) == 1 else found
        if len(found) == 1:
            return found[0]
        if found:
            choice = " or ".join(f'"{_typed(spec)}"' for spec in found)
            raise UsageError(f"'{name}' is more than one card", hint=f"which one: {choice}", code="ambiguous-gpu")
        near = nearest(fold_hardware(name), self.accelerators_by_name, lambda specs: f'"{_typed(specs[0])}"')
        raise _unknown("gpu", name, near, "provision catalog list hardware")

    def quantization(self, name: str) -> Quantization:
        return self._one("quantization", name, self._quantizations, "provision catalog list quantizations")

    def engine(self, name: str) -> EngineSpec:
        """By id, the newest version known; or one version, written `ollama@0.24.0`."""
        found = self._engines.get(_fold(name))
        if found is None:
            near = nearest(_fold(name), self._engines, lambda entry: f"{entry.id}@{entry.version}")
            raise _unknown("engine", name, near, "provision catalog list engines")
        return found

    @cached_property
    def newest_engines(self) -> tuple[EngineSpec, ...]:
        """Of every engine the newest version, in order of id."""
        newest = {engine.id: engine for engine in sorted(self.engines, key=lambda e: (e.id, version_key(e.version)))}
        return tuple(newest.values())

    def tier(self, name: str) -> Tier:
        return self._one("tier", name, self._tiers, "provision catalog list tiers")

    def interconnect(self, name: str) -> Interconnect:
        """A link by id or name: `AcceleratorSpec.pcie` is one."""
        return self._one("interconnect", name, self._interconnects, "provision catalog check")

    def platform(self, name: str) -> MemoryPlatform:
        """Host memory by id or alias."""
        return self._one("platform", name, self._platforms, "provision catalog list platforms")

    def source(self, name: str) -> Source:
        return self._one("source", name, self._sources, "provision catalog check")

    def _one(self, kind: str, name: str, index: Mapping[str, _T], listing: str) -> _T:
        found = index.get(_fold(name))
        if found is None:
            raise _unknown(kind, name, nearest(_fold(name), index, lambda entry: entry.id), listing)
        return found

    @cached_property
    def _models(self) -> dict[str, ModelSpec]:
        by_id = {model.id: model for model in self.models}
        tags = {fold_model(b.ollama_tag): by_id[b.model] for b in self.builds if b.ollama_tag and b.model in by_id}
        return tags | {fold_model(name): model for model in self.models for name in (*model.aliases, model.id)}

    @cached_property
    def _builds(self) -> dict[str, tuple[ModelBuild, ...]]:
        groups: dict[str, list[ModelBuild]] = defaultdict(list)
        for build in self.builds:
            groups[build.model].append(build)
        return {model: tuple(builds) for model, builds in groups.items()}

    @cached_property
    def accelerator_ids(self) -> frozenset[str]:
        return frozenset(spec.id for spec in self.accelerators)

    @cached_property
    def accelerators_by_name(self) -> dict[str, tuple[AcceleratorSpec, ...]]:
        names: dict[str, dict[str, AcceleratorSpec]] = defaultdict(dict)
        for spec in self.accelerators:
            for name in _names_of(spec):
                names[fold_hardware(name)][spec.id] = spec
        return {name: tuple(specs.values()) for name, specs in names.items()}

    @cached_property
    def _quantizations(self) -> dict[str, Quantization]:
        return {_fold(entry.id): entry for entry in self.quantizations}

    @cached_property
    def _engines(self) -> dict[str, EngineSpec]:
        versions = {_fold(f"{entry.id}@{entry.version}"): entry for entry in self.engines}
        return versions | {_fold(entry.id): entry for entry in self.newest_engines}

    @cached_property
    def _interconnects(self) -> dict[str, Interconnect]:
        return {_fold(name): entry for entry in self.interconnects for name in (entry.name, entry.id)}

    @cached_property
    def _tiers(self) -> dict[str, Tier]:
        return {_fold(entry.id): entry for entry in self.tiers}

    @cached_property
    def _platforms(self) -> dict[str, MemoryPlatform]:
        return {_fold(name): entry for entry in self.platforms for name in (*entry.aliases, entry.name, entry.id)}

    @cached_property
    def _sources(self) -> dict[str, Source]:
        return {_fold(entry.id): entry for entry in self.sources}


def load_catalog(extra: Path | None = None) -> Catalog:
    """Ours and the user's entries (`extra`, by default the user's data folder), from the cache where it is current.

    Raises InvalidFile with one line that names file, entry, key and fix.
    """
    files = files_of(extra)
    content = blake2b(digest_size=16)
    for root, path, data in files:
        content.update(f"{root}\0{path}\0{len(data)}\0".encode())
        content.update(data)
    revision = content.hexdigest()[:12]
    for part in (provision.__version__, sys.version):
        content.update(part.encode())
    for module in (__file__, _llm.__file__, _hardware.__file__, *_code_of_layouts()):
        # A record pickled by other code may lack a field, or have been worked out otherwise.
        content.update(Path(module).read_bytes())
    cached = cache_dir() / f"catalog-{content.hexdigest()}.pickle"
    catalog = _read_cache(cached)
    if catalog is None:
        catalog = _assemble(files, revision)
        catalog = replace(catalog, layouts=_layouts(catalog))
        _write_cache(cached, catalog)
    return catalog


def _code_of_layouts() -> list[str]:
    folder = Path(provision.__path__[0]) / "sizing"
    return [str(folder / name) for name in ("quantization_mix.py", "tensors.py", "weights.py")]


def _layouts(catalog: Catalog) -> tuple[WeightLayout | None, ...]:
    from provision.sizing import weights

    found = {
        (build.model, build.quantization): weights.layout(model, build, quantization)
        for builds in catalog.sized_builds.values()
        for model, build, quantization in builds
        if quantization.container == "gguf" and build.layout is None
    }
    return tuple(found.get((build.model, build.quantization)) for build in catalog.builds)


def schema(name: str) -> dict[str, object]:
    """JSON schema of the catalog files called `name` (a key of SCHEMAS), generated from the types."""
    from pydantic import TypeAdapter

    properties, definitions = {}, {}
    for table in SCHEMAS[name]:
        document = TypeAdapter(_TABLES[table][0]).json_schema()
        definitions.update(document.pop("$defs", {}))
        properties[table] = {"type": "array", "items": document}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"catalog {name}",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def write_schemas(folder: Path | None = None) -> None:
    """Generate catalog/schema/*.json again; needed after a change of the types."""
    import json

    target = folder or data_dir("catalog") / "schema"
    target.mkdir(parents=True, exist_ok=True)
    for name in SCHEMAS:
        (target / f"{name}.json").write_text(json.dumps(schema(name), indent=2, ensure_ascii=False) + "\n", "utf-8")


# Reading and validating


_LARGEST_FILE_BYTES = 16 * 2**20

_File = tuple[str, str, bytes]
"""Root ("catalog" or the user's folder), path below it, content."""


@dataclass(frozen=True)
class Entry:
    root: str
    file: str
    table: str
    record: Any

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(getattr(self.record, name) for name in _TABLES[self.table][2])

    @property
    def label(self) -> str:
        return f"{self.file}: [[{self.table}]] '{' '.join(str(part) for part in self.key if part is not None)}'"


def files_of(extra: Path | None, root: Path | None = None) -> list[_File]:
    ours = root or data_dir("catalog")
    mine = extra or user_data_dir() / "catalog"
    return [
        (name, f"{name}/{path.relative_to(folder).as_posix()}", _content(path))
        for name, folder in (("catalog", ours), (str(mine), mine))
        for path in _paths(folder)
    ]


def _paths(folder: Path) -> list[Path]:
    try:
        return sorted(folder.rglob("*.toml"))
    except PermissionError:  # somebody else's home folder (sudo -u): nothing in it was written for us
        return []


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise InvalidFile(f"{path} is not a regular file", hint=f"rename or remove {path}", code="invalid-catalog")
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise InvalidFile(
                f"{path} has {path.stat().st_size:,} bytes: no file of the catalog",
                hint=f"rename or remove {path}",
                code="invalid-catalog",
            )
        return path.read_bytes()
    except OSError as error:
        raise InvalidFile(
            f"cannot read {path}: {error.strerror}", hint=f"correct or remove {path}", code="invalid-catalog"
        ) from error


def _assemble(files: list[_File], revision: str) -> Catalog:
    problems: list[Finding] = []
    entries = list(entries_of(files, problems.append))
    problems += unlike_builds(entries)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidFile(problems[0].message + more, hint=problems[0].hint, code="invalid-catalog")
    return merged(entries, revision)


def unlike_builds(entries: list[Entry]) -> list[Finding]:
    """Layouts that do not fit the model that their build is of, once the user's entries have replaced ours."""
    models = {entry.key: entry.record for entry in entries if entry.table == "model"}
    builds = {entry.key: entry for entry in entries if entry.table == "build"}
    return [
        Finding(code="invalid-catalog", message=f"{entry.label}: {fault.key}: {fault.reason}", hint=fault.fix)
        for entry in builds.values()
        if (model := models.get((entry.record.model,))) and (fault := unlike(entry.record, model))
    ]


def merged(entries: Iterable[Entry], revision: str) -> Catalog:
    tables: dict[str, dict[tuple[Any, ...], Any]] = defaultdict(dict)
    for entry in entries:
        tables[_TABLES[entry.table][1]][entry.key] = entry.record
    sets = {name: tuple(record for _, record in sorted(records.items(), key=order)) for name, records in tables.items()}
    return Catalog(revision=revision, **sets)


def entries_of(files: list[_File], report: Callable[[Finding], None]) -> Iterator[Entry]:
    """All valid entries; what is not valid is reported and left out."""
    import json
    import tomllib

    from pydantic import TypeAdapter, ValidationError

    adapters: dict[str, TypeAdapter[Any]] = {}

    def problem(message: str, hint: str) -> None:
        report(Finding(code="invalid-catalog", message=message, hint=hint))

    for root, file, data in files:
        try:
            tables = tomllib.loads(data.decode())
        except (ValueError, RecursionError) as error:
            problem(f"{file}: not readable as TOML: {error}", f"correct {file}")
            continue
        for table, raw in tables.items():
            allowed = _allowed_tables(root, file)
            if table not in allowed or not isinstance(raw, list):
                problem(f"{file}: '{table}' is not a table of this file", f"use {_brackets(allowed)}")
                continue
            if table not in adapters:
                adapters[table] = TypeAdapter(_TABLES[table][0])
            for number, item in enumerate(raw, 1):
                try:
                    # Through JSON, because only there strict mode takes arrays for tuples and text for dates and enums.
                    record = adapters[table].validate_json(json.dumps(item, default=str))
                except ValidationError as error:
                    faults = list(faults_of(error.errors(), item, _TABLES[table][0], table))
                else:
                    found = impossible(record)
                    if found is None:
                        yield Entry(root, file, table, record)
                        continue
                    faults = [found]
                given = item if isinstance(item, dict) else {}
                name = " ".join(str(given[k]) for k in _TABLES[table][2] if k in given) or f"number {number}"
                for key, reason, fix in faults:
                    problem(f"{file}: [[{table}]] '{name}': {f'{key}: ' if key else ''}{reason}", fix)


def _allowed_tables(root: str, file: str) -> tuple[str, ...]:
    if root != "catalog":
        return tuple(_TABLES)
    parts = Path(file).parts[1:]
    return SCHEMAS.get(parts[0].removesuffix(".toml"), ())


def _brackets(tables: tuple[str, ...]) -> str:
    return ", ".join(f"[[{table}]]" for table in tables) or f"a file name of {', '.join(SCHEMAS)}"


def order(item: tuple[tuple[Any, ...], object]) -> tuple[tuple[bool, Any], ...]:
    """Sort key of a pair of key and record; what is not given comes first."""
    return tuple((part is not None, part) for part in item[0])


# Names


_MAKERS = {"nvidia", "geforce", "amd", "radeon", "intel", "apple", "r", "tm", "graphics", "gpu"}
"""Words that people leave out and drivers add."""


def _fold(name: str) -> str:
    return name.strip().casefold()


def version_key(version: str) -> tuple[int, ...]:
    """Versions in their own order: 0.9 before 0.10; what is no number does not count."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def fold_model(name: str) -> str:
    return _fold(name).removesuffix(":latest")


def fold_hardware(name: str) -> str:
    """Letters and digits of the words that tell cards apart: "NVIDIA GeForce RTX 4090 D" is `rtx4090d`."""
    words = re.findall(r"[a-z0-9]+", _fold(name).replace("gib", "gb"))
    return "".join(word for word in words if word not in _MAKERS)


def _names_of(spec: AcceleratorSpec) -> tuple[str, ...]:
    return (spec.id, spec.name, *spec.reported_names, *spec.aliases)


def _typed(spec: AcceleratorSpec) -> str:
    """The shortest name that means this card and no other."""
    return spec.aliases[0] if spec.aliases else spec.id


def nearest(name: str, index: Mapping[str, Any], shown: Callable[[Any], str]) -> list[str]:
    from difflib import get_close_matches

    return list(dict.fromkeys(shown(index[key]) for key in get_close_matches(name, index, n=3, cutoff=0.5)))


def _unknown(kind: str, name: str, near: list[str], listing: str) -> UsageError:
    hint = f"use {' or '.join(near)} (all: {listing})" if near else listing
    return UsageError(f"the catalog has no {kind} '{name}'", hint=hint, code=f"unknown-{kind}")


# Cache


def _read_cache(path: Path) -> Catalog | None:
    """None when there is no cache, when it is not only ours to write (a pickle is code), or when it is corrupt."""
    try:
        with path.open("rb") as stream:
            for status in (path.parent.stat(), os.fstat(stream.fileno())):
                if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                    return None
            catalog = pickle.load(stream)
    except Exception:  # unpickling damaged bytes can raise anything; the files themselves are the truth
        return None
    return catalog if isinstance(catalog, Catalog) else None


def _write_cache(path: Path, catalog: Catalog) -> None:
    """Atomic, readable by the user alone; a folder that cannot be written only costs the next start its time."""
    import tempfile

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in path.parent.glob("catalog-*.pickle"):
            old.unlink(missing_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".catalog-")
        with os.fdopen(handle, "wb") as stream:
            pickle.dump(catalog, stream, protocol=pickle.HIGHEST_PROTOCOL)
        os.replace(temporary, path)
    except OSError:
        return
