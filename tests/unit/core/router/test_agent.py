"""What the agent works out; what Envoy makes of it is tested in tests/router/test_agent.py."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.router.agent import (
    COUNTERS,
    GATES,
    Gate,
    Target,
    choose_target,
    count_tracks,
    has_moved,
    join_endpoints,
    read_gates,
    stuck_gates,
    version_of_order,
)
from llmservice.core.router.desired import (
    Capacity,
    Endpoint,
    Track,
    Traffic,
    check_traffic,
    format_traffic,
    parse_traffic,
)
from llmservice.core.router.report import TrackReport

HERE, THERE = Endpoint("10.0.0.1:8000", ready=True), Endpoint("10.0.0.2:8000", ready=True)
BOTH = {"stable": (HERE,), "canary": (THERE,)}


def an_order(version: str = "v1", canary: int = 0) -> Traffic:
    capacity = Capacity(64, 64)
    tracks = (Track("stable", 10_000 - canary, capacity), Track("canary", canary, capacity))
    return Traffic(version, "stable", tracks)


# --- choosing -----------------------------------------------------------------------------------


def test_a_new_order_is_followed():
    order = an_order("v2", 5_000)
    assert Target(order) == choose_target(order, an_order(), BOTH)


def test_the_first_order_is_followed_though_nobody_serves():
    assert Target(an_order()) == choose_target(an_order(), None, {})


def test_a_share_is_not_raised_where_nobody_serves():
    chosen = choose_target(an_order("v2", 5_000), an_order(), {"stable": (HERE,)})
    assert an_order() == chosen.order
    assert chosen.problem.startswith("version v2: ")
    assert "canary has no ready engine" in chosen.problem


def test_a_share_that_is_in_force_stays_though_nobody_serves():
    order = an_order("v2", 5_000)
    assert Target(order) == choose_target(order, order, {})


def test_a_damaged_or_missing_order_leaves_the_one_before():
    for damaged in (None, parse_traffic("{")):
        chosen = choose_target(damaged, an_order(), BOTH)
        assert an_order() == chosen.order
        assert chosen.problem
        assert choose_target(damaged, None, BOTH).order is None


# --- joining ------------------------------------------------------------------------------------


@given(st.from_regex(r"\A[A-Za-z0-9._-]{1,100}\Z"))
def test_the_version_of_the_order_can_be_read_back(version):
    joined = join_endpoints(an_order(version), BOTH)
    assert version == version_of_order(joined.version)


def test_envoy_without_routes_has_no_version():
    assert version_of_order(None) is None


def test_a_version_names_one_content():
    """Other engines, other weights or another owner of the same engines: another version."""
    moved = {"stable": (THERE,), "canary": (HERE,)}
    different = [
        join_endpoints(an_order(canary=canary), endpoints).version
        for canary in (0, 1)
        for endpoints in (BOTH, moved, {}, {"stable": (HERE,)})
    ]
    assert len(different) == len(set(different))
    assert join_endpoints(an_order(), BOTH) == join_endpoints(an_order(), dict(BOTH))


def test_engines_go_to_their_track():
    """Those of a revision that the order does not name go nowhere."""
    joined = join_endpoints(an_order(), {**BOTH, "old": (Endpoint("10.0.0.9:8000", ready=True),)})
    assert [("stable", (HERE,)), ("canary", (THERE,))] == [
        (track.name, track.endpoints) for track in joined.tracks
    ]
    assert isinstance(check_traffic(joined), Traffic)


def test_addresses_in_the_config_map_count_for_nothing():
    order = an_order()
    stale = replace(order, tracks=tuple(replace(t, endpoints=(THERE,)) for t in order.tracks))
    assert () == join_endpoints(stale, {}).tracks[0].endpoints


# --- counting -----------------------------------------------------------------------------------


def test_both_clusters_of_a_track_are_added():
    stats = {
        "cluster.share-canary.upstream_rq_completed": 10,
        "cluster.track-canary.upstream_rq_completed": 3,
        "cluster.share-canary.upstream_rq_5xx": 1,
        "cluster.share-canary.retry.upstream_rq_completed": 2,
        "cluster.track-canary.upstream_rq_pending_failure_eject": 4,
        "cluster.track-canary.upstream_cx_destroy_remote_with_active_rq": 8,
        "cluster.track-canary.upstream_rq_active": 16,
        "cluster.track-canary.upstream_rq_pending_active": 32,
        "cluster.track-stable.upstream_rq_active": 5,
    }
    expected = {"canary": TrackReport(48, 13, 15), "stable": TrackReport(5, 0, 0)}
    assert expected == count_tracks(stats)


def test_who_waits_is_active_and_who_is_turned_away_has_failed():
    """At a track's gate, as where there is none."""
    stats = {
        "cluster.track-stable.upstream_rq_active": 4,
        "cluster.gate-stable.upstream_rq_pending_active": 8,
        "cluster.gate-stable.upstream_rq_pending_overflow": 16,
        "cluster.gate-stable.upstream_rq_active": 32,
        "cluster.gate-stable.upstream_rq_completed": 64,
    }
    assert {"stable": TrackReport(active=12, requests=16, failed=16)} == count_tracks(stats)
    assert all(
        (re.match(COUNTERS, name) is None) == (number > 16) for name, number in stats.items()
    )


