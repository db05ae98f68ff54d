"""The agent of a router as its pod runs it: a process, the rights of its Role, a real Envoy.

The pods of faked nodes answer nobody. So two tracks have slices written by hand that lead to
engines in this process, and a third one has the slices that Kubernetes makes.
"""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time

import aiohttp
import pytest
from aiohttp import web

from e2e.cluster.processes import ProcessGroup
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.ports import Forbidden
from llmservice.adapters.resources import (
    CONFIG_MAP,
    ENDPOINT_SLICE,
    POD,
    ROLE,
    ROLE_BINDING,
    SERVICE,
)
from llmservice.adapters.rest import RestCluster
from llmservice.api import names
from llmservice.core.resources import router as router_resources
from llmservice.core.router.desired import Endpoint, Track, Traffic, format_traffic
from tests.contract.conftest import Kube
from tests.router.agent_pod import AgentClient, a_config_map, a_slice, free_port
from tests.router.conftest import Router
from tests.router.engine import CAPACITY, Engine, until

NAME = "mistral"
ROUTER = names.router_name(NAME)
CHANGES = 10


class ReachableEngine(Engine):
    """An EndpointSlice may not name a loopback address."""

    async def start(self) -> None:
        await super().start()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.connect(("192.0.2.1", 9))  # sends nothing, but chooses an address of ours
            await web.TCPSite(self._runner, asked.getsockname()[0], 0).start()
        host, port = self._runner.addresses[-1][:2]
        self.endpoint = Endpoint(f"{host}:{port}", ready=True)


class Pod(AgentClient):
    """The two processes of a router's pod."""

    def __init__(self, kube: Kube, router: Router, session: aiohttp.ClientSession) -> None:
        self.router = router
        user = f"system:serviceaccount:{kube.namespace}:{ROUTER}"
        self.kubeconfig = kube.plane.kubeconfig_for(user)
        self._session = session
        self._port = free_port()
        options = {
            "service": NAME,
            "namespace": kube.namespace,
            "folder": router.folder,
            "kubeconfig": self.kubeconfig,
            "agent-port": self._port,
            "router-port": 0,
            "admin-port": free_port(),
        }
        command = [sys.executable, "-m", "llmservice", "route-agent"]
        self.agent = subprocess.Popen([*command, *(f"--{k}={v}" for k, v in options.items())])

    async def get(self, path: str) -> tuple[int, str]:
        async with self._session.get(f"http://127.0.0.1:{self._port}{path}") as answer:
            return answer.status, await answer.text()

    async def first_answer(self) -> bool:
        """Whether it is ready when it begins to answer."""

        async def answers() -> bool:
            await self.is_ready()
            return True

        await until(answers, "an agent that answers")
        return await self.is_ready()


@pytest.fixture
async def engines():
    started = [ReachableEngine("one"), ReachableEngine("two")]
    for engine in started:
        await engine.start()
    yield started
    for engine in started:
        await engine.stop()


@pytest.fixture
async def pod(kube, tmp_path):
    """A pod whose agent runs; Envoy is started by the test."""
    await _grant(kube)
    async with contextlib.AsyncExitStack() as stack:
        router = Router(tmp_path, stack.enter_context(ProcessGroup(tmp_path / "envoy")))
        router.folder.mkdir()
        pod = Pod(kube, router, await stack.enter_async_context(aiohttp.ClientSession()))
        yield pod
        pod.agent.kill()
        pod.agent.wait()


async def _grant(kube: Kube) -> None:
    """The rights that a router's pods have."""
    metadata = {"metadata": {"name": ROUTER}}
    rules = router_resources._rules(ROUTER)
    await kube.cluster.create(ROLE, kube.namespace, {**metadata, "rules": rules})
    group = "rbac.authorization.k8s.io"
    binding = {
        "roleRef": {"apiGroup": group, "kind": "Role", "name": ROUTER},
        "subjects": [{"kind": "ServiceAccount", "name": ROUTER, "namespace": kube.namespace}],
    }
    await kube.cluster.create(ROLE_BINDING, kube.namespace, {**metadata, **binding})


def _order(version: str, **weights: int) -> str:
    tracks = tuple(Track(name, weight, CAPACITY) for name, weight in weights.items())
    return format_traffic(Traffic(version, "one", tracks))


