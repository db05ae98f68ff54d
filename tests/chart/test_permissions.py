"""The rights that the chart gives are those of the lists in the code, to the letter."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llmservice.adapters import permissions

pytestmark = pytest.mark.contract

SYSTEM = "llmservice-system"
NAMESPACED = ("namespaces={a,b}",)
USER_ROLES = {"llmservice-view", "llmservice-edit"}
OPERATOR = (SYSTEM, "llmservice")
METRICS_SERVER = (SYSTEM, "llmservice-metrics-server")
HPA = ("kube-system", "horizontal-pod-autoscaler")
PROXY_READER = ("Role", "kube-system", "extension-apiserver-authentication-reader")
"""A role that Kubernetes brings."""

Role = tuple[str, str | None, str]
"""Kind, namespace, name."""


def roles(manifests: list[dict[str, Any]]) -> dict[Role, Any]:
    """Rules of every role that is not meant for people."""
    return {
        (m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]): m["rules"]
        for m in manifests
        if m["kind"] in ("Role", "ClusterRole") and m["metadata"]["name"] not in USER_ROLES
    }


def grants(manifests: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], Role]]:
    """Every account (namespace, name) with a role that it is bound to."""
    for manifest in manifests:
        if manifest["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            (subject,) = manifest["subjects"]
            assert subject["kind"] == "ServiceAccount"
            role = manifest["roleRef"]
            found = role["kind"], manifest["metadata"].get("namespace"), role["name"]
            yield (subject["namespace"], subject["name"]), found


def granted(manifests: list[dict[str, Any]], account: tuple[str, str]) -> set[Role]:
    return {role for subject, role in grants(manifests) if subject == account}


def expected() -> dict[str, Any]:
    """The lists of the code, with the release's names."""
    lists = json.dumps(permissions.roles())
    found: dict[str, Any] = json.loads(lists.replace(permissions.METRICS_SERVER, METRICS_SERVER[1]))
    return found


def of_operator(namespaces: tuple[str, ...]) -> dict[Role, Any]:
    """One role for the services wherever they are, one for the lease."""
    wanted: dict[Role, Any] = {("Role", SYSTEM, "llmservice-leader"): expected()["leader"]}
    for namespace in namespaces:
        wanted["Role", namespace, "llmservice"] = expected()["services"]
    if not namespaces:
        wanted["ClusterRole", None, "llmservice"] = expected()["services"]
    return wanted


def of_lookout() -> dict[Role, Any]:
    """The operator may look at what its metrics server may register."""
    return {("ClusterRole", None, "llmservice-metrics-api"): expected()["metricsApi"]}


def of_metrics_server(namespaces: tuple[str, ...]) -> dict[Role, Any]:
    """Pods wherever services are, its Secret, and what the whole cluster shares."""
    name, rules = METRICS_SERVER[1], expected()
    pods, cluster_wide = rules["metricsServerPods"], rules["metricsServerCluster"]
    wanted: dict[Role, Any] = {("Role", SYSTEM, name): rules["metricsServerSecret"]}
    for namespace in namespaces:
        wanted["Role", namespace, f"{name}-pods"] = pods
    wanted["ClusterRole", None, name] = cluster_wide if namespaces else cluster_wide + pods
    return wanted


@pytest.mark.parametrize(
    ("settings", "namespaces"), [((), ()), (NAMESPACED, ("a", "b"))], ids=["all", "a and b"]
)
def test_the_roles_are_the_lists_and_all_are_bound(helm, settings, namespaces):
    """To the operator, the metrics server and the HPA controller, and nothing else."""
    manifests = helm.template(*settings)
    operator, server = of_operator(namespaces) | of_lookout(), of_metrics_server(namespaces)
    reader = ("ClusterRole", None, "llmservice-metrics-server-reader")
    assert {**operator, **server, reader: expected()["metricsReader"]} == roles(manifests)
    assert set(operator) == granted(manifests, OPERATOR)
    assert {*server, PROXY_READER} == granted(manifests, METRICS_SERVER)
    assert {reader} == granted(manifests, HPA)
    assert {OPERATOR, METRICS_SERVER, HPA} == {account for account, _ in grants(manifests)}


def test_without_a_metrics_server_a_confined_release_has_no_cluster_role(helm):
    """Nothing that reaches further than its namespaces."""
    manifests = helm.template(*NAMESPACED, "metricsServer.enabled=false")
    assert of_operator(("a", "b")) == roles(manifests)
    assert not [m for m in manifests if m["kind"].startswith("ClusterRole")]


@pytest.mark.parametrize("settings", [(), NAMESPACED])
def test_no_role_has_a_wildcard_or_reaches_secrets(helm, settings):
    """But for the one Secret of the metrics server; neither have the roles for people."""
    rules = [
        rule
        for manifest in helm.template(*settings)
        if manifest["kind"] in ("Role", "ClusterRole")
        for rule in manifest["rules"]
    ]
    secrets = [rule for rule in rules if rule["resources"] == ["secrets"]]
    assert expected()["metricsServerSecret"] == secrets
    assert all(
        r["verbs"] == ["create"] or r["resourceNames"] == [METRICS_SERVER[1]] for r in secrets
    )
    others = [rule for rule in rules if rule not in secrets]
    words = {word for rule in others for field in rule.values() for word in field}
    assert others
    assert not [word for word in words if "*" in word]
    assert words.isdisjoint({"secrets", "pods/exec", "pods/attach", "escalate", "bind"})


def test_people_get_services_by_the_cluster_roles_they_have(helm):
    """`view` may look, `edit` and `admin` may change; nobody may write the status."""
    people = {m["metadata"]["name"]: m for m in helm.template() if m["kind"] == "ClusterRole"}
    view, edit = people["llmservice-view"], people["llmservice-edit"]
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]
    written = {r for rule in edit["rules"] for r in rule["resources"]}
    assert {"llmservices", "llmservices/scale"} == written
    unwanted = helm.template("rbac.aggregateToDefaultRoles=false")
    assert USER_ROLES.isdisjoint(m["metadata"]["name"] for m in unwanted)
