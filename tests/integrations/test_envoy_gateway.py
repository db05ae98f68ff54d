"""Weights of an HTTPRoute against a real Envoy Gateway: what moves, stays and is reported."""

import copy
import json
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster.api import RefusedError
from e2e.cluster.control_plane import ControlPlane
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.object_questions import read_route
from llmservice.adapters.ports import Invalid
from llmservice.adapters.resources import HTTP_ROUTE
from llmservice.adapters.rest import RestCluster
from llmservice.api.v1alpha1 import GatewayRef
from llmservice.core.observed import ServiceKey, ServiceObject
from llmservice.core.questions import ReadRoute, RouteReading
from llmservice.core.router.gateway import (
    ROUTE_API_VERSION,
    ROUTE_KIND,
    Acknowledged,
    Refused,
    Waiting,
    WeightPatch,
    build_route,
    plan_weights,
    read_acknowledgement,
)
from tests.integrations.conftest import Load, Manifest, Team, eventually

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
REQUESTS = 2000
OLD, NEW = "1111111111", "2222222222"


@pytest.fixture
def revisions(team: Team) -> tuple[str, str]:
    """Names of the Services of two revisions that serve."""
    return team.add_revision(OLD), team.add_revision(NEW)


def a_foreign_route(team: Team, old: str, new: str) -> Manifest:
    """A route as a platform team writes it, with our rule in the middle of its own."""
    header = {"name": "x-team", "value": "platform"}
    modifier = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [header]}}
    docs = {
        "name": "docs",
        "matches": [{"path": {"type": "PathPrefix", "value": "/docs"}}],
        "filters": [modifier],
        "backendRefs": [{"name": old, "port": 8000, "weight": 3}],
        "timeouts": {"request": "7s"},
    }
    ours = {
        "name": "llmservice",
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [
            {"name": old, "port": 8000, "weight": 1},
            {"name": new, "port": 8000, "weight": 0},
        ],
        "filters": [modifier],
    }
    last = {
        "matches": [{"headers": [{"name": "x-old", "value": "1"}]}],
        "backendRefs": [{"name": old, "port": 8000}],
    }
    parent = {"name": "public", "namespace": "default"}
    return {
        "apiVersion": ROUTE_API_VERSION,
        "kind": ROUTE_KIND,
        "metadata": {"name": "chat", "annotations": {"owner": "platform"}},
        "spec": {"parentRefs": [parent], "hostnames": [team.host], "rules": [docs, ours, last]},
    }


def without_weights(route: Manifest) -> str:
    """All that is not ours, nor of the API server's book-keeping."""
    found = copy.deepcopy(route)
    del found["spec"]["rules"][1]["backendRefs"]
    for key in ("generation", "resourceVersion", "managedFields"):
        del found["metadata"][key]
    del found["status"]
    return json.dumps(found)


def bounds(requests: int, share: float) -> tuple[float, float]:
    """How many of the requests a share may get; once in 15,000 times it is outside by chance."""
    spread = 4 * math.sqrt(requests * share * (1 - share))
    return requests * share - spread, requests * share + spread


# --- a route of our own ---------------------------------------------------------------------------


def test_requests_are_shared_by_weight(team, revisions):
    """Of 2,000 requests the canary gets its 5 percent, then half, then all."""
    old, new = revisions
    team.add_own_route({old: 10_000, new: 0})
    team.await_traffic({old: 10_000, new: 0})
    assert {OLD: 200} == team.client.count(200)

    for share in (0.05, 0.5):
        weights = {old: 10_000 - round(10_000 * share), new: round(10_000 * share)}
        team.shift(weights)
        team.await_traffic(weights)
        eventually(lambda: team.client.ask()["revision"] == NEW, "the canary to answer")
        answers = team.client.count(REQUESTS)
        print(f"weight {share:.0%}: {dict(answers)}")
        low, high = bounds(REQUESTS, share)
        assert low < answers[NEW] < high
        assert REQUESTS == answers[NEW] + answers[OLD]

    team.shift({old: 0, new: 10_000})
    team.await_traffic({old: 0, new: 10_000})
    eventually(lambda: team.client.count(50) == {NEW: 50}, "the canary to have everything")


def test_no_request_fails_while_weights_shift(team, revisions):
    """Also when a revision gets its first share, or loses its last."""
    old, new = revisions
    team.add_own_route({old: 1, new: 0})
    team.await_traffic({old: 1, new: 0})
    with Load(team.client) as load:
        for share, awaited in ((5, NEW), (50, NEW), (0, OLD), (100, NEW), (0, OLD), (100, NEW)):
            weights = {old: 100 - share, new: share}
            team.shift(weights)
            assert Acknowledged() == team.await_outcome(weights)
            load.await_more(awaited, 50)

    assert {OLD, NEW} == load.answers.keys(), load.answers


