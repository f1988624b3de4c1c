"""Inference servers: which one answers at an address, and how to talk to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provision.domain.hardware import RunningEngine

if TYPE_CHECKING:
    from provision.domain.hardware import InstalledModel


def identify(url: str, *, api_key: str | None = None) -> RunningEngine:
    """Which server answers at `url`, its version and its models.

    `id` is ollama, vllm or llamacpp, or `openai` for any other server that lists models at /v1/models. Raises
    Unreachable when nothing answers, or nothing that serves models; UsageError for an address that is none.
    """
    from provision.engines import ollama, openai_api
    from provision.engines.client import normalise_url

    url = normalise_url(url)
    if ollama.is_ollama(url, api_key=api_key):
        return RunningEngine(
            id="ollama",
            url=url,
            version=ollama.version(url, api_key=api_key),
            models=ollama.installed_models(url, api_key=api_key),
        )
    models: tuple[InstalledModel, ...] = openai_api.models(url, api_key=api_key)
    props = openai_api.props(url, api_key=api_key)
    if props is not None:
        return RunningEngine(id="llamacpp", url=url, version=props.get("build_info"), models=models)
    version = openai_api.vllm_version(url, api_key=api_key)
    if version is not None:
        return RunningEngine(id="vllm", url=url, version=version, models=models)
    return RunningEngine(id="openai", url=url, version=None, models=models)
