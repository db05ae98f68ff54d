"""The operator, a real API server and a real Envoy Gateway: canaries by weights of an HTTPRoute.

The operator has exactly the rights of its chart. Pods are faked, see ``fleet``.
"""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

import pytest

from e2e.canaries import shortened
from e2e.cluster.api import RefusedError
from e2e.cluster.control_plane import ControlPlane
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.resources import HTTP_ROUTE
from llmservice.adapters.rest import RestCluster
from tests.contract.conftest import Kube, make_namespace
from tests.integrations.conftest import GATEWAY, Client, Load, Manifest, start_operator
from tests.integrations.fleet import Fleet

ROLLOUT = {
    "strategy": "Canary",
    "steps": [{"weight": 30, "durationSeconds": 5}],
    "guardrails": [
        {"metric": "ttft", "quantile": "p90", "maxIncreasePercent": 25, "minRequests": 50}
    ],
    "windowSeconds": 5,
    "settleSeconds": 0,
    "bakeSeconds": 0,
}
TRAFFIC = {
    "router": "Gateway",
    "gatewayRef": {"name": GATEWAY.name, "namespace": GATEWAY.namespace},
}


@dataclass
class Site:
    """A namespace with an operator, engines for its pods, and a client of the Gateway."""

    kube: Kube
    fleet: Fleet
    client: Client
    host: str

    async def rollout(self) -> Manifest:
        """``status.rollout``."""
        found = (await self.kube.service()).get("status", {}).get("rollout", {})
        return dict(found)

    async def edit(self, sequences: int) -> str:
        """A new revision; its hash."""
        before = (await self.kube.service())["status"]["updatedRevision"]
        await self.kube.edit_service(engine={"maxNumSeqs": sequences})

        async def seen() -> str | None:
            now = (await self.kube.service())["status"]["updatedRevision"]
            return None if now == before else str(now)

        return cast("str", await self.kube.eventually(seen, "the new revision"))

    async def until(self, phase: str, seconds: float = 90) -> Manifest:
        """Wait for a phase of the rollout."""

        def reached(rollout: Manifest) -> bool:
            return rollout.get("phase") == phase

        return await self._await_rollout(reached, phase, seconds)

    async def until_routed(self) -> str:
        """Wait until clients come in by the Gateway; the stable revision."""
        await self.kube.until_ready(seconds=90)

        def routed(rollout: Manifest) -> bool:
            return bool(json.loads(rollout.get("state", "{}")).get("routed"))

        await self._await_rollout(routed, "the route to be taken", 90)
        stable = str((await self.kube.service())["status"]["stableRevision"])

        async def answers() -> bool:
            return (await asyncio.to_thread(self.client.ask))["revision"] == stable

        await self.kube.eventually(answers, "Envoy to have the route")
        return stable

    async def _await_rollout(
        self, condition: Callable[[Manifest], bool], what: str, seconds: float
    ) -> Manifest:
        last: Manifest = {}

        async def holds() -> bool:
            nonlocal last
            last = await self.rollout()
            return condition(last)

        try:
            await self.kube.eventually(holds, what, seconds)
        except AssertionError as error:
            live = (await self.kube.list(HTTP_ROUTE)) or [{}]
            raise AssertionError(f"{error}; {json.dumps([last, live[0].get('status')])}") from error
        return last

    async def weights(self, route: str) -> dict[str, int]:
        """Of our rule, by revision."""
        live = await self.kube.cluster.get(HTTP_ROUTE, self.kube.namespace, route)
        [rule] = [each for each in live["spec"]["rules"] if each.get("name") == "llmservice"]
        return {
            each["name"].removeprefix("mistral-"): each["weight"] for each in rule["backendRefs"]
        }


@pytest.fixture
async def site(plane: ControlPlane, gateway_port: int, installed: None) -> AsyncIterator[Site]:
    """An operator at work in a namespace of the test's own."""
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    make_namespace(plane, namespace)
    host = f"{namespace}.example.com"
    admin = await Connection.open(Credentials(kubeconfig=plane.kubeconfig))
    client = Client(gateway_port, host)
    with Fleet(plane, namespace) as fleet:
        kube = Kube(plane, RestCluster(admin), namespace)
        operator, task = await start_operator(plane, namespace, fleet)
        yield Site(kube, fleet, client, host)
        with contextlib.suppress(AssertionError, RefusedError):
            plane.api.call("DELETE", _service_path(namespace))
            await kube.eventually(lambda: _no_pods(kube), "the pods to go")
        operator.stop()
        assert 0 == await task
        client.close()
        await kube.cluster.close()
    plane.api.call("DELETE", f"/api/v1/namespaces/{namespace}")


async def _no_pods(kube: Kube) -> bool:
    path = f"/api/v1/namespaces/{kube.namespace}/pods"
    return not (await asyncio.to_thread(kube.plane.api.get, path))["items"]