def test_applying_our_route_with_other_weights_shifts_as_well(team, revisions):
    """A route of our own is applied whole, as every child."""
    old, new = revisions
    team.add_own_route({old: 1, new: 0})
    team.await_traffic({old: 1, new: 0})
    team.add_own_route({old: 0, new: 1})

    team.await_traffic({old: 0, new: 1})
    eventually(lambda: team.client.ask()["revision"] == NEW, "the canary to answer")


def test_a_weight_without_engines_fails_its_share(team):
    """Nobody answers in the place of a canary that is not there: weights wait for engines."""
    old, new = team.add_revision(OLD), team.add_revision(NEW, serving=False)
    weights = {old: 5_000, new: 5_000}
    team.add_own_route(weights)
    team.await_traffic(weights)

    eventually(lambda: team.client.ask()["revision"] == 503, "requests to fail")
    answers = team.client.count(400)
    low, high = bounds(400, 0.5)
    assert {OLD, 503} == answers.keys()
    assert low < answers[503] < high


# --- a rule in somebody else's route --------------------------------------------------------------


def test_all_that_is_foreign_survives_a_shift(team, revisions):
    """Rules, filters, matches, hostnames and annotations stay as they were, byte for byte."""
    old, new = revisions
    team.apply(a_foreign_route(team, old, new), "platform")
    team.await_traffic({old: 1, new: 0}, "chat")
    before = team.route("chat")
    team.shift({old: 0, new: 1}, "chat")
    team.await_traffic({old: 0, new: 1}, "chat")
    after = team.route("chat")

    assert without_weights(before) == without_weights(after)
    assert before["metadata"]["generation"] + 1 == after["metadata"]["generation"]
    eventually(lambda: team.client.ask()["revision"] == NEW, "our rule to have moved")
    said = team.client.ask("/docs")
    assert (OLD, "platform") == (said["revision"], said["headers"]["x-team"])


def test_an_edit_of_the_owner_in_between_fails_the_patch(team, revisions):
    """Our rule has another place now: what was planned must not hit what is there instead."""
    old, new = revisions
    team.apply(a_foreign_route(team, old, new), "platform")
    planned = plan_weights(team.route("chat"), {old: 0, new: 1})
    assert isinstance(planned, WeightPatch)
    edited = a_foreign_route(team, old, new)
    edited["spec"]["rules"].insert(0, edited["spec"]["rules"].pop())
    live = team.apply(edited, "platform")

    with pytest.raises(RefusedError, match="HTTP 422"):
        team.patch("chat", planned.operations, "llmservice-traffic")
    assert live["spec"] == team.route("chat")["spec"]


def test_a_report_of_the_gateway_in_between_does_not_fail_the_patch(team, revisions):
    """Gateways write status all the time; only the rule that was judged must be the same."""
    old, new = revisions
    stale = team.apply(a_foreign_route(team, old, new), "platform")
    team.await_traffic({old: 1, new: 0}, "chat")
    planned = plan_weights(stale, {old: 0, new: 1})

    assert stale["metadata"]["resourceVersion"] != team.route("chat")["metadata"]["resourceVersion"]
    assert isinstance(planned, WeightPatch)
    team.patch("chat", planned.operations, "llmservice-traffic")
    team.await_traffic({old: 0, new: 1}, "chat")


def test_applying_a_single_rule_would_delete_the_others(team, revisions):
    """Why weights are patched: the list of rules is atomic for server-side apply."""
    old, new = revisions
    route = a_foreign_route(team, old, new)
    team.apply(route, "platform")
    ours = {key: route[key] for key in ("apiVersion", "kind")} | {"metadata": {"name": "chat"}}
    ours["spec"] = {"rules": [route["spec"]["rules"][1]]}

    team.apply(ours, "llmservice-traffic", force=True)
    assert ["llmservice"] == [rule["name"] for rule in team.route("chat")["spec"]["rules"]]


def test_an_owner_who_applies_again_learns_of_us(team, revisions):
    """Without force he gets a conflict that names us; with force his weights are back."""
    old, new = revisions
    route = a_foreign_route(team, old, new)
    team.apply(route, "platform")
    team.shift({old: 0, new: 1}, "chat")

    with pytest.raises(RefusedError, match=r"HTTP 409.*llmservice-traffic"):
        team.apply(route, "platform")
    team.apply(route, "platform", force=True)
    assert isinstance(read_acknowledgement(team.route("chat"), {old: 0, new: 1}), Waiting)


# --- what the gateway says ------------------------------------------------------------------------


def test_an_older_generation_is_no_acknowledgement(team, revisions):
    """Right after the write the status still speaks of the weights before."""
    old, new = revisions
    team.add_own_route({old: 1, new: 0})
    team.await_traffic({old: 1, new: 0})
    written = team.shift({old: 0, new: 1})
    outcome = read_acknowledgement(written, {old: 0, new: 1})

    assert isinstance(outcome, Waiting)
    assert f"of generation {written['metadata']['generation']}" in outcome.message
    assert Acknowledged() == team.await_outcome({old: 0, new: 1})


