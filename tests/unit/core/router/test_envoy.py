"""Laws of the files; what Envoy makes of them is tested in tests/router."""

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.router import envoy
from llmservice.core.router.desired import Affinity, Capacity, Endpoint, Traffic
from llmservice.core.router.envoy import (
    RouterSettings,
    build_static_files,
    build_traffic_files,
    end_bypass,
)
from tests.router.xxhash64 import xxhash64
from tests.unit.core.router.test_desired import NOT_READY, READY, SPLIT, a_track, traffics

FOLDER = "/routes"


def resources(traffic: Traffic, name: str) -> list[dict]:
    return json.loads(build_traffic_files(traffic, FOLDER)[name])["resources"]


def routes(traffic: Traffic) -> list[dict]:
    """Those that lead somewhere."""
    found = resources(traffic, envoy.ROUTES)[0]["virtual_hosts"][0]["routes"]
    return [route for route in found if "route" in route]


def gated(traffic: Traffic, per_engine: int = 8) -> Traffic:
    tracks = tuple(replace(track, per_engine=per_engine) for track in traffic.tracks)
    return replace(traffic, tracks=tracks)


def bucket_of(traffic: Traffic, session: str) -> str:
    """The cluster that Envoy picks for a session (see tests/router for the proof)."""
    clusters = routes(traffic)[-1]["route"]["weighted_clusters"]["clusters"]
    left = xxhash64(session.encode()) % sum(cluster["weight"] for cluster in clusters)
    for cluster in clusters:
        left -= cluster["weight"]
        if left < 0:
            return cluster["name"]
    raise AssertionError


def a_split(canary: int, *, canary_first: bool) -> Traffic:
    tracks = (a_track("stable", 10_000 - canary, READY), a_track("canary", canary, READY))
    ordered = tracks[::-1] if canary_first else tracks
    return Traffic("v1", "stable", ordered, affinity=Affinity(header="x-user"))


@given(
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.from_regex(r"\A[ -~]{0,31}\Z"),
    st.booleans(),
    st.booleans(),
)
def test_a_rising_weight_moves_no_session_back(one, other, session, first, second):
    """Whoever is on the canary stays there, however its share grows and tracks are listed."""
    small = bucket_of(a_split(min(one, other), canary_first=first), session)
    large = bucket_of(a_split(max(one, other), canary_first=second), session)

    assert (small, large) != ("share-canary", "track-stable")


@given(traffics)
def test_equal_traffic_gives_equal_files(traffic):
    """Same bytes, and each is JSON with the version of the interface it speaks."""
    files = build_traffic_files(traffic, FOLDER)

    assert files == build_traffic_files(replace(traffic), FOLDER)
    for text in files.values():
        for resource in json.loads(text)["resources"]:
            assert resource["@type"].startswith("type.googleapis.com/envoy.")


@given(traffics)
def test_every_cluster_of_a_route_exists(traffic):
    """Envoy accepts a route to nowhere, and answers 503."""
    existing = {cluster["name"] for cluster in resources(traffic, envoy.CLUSTERS)}
    named = set()
    for route in routes(traffic):
        action = route["route"]
        weighted = action.get("weighted_clusters", {"clusters": [{"name": action.get("cluster")}]})
        named |= {cluster["name"] for cluster in weighted["clusters"]}

    assert named <= existing


@given(traffics)
def test_no_route_cuts_a_long_answer(traffic):
    """No route has a time limit, and none is tried again once its answer began."""
    for route in routes(traffic):
        assert "0s" == route["route"]["timeout"]
        retries = route["route"].get("retry_policy", {"retry_on": ""})
        assert "per_try_timeout" not in retries
        assert "5xx" not in retries["retry_on"].split(",")


@given(traffics)
def test_weights_that_are_zero_are_left_out(traffic):
    """Their sum is the number of buckets at every weight."""
    clusters = routes(traffic)[-1]["route"]["weighted_clusters"]["clusters"]

    assert 10_000 == sum(cluster["weight"] for cluster in clusters)
    assert all(cluster["weight"] for cluster in clusters)


def test_the_canary_falls_back_and_stable_does_not():
    """[canary, stable] for the canary's share, the engines of stable for its own."""
    clusters = {cluster["name"]: cluster for cluster in resources(SPLIT, envoy.CLUSTERS)}
    split = routes(SPLIT)[-1]["route"]["weighted_clusters"]["clusters"]

    aggregate = clusters["share-canary"]["cluster_type"]["typed_config"]["clusters"]
    assert ["track-canary", "track-stable"] == aggregate
    assert ["share-canary", "track-stable"] == [cluster["name"] for cluster in split]


