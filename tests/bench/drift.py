"""Hand edits and deletions of children, and how long until the operator has undone each."""

import http.client
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from e2e.cluster.api import Api, RefusedError
from e2e.cluster.processes import wait_until
from llmservice.core.observed import Manifest
from tests.bench.audit import AuditLog, Follower, Request

ADMIN = "admin"
_BACK_SECONDS = 30
_PREFIXES = {
    "ServiceAccount": "/api/v1",
    "Service": "/api/v1",
    "ControllerRevision": "/apis/apps/v1",
    "Deployment": "/apis/apps/v1",
    "PodDisruptionBudget": "/apis/policy/v1",
}
_PLURALS = {
    "ServiceAccount": "serviceaccounts",
    "Service": "services",
    "ControllerRevision": "controllerrevisions",
    "Deployment": "deployments",
    "PodDisruptionBudget": "poddisruptionbudgets",
}


@dataclass(frozen=True, slots=True)
class Edit:
    """A field of a child, set to something else by hand."""

    kind: str
    path: tuple[str | int, ...]
    value: Any


_ENGINE: tuple[str | int, ...] = ("spec", "template", "spec", "containers", 0)
EDITS = (
    Edit("Deployment", ("spec", "replicas"), 0),
    Edit("Deployment", ("spec", "progressDeadlineSeconds"), 7),
    Edit("Deployment", (*_ENGINE, "image"), "example.com/other:v1"),
    Edit("Deployment", (*_ENGINE, "args"), ["serve", "something-else"]),
    Edit("Deployment", (*_ENGINE, "env", 0, "value"), "/elsewhere"),
    Edit("Deployment", (*_ENGINE, "resources", "requests", "cpu"), "20m"),
    Edit("Deployment", (*_ENGINE, "readinessProbe", "periodSeconds"), 60),
    Edit("Deployment", ("metadata", "ownerReferences"), []),
    Edit("Service", ("spec", "ports", 0, "port"), 81),
    Edit("Service", ("spec", "selector"), {"app": "other"}),
    Edit("PodDisruptionBudget", ("spec", "maxUnavailable"), 0),
    Edit("ServiceAccount", ("automountServiceAccountToken",), True),
    Edit("ControllerRevision", ("revision",), 99),
    Edit("ControllerRevision", ("metadata", "labels"), {}),
)
"""At least one field of every kind of child; ``data`` of a ControllerRevision is immutable."""


@dataclass(frozen=True, slots=True)
class Undone:
    """One disturbance and its end."""

    what: str
    seconds: float | None
    """From the API server's answer to us to its answer to the operator; None: never put back."""


def undo_times(
    api: Api, log: AuditLog, user: str, children: list[Manifest], settle: Callable[[], None]
) -> list[Undone]:
    """Disturb the children of one service, one after another, as an administrator.

    Args:
        api: the administrator.
        log: where the answers are read.
        user: who is to answer.
        children: of one service.
        settle: called before each, until nothing is left to do from the one before.
    """
    first_of = {child["kind"]: child for child in reversed(children)}
    undone = []
    for edit in EDITS:
        settle()
        undone.append(_edited(api, log, user, first_of[edit.kind], edit))
    for child in children:
        settle()
        undone.append(_deleted(api, log, user, child))
    return undone


def _edited(api: Api, log: AuditLog, user: str, child: Manifest, edit: Edit) -> Undone:
    path = path_of(child)
    before = api.get(path)
    original = _value(before, edit.path)
    requests = log.follow(ADMIN, user)
    patch = [{"op": "replace", "path": _pointer(edit.path), "value": edit.value}]
    api.call("PATCH", path, patch, {"Content-Type": "application/json-patch+json"})  # type: ignore[arg-type]
    what = f"{edit.kind} {'.'.join(map(str, edit.path))}"
    seconds = _answered(api, requests, user, child, lambda live: _same(live, edit.path, original))
    return Undone(what, seconds)


def _deleted(api: Api, log: AuditLog, user: str, child: Manifest) -> Undone:
    path = path_of(child)
    uid = api.get(path)["metadata"]["uid"]
    requests = log.follow(ADMIN, user)
    api.call("DELETE", path)
    seconds = _answered(api, requests, user, child, lambda live: live["metadata"]["uid"] != uid)
    return Undone(f"{child['kind']} deleted", seconds)


def _answered(
    api: Api,
    requests: Follower,
    user: str,
    child: Manifest,
    is_back: Callable[[Manifest], bool],
) -> float | None:
    """Seconds from our write to the operator's answer; None when the child is not back in time."""
    resource = _PLURALS[child["kind"]]

    def writes(who: str) -> list[Request]:
        return [
            request
            for request in requests.poll()
            if (request.user, request.resource, request.name)
            == (who, resource, child["metadata"]["name"])
            and request.verb in ("delete", "patch")
            and not request.failed
        ]

    def done() -> bool:
        try:
            return bool(writes(user)) and is_back(api.get(path_of(child)))
        except RefusedError as refused:
            if refused.status != http.client.NOT_FOUND:
                raise
            return False

    try:
        wait_until(done, what=f"{child['kind']} to be put back", seconds=_BACK_SECONDS)
    except RuntimeError:
        return None
    return writes(user)[0].completed - writes(ADMIN)[0].completed


def path_of(child: Manifest) -> str:
    """Where the API server keeps a child."""
    metadata, kind = child["metadata"], child["kind"]
    return (
        f"{_PREFIXES[kind]}/namespaces/{metadata['namespace']}/{_PLURALS[kind]}/{metadata['name']}"
    )


def _value(live: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        live = live[step]
    return live


def _same(live: Any, path: tuple[str | int, ...], original: Any) -> bool:
    try:
        return json.dumps(_value(live, path)) == json.dumps(original)
    except (KeyError, IndexError):
        return False


def _pointer(path: tuple[str | int, ...]) -> str:
    return "".join(f"/{step}" for step in path)
