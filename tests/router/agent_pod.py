"""A router's pod: an agent, its Envoy, and an API server that does what a test wants."""

import asyncio
import copy
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from e2e.cluster.processes import ProcessGroup
from llmservice.adapters.ports import (
    ClusterError,
    Gone,
    ListPage,
    Resource,
    Unavailable,
    WatchEvent,
)
from llmservice.api import names
from llmservice.core.router.desired import Endpoint, Track, Traffic, format_traffic
from llmservice.core.router.report import RouterReport, parse_report
from llmservice.handlers.route_agent import AgentConfig, RouteAgent
from tests.router.conftest import Router
from tests.router.engine import CAPACITY, Engine, until

SERVICE, NAMESPACE = "mistral", "models"


class FakeApi:
    """Lists and watches only; the real API server is in ``tests/contract``.

    A fake, because outages and expired watches must come when they are called.
    """

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], dict[str, Any]] = {}
        self._watches: list[tuple[str, asyncio.Queue[WatchEvent | ClusterError]]] = []
        self._version = 1
        self._away = False

    def put(self, live: dict[str, Any]) -> None:
        self._version += 1
        live["metadata"]["resourceVersion"] = str(self._version)
        self._objects[live["kind"], live["metadata"]["name"]] = live
        self._say(live["kind"], WatchEvent("MODIFIED", copy.deepcopy(live)))

    def drop(self, kind: str, name: str) -> None:
        self._version += 1
        live = self._objects.pop((kind, name))
        live["metadata"]["resourceVersion"] = str(self._version)
        self._say(kind, WatchEvent("DELETED", live))

    def go_away(self) -> None:
        """Break all watches and refuse everything."""
        self._away = True
        for _, watch in self._watches:
            watch.put_nowait(Unavailable("connection refused"))
        self._watches.clear()

    def come_back(self) -> None:
        self._away = False

    def expire(self) -> None:
        """Tell all watches that their version is too old, after they missed what is put next."""
        for _, watch in self._watches:
            watch.put_nowait(Gone("too old resource version"))
        self._watches.clear()

    async def list_page(self, resource: Resource, namespace: str, **_: Any) -> ListPage:
        self._answer()
        found = [live for (kind, _), live in self._objects.items() if kind == resource.kind]
        return ListPage(copy.deepcopy(found), str(self._version), None)

    async def watch(
        self, resource: Resource, namespace: str, *, resource_version: str, **_: Any
    ) -> AsyncIterator[WatchEvent]:
        self._answer()
        if int(resource_version) < self._version:
            raise Gone("too old resource version")
        events: asyncio.Queue[WatchEvent | ClusterError] = asyncio.Queue()
        self._watches.append((resource.kind, events))
        while True:
            event = await events.get()
            if isinstance(event, ClusterError):
                raise event
            yield event

    def _answer(self) -> None:
        if self._away:
            raise Unavailable("connection refused")

    def _say(self, kind: str, event: WatchEvent) -> None:
        for watched, watch in self._watches:
            if watched == kind:
                watch.put_nowait(event)


class AgentClient(ABC):
    """Asks an agent what the kubelet and the operator ask."""

    @abstractmethod
    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of its answer."""

    async def is_ready(self) -> bool:
        return (await self.get("/ready"))[0] == 200

    async def report(self) -> RouterReport:
        status, text = await self.get("/status")
        report = parse_report(text)
        assert status == 200
        assert report is not None, text
        return report

    async def until_in_force(self, version: str) -> None:
        """Wait until the agent reports the version, and nothing that keeps a newer one away."""

        async def in_force() -> bool:
            report = await self.report()
            return (version, "") == (report.version, report.problem)

        await until(in_force, f"version {version}")


class RouterPod(AgentClient):
    """One agent with its Envoy. The engines are the test's own."""

    def __init__(self, folder: Path, group: ProcessGroup, per_engine: int | None = None) -> None:
        self.per_engine = per_engine
        self.api = FakeApi()
        self.router = Router(folder, group)
        self.router.folder.mkdir()
        self.config = AgentConfig(
            SERVICE,
            NAMESPACE,
            self.router.folder,
            agent_port=0,
            router_port=0,
            admin_port=free_port(),
            drain_seconds=20,
            propagation_seconds=0,
        )
        self._envoy_runs = False

    # --- what the operator, Kubernetes and the kubelet do ---------------------------------------

    def order(
        self,
        version: str,
        stable: str = "stable",
        /,
        *,
        hold_seconds: int = 0,
        max_waiting: int = 64,
        max_wait_seconds: int = 600,
        **weights: int,
    ) -> None:
        """Write the ConfigMap."""
        tracks = tuple(
            Track(name, weight, CAPACITY, per_engine=self.per_engine)
            for name, weight in weights.items()
        )
        traffic = Traffic(
            version,
            stable,
            tracks,
            max_waiting=max_waiting,
            max_wait_seconds=max_wait_seconds,
            hold_seconds=hold_seconds,
        )
        self.order_text(format_traffic(traffic))

    def order_text(self, text: str) -> None:
        self.api.put(a_config_map(text))

    def place(self, track: str, engine: Engine, *, ready: bool = True) -> None:
        """Write the EndpointSlice of an engine."""
        self.api.put(a_slice(track, replace(engine.endpoint, ready=ready)))

    def displace(self, track: str, engine: Engine) -> None:
        """Delete the EndpointSlice of an engine."""
        self.api.drop("EndpointSlice", a_slice(track, engine.endpoint)["metadata"]["name"])

    async def start(self) -> None:
        """As the kubelet does: the agent, and Envoy once the agent is ready."""
        await self.start_agent()
        await until(self.is_ready, "a ready agent")
        await self.start_envoy()

    async def start_agent(self) -> None:
        self.agent = RouteAgent(self.config, self.api)
        self._run = asyncio.create_task(self.agent.run())

        async def listens() -> bool:
            return self.agent.server.port != 0

        await until(listens, "a listening agent")

    async def stop_agent(self) -> int:
        self.agent.stop()
        return await self._run

    async def start_envoy(self) -> None:
        await self.router.start_envoy()
        self._envoy_runs = True

    async def stop_envoy(self) -> None:
        await self.router.stop_envoy()
        self._envoy_runs = False

    async def close(self) -> None:
        assert 0 == await self.stop_agent()
        if self._envoy_runs:
            await self.router.close()

    # --- what they see --------------------------------------------------------------------------

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.agent.server.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()

    async def until_problem(self, words: str) -> RouterReport:
        """Wait until the agent tells of a problem; its report."""

        async def told() -> bool:
            return words in (await self.report()).problem

        await until(told, words)
        return await self.report()


def a_config_map(text: str, service: str = SERVICE) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.router_name(service)},
        "data": {names.TRAFFIC_KEY: text},
    }


def a_slice(track: str, endpoint: Endpoint, service: str = SERVICE) -> dict[str, Any]:
    """A slice of one engine: engines on one address differ in the port, which is the slice's."""
    owner = names.revision_name(service, track)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{owner}-{endpoint.port}",
            "labels": {"kubernetes.io/service-name": owner, names.SERVICE_LABEL: service},
        },
        "addressType": "IPv4",
        "ports": [{"name": names.ENGINE_PORT_NAME, "port": endpoint.port}],
        "endpoints": [{"addresses": [endpoint.host], "conditions": {"ready": endpoint.ready}}],
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
