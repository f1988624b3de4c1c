"""Entries that a user adds to the catalog: from a GGUF file, a Hugging Face repository or an Ollama tag.

Only headers are read. What is found becomes catalog records with their source; `write` puts them into the user's data
folder, where they replace ours of the same id, and `remove` takes them out again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from datetime import UTC, date, datetime
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import Any

from provision.catalog import Catalog, Entry, entries_of, files_of, fold_model
from provision.catalog_faults import unlike
from provision.domain.finding import Finding
from provision.domain.llm import ModelBuild, ModelSpec, Quantization, Source
from provision.errors import InvalidFile, UsageError
from provision.hub.found import Found
from provision.resources import user_data_dir

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,119}")
_HEAD = "# Written by `provision catalog add`; `provision catalog remove {name}` takes it out again.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """Entries ready to be written, as one file for the model and one for each quantization that is new."""

    model: ModelSpec
    builds: tuple[ModelBuild, ...]
    quantizations: tuple[Quantization, ...]
    source: Source
    overrides: tuple[str, ...]
    """Labels of the entries that are replaced, theirs or ours."""
    files: tuple[tuple[Path, str], ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file that was written or taken out, and where its former content is kept."""

    path: Path
    backup: Path | None


def checked_name(text: str) -> str:
    """A name for a model as people would type it. Raises UsageError."""
    if not _NAME.fullmatch(text) or ".." in text:
        raise UsageError(
            f"'{text[:80]}' is no name for a model", hint="letters, digits and . _ : / + -, e.g. --name mymodel:8b"
        )
    return text


def prepare(catalog: Catalog, found: Found, name: str | None, *, today: date | None = None) -> Addition:
    """`found` as entries under `name`, else under the name of the same model in the catalog, else under its own.

    Where the catalog has the model by one of its names and with the same shape, the entry takes over what a header
    does not say: aliases, licence, tags. Builds that the user added before stay. Raises UsageError where a name means
    another model.
    """
    model_id, known = _settle_name(catalog, found, name)
    folder = user_data_dir() / "catalog"
    path = _file_for(folder, model_id)
    own = _users_entries(folder)
    before = [entry.record for entry in own if entry.file == str(path)]
    source = Source(
        id=f"added-{_slug(model_id)}-{blake2b(found.title.encode(), digest_size=3).hexdigest()}",
        title=found.title,
        url=found.url,
        kind="file_size",
        checked_on=today or datetime.now(UTC).date(),
    )
    model = replace(found.model, id=model_id, provenance={"*": source.id})
    if known is not None:
        model = _with_what_is_known(model, known)
    new: dict[str, tuple[Quantization, Source]] = {}
    builds = {build.quantization: build for build in before if isinstance(build, ModelBuild)}
    added: dict[str, ModelBuild] = {}
    for build, mix in found.builds:
        quantization = build.quantization if mix is None else _settle(catalog, mix, source, new)
        added.setdefault(quantization, _build(catalog, model_id, build, quantization, source))
    builds |= added
    left = (build for build in catalog.builds_of(model_id) if build.quantization not in builds)
    if any(unlike(build, model) for build in left):
        raise UsageError(
            f"{model_id} has builds with another number of layers than the {model.layer_count} found",
            hint=f"--name {model_id}-2",
            code="name-taken",
        )
    used = {source.id} | {build.source for build in builds.values()}
    sources = {s.id: s for s in (*(r for r in before if isinstance(r, Source)), source) if s.id in used}
    entries = (*(sources[i] for i in sorted(sources)), model, *(builds[key] for key in sorted(builds)))
    files = [(folder / f"quantization-{_slug(q.id)}.toml", _document(model_id, s, q)) for q, s in new.values()]
    files.append((path, _document(model_id, *entries)))
    return Addition(
        model=model,
        builds=tuple(added[key] for key in sorted(added)),
        quantizations=tuple(q for q, _ in new.values()),
        source=source,
        overrides=_overridden(catalog, own, (model, *(added[key] for key in sorted(added)))),
        files=tuple(files),
        findings=(*found.findings, *_without_tag(found, added.values())),
    )


def write(addition: Addition) -> tuple[Written, ...]:
    """Each file at once or not at all; one that is there already is kept beside as `.bak`. Raises InvalidFile.

    What is written is read back first, as the catalog would, so that no entry is left that stops the next command.
    """
    files = [(str(path.parent), f"{path.parent}/{path.name}", text.encode()) for path, text in addition.files]
    problems: list[Finding] = []
    for _ in entries_of(files, problems.append):
        pass
    if problems:  # a bug of ours, but the user's catalog is not to suffer from it
        raise InvalidFile(problems[0].message, hint=problems[0].hint, code="invalid-catalog")
    return tuple(_replace(path, text) for path, text in addition.files)


