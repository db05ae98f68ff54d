"""What `helm template` makes of the chart, variant by variant."""

import argparse
from typing import Any

import pytest
import yaml

from e2e.chart import CHART
from e2e.cluster.paths import REPOSITORY
from llmservice import cli
from llmservice.core.autoscaling.budget import Budget, parse_budgets
from llmservice.core.config import Config

pytestmark = pytest.mark.contract

VARIANTS = {
    "defaults": (),
    "namespaced": ("namespaces={a,b}",),
    "without CRD": ("crd.install=false",),
    "one replica, no budget": ("replicas=1", "podDisruptionBudget.enabled=false"),
    "monitored": ("podMonitor.enabled=true", "podMonitor.labels.team=x"),
    "no metrics server": ("metricsServer.enabled=false",),
    "by digest": (f"image.digest=sha256:{'0' * 64}", f"router.image.digest=sha256:{'0' * 64}"),
    "placed": (
        "nodeSelector.disk=ssd",
        "priorityClassName=system-cluster-critical",
        "tolerations[0].operator=Exists",
        "imagePullSecrets[0].name=registry",
        "podLabels.team=x",
        "podAnnotations.note=y",
        "serviceAccount.name=op",
        "serviceAccount.annotations.role=z",
    ),
}

COMPONENTS = ("operator", "metrics-server")

TYPOS = {
    "replica=3": "replica",
    "image.tags=v1": "tags",
    "image.digest=latest": "digest",
    "image.repository=": "repository",
    "router.image.repository=": "repository",
    "router.image.tag=a b": "tag",
    "router.replicas=2": "replicas",
    "namespaces={Team_A}": "namespaces",
    "namespaces={a,a}": "namespaces",
    "crd.create=false": "create",
    "replicas=two": "replicas",
    "resources.limit.memory=1Gi": "limit",
    "podMonitor.interval=soon": "interval",
    "workers=0": "workers",
    "metricsServer.enabled=perhaps": "enabled",
    "metricsServer.replicas=0": "replicas",
    "metricsServer.image.tag=v1": "image",
    "engineMetrics.enabled=sometimes": "enabled",
    "gpuBudgets[0].name=a": "devices",
    "gpuBudgets[0].devices=1": "name",
    "gpuBudgets[0].name=a,gpuBudgets[0].devices=1,gpuBudgets[0].gpus=1": "gpus",
}


def of_kind(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def the(
    manifests: list[dict[str, Any]], kind: str, *, component: str = "operator"
) -> dict[str, Any]:
    """The one of a kind that is the operator's, or the metrics server's."""

    def label(manifest: dict[str, Any]) -> str:
        labels: dict[str, str] = manifest["metadata"].get("labels", {})
        return labels.get("app.kubernetes.io/component", "operator")

    (found,) = [m for m in of_kind(manifests, kind) if label(m) == component]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_passes_strict_lint(helm, variant):
    """Helm's own linter finds nothing to complain about."""
    words = [f"--set={setting}" for setting in VARIANTS[variant]]
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *words)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_object_appears_twice_or_outside_its_namespace(helm, variant):
    """Every namespaced object names its namespace, and no two share kind, namespace and name."""
    manifests = helm.template(*VARIANTS[variant])
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    named = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests]
    assert len(set(named)) == len(named)
    assert all((kind in cluster_wide) == (namespace is None) for kind, namespace, _ in named)


@pytest.mark.parametrize(("setting", "field"), TYPOS.items())
def test_the_schema_refuses_what_the_chart_does_not_know(helm, setting, field):
    """A misspelt or senseless value is an error that names the field, never ignored."""
    with pytest.raises(Exception, match=field):
        helm.template(setting)


def test_a_parent_chart_may_pass_its_global_values(helm):
    """Helm hands `global` to every subchart."""
    assert helm.template("global.region=eu")


def test_the_crd_is_the_generated_one_and_outlives_the_release(helm):
    """The rendered CRD equals crds/ but for the annotation that makes `helm uninstall` keep it."""
    rendered = the(helm.template(), "CustomResourceDefinition")
    annotations = rendered["metadata"].pop("annotations")
    committed = REPOSITORY / "crds" / "llmservices.llmservice.dev.yaml"
    assert yaml.safe_load(committed.read_text()) == rendered
    assert {"helm.sh/resource-policy": "keep"} == annotations


def test_the_crd_can_be_left_to_somebody_else(helm):
    """crd.install=false renders none."""
    assert [] == of_kind(helm.template("crd.install=false"), "CustomResourceDefinition")


