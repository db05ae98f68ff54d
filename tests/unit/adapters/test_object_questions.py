"""What the API server says of what is not watched, also where it does not know the kind."""

import pytest

from llmservice.adapters.object_questions import read_route, read_scaled_object
from llmservice.adapters.ports import Forbidden, NotFound, Unavailable
from llmservice.core.questions import (
    ReadRoute,
    ReadScaledObject,
    RouteReading,
    ScaledObjectReading,
)
from tests.unit.adapters.fake_cluster import FakeCluster

QUESTION = ReadRoute("team", "chat")


async def said(error):
    cluster = FakeCluster()
    cluster.failures["get", "HTTPRoute"] = [error]
    return await read_route(cluster, QUESTION)


async def test_live_route_is_given_whole():
    """Its owner's rules, and what gateways say."""
    cluster = FakeCluster()
    live = cluster.put({"kind": "HTTPRoute", "metadata": {"name": "chat", "namespace": "team"}})

    assert RouteReading(live) == await read_route(cluster, QUESTION)


async def test_missing_route_is_no_problem():
    """It may be made."""
    missing = NotFound('httproutes.gateway.networking.k8s.io "chat" not found')

    assert RouteReading(None) == await said(missing)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (NotFound("HTTP 404"), "no HTTPRoute of gateway.networking.k8s.io/v1: install Gateway API"),
        (NotFound("the server could not find the requested resource"), "v1.4.0 or newer"),
        (Forbidden("not for you"), "HTTPRoutes cannot be read: not for you"),
    ],
)
async def test_cluster_without_routes_says_what_is_needed(error, why):
    """A definition cannot be read with rights in one namespace."""
    reading = await said(error)

    assert reading.route is None
    assert why in reading.problem


async def test_api_server_that_is_away_says_nothing():
    """It will."""
    assert await said(Unavailable("down")) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotFound("HTTP 404"), ScaledObjectReading(None)),
        (Forbidden("not for you"), None),
        (Unavailable("down"), None),
    ],
)
async def test_scaled_object_that_cannot_be_read(error, expected):
    """Only what is known not to be there is said not to be there."""
    cluster = FakeCluster()
    named = {"name": "mistral-abc", "namespace": "team"}
    live = cluster.put({"kind": "ScaledObject", "metadata": named})
    question = ReadScaledObject("team", "mistral-abc")
    assert ScaledObjectReading(live) == await read_scaled_object(cluster, question)

    cluster.failures["get", "ScaledObject"] = [error]
    assert expected == await read_scaled_object(cluster, question)
