"""Pytest fixtures of the lab; tests/conftest.py brings them in with `pytest_plugins = ["tests.lab.fixtures"]`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Protocol, TypeVar

import pytest

from tests.lab import requirements
from tests.lab.clean import remove_leftovers
from tests.lab.host import LabHost
from tests.lab.mirror import ReleaseMirror
from tests.lab.nvml import install_nvml_standin, kernel_module_text, kernel_module_version
from tests.lab.ollama_release import OllamaRelease
from tests.lab.ollama_release import ollama_release as build_release
from tests.lab.registry import ModelRegistry, build_models_folder

Thing = TypeVar("Thing")


class HostFactory(Protocol):
    """`lab_host("name")` boots a host that is removed at the end; `nvml` names a profile of the NVML stand-in."""

    def __call__(self, name: str, nvml: str | None = None) -> LabHost: ...


@pytest.fixture(scope="session")
def _lab() -> None:
    """The lab can run here, and no dead test run's hosts are in the way."""
    _need(requirements.missing())
    remove_leftovers()


@pytest.fixture
def lab_host(_lab: None) -> Iterator[HostFactory]:
    """Makes hosts that live as long as the test."""
    with ExitStack() as stack:
        yield _factory(stack)


@pytest.fixture(scope="module")
def module_lab_host(_lab: None) -> Iterator[HostFactory]:
    """Makes hosts that live as long as the test module, for tests that only look at them or build on each other."""
    with ExitStack() as stack:
        yield _factory(stack)


@pytest.fixture(scope="session")
def ollama_release() -> OllamaRelease:
    """The real Ollama release, built the first time."""
    _need(requirements.missing_build_tools())
    return _built("the Ollama release", build_release)


@pytest.fixture(scope="session")
def _session_mirror(ollama_release: OllamaRelease) -> Iterator[ReleaseMirror]:
    with ReleaseMirror([ollama_release]) as mirror:
        yield mirror


@pytest.fixture(scope="session")
def _session_registry(ollama_release: OllamaRelease) -> Iterator[ModelRegistry]:
    with ModelRegistry(_built("the models folder", lambda: build_models_folder(ollama_release))) as registry:
        yield registry


@pytest.fixture
def release_mirror(_session_mirror: ReleaseMirror) -> ReleaseMirror:
    """A mirror of the release, without faults and with an empty request log."""
    _session_mirror.reset()
    return _session_mirror


@pytest.fixture
def model_registry(_session_registry: ModelRegistry) -> ModelRegistry:
    """A registry with one small real model, without faults and with an empty request log."""
    _session_registry.reset()
    return _session_registry


def _factory(stack: ExitStack) -> HostFactory:
    def boot(name: str, nvml: str | None = None) -> LabHost:
        host = stack.enter_context(LabHost(name))
        if nvml is not None:
            install_nvml_standin(host.root, nvml)
            if version := kernel_module_version(nvml):
                host.inside("mount", "-t", "tmpfs", "tmpfs", "/proc/driver")
                host.inside("mkdir", "/proc/driver/nvidia")
                text = kernel_module_text(version)
                host.inside("sh", "-c", 'printf %s "$1" > /proc/driver/nvidia/version', "sh", text)
        return host

    return boot


def _built(what: str, build: Callable[[], Thing]) -> Thing:
    try:
        return build()
    except (RuntimeError, OSError) as error:
        _need(f"{what} cannot be built: {error}")
        raise


def _need(reason: str | None) -> None:
    """Skip with the reason; fail instead where the lab must run (`PROVISION_LAB_REQUIRED=1`, as in CI)."""
    if reason is None:
        return
    if os.environ.get("PROVISION_LAB_REQUIRED") == "1":
        pytest.fail(f"PROVISION_LAB_REQUIRED=1, but {reason}", pytrace=False)
    pytest.skip(reason)