def test_panic_and_stale_health_send_nobody_to_a_dead_engine():
    """Of every cluster with engines."""
    for cluster in resources(SPLIT, envoy.CLUSTERS):
        if cluster["name"].startswith("track-"):
            assert {"value": 0} == cluster["common_lb_config"]["healthy_panic_threshold"]
            assert cluster["ignore_health_on_host_removal"]


def test_capacity_becomes_circuit_breakers():
    """Sized for the track, never Envoy's defaults, with a budget for retries."""
    large = replace(a_track("stable", 10_000, READY), capacity=Capacity(4_000, 500))
    cluster = resources(Traffic("v1", "stable", (large,)), envoy.CLUSTERS)[0]
    (limits,) = cluster["circuit_breakers"]["thresholds"]

    assert (4_000, 4_500, 500) == (
        limits["max_connections"],
        limits["max_requests"],
        limits["max_pending_requests"],
    )
    assert "retry_budget" in limits


def test_a_limit_changes_no_cluster():
    """A changed gate would be a second queue, whose requests pass those of the first."""
    one = build_traffic_files(gated(SPLIT), FOLDER)
    more = replace(gated(SPLIT, 9), max_waiting=7, routers=3)
    other = build_traffic_files(more, FOLDER)

    assert {envoy.RUNTIME} == {name for name in one if one[name] != other[name]}
    (runtime,) = resources(more, envoy.RUNTIME)
    assert {
        "circuit_breakers.gate-stable.default.max_connections": 3,
        "circuit_breakers.gate-stable.default.max_pending_requests": 10,
        "circuit_breakers.gate-canary.default.max_connections": 3,
        "circuit_breakers.gate-canary.default.max_pending_requests": 10,
    } == runtime["layer"]


def test_how_many_may_wait_changes_no_more_than_a_limit_does():
    """And takes the place of the number that is always allowed."""
    before = gated(SPLIT, 9)
    slow = replace(before, tracks=tuple(replace(track, waiting=5) for track in before.tracks))
    one, other = build_traffic_files(before, FOLDER), build_traffic_files(slow, FOLDER)

    assert {envoy.RUNTIME} == {name for name in one if one[name] != other[name]}
    (runtime,) = resources(slow, envoy.RUNTIME)
    assert 9 == runtime["layer"]["circuit_breakers.gate-stable.default.max_connections"]
    assert 5 == runtime["layer"]["circuit_breakers.gate-stable.default.max_pending_requests"]


def test_a_gate_is_opened_by_what_changes_no_route():
    """The route past it is there all the time, before the one that leads to it."""
    closed = gated(Traffic("v1", "stable", (a_track("stable", 10_000, READY),)))
    opened = replace(closed, bypass=True)
    one, other = (build_traffic_files(each, FOLDER) for each in (closed, opened))

    assert {envoy.RUNTIME} == {name for name in one if one[name] != other[name]}
    layers = [resources(each, envoy.RUNTIME)[0]["layer"] for each in (closed, opened)]
    assert [0, 100] == [layer["router.bypass"] for layer in layers]
    past, *_, split = [route for route in routes(closed) if "headers" not in route["match"]][1:]
    assert {"runtime_key": "router.bypass", "default_value": {"numerator": 0}} == past["match"][
        "runtime_fraction"
    ]
    assert "track-stable" == past["route"]["cluster"]
    assert "retry_policy" in past["route"]
    assert "gate-stable" == split["route"]["weighted_clusters"]["clusters"][0]["name"]


def test_a_gate_is_closed_without_a_word_about_anything_else():
    closed = gated(Traffic("v1", "stable", (a_track("stable", 10_000, READY),)))
    opened = build_traffic_files(replace(closed, bypass=True), FOLDER)[envoy.RUNTIME]
    assert build_traffic_files(closed, FOLDER)[envoy.RUNTIME] == end_bypass(opened)
    of_a_rollout = build_traffic_files(gated(SPLIT), FOLDER)[envoy.RUNTIME]
    for other in (of_a_rollout, "", "{}", "[1]", '{"resources": [{"layer": 1}]}', opened[:-9]):
        assert other == end_bypass(other)


