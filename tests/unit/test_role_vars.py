from __future__ import annotations

from dataclasses import replace

import pytest

from provision.engines.ollama_role import OllamaOptions, endpoint, pull_source, role_vars
from provision.errors import NothingFits, UsageError
from tests.integration.applying import small_plan


def environment(options: OllamaOptions | None = None, **plan: int) -> dict[str, str]:
    found = role_vars(small_plan(**plan), options or OllamaOptions(version="0.32.15"))["ollama_environment"]
    assert isinstance(found, dict)
    return found


def test_settings_come_from_the_plan() -> None:
    found = environment(context_tokens=16384, users=4)
    assert found["OLLAMA_CONTEXT_LENGTH"] == "16384"
    assert found["OLLAMA_NUM_PARALLEL"] == "4"
    assert found["OLLAMA_HOST"] == "127.0.0.1:11434"
    assert found["PROVISION_SETTINGS_ID"] != environment(context_tokens=16384, users=5)["PROVISION_SETTINGS_ID"]


def test_quantised_cache_turns_flash_attention_on() -> None:
    plan = small_plan()
    plan = replace(plan, workload=replace(plan.workload, kv_cache_type="q8_0"))
    found = role_vars(plan, OllamaOptions(version="0.32.15"))["ollama_environment"]
    assert found["OLLAMA_KV_CACHE_TYPE"] == "q8_0"  # type: ignore[index]
    assert found["OLLAMA_FLASH_ATTENTION"] == "1"  # type: ignore[index]
    assert "OLLAMA_FLASH_ATTENTION" not in environment()


@pytest.mark.parametrize(
    ("name", "source"),
    [("llama3.1:8b", "reg:5000/library/llama3.1:8b"), ("team/own:1", "reg:5000/team/own:1")],
)
def test_other_registry_needs_the_library_written_out(name: str, source: str) -> None:
    assert pull_source(name, "reg:5000") == source
    assert pull_source(name, None) == name


@pytest.mark.parametrize("listen", ["0.0.0.0:11434", "192.0.2.7", "[::]:11434"])
def test_open_address_is_refused_unless_it_is_said_loudly(listen: str) -> None:
    with pytest.raises(UsageError) as refused:
        role_vars(small_plan(), OllamaOptions(version="0.32.15", listen=listen))
    assert refused.value.code == "exposed"
    role_vars(small_plan(), OllamaOptions(version="0.32.15", listen=listen, expose_without_auth=True))


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("localhost:8000", "http://127.0.0.1:8000"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_where_the_host_reaches_its_own_service(listen: str, url: str) -> None:
    found, port = endpoint(OllamaOptions(version="0.32.15", listen=listen, expose_without_auth=True))
    assert found == url
    assert url.endswith(f":{port}")


@pytest.mark.parametrize("listen", ["", "nonsense host", "127.0.0.1:0", "127.0.0.1:99999", "gpu1:11434", "1:2:3"])
def test_bad_address(listen: str) -> None:
    with pytest.raises(UsageError):
        endpoint(OllamaOptions(version="0.32.15", listen=listen, expose_without_auth=True))


def test_old_engine_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        role_vars(small_plan(), OllamaOptions(version="0.17.0"))
    assert refused.value.code == "unsafe-version"
    role_vars(small_plan(), OllamaOptions(version="0.17.1"))
    role_vars(small_plan(), OllamaOptions(version="0.17.0", allow_old_version=True))
    with pytest.raises(UsageError):
        role_vars(small_plan(), OllamaOptions(version="1.0.0/../../etc", allow_old_version=True))


def test_plan_without_models_is_refused() -> None:
    with pytest.raises(NothingFits):
        role_vars(replace(small_plan(), selected=()), OllamaOptions(version="0.32.15"))


def test_amd_cards_need_their_own_archive() -> None:
    plan = small_plan()
    cards = tuple(replace(card, vendor="amd") for card in plan.machine.accelerators)
    found = role_vars(
        replace(plan, machine=replace(plan.machine, accelerators=cards)), OllamaOptions(version="0.32.15")
    )
    assert found["ollama_components"] == ["", "-rocm"]
