"""Whose rollout comes first: started ones, then those that began first, then by name."""

from datetime import UTC, datetime, timedelta

import pytest

from llmservice.core.canary.queue import NOTICE_SECONDS, Place, place_of, who_is_first
from llmservice.core.canary.state import Phase, Rollout, dump_rollout

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


def waiting(began=60, phase=Phase.Preflight):
    """A rollout that began so many seconds ago."""
    return Rollout(phase, "old", since=ago(1), began=ago(began), canary="new")


def place(service, began=60, phase=Phase.Preflight):
    """Where it stands for the others."""
    return place_of(service, {"rollout": {"state": dump_rollout(waiting(began, phase))}})


def ask(others, limit=1, began=60, service="b/b"):
    return who_is_first(waiting(began), service, others, limit, NOW)


@pytest.mark.parametrize(
    ("others", "limit", "waits"),
    [
        ([], 1, False),
        ([place("a/a", began=61)], 1, True),
        ([place("a/a", began=61)], 2, False),
        ([place("a/a", began=61), place("c/c", began=90)], 2, True),
        ([place("a/a", began=59)], 1, False),
        ([place("a/a")], 1, True),  # began together: the name decides
        ([place("c/c")], 1, False),
        ([place("c/c", began=1, phase=Phase.Judging)], 1, True),
        ([place("c/c", began=1, phase=Phase.Draining)], 1, True),
        ([place("a/a", began=61)] * 9, 0, False),
    ],
)
def test_order(others, limit, waits):
    """Fewer than the limit may be ahead."""
    assert waits == bool(ask(others, limit))


def test_two_that_wait_never_both_go():
    """Of any two, exactly one is first."""
    for first, second in ((60, 60), (60, 30), (30, 60)):
        a = ask([place("b/b", second)], began=first, service="a/a")
        b = ask([place("a/a", first)], began=second, service="b/b")
        assert bool(a) != bool(b)


def test_it_says_who_comes_first():
    """By name, a few of them."""
    many = [place(f"a/{number}", began=90 - number) for number in range(9)]
    assert "others come first: a/0, a/1, a/2 and 6 more" in ask(many)


def test_one_that_has_just_begun_gives_notice():
    """One that began a moment before may not be seen yet."""
    assert ask([], began=NOTICE_SECONDS - 1)
    assert not ask([], began=NOTICE_SECONDS)
    assert not ask([], began=0, limit=0)


def test_only_one_that_waits_in_preflight_is_held():
    """What has begun goes on, whoever else has begun."""
    rollout = waiting(phase=Phase.Provisioning)
    assert not who_is_first(rollout, "b/b", [place("a/a", 90, Phase.Judging)], 1, NOW)


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"rollout": None},
        {"rollout": "x"},
        {"rollout": {}},
        {"rollout": {"state": 1}},
        {"rollout": {"state": '{"phase": "Judging"}'}},
        {"rollout": {"state": dump_rollout(Rollout(Phase.Judging, "a", NOW.replace(tzinfo=None)))}},
        {"rollout": {"state": dump_rollout(Rollout(Phase.Stable, "a", NOW))}},
        {"rollout": {"state": dump_rollout(Rollout(Phase.Aborted, "a", NOW))}},
    ],
)
def test_what_has_no_place(status):
    """Services at rest, and statuses that say nothing."""
    assert place_of("a/a", status) is None


def test_a_rollout_keeps_its_place_through_the_status():
    """To the microsecond, as the order hangs on it."""
    rollout = Rollout(Phase.Judging, "a", NOW, began=ago(0.000001))
    status = {"rollout": {"state": dump_rollout(rollout)}}
    assert Place(False, ago(0.000001), "a/a") == place_of("a/a", status)
