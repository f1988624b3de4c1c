"""Definitions of the benchmark's figures, against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.bench import stats, verdict
from provision.domain.measurement import RequestTiming


def request(user=0, sent=0.0, first=1.0, last=2.0, output=11, **more):
    return RequestTiming(
        **{
            "user": user,
            "sent_s": sent,
            "first_token_s": first,
            "last_token_s": last,
            "first_answer_s": first,
            "prompt_tokens": 100,
            "output_tokens": output,
            "requested_tokens": output,
            **more,
        }
    )


def codes(level):
    return [finding.code for finding in level.findings]


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (25, 1), (26, 2), (50, 2), (51, 3), (75, 3), (90, 4), (100, 4)]
)
def test_percentiles_are_nearest_rank(percent, expected):
    assert stats.percentile([1, 2, 3, 4], percent) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_is_a_sample_with_enough_samples_below(values, percent):
    ordered = sorted(values)
    found = stats.percentile(ordered, percent)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= percent / 100 * len(ordered) - 1e-9


@pytest.mark.parametrize(
    ("count", "known"),
    [(1, ()), (9, ()), (10, ("p90",)), (19, ("p90",)), (20, ("p90", "p95")), (100, ("p90", "p95", "p99"))],
)
def test_percentiles_need_samples(count, known):
    found = stats.distribution(float(n) for n in range(1, count + 1))
    assert tuple(name for name in ("p90", "p95", "p99") if getattr(found, name) is not None) == known
    assert (found.count, found.min, found.max, found.mean) == (count, 1, count, (count + 1) / 2)


def test_a_distribution_leaves_out_what_is_unknown():
    assert stats.distribution([None, 3.0, None]).count == 1
    assert stats.distribution([None]) is None


def test_times_and_speeds_of_one_request():
    one = request(sent=0.5, first=1.0, last=2.0, output=11)
    assert stats.ttft_s(one) == 0.5
    assert stats.e2e_s(one) == 1.5
    assert stats.decode_tokens_per_s(one) == pytest.approx(10)
    assert stats.e2e_tokens_per_s(one) == pytest.approx(11 / 1.5)
    assert stats.prefill_tokens_per_s(one, users=1) == pytest.approx(200)


@pytest.mark.parametrize(
    "more",
    [
        {"output": None},
        {"output": 1},
        {"output": 0},
        {"last": 1.0},
        {"first": None, "last": None},
        {"first_chunk_tokens": 11},
    ],
)
def test_decode_speed_is_unknown_rather_than_wrong(more):
    assert stats.decode_tokens_per_s(request(**more)) is None


def test_tokens_of_the_first_chunk_do_not_count_as_decoded():
    assert stats.decode_tokens_per_s(request(first_chunk_tokens=3)) == pytest.approx(8)


def test_prefill_comes_from_the_server_and_leaves_out_cached_tokens():
    assert stats.prefill_tokens_per_s(request(server_prefill_s=0.5, cached_tokens=10), 4) == pytest.approx(180)
    assert stats.prefill_tokens_per_s(request(server_prefill_s=0.5, cached_tokens=11), 4) is None
    assert stats.prefill_tokens_per_s(request(), users=2) is None, "with several users TTFT is a queue"


def test_server_delta_compares_intervals_with_intervals():
    assert stats.server_decode_delta_ratio(request(server_decode_s=0.8)) == pytest.approx(0.25)
    assert stats.server_decode_delta_ratio(request()) is None


def test_steady_window_is_where_all_users_are_active():
    requests = [
        request(0, first=1, last=4),
        request(0, first=5, last=9),
        request(1, first=2, last=6),
        request(1, first=7, last=8),
    ]
    assert stats.steady_window(requests, 2) == (2, 8)
    assert stats.steady_window(requests, 3) is None
    assert stats.steady_window([request(0, first=1, last=2), request(1, first=3, last=4)], 2) is None


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 3, 11), (0, 1, 1), (1, 2, 10), (1.5, 2, 5), (0, 1.5, 6), (2, 3, 0), (0, 0.5, 0)],
)
def test_tokens_within_a_window(start, end, expected):
    assert stats.tokens_within(request(), start, end) == pytest.approx(expected)


@given(st.floats(0, 3), st.floats(0, 3), st.integers(1, 400), st.integers(1, 5))
def test_windows_that_meet_lose_no_token(first, length, count, at_once):
    one = request(first=first, last=first + length, output=count, first_chunk_tokens=at_once)
    cut = first + length / 3
    total = stats.tokens_within(one, -1, cut) + stats.tokens_within(one, cut, 10)
    assert total == pytest.approx(count)


def test_system_speed_is_of_the_window_for_several_and_of_the_run_for_one():
    two = [request(0, first=1, last=11, output=101), request(1, first=2, last=12, output=101)]
    # 2 to 11 s: 9 s of ten tokens each; the second user's first token arrived as the window opened.
    assert stats.system_output_tokens_per_s(two, 2) == pytest.approx(20)
    assert stats.whole_run_tokens_per_s(two) == pytest.approx(202 / 12)
    assert stats.system_output_tokens_per_s(two[:1], 1) == pytest.approx(101 / 11)
    assert stats.whole_run_tokens_per_s(two, with_prompt=True) == pytest.approx(402 / 12)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 1), (1, 2), (2, 3)], 1),
        ([(0, 1), (0.99, 2), (1.99, 3)], 1),
        ([(0, 1), (0.5, 2), (1.5, 3)], 2),
        ([(0, 2), (0, 2), (0, 2)], 3),
        ([], None),
        ([(1, 1)], None),
    ],
)
def test_concurrent_decodes(spans, expected):
    assert stats.concurrent_decodes([request(first=first, last=last) for first, last in spans]) == expected


def test_a_level_of_good_requests_has_no_findings():
    level = verdict.make_level(1, [request()] * 10, client_cpu_ratio=0.05, client_lag_p99_s=0.001)
    assert level.findings == ()
    assert level.valid
    assert level.ttfa_s is None
    assert level.decode_tokens_per_s.p90 == pytest.approx(10)


@pytest.mark.parametrize(
    ("requests", "more", "code", "valid"),
    [
        pytest.param([request()] * 9, {}, "too-few-samples", True, id="few"),
        pytest.param([request()] * 10 + [request(error="x")], {}, "errors", True, id="errors"),
        pytest.param([request(error="x")] * 10, {}, "no-answers", False, id="none"),
        pytest.param([request(cached_tokens=80)] * 10, {}, "cache-contaminated", False, id="cache"),
        pytest.param([request(output=9, requested_tokens=11)] * 10, {}, "short-outputs", False, id="short"),
        pytest.param(
            [request()] * 8 + [request(output=9, requested_tokens=11)] * 2, {}, "short-outputs", True, id="two"
        ),
        pytest.param([request(output=None)] * 10, {}, "no-token-counts", False, id="counts"),
        pytest.param([request(server_load_s=9.0)] * 10, {}, "model-reloaded", True, id="reload"),
        pytest.param([request()] * 10, {"client_cpu_ratio": 0.6}, "client-limited", True, id="cpu"),
        pytest.param([request()] * 10, {"client_cpu_ratio": 0.95}, "client-limited", False, id="cpu much"),
        pytest.param([request()] * 10, {"client_lag_p99_s": 0.02}, "client-limited", True, id="lag"),
    ],
)
def test_findings_and_validity(requests, more, code, valid):
    level = verdict.make_level(1, requests, **more)
    assert code in codes(level)
    assert level.valid is valid


@pytest.mark.parametrize(
    ("requests", "more"),
    [
        ([request(cached_tokens=80)] * 10, {"template_tokens": 75}),
        ([request()] * 9 + [request(output=9, requested_tokens=11)], {}),
        ([request(server_load_s=0.05)] * 10, {}),
        ([request()] * 10, {"client_lag_p99_s": 0.009}),
    ],
)
def test_what_is_normal_is_not_a_finding(requests, more):
    assert verdict.make_level(1, requests, **more).findings == ()


def test_a_serialising_server_by_its_overlaps():
    one_by_one = [request(user, first=start, last=start + 1) for start, user in enumerate([0, 1, 2, 3] * 3)]
    assert codes(verdict.make_level(4, one_by_one)) == ["server-serialises"]
    two_by_two = [request(user % 4, first=user // 2, last=user // 2 + 1) for user in range(12)]
    assert "2 answers at a time" in verdict.make_level(4, two_by_two).findings[0].message
    together = [request(user % 4, first=user // 4, last=user // 4 + 1) for user in range(12)]
    assert codes(verdict.make_level(4, together)) == []


def test_scaling_needs_a_level_of_one_user():
    alone = verdict.make_level(1, [request()] * 10)
    four = verdict.make_level(4, [request(user, first=1, last=2) for user in range(4)] * 3)
    assert verdict.with_scaling([four])[0].scaling_ratio is None
    scaled = verdict.with_scaling([alone, four])[1]
    assert scaled.scaling_ratio == pytest.approx(four.system_output_tokens_per_s / 40)
