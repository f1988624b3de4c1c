"""One model from one place: a GGUF file, a repository of the Hugging Face hub, a tag of an Ollama registry."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from provision import gguf, safetensors
from provision.domain.finding import Finding
from provision.domain.llm import ModelBuild, ModelSpec, Precision, Quantization
from provision.errors import InvalidFile, UsageError
from provision.hub import huggingface, ollama
from provision.hub.config import model_of_config
from provision.hub.http import Remote, shown
from provision.hub.huggingface import GgufFile, Repository, RepositoryFile

Progress = Callable[[int, int], None]
"""Headers read so far, and of how many."""
_PREFERRED = ("Q4_K_M", "Q4_0", "Q4_K_S", "Q5_K_M", "Q6_K", "Q8_0")
"""Whose header tells the shape, where none was asked for: what people usually pull."""
_MOST_HEADERS = 64
_MOST_TENSORS = 400_000
"""Of one model in safetensors files; the largest that are published have about 200,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a place holds: one model, its builds, and the mixes of types that they are quantized with."""

    model: ModelSpec
    builds: tuple[tuple[ModelBuild, Quantization | None], ...]
    """With None: a mix that the catalog has, whose header was not read."""
    title: str
    """Of the source, for people."""
    url: str | None = None
    findings: tuple[Finding, ...] = ()


def from_gguf(path: Path) -> Found:
    """A local file, or all parts of a split one. Raises InvalidFile."""
    header = gguf.read_file(path)
    model, build, mix = gguf.model_of(header, name_from(path.name), "")
    label = gguf.label_in(path.name)
    return Found(
        model=model,
        builds=((replace(build, artifact=path.name), replace(mix, id=label or mix.id)),),
        title=f"header of {path.name}, {header.file_bytes:,} bytes",
    )


def from_hugging_face(
    remote: Remote,
    reference: str,
    *,
    is_known: Callable[[str], bool],
    every_header: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Found:
    """A repository's GGUF files, each a build with its exact size, else its safetensors files as one build.

    The header of one GGUF file tells the shape; others are read for mixes that are not `is_known`, or with
    `every_header` for the exact place of their tensors. Of safetensors every file's header is read, because all
    together are one model.
    """
    name, choice = huggingface.split_reference(reference)
    repository = huggingface.list_repository(remote, name)
    files = _chosen(repository, choice)
    if not files:
        return _from_safetensors(remote, repository, progress)
    first = next((f for wanted in _PREFERRED for f in files if f.label == wanted), files[0])
    to_read = [f for f in files if f is first or every_header or not is_known(f.label)]
    if len(to_read) > _MOST_HEADERS:
        raise UsageError(
            f"{name} has {len(files)} GGUF files, {len(to_read)} of them of mixes that are not known",
            hint=f"hf:{name}:{first.label}",
            code="too-many-files",
        )
    read: dict[str, tuple[ModelSpec, ModelBuild, Quantization]] = {}
    for number, file in enumerate(to_read):
        progress(number, len(to_read))
        header = _gguf_header(remote, repository, file)
        read[file.label] = gguf.model_of(header, name_from(name.partition("/")[2]), "")
    progress(len(to_read), len(to_read))
    model = read[first.label][0]
    builds: list[tuple[ModelBuild, Quantization | None]] = []
    for file in files:
        tag = f"hf.co/{name}:{file.label}" if len(file.parts) == 1 else None
        if file.label in read:
            _, build, mix = read[file.label]
            builds.append((replace(build, ollama_tag=tag, artifact=_artifact(name, file)), replace(mix, id=file.label)))
        else:
            builds.append((_unread(model, file, tag, _artifact(name, file)), None))
    return Found(
        model=replace(model, hugging_face_repo=name),
        builds=tuple(builds),
        title=f"{name} at {shown(remote.endpoint)}: listing and the header of {_artifact(name, first)}"
        + _digest(first.parts[0]),
        url=f"{shown(remote.endpoint)}/{name}",
        findings=_projectors(sum(f.size for f in repository.files if "mmproj" in f.path)),
    )


def from_ollama(remote: Remote, tag: str) -> Found:
    """A tag of an Ollama registry, which stands for one GGUF file. Raises what reading it raises."""
    manifest = ollama.read_manifest(remote, tag)
    source = ollama.model_file(remote, manifest)
    try:
        header = gguf.read_header(source)
    finally:
        source.close()
    model, build, mix = gguf.model_of(header, manifest.tag.removesuffix(":latest"), "")
    return Found(
        model=model,
        builds=(
            (
                replace(build, ollama_tag=manifest.tag, artifact=manifest.tag),
                replace(mix, id=mix.id if mix.id != "unknown" else manifest.file_type or mix.id),
            ),
        ),
        title=f"manifest of {manifest.tag} at {shown(remote.endpoint)} and the header of {manifest.digest}",
        url=f"{shown(remote.endpoint)}{manifest.path}/manifests/{manifest.tag.rpartition(':')[2]}",
        findings=_projectors(manifest.projector_bytes),
    )


def name_from(text: str) -> str:
    """A model's name made of a file's or repository's: without its quantization and form, in small letters."""
    stem = re.sub(r"\.gguf$", "", text, flags=re.IGNORECASE)
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    label = gguf.label_in(stem)
    if label:
        stem = re.sub(rf"[-._]?{re.escape(label)}$", "", stem, flags=re.IGNORECASE)
    stem = re.sub(r"[-._]gguf$", "", stem, flags=re.IGNORECASE)
    stem = re.sub(r"[^a-z0-9._+-]+", "-", stem.lower()).strip("-._+")
    return stem[:100] or "model"


