"""How many may wait follows how fast they go; on a real Envoy in tests/router/test_queue.py."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice.core.router.agent import Gate
from llmservice.core.router.desired import Capacity, Endpoint, Track, Traffic
from llmservice.core.router.pace import LEAST_SECONDS, Pace, bound_waiting, look_again

MAX_WAITING = 1000


def a_traffic(engines: int = 1, per_engine: int | None = 4, **more: int) -> Traffic:
    endpoints = tuple(Endpoint(f"10.0.0.{n + 1}:8000", ready=True) for n in range(engines))
    track = Track("stable", 10_000, Capacity(64, 64), endpoints, per_engine)
    return Traffic("v1", "stable", (track,), max_waiting=MAX_WAITING, **more)


def bound(traffic: Traffic, paces: dict[str, Pace]) -> int | None:
    [track] = bound_waiting(traffic, paces).tracks
    return track.waiting


def after(traffic: Traffic, *gates: Gate | None, every: float = 1.0) -> dict[str, Pace]:
    """What is known after so many looks; None is one that Envoy did not answer."""
    paces: dict[str, Pace] = {}
    for number, gate in enumerate(gates):
        if gate is not None:
            paces = look_again(paces, {"stable": gate}, traffic, number * every)
    return paces


def steadily(seconds: int, ended_in_one: float, handed: int = 4, since: int = 0) -> list[Gate]:
    return [Gate(50, handed, since + int(n * ended_in_one)) for n in range(seconds + 1)]


# --- evidence -----------------------------------------------------------------------------------


def test_a_bound_is_what_ends_in_the_time_that_one_may_wait():
    """Two a second for a minute: 120, however long the looks go on."""
    for seconds in (32, 60, 6000):
        paces = after(a_traffic(), *steadily(seconds, 2))
        assert 120 == bound(a_traffic(max_wait_seconds=60), paces)


def test_what_passes_the_gate_is_no_pace_while_engines_end_others():
    """They have requests that bypassed it, and do more than can be seen here."""
    traffic = a_traffic(max_wait_seconds=60)
    (track,) = traffic.tracks
    busy = replace(traffic, tracks=(replace(track, bypassing=2),))
    paces = after(busy, *steadily(60, 2))
    assert bound(busy, paces) is None
    for number, gate in enumerate(steadily(32, 2)):
        paces = look_again(paces, {"stable": gate}, traffic, 61 + number)
    assert 120 == bound(traffic, paces)


@given(st.integers(0, 29), st.integers(1, 100))
def test_a_short_look_is_no_evidence(seconds, ended):
    assert bound(a_traffic(), after(a_traffic(), *steadily(seconds, ended))) is None


@given(st.integers(0, 10_000), st.integers(0, 11))
def test_few_ends_are_no_evidence(seconds, ended):
    """However long they take: nobody is refused because answers are long."""
    gates = [Gate(50, 12, n * ended // max(seconds, 1)) for n in range(0, seconds + 1, 5)]
    assert bound(a_traffic(3), after(a_traffic(3), *gates, every=5)) is None


def test_a_turn_of_all_that_run_is_evidence():
    """Twelve run at a time, and begin and end together every minute: twelve in sixty seconds."""
    traffic, paces, bounds = a_traffic(3, max_wait_seconds=600), {}, []
    for n in range(600):
        paces = look_again(paces, {"stable": Gate(50, 12, 12 * (n // 60))}, traffic, n)
        bounds.append(bound(traffic, paces))
    assert {None} == set(bounds[:89])
    assert all(few >= 120 for few in bounds[120:])


def test_a_turn_may_take_longer_than_looks_are_kept():
    """1400 run at a time, and one ends in a second: evidence after 1400 seconds."""
    traffic = a_traffic(10, 140, max_wait_seconds=60)
    paces = after(traffic, *steadily(1390, 1, handed=1400))
    assert bound(traffic, paces) is None
    for seconds in (1410, 10_000):
        paces = after(traffic, *steadily(seconds, 1, handed=1400))
        assert 60 == bound(traffic, paces)
        assert len(paces["stable"].looks) <= 601


def test_what_nobody_waited_for_is_no_pace():
    """It would be that of the clients."""
    calm = [replace(gate, waiting=0) for gate in steadily(1000, 0.5)]
    assert bound(a_traffic(), after(a_traffic(), *calm)) is None
    [last] = calm[-1:]
    assert bound(a_traffic(), after(a_traffic(), *calm, *steadily(20, 9, since=last.ended))) is None


def test_a_short_queue_may_be_empty_for_a_moment():
    gates = steadily(100, 1)
    for n in range(3, 100):
        gates[n] = replace(gates[n], waiting=n % 4 == 0)
    assert bound(a_traffic(max_wait_seconds=9), after(a_traffic(), *gates)) in (9, 10)


def test_a_bound_ends_with_the_queue():
    gates = steadily(100, 1)
    calm = [replace(gates[-1], waiting=0)]
    assert bound(a_traffic(), after(a_traffic(), *gates, *calm * 10)) is not None
    assert bound(a_traffic(), after(a_traffic(), *gates, *calm * 11)) is None


def test_a_silent_envoy_leaves_the_bound_for_a_while():
    gates = steadily(100, 1)
    again = Gate(50, 4, 110)
    assert bound(a_traffic(), after(a_traffic(), *gates, *[None] * 9, again)) is not None
    assert bound(a_traffic(), after(a_traffic(), *gates, *[None] * 10, again)) is None


def test_another_envoy_counts_anew():
    """And two counters that were not read in the same moment do not."""
    gates = steadily(100, 1)
    assert bound(a_traffic(), after(a_traffic(), *gates, Gate(50, 4, 3))) is None
    assert bound(a_traffic(), after(a_traffic(), *gates, Gate(50, 4, 97))) is not None


# --- the bound ----------------------------------------------------------------------------------


def test_engines_that_stop_let_nobody_else_in():
    """The bound falls as their silence lasts, and is no less than one for each."""
    traffic = a_traffic(2, max_wait_seconds=10)
    before, gates = MAX_WAITING, steadily(60, 20, handed=8)
    for _ in range(3):
        gates += [gates[-1]] * 30
        now = bound(traffic, after(traffic, *gates))
        assert now is not None
        assert 2 <= now < before
        before = now
    assert 2 == bound(traffic, after(traffic, *gates, *[gates[-1]] * 5000))


def test_new_engines_are_reckoned_with_at_once():
    """And there is room for as many as they may be handed."""
    paces = after(a_traffic(1), *steadily(60, 2))
    assert 60 == bound(a_traffic(1, max_wait_seconds=30), paces)
    assert 180 + 8 == bound(a_traffic(3, max_wait_seconds=30), paces)


def test_a_queue_that_is_longer_than_it_may_be_notices_new_engines():
    """There is room behind those who wait until the newcomers have been handed their part."""
    paces = after(a_traffic(1), *steadily(60, 2))
    assert 10 == bound(a_traffic(1, max_wait_seconds=5), paces)
    grown = a_traffic(3, max_wait_seconds=5)
    assert 50 + 8 == bound(grown, paces)
    for handed, most in ((9, 45 + 3), (12, 30), (10, 30 + 2)):
        paces = look_again(paces, {"stable": Gate(54 - handed, handed, 120)}, grown, 60)
        assert most == bound(grown, paces)
    fewer = look_again(paces, {"stable": Gate(50, 8, 120)}, a_traffic(2), 60)
    assert 50 + 4 == bound(grown, fewer)


def test_a_long_wait_leaves_the_bound_to_the_number():
    paces = after(a_traffic(), *steadily(60, 2))
    assert 998 == bound(a_traffic(max_wait_seconds=499), paces)
    assert bound(a_traffic(max_wait_seconds=500), paces) is None


@pytest.mark.parametrize(
    "traffic", [a_traffic(0), a_traffic(1, None), a_traffic(0, hold_seconds=9)]
)
def test_there_is_no_bound_without_an_engine_or_a_gate(traffic):
    """Who is held has a deadline of its own."""
    assert bound(traffic, after(traffic, *steadily(60, 2))) is None
    assert bound(traffic, after(a_traffic(), *steadily(60, 2))) is None


def test_a_track_whose_engines_went_goes_as_fast_as_stable():
    canary = Track("canary", 0, Capacity(64, 64), per_engine=1)
    alone = a_traffic(2, max_wait_seconds=30)
    both = replace(alone, tracks=(*alone.tracks, canary))
    paces: dict[str, Pace] = {}
    for number, gate in enumerate(steadily(60, 2)):
        paces = look_again(paces, {"canary": gate}, both, number)
    assert [None, 60 + 4] == [track.waiting for track in bound_waiting(both, paces).tracks]


def test_an_order_cannot_say_how_fast_it_goes():
    """The bound is not part of the version either."""
    said = replace(a_traffic(), tracks=(replace(a_traffic().tracks[0], waiting=7),))
    assert a_traffic() == bound_waiting(said, {})
    paces = after(a_traffic(), *steadily(60, 1))
    assert "v1" == bound_waiting(a_traffic(), paces).version


@given(
    st.lists(st.builds(Gate, *[st.integers(0, 2000)] * 3), max_size=60),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 86_400),
)
def test_a_bound_is_never_below_one_nor_above_the_number(gates, engines, routers, seconds):
    """Whatever Envoy says."""
    traffic = a_traffic(engines, routers=routers, max_wait_seconds=seconds)
    now = bound(traffic, after(traffic, *gates, every=7))
    assert now is None or 1 <= now < MAX_WAITING + ceil(engines * 4 / routers)


# --- in a queue ---------------------------------------------------------------------------------


@dataclass
class Clients:
    """They come at a pace, and places become free at another."""

    traffic: Traffic
    pending: deque[float] = field(default_factory=deque)
    waits: list[tuple[float, float]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def live(self, seconds: int, came: float, ended: float) -> None:
        """One look a second; in between ten steps."""
        paces: dict[str, Pace] = {}
        most: int | None = None
        arrivals, departures, let_go = _ticks(came / 10), _ticks(ended / 10), 0
        for step in range(seconds * 10):
            now = step / 10
            for _ in range(next(arrivals)):
                if most is None or len(self.pending) < most:
                    self.pending.append(now)
                else:
                    self.refused.append(now)
            for _ in range(min(next(departures), len(self.pending))):
                let_go += 1
                came_at = self.pending.popleft()
                self.waits.append((came_at, now - came_at))
            if step % 10 == 9:
                gate = Gate(len(self.pending), 4, let_go)
                paces = look_again(paces, {"stable": gate}, self.traffic, now)
                most = bound(self.traffic, paces)


def _ticks(rate: float) -> Iterator[int]:
    due = 0.0
    while True:
        due += rate
        yield int(due)
        due -= int(due)


@settings(max_examples=20)
@given(st.integers(5, 60), st.floats(0.5, 10), st.floats(1.3, 4))
def test_who_is_let_in_waits_for_about_as_long_as_said(seconds, ended, overload):
    """As soon as the pace is known and those who came before have gone."""
    clients = Clients(a_traffic(max_wait_seconds=seconds))
    known = max(LEAST_SECONDS, 10 / ended) + 5
    settled = overload * known  # those who came before have gone
    full = seconds / (overload - 1)
    clients.live(int(settled + full) + seconds + 20, ended * overload, ended)
    assert all(came > LEAST_SECONDS for came in clients.refused)
    late = [wait for came, wait in clients.waits if came > settled]
    assert all(wait <= 1.1 * seconds + 3 / ended + 1 for wait in late)
    if ended * seconds < MAX_WAITING:
        assert clients.refused
        assert late


@settings(max_examples=20)
@given(st.integers(5, 60), st.floats(0.5, 10), st.floats(0.1, 0.9))
def test_nobody_is_refused_where_engines_are_fast_enough(seconds, ended, load):
    clients = Clients(a_traffic(max_wait_seconds=seconds))
    clients.live(100, ended * load, ended)
    assert not clients.refused
