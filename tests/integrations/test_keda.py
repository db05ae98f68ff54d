"""Services of `provider: KEDA`, sized by a real KEDA that asks a real Prometheus.

The pods are faked; the engines that Prometheus scrapes are servers of this machine under the names
of pods.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest
import yaml

from e2e.chart import CHART
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.keda import Keda
from e2e.cluster.paths import REPOSITORY
from e2e.cluster.processes import run
from e2e.cluster.prometheus import Prometheus
from e2e.cluster.toolchain import binaries
from llmservice.adapters import projection
from llmservice.api import names
from llmservice.api.v1alpha1 import parse_spec
from llmservice.cli.offline import render_document
from llmservice.core.autoscaling.policy import Sample
from llmservice.core.observed import ChildRef, ServiceKey, ServiceObject
from llmservice.core.quantities import parse_quantity
from llmservice.core.resources.autoscaler import (
    AUTOSCALER_KIND,
    SCALED_OBJECT_KIND,
    hpa_ref,
    unwanted_autoscalers,
)
from tests.integrations.conftest import Manifest, eventually
from tests.integrations.gauges import Gauges, serving_gauges

EXAMPLE = yaml.safe_load((REPOSITORY / "examples" / "autoscaling-keda.yaml").read_text())
IDLE = (Sample(0, 0, 0),)
# The example's engine runs 16 sequences and should carry 11.2 of them; 5.6 may wait.
TARGETS = [Decimal("5.6"), Decimal(1)]
BUSY = (Sample(0, 12, 0.2),)
FULL = (Sample(0, 14, 0.2),)


class Service:
    """The children of the example in a namespace of its own."""

    def __init__(self, plane: ControlPlane, gauges: Gauges, name: str) -> None:
        self.namespace = name
        self.gauges = gauges
        self._plane = plane
        self._manifests = self.render("http://127.0.0.1:1")
        (deployment,) = (each for each in self._manifests if each["kind"] == "Deployment")
        self.revision = str(deployment["metadata"]["name"])
        self.pods = [f"{self.revision}-65d-{number}" for number in range(8)]
        stranger = "qwen3-small-0000000000-65d-0"
        self.targets = gauges.targets(name, [*self.pods, stranger])
        self.gauges.pods[stranger] = [Sample(500, 500, 1)]

    def render(self, prometheus: str) -> list[Manifest]:
        """What the operator would apply, owned by nobody: the service itself is not there."""
        autoscaling = {**EXAMPLE["spec"]["autoscaling"], "prometheusUrl": prometheus}
        document = {**EXAMPLE, "spec": {**EXAMPLE["spec"], "autoscaling": autoscaling}}
        manifests = render_document(document, self.namespace)
        for manifest in manifests:
            del manifest["metadata"]["ownerReferences"]
        return manifests

    def create(self, prometheus: Prometheus) -> None:
        """Apply it all, once Prometheus has asked each engine, and wait for KEDA to take it."""
        # The sum over some of them could lead to a size that the sum over all is too near to.
        asked = "count by (pod) (vllm:num_requests_waiting)"
        engines = len(self.gauges.pods)
        eventually(lambda: len(prometheus.ask(asked)) == engines, "all engines to be scraped")
        self._plane.kubectl("create", "namespace", self.namespace)
        manifests = yaml.safe_dump_all(self.render(prometheus.url))
        self._plane.kubectl("apply", "--server-side", "-f", "-", input=manifests)
        eventually(lambda: self.condition("Ready") == "True", "KEDA to accept the ScaledObject")

    def say(self, *samples: Sequence[Sample]) -> None:
        """Have one engine answer for each of these, each with its ranks."""
        self.gauges.pods.update(zip(self.pods, samples, strict=False))

    @property
    def scaled_object(self) -> Manifest:
        """The live ScaledObject."""
        return self._get(f"keda.sh/v1alpha1/namespaces/{self.namespace}/scaledobjects")

    @property
    def hpa(self) -> Manifest:
        """The HPA that KEDA made."""
        path = f"autoscaling/v2/namespaces/{self.namespace}/horizontalpodautoscalers"
        return self._get(path, f"keda-hpa-{self.revision}")

    @property
    def replicas(self) -> int:
        """Pods that the Deployment asks for."""
        deployment = self._get(f"apps/v1/namespaces/{self.namespace}/deployments")
        return int(deployment["spec"]["replicas"])

    def condition(self, kind: str) -> str:
        """Status of a condition of the ScaledObject; empty while there is none."""
        return _condition(self.scaled_object, kind)

    def averages(self) -> list[Decimal]:
        """What the HPA says it measured for each pod, metric by metric; none that is missing."""
        found = [each.get("external") for each in self.hpa["status"].get("currentMetrics") or []]
        return [parse_quantity(each["current"]["averageValue"]) for each in found if each]

    def delete_scaled_object(self) -> None:
        """Returns when it and its HPA are gone."""
        kubectl, here = self._plane.kubectl, f"--namespace={self.namespace}"
        kubectl("delete", "scaledobject", self.revision, here, "--timeout=30s")
        kind = "horizontalpodautoscaler"
        kubectl("wait", "--for=delete", f"{kind}/keda-hpa-{self.revision}", here, "--timeout=30s")

    def _get(self, collection: str, name: str = "") -> Manifest:
        return self._plane.api.get(f"/apis/{collection}/{name or self.revision}")


def _condition(live: Manifest, kind: str) -> str:
    conditions = live.get("status", {}).get("conditions") or []
    return next((str(each["status"]) for each in conditions if each["type"] == kind), "")


@pytest.fixture
def service(plane: ControlPlane, keda: Keda, request: pytest.FixtureRequest) -> Iterator[Service]:
    """The example, in a namespace named after the test."""
    del keda
    with serving_gauges() as gauges:
        name = request.node.name.replace("_", "-")[:60]
        yield Service(plane, gauges, name)
        plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def prometheus(service: Service) -> Iterator[Prometheus]:
    """It scrapes the service's engines, and a stranger's."""
    with Prometheus(service.targets) as found:
        yield found


def _metric(each: dict[str, Any]) -> tuple[str, Decimal]:
    external = each["external"]
    return external["metric"]["name"], parse_quantity(external["target"]["averageValue"])


def test_keda_makes_an_hpa_of_our_policy(service: Service, prometheus: Prometheus) -> None:
    """Bounds, targets and behavior are ours; nothing of it is refused or dropped."""
    service.say(IDLE)
    service.create(prometheus)

    spec, wanted = service.hpa["spec"], service.scaled_object["spec"]
    assert (1, 8) == (spec["minReplicas"], spec["maxReplicas"])
    assert [("s0-prometheus", TARGETS[0]), ("s1-prometheus", TARGETS[1])] == [
        _metric(each) for each in spec["metrics"]
    ]
    config = wanted["advanced"]["horizontalPodAutoscalerConfig"]
    assert config["behavior"] == spec["behavior"]


def test_kedas_hpa_is_one_of_the_services_children(
    service: Service, prometheus: Prometheus
) -> None:
    """By KEDA's passing on of labels and annotations the operator finds it, and whom to delete."""
    service.say(IDLE)
    service.create(prometheus)

    spec = parse_spec(EXAMPLE["spec"])
    assert spec.autoscaling is not None
    key = ServiceKey(service.namespace, EXAMPLE["metadata"]["name"])
    child = projection.child(AUTOSCALER_KIND, service.hpa)
    assert key == projection.service_key(service.hpa)
    assert names.MANAGED_BY == service.hpa["metadata"]["labels"][names.MANAGED_BY_LABEL]
    revision = service.revision.removeprefix(f"{key.name}-")
    assert hpa_ref(spec.autoscaling, key.name, revision) == child.ref
    owner = ServiceObject(key, "uid", 1, {}, {})
    (delete,) = unwanted_autoscalers(owner, (), {child.ref: child})
    assert ChildRef(SCALED_OBJECT_KIND, service.revision) == delete.ref
    assert service.scaled_object["metadata"]["uid"] == delete.uid