async def _change_order(kube: Kube, text: str) -> None:
    await kube.patch(CONFIG_MAP, ROUTER, {"data": {names.TRAFFIC_KEY: text}})


async def _start_third_engine(kube: Kube) -> None:
    """A headless Service as the operator makes it, and a pod behind it."""
    labels = {**names.instance_labels(NAME), "track": "three"}
    port = {"name": names.ENGINE_PORT_NAME, "port": 8000, "targetPort": names.ENGINE_PORT_NAME}
    service = {
        "metadata": {"name": names.revision_name(NAME, "three"), "labels": labels},
        "spec": {"clusterIP": "None", "selector": labels, "ports": [port]},
    }
    container = {
        "name": names.ENGINE_CONTAINER,
        "image": "engine",
        "ports": [{"name": names.ENGINE_PORT_NAME, "containerPort": 8123}],
    }
    await kube.cluster.create(SERVICE, kube.namespace, service)
    spec = {"containers": [container], "automountServiceAccountToken": False}
    engine = {"metadata": {"name": "three", "labels": labels}, "spec": spec}
    await kube.cluster.create(POD, kube.namespace, engine)


async def test_the_agent_leads_envoy_by_what_the_api_server_says(kube, pod, engines):
    """From a cluster without anything to the end of the pod."""
    assert not await pod.first_answer()
    one, two = engines
    for track, engine in (("one", one), ("two", two)):
        live = a_slice(track, engine.endpoint, NAME)
        await kube.cluster.create(ENDPOINT_SLICE, kube.namespace, live)
    await kube.cluster.create(
        CONFIG_MAP, kube.namespace, a_config_map(_order("v0", one=10_000), NAME)
    )
    await until(pod.is_ready, "a ready agent")
    await pod.router.start_envoy()
    await _lead(kube, pod)
    await pod.router.close()


async def _lead(kube: Kube, pod: Pod) -> None:
    assert "one" == await pod.router.ask()
    await _measure_changes(kube, pod)
    await _follow_slices_of_kubernetes(kube, pod)

    pod.agent.send_signal(signal.SIGTERM)
    assert 0 == await asyncio.to_thread(pod.agent.wait, 10)
    assert "one" == await pod.router.ask()


async def _measure_changes(kube: Kube, pod: Pod) -> None:
    """From the answer to the write to the first request on the other track."""
    seconds = []
    for number in range(CHANGES):
        track = ("two", "one")[number % 2]
        await _change_order(kube, _order(f"w{number}", **{"one": 0, "two": 0, track: 10_000}))
        start = time.monotonic()
        while await pod.router.ask() != track:
            pass
        seconds.append(time.monotonic() - start)
        await pod.until_in_force(f"w{number}")
    median, longest = sorted(seconds)[CHANGES // 2], max(seconds)
    print(f"write to first request: median {median * 1e3:.0f} ms, longest {longest * 1e3:.0f} ms")


async def _follow_slices_of_kubernetes(kube: Kube, pod: Pod) -> None:
    """They bear our label, the name of their Service and the pod's own port."""
    await _change_order(kube, _order("v2", one=9_000, three=1_000))

    async def refused() -> bool:
        return "three has no ready engine" in (await pod.report()).problem

    await until(refused, "a share that waits for an engine")
    await _start_third_engine(kube)
    await pod.until_in_force("v2")
    address = (await kube.get(POD, "three"))["status"]["podIP"]
    file = pod.router.folder / "eds-three.json"
    assert f'"address": "{address}"' in file.read_text()
    assert '"port_value": 8123' in file.read_text()

    await kube.delete(POD, "three")

    async def left() -> bool:
        return address not in file.read_text()

    await kube.eventually(left, "the engine to leave")
    assert {"one"} == {await pod.router.ask() for _ in range(20)}


async def test_the_agent_may_read_no_other_config_map(kube, pod):
    """The Role is about one name, and a list is only allowed to those who name it."""
    cluster = RestCluster(await Connection.open(Credentials(kubeconfig=pod.kubeconfig)))
    named = f"metadata.name={ROUTER}"
    assert [] == (await cluster.list_page(CONFIG_MAP, kube.namespace, field_selector=named)).items
    for selector in ("", "metadata.name=kube-root-ca.crt"):
        with pytest.raises(Forbidden):
            await cluster.list_page(CONFIG_MAP, kube.namespace, field_selector=selector)
    await cluster.close()