def remove(name: str) -> tuple[Written, ...]:
    """Take the user's entry of this model out, and quantizations that only it used. Kept beside as `.bak`.

    Raises UsageError where there is none, or where its file holds other entries too.
    """
    folder = user_data_dir() / "catalog"
    entries = _users_entries(folder)
    wanted = fold_model(name)
    own = [e for e in entries if e.table == "model" and fold_model(e.record.id) == wanted]
    if not own:
        names = sorted(entry.record.id for entry in entries if entry.table == "model")
        raise UsageError(
            f"you have added no model '{name}'",
            hint=f"yours: {', '.join(names)}" if names else "provision catalog list models",
            code="unknown-model",
        )
    path = Path(own[0].file)
    others = [e for e in entries if e.file == own[0].file and _belongs_to(e) not in (own[0].record.id, None)]
    if others:
        raise UsageError(
            f"{path} holds more than {own[0].record.id}: {others[0].label.split(': ')[1]}",
            hint=f"take the entry out of {path} by hand",
            code="not-alone",
        )
    left = [entry for entry in entries if entry.file != own[0].file]
    in_use = {entry.record.quantization for entry in left if entry.table == "build"}
    unused = {
        Path(entry.file)
        for entry in left
        if entry.table == "quantization"
        and Path(entry.file).name == f"quantization-{_slug(entry.record.id)}.toml"
        and entry.record.id not in in_use
        and entry.record.id in {e.record.quantization for e in entries if e.file == own[0].file and e.table == "build"}
    }
    return tuple(_take_out(file) for file in (path, *sorted(unused)))


# Settling names and sources


def _settle_name(catalog: Catalog, found: Found, name: str | None) -> tuple[str, ModelSpec | None]:
    """The id of the entry, and the record that it replaces."""
    wanted = checked_name(name or found.model.id)
    try:
        known = catalog.model(wanted)
    except UsageError:
        return wanted, None
    if name is not None:
        if fold_model(name) != fold_model(known.id):
            raise UsageError(f"'{name}' is another name of {known.id}", hint=f"--name {known.id}", code="name-taken")
        return known.id, known
    is_its_tag = any(build.ollama_tag == known.id for build, _ in found.builds)
    if not is_its_tag and not _same_shape(known, found.model):
        raise UsageError(
            f"'{wanted}' already means {known.id}, a model of another shape",
            hint=f"--name {wanted}-2, or --name {known.id} to replace it",
            code="name-taken",
        )
    return known.id, known


def _without_tag(found: Found, builds: Iterable[ModelBuild]) -> Iterator[Finding]:
    is_gguf = any(mix is None or mix.container == "gguf" for _, mix in found.builds)
    missing = [build for build in builds if build.ollama_tag is None]
    if is_gguf and missing:
        yield Finding(
            code="no-tag",
            message=f"there is no tag that Ollama could pull for {', '.join(build.quantization for build in missing)}",
            hint="plan it with --engine llamacpp",
        )


def _same_shape(known: ModelSpec, found: ModelSpec) -> bool:
    """Whether two records can be of one model; vocabularies are padded differently."""
    keys = ("hidden_size", "attention_heads", "layer_count")
    return all(getattr(known, key) == getattr(found, key) for key in keys)


def _with_what_is_known(model: ModelSpec, known: ModelSpec) -> ModelSpec:
    return replace(
        model,
        name=known.name,
        family=known.family,
        aliases=known.aliases,
        license=known.license or model.license,
        hugging_face_repo=known.hugging_face_repo or model.hugging_face_repo,
    )


def _build(catalog: Catalog, model: str, build: ModelBuild, quantization: str, source: Source) -> ModelBuild:
    """With the tag that is known of the same file."""
    same = next((b for b in catalog.builds_of(model) if b.quantization == quantization), None)
    tag = build.ollama_tag
    if tag is None and same is not None and same.weights_bytes == build.weights_bytes:
        tag = same.ollama_tag
    return replace(build, model=model, quantization=quantization, ollama_tag=tag, source=source.id)


def _settle(catalog: Catalog, mix: Quantization, source: Source, new: dict[str, tuple[Quantization, Source]]) -> str:
    """The id under which the catalog has this mix, or will have it from an entry that goes into `new`."""
    known = {entry.id.casefold(): entry for entry in catalog.quantizations}
    wanted = mix.id if mix.id != "unknown" else f"mix-{mix.bits_per_weight:.2f}bit"
    same = known.get(wanted.casefold())
    if same is not None and same.container != mix.container:
        wanted = f"{wanted}-{'GGUF' if mix.container == 'gguf' else 'HF'}"
        same = known.get(wanted.casefold())
    if same is not None:
        return same.id
    if wanted not in new:
        own = replace(source, id=f"added-quantization-{_slug(wanted)}", title=f"{source.title} (its mix of types)")
        rank = _rank(catalog, mix)
        new[wanted] = (replace(mix, id=wanted, rank=rank, provenance={"*": own.id}), own)
    return wanted