def test_busy_pods_are_joined_by_others(service: Service, prometheus: Prometheus) -> None:
    """As many as the queue asks for; a stranger's load counts for nothing."""
    service.say((Sample(20, 12, 0.2), Sample(2, 12, 0.2)))
    service.create(prometheus)

    eventually(lambda: service.replicas == 4, "22 that wait, 5.6 for each replica, to be 4")


def test_dead_band_holds_what_is_needed(service: Service, prometheus: Prometheus) -> None:
    """Five replicas that carry three quarters of what they should are five, not four."""
    service.say(*[(Sample(0, 2, 0.38),)] * 5)
    service.create(prometheus)

    eventually(lambda: service.replicas == 5, "a sum of 3.8 to count as 5")


def test_without_prometheus_the_pods_stay(service: Service, prometheus: Prometheus) -> None:
    """Their number, not the minimum; and it goes on when Prometheus is back."""
    service.say(BUSY, BUSY, BUSY)
    service.create(prometheus)
    eventually(lambda: service.replicas == 4, "a load of 3.2 to be 4")

    prometheus.stop()
    eventually(lambda: service.condition("Fallback") == "True", "KEDA to fall back")
    eventually(lambda: service.averages() == TARGETS, "as much as four pods should carry")
    assert "True" == _condition(service.hpa, "ScalingActive")
    assert 4 == service.replicas

    service.say(FULL, FULL, FULL, FULL)
    prometheus.start()
    eventually(lambda: service.replicas == 5, "a load of 5 to be 5")
    eventually(lambda: service.condition("Fallback") == "False", "KEDA to be itself again")


