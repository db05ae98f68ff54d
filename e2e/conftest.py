"""The stage of the e2e tests: a cluster, the chart from this tree, and a namespace of their own.

A cluster that runs already is used and left as it was found, as is a chart that is installed; what
the tests started or made is gone after them, failed or not. Both namespaces enforce the restricted
Pod Security Standard, so every test also proves that our pods need no more.
"""

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress

import pytest

from e2e import chart
from e2e.cluster.kind import KindCluster
from e2e.cluster.local import LocalCluster
from e2e.cluster.processes import run
from e2e.cluster.progress import ClusterError
from e2e.cluster.provider import Cluster, choose
from e2e.kubectl import JSON, connect
from e2e.services import tiny_service
from e2e.stage import Make, Stage
from e2e.traffic import reach

_SHARED = "shared"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster that runs; ended after the tests if they started it."""
    cluster = choose()
    found_running = _runs(cluster)
    if isinstance(cluster, LocalCluster) and not found_running:
        cluster.up(tied=True)
    else:
        cluster.up()
    yield cluster
    if not found_running:
        cluster.down()


def _runs(cluster: Cluster) -> bool:
    if isinstance(cluster, LocalCluster):
        return cluster.running() is not None
    if isinstance(cluster, KindCluster) and shutil.which("kind"):
        return cluster.name in run(["kind", "get", "clusters"]).split()
    return not isinstance(cluster, KindCluster)


@pytest.fixture(scope="session")
def stage(cluster: Cluster) -> Iterator[Stage]:
    """The chart installed, and a namespace of the tests' own."""
    operator, engine = cluster.load("operator"), cluster.load("vllm-cpu")
    router = cluster.load("router")
    kubectl = connect(cluster).within(f"e2e-{os.getpid()}")
    found_installed = kubectl.within(chart.NAMESPACE).find(chart.OPERATOR) is not None
    chart.install(kubectl, operator, router)
    kubectl.apply(chart.restricted_namespace(kubectl.namespace))
    try:
        with reach(cluster, kubectl) as gate:
            yield Stage(kubectl, gate, engine, operator)
    finally:
        kubectl("delete", "llmservices", "--all")
        kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
        kubectl("delete", "namespace", kubectl.namespace, "--timeout=120s")
        if not found_installed:
            chart.uninstall(kubectl)


@pytest.fixture
def make(stage: Stage) -> Iterator[Make]:
    """Apply an LLMService, and take it and its pods away after the test."""
    made: list[str] = []

    def apply(service: JSON) -> str:
        made.append(service["metadata"]["name"])
        stage.kubectl.apply(service)
        return made[-1]

    yield apply
    for name in made:
        stage.remove(name)


# Nobody else's, so nothing else on the cluster can be scheduled by it.
_DEVICE = "e2e.llmservice.dev/device"


@pytest.fixture
def devices(stage: Stage) -> Iterator[Callable[[int], str]]:
    """Have one node claim so many devices; the scheduler and the kubelet believe it."""
    node = stage.kubectl.items("nodes")[0]["metadata"]["name"]
    path = "/status/capacity/" + _DEVICE.replace("/", "~1")

    def patch(*operations: dict[str, str]) -> None:
        words = ("patch", "node", node, "--subresource=status", "--type=json")
        stage.kubectl(*words, f"--patch={json.dumps(operations)}")

    def claim(count: int) -> str:
        patch({"op": "add", "path": path, "value": str(count)})
        return _DEVICE

    yield claim
    patch(
        {"op": "remove", "path": path},
        {"op": "remove", "path": path.replace("capacity", "allocatable")},
    )


@pytest.fixture(scope="session")
def _shared(stage: Stage) -> str:
    limits = {"requests": {"cpu": "250m", "memory": "1200Mi"}, "limits": {"memory": "3Gi"}}
    long_answers = {"maxModelLen": 4096, "resources": limits, "drainTimeoutSeconds": 240}
    service = tiny_service(_SHARED, stage.engine, **long_answers)
    service["spec"]["model"]["id"] = "/models/tiny-long"
    service["spec"]["model"]["architecture"]["max_position_embeddings"] = 4096
    stage.kubectl.apply(service)
    return _SHARED


@pytest.fixture
def shared(stage: Stage, _shared: str) -> str:
    """A service of one replica that runs, with answers of up to 4,000 tokens; tests may edit it."""
    stage.settle(_shared)
    return _shared


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell with a failed test what the cluster looked like."""
    report = yield
    stage = getattr(item, "funcargs", {}).get("stage")
    if call.when == "call" and report.failed and stage is not None:
        report.sections.append(("the cluster at that moment", _describe(stage)))
    return report


def _describe(stage: Stage) -> str:
    questions = (
        ("get", "llmservices,deployments,pods", "-o=wide"),
        ("get", "llmservices", "-o=jsonpath={.items[*].status}"),
        ("get", "events", "--sort-by=.lastTimestamp"),
    )
    answers = [f"$ kubectl {' '.join(words)}\n{stage.kubectl(*words)}" for words in questions]
    with suppress(ClusterError):
        answers.append(chart.describe_operator(stage.kubectl))
    return "\n".join(answer[-8000:] for answer in answers)
