"""One real control plane for the run, a namespace per test, and operators under the chart's rights.

Nodes are faked (their pods become Ready at once); everything else is Kubernetes itself. Every
operator here runs as a user that has exactly the rights of ``adapters/permissions.py``.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from e2e.cluster.control_plane import ControlPlane
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.permissions import roles
from llmservice.adapters.ports import ClusterError, NotFound, Resource
from llmservice.adapters.resources import AUTOSCALER, CHILDREN, LLM_SERVICE, POD
from llmservice.adapters.rest import RestCluster
from llmservice.core.config import Config
from llmservice.handlers.config import OperatorConfig
from llmservice.handlers.operator import Operator
from tests.bench.audit import BACKGROUND, AuditLog, Follower, count

CRDS = Path(__file__).parents[2] / "crds"
OPERATOR_USER = "llmservice-operator"
CLUSTER_WIDE_USER = "llmservice-operator-cluster-wide"
_POLL_SECONDS = 0.02
_NO_ENGINES = Config(engine_metrics=False)
"""The addresses of the faked nodes' pods lead nowhere."""
_RBAC = "/apis/rbac.authorization.k8s.io/v1"

Manifest = dict[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the control plane."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.contract)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A control plane with our CRDs and a cluster-wide operator user."""
    # Faked nodes that are late on a busy machine must not make their pods unready.
    # Autoscalers look every second, or their tests would wait for them.
    manager = ["--node-monitor-grace-period=1h", "--horizontal-pod-autoscaler-sync-period=1s"]
    flags = {"kube-controller-manager": manager}
    with ControlPlane(nodes=2, gpus=64, flags=flags) as plane:
        install(plane)
        yield plane


def install(plane: ControlPlane) -> None:
    """What the chart installs for an operator that serves all namespaces, but the operator."""
    plane.kubectl("apply", "--server-side", "-f", str(CRDS))
    plane.kubectl("wait", "--for=condition=Established", "crd/llmservices.llmservice.dev")
    plane.api.create(f"{_RBAC}/clusterroles", _role("ClusterRole", roles()["services"]))
    plane.api.create(
        f"{_RBAC}/clusterrolebindings",
        _binding("ClusterRoleBinding", "ClusterRole", CLUSTER_WIDE_USER),
    )


@pytest.fixture(scope="session")
def operator_kubeconfig(control_plane: ControlPlane) -> Path:
    """Credentials of an operator that serves the namespaces of the tests."""
    return control_plane.kubeconfig_for(OPERATOR_USER)


@pytest.fixture(scope="session")
def cluster_wide_kubeconfig(control_plane: ControlPlane) -> Path:
    """Credentials of an operator that serves all namespaces."""
    return control_plane.kubeconfig_for(CLUSTER_WIDE_USER)


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own, in which the operator has its rights."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    make_namespace(control_plane, name)
    yield name
    with contextlib.suppress(Exception):  # the test may have taken the API server away
        control_plane.api.call("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
async def kube(control_plane: ControlPlane, namespace: str) -> AsyncIterator["Kube"]:
    """The cluster as its administrator sees it, within the test's namespace."""
    connection = await Connection.open(Credentials(kubeconfig=control_plane.kubeconfig))
    kube = Kube(control_plane, RestCluster(connection), namespace)
    yield kube
    await kube.cluster.close()


@pytest.fixture
async def start_operator(
    kube: "Kube", operator_kubeconfig: Path
) -> AsyncIterator[Callable[..., Awaitable["RunningOperator"]]]:
    """Starts an operator in this process; it serves the test's namespace unless told otherwise."""
    running: list[RunningOperator] = []

    async def start(
        *, wait: bool = True, user: str = OPERATOR_USER, **changes: Any
    ) -> RunningOperator:
        settings = {
            "namespaces": (kube.namespace,),
            "lease_namespace": kube.namespace,
            "metrics_port": 0,
            "credentials": Credentials(kubeconfig=operator_kubeconfig),
            "core": _NO_ENGINES,
            **changes,
        }
        config = OperatorConfig(**settings)
        follower = kube.follow(user)
        operator = Operator(config, await Connection.open(config.credentials))
        running.append(RunningOperator(operator, asyncio.create_task(operator.run())))
        if wait:
            async with asyncio.timeout(30):
                await operator.synced.wait()
            await kube.eventually(lambda: _watches_services(follower), "kopf to watch")
        return running[-1]

    yield start
    for each in running:
        await each.stop()


@pytest.fixture
def spawn_operator(
    kube: "Kube", operator_kubeconfig: Path, tmp_path: Path
) -> Iterator[Callable[..., "OperatorProcess"]]:
    """Starts an operator in a process of its own, to be killed."""
    spawned: list[OperatorProcess] = []

    def spawn(*, identity: str, kubeconfig: Path = operator_kubeconfig) -> OperatorProcess:
        log = tmp_path / f"{identity}.log"
        settings = {
            "namespaces": [kube.namespace],
            "lease_namespace": kube.namespace,
            "identity": identity,
            "kubeconfig": str(kubeconfig),
        }
        command = [sys.executable, "-c", _RUN, json.dumps(settings)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ)
        spawned.append(OperatorProcess(process, log))
        return spawned[-1]

    yield spawn
    for each in spawned:
        each.process.kill()
        each.process.wait()
        print(f"--- {each.log.name}\n{each.log.read_text()[-4000:]}")  # shown with a failure


_RUN = """
import json, os, pathlib, sys, threading, time
from llmservice.adapters.kube import Credentials
from llmservice.core.config import Config
from llmservice.handlers.config import OperatorConfig
from llmservice.handlers.operator import main
def end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(9)
threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
told = json.loads(sys.argv[1])
credentials = Credentials(kubeconfig=pathlib.Path(told.pop("kubeconfig")))
told["namespaces"] = tuple(told["namespaces"])
core = Config(engine_metrics=False)
sys.exit(main(OperatorConfig(credentials=credentials, metrics_port=0, core=core, **told)))
"""


@dataclass
class RunningOperator:
    """An operator in this process."""

    operator: Operator
    task: asyncio.Task[int]

    async def stop(self) -> int:
        """As SIGTERM does; returns the exit code."""
        self.operator.stop()
        async with asyncio.timeout(30):
            return await self.task

    async def ask(self, path: str) -> tuple[int, str]:
        """Its health server's answer."""
        url = f"http://127.0.0.1:{self.operator.health.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()


@dataclass
class OperatorProcess:
    """An operator in a process of its own."""

    process: "subprocess.Popen[bytes]"
    log: Path


PLAIN_KINDS = {
    *("ServiceAccount", "Service", "PodDisruptionBudget"),
    *("ControllerRevision", "Deployment"),
}
"""Kinds of children that every service has; a router has others beside them."""


class Kube:
    """What tests do to the cluster and ask of it."""

    def __init__(self, plane: ControlPlane, cluster: RestCluster, namespace: str) -> None:
        self.plane = plane
        self.cluster = cluster
        self.namespace = namespace

    # --- services -------------------------------------------------------------------------------

    async def create_service(self, name: str = "mistral", **spec: Any) -> None:
        """Create an LLMService; keyword arguments replace fields of its spec."""
        manifest = {
            "apiVersion": LLM_SERVICE.api_version,
            "kind": LLM_SERVICE.kind,
            "metadata": {"name": name},
            "spec": {
                "model": {"id": "mistralai/Mistral-7B-Instruct-v0.2"},
                "engine": {"image": "vllm/vllm-openai:v0.33.0", "maxNumSeqs": 64},
                "accelerator": {"resource": "nvidia.com/gpu", "count": 1},
                "replicas": 1,
                **spec,
            },
        }
        # Not by the operator's client, which would put its name into managedFields.
        path = f"/apis/{LLM_SERVICE.api_version}/namespaces/{self.namespace}/{LLM_SERVICE.plural}"
        await asyncio.to_thread(self.plane.api.create, path, manifest)

    async def service(self, name: str = "mistral") -> Manifest:
        """The live LLMService."""
        return await self.cluster.get(LLM_SERVICE, self.namespace, name)

    async def ready_service(self, name: str = "mistral", **spec: Any) -> Manifest:
        """Create an LLMService and wait until it serves."""
        await self.create_service(name, **spec)
        return await self.until_ready(name)

    async def until_ready(self, name: str = "mistral", seconds: float = 30) -> Manifest:
        """Wait until the newest spec serves with all replicas."""
        seen: list[Manifest] = []

        async def serving() -> Manifest | None:
            live = await self.service(name)
            seen[:] = [live]
            current = live.get("status", {}).get("observedGeneration")
            ready = condition(live, "Ready")
            serves = ready.get("reason") == "Serving" and ready.get("status") == "True"
            return live if serves and current == live["metadata"]["generation"] else None

        try:
            return await self.eventually(serving, f"{name} to serve", seconds)
        except AssertionError as error:
            pods = await self.list(POD, f"llmservice.dev/service={name}")
            states = [(pod["metadata"]["name"], pod.get("status")) for pod in pods]
            status = [live.get("status") for live in seen]
            raise AssertionError(f"{error}; pods: {states}; status: {status}") from error

    async def service_with(self, kind: str) -> dict[str, Manifest]:
        """Create a service that has children of this kind; these, by name."""
        spec: dict[str, Any] = {}
        if kind == AUTOSCALER.kind:
            spec = {"autoscaling": {"maxReplicas": 3}}
        elif kind not in PLAIN_KINDS:
            spec = {"rollout": {"strategy": "Canary"}}
        await self.ready_service(**spec)

        async def made() -> dict[str, Manifest]:
            children = await self.children()
            return {
                name.partition("/")[2]: live
                for name, live in children.items()
                if name.startswith(f"{kind}/")
            }

        found: dict[str, Manifest] = await self.eventually(made, f"a {kind}")
        return found

    async def until_quiet(self, follower: Follower, seconds: float = 3) -> None:
        """Wait until the operator has done nothing for a while, but what keeps it there."""
        loop = asyncio.get_running_loop()
        known, since = -1, loop.time()

        async def quiet() -> bool:
            nonlocal known, since
            counted = count(follower.poll())
            work = sum(n for category, n in counted.items() if category not in BACKGROUND)
            if work != known:
                known, since = work, loop.time()
            return loop.time() - since > seconds

        await self.eventually(quiet, "the operator to have nothing to do", 30)

    async def children(self, name: str = "mistral") -> dict[str, Manifest]:
        """The live children of a service, as Kind/name."""
        found = {}
        for kind, resource in CHILDREN.items():
            for live in await self.list(resource, f"llmservice.dev/service={name}"):
                found[f"{kind}/{live['metadata']['name']}"] = live
        return found

    # --- anything -------------------------------------------------------------------------------

    async def list(self, resource: Resource, label_selector: str = "") -> list[Manifest]:
        """Live objects of the namespace."""
        page = await self.cluster.list_page(resource, self.namespace, label_selector=label_selector)
        return page.items

    async def get(self, resource: Resource, name: str) -> Manifest | None:
        """One live object, or None."""
        try:
            return await self.cluster.get(resource, self.namespace, name)
        except NotFound:
            return None

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Manifest | Sequence[Manifest],
        *,
        content_type: str = "application/merge-patch+json",
        subresource: str = "",
    ) -> None:
        """Edit an object as a person with kubectl does."""
        group = "api" if "/" not in resource.api_version else "apis"
        path = f"/{group}/{resource.api_version}/namespaces/{self.namespace}/{resource.plural}"
        headers = {"Content-Type": content_type}
        url = f"{path}/{name}" + (f"/{subresource}" if subresource else "")
        await asyncio.to_thread(
            self.plane.api.call, "PATCH", f"{url}?fieldManager=kubectl-edit", patch, headers
        )

    async def edit_service(self, name: str = "mistral", **spec: Any) -> None:
        """Merge into a service's spec."""
        await self.patch(LLM_SERVICE, name, {"spec": spec})

    async def delete(self, resource: Resource, name: str) -> None:
        """Delete an object, whatever its uid."""
        live = await self.cluster.get(resource, self.namespace, name)
        await self.cluster.delete(resource, self.namespace, name, uid=live["metadata"]["uid"])

    def follow(self, user: str = OPERATOR_USER) -> Follower:
        """Requests of the operators of these tests from now on."""
        return AuditLog(self.plane.audit_log).follow(user)

    async def eventually(
        self, condition: Callable[[], Awaitable[Any]], what: str, seconds: float = 15
    ) -> Any:
        """Poll until ``condition`` is truthy; its value."""
        last: object = None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline:
            try:
                last = await condition()
            except ClusterError as error:
                last = error
            else:
                if last:
                    return last
            await asyncio.sleep(_POLL_SECONDS)
        raise AssertionError(f"waited {seconds} s for {what}; last: {last!r}")


async def _watches_services(follower: Follower) -> bool:
    requests = follower.poll()
    return any((each.verb, each.resource) == ("watch", "llmservices") for each in requests)


def condition(service: Mapping[str, Any], type_: str) -> Manifest:
    """A condition of a live service, empty if it has none of that type."""
    conditions = service.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == type_), {})


def make_namespace(plane: ControlPlane, name: str) -> None:
    """A namespace in which the operator's user has the rights of the chart's Roles."""
    metadata = {"metadata": {"name": name}}
    plane.api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", **metadata})
    rules = roles()["services"] + roles()["leader"]
    plane.api.create(f"{_RBAC}/namespaces/{name}/roles", _role("Role", rules))
    for user in (OPERATOR_USER, CLUSTER_WIDE_USER):
        plane.api.create(
            f"{_RBAC}/namespaces/{name}/rolebindings", _binding("RoleBinding", "Role", user)
        )


def _role(kind: str, rules: list[Manifest]) -> Manifest:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": "llmservice-operator"},
        "rules": rules,
    }


def _binding(kind: str, role: str, user: str) -> Manifest:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": kind,
        "metadata": {"name": user},
        "roleRef": {"apiGroup": group, "kind": role, "name": "llmservice-operator"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }
