"""What a repository on the Hugging Face hub, or on a mirror of it, holds: its files and their exact sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from provision.errors import Unreachable, UsageError
from provision.gguf import label_in, part_names
from provision.hub.http import HttpFile, Remote, joined, shown

ENDPOINT = "https://huggingface.co"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_MOST_PAGES = 20
_SIDE_FILES = re.compile(r"(?:^|[-_./])(?:mmproj|imatrix|draft|mtp|lora)(?:[-_.]|$)", re.IGNORECASE)
"""Projectors, importance matrices and drafts: beside a model, not models."""
_REVISION = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryFile:
    path: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """One model file, whole: all its parts."""

    label: str
    """The quantization that its name says."""
    parts: tuple[RepositoryFile, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    name: str
    files: tuple[RepositoryFile, ...]

    def gguf_files(self) -> tuple[GgufFile, ...]:
        """Models in GGUF form, largest first. Raises UsageError where a part of one is missing."""
        by_path = {file.path: file for file in self.files if file.path.lower().endswith(".gguf")}
        found: list[GgufFile] = []
        for path in by_path:
            if _SIDE_FILES.search(path):
                continue
            folder, _, name = path.rpartition("/")
            names = [f"{folder}/{part}" if folder else part for part in part_names(name)]
            if path != names[0]:
                if names[0] not in by_path:
                    raise self._lacks(names[0])
                continue
            missing = next((part for part in names if part not in by_path), None)
            if missing is not None:
                raise self._lacks(missing)
            label = label_in(path) or name.removesuffix(".gguf")
            found.append(GgufFile(label=label, parts=tuple(by_path[part] for part in names)))
        return tuple(sorted(found, key=lambda file: (-file.size, file.label)))

    def safetensors_files(self) -> tuple[RepositoryFile, ...]:
        """The shards of the model itself: those at the top, and of two complete sets the one vLLM loads."""
        top = [f for f in self.files if "/" not in f.path and f.path.endswith(".safetensors")]
        chosen = [f for f in top if not f.path.startswith("consolidated")] or top
        return tuple(sorted((f for f in chosen if not _SIDE_FILES.search(f.path)), key=lambda f: f.path))

    def has(self, path: str) -> bool:
        return any(file.path == path for file in self.files)

    def _lacks(self, path: str) -> UsageError:
        return UsageError(f"{self.name} lacks {path}, a part of a split file", hint="another quantization of it")


def split_reference(text: str) -> tuple[str, str | None]:
    """`OWNER/REPO[:FILE or quantization]`. Raises UsageError."""
    name, _, choice = text.partition(":")
    owner, _, repository = name.partition("/")
    if not _NAME.fullmatch(owner) or not _NAME.fullmatch(repository) or ".." in name:
        raise UsageError(f"'{text}' names no repository", hint="write it as hf:OWNER/REPO or hf:OWNER/REPO:Q4_K_M")
    return name, choice or None


def list_repository(remote: Remote, name: str) -> Repository:
    """All files of the repository's main branch, from the hub's listing, page by page."""
    missing = f"there is no repository {name} at {shown(remote.endpoint)}, or it is private"
    url: str | None = f"{remote.endpoint}/api/models/{quote(name)}/tree/{_REVISION}?recursive=true"
    files: list[RepositoryFile] = []
    for _ in range(_MOST_PAGES):
        document, headers = remote.document(str(url), missing=missing)
        files += _files(document, remote)
        url = _next_page(headers.get("link", ""), str(url))
        if url is None:
            return Repository(name=name, files=tuple(files))
    raise Unreachable(f"{name} has more files than can be listed", hint=f"hf:{name}:FILE.gguf", code="wrong-answer")


def file_at(remote: Remote, repository: Repository, file: RepositoryFile) -> HttpFile:
    """A file of a repository as a range source."""
    url = f"{remote.endpoint}/{quote(repository.name)}/resolve/{_REVISION}/{quote(file.path)}"
    return HttpFile(remote, url, label=f"{repository.name}/{file.path}", size=file.size)


def read_config(remote: Remote, repository: Repository) -> dict[str, Any]:
    """The model's config.json."""
    url = f"{remote.endpoint}/{quote(repository.name)}/resolve/{_REVISION}/config.json"
    document, _ = remote.document(url, accept="*/*", missing=f"{repository.name} has no config.json")
    if not isinstance(document, dict):
        raise Unreachable(f"{shown(url)} is not a JSON object", hint=f"look at {shown(url)}", code="wrong-answer")
    return document


def _files(document: object, remote: Remote) -> list[RepositoryFile]:
    if not isinstance(document, list):
        raise Unreachable(
            f"{shown(remote.endpoint)} does not list files as the Hugging Face hub does",
            hint="--endpoint with the address of a mirror of the hub",
            code="wrong-answer",
        )
    files = []
    for entry in document:
        if not isinstance(entry, dict) or entry.get("type") != "file":
            continue
        lfs = entry.get("lfs")
        stored = lfs if isinstance(lfs, dict) else {}
        path, size = entry.get("path"), stored.get("size", entry.get("size"))
        digest = stored.get("oid")
        if isinstance(path, str) and type(size) is int and 0 <= size < 2**62 and path.isprintable():
            known = isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)
            files.append(RepositoryFile(path=path, size=size, sha256=digest if known else None))
    return files


def _next_page(link: str, url: str) -> str | None:
    """The address after `rel="next"`, on the same host only."""
    found = re.search(r'<([^<>]+)>\s*;\s*rel="?next"?', link)
    if found is None:
        return None
    following = joined(url, found[1])
    return following if following and urlsplit(following)[:2] == urlsplit(url)[:2] else None
