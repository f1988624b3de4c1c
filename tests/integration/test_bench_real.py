"""Bench against real servers: their own timings of the same requests are the truth."""

from __future__ import annotations

import pytest

from provision.bench.run import run_bench
from provision.engines import identify
from tests.integration.real_server import llamacpp_server
from tests.lab.ollama_release import OllamaRelease
from tests.lab.registry import MODEL, build_models_folder, running_ollama


@pytest.mark.slow
def test_client_agrees_with_the_servers_own_timings():
    with llamacpp_server(parallel=2) as url:
        engine = identify(url)
        result = run_bench(url, users=(1, 2), requests_per_user=3, prompt_tokens=128, output_tokens=48)

    assert (engine.id, [model.name for model in engine.models]) == ("llamacpp", ["smollm2"])
    assert result.complete
    assert result.context_tokens == 2048
    alone, two = result.levels
    assert alone.error_rate == two.error_rate == 0
    for level in result.levels:
        for request in level.requests:
            assert request.output_tokens == request.requested_tokens
            assert request.prompt_tokens == pytest.approx(128, rel=0.05)
            # Only the chat template may come out of the cache.
            assert request.cached_tokens is not None
            assert request.cached_tokens < 40
    assert {request.output_tokens for request in alone.requests} == {48}
    assert abs(alone.server_decode_delta_ratio) < 0.01
    overheads = sorted(r.first_token_s - r.sent_s - r.server_prefill_s for r in alone.requests)
    assert 0 < overheads[1] < 0.1
    assert two.concurrent_decodes == 2
    assert "server-serialises" not in {finding.code for finding in two.findings}


@pytest.mark.slow
def test_a_server_with_one_slot_is_found_to_serialise():
    with llamacpp_server(parallel=1) as url:
        result = run_bench(url, users=(4,), requests_per_user=2, prompt_tokens=64, output_tokens=24)

    (level,) = result.levels
    assert level.concurrent_decodes == 1
    (finding,) = (finding for finding in level.findings if finding.code == "server-serialises")
    assert "OLLAMA_NUM_PARALLEL=4" in finding.hint


@pytest.mark.slow
def test_real_ollama(ollama_release: OllamaRelease, tmp_path):
    with running_ollama(ollama_release, build_models_folder(ollama_release), tmp_path) as url:
        result = run_bench(url, users=(1, 2), requests_per_user=3, prompt_tokens=128, output_tokens=32)

    assert (result.engine, result.api, result.model) == ("ollama", "ollama", MODEL)
    assert result.engine_version == ollama_release.version
    alone, two = result.levels
    for level in result.levels:
        assert level.error_rate == 0
        for request in level.requests:
            # Ollama cannot be told to ignore the end of an answer.
            assert request.output_tokens == request.requested_tokens or request.stop_reason == "stop"
            assert request.prompt_tokens == pytest.approx(128, rel=0.05)
        # Ollama rounds its durations to milliseconds, of some 500.
        assert abs(level.server_decode_delta_ratio) < 0.02
    assert alone.prefill_tokens_per_s is not None
    # This build runs on the CPU and answers one request at a time, and bench finds both out.
    assert [finding.code for finding in result.findings] == ["spilled-to-cpu"]
    assert result.size_vram_bytes == 0
    assert "server-serialises" in {finding.code for finding in two.findings}
