"""Installs `charts/llmservice` with the images of the working tree, and takes it out again."""

import json

from e2e.cluster.paths import REPOSITORY
from e2e.cluster.progress import ClusterError
from e2e.kubectl import JSON, Kubectl

CHART = REPOSITORY / "charts" / "llmservice"
RELEASE = "llmservice"
NAMESPACE = "llmservice-system"
OPERATOR = f"deployment/{RELEASE}"
CRD = "crd/llmservices.llmservice.dev"

_OURS = {"llmservice.dev/made-by": "e2e"}
_WAIT = "--timeout=120s"


def install(kubectl: Kubectl, operator: str, router: str) -> None:
    """Install or upgrade the release; returns when the operator's pods are ready.

    Args:
        kubectl: the cluster.
        operator: the operator's image with its tag, as the nodes know it.
        router: the same of the router's image.
    """
    found = kubectl.find(f"namespace/{NAMESPACE}")
    if found is not None and not _is_ours(found):
        raise ClusterError(
            f"the cluster has a namespace {NAMESPACE} that this did not make; it is left alone, so"
            " use another cluster, or remove it"
        )
    kubectl.apply(restricted_namespace(NAMESPACE))
    there = kubectl.within(NAMESPACE)
    try:
        _upgrade(there, {"image": operator, "router.image": router})
    except ClusterError as error:
        raise ClusterError(f"{error}\n{describe_operator(there)}") from error


def _upgrade(kubectl: Kubectl, images: dict[str, str]) -> None:
    settings: list[str] = []
    for value, image in images.items():
        repository, _, tag = image.rpartition(":")
        settings += [f"--set-string={value}.repository={repository}"]
        settings += [f"--set-string={value}.tag={tag}"]
    kubectl.call_helm("upgrade", "--install", RELEASE, str(CHART), "--wait", _WAIT, *settings)


def set_value(kubectl: Kubectl, name: str, value: object) -> None:
    """Upgrade the installed release with another value; returns when its pods are ready."""
    setting = f"--set-json={name}={json.dumps(value)}"
    words = ("upgrade", RELEASE, str(CHART), "--reuse-values", "--wait", _WAIT, setting)
    kubectl.within(NAMESPACE).call_helm(*words)


def describe_operator(kubectl: Kubectl) -> str:
    """The operator's pods and the end of their logs, for an error message."""
    there = kubectl.within(NAMESPACE)
    logs = ("logs", OPERATOR, "--all-pods", "--prefix", "--tail=40")
    return f"{there('get', 'pods', '-o=wide')}\n{there(*logs)}"


def uninstall(kubectl: Kubectl) -> None:
    """Remove the release and its namespace; the CRD too, unless somebody's services need it."""
    there = kubectl.within(NAMESPACE)
    found = there.find(f"namespace/{NAMESPACE}")
    if found is None or not _is_ours(found):
        return
    there.call_helm("uninstall", RELEASE, "--ignore-not-found", "--wait", _WAIT)
    there("delete", "namespace", NAMESPACE, "--timeout=120s")
    try:
        in_use = bool(kubectl("get", "llmservices", "--all-namespaces", "-o=name").strip())
    except ClusterError:
        return  # the kind is unknown: its CRD is gone already
    if not in_use:
        kubectl("delete", CRD, "--ignore-not-found")


def restricted_namespace(name: str) -> JSON:
    """A namespace of ours that admits only pods of the restricted Pod Security Standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted", **_OURS}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _is_ours(namespace: JSON) -> bool:
    labels = namespace["metadata"].get("labels", {})
    return bool(_OURS.items() <= labels.items())