def test_engines_that_say_nothing_keep_the_pods(service: Service, prometheus: Prometheus) -> None:
    """An empty answer of Prometheus is no load of zero."""
    service.say(BUSY, BUSY)
    service.create(prometheus)
    eventually(lambda: service.replicas == 3, "a load of 2.2 to be 3")

    for pod in service.pods:
        service.gauges.pods.pop(pod, None)
    eventually(lambda: service.condition("Fallback") == "True", "KEDA to fall back")
    assert 3 == service.replicas


def test_letting_go_leaves_the_pods(service: Service, prometheus: Prometheus) -> None:
    """For a rollout that counts them itself: no ScaledObject, no HPA, the same pods."""
    service.say(BUSY, BUSY)
    service.create(prometheus)
    eventually(lambda: service.replicas == 3, "a load of 2.2 to be 3")

    service.delete_scaled_object()

    assert 3 == service.replicas


@pytest.mark.parametrize("more", [(), ("--set=namespaces={team-a,team-b}",)], ids=["all", "some"])
def test_pod_monitor_is_what_the_prometheus_operator_takes(
    plane: ControlPlane, keda: Keda, more: Sequence[str]
) -> None:
    """The chart's, by a strict API server; it selects engine pods, and the port that they name."""
    del keda  # it brings the CRD
    settings = ["--set=engineMonitor.enabled=true", "--show-only=templates/engine-monitor.yaml"]
    rendered = run([binaries() / "helm", "template", "llmservice", CHART, *settings, *more])

    assert plane.kubectl(
        "create", "--dry-run=server", "--validate=strict", "-f", "-", input=rendered
    )
    monitor = yaml.safe_load(rendered)["spec"]
    pod = next(each for each in render_document(EXAMPLE, None) if each["kind"] == "Deployment")
    template = pod["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (port,) = template["spec"]["containers"][0]["ports"]
    assert port["name"] == monitor["podMetricsEndpoints"][0]["port"]