def _service_path(namespace: str) -> str:
    return f"/apis/llmservice.dev/v1alpha1/namespaces/{namespace}/llmservices/mistral"


async def test_canary_behind_a_gateway_is_promoted_and_the_next_one_turned_down(site):
    """By a route of our own; through all of it not one request fails."""
    await site.kube.create_service(replicas=2, rollout=ROLLOUT, traffic=TRAFFIC)
    first = await site.until_routed()
    assert {first: 100} == await site.weights("mistral")

    with Load(site.client) as load:
        second = await site.edit(32)
        await site.until("Judging")
        assert {first: 70, second: 30} == await site.weights("mistral")
        await site.until("Stable")
        site.fleet.slow.add(third := await site.edit(16))
        await site.until("Judging")
        turned_down = await site.until("Aborted")
        assert load.is_alive()

    assert "GuardrailBroken" == turned_down["reason"]
    assert {first, second, third} == load.answers.keys(), load.answers
    print(dict(load.answers))
    service = await site.kube.service()
    assert second == service["status"]["stableRevision"]

    async def only_the_second() -> bool:
        return await site.weights("mistral") == {second: 100}

    await site.kube.eventually(only_the_second, "the canary to be gone from the route")


async def test_canary_in_somebody_elses_route(site):
    """By the steps of the example; what is not ours survives byte for byte, no request fails."""
    before = await _apply(site, a_foreign_route(site.host))
    traffic = {**TRAFFIC, "routeName": "chat"}
    rollout = shortened("canary-gateway.yaml")["rollout"]
    await site.kube.create_service(replicas=2, rollout=rollout, traffic=traffic)
    first = await site.until_routed()

    with Load(site.client) as load:
        second = await site.edit(32)
        await site.until("Judging")
        assert {first: 98, second: 2} == await site.weights("chat")
        await site.until("Stable")
        assert load.is_alive()

    assert {first, second} == load.answers.keys(), load.answers
    assert second == (await site.kube.service())["status"]["stableRevision"]
    after = await site.kube.cluster.get(HTTP_ROUTE, site.kube.namespace, "chat")
    assert without_our_backends(before) == without_our_backends(after)
    managers = {each["manager"] for each in after["metadata"]["managedFields"]}
    assert "llmservice-traffic" in managers


async def test_rule_that_is_missing_is_said(site):
    """Where people look; nothing is written to the route."""
    route = a_foreign_route(site.host)
    del route["spec"]["rules"][1]["name"]
    written = await _apply(site, route)
    traffic = {**TRAFFIC, "routeName": "chat"}
    await site.kube.create_service(replicas=1, rollout=ROLLOUT, traffic=traffic)

    async def said() -> bool:
        return "has no rules named llmservice" in (await site.rollout()).get("message", "")

    await site.kube.eventually(said, "the status to say so", 90)
    live = await site.kube.cluster.get(HTTP_ROUTE, site.kube.namespace, "chat")
    assert written["spec"] == live["spec"]


def a_foreign_route(host: str) -> Manifest:
    """A route as a platform team writes it, with our rule in the middle of its own."""
    header = {"name": "x-team", "value": "platform"}
    modifier = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [header]}}
    entry = {"name": "mistral", "port": 80}
    docs = {
        "name": "docs",
        "matches": [{"path": {"type": "PathPrefix", "value": "/docs"}}],
        "filters": [modifier],
        "backendRefs": [{**entry, "weight": 3}],
        "timeouts": {"request": "7s"},
    }
    ours = {
        "name": "llmservice",
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "filters": [modifier],
        "backendRefs": [entry],
    }
    last = {"matches": [{"headers": [{"name": "x-old", "value": "1"}]}], "backendRefs": [entry]}
    parent = {"name": GATEWAY.name, "namespace": GATEWAY.namespace}
    return {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": HTTP_ROUTE.kind,
        "metadata": {"name": "chat", "annotations": {"owner": "platform"}},
        "spec": {"parentRefs": [parent], "hostnames": [host], "rules": [docs, ours, last]},
    }


def without_our_backends(route: Manifest) -> str:
    """All that is not ours, nor of the API server's book-keeping."""
    metadata = {key: route["metadata"][key] for key in ("name", "namespace", "uid", "annotations")}
    rules = [
        {key: value for key, value in rule.items() if key != "backendRefs" or number != 1}
        for number, rule in enumerate(route["spec"]["rules"])
    ]
    return json.dumps([metadata, {**route["spec"], "rules": rules}])


async def _apply(site: Site, route: Manifest) -> Manifest:
    return await site.kube.cluster.apply(
        HTTP_ROUTE, site.kube.namespace, route, field_manager="platform", force=False
    )
