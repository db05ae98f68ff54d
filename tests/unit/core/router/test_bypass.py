"""When a bypass of the gate begins and ends, and what is taken off the gate's limit then."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.router.agent import Gate
from llmservice.core.router.bypass import (
    CALM_SECONDS,
    LEAST_LIMIT,
    Bypass,
    look_around,
    with_bypass,
)
from llmservice.core.router.desired import Capacity, Endpoint, Track, Traffic, handed_limit

LIMIT = 160
ON = Bypass(on=True)


def a_traffic(per_engine: int | None = LIMIT, *, engines: int = 1, **more: int) -> Traffic:
    endpoints = tuple(Endpoint(f"10.0.0.{n + 1}:8000", ready=True) for n in range(engines))
    track = Track("stable", 10_000, Capacity(64, 64), endpoints, per_engine)
    return Traffic("v1", "stable", (track,), **more)


def a_rollout() -> Traffic:
    (stable,) = a_traffic().tracks
    canary = replace(stable, name="canary", weight=500)
    return Traffic("v1", "stable", (replace(stable, weight=9_500), canary))


def look(before: Bypass, gate: Gate, traffic: Traffic | None = None, now: float = 0.0) -> Bypass:
    return look_around(before, {"stable": gate}, traffic or a_traffic(), now)


def after_calm(traffic: Traffic, gate: Gate) -> Bypass:
    return look(look(Bypass(), gate, traffic), gate, traffic, CALM_SECONDS)


def limits_of(traffic: Traffic, bypass: Bypass) -> list[int | None]:
    changed = with_bypass(traffic, bypass)
    return [handed_limit(changed, track) for track in changed.tracks]


def limit_of(traffic: Traffic, bypass: Bypass) -> int | None:
    (limit,) = limits_of(traffic, bypass)
    return limit


# --- on and off -----------------------------------------------------------------------------------


def test_it_begins_once_there_has_been_room_for_a_while():
    quarter = Gate(0, LIMIT // 4)
    first = look(Bypass(), quarter, now=100)
    almost = look(first, quarter, now=109.9)
    assert (False, False) == (first.on, almost.on)
    assert look(almost, quarter, now=110).on
    assert with_bypass(a_traffic(), ON).bypass


@pytest.mark.parametrize(
    "gate",
    [Gate(0, LIMIT // 4 + 1), Gate(1, LIMIT // 4), Gate(0, 20, bypassing=21)],
    ids=["handed", "waiting", "bypassing"],
)
def test_the_calm_begins_anew_when_there_was_less_room(gate):
    calm = look(Bypass(), Gate(0, 0), now=0)
    busy = look(calm, gate, now=5)
    again = look(busy, Gate(0, 0), now=6)
    assert not look(again, Gate(0, 0), now=5 + CALM_SECONDS).on
    assert look(again, Gate(0, 0), now=6 + CALM_SECONDS).on


def test_it_ends_at_once_when_engines_are_half_full():
    """And not earlier, so that it does not swing."""
    assert look(ON, Gate(0, 0, bypassing=LIMIT // 2)).on
    assert not look(ON, Gate(0, 0, bypassing=LIMIT // 2 + 1)).on
    assert not look(ON, Gate(0, 40, bypassing=LIMIT // 2 - 39)).on


@pytest.mark.parametrize(
    "traffic",
    [a_traffic(31), a_traffic(LIMIT, routers=6), a_traffic(engines=0), a_rollout()],
    ids=["few sequences", "many routers", "no engine", "rollout"],
)
def test_there_is_none_where_a_look_could_come_too_late(traffic):
    """And one that is on ends: at once, not with the next look."""
    gates = dict.fromkeys(("stable", "canary"), Gate(0, 0))
    first = look_around(Bypass(), gates, traffic, 0)
    assert not look_around(first, gates, traffic, CALM_SECONDS).on
    assert not look_around(ON, gates, traffic, 0).on
    assert not with_bypass(traffic, ON).bypass


def test_where_as_many_as_32_fill_the_engines_there_is_one():
    assert after_calm(a_traffic(32), Gate(0, 0)).on


def test_a_gate_that_only_holds_is_bypassed_while_there_is_an_engine():
    held = a_traffic(None, hold_seconds=60)
    assert after_calm(held, Gate(3, 700)).on
    assert not look(ON, Gate(0, 0), a_traffic(None, engines=0, hold_seconds=60)).on


def test_a_gate_that_envoy_does_not_know_yet_is_no_empty_one():
    traffic = a_traffic()
    first = look_around(Bypass(), {}, traffic, 0)
    assert not look_around(first, {"stable": Gate(0, 0)}, traffic, CALM_SECONDS).on
    assert not look_around(ON, {}, traffic, 0).on


def test_the_next_look_comes_soon_while_anybody_bypasses():
    assert ON.is_moving
    assert look(ON, Gate(0, 0, bypassing=100)).is_moving
    assert not look(Bypass(), Gate(0, 40)).is_moving


# --- what is taken off ----------------------------------------------------------------------------


def test_those_under_way_are_taken_off_the_limit_until_they_end():
    """In few steps: each is a change of files."""
    traffic = a_traffic()
    assert LIMIT == limit_of(traffic, look(ON, Gate(0, 0, bypassing=80)))
    limits = {n: limit_of(traffic, look(Bypass(), Gate(0, 0, bypassing=n))) for n in range(101)}
    assert (LIMIT, LIMIT - 100) == (limits[0], limits[100])
    assert all(number + limit <= LIMIT + LIMIT // 16 for number, limit in limits.items())
    assert len(set(limits.values())) <= 11


def test_few_are_no_matter():
    """Counters that are not read in one moment would move the limit all the time."""
    assert LIMIT == limit_of(a_traffic(), look(Bypass(), Gate(0, 4, bypassing=10)))
    assert 4 == limit_of(a_traffic(4), look(Bypass(), Gate(0, 4, bypassing=2), a_traffic(4)))


def test_somebody_is_handed_on_however_many_are_under_way():
    """And that there are even more changes nothing."""
    traffic = a_traffic()
    more, most = (look(Bypass(), Gate(5, 0, bypassing=n * LIMIT)) for n in (3, 4))
    assert 1 == limit_of(traffic, more)
    assert more == most


def test_a_rollout_begins_with_a_limit_without_those_under_way():
    """They belong to the revision that had them, also once that is no longer stable."""
    before = look(ON, Gate(0, 0, bypassing=50))
    assert [LIMIT - 50, LIMIT] == limits_of(a_rollout(), before)

    gates = {"stable": Gate(0, 0, bypassing=50), "canary": Gate(0, 9)}
    for stable in ("stable", "canary"):
        traffic = replace(a_rollout(), stable=stable)
        assert [LIMIT - 50, LIMIT] == limits_of(traffic, look_around(ON, gates, traffic, 0))


def test_what_stable_answers_for_a_canary_passed_a_gate():
    """So nothing is taken off: neither bypassed one."""
    gates = {"stable": Gate(0, 60, bypassing=50), "canary": Gate(0, 50, bypassing=-50)}
    assert [LIMIT, LIMIT] == limits_of(a_rollout(), look_around(Bypass(), gates, a_rollout(), 0))


FEW = st.integers(0, 40)
GATES = st.builds(Gate, FEW, FEW, FEW, st.integers(-5, 1000) | FEW)


@given(st.lists(st.tuples(GATES, st.integers(0, 8))), st.integers(1, 400), st.booleans())
def test_a_limit_stays_what_envoy_takes_and_a_bypass_has_room(looks, per_engine, holds):
    """Whatever is counted, and however often."""
    traffic, bypass, now = a_traffic(per_engine, hold_seconds=60 if holds else 0), Bypass(), 0
    for gate, seconds in looks:
        before, now = bypass, now + seconds
        bypass = look(bypass, gate, traffic, now)
        limit = limit_of(traffic, bypass)
        assert limit is not None
        assert 1 <= limit <= per_engine
        if bypass.on:
            assert per_engine >= LEAST_LIMIT
            most = per_engine / (2 if before.on else 4)
            assert gate.waiting + gate.handed + gate.bypassing <= most
