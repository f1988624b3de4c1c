"""Bench against a fake server with known times and every known fault of streams."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from provision.bench import stats
from provision.bench.run import run_bench
from provision.errors import Unreachable, UsageError
from tests.integration.scripted_server import (
    DONE,
    SILENCE_S,
    TPOT_S,
    TTFT_S,
    Reply,
    chat_chunk,
    json_reply,
    ollama_end,
    ollama_line,
    ollama_reply,
    ollama_server,
    openai_reply,
    openai_server,
    sse,
    stream_reply,
    usage_chunk,
    words_of,
)

SMALL = {"prompt_tokens": 60, "output_tokens": 12, "requests_per_user": 3}


def codes(level):
    return {finding.code for finding in level.findings}


def bench_openai(chat, **options):
    with openai_server(chat) as server:
        return run_bench(server.url, **{**SMALL, **options})


def assert_times(measure):
    """Medians within 2 ms + 2 % of the script. Measured again where a busy machine makes both ends late: an error of
    the client would be there every time."""
    for _ in range(6):
        (level,) = measure().levels
        ttft_s, tpot_s = level.ttft_s.p50, 1 / level.decode_tokens_per_s.p50
        if ttft_s == pytest.approx(TTFT_S, abs=0.002 + 0.02 * TTFT_S) and tpot_s == pytest.approx(TPOT_S, rel=0.05):
            return level
    raise AssertionError(f"TTFT {ttft_s:.4f} s instead of {TTFT_S}, TPOT {tpot_s:.4f} s instead of {TPOT_S}")


def with_head(*head, at_once=1):
    """A chat reply with `head` chunks at the first token's time, and `at_once` tokens per chunk."""

    def chat(body):
        count = body["max_tokens"]
        contents = [chat_chunk(content="ab " * at_once)] * (count // at_once)
        contents[0] = b"".join(head) + contents[0]
        end = usage_chunk(words_of(body), count) + DONE
        return stream_reply(contents, end, tpot_s=TPOT_S * at_once)

    return chat


@pytest.mark.parametrize(
    "chat",
    [
        pytest.param(openai_reply, id="plain"),
        pytest.param(with_head(chat_chunk(role="assistant", content=None)), id="role-only chunk with the token"),
        pytest.param(with_head(chat_chunk(content=""), sse({"choices": []})), id="empty chunks"),
        pytest.param(with_head(b": ping\n\n", b"event: message\n", b"\r\n"), id="comments, event names, CRLF"),
        pytest.param(lambda body: openai_reply(body, chunked=True), id="chunked transfer"),
    ],
)
def test_known_times_openai(chat):
    level = assert_times(lambda: bench_openai(chat))

    assert level.error_rate == 0
    assert all(request.chunks == request.output_tokens == 12 for request in level.requests)


def test_known_times_ollama_with_the_servers_own():
    def measure():
        with ollama_server() as server:
            return run_bench(server.url, **SMALL)

    level = assert_times(measure)

    assert abs(level.server_decode_delta_ratio) < 0.05
    assert {request.stop_reason for request in level.requests} == {"length"}


def test_an_early_role_chunk_is_not_the_first_token():
    def chat(body):
        reply = openai_reply(body)
        return replace(reply, pieces=((0.001, chat_chunk(role="assistant", content="")), *reply.pieces))

    (level,) = bench_openai(chat).levels

    assert level.ttft_s.p50 > TTFT_S * 0.95


def test_tokens_are_the_servers_count_and_not_chunks():
    (level,) = bench_openai(with_head(at_once=3)).levels

    assert [(request.chunks, request.output_tokens) for request in level.requests] == [(4, 12)] * 3
    # 11 later tokens over 3 gaps of 3 token times.
    assert level.decode_tokens_per_s.p50 == pytest.approx(11 / (9 * TPOT_S), rel=0.3)


def test_tokens_of_the_first_chunk_are_left_out_where_the_server_counts_along():
    def chat(body):
        contents = [
            sse({"choices": [{"delta": {"content": "abc"}}], "usage": {"prompt_tokens": 5, "completion_tokens": n}})
            for n in (3, 6, 9, 12)
        ]
        return stream_reply(contents, usage_chunk(words_of(body), 12) + DONE, tpot_s=3 * TPOT_S)

    (level,) = bench_openai(chat).levels

    assert level.requests[0].first_chunk_tokens == 3
    assert level.decode_tokens_per_s.p50 == pytest.approx(1 / TPOT_S, rel=0.12)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_counts_from_its_first_token(key):
    def chat(body):
        contents = [chat_chunk(**{key: "hm "})] * 6 + [chat_chunk(content="ab ")] * 6
        return stream_reply(contents, usage_chunk(words_of(body), 12) + DONE)

    (level,) = bench_openai(chat).levels

    assert level.ttfa_s.p50 - level.ttft_s.p50 == pytest.approx(6 * TPOT_S, abs=0.02)
    assert level.requests[0].chunks == 12


def test_text_split_inside_a_character_and_inside_a_line():
    def chat(body):
        contents = [chat_chunk(content="水 ")] * 12
        data = contents[3]
        cut = data.index("水".encode()) + 1
        pieces = [(TTFT_S + index * TPOT_S, content) for index, content in enumerate(contents)]
        pieces[3:4] = [(pieces[3][0] - 0.004, data[:cut]), (pieces[3][0], data[cut:])]
        end = (pieces[-1][0], usage_chunk(words_of(body), 12) + DONE)
        return Reply(content_type="text/event-stream", pieces=(*pieces, end))

    (level,) = bench_openai(chat).levels

    assert level.error_rate == 0
    assert {request.chunks for request in level.requests} == {12}


def test_missing_done_is_no_fault_when_the_end_was_announced():
    def chat(body):
        end = chat_chunk(finish="length") + usage_chunk(words_of(body), 12)
        return stream_reply([chat_chunk(content="ab ")] * 12, end.rstrip(b"\n"))

    (level,) = bench_openai(chat).levels

    assert level.error_rate == 0
    assert level.requests[0].stop_reason == "length"


def after_warm_up(faulty, good=openai_reply, warm_up=2):
    """`good` for the warm-up, then `faulty`."""
    seen = []

    def handler(body):
        seen.append(body)
        return good(body) if len(seen) <= warm_up else faulty(body)

    return handler


@pytest.mark.parametrize(
    ("faulty", "reason"),
    [
        pytest.param(
            lambda body: stream_reply([chat_chunk(content="ab ")] * 5),
            "ended before the server announced",
            id="closed in mid-stream",
        ),
        pytest.param(
            lambda body: stream_reply([chat_chunk(content="ab ")] * 5, chunked=True, broken=True),
            "incomplete",
            id="cut in mid-stream",
        ),
        pytest.param(
            lambda body: json_reply({"error": {"message": "slots are full"}}, status=503),
            "HTTP 503: slots are full",
            id="503",
        ),
        pytest.param(
            lambda body: stream_reply([chat_chunk(content="ab "), sse({"error": {"message": "out of memory"}})]),
            "out of memory",
            id="error event",
        ),
        pytest.param(
            lambda body: stream_reply([b"data: {broken\n\n"]),
            "unreadable line",
            id="broken JSON",
        ),
    ],
)
def test_a_failed_request_is_counted_with_its_reason_and_not_measured(faulty, reason):
    result = bench_openai(after_warm_up(faulty))
    (level,) = result.levels

    assert level.error_rate == 1
    assert level.ttft_s is None
    assert level.decode_tokens_per_s is None
    assert not level.valid
    assert {"errors", "no-answers"} <= codes(level)
    assert reason in level.requests[0].error


@pytest.mark.parametrize(
    ("status", "code"), [(503, "no-generation"), (404, "no-generation"), (401, "unauthorized"), (400, "no-generation")]
)
@pytest.mark.parametrize("good", [0, 1])
def test_a_server_that_does_not_generate_is_an_error_at_once(status, code, good):
    refusal = json_reply({"error": {"message": "not today"}}, status=status)
    chat = after_warm_up(lambda body: refusal, warm_up=good)

    with openai_server(chat) as server, pytest.raises(Unreachable) as caught:
        run_bench(server.url, **SMALL)

    assert caught.value.code == code
    assert caught.value.hint
    assert len(server.bodies("/v1/chat/completions")) <= 2


def test_figures_are_of_the_requests_that_succeeded():
    seen = []

    def chat(body):
        seen.append(body)
        return json_reply({"error": "busy"}, status=503) if len(seen) == 4 else openai_reply(body)

    (level,) = bench_openai(chat).levels

    assert level.error_rate == pytest.approx(1 / 3)
    assert level.ttft_s.count == 2
    assert level.valid
    assert "errors" in codes(level)


def test_a_silently_closed_connection_is_tried_once_more():
    closed = []

    def chat(body):
        if len(closed) % 2 == 0:
            closed.append(True)
            return Reply(closes_silently=True)
        closed.append(False)
        return openai_reply(body)

    (level,) = bench_openai(chat).levels

    assert level.error_rate == 0
    assert {request.reconnects for request in level.requests} == {1}
    assert level.ttft_s.p50 < SILENCE_S, "the clock starts anew"


def test_a_connection_closed_twice_is_an_error():
    (level,) = bench_openai(after_warm_up(lambda body: Reply(closes_silently=True))).levels

    assert level.error_rate == 1


def test_missing_usage_is_unknown_and_never_a_count_of_chunks():
    (level,) = bench_openai(lambda body: stream_reply([chat_chunk(content="ab ")] * 12, DONE)).levels

    assert level.error_rate == 0
    assert level.ttft_s is not None
    assert level.decode_tokens_per_s is None
    assert level.system_output_tokens_per_s is None
    assert "no-token-counts" in codes(level)
    assert not level.valid


def test_missing_ollama_fields_are_unknown():
    def generate(body):
        return stream_reply([ollama_line(response="a ")] * 12, ollama_line(response="", done=True, eval_count=12))

    with ollama_server(generate) as server:
        (level,) = run_bench(server.url, **SMALL).levels

    request = level.requests[0]
    assert request.output_tokens == 12
    assert (request.prompt_tokens, request.server_prefill_s, request.server_decode_s) == (None, None, None)
    assert request.server_queue_s is None
    assert level.server_decode_delta_ratio is None
    assert level.decode_tokens_per_s is not None


def test_ollama_stream_without_its_last_object_is_an_error():
    cut = after_warm_up(lambda body: stream_reply([ollama_line(response="the ")] * 5), ollama_reply)
    with ollama_server(cut) as server:
        (level,) = run_bench(server.url, **SMALL).levels

    assert level.error_rate == 1


def test_a_serialising_server_is_named():
    with ollama_server(lambda body: ollama_reply(body, serial=True, ttft_s=0.02, tpot_s=0.01)) as server:
        result = run_bench(server.url, users=(1, 3), **{**SMALL, "output_tokens": 8})

    alone, three = result.levels
    assert "server-serialises" in codes(three)
    assert three.concurrent_decodes == 1
    assert "OLLAMA_NUM_PARALLEL=3" in next(f.hint for f in three.findings if f.code == "server-serialises")
    assert three.scaling_ratio < 0.5
    assert alone.scaling_ratio is None


def test_parallel_users_share_nothing_and_scale():
    result = bench_openai(openai_reply, users=(1, 4), output_tokens=20)
    four = result.levels[1]

    assert four.concurrent_decodes == 4
    assert "server-serialises" not in codes(four)
    assert len(four.requests) == 12
    assert {request.user for request in four.requests} == {0, 1, 2, 3}
    assert 2 < four.system_output_tokens_per_s / result.levels[0].system_output_tokens_per_s < 6


def test_cached_prompts_void_the_level():
    def chat(body):
        count, prompt = body["max_tokens"], words_of(body)
        return stream_reply([chat_chunk(content="a")] * count, usage_chunk(prompt, count, cached=prompt - 1) + DONE)

    (level,) = bench_openai(after_warm_up(chat)).levels

    assert "cache-contaminated" in codes(level)
    assert not level.valid
    assert level.prefill_tokens_per_s is None


def test_the_chat_template_in_the_cache_is_no_contamination():
    def chat(body):
        count = body["max_tokens"]
        return stream_reply([chat_chunk(content="a")] * count, usage_chunk(words_of(body), count, cached=15) + DONE)

    (level,) = bench_openai(chat).levels

    assert "cache-contaminated" not in codes(level)


def test_short_answers_void_the_level():
    def generate(body):
        return stream_reply([ollama_line(response="a ")] * 4, ollama_end(words_of(body), 4, done_reason="stop"))

    with ollama_server(generate) as server:
        (level,) = run_bench(server.url, **SMALL).levels

    assert "short-outputs" in codes(level)
    assert not level.valid


def test_no_two_prompts_share_their_beginning():
    with openai_server() as server:
        run_bench(server.url, users=(1, 2), **SMALL)
        run_bench(server.url, users=(1,), **SMALL)
        prompts = [body["messages"][0]["content"] for body in server.bodies("/v1/chat/completions")]

    assert len(prompts) == 2 + 3 + 2 + 6 + 2 + 3
    starts = {prompt[:8] for prompt in prompts}
    assert len(starts) == len(prompts)


def test_prompt_length_is_fitted_to_the_servers_count():
    def chat(body):
        tokens = round(1.37 * len(body["messages"][0]["content"].split())) + 33
        return stream_reply([chat_chunk(content="a")] * 4, usage_chunk(tokens, 4) + DONE, ttft_s=0.01, tpot_s=0.005)

    (level,) = bench_openai(chat, prompt_tokens=500, output_tokens=4).levels

    assert [request.prompt_tokens for request in level.requests] == pytest.approx([500] * 3, rel=0.02)


def test_lengths_are_fixed_for_one_user_and_vary_for_several():
    with openai_server() as server:
        result = run_bench(server.url, users=(1, 2), requests_per_user=4, prompt_tokens=60, output_tokens=20)

    alone, two = result.levels
    assert {request.requested_tokens for request in alone.requests} == {20}
    asked = [request.requested_tokens for request in two.requests]
    assert len(set(asked)) > 2
    assert min(asked) >= 10
    assert max(asked) <= 30
    assert [request.output_tokens for request in two.requests] == asked


def test_ollama_requests_never_change_the_context_and_do_not_touch_keep_alive():
    with ollama_server() as server:
        result = run_bench(server.url, **SMALL)
        bodies = server.bodies("/api/generate")

    # What is loaded is long enough, so nothing is reloaded.
    assert result.context_tokens == 8192
    assert {body["options"]["num_ctx"] for body in bodies} == {8192}
    assert all(body["raw"] and body["options"]["num_predict"] == 12 for body in bodies)
    assert not any("keep_alive" in body for body in bodies)


def test_ollama_that_drops_models_at_once_keeps_this_one_for_the_run_only():
    with ollama_server(loaded={"expires_at": "2020-01-01T00:00:00Z"}) as server:
        run_bench(server.url, **SMALL)
        bodies = server.bodies("/api/generate")

    assert [body["keep_alive"] for body in bodies[2:]] == ["10m"] * 3 + [0]


@pytest.mark.parametrize(
    ("vram", "message"), [(0, "runs on the CPU"), (600, "only 60% of fake:latest is in GPU memory"), (1000, None)]
)
def test_spill_to_the_cpu_is_told(vram, message):
    with ollama_server(loaded={"size_vram": vram}) as server:
        result = run_bench(server.url, **SMALL)

    assert (result.size_bytes, result.size_vram_bytes) == (1000, vram)
    assert [finding.code for finding in result.findings] == (["spilled-to-cpu"] if message else [])
    if message:
        assert message in result.findings[0].message


def test_strict_servers_are_asked_without_extensions():
    def chat(body):
        if "ignore_eos" in body:
            return json_reply({"error": {"message": "unknown field ignore_eos"}}, status=400)
        return openai_reply(body)

    result = bench_openai(chat)

    assert result.api == "openai"
    assert result.levels[0].error_rate == 0


def test_a_model_without_chat_template_is_asked_for_completions():
    def completions(body):
        contents = [sse({"choices": [{"text": "ab ", "finish_reason": None}]})] * body["max_tokens"]
        return stream_reply(contents, usage_chunk(words_of(body), body["max_tokens"]) + DONE)

    refusal = json_reply({"error": {"message": "no chat template"}}, status=400)
    with openai_server(lambda body: refusal, {"/v1/completions": completions}) as server:
        result = run_bench(server.url, **SMALL)

    assert result.api == "openai-completions"
    assert result.levels[0].decode_tokens_per_s is not None


def test_results_are_saved_as_they_come():
    saved = []
    with openai_server() as server:
        final = run_bench(server.url, users=(1, 2), save=saved.append, **SMALL)

    assert [(len(result.levels), result.complete) for result in saved] == [(1, False), (2, False), (2, True)]
    assert saved[-1] == final


def test_a_failing_save_ends_the_run_with_its_own_error(monkeypatch):
    from provision.bench import run
    from provision.errors import InvalidFile

    monkeypatch.setattr(run, "_SAVE_EVERY_S", 0.0)

    def save(result):
        raise InvalidFile("no space left")

    with openai_server() as server, pytest.raises(InvalidFile, match="no space left"):
        run_bench(server.url, save=save, **SMALL)


def test_a_level_stops_asking_after_its_time_limit():
    result = bench_openai(openai_reply, requests_per_user=50, level_time_limit_s=0.3)

    assert 1 <= len(result.levels[0].requests) <= 4
    assert result.complete


def test_a_server_that_dies_ends_the_run_and_not_in_fifty_timeouts():
    result = bench_openai(after_warm_up(lambda body: json_reply({"error": "gone"}, status=500)), requests_per_user=50)

    assert len(result.levels[0].requests) == 10


def test_key_goes_into_the_header_and_a_wrong_one_is_named():
    def models(_body):
        return json_reply({"error": {"message": "Invalid API key"}}, status=401)

    with openai_server() as server:
        run_bench(server.url, api_key="sesame", **SMALL)
        assert {request.headers.get("authorization") for request in server.requests} == {"Bearer sesame"}
    with openai_server(extra={"/v1/models": models}) as server, pytest.raises(Unreachable) as caught:
        run_bench(server.url, api_key="wrong", **SMALL)
    assert caught.value.code == "unauthorized"
    assert "PROVISION_API_KEY" in caught.value.hint
    assert "wrong" not in str(caught.value.message)


@pytest.mark.parametrize(
    "options",
    [
        {"users": ()},
        {"users": (0,)},
        {"output_tokens": 1},
        {"requests_per_user": 0},
        {"prompt_tokens": 5000},
        {"users": (2,), "prompt_tokens": 4000, "output_tokens": 80},
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_generated(options):
    with openai_server() as server, pytest.raises(UsageError):
        run_bench(server.url, **{**SMALL, **options})
    assert server.bodies("/v1/chat/completions") == []


def test_result_survives_its_file(tmp_path):
    from provision.domain.measurement import BENCH_VERSION, BenchResult
    from provision.records import read_json, write_json

    result = bench_openai(openai_reply, users=(1, 2))
    write_json(tmp_path / "result.json", result)

    found = read_json(
        tmp_path / "result.json",
        BenchResult,
        what="benchmark result",
        version_key="bench_version",
        version=BENCH_VERSION,
        hint="",
    )
    assert found == result
    assert json.loads((tmp_path / "result.json").read_text())["levels"][0]["requests"][0]["output_tokens"] == 12


def test_windows_and_speeds_of_a_real_run_agree_with_their_definitions():
    (level,) = bench_openai(openai_reply, users=(3,)).levels

    assert level.system_output_tokens_per_s == stats.system_output_tokens_per_s(level.requests, 3)
    assert level.whole_run_output_tokens_per_s <= level.system_output_tokens_per_s * 1.05
