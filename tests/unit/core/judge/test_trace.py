"""Requests into windows."""

from dataclasses import replace

from llmservice.core.judge.counts import Histogram
from llmservice.core.judge.trace import VLLM, Request, cut_windows


def request(seconds, track="canary", ttft=0.2, latency=3.0, *, failed=False):
    return Request(seconds, track, ttft, latency, failed)


def test_windows_begin_with_the_first_request():
    """Each holds its start and not its end; empty ones are left out."""
    cut = list(cut_windows([request(s) for s in (100, 129.9, 130, 1000)], 30))

    assert [(130, 2), (160, 1), (1030, 1)] == [(end, w.canary.requests) for end, w in cut]
    assert all(0 == window.stable.requests for _, window in cut)


def test_requests_are_counted_as_engines_count_them():
    """A failed one has no time; times lie in the engine's buckets."""
    trace = [request(1), request(2, ttft=None, latency=None, failed=True), request(3, "stable")]
    ((_, window),) = cut_windows(trace, 30, VLLM)

    assert (2, 1) == (window.canary.requests, window.canary.failed)
    assert Histogram.of(VLLM.ttft, [0.2]) == window.canary.ttft
    assert Histogram.of(VLLM.latency, [3.0]) == window.stable.latency


def test_a_request_has_one_time_between_tokens():
    """The mean; none where it had a single token, or failed."""
    trace = [replace(request(n), itl=itl) for n, itl in enumerate((0.02, None, 0.03))]
    failed = replace(request(3, failed=True), itl=9.0)
    ((_, window),) = cut_windows([*trace, failed], 30, VLLM)

    assert Histogram.of(VLLM.itl, [0.02, 0.03]) == window.canary.itl
    assert 0 == window.stable.itl.total


def test_a_trace_is_read_only_as_far_as_needed():
    """A week of traffic is not held in memory."""
    read = []

    def trace():
        for second in range(1000):
            read.append(second)
            yield request(second)

    next(cut_windows(trace(), 30))

    assert 31 == len(read)


def test_epoch_seconds_and_long_gaps_are_fine():
    """A clock may start anywhere, and a night without traffic is skipped at once."""
    cut = list(cut_windows([request(1.7e9), request(1.7e9 + 1e12)], 30))

    assert 1.7e9 + 30 == cut[0][0]
    assert 2 == len(cut)


def test_no_requests_no_windows():
    """Nothing to judge."""
    assert [] == list(cut_windows([], 30))
