"""The metrics server as its pods run it: a process, the chart's rights, a real API server and HPA.

The chart's own objects are applied but for its pods: a process on this machine stands for them,
behind an EndpointSlice written by hand. Engines listen on loopback addresses of their own, on the
port on which engines listen; nobody schedules their pods, so that a test can say how they are.
"""

import asyncio
import base64
import contextlib
import itertools
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.pki import KeyPair
from llmservice.adapters.api_registration import (
    API_SERVICE,
    CLUSTER_ROLE,
    VERSION_PRIORITIES,
)
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.ports import Forbidden, NotFound, Resource
from llmservice.adapters.resources import DEPLOYMENT, POD, ROLE
from llmservice.adapters.rest import RestCluster
from llmservice.adapters.serving_certificates import SECRET
from llmservice.api import names
from tests.bench.audit import AuditLog
from tests.bench.metrics_stage import SERVER, TEAM, create_namespaces, install, write_kubeconfig
from tests.chart.conftest import NAMESPACE

pytestmark = pytest.mark.timeout(240)

HPA_ACCOUNT = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
HPA = Resource("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
CUSTOM, OLD, EXTERNAL = VERSION_PRIORITIES
WAITING = "vllm:num_requests_waiting"
LABELS = {**names.revision_selector("mistral", "abc"), names.MANAGED_BY_LABEL: names.MANAGED_BY}
LOOKS = 5
"""So often the HPA controller asks in vain before its standing still is believed."""

_PORTS = iter(range(21_000, 32_000))
_ADDRESSES = (f"127.0.1.{number}" for number in itertools.count(1))


# --- the control plane ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane with the chart's objects, and HPAs that look every second."""
    flags = [
        "--horizontal-pod-autoscaler-sync-period=1s",
        "--horizontal-pod-autoscaler-downscale-stabilization=1s",
    ]
    with ControlPlane(flags={"kube-controller-manager": flags}) as plane:
        create_namespaces(plane)
        yield plane


@pytest.fixture
def port(plane: ControlPlane) -> int:
    """The chart is installed, and its Service leads to this port of this machine."""
    port = a_port()
    install(plane, port)
    return port


def a_port() -> int:
    """Not one that the system gives to connections: it is listened on only seconds from now."""
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.socket() as taken:
            taken.bind(("", port))
            return port
    raise AssertionError("all ports are taken")


class Server:
    """The process."""

    def __init__(self, kubeconfig: Path, port: int) -> None:
        self.port, self.probe_port = port, a_port()
        self._command = [
            *(sys.executable, "-m", "llmservice", "metrics-server"),
            f"--namespace={NAMESPACE}",
            f"--name={SERVER}",
            f"--port={port}",
            f"--probe-port={self.probe_port}",
            f"--kubeconfig={kubeconfig}",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)

    async def stop(self) -> int:
        """As a kubelet does; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self._process.wait, 20)
        self._process = None
        return code

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Engine:
    """What a metrics server reads of vLLM."""

    def __init__(self) -> None:
        self.waiting, self.running = 0.0, 0.0
        self.address = next(_ADDRESSES)
        application = web.Application()
        application.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, names.ENGINE_PORT).start()

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        gauges = {
            WAITING: self.waiting,
            "vllm:num_requests_running": self.running,
            "vllm:kv_cache_usage_perc": 0.1,
        }
        labels = '{engine="0",model_name="m"}'
        return web.Response(text="".join(f"{k}{labels} {v}\n" for k, v in gauges.items()))


class Scene:
    """What tests do and see, as the cluster's administrator."""

    def __init__(self, plane: ControlPlane, connection: Connection, server: Server) -> None:
        self.plane = plane
        self.server = server
        self.cluster = RestCluster(connection)
        self.engines: list[Engine] = []
        self._session = connection.session()
        self._url = connection.server

    async def close(self) -> None:
        self.server.kill()
        for engine in self.engines:
            await engine.close()
        await self._session.close()
        await self.cluster.close()

    async def get(self, path: str) -> tuple[int, Any]:
        """Any path of the API server."""
        async with self._session.get(self._url + path) as answer:
            return answer.status, await answer.json(content_type=None)

    async def probe(self, path: str = "/readyz") -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.server.probe_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()

    async def eventually(
        self, condition: Callable[[], Awaitable[Any]], what: str, seconds: float = 40
    ) -> Any:
        """Poll until ``condition`` is truthy; its value."""
        last: object = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    with contextlib.suppress(aiohttp.ClientError, NotFound):
                        if last := await condition():
                            return last
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise AssertionError(f"waited for {what}; last: {last!r}") from error

    async def start_server(self) -> None:
        """Returns once the API server reaches it, and it has looked at who owns which API."""
        self.server.start()

        async def available() -> bool:
            live = await self.cluster.get(API_SERVICE, None, CUSTOM)
            conditions = {c["type"]: c["status"] for c in live["status"].get("conditions", ())}
            status, text = await self.probe()
            looked = f"{CUSTOM}: ours" in text
            return conditions.get("Available") == "True" and status == 200 and looked

        await self.eventually(available, "a registered server")

    async def run_pod(self, name: str) -> Engine:
        """Let a pod run, with an engine of its own."""
        engine = Engine()
        await engine.start()
        self.engines.append(engine)
        now = "2026-01-01T00:00:00Z"
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
        status = {
            "phase": "Running",
            "podIP": engine.address,
            "podIPs": [{"ip": engine.address}],
            "conditions": [ready],
        }
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "status": status}
        await self.cluster.apply(
            POD, TEAM, manifest, field_manager="kubelet", force=True, subresource="status"
        )
        return engine

    async def pending_pods(self) -> list[str]:
        page = await self.cluster.list_page(POD, TEAM, field_selector="status.phase=Pending")
        return [pod["metadata"]["name"] for pod in page.items]

    async def replicas(self) -> int:
        return int((await self.cluster.get(DEPLOYMENT, TEAM, "engine"))["spec"]["replicas"])

    async def scaling_active(self) -> dict[str, str]:
        """The HPA's condition that says whether it has its metrics."""
        live = await self.cluster.get(HPA, TEAM, "engine")
        conditions = live.get("status", {}).get("conditions") or ()
        return next((c for c in conditions if c["type"] == "ScalingActive"), {})


