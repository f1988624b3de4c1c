"""Addresses, lines of streams and error texts, as the engines write them."""

from __future__ import annotations

import json

import pytest

from provision.engines import ollama, openai_api
from provision.engines.client import RequestFailed, StreamEvent, error_text, is_loopback, normalise_url
from provision.errors import UsageError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("http://host:8000/", "http://host:8000"),
        ("https://host/llm/v1/", "https://host/llm"),
        ("http://[::1]:11434", "http://[::1]:11434"),
        (" host ", "http://host"),
    ],
)
def test_addresses_as_people_write_them(text, url):
    assert normalise_url(text) == url


@pytest.mark.parametrize("text", ["", "ftp://host", "http://", "http://host:port", "http://host:99999"])
def test_what_is_no_address(text):
    with pytest.raises(UsageError, match="not an http address"):
        normalise_url(text)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.8.0.1", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://10.0.0.1", False),
        ("http://127.evil.example", False),
    ],
)
def test_loopback(url, expected):
    assert is_loopback(url) is expected


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"error": "model not found"}', "model not found"),
        (b'{"error": {"message": "too long", "code": 400}}', "too long"),
        (b'{"object": "error", "message": "no template"}', "no template"),
        (b'{"detail": "x"}', '{"detail": "x"}'),
        (b"<html>\n bad   gateway</html>", "<html> bad gateway</html>"),
        (b"", "no reason given"),
        (b"\xff\xfe", "��"),
    ],
)
def test_error_texts(content, text):
    assert error_text(content) == text


def test_ollama_usage_is_in_seconds_and_has_the_queue():
    line = {
        "done": True,
        "total_duration": 5_000_000_000,
        "load_duration": 100_000_000,
        "prompt_eval_count": 26,
        "prompt_eval_duration": 400_000_000,
        "eval_count": 11,
        "eval_duration": 1_000_000_000,
    }
    usage = ollama.parse_line(json.dumps(line).encode(), 1.0).usage
    assert (usage.prompt_tokens, usage.output_tokens, usage.cached_tokens) == (26, 11, None)
    assert (usage.load_s, usage.prefill_s, usage.decode_s) == (0.1, 0.4, 1.0)
    assert usage.queue_s == pytest.approx(3.5)


def test_ollama_thinking_is_output_but_no_answer():
    event = ollama.parse_line(b'{"thinking": "hm", "response": "", "done": false}', 1.0)
    assert (event.reasoning, event.answer, event.finished) == (True, False, False)


def test_llamacpp_timings_fill_what_usage_leaves_out():
    event = openai_api.parse_line(
        b'data: {"choices": [], "timings": {"cache_n": 24, "prompt_n": 102, "prompt_ms": 500.0, '
        b'"predicted_n": 48, "predicted_ms": 940.0}}',
        1.0,
    )
    usage = event.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) == (126, 24, 48)
    assert (usage.prefill_s, usage.decode_s) == (0.5, 0.94)


def test_vllm_metrics():
    event = openai_api.parse_line(
        b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}, "metrics": '
        b'{"time_to_first_token_ms": 120.0, "queue_time_ms": 20.0, "generation_time_ms": 400.0}}',
        1.0,
    )
    assert (event.usage.prefill_s, event.usage.queue_s, event.usage.decode_s) == (0.1, 0.02, 0.4)


@pytest.mark.parametrize("line", [b"", b": ping", b"event: x", b"id: 4", b"retry: 10"])
def test_lines_that_say_nothing(line):
    event = openai_api.parse_line(line, 1.0)
    assert event == StreamEvent(arrived_s=1.0)


@pytest.mark.parametrize(
    "line",
    [
        b'data: {"error": {"message": "boom"}}',
        b'data: {"error": "boom"}',
        b'error: {"message": "boom"}',
        b'data: ["boom"]',
        b"data: boom",
    ],
)
def test_errors_in_event_streams(line):
    with pytest.raises(RequestFailed, match="boom"):
        openai_api.parse_line(line, 1.0)


@pytest.mark.parametrize("line", [b'{"error": "boom"}', b"boom", b'["boom"]'])
def test_errors_in_ollama_streams(line):
    with pytest.raises(RequestFailed, match="boom"):
        ollama.parse_line(line, 1.0)


@pytest.mark.parametrize("chunk", [{"content": "x"}, {"tool_calls": [{"index": 0}]}])
def test_text_and_tool_calls_are_answers(chunk):
    line = b"data:" + json.dumps({"choices": [{"delta": chunk}]}).encode()
    assert openai_api.parse_line(line, 1.0).answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("llama3.1", "llama3.1:latest", True),
        ("llama3.1:8b", "llama3.1", False),
        ("host:5000/library/x", "host:5000/library/x:latest", True),
    ],
)
def test_ollama_names(one, other, same):
    assert ollama.is_same_model(one, other) is same
