"""Histograms and what counts as counts."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.judge.counts import (
    FINE_EDGES,
    FINE_ITL_EDGES,
    Counts,
    Histogram,
    Tokens,
)
from tests.unit.core.judge.traffic import EDGES, counts, streamed, with_tokens

times = st.lists(st.floats(0, 6), max_size=60)


@given(times)
def test_above_an_edge_is_exact(drawn):
    """No interpolation where the threshold is an edge; on it is not over it."""
    histogram = Histogram.of(EDGES, drawn)

    for edge in EDGES:
        assert sum(time > edge for time in drawn) == histogram.above(edge)


@given(times, st.lists(st.floats(0, 8), min_size=2, max_size=2))
def test_above_falls_with_the_threshold(drawn, thresholds):
    """Between edges as well, and past the last one."""
    low, high = sorted(thresholds)
    histogram = Histogram.of(EDGES, drawn)

    assert len(drawn) >= histogram.above(low) >= histogram.above(high) >= 0


@given(st.lists(st.floats(0, 4), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.95]))
def test_quantile_and_above_agree(drawn, share):
    """So many lie over a quantile as should."""
    histogram = Histogram.of(EDGES, drawn)

    assert histogram.above(histogram.quantile(share)) == pytest.approx((1 - share) * len(drawn))


def test_quantile_of_what_is_off_the_scale_is_the_last_edge():
    """Nothing can be told apart there."""
    assert EDGES[-1] == Histogram.of(EDGES, [100, 100]).quantile(0.5)


def test_fine_edges_tell_ten_percent_apart():
    """From 10 ms to past the highest limit that a guardrail may have."""
    assert FINE_EDGES[0] <= 0.01
    assert FINE_EDGES[-1] >= 600
    assert FINE_ITL_EDGES[0] <= 0.001
    for edges in (FINE_EDGES, FINE_ITL_EDGES):
        assert all(b / a <= 1.1001 for a, b in pairwise(edges))


@given(times, st.floats(0, 80), st.sampled_from(EDGES))
def test_counting_as_fewer_keeps_the_shares(drawn, most, threshold):
    """And never counts as more than there are."""
    histogram = Histogram.of(EDGES, drawn)
    fewer = histogram.counted_as(most)

    assert fewer.total == pytest.approx(min(most, len(drawn)))
    assert fewer.above(threshold) * len(drawn) == pytest.approx(
        histogram.above(threshold) * fewer.total
    )


def test_histograms_with_other_edges_do_not_add_up():
    """Rather an error than a wrong sum."""
    with pytest.raises(ValueError, match="different edges"):
        Histogram.of(EDGES) + Histogram.of((1.0,))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("field", ["requests", "failed", "bucket"])
def test_no_number_is_no_counts(wrong, field):
    """NaN, infinity and less than nothing, wherever they stand."""
    good = counts(5, 1, 1)
    times = Histogram(EDGES, (wrong, *good.ttft.counts[1:])) if field == "bucket" else good.ttft
    numbers = {"requests": good.requests, "failed": good.failed, field: wrong}

    assert good.is_valid
    assert not Counts(numbers["requests"], numbers["failed"], times, good.latency).is_valid


def test_more_failures_than_requests_are_no_counts():
    """One of the two numbers must be wrong."""
    good = counts(5)

    assert not Counts(5, 6, good.ttft, good.latency).is_valid


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_tokens_and_their_times_are_counts_too(wrong):
    """They come from the same stranger."""
    good = streamed(5)
    times = Histogram(EDGES, (wrong, *good.ttft.counts[1:]))

    assert good.is_valid
    assert not Counts(5, 0, good.ttft, good.latency, times).is_valid
    assert not with_tokens(Tokens(5, wrong), good).is_valid


def test_times_that_one_side_does_not_publish_have_no_sum():
    """Unknown, rather than half of them."""
    assert (streamed(5) + counts(5)).itl is None
    assert (streamed(5) + streamed(5)).itl == streamed(10).itl


def test_hit_ratio_without_a_cache_is_zero():
    """Nothing was looked up, so nothing was found."""
    assert (0, 0.25) == (Tokens(5, 100).hit_ratio, Tokens(5, 100, 0, 100, 25).hit_ratio)