def test_a_backend_that_is_not_there_is_refused_with_the_reason(team):
    """The gateway's words say which Service is missing."""
    weights = {team.add_revision(OLD): 1, "missing": 1}
    team.add_own_route(weights)
    outcome = team.await_outcome(weights)

    assert isinstance(outcome, Refused)
    assert "BackendNotFound" == outcome.reason
    assert "missing" in outcome.message


def test_a_listener_that_is_not_there_is_refused(team, revisions):
    """The Gateway exists, and says that it has no such listener."""
    weights = dict.fromkeys(revisions, 1)
    nowhere = GatewayRef(name="public", namespace="default", section_name="https")
    team.add_own_route(weights, nowhere)
    outcome = team.await_outcome(weights)

    assert isinstance(outcome, Refused)
    assert "NoMatchingParent" == outcome.reason


def test_a_gateway_that_is_not_there_is_waited_for(team, revisions):
    """Nobody reports on it, now or later; a route that is known to be seen says so."""
    weights = dict.fromkeys(revisions, 1)
    team.add_own_route(weights, GatewayRef(name="nowhere"))
    seen = a_foreign_route(team, *revisions)
    team.apply(seen, "platform")
    team.await_traffic(dict(zip(revisions, (1, 0), strict=True)), "chat")
    outcome = read_acknowledgement(team.route(), weights)

    assert isinstance(outcome, Waiting)
    assert "nowhere; does it exist?" in outcome.message


def test_shifts_reach_traffic_soon(team, revisions):
    """Printed: milliseconds from the write to the acknowledgement, and to the first answer."""
    old, new = revisions
    team.add_own_route({old: 1, new: 0})
    team.await_traffic({old: 1, new: 0})
    acknowledged, moved = [], []
    for turn in range(10):
        weights, awaited = ({old: 0, new: 1}, NEW) if turn % 2 == 0 else ({old: 1, new: 0}, OLD)
        started = time.monotonic()
        team.shift(weights)
        times = dict(_measure(team, weights, awaited))
        acknowledged.append((times["acknowledged"] - started) * 1000)
        moved.append((times["moved"] - started) * 1000)

    for name, found in (("acknowledged", acknowledged), ("first answer", moved)):
        print(f"{name}: median {statistics.median(found):.0f} ms, most {max(found):.0f} ms")
    late = [m - a for m, a in zip(moved, acknowledged, strict=True)]
    print(f"answer after acknowledgement: {min(late):+.0f} to {max(late):+.0f} ms")
    assert max(moved) < 10_000


def _measure(team: Team, weights: Any, awaited: str) -> Iterator[tuple[str, float]]:
    left = {
        "acknowledged": lambda: read_acknowledgement(team.route(), weights) == Acknowledged(),
        "moved": lambda: team.client.ask()["revision"] == awaited,
    }
    while left:
        name = eventually(lambda: next((n for n, done in left.items() if done()), ""), "a shift")
        yield name, time.monotonic()
        del left[name]


# --- the API itself -------------------------------------------------------------------------------


async def test_a_cluster_without_gateway_api_is_told_from_a_missing_route(plane, gateway_port):
    """By what the API server answers: a namespaced operator may not read definitions."""
    with ControlPlane(nodes=0) as bare:
        without = await said_of_a_route_that_is_not_there(bare)
    found = await said_of_a_route_that_is_not_there(plane)

    assert "install Gateway API v1.4.0 or newer" in without.problem
    assert (None, "") == (found.route, found.problem)


async def said_of_a_route_that_is_not_there(plane: ControlPlane) -> RouteReading:
    cluster = RestCluster(await Connection.open(Credentials(kubeconfig=plane.kubeconfig)))
    try:
        said = await read_route(cluster, ReadRoute("default", "nowhere"))
    finally:
        await cluster.close()
    assert said is not None
    return said


async def test_an_api_that_is_too_old_refuses_our_route(plane, gateway_port):
    """It knows no names of rules; what it says gets into the status."""
    with ControlPlane(nodes=0) as old:
        crd = plane.api.get(f"{CRDS}/httproutes.gateway.networking.k8s.io")
        metadata = {"name": crd["metadata"]["name"], "annotations": crd["metadata"]["annotations"]}
        for version in crd["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]["properties"]
            del schema["spec"]["properties"]["rules"]["items"]["properties"]["name"]
        old.api.create(CRDS, {**crd, "metadata": metadata, "status": None})
        old.kubectl("wait", "--for=condition=Established", f"crd/{metadata['name']}")
        cluster = RestCluster(await Connection.open(Credentials(kubeconfig=old.kubeconfig)))
        service = ServiceObject(ServiceKey("default", "mistral"), "uid", 1, {}, {})
        route = build_route(service, GatewayRef(name="public"), {"mistral-a": 1})
        with pytest.raises(Invalid, match=r"rules\[0\]\.name: field not declared in schema"):
            await cluster.apply(HTTP_ROUTE, "default", route, field_manager="x", force=False)
        await cluster.close()
