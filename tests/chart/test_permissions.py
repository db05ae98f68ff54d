"""The rights that the chart gives the operator are those of the list in the code, to the letter."""

from collections.abc import Iterator
from typing import Any

import pytest

from llmservice.adapters import permissions

pytestmark = pytest.mark.contract

NAMESPACED = ("namespaces={a,b}",)
USER_ROLES = {"llmservice-view", "llmservice-edit"}


def roles(manifests: list[dict[str, Any]]) -> dict[tuple[str, str | None, str], Any]:
    """Rules of every role that is not meant for people, by kind, namespace and name."""
    return {
        (m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]): m["rules"]
        for m in manifests
        if m["kind"] in ("Role", "ClusterRole") and m["metadata"]["name"] not in USER_ROLES
    }


def grants(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Every (kind of binding, namespace, role) that the operator's account is bound by."""
    for manifest in manifests:
        if manifest["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            (subject,) = manifest["subjects"]
            assert subject == {
                "kind": "ServiceAccount",
                "name": "llmservice",
                "namespace": "llmservice-system",
            }
            role = manifest["roleRef"]
            yield role["kind"], manifest["metadata"].get("namespace"), role["name"]


def test_cluster_wide_the_roles_are_the_list(helm):
    """One ClusterRole for the services, one Role for the lease, nothing else, and all are bound."""
    manifests = helm.template()
    expected = permissions.roles()
    wanted = {
        ("ClusterRole", None, "llmservice"): expected["services"],
        ("Role", "llmservice-system", "llmservice-leader"): expected["leader"],
    }
    assert wanted == roles(manifests)
    assert set(wanted) == set(grants(manifests))


def test_confined_to_namespaces_there_is_no_cluster_role_at_all(helm):
    """A Role in each namespace and one for the lease; nothing that reaches further."""
    manifests = helm.template(*NAMESPACED)
    expected = permissions.roles()
    wanted = {
        ("Role", "a", "llmservice"): expected["services"],
        ("Role", "b", "llmservice"): expected["services"],
        ("Role", "llmservice-system", "llmservice-leader"): expected["leader"],
    }
    assert wanted == roles(manifests)
    assert set(wanted) == set(grants(manifests))
    assert not [m for m in manifests if m["kind"].startswith("ClusterRole")]


@pytest.mark.parametrize("settings", [(), NAMESPACED])
def test_no_role_has_a_wildcard_or_reaches_secrets(helm, settings):
    """Neither the operator's roles nor those for people."""
    rules = [
        rule
        for manifest in helm.template(*settings)
        if manifest["kind"] in ("Role", "ClusterRole")
        for rule in manifest["rules"]
    ]
    words = {word for rule in rules for field in rule.values() for word in field}
    assert rules
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