def _rank(catalog: Catalog, mix: Quantization) -> int:
    """Of the known mix that is nearest in bits per weight: what is known of its quality."""
    others = [q for q in catalog.quantizations if q.container == mix.container]
    return min(others, key=lambda q: abs(q.bits_per_weight - mix.bits_per_weight)).rank if others else 0


# Files


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model"


def _file_for(folder: Path, model: str) -> Path:
    """The file of this model's entry; where another one has that name already, a file of its own."""
    own = next((e for e in _users_entries(folder) if e.table == "model" and e.record.id == model), None)
    plain = folder / f"{_slug(model)}.toml"
    if own is not None and Path(own.file).parent == folder:
        alone = all(_belongs_to(e) in (model, None) for e in _users_entries(folder) if e.file == own.file)
        if not alone:
            raise UsageError(
                f"{own.file} has {model} beside other entries",
                hint=f"take it out of {own.file} first",
                code="not-alone",
            )
        return Path(own.file)
    if plain.exists():
        return folder / f"{_slug(model)}-{blake2b(model.encode(), digest_size=3).hexdigest()}.toml"
    return plain


def _users_entries(folder: Path) -> list[Entry]:
    """What is valid among the user's own; what is not stops the commands that load the catalog."""
    own = [file for file in files_of(folder) if file[0] == str(folder)]
    return list(entries_of(own, lambda _: None))


def _belongs_to(entry: Entry) -> str | None:
    """The model that an entry is of; None for its source; a text of its own for every other entry."""
    if entry.table == "model":
        return str(entry.record.id)
    if entry.table == "build":
        return str(entry.record.model)
    return None if entry.table == "source" and entry.record.id.startswith("added-") else entry.label


def _overridden(catalog: Catalog, before: list[Entry], records: Iterable[object]) -> tuple[str, ...]:
    """The entries that are there under the same key, ours and the user's own."""
    own = {(entry.table, entry.key): entry for entry in before}
    ours = {("model", (m.id,)) for m in catalog.models} | {("build", (b.model, b.quantization)) for b in catalog.builds}
    labels = []
    for record in records:
        entry = Entry("", "", _table(record), record)
        known = (entry.table, entry.key)
        if known in own:
            labels.append(own[known].label)
        elif known in ours:
            labels.append(f"ours{entry.label}")
    return tuple(labels)


def _replace(path: Path, text: str) -> Written:
    import tempfile

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            backup = _backup(path)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InvalidFile(
            f"cannot write {path}: {error.strerror}", hint="set XDG_DATA_HOME to a folder of yours"
        ) from error
    return Written(path=path, backup=backup)


def _take_out(path: Path) -> Written:
    try:
        backup = _backup(path)
        path.unlink()
    except OSError as error:
        raise InvalidFile(f"cannot remove {path}: {error.strerror}", hint=f"ls -l {path}") from error
    return Written(path=path, backup=backup)


def _backup(path: Path) -> Path | None:
    """A copy of `path` beside it, under a name that the catalog does not read; None where there is nothing to keep."""
    if not path.exists():
        return None
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1000):
        backup = path.with_name(f"{path.name}.{stamp}{f'.{number}' if number else ''}.bak")
        try:
            os.link(path, backup)
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            backup.write_bytes(path.read_bytes())
        return backup
    raise FileExistsError(17, "too many copies", str(path))


# TOML


def _document(name: str, *records: object) -> str:
    return _HEAD.format(name=name) + "".join(f"\n[[{_table(record)}]]\n{_entry(record)}" for record in records)


def _table(record: object) -> str:
    return {ModelSpec: "model", ModelBuild: "build", Quantization: "quantization", Source: "source"}[type(record)]


def _entry(record: Any) -> str:
    """Every field that differs from its default, one a line."""
    said = (field.name for field in fields(record) if _says(record, field))
    return "".join(f"{name} = {toml_value(getattr(record, name))}\n" for name in said)


def _says(record: Any, field: Field[Any]) -> bool:
    """Whether the record's value is more than what is taken without it."""
    value = getattr(record, field.name)
    return value is not None and value != field.default


def toml_value(value: Any) -> str:
    """A value in TOML, on one line."""
    if isinstance(value, Enum):
        return toml_value(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if is_dataclass(value):
        kept = {f.name: getattr(value, f.name) for f in fields(value) if f.name == "kind" or _says(value, f)}
        return "{ " + ", ".join(f"{key} = {toml_value(v)}" for key, v in kept.items()) + " }"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_text(key)} = {toml_value(v)}" for key, v in value.items()) + " }"
    return _text(str(value))


def _text(value: str) -> str:
    """A basic string: control characters, which a header can hold, are escaped; what UTF-8 cannot hold is replaced."""
    escaped = {'"': '\\"', "\\": "\\\\"}
    clean = value.encode("utf-8", "replace").decode()
    return '"' + "".join(escaped.get(c) or (c if c.isprintable() else f"\\U{ord(c):08X}") for c in clean) + '"'
