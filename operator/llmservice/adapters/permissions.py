"""Every right the operator uses, and why: the one list the chart's roles are generated from.

Contract tests run under exactly these; a call that is not listed fails there. No wildcards, no
Secrets (tokens are referenced, never read), nothing on nodes.
"""

from dataclasses import dataclass

from llmservice.adapters.ports import Resource
from llmservice.adapters.resources import (
    CHILDREN,
    ENDPOINT_SLICE,
    EVENT,
    HTTP_ROUTE,
    LEASE,
    LLM_SERVICE,
    POD,
)


@dataclass(frozen=True, slots=True)
class Permission:
    """Verbs on one resource (``plural`` or ``plural/subresource``) of one API group."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str

    def rule(self) -> dict[str, list[str]]:
        """The rule of a Role that grants it."""
        return {
            "apiGroups": [self.group],
            "resources": [self.resource],
            "verbs": list(self.verbs),
        }


def _permission(
    resource: Resource, verbs: tuple[str, ...], why: str, subresource: str = ""
) -> Permission:
    group, _, _ = resource.api_version.rpartition("/")
    suffix = f"/{subresource}" if subresource else ""
    return Permission(group, resource.plural + suffix, verbs, why)


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


def roles() -> dict[str, list[dict[str, list[str]]]]:
    """Rules of the chart's roles, as in its ``files/permissions.yaml``."""
    return {
        "leader": [permission.rule() for permission in LEADER],
        "services": [permission.rule() for permission in SERVICES],
    }