def test_gates_are_read():
    stats = {
        "cluster.gate-stable.upstream_rq_pending_active": 8,
        "cluster.gate-stable.upstream_cx_active": 3,
        "cluster.gate-stable.upstream_rq_total": 99,
        "cluster.gate-stable.upstream_rq_active": 2,
        "cluster.gate-canary.upstream_rq_pending_active": 0,
        "cluster.gate-canary.upstream_cx_active": 1,
        "cluster.gate-canary.upstream_rq_active": 4,
        "cluster.track-stable.upstream_rq_active": 7,
        "cluster.track-stable.upstream_rq_pending_active": 1,
        "cluster.track-other.upstream_rq_active": 7,
    }
    found = {"stable": Gate(8, 3, 97, bypassing=6), "canary": Gate(0, 1, -4, bypassing=-4)}
    assert found == read_gates(stats)
    assert all(re.match(GATES, name) for name in stats)


def test_only_what_differs_noticeably_is_told():
    def of(waiting: int | None = None, bypassing: int = 0, *, is_on: bool = False) -> Traffic:
        stable, canary = an_order().tracks
        track = replace(stable, waiting=waiting, bypassing=bypassing)
        return replace(an_order(), tracks=(track, canary), bypass=is_on)

    assert not has_moved(of(100), of(110))
    assert not has_moved(of(), of())
    for other in (111, 89, None):
        assert has_moved(of(100), of(other))
    assert has_moved(of(), of(100))
    assert has_moved(of(), of(bypassing=1))
    assert has_moved(of(), of(is_on=True))
    found_out = ("waiting", "bypassing", "bypass")
    assert not any(f'"{name}"' in format_traffic(of()) for name in found_out)


def test_a_gate_is_stuck_where_requests_wait_and_more_may_be_handed_on():
    """By as many as wait, or as there is room for."""
    tracks = tuple(
        replace(track, per_engine=4) for track in join_endpoints(an_order(), BOTH).tracks
    )
    traffic = replace(an_order(), tracks=tracks)
    assert {"stable": 2} == stuck_gates({"stable": Gate(2, 0), "canary": Gate(9, 4)}, traffic)
    assert {"stable": 3} == stuck_gates({"stable": Gate(9, 1), "canary": Gate(0, 0)}, traffic)
    assert {} == stuck_gates({"stable": Gate(9, 7), "gone": Gate(9, 0)}, traffic)


@pytest.mark.parametrize("waiting", [None, 9])
def test_a_queue_that_lets_nobody_in_is_left_alone(waiting):
    """What makes it look would be refused, and count as a failure of the track."""
    stable, _ = join_endpoints(an_order(), BOTH).tracks
    track = replace(stable, per_engine=4, waiting=waiting)
    traffic = replace(an_order(), tracks=(track,), max_waiting=5)
    assert {"stable": 1} == stuck_gates({"stable": Gate(8, 3)}, traffic)
    assert {} == stuck_gates({"stable": Gate(9, 3)}, traffic)


def test_nothing_else_is_counted():
    """What clients broke off, what Envoy counts twice, and clusters of others."""
    stats = dict.fromkeys(
        (
            "cluster.track-canary.upstream_cx_destroy_local_with_active_rq",
            "cluster.track-canary.external.upstream_rq_5xx",
            "cluster.track-canary.upstream_rq_5xx_more",
            "cluster.other.upstream_rq_5xx",
            "http.ingress.downstream_rq_5xx",
        ),
        7,
    )
    assert {} == count_tracks(stats)