@pytest.fixture
def kubeconfig(plane: ControlPlane, port: int, tmp_path: Path) -> Path:
    """Credentials of the server's service account, which the chart has made."""
    return write_kubeconfig(plane, tmp_path)


@pytest.fixture
async def scene(plane: ControlPlane, port: int, kubeconfig: Path) -> AsyncIterator[Scene]:
    connection = await Connection.open(Credentials(kubeconfig=plane.kubeconfig))
    scene = Scene(plane, connection, Server(kubeconfig, port))
    yield scene
    await scene.close()
    plane.kubectl("delete", "pods,deployments,hpa", "--all", f"-n={TEAM}", "--force")
    plane.kubectl("delete", "apiservices", *VERSION_PRIORITIES, "--ignore-not-found")


# --- objects --------------------------------------------------------------------------------------

_POD_SPEC = {
    "schedulerName": "nobody",
    "containers": [{"name": names.ENGINE_CONTAINER, "image": "engine"}],
}


def a_pod(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": LABELS}, "spec": _POD_SPEC}


def a_deployment() -> dict[str, Any]:
    template = {"metadata": {"labels": LABELS}, "spec": _POD_SPEC}
    spec = {"replicas": 1, "selector": {"matchLabels": LABELS}, "template": template}
    return {"metadata": {"name": "engine"}, "spec": spec}


def an_hpa() -> dict[str, Any]:
    """One to three replicas by the queue, five in each, and by the load."""

    def metric(name: str, target: str, **selector: Any) -> dict[str, Any]:
        value = {"type": "AverageValue", "averageValue": target}
        return {"type": "Pods", "pods": {"metric": {"name": name, **selector}, "target": value}}

    load = {"selector": {"matchLabels": {"concurrency": "10"}}}
    spec = {
        "minReplicas": 1,
        "maxReplicas": 3,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"},
        "metrics": [metric(WAITING, "5"), metric("llmservice:load", "1", **load)],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
    }
    return {"metadata": {"name": "engine"}, "spec": spec}


def an_api_service(name: str, service: dict[str, str]) -> dict[str, Any]:
    version, _, group = name.partition(".")
    priorities = {"groupPriorityMinimum": 100, "versionPriority": 100}
    spec = {"group": group, "version": version, **priorities, "insecureSkipTLSVerify": True}
    return {"metadata": {"name": name}, "spec": {**spec, "service": service}}


def pods_path(version: str, metric: str = WAITING, namespace: str = TEAM) -> str:
    return f"/apis/custom.metrics.k8s.io/{version}/namespaces/{namespace}/pods/*/{metric}"


# --- tests ----------------------------------------------------------------------------------------


async def test_values_of_engines_come_through_the_api_server(scene):
    """In both versions and as a sum, and the APIs are found by discovery."""
    for name, waiting in (("a", 7), ("b", 2)):
        await scene.cluster.create(POD, TEAM, a_pod(name))
        engine = await scene.run_pod(name)
        engine.waiting, engine.running = waiting, 10.0
    await scene.start_server()

    async def values(version: str) -> dict[str, str]:
        _, answer = await scene.get(pods_path(version))
        return {item["describedObject"]["name"]: item["value"] for item in answer["items"]}

    assert {"a": "7", "b": "2"} == await values("v1beta2")
    assert {"a": "7", "b": "2"} == await values("v1beta1")
    _, load = await scene.get(
        pods_path("v1beta2", "llmservice:load") + "?metricLabelSelector=concurrency%3D10"
    )
    assert ["1", "1"] == [item["value"] for item in load["items"]]
    _, total = await scene.get(f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{TEAM}/{WAITING}")
    assert ["9"] == [item["value"] for item in total["items"]]
    _, nothing = await scene.get(pods_path("v1beta2", namespace="default"))
    assert [] == nothing["items"]

    _, group = await scene.get("/apis/custom.metrics.k8s.io")
    assert "v1beta2" == group["preferredVersion"]["version"]
    _, resources = await scene.get("/apis/custom.metrics.k8s.io/v1beta2")
    assert f"pods/{WAITING}" in [each["name"] for each in resources["resources"]]
    live = await scene.cluster.get(API_SERVICE, None, CUSTOM)
    assert not live["spec"].get("insecureSkipTLSVerify")


async def ask_directly(
    scene: Scene, identity: KeyPair | None, user: str, namespace: str = TEAM, port: int = 0
) -> int:
    """The HTTP status of a question past the API server, with headers that say who one is."""
    live = await scene.cluster.get(API_SERVICE, None, CUSTOM)
    bundle = base64.b64decode(live["spec"]["caBundle"]).decode()
    tls = ssl.create_default_context(cadata=bundle)
    if identity is not None:
        tls.load_cert_chain(identity.certificate, identity.key)
    path = pods_path("v1beta2", namespace=namespace).replace("*", "%2A")
    async with aiohttp.ClientSession() as session:
        answer = await session.get(
            f"https://127.0.0.1:{port or scene.server.port}{path}",
            headers={"X-Remote-User": user, "X-Remote-Group": "system:authenticated"},
            ssl=tls,
            server_hostname=f"{SERVER}.{NAMESPACE}.svc",
        )
        return answer.status


async def test_nobody_but_the_front_proxy_is_believed(scene):
    """Headers are nothing without its certificate; with it, the roles of the cluster decide."""
    await scene.start_server()
    credentials = scene.plane._credentials
    proxy, other = credentials.front_proxy, credentials.front_authority.client("somebody-else")
    assert 200 == await ask_directly(scene, proxy, HPA_ACCOUNT)
    assert 401 == await ask_directly(scene, None, HPA_ACCOUNT)
    assert 401 == await ask_directly(scene, other, HPA_ACCOUNT)
    with pytest.raises((aiohttp.ClientError, OSError)):
        # A client's certificate, of the cluster's authority.
        await ask_directly(scene, credentials.admin, HPA_ACCOUNT)

    assert 403 == await ask_directly(scene, proxy, "jane")
    rule = {"apiGroups": ["custom.metrics.k8s.io"], "resources": [f"pods/{WAITING}"]}
    role = {"metadata": {"name": "reader"}, "rules": [{**rule, "verbs": ["get"]}]}
    await scene.cluster.create(ROLE, TEAM, role)
    binding = ("rolebinding", "reader", "--role=reader", "--user=joe", f"-n={TEAM}")
    scene.plane.kubectl("create", *binding)
    assert 200 == await ask_directly(scene, proxy, "joe")
    assert 403 == await ask_directly(scene, proxy, "joe", "default")


async def test_two_replicas_that_start_together_share_their_certificates(scene, kubeconfig):
    """The bundle that is registered is good for both."""
    scene.plane.kubectl("delete", "secret", SERVER, f"-n={NAMESPACE}", "--ignore-not-found")
    second = Server(kubeconfig, a_port())
    second.start()
    try:
        await scene.start_server()
        proxy = scene.plane._credentials.front_proxy

        async def both() -> bool:
            ports = (scene.server.port, second.port)
            found = [await ask_directly(scene, proxy, HPA_ACCOUNT, port=port) for port in ports]
            return found == [200, 200]

        await scene.eventually(both, "an answer of both")
    finally:
        second.kill()


async def test_an_api_of_somebody_else_is_left_alone_until_it_is_free(scene):
    """It says so; the rest is served all the same."""
    service = {"namespace": "keda", "name": "adapter"}
    await scene.cluster.create(API_SERVICE, None, an_api_service(EXTERNAL, service))
    before = await scene.cluster.get(API_SERVICE, None, EXTERNAL)
    await scene.start_server()
    assert f"{EXTERNAL}: belongs to Service keda/adapter" in (await scene.probe())[1]
    _, metrics = await scene.probe("/metrics")
    assert 'owned{group_version="external.metrics.k8s.io/v1beta1"} 0.0' in metrics
    assert 200 == (await scene.get(pods_path("v1beta2")))[0]
    after = await scene.cluster.get(API_SERVICE, None, EXTERNAL)
    assert before["spec"] == after["spec"]
    assert before["metadata"]["uid"] == after["metadata"]["uid"]

    await scene.cluster.delete(API_SERVICE, None, EXTERNAL, uid=before["metadata"]["uid"])
    assert 0 == await scene.server.stop()
    await scene.start_server()  # does at once what a running one does within a minute
    assert f"{EXTERNAL}: ours" in (await scene.probe())[1]


async def test_an_hpa_scales_by_the_queue_and_stands_still_without_the_server(scene):
    """Nothing is removed while nobody knows how much there is to do."""
    await scene.cluster.create(DEPLOYMENT, TEAM, a_deployment())
    await scene.cluster.create(HPA, TEAM, an_hpa())

    async def said(reason: str) -> str:
        found = await scene.scaling_active()
        return found["message"] if found.get("reason") == reason else ""

    await scene.eventually(lambda: said("FailedGetPodsMetric"), "an HPA without an API")
    await scene.start_server()

    async def no_sample() -> str:
        message = await said("FailedGetPodsMetric")
        return message if "no metrics returned" in message else ""

    await scene.eventually(no_sample, "a pod without a sample")

    first = await scene.run_pod(*await scene.eventually(scene.pending_pods, "the first pod"))
    await scene.eventually(lambda: said("ValidMetricFound"), "a metric")
    assert 1 == await scene.replicas()

    first.waiting = 40.0
    await _until_replicas(scene, 3)
    for name in await _pending(scene, 2):
        (await scene.run_pod(name)).waiting = 40.0

    assert 0 == await scene.server.stop()
    for engine in scene.engines:
        engine.waiting = 0.0
    await scene.eventually(lambda: said("FailedGetPodsMetric"), "an HPA without a server")
    await _until_looked_in_vain(scene)
    assert 3 == await scene.replicas()

    await scene.start_server()
    await _until_replicas(scene, 1)


async def _pending(scene: Scene, count: int) -> list[str]:
    async def there() -> list[str]:
        found = await scene.pending_pods()
        return found if len(found) == count else []

    found: list[str] = await scene.eventually(there, f"{count} pods")
    return found


async def _until_replicas(scene: Scene, count: int) -> None:
    async def scaled() -> bool:
        return await scene.replicas() == count

    await scene.eventually(scaled, f"{count} replicas")


async def _until_looked_in_vain(scene: Scene) -> None:
    follower = AuditLog(scene.plane.audit_log).follow(HPA_ACCOUNT)

    async def looked() -> bool:
        # At every look it reads how many there are, whether it could ask for metrics or not.
        return LOOKS <= sum(request.subresource == "scale" for request in follower.poll())

    await scene.eventually(looked, "an HPA that looks in vain")


async def test_a_removed_release_leaves_nothing_behind(scene):
    """The APIServices and the Secret go with the ClusterRole, though the server still runs."""
    await scene.start_server()
    assert await scene.cluster.get(SECRET, NAMESPACE, SERVER)
    plane = scene.plane
    plane.kubectl("delete", "clusterrolebinding", SERVER)
    plane.kubectl("delete", "clusterrole", SERVER)

    async def gone() -> bool:
        for name in VERSION_PRIORITIES:
            with contextlib.suppress(NotFound):
                await scene.cluster.get(API_SERVICE, None, name)
                return False
        with contextlib.suppress(NotFound):
            await scene.cluster.get(SECRET, NAMESPACE, SERVER)
            return False
        return True

    await scene.eventually(gone, "the garbage collector")
    assert 0 == await scene.server.stop()
    plane.kubectl("create", "namespace", "doomed")
    plane.kubectl("delete", "namespace", "doomed", "--timeout=30s")


async def test_the_server_s_rights_end_where_its_work_does(kubeconfig):
    """Another's Secret, another's APIService, and anything to be written about pods."""
    cluster = RestCluster(await Connection.open(Credentials(kubeconfig=kubeconfig)))
    forbidden: list[Awaitable[Any]] = [
        cluster.get(SECRET, NAMESPACE, "another"),
        cluster.get(SECRET, TEAM, SERVER),
        cluster.list_page(SECRET, NAMESPACE),
        cluster.get(API_SERVICE, None, "v1.apps"),
        cluster.get(CLUSTER_ROLE, None, "cluster-admin"),
        cluster.create(POD, TEAM, a_pod("x")),
        cluster.create(API_SERVICE, None, an_api_service("v1.x.example", {})),
    ]
    for request in forbidden:
        with pytest.raises(Forbidden):
            await request
    assert [] == (await cluster.list_page(POD, None)).items
    await cluster.close()
