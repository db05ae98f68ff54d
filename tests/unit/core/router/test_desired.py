"""Traffic that a router may be told, and what it may not."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.api.v1alpha1 import LLMServiceSpec
from llmservice.core.canary.traffic import wanted_traffic
from llmservice.core.router.desired import (
    Affinity,
    Capacity,
    Endpoint,
    Limits,
    RefusedTraffic,
    Track,
    Traffic,
    check_traffic,
    format_traffic,
    handed_limit,
    parse_traffic,
    refuse_shift,
)

READY = Endpoint("10.0.0.1:8000", ready=True)
NOT_READY = Endpoint("10.0.0.2:8000", ready=False)
CAPACITY = Capacity(requests=256, queued=64)


def a_track(name: str, weight: int, *endpoints: Endpoint) -> Track:
    return Track(name, weight, CAPACITY, endpoints)


def a_traffic(*tracks: Track, version: str = "v1") -> Traffic:
    return Traffic(version, stable="stable", tracks=tracks)


SPLIT = a_traffic(a_track("stable", 9_500, READY), a_track("canary", 500, NOT_READY))

endpoints = st.builds(
    Endpoint,
    st.tuples(st.ip_addresses(v=4), st.integers(1, 65_535)).map(lambda at: f"{at[0]}:{at[1]}"),
    ready=st.booleans(),
)
traffics = st.builds(
    lambda version, weight, rest, per_engine, **more: Traffic(
        version,
        "stable",
        tuple(
            replace(track, per_engine=per_engine)
            for track in (
                a_track("stable", 10_000 - weight, *rest[0]),
                a_track("canary", weight, *rest[1]),
            )
        ),
        **more,
    ),
    st.from_regex(r"\A[a-z0-9.-]{1,20}\Z"),
    st.integers(0, 10_000),
    st.tuples(*[st.lists(endpoints, max_size=3, unique_by=lambda e: e.address)] * 2),
    per_engine=st.sampled_from([None, 1, 300]),
    affinity=st.sampled_from([None, Affinity(header="x-user"), Affinity(cookie="Session_1")]),
    track_header=st.booleans(),
    limits=st.builds(Limits, st.integers(1024, 1 << 20)),
    routers=st.integers(1, 9),
    max_waiting=st.integers(1, 5000),
    max_wait_seconds=st.integers(1, 86_400),
    hold_seconds=st.integers(0, 99),
)


@given(traffics)
def test_traffic_survives_the_way_through_json(traffic):
    """What is parsed is what was formatted, and equal traffic gives equal text."""
    text = format_traffic(traffic)

    assert traffic == parse_traffic(text)
    assert text == format_traffic(parse_traffic(text))


@pytest.mark.parametrize(
    ("traffic", "why"),
    [
        (a_traffic(a_track("stable", 0, READY)), "all weights are zero"),
        (a_traffic(), "all weights are zero"),
        (a_traffic(a_track("stable", 9_999, READY)), "weights add up to 9999, not 10000"),
        (a_traffic(*[a_track("stable", 5_000, READY)] * 2), "stable is listed 2 times"),
        (a_traffic(a_track("canary", 10_000, READY)), "no track is named stable"),
        (
            a_traffic(*(a_track(name, 2_500, READY) for name in ("stable", "a", "b", "c"))),
            "only stable and one other track may have a weight",
        ),
        (
            a_traffic(a_track("stable", 0), *(a_track(name, 5_000, READY) for name in "ab")),
            "only stable and one other track may have a weight",
        ),
        (a_traffic(a_track("stable", 10_000, READY, READY)), "10.0.0.1:8000 is listed 2 times"),
        (replace(SPLIT, affinity=Affinity()), "give either header or cookie"),
        (replace(SPLIT, affinity=Affinity(header="a", cookie="b")), "either header or cookie"),
    ],
)
def test_what_envoy_would_not_carry_out_is_refused(traffic, why):
    """The message says what is wrong; a round trip through JSON does not lose it."""
    for judged in (check_traffic(traffic), parse_traffic(format_traffic(traffic))):
        assert isinstance(judged, RefusedTraffic)
        assert why in judged.message


@pytest.mark.parametrize(
    "address",
    [
        *("engine:8000", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", ":8000", ""),
        *("10.0.0.1:80a", "10.0.0.1:٣", "10.0.0.256:80", "[10.0.0.1]:80", "::1:8000"),
        *("[::1]", "[fe80::1%eth0]:80", "10.0.0.1:8000 ", "10.0.0.1:1111111111111111"),
    ],
)
def test_an_address_that_envoy_cannot_use_is_refused(address):
    """Only IP and port; what stands there is quoted."""
    judged = check_traffic(a_traffic(a_track("stable", 10_000, Endpoint(address, ready=True))))

    assert isinstance(judged, RefusedTraffic)
    assert f"{address!r} is not IP:port" in judged.message


def test_ipv6_is_an_address():
    """In brackets; Envoy gets it without."""
    endpoint = Endpoint("[2001:db8::1]:8000", ready=True)
    traffic = a_traffic(a_track("stable", 10_000, endpoint))

    assert traffic == check_traffic(traffic)
    assert ("2001:db8::1", 8000) == (endpoint.host, endpoint.port)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": "a b"}, "traffic.version"),
        ({"version": None}, "traffic.version"),
        ({"unknown": 1}, "traffic.unknown"),
        ({"stable": "No"}, "traffic.stable"),
        ({"track_header": "yes"}, "traffic.track_header"),
        ({"limits": {"body_bytes": 0}}, "traffic.limits.body_bytes"),
        ({"affinity": {"header": "X:"}}, "traffic.affinity.header"),
        ({"tracks": 3}, "traffic.tracks"),
    ],
)
def test_json_of_another_shape_is_refused(change, field):
    """Strictly, and with the field's path."""
    judged = parse_traffic(json.dumps(json.loads(format_traffic(SPLIT)) | change))

    assert isinstance(judged, RefusedTraffic)
    assert [field] == [violation.field for violation in judged.violations]


