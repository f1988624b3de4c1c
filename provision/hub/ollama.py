"""What a tag of an Ollama registry stands for: its manifest, and the model's blob as a range source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from provision.errors import InvalidFile, Unreachable, UsageError
from provision.hub.http import HttpFile, Remote, shown

REGISTRY = "https://registry.ollama.ai"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MODEL = "application/vnd.ollama.image.model"
_PROJECTOR = "application/vnd.ollama.image.projector"
_TENSOR = "application/vnd.ollama.image.tensor"
_ACCEPT = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    tag: str
    """As people type it, without `library/`."""
    path: str
    """`/v2/<namespace>/<model>`."""
    digest: str
    size: int
    projector_bytes: int = 0
    """Of the part that reads images; loaded beside the model."""
    file_type: str | None = None
    """The quantization, as the registry's own record of the model names it."""


def split_tag(text: str) -> tuple[str, str, str]:
    """Namespace, model and tag of `[NAMESPACE/]MODEL[:TAG]`. Raises UsageError."""
    name, _, tag = text.partition(":")
    namespace, _, model = name.rpartition("/")
    parts = (namespace or "library", model, tag or "latest")
    if not all(_PART.fullmatch(part) for part in parts):
        raise UsageError(f"'{text}' is not an Ollama tag", hint="write it as ollama:qwen3:8b; an address: --registry")
    return parts


def read_manifest(remote: Remote, text: str) -> Manifest:
    """The manifest of a tag and its configuration. Raises Unreachable, UsageError, InvalidFile."""
    namespace, model, tag = split_tag(text)
    path = f"/v2/{quote(namespace)}/{quote(model)}"
    shown_tag = f"{'' if namespace == 'library' else namespace + '/'}{model}:{tag}"
    where = shown(remote.endpoint)
    missing = f"the registry {where} has no {shown_tag}"
    document, _ = remote.document(f"{path}/manifests/{quote(tag)}", accept=_ACCEPT, missing=missing)
    layers = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(layers, list):
        raise Unreachable(
            f"{where} does not answer with the manifest of a model",
            hint="--registry with the address of an Ollama registry",
            code="wrong-answer",
        )
    models = [found for layer in layers if (found := _sized(layer, _MODEL))]
    if len(models) != 1:
        tensors = any(isinstance(layer, dict) and layer.get("mediaType") == _TENSOR for layer in layers)
        what = "is kept as single tensors, not as one GGUF file" if tensors else f"has {len(models)} model files"
        raise InvalidFile(f"{shown_tag} {what}", hint="another tag, or hf:OWNER/REPO", code="not-one-model")
    digest, size = models[0]
    return Manifest(
        tag=shown_tag,
        path=path,
        digest=digest,
        size=size,
        projector_bytes=sum(found[1] for layer in layers if (found := _sized(layer, _PROJECTOR))),
        file_type=_file_type(remote, path, document.get("config"), shown_tag),
    )


def model_file(remote: Remote, manifest: Manifest) -> HttpFile:
    """The model's blob as a range source."""
    url = f"{remote.endpoint}{manifest.path}/blobs/{manifest.digest}"
    return HttpFile(remote, url, label=f"{manifest.tag} ({manifest.digest[:19]})", size=manifest.size)


def _file_type(remote: Remote, path: str, config: object, tag: str) -> str | None:
    found = _sized(config, None)
    if found is None:
        return None
    document, _ = remote.document(
        f"{path}/blobs/{found[0]}", accept="*/*", missing=f"the registry lacks the configuration of {tag}"
    )
    value = document.get("file_type") if isinstance(document, dict) else None
    return value if isinstance(value, str) and re.fullmatch(r"[A-Z0-9_]{2,16}", value) else None


def _sized(layer: Any, kind: str | None) -> tuple[str, int] | None:
    """Digest and size of a layer of that kind, any kind for None; None for others and for what is malformed."""
    if not isinstance(layer, dict) or (kind is not None and layer.get("mediaType") != kind):
        return None
    digest, size = layer.get("digest"), layer.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or type(size) is not int or not 0 <= size < 2**62:
        return None
    return digest, size
