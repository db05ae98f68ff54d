"""Live objects, reduced to what decisions look at, the moment they arrive.

The reflector and the store use it. A live object may be anything: lists may be missing, numbers
may be strings, a newer API may nest differently. What cannot be read is left out; nothing here
raises (a missing optional list once brought down a rival's whole operator).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmservice.api import names
from llmservice.core.failures import ContainerState
from llmservice.core.observed import (
    AutoscalerFacts,
    Child,
    ChildRef,
    DeploymentFacts,
    JobFacts,
    PodFacts,
    RevisionFacts,
    ServiceKey,
)
from llmservice.core.ownership import owned_fields
from llmservice.core.resources.autoscaler import AUTOSCALER_KIND
from llmservice.core.resources.bench import BENCH_COMPONENT, BENCH_CONTAINER
from llmservice.core.revisions import pack_data

_JOB_LABEL = "batch.kubernetes.io/job-name"
_EPOCH = datetime.fromtimestamp(0, UTC)
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_INTERNED_LIMIT = 4096
_interned: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Identity:
    """Which object, and which version of it."""

    namespace: str
    name: str
    uid: str
    resource_version: str


@dataclass(frozen=True, slots=True)
class StoredService:
    """An LLMService as the store keeps it: JSON bytes are a fifth of the dictionaries' size."""

    uid: str
    resource_version: str
    generation: int
    spec: bytes
    status: bytes
    deleting: bool
    action: str | None = None


def identity(live: Mapping[str, Any]) -> Identity:
    """Name and version of any object."""
    metadata = mapping(live.get("metadata"))
    return Identity(
        text(metadata.get("namespace")),
        text(metadata.get("name")),
        text(metadata.get("uid")),
        text(metadata.get("resourceVersion")),
    )


def service_key(live: Mapping[str, Any]) -> ServiceKey | None:
    """The service a child or pod belongs to, or None for a stranger.

    A controlling LLMService says it; labels do for pods (a ReplicaSet controls them) and for
    children whose owner reference was taken away.
    """
    metadata = mapping(live.get("metadata"))
    namespace = text(metadata.get("namespace"))
    controller, labels = _controller(metadata), mapping(metadata.get("labels"))
    if controller.get("kind") == names.KIND:
        name = text(controller.get("name"))
    elif labels.get(names.MANAGED_BY_LABEL) == names.MANAGED_BY:
        name = text(labels.get(names.SERVICE_LABEL))
    else:
        name = ""
    return ServiceKey(namespace, name) if namespace and name else None


def stored_service(live: Mapping[str, Any]) -> StoredService:
    """The parts of an LLMService that a snapshot needs."""
    metadata = mapping(live.get("metadata"))
    who = identity(live)
    return StoredService(
        uid=who.uid,
        resource_version=who.resource_version,
        generation=number(metadata.get("generation")),
        spec=_compact(mapping(live.get("spec"))),
        status=_compact(mapping(live.get("status"))),
        deleting=metadata.get("deletionTimestamp") is not None,
        action=_annotation(metadata, names.ROLLOUT_ACTION_ANNOTATION),
    )


def child(kind: str, live: Mapping[str, Any]) -> Child:
    """A live child of ``kind``; list items lack their kind, so the caller says it."""
    metadata = mapping(live.get("metadata"))
    who = identity(live)
    controller = _controller(metadata)
    return Child(
        ref=ChildRef(kind, who.name),
        uid=who.uid,
        resource_version=who.resource_version,
        applied_hash=_annotation(metadata, names.APPLIED_HASH_ANNOTATION),
        owned_fields=_intern(owned_fields(metadata.get("managedFields"))),
        controller_uid=_text_or_none(controller.get("uid")),
        controller_kind=_text_or_none(controller.get("kind")),
        deleting=metadata.get("deletionTimestamp") is not None,
        deployment=_deployment(live) if kind == "Deployment" else None,
        revision=_revision(live) if kind == "ControllerRevision" else None,
        job=_job(live) if kind == "Job" else None,
        autoscaler=_autoscaler(live) if kind == AUTOSCALER_KIND else None,
    )


def pod(live: Mapping[str, Any]) -> PodFacts:
    """A live pod, an engine's, a router's or a bench's."""
    metadata, status = mapping(live.get("metadata")), mapping(live.get("status"))
    conditions = {text(c.get("type")): c for c in mappings(status.get("conditions"))}
    scheduled, ready = mapping(conditions.get("PodScheduled")), mapping(conditions.get("Ready"))
    labels = mapping(metadata.get("labels"))
    main = _main_container(status)
    return PodFacts(
        name=text(metadata.get("name")),
        uid=text(metadata.get("uid")),
        revision=text(labels.get(names.REVISION_LABEL)),
        ready=ready.get("status") == "True",
        created=_moment(metadata.get("creationTimestamp")),
        scheduled=scheduled.get("status") != "False",
        scheduling_message=text(scheduled.get("message")),
        phase_reason=text(status.get("reason")),
        # A kubelet that finds a pod not ready gives a reason (pkg/kubelet/status: generate.go). For
        # a node that does not answer the condition is turned over and its reason left as it was,
        # that is empty (pkg/controller/util/node: MarkPodsNotReady).
        silent=ready.get("status") == "False" and not ready.get("reason"),
        deleting=metadata.get("deletionTimestamp") is not None,
        container=None if main is None else _container_state(main),
        running="running" in mapping((main or {}).get("state")),
        scheduled_at=_since(scheduled),
        started_at=_started(mapping((main or {}).get("state"))),
        ready_since=_since(ready),
        address=text(status.get("podIP")),
        job=text(labels.get(_JOB_LABEL)),
    )


