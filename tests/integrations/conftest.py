"""Other projects' real programs beside a real control plane, and engines on this machine.

An EndpointSlice refuses loopback, so engines listen on the address that this machine has on its
network; only the proxies of these tests are told of them.
"""

import asyncio
import http.client
import json
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self, cast

import pytest

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.envoy_gateway import EnvoyGateway
from e2e.cluster.keda import Keda
from llmservice.adapters.kube import Connection, Credentials
from llmservice.api.v1alpha1 import GatewayRef
from llmservice.core.config import Config
from llmservice.core.observed import ServiceKey, ServiceObject
from llmservice.core.resources.children import build_headless_service
from llmservice.core.router.gateway import (
    Acknowledged,
    Acknowledgement,
    Refused,
    WeightPatch,
    build_route,
    plan_weights,
    read_acknowledgement,
)
from llmservice.handlers.config import OperatorConfig
from llmservice.handlers.operator import Operator
from tests.contract.conftest import OPERATOR_USER, install

Manifest = dict[str, Any]
SERVICE = "mistral"
GATEWAY = GatewayRef(name="public", namespace="default")
_SECONDS = 30
_JSON_PATCH = {"Content-Type": "application/json-patch+json"}
_APPLY = {"Content-Type": "application/apply-patch+yaml"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs programs that take minutes to build."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integrations)


class Engine:
    """Answers every request with its revision; counts nothing, waits for nobody."""

    def __init__(self, revision: str) -> None:
        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body in one packet

            def do_GET(self) -> None:
                body = json.dumps({"revision": revision, "headers": dict(self.headers)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((own_address(), 0), Answer)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address, self.port = self._server.server_address[:2]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent; 192.0.2.0/24 is reserved for documentation.
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


class Client:
    """One connection to the Gateway's Envoy, under a host name of the test's own."""

    def __init__(self, port: int, host: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self._host = host

    def ask(self, path: str = "/") -> Manifest:
        """What the engine said; its `revision` is the status if it did not answer with 200."""
        self._connection.request("GET", path, headers={"Host": self._host})
        answer = self._connection.getresponse()
        text = answer.read()
        return dict(json.loads(text)) if answer.status == 200 else {"revision": answer.status}

    def count(self, requests: int) -> Counter[str | int]:
        """How often each revision answered."""
        return Counter(self.ask()["revision"] for _ in range(requests))

    def close(self) -> None:
        self._connection.close()


class Load(threading.Thread):
    """Asks without a pause until the block ends; `answers` counts what came back."""

    def __init__(self, client: Client) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._ended = threading.Event()
        self.answers: Counter[str | int] = Counter()

    def run(self) -> None:
        while not self._ended.is_set():
            self.answers[self._client.ask()["revision"]] += 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def await_more(self, revision: str, requests: int) -> None:
        """Until a revision has answered this often from now on."""
        enough = self.answers[revision] + requests
        eventually(lambda: self.answers[revision] >= enough, f"{revision} to answer")


class Team:
    """A namespace with its engines, routes and a client."""

    def __init__(self, plane: ControlPlane, port: int) -> None:
        self.namespace = f"t-{uuid.uuid4().hex[:8]}"
        self.host = f"{self.namespace}.example.com"
        self.client = Client(port, self.host)
        self.engines: dict[str, Engine] = {}
        self._api = plane.api
        self._routes = f"/apis/gateway.networking.k8s.io/v1/namespaces/{self.namespace}/httproutes"
        namespace = {"apiVersion": "v1", "kind": "Namespace"}
        named = {"metadata": {"name": self.namespace}}
        self._api.create("/api/v1/namespaces", {**namespace, **named})

    def close(self) -> None:
        self.client.close()
        for engine in self.engines.values():
            engine.stop()
        self._api.call("DELETE", f"/api/v1/namespaces/{self.namespace}")

    # --- what is there ----------------------------------------------------------------------------

    def add_revision(self, revision: str, *, serving: bool = True) -> str:
        """A revision's headless Service, with or without a ready engine; the Service's name."""
        key = ServiceKey(self.namespace, SERVICE)
        service = build_headless_service(ServiceObject(key, "uid", 1, {}, {}), revision)
        # The owner is not there, and the selector would find no pods.
        del service["metadata"]["ownerReferences"], service["spec"]["selector"]
        self._api.create(f"/api/v1/namespaces/{self.namespace}/services", service)
        name = str(service["metadata"]["name"])
        if serving:
            engine = self.engines[revision] = Engine(revision)
            self._add_endpoints(name, engine)
        return name

    def _add_endpoints(self, service: str, engine: Engine) -> None:
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"
        body = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": engine.port}],
            "endpoints": [{"addresses": [engine.address], "conditions": {"ready": True}}],
        }
        self._api.create(path, body)

    def add_own_route(self, weights: Mapping[str, int], gateway: GatewayRef = GATEWAY) -> None:
        """The route that the operator makes, under the test's host name."""
        service = ServiceObject(ServiceKey(self.namespace, SERVICE), "uid", 1, {}, {})
        route = build_route(service, gateway, weights)
        del route["metadata"]["ownerReferences"]
        route["spec"]["hostnames"] = [self.host]
        self.apply(route, "llmservice")

    def apply(self, route: Manifest, manager: str, *, force: bool = False) -> Manifest:
        """Server-side apply of a route; what it is afterwards."""
        query = f"?fieldManager={manager}&force={str(force).lower()}"
        path = f"{self._routes}/{route['metadata']['name']}{query}"
        return dict(json.loads(self._api.call("PATCH", path, route, _APPLY)))

    def patch(self, name: str, operations: Sequence[Manifest], manager: str) -> Manifest:
        """A JSON patch of a route; what it is afterwards."""
        path = f"{self._routes}/{name}?fieldManager={manager}"
        body: Any = list(operations)
        return dict(json.loads(self._api.call("PATCH", path, body, _JSON_PATCH)))

    def route(self, name: str = SERVICE) -> Manifest:
        """The live route."""
        return self._api.get(f"{self._routes}/{name}")

    # --- what the operator will do ----------------------------------------------------------------

    def shift(self, weights: Mapping[str, int], name: str = SERVICE) -> Manifest:
        """Plan and send one change of weights; the route as it is afterwards."""
        planned = plan_weights(self.route(name), weights)
        assert isinstance(planned, WeightPatch), planned
        return self.patch(name, planned.operations, "llmservice-traffic")

    def await_outcome(self, weights: Mapping[str, int], name: str = SERVICE) -> Acknowledgement:
        """What the gateway says in the end."""

        def said() -> Acknowledgement | None:
            outcome = read_acknowledgement(self.route(name), weights)
            return outcome if isinstance(outcome, Acknowledged | Refused) else None

        return eventually(said, "the gateway to report")

    def await_traffic(self, weights: Mapping[str, int], name: str = SERVICE) -> None:
        """Until the gateway has acknowledged, and an engine answers."""
        assert Acknowledged() == self.await_outcome(weights, name)
        serving = self.engines.keys()
        eventually(lambda: self.client.ask()["revision"] in serving, "Envoy to have the route")


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Poll what nothing announces; its value once it is true."""
    deadline = time.monotonic() + _SECONDS
    found = condition()
    while not found:
        assert time.monotonic() < deadline, f"waited {_SECONDS} s for {what}"
        time.sleep(0.02)
        found = condition()
    return found


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A control plane; nothing runs on its node, and tests say where pods are reached."""
    # A faked node that is late on a busy machine must not make its pods unready.
    manager = ["--controllers=*,-endpointslice-controller", "--node-monitor-grace-period=1h"]
    manager += ["--horizontal-pod-autoscaler-sync-period=1s"]
    with ControlPlane(nodes=1, gpus=64, flags={"kube-controller-manager": manager}) as found:
        yield found


@pytest.fixture(scope="session")
def installed(plane: ControlPlane) -> None:
    """Our CRD and roles."""
    install(plane)


async def start_operator(
    plane: ControlPlane, namespace: str, pods: Any = None
) -> tuple[Operator, "asyncio.Task[int]"]:
    """An operator with the rights of its chart, and what it returns once it is stopped.

    Args:
        plane: where it works.
        namespace: the one that it serves.
        pods: what answers its questions to pods; the addresses of faked ones lead nowhere.
    """
    credentials = Credentials(kubeconfig=plane.kubeconfig_for(OPERATOR_USER))
    config = OperatorConfig(
        namespaces=(namespace,),
        lease_namespace=namespace,
        metrics_port=0,
        credentials=credentials,
        core=Config(engine_metrics=False),
    )
    operator = Operator(config, await Connection.open(credentials))
    if pods is not None:
        seams = cast("Any", operator)
        await seams._pods.close()
        seams._pods = pods
    task = asyncio.create_task(operator.run())
    async with asyncio.timeout(30):
        await operator.synced.wait()
    return operator, task


@pytest.fixture(scope="session")
def keda(plane: ControlPlane) -> Iterator[Keda]:
    """KEDA beside the control plane."""
    with Keda(plane) as found:
        yield found
        print(found.log())  # shown with a failure


@pytest.fixture(scope="session")
def gateway_port(plane: ControlPlane) -> Iterator[int]:
    """Where the Envoy of a Gateway listens that takes routes from all namespaces."""
    with EnvoyGateway(plane) as gateway:
        yield gateway.add_gateway("default", GATEWAY.name)
        print(gateway.log())  # shown with a failure


@pytest.fixture
def team(plane: ControlPlane, gateway_port: int) -> Iterator[Team]:
    """A namespace of the test's own."""
    found = Team(plane, gateway_port)
    yield found
    found.close()