@pytest.mark.parametrize("text", ["", "{", "null", "[]", b"\xff", '{"version": "v1"}'])
def test_what_is_no_traffic_at_all_is_refused(text):
    """Never an exception: it may come from anywhere."""
    assert isinstance(parse_traffic(text), RefusedTraffic)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_raise(data):
    """Whatever lies in a ConfigMap."""
    parse_traffic(data)


@pytest.mark.parametrize(
    ("ready", "per_engine", "routers", "limit"),
    [
        *((1, None, 1, None), (0, None, 1, None), (0, 8, 1, None)),
        *((1, 8, 1, 8), (3, 8, 1, 24), (3, 8, 2, 12), (3, 1, 2, 2), (1, 1, 5, 1)),
    ],
)
def test_routers_share_what_engines_are_handed(ready, per_engine, routers, limit):
    """Rounded up."""
    engines = [Endpoint(f"10.0.0.{number}:8000", ready=number <= ready) for number in range(1, 6)]
    track = replace(a_track("stable", 10_000, *engines), per_engine=per_engine)

    assert limit == handed_limit(replace(a_traffic(track), routers=routers), track)


def test_where_no_engine_is_ready_one_asks_for_all():
    """A canary without one falls on stable, and is handed on like stable."""
    stable, canary = (replace(track, per_engine=8) for track in SPLIT.tracks)
    split = replace(SPLIT, tracks=(stable, canary), hold_seconds=9)
    assert (8, 8) == (handed_limit(split, stable), handed_limit(split, canary))

    nobody = replace(split, tracks=(replace(stable, endpoints=()), canary))
    assert [1, 1] == [handed_limit(nobody, track) for track in nobody.tracks]

    only_canary = replace(canary, endpoints=(READY,))
    left = replace(nobody, tracks=(nobody.tracks[0], only_canary))
    assert [None, 8] == [handed_limit(left, track) for track in left.tracks]


def test_what_is_as_by_default_is_not_written():
    """An older router refuses names that it does not know."""
    text = format_traffic(SPLIT)

    unsaid = {"routers", "max_waiting", "max_wait_seconds", "hold_seconds"}
    assert not unsaid & json.loads(text).keys()
    assert "per_engine" not in text
    assert "per_engine" in format_traffic(
        a_traffic(replace(a_track("stable", 10_000, READY), per_engine=8))
    )


@pytest.mark.parametrize("queue", [{}, {"maxWaiting": 7, "maxWaitSeconds": 60, "holdSeconds": 9}])
def test_a_queue_is_as_the_service_says(queue):
    """And what it leaves out is what the router takes by itself, so that it is not written."""
    spec = LLMServiceSpec.model_validate(
        {
            "model": {"id": "org/model"},
            "accelerator": {"resource": "nvidia.com/gpu"},
            "traffic": {"queue": queue},
        }
    )
    traffic = wanted_traffic("a", {"a": 100}, {}, {}, spec)

    written = json.loads(format_traffic(traffic))
    names = {"maxWaiting": "max_waiting", "maxWaitSeconds": "max_wait_seconds"}
    names["holdSeconds"] = "hold_seconds"
    said = {name: written[name] for name in names.values() if name in written}
    assert {names[name]: value for name, value in queue.items()} == said


def test_a_weight_rises_only_where_an_engine_is_ready():
    """A canary without ready engines may keep or lose its share, and not get more."""
    more = a_traffic(a_track("stable", 9_000, READY), a_track("canary", 1_000, NOT_READY))
    less = a_traffic(a_track("stable", 9_900, READY), a_track("canary", 100))

    refused = refuse_shift(SPLIT, more)

    assert refused is not None
    assert refused.message == (
        "traffic.tracks[1].weight: canary has no ready engine, so its weight cannot rise"
    )
    assert refuse_shift(SPLIT, SPLIT) is None
    assert refuse_shift(SPLIT, less) is None


def test_a_new_track_needs_a_ready_engine():
    """It had no weight before."""
    before = a_traffic(a_track("stable", 10_000, READY))

    assert refuse_shift(before, SPLIT) is not None
    ready = a_traffic(a_track("stable", 9_500, READY), a_track("canary", 500, READY))
    assert refuse_shift(before, ready) is None