def test_during_a_rollout_nobody_goes_past_the_gates():
    """Requests of both tracks take the same way, so that they can be compared."""
    files = build_traffic_files(replace(gated(SPLIT), bypass=True), FOLDER)
    assert "router.bypass" not in "".join(files.values())


def test_who_waits_is_tried_again_behind_the_gate_only():
    """Before it, a second try would wait anew, at the end."""
    behind = [route for route in routes(gated(SPLIT)) if "request_headers_to_remove" in route]
    before = [route for route in routes(gated(SPLIT)) if route not in behind]

    assert all("retry_policy" in route["route"] for route in behind)
    assert all("retry_policy" not in route["route"] for route in before)
    *_, rest = behind
    assert [{"name": "x-llm-gate", "present_match": True}] == rest["match"]["headers"]
    assert "track-stable" == rest["route"]["cluster"]


def test_there_is_no_gate_where_nothing_is_bounded():
    """Nor anything else that would cost a request time."""
    assert "gate-" not in "".join(build_traffic_files(SPLIT, FOLDER).values())


def test_what_is_held_is_held_by_the_agent():
    """After all engines that might answer."""
    clusters = {c["name"]: c for c in resources(replace(SPLIT, hold_seconds=9), envoy.CLUSTERS)}

    def order(name: str) -> list[str]:
        return clusters[name]["cluster_type"]["typed_config"]["clusters"]

    assert ["track-stable", "hold"] == order("share-stable")
    assert ["track-canary", "track-stable", "hold"] == order("share-canary")


def test_an_engine_that_is_not_ready_gets_no_new_request():
    """It is left out; what it streams goes on."""
    ipv6 = Endpoint("[2001:db8::1]:8000", ready=True)
    track = a_track("stable", 10_000, NOT_READY, ipv6)
    (assignment,) = resources(Traffic("v1", "stable", (track,)), "eds-stable.json")

    listed = assignment["endpoints"][0]["lb_endpoints"]
    addresses = [endpoint["endpoint"]["address"]["socket_address"] for endpoint in listed]
    assert [{"address": "2001:db8::1", "port_value": 8000}] == addresses


def test_the_track_header_matches_only_where_allowed_and_goes_no_further():
    """One route per track, before the split."""
    (config,) = resources(SPLIT, envoy.ROUTES)
    allowed = routes(replace(SPLIT, track_header=True))

    assert 1 == len(routes(SPLIT))
    assert ["track-stable", "track-canary"] == [
        route["route"]["cluster"] for route in allowed if "cluster" in route["route"]
    ]
    assert "weighted_clusters" in allowed[-1]["route"]
    assert ["x-llm-track"] == config["request_headers_to_remove"]


def test_a_new_version_is_another_file():
    """Envoy skips routes that are equal, and would never tell the new version."""
    one, two = (resources(replace(SPLIT, version=name), envoy.ROUTES) for name in ("v1", "v2"))

    assert one != two
    assert "v2" == two[0]["metadata"]["filter_metadata"]["llmservice"]["version"]


def test_a_weight_changes_nothing_but_routes():
    """A new cluster would drop connections; a new listener would drain streams."""
    one = build_traffic_files(SPLIT, FOLDER)
    tracks = (a_track("stable", 5_000, READY), a_track("canary", 5_000, NOT_READY))
    other = build_traffic_files(replace(SPLIT, version="v2", tracks=tracks), FOLDER)

    assert {envoy.ROUTES} == {name for name in one if one[name] != other[name]}


def test_what_is_fixed_has_no_timeouts_and_a_private_admin_port():
    """No listener ever ends a stream for its silence; the admin port is for the pod alone."""
    files = build_static_files(RouterSettings(FOLDER, port=8080, admin_port=9901))
    bootstrap = json.loads(files[envoy.BOOTSTRAP])
    listeners = json.loads(files[envoy.LISTENERS])["resources"]

    assert "127.0.0.1" == bootstrap["admin"]["address"]["socket_address"]["address"]
    for listener in listeners:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        assert ("0s", "0s") == (manager["stream_idle_timeout"], manager["request_timeout"])
    source = bootstrap["dynamic_resources"]["cds_config"]["path_config_source"]
    assert {"path": f"{FOLDER}/cds.json", "watched_directory": {"path": FOLDER}} == source
