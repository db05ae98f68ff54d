"""Counters of pods: resets, restarts, stale and broken samples."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.judge.counts import Counts, Histogram, Tokens
from llmservice.core.judge.scrapes import MAX_AGE, Scrape, count_increase
from tests.unit.core.judge.traffic import counts, streamed, with_tokens

FIVE, TWELVE = counts(4, 1), counts(9, 2, 1)


def scrape(pod, at, value):
    return Scrape(pod, at, value)


def after(baselines, *scrapes, now=30.0):
    return count_increase(baselines, scrapes, now)


@pytest.fixture
def baselines():
    """Two pods, seen at 0."""
    known, _ = after({}, scrape("a", 0, FIVE), scrape("b", 0, TWELVE), now=0)
    return known


def test_first_sight_counts_nothing():
    """What a pod counted before we looked is not of this window."""
    assert after({}, scrape("a", 30, TWELVE))[1] is None


def test_increase_is_summed_over_pods(baselines):
    """Each pod against its own last scrape."""
    _, increase = after(baselines, scrape("a", 30, TWELVE), scrape("b", 30, TWELVE + FIVE))

    assert TWELVE - FIVE + FIVE == increase


def test_restarted_engine_counts_from_zero(baselines):
    """Counters that fell: all that they show came after the restart."""
    known, increase = after(baselines, scrape("b", 30, FIVE))

    assert FIVE == increase
    assert FIVE == known["b"].counts


def test_replaced_pod_sets_its_own_baseline(baselines):
    """Another uid never is measured against the old pod."""
    known, increase = after(baselines, scrape("c", 30, FIVE))
    _, later = after(known, scrape("c", 60, TWELVE), now=60)

    assert increase is None
    assert TWELVE - FIVE == later


def test_sample_seen_before_does_not_count_again(baselines):
    """Nor does one older than the last, whatever it says."""
    assert after(baselines, scrape("a", 0, TWELVE))[1] is None
    assert after(baselines, scrape("a", -5, TWELVE))[1] is None


@pytest.mark.parametrize("at", [-0.1, MAX_AGE + 200.0])
def test_stale_and_future_samples_do_not_count(baselines, at):
    """A frozen endpoint is no news, a clock ahead of ours no evidence."""
    now = 30 + MAX_AGE if at < 0 else 100.0

    assert (baselines, None) == after(baselines, scrape("a", at, TWELVE), now=now)


@pytest.mark.parametrize("wrong", [math.nan, -1.0, math.inf])
def test_broken_sample_is_no_data_and_no_baseline(baselines, wrong):
    """The next good one is measured against the last good one."""
    broken = Counts(wrong, 0, FIVE.ttft, FIVE.latency)
    known, increase = after(baselines, scrape("a", 15, broken))
    _, later = after(known, scrape("a", 30, TWELVE))

    assert increase is None
    assert TWELVE - FIVE == later


def test_missed_scrape_is_made_up_for(baselines):
    """Counters lose nothing while nobody looks."""
    known, increase = after(baselines, scrape("b", 30, TWELVE + FIVE))
    _, later = after(known, scrape("a", 60, TWELVE), now=60)

    assert FIVE == increase
    assert TWELVE - FIVE == later


def test_other_edges_after_an_upgrade_are_a_restart(baselines):
    """Histograms with other edges cannot be subtracted."""
    other = Histogram.of((1.0,), [0.5])
    new = Counts(20, 0, other, other)

    assert new == after(baselines, scrape("a", 30, new))[1]


def test_tokens_and_their_times_increase_as_well():
    """They are counters like the others: a fall of one is a restart."""
    before, after_it = streamed(4), streamed(9)
    known, _ = after({}, scrape("a", 0, with_tokens(Tokens(4, 400), before)), now=0)
    grown, fallen = (with_tokens(Tokens(9, prompt), after_it) for prompt in (900, 300))

    assert with_tokens(Tokens(5, 500), streamed(5)) == after(known, scrape("a", 30, grown))[1]
    assert fallen == after(known, scrape("a", 30, fallen))[1]


def test_pod_that_does_not_publish_times_between_tokens_is_left_out():
    """The others of its track do: it is of another version."""
    known, _ = after({}, scrape("a", 0, streamed(4)), scrape("b", 0, FIVE), now=0)
    _, increase = after(known, scrape("a", 30, streamed(9)), scrape("b", 30, TWELVE))

    assert streamed(5) == increase


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_increase_is_never_negative(values):
    """Whatever a counter does."""
    known = {}
    for number, value in enumerate(values):
        known, increase = after(known, scrape("a", number, counts(value)), now=number)
        assert increase is None or increase.is_valid
