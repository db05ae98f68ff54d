"""What the shell has to do for one service: the output of a reconcile.

A Decision is complete: the shell adds nothing to it and leaves nothing out. Its ``apply`` holds
only children that differ from what is live, so an unchanged service costs no request.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmservice.api import names
from llmservice.core.judge.scrapes import Baselines
from llmservice.core.observed import ChildRef, Manifest
from llmservice.core.questions import Question
from llmservice.core.router.gateway import WeightPatch


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply one child.

    ``force`` is False for a child that we never saw: an object of that name which belongs to
    someone else then answers with a conflict instead of being taken over.
    """

    ref: ChildRef
    manifest: Manifest
    force: bool
    manager: str = names.CHILD_MANAGER
    """Field manager: whose fields the manifest holds."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one child, only if it still is the object we saw (``uid`` precondition)."""

    ref: ChildRef
    uid: str


@dataclass(frozen=True, slots=True)
class LogRequest:
    """Read the log of a container that crashed, once per restart, to name the cause."""

    pod: str
    pod_uid: str
    container: str
    restart_count: int
    previous: bool
    """True when the container was restarted since, so the log is that of its previous run."""


@dataclass(frozen=True, slots=True)
class MetricsRequest:
    """Ask a ready engine what its KV cache holds."""

    pod: str
    pod_uid: str
    address: str


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes event about the service."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Carry out in this order: apply, patch, delete, status, events, then look again."""

    apply: tuple[Apply, ...] = ()
    patch_route: WeightPatch | None = None
    """Weights in somebody else's HTTPRoute."""
    delete: tuple[Delete, ...] = ()
    status: Mapping[str, Any] | None = None
    """The whole status to apply, or None when the live one already says this."""
    events: tuple[Event, ...] = ()
    read_logs: tuple[LogRequest, ...] = ()
    read_metrics: MetricsRequest | None = None
    """Nothing waits for it: what came of it is in a later :class:`Observed`."""
    ask: tuple[Question, ...] = ()
    """Put to the pods at once, unless the same is open: the service is looked at again when they
    have answered. How often to ask is decided here; a pod that is not reached answers at once."""
    baselines: Mapping[str, Baselines] | None = None
    """Track hash -> baselines, to be kept in memory once the status is written; None to leave them.
    All tracks: one that is not named is forgotten."""
    most_replicas: int | None = None
    """Within the budgets of devices, to be known to the next decision of others before it is
    written; None where there is no budget."""
    requeue_after_seconds: float | None = None
