"""Whose rollout comes first: started ones, then those that began first, then by name."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.api.v1alpha1 import RolloutSpec
from llmservice.core.canary.intent import pods_of, surge_pods
from llmservice.core.canary.queue import NOTICE_SECONDS, Limits, Place, place_of, who_is_first
from llmservice.core.canary.state import Phase, Rollout, dump_rollout

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


def waiting(began=60, phase=Phase.Preflight, devices=0):
    """A rollout that began so many seconds ago."""
    return Rollout(phase, "old", since=ago(1), began=ago(began), canary="new", devices=devices)


def place(service, began=60, phase=Phase.Preflight, devices=0):
    """Where it stands for the others."""
    return place_of(service, {"rollout": {"state": dump_rollout(waiting(began, phase, devices))}})


def ask_devices(wanted, *taken, limit=8, began=60):
    """Ask for so many, while others ahead hold these numbers, or will."""
    others = [place(f"a/{number}", 90, devices=each) for number, each in enumerate(taken)]
    rollout = waiting(began, devices=wanted)
    return who_is_first(rollout, "b/b", others, Limits(devices=limit), NOW)


def ask(others, limit=1, began=60, service="b/b"):
    return who_is_first(waiting(began), service, others, Limits(limit), NOW)


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
    assert not who_is_first(rollout, "b/b", [place("a/a", 90, Phase.Judging)], Limits(1), NOW)


@pytest.mark.parametrize(
    ("wanted", "taken", "waits"),
    [
        (8, (), False),
        (8, (1,), True),
        (4, (4,), False),
        (4, (4, 1), True),
        (0, (8,), False),  # Replace takes nothing
        (8, (0, 0), False),
        (9, (), False),  # larger than the limit: alone
        (9, (1,), True),
        (1, (9,), True),
        (0, (9,), False),
        (9, (0,), False),
    ],
)
def test_accelerators(wanted, taken, waits):
    """Those of all who come first count, whether they have begun or will."""
    assert waits == bool(ask_devices(wanted, *taken))
    assert not ask_devices(wanted, *taken, limit=0)


def test_it_says_what_it_takes():
    """In numbers, and by the names of those that hold some."""
    waits = "it takes 4 accelerators, 6 of 8 are taken, and others come first: a/0, a/2"
    assert waits == ask_devices(4, 3, 0, 3)
    alone = "its 9 accelerators are over the limit of 8, so it goes alone"
    assert f"{alone}, and others come first: a/0" == ask_devices(9, 3)
    assert ask_devices(9, began=0).endswith(f"come first; {alone}")
    assert "alone" not in ask_devices(8, began=0)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(10, 30)), min_size=1, max_size=6),
    st.integers(1, 10),
    st.permutations(range(6)),
)
def test_never_more_than_the_limit_and_all_get_their_turn(fleet, limit, order):
    """Whoever looks when: those that have begun fit, unless one is alone with what it takes."""
    devices = {f"a/{number}": each for number, (each, _) in enumerate(fleet)}
    began = {f"a/{number}": since for number, (_, since) in enumerate(fleet)}
    running: list[str] = []
    waits = list(devices)
    while waits:
        for service in [f"a/{number}" for number in order if f"a/{number}" in waits]:
            others = [
                place(
                    each,
                    began[each],
                    Phase.Judging if each in running else Phase.Preflight,
                    devices[each],
                )
                for each in (*waits, *running)
                if each != service
            ]
            rollout = waiting(began[service], devices=devices[service])
            if not who_is_first(rollout, service, others, Limits(devices=limit), NOW):
                waits.remove(service)
                running.append(service)
            holders = [each for each in running if devices[each]]
            assert sum(devices[each] for each in holders) <= limit or len(holders) == 1
        assert running, "nobody may begin"
        running.pop(0)


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


@pytest.mark.parametrize(
    ("capacity", "wanted", "extra"),
    [("Surge", 4, 4), ("Surge", 0, 0), ("Replace", 4, 0), ("Replace", 1, 1), ("Replace", 0, 0)],
)
def test_pods_beside_those_that_are_wanted(capacity, wanted, extra):
    """Of a pair of revisions that share one pod's place, each has a pod all the same."""
    rollout = Rollout(Phase.Judging, "old", NOW, canary="new", pods_for=100, capacity=capacity)
    assert extra == surge_pods(rollout, wanted)
    pods = pods_of(rollout, RolloutSpec(capacity=capacity), wanted)
    assert extra == sum(pods.values()) - wanted