@pytest.mark.parametrize("component", COMPONENTS)
def test_pods_ask_for_no_more_than_the_restricted_standard_allows(helm, component):
    """Non-root, no privileges, nothing writable, default seccomp, bounded memory."""
    pod = the(helm.template(), "Deployment", component=component)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}} == pod[
        "securityContext"
    ]
    assert {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    } == container["securityContext"]
    assert "volumes" not in pod
    assert "memory" in container["resources"]["limits"]
    assert "cpu" not in container["resources"]["limits"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_two_pods_spread_and_are_not_drained_together(helm, component):
    """The default survives the loss of a node and a node drain."""
    manifests = helm.template()
    deployment = the(manifests, "Deployment", component=component)["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    budget = the(manifests, "PodDisruptionBudget", component=component)["spec"]
    assert deployment["replicas"] == 2
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert budget["maxUnavailable"] == 1
    for selector in (deployment["selector"], spread["labelSelector"], budget["selector"]):
        assert selector["matchLabels"].items() <= labels.items()


def test_a_digest_wins_over_the_tag(helm):
    """What is pinned by digest is run by digest."""
    digest = f"sha256:{'a' * 64}"
    manifests = helm.template(
        "image.repository=r.example/op", "image.tag=v1", f"image.digest={digest}"
    )
    (container,) = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert f"r.example/op@{digest}" == container["image"]


def operator_arguments(manifests: list[dict[str, Any]]) -> argparse.Namespace:
    """The operator's command line as it understands it."""
    (container,) = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return cli._parser().parse_args(container["args"])


def test_routers_get_the_images_of_the_release(helm):
    """Their agent is the image of the operator that the pod runs; Envoy is named by itself."""
    digest = f"sha256:{'a' * 64}"
    manifests = helm.template(
        *("image.repository=r.example/op", "image.tag=v1"),
        *("router.image.repository=r.example/envoy", f"router.image.digest={digest}"),
    )
    parsed = operator_arguments(manifests)
    (container,) = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]

    assert "r.example/op:v1" == parsed.operator_image == container["image"]
    assert f"r.example/envoy@{digest}" == parsed.router_image


def test_an_untouched_release_uses_the_images_that_the_code_names(helm):
    """`llmservice render` without a cluster shows what an operator of this version applies."""
    parsed = operator_arguments(helm.template())

    assert Config().operator_image == parsed.operator_image
    assert Config().router_image == parsed.router_image


def test_the_default_tag_is_the_version_of_the_application(helm):
    """An untouched release runs the image of its own version."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    (container,) = the(helm.template(), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith(f":{version}")


def test_the_operator_is_started_with_the_words_its_command_line_knows(helm):
    """The Deployment's arguments parse, and the lease is in the release's namespace."""
    manifests = helm.template("namespaces={a,b}")
    (container,) = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    parsed = operator_arguments(manifests)
    assert parsed.command == "operator"
    assert parsed.lease_namespace == "llmservice-system"
    assert parsed.namespaces == ("a", "b")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {"http": parsed.port} == ports
    assert parsed.engine_metrics

    assert not operator_arguments(helm.template("engineMetrics.enabled=false")).engine_metrics


def test_budgets_of_devices_reach_the_operator(helm):
    """As JSON that its command line reads; without any, the option is left out."""
    entry = "gpuBudgets[0]."
    parsed = operator_arguments(
        helm.template(
            f"{entry}name=team-a",
            f"{entry}namespaces={{a,b}}",
            f"{entry}labels.tier=batch",
            f"{entry}devices=16",
            "gpuBudgets[1].name=rest",
            "gpuBudgets[1].resource=amd.com/gpu",
            "gpuBudgets[1].devices=0",
        )
    )

    assert parsed.gpu_budgets == (
        Budget(name="team-a", namespaces=("a", "b"), labels={"tier": "batch"}, devices=16),
        Budget(name="rest", resource="amd.com/gpu", devices=0),
    )
    assert () == operator_arguments(helm.template()).gpu_budgets


def test_budgets_reach_the_operator_as_the_code_reads_them(helm):
    """The argument itself is what `parse_budgets` accepts."""
    manifests = helm.template("gpuBudgets[0].name=a", "gpuBudgets[0].devices=1")
    (container,) = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    (words,) = [each for each in container["args"] if each.startswith("--gpu-budgets=")]

    assert (Budget(name="a", devices=1),) == parse_budgets(words.partition("=")[2])


def test_a_pod_monitor_appears_only_when_asked_for(helm):
    """Clusters without the Prometheus operator must be able to install the chart."""
    assert [] == of_kind(helm.template(), "PodMonitor")
    manifests = helm.template("podMonitor.enabled=true", "podMonitor.labels.a=b")
    for component in COMPONENTS:
        monitor = the(manifests, "PodMonitor", component=component)
        assert monitor["metadata"]["labels"]["a"] == "b"
        assert monitor["spec"]["podMetricsEndpoints"] == [
            {"port": "http", "path": "/metrics", "interval": "30s"}
        ]


def test_the_metrics_server_is_started_with_the_words_its_command_line_knows(helm):
    """By the name of what it looks for: its Service, its Secret and its ClusterRole."""
    manifests = helm.template("namespaces={a,b}", "image.tag=v1")
    deployment = the(manifests, "Deployment", component="metrics-server")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    parsed = cli._parser().parse_args(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ("metrics-server", ("a", "b")) == (parsed.command, parsed.namespaces)
    assert {"https": parsed.port, "http": parsed.probe_port} == ports
    assert parsed.external_metrics
    assert container["image"].endswith(":v1")

    service = the(manifests, "Service", component="metrics-server")
    (port,) = service["spec"]["ports"]
    assert (443, "https") == (port["port"], port["targetPort"])
    named = (parsed.namespace, parsed.name)
    assert named == (service["metadata"]["namespace"], service["metadata"]["name"])
    assert ("ClusterRole", parsed.name) in {(m["kind"], m["metadata"]["name"]) for m in manifests}


def test_external_metrics_can_be_left_to_others(helm):
    """To KEDA, whose chart refuses to take an APIService over."""
    manifests = helm.template("metricsServer.externalMetrics=false")
    deployment = the(manifests, "Deployment", component="metrics-server")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert not cli._parser().parse_args(container["args"]).external_metrics


def test_no_pod_is_another_component_s(helm):
    """Selectors of one Deployment must not match the pods of the other."""
    manifests = helm.template()
    for component, other in (COMPONENTS, COMPONENTS[::-1]):
        selector = the(manifests, "Deployment", component=component)["spec"]["selector"]
        template = the(manifests, "Deployment", component=other)["spec"]["template"]
        assert not selector["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_without_a_metrics_server_nothing_of_it_is_left(helm):
    """It needs rights to the whole cluster, which not everybody can give."""
    manifests = helm.template("metricsServer.enabled=false")
    assert not [m for m in manifests if "metrics-server" in m["metadata"]["name"]]