def _chosen(repository: Repository, choice: str | None) -> tuple[GgufFile, ...]:
    """The repository's GGUF files, or those asked for by quantization or path; one for each quantization."""
    files = repository.gguf_files()
    if choice is not None:
        wanted = choice.casefold()
        found = [f for f in files if f.label.casefold() == wanted or any(p.path.casefold() == wanted for p in f.parts)]
        if not found and not (choice.endswith(".safetensors") or choice == "safetensors"):
            labels = ", ".join(dict.fromkeys(f.label for f in files))
            raise UsageError(
                f"{repository.name} has no '{choice[:80]}'",
                hint=f"hf:{repository.name}:QUANT with one of {labels}" if labels else f"hf:{repository.name}",
                code="not-found",
            )
        files = tuple(found)
    models = dict.fromkeys(name_from(f.parts[0].path.rpartition("/")[2]) for f in files)
    if len(models) > 1:
        raise UsageError(
            f"{repository.name} holds {len(models)} models: {', '.join(list(models)[:4])}",
            hint=f"hf:{repository.name}:{files[0].parts[0].path}",
            code="several-models",
        )
    return tuple({f.label: f for f in reversed(files)}.values())[::-1]


def _gguf_header(remote: Remote, repository: Repository, file: GgufFile) -> gguf.Header:
    def read(part: RepositoryFile) -> gguf.Header:
        source = huggingface.file_at(remote, repository, part)
        try:
            return gguf.read_header(source)
        finally:
            source.close()

    if len(file.parts) == 1:
        return read(file.parts[0])
    return gguf.read_parts(file.parts, read, len(file.parts))


def _unread(model: ModelSpec, file: GgufFile, tag: str | None, artifact: str) -> ModelBuild:
    return ModelBuild(
        model=model.id,
        quantization=file.label,
        weights_bytes=file.size,
        precision=Precision.EXACT,
        ollama_tag=tag,
        artifact=artifact,
        source="",
    )


def _from_safetensors(remote: Remote, repository: Repository, progress: Progress) -> Found:
    files = repository.safetensors_files()
    if not files or not repository.has("config.json"):
        raise UsageError(
            f"{repository.name} has neither GGUF files nor safetensors files with a config.json",
            hint="a repository whose name ends in -GGUF, or the model's own",
            code="no-weights",
        )
    config = huggingface.read_config(remote, repository)
    tensors: dict[str, safetensors.StoredTensor] = {}
    for number, file in enumerate(files):
        progress(number, len(files))
        source = huggingface.file_at(remote, repository, file)
        try:
            found = safetensors.read_header(source)
        finally:
            source.close()
        twice = next((name for name in found if name in tensors), None)
        if twice is not None:
            raise InvalidFile(
                f"{repository.name}/{file.path} has the tensor '{twice[:80]}', which an earlier file has too",
                hint=f"hf:{repository.name} holds more than one model",
            )
        tensors |= found
        if len(tensors) > _MOST_TENSORS:
            raise InvalidFile(
                f"{repository.name} has more than {_MOST_TENSORS:,} tensors", hint="another repository of the model"
            )
    progress(len(files), len(files))
    model, build, mix = model_of_config(
        config,
        tensors,
        sum(file.size for file in files),
        name=name_from(repository.name.partition("/")[2]),
        label=repository.name,
        source="",
    )
    return Found(
        model=replace(model, hugging_face_repo=repository.name),
        builds=((build, mix),),
        title=f"{repository.name} at {shown(remote.endpoint)}: config.json and the headers of {len(files)} files",
        url=f"{shown(remote.endpoint)}/{repository.name}",
    )


def _projectors(size: int) -> tuple[Finding, ...]:
    if not size:
        return ()
    message = f"what reads images (mmproj), {size:,} bytes in files beside the model, is not counted"
    return (Finding(code="projector-left-out", message=message),)


def _artifact(name: str, file: GgufFile) -> str:
    return f"{name}/{file.parts[0].path}"


def _digest(file: RepositoryFile) -> str:
    return f" (sha256 {file.sha256})" if file.sha256 else ""