def component(live: Mapping[str, Any]) -> str:
    """What a live pod is of: a router, a bench, or else an engine."""
    labels = mapping(mapping(live.get("metadata")).get("labels"))
    found = text(labels.get(names.COMPONENT_LABEL))
    others = (names.ROUTER_COMPONENT, BENCH_COMPONENT)
    return found if found in others else names.ENGINE_COMPONENT


def _annotation(metadata: Mapping[str, Any], key: str) -> str | None:
    return _text_or_none(mapping(metadata.get("annotations")).get(key))


def _controller(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    references = mappings(metadata.get("ownerReferences"))
    return next((owner for owner in references if owner.get("controller") is True), {})


def _deployment(live: Mapping[str, Any]) -> DeploymentFacts:
    spec, status = mapping(live.get("spec")), mapping(live.get("status"))
    failed = [
        text(condition.get("message"))
        for condition in mappings(status.get("conditions"))
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True"
    ]
    return DeploymentFacts(
        replicas=number(spec.get("replicas"), default=1),
        current_replicas=number(status.get("replicas")),
        ready_replicas=number(status.get("readyReplicas")),
        failure=failed[0] if failed else None,
    )


def _revision(live: Mapping[str, Any]) -> RevisionFacts:
    return RevisionFacts(number(live.get("revision")), pack_data(dict(mapping(live.get("data")))))


def _autoscaler(live: Mapping[str, Any]) -> AutoscalerFacts:
    status = mapping(live.get("status"))
    found = {text(each.get("type")): each for each in mappings(status.get("conditions"))}
    active = mapping(found.get("ScalingActive"))
    if mapping(found.get("AbleToScale")).get("status") == "False":
        active = found["AbleToScale"]
    limited = mapping(found.get("ScalingLimited"))
    return AutoscalerFacts(
        active=active.get("status") == "True" if active else None,
        reason=text(active.get("reason")),
        message=text(active.get("message")) if active.get("status") != "True" else "",
        desired=number(status.get("desiredReplicas")),
        limited=text(limited.get("reason")) if limited.get("status") == "True" else "",
    )


def _job(live: Mapping[str, Any]) -> JobFacts:
    said = {
        text(condition.get("type")): f"{condition.get('reason')}: {condition.get('message')}"
        for condition in mappings(mapping(live.get("status")).get("conditions"))
        if condition.get("status") == "True"
    }
    return JobFacts(succeeded="Complete" in said, failed=said.get("Failed", ""))


def _main_container(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    main = (names.ENGINE_CONTAINER, BENCH_CONTAINER)
    containers = mappings(status.get("containerStatuses"))
    return next((c for c in containers if c.get("name") in main), None)


def _container_state(container: Mapping[str, Any]) -> ContainerState:
    state = mapping(container.get("state"))
    waiting = mapping(state.get("waiting"))
    # A container that runs or waits again says in lastState how its previous run ended.
    ended = mapping(state.get("terminated")) or mapping(
        mapping(container.get("lastState")).get("terminated")
    )
    return ContainerState(
        text(container.get("name")),
        container.get("ready") is True,
        number(container.get("restartCount")),
        _text_or_none(waiting.get("reason")),
        _text_or_none(waiting.get("message")),
        _text_or_none(ended.get("reason")),
        number(ended.get("exitCode")) if ended else None,
        _text_or_none(ended.get("message")),
    )


def _intern(value: str) -> str:
    """One string for equal shapes; a thousand services have a handful of them."""
    if len(_interned) >= _INTERNED_LIMIT:
        _interned.clear()
    return _interned.setdefault(value, value)


def _compact(value: Mapping[str, Any]) -> bytes:
    return _ENCODE(value).encode()


def _since(condition: Mapping[str, Any]) -> datetime | None:
    """When a condition that is true became so."""
    is_true = condition.get("status") == "True"
    return _moment_or_none(condition.get("lastTransitionTime")) if is_true else None


def _started(state: Mapping[str, Any]) -> datetime | None:
    return _moment_or_none(mapping(state.get("running")).get("startedAt"))


def _moment(value: object) -> datetime:
    return _moment_or_none(value) or _EPOCH


def _moment_or_none(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text(value))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def mapping(value: object) -> Mapping[str, Any]:
    """``value`` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: object) -> Iterator[Mapping[str, Any]]:
    """The mappings in ``value`` if it is a list."""
    items = value if isinstance(value, list) else ()
    return (item for item in items if isinstance(item, Mapping))


def text(value: object) -> str:
    """``value`` if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def number(value: object, default: int = 0) -> int:
    """``value`` if it is an integer, else ``default``."""
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
