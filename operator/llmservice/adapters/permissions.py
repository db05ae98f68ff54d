"""Every right that our programs use, and why: the one list the chart's roles are generated from.

Contract tests run under exactly these; a call that is not listed fails there. No wildcards, nothing
on nodes. The operator has no right to Secrets (tokens are referenced, never read), the metrics
server to its own one only.
"""

from dataclasses import dataclass

from llmservice.adapters.api_registration import (
    API_SERVICE,
    CLUSTER_ROLE,
    CUSTOM_API_SERVICES,
    VERSION_PRIORITIES,
)
from llmservice.adapters.front_proxy import SUBJECT_ACCESS_REVIEW
from llmservice.adapters.ports import Resource
from llmservice.adapters.resources import (
    CHILDREN,
    ENDPOINT_SLICE,
    EVENT,
    HTTP_ROUTE,
    LEASE,
    LLM_SERVICE,
    POD,
    SCALED_OBJECT,
)
from llmservice.adapters.serving_certificates import SECRET
from llmservice.core.metrics_api import CUSTOM_GROUP, EXTERNAL_GROUP, METRICS

METRICS_SERVER = "METRICS-SERVER"
"""Stands for the name that the release gives to its metrics server and all that belongs to it."""


@dataclass(frozen=True, slots=True)
class Permission:
    """Verbs on one resource (``plural`` or ``plural/subresource``) of one API group."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str
    names: tuple[str, ...] = ()
    """Of objects; all when empty."""

    def rule(self) -> dict[str, list[str]]:
        """The rule of a Role that grants it."""
        rule = {"apiGroups": [self.group], "resources": [self.resource]}
        if self.names:
            rule["resourceNames"] = list(self.names)
        return {**rule, "verbs": list(self.verbs)}


def _permission(
    resource: Resource,
    verbs: tuple[str, ...],
    why: str,
    subresource: str = "",
    names: tuple[str, ...] = (),
) -> Permission:
    group, _, _ = resource.api_version.rpartition("/")
    suffix = f"/{subresource}" if subresource else ""
    return Permission(group, resource.plural + suffix, verbs, why, names)


_CHILD_VERBS = ("get", "list", "watch", "create", "patch", "delete")
_CHILD_WHY = (
    "list and watch see drift; server-side apply needs create and patch; get looks at an object "
    "that unexpectedly bears a child's name; delete for old revisions, and for a router that is no "
    "longer asked for"
)

SERVICES: tuple[Permission, ...] = (
    _permission(LLM_SERVICE, ("get", "list", "watch"), "what users ask for; never written by us"),
    _permission(LLM_SERVICE, ("patch",), "what came of it", "status"),
    _permission(
        LLM_SERVICE,
        ("update",),
        "lets children block the owner's deletion where OwnerReferencesPermissionEnforcement is on",
        "finalizers",
    ),
    *(_permission(resource, _CHILD_VERBS, _CHILD_WHY) for resource in CHILDREN.values()),
    _permission(
        HTTP_ROUTE,
        ("get", "create", "patch", "delete"),
        "for traffic.router Gateway: weights in a route of the user's, or a route of our own",
    ),
    _permission(
        SCALED_OBJECT,
        ("get", "create", "patch", "delete"),
        "for autoscaling.provider KEDA",
    ),
    _permission(
        ENDPOINT_SLICE,
        ("list", "watch"),
        "never used by the operator itself: a router finds its engines by them, and nobody can "
        "grant a right that he lacks",
    ),
    _permission(POD, ("list", "watch"), "readiness, and why a pod does not serve"),
    _permission(POD, ("get",), "the last words of an engine that crashed", "log"),
    _permission(EVENT, ("create",), "what changed, for kubectl describe"),
)
"""Needed where the LLMServices are: in each namespace served, or cluster-wide."""

LEADER: tuple[Permission, ...] = (
    _permission(LEASE, ("get", "create", "update"), "one instance at a time"),
)
"""Needed in the operator's own namespace."""

METRICS_API: tuple[Permission, ...] = (
    _permission(
        API_SERVICE,
        ("get",),
        "where HPAs miss their metrics, it says whose the API is",
        names=CUSTOM_API_SERVICES,
    ),
)
"""Needed by the operator in the whole cluster; only where there is a metrics server."""

METRICS_SERVER_PODS: tuple[Permission, ...] = (
    _permission(POD, ("list", "watch"), "which engines and routers to ask, and where"),
)
"""Needed by the metrics server where the LLMServices are."""

METRICS_SERVER_CLUSTER: tuple[Permission, ...] = (
    _permission(SUBJECT_ACCESS_REVIEW, ("create",), "whether he who asks for a metric may read it"),
    _permission(
        API_SERVICE,
        ("get", "create", "patch"),
        "registers itself under these names, where nobody else has",
        names=tuple(VERSION_PRIORITIES),
    ),
    _permission(
        CLUSTER_ROLE,
        ("get",),
        "the uid of the object whose end takes the registration along",
        names=(METRICS_SERVER,),
    ),
)
"""Needed by the metrics server in the whole cluster."""

METRICS_SERVER_SECRET: tuple[Permission, ...] = (
    _permission(SECRET, ("create",), "its certificates; a right to create can name no object"),
    _permission(SECRET, ("get", "update"), "its certificates", names=(METRICS_SERVER,)),
)
"""Needed by the metrics server in its own namespace."""

METRICS_READER: tuple[Permission, ...] = (
    *(Permission(CUSTOM_GROUP, f"pods/{each}", ("get",), "HPAs on pods") for each in METRICS),
    # The metric is the resource there, and what bears no name is listed.
    *(Permission(EXTERNAL_GROUP, each, ("list",), "HPAs on a sum") for each in METRICS),
)
"""What the cluster's HPA controller needs."""


def roles() -> dict[str, list[dict[str, list[str]]]]:
    """Rules of the chart's roles, as in its ``files/permissions.yaml``."""
    lists = {
        "leader": LEADER,
        "services": SERVICES,
        "metricsApi": METRICS_API,
        "metricsServerPods": METRICS_SERVER_PODS,
        "metricsServerCluster": METRICS_SERVER_CLUSTER,
        "metricsServerSecret": METRICS_SERVER_SECRET,
        "metricsReader": METRICS_READER,
    }
    return {name: [permission.rule() for permission in each] for name, each in lists.items()}
