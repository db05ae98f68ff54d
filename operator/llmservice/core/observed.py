"""What the operator knows when it decides: one frozen snapshot of a service and its children.

The adapters fill it from the watch caches (never by reading the API for one service); only
:mod:`llmservice.core.reconcile` and what it calls read it. A live object is kept as the few
facts a decision needs: a Deployment of 5 KB becomes about 300 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from llmservice.core.autoscaling.budget import Claim
from llmservice.core.canary.queue import Place
from llmservice.core.failures import ContainerState
from llmservice.core.judge.scrapes import Baselines
from llmservice.core.questions import Answer, Topic

Manifest = dict[str, Any]
"""A Kubernetes object as it goes over the wire."""


@dataclass(frozen=True, slots=True, order=True)
class ChildRef:
    """Identity of a child within its service's namespace."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """Identity of an LLMService, and the key of the work queue."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServiceObject:
    """The LLMService as the API server holds it; ``spec`` and ``status`` unparsed."""

    key: ServiceKey
    uid: str
    generation: int
    spec: Mapping[str, Any]
    status: Mapping[str, Any]
    deleting: bool = False
    action: str | None = None
    """What a person asks of a rollout, unparsed; a change of it leaves ``generation`` as it is."""


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """The part of a live Deployment that a rollout looks at."""

    replicas: int
    """``spec.replicas``: what was asked for."""
    current_replicas: int
    """``status.replicas``: pods that exist, terminating ones not counted."""
    ready_replicas: int
    failure: str | None = None
    """Message of the ``ReplicaFailure`` condition (quota, admission), if it is True."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """How a Job has ended, if it has."""

    succeeded: bool = False
    failed: str = ""
    """Reason and message of the end; empty while it has not failed."""

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.succeeded or bool(self.failed)


@dataclass(frozen=True, slots=True)
class AutoscalerFacts:
    """What a live HPA says of itself; reason and message are those of its condition."""

    active: bool | None = None
    """Whether it can work out a number of replicas; None before it tried."""
    reason: str = ""
    message: str = ""
    desired: int = 0
    """Replicas that it asked for at its last look."""
    limited: str = ""
    """``TooManyReplicas`` or ``TooFewReplicas`` while a bound keeps it from going on."""


@dataclass(frozen=True, slots=True)
class RevisionFacts:
    """A stored revision: its number and its frozen pod template as compact JSON."""

    number: int
    data: bytes
    """zlib-compressed JSON of ``ControllerRevision.data``."""


@dataclass(frozen=True, slots=True)
class Child:
    """One live child.

    ``owned_fields`` is the JSON of the ``fieldsV1`` tree that our field manager owns, with the
    owner reference's uid masked so that equal shapes are one shared string. A hand-edited field
    leaves it, which is how drift is seen without keeping the object
    (:mod:`llmservice.core.ownership`).
    """

    ref: ChildRef
    uid: str
    resource_version: str
    applied_hash: str | None
    owned_fields: str
    controller_uid: str | None
    controller_kind: str | None = None
    """Kind of the controlling owner; not an LLMService when somebody else controls the child."""
    deleting: bool = False
    """It is going away: it has a deletion timestamp, or its owner is gone (garbage collection)."""
    deployment: DeploymentFacts | None = None
    revision: RevisionFacts | None = None
    job: JobFacts | None = None
    autoscaler: AutoscalerFacts | None = None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """The part of a pod that tells whether it serves, and if not, why.

    Of a router's pod, ``container`` and ``running`` tell nothing: it has no engine.
    """

    name: str
    uid: str
    revision: str
    ready: bool
    created: datetime
    scheduled: bool = True
    scheduling_message: str = ""
    """The scheduler's message while ``scheduled`` is False."""
    phase_reason: str = ""
    """``status.reason`` of a failed pod, for instance ``Evicted``."""
    silent: bool = False
    """It is not ready since its node does not answer; its kubelet has found nothing wrong."""
    deleting: bool = False
    container: ContainerState | None = None
    """State of the engine's or bench's container; None before the kubelet reported one."""
    running: bool = False
    """It runs now; if it ended before, ``container`` tells of that end, and its log is that of
    the previous run."""
    scheduled_at: datetime | None = None
    started_at: datetime | None = None
    """Since when the engine's container runs."""
    ready_since: datetime | None = None
    address: str = ""
    """Its IP address, of either family; empty before it has one."""
    job: str = ""
    """Name of the Job that it is of."""

    @property
    def is_reachable(self) -> bool:
        """Whether it serves, and can be asked at its address."""
        return self.ready and not self.deleting and bool(self.address)


@dataclass(frozen=True, slots=True)
class CrashLog:
    """The tail of the log of a container that ended, read once per restart."""

    restart_count: int
    text: str


@dataclass(frozen=True, slots=True)
class KVCacheSize:
    """What an engine says that its KV cache holds; the sum over its data-parallel ranks."""

    tokens: int
    concurrency: float
    """Requests of the greatest length at once."""


@dataclass(frozen=True, slots=True)
class MetricsRead:
    """How often a pod was asked for its metrics, and what came of it."""

    tries: int
    at: datetime
    """End of the last try."""
    size: KVCacheSize | None
    """None when the pod did not answer, or its metrics do not tell."""


class ApplyErrorKind(StrEnum):
    """Why the API server did not take a child."""

    Conflict = "Conflict"  # exists and its fields belong to someone else
    Invalid = "Invalid"  # refused by validation or an admission policy
    Forbidden = "Forbidden"  # quota, or our own Role lacks the verb


@dataclass(frozen=True, slots=True)
class ApplyError:
    """A child that could not be written, with the API server's own words."""

    ref: ChildRef
    kind: ApplyErrorKind
    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything :func:`llmservice.core.reconcile.reconcile` may look at."""

    service: ServiceObject
    now: datetime
    children: Mapping[ChildRef, Child] = field(default_factory=dict)
    pods: tuple[PodFacts, ...] = ()
    """Engine pods."""
    crash_logs: Mapping[str, CrashLog] = field(default_factory=dict)
    """Pod uid -> the log of its last crash that was read."""
    metrics_reads: Mapping[str, MetricsRead] = field(default_factory=dict)
    """Pod uid -> what came of reading its metrics."""
    apply_errors: tuple[ApplyError, ...] = ()
    """What went wrong when this very decision was last carried out."""
    routers: tuple[PodFacts, ...] = ()
    """Router pods; none of them is in ``pods``."""
    bench_pods: tuple[PodFacts, ...] = ()
    """Pods of bench Jobs; none of them is in ``pods``."""
    answers: Mapping[Topic, Answer] = field(default_factory=dict)
    """Topic of a question -> the last answer: ``answers.get((ReadEngine, pod.uid))``."""
    baselines: Mapping[str, Baselines] = field(default_factory=dict)
    """Track hash -> what :attr:`Decision.baselines` last said of it; empty for a new leader."""
    other_rollouts: tuple[Place, ...] = ()
    """Of other services, those under way."""
    claim: Claim | None = None
    """On the devices of budgets; None where there are no budgets."""
    other_claims: tuple[Claim, ...] = ()
