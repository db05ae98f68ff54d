"""The status: what is, what is wrong, and what to do, in one object.

Conditions follow kstatus (https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus):
``Ready`` always, ``Reconciling`` and ``Stalled`` only while true. Ours beside them: ``Available``
(somebody answers requests, whatever the newest spec does) and ``RolloutCapacity`` (which way round
a rollout goes, and why). A timestamp moves only when its condition's status flips, so an
unchanged service is never written.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from llmservice.core.canary.state import Hold, Phase, load_rollout
from llmservice.core.decision import Event
from llmservice.core.observed import Observed


class ConditionType(StrEnum):
    """Conditions of an LLMService."""

    Ready = "Ready"  # the newest spec runs and serves
    Available = "Available"  # at least one pod answers requests
    Reconciling = "Reconciling"  # present only while something is under way
    Stalled = "Stalled"  # present only while nothing but a change by a person helps
    RolloutCapacity = "RolloutCapacity"  # during a rollout: is there room, which way round, why
    AutoscalingReady = "AutoscalingReady"  # with spec.autoscaling: does its autoscaler decide


class Reason(StrEnum):
    """Reasons of our own conditions; a failing pod adds those of ``core.failures``."""

    WaitingForRoom = "WaitingForRoom"  # a rollout found no room, and stops nothing (yet)
    Serving = "Serving"  # the newest spec runs with all its replicas
    ScaledToZero = "ScaledToZero"  # zero replicas are wanted: so says the spec, or nobody asks
    Loading = "Loading"  # pods exist and load the model
    RollingOut = "RollingOut"  # the newest revision replaces another one
    ScalingUp = "ScalingUp"  # fewer pods are ready than asked for
    NoReadyPods = "NoReadyPods"  # nobody answers requests
    PodsReady = "PodsReady"  # somebody answers requests
    InvalidSpec = "InvalidSpec"  # the spec breaks a rule or names what the engine lacks
    InfeasiblePlan = "InfeasiblePlan"  # the engine would load its weights and die
    ChildConflict = "ChildConflict"  # an object of a child's name belongs to someone else
    ChildRefused = "ChildRefused"  # the API server refuses a child
    RolloutAborted = "RolloutAborted"  # the newest revision was turned down, the old one serves
    WaitingForBudget = "WaitingForBudget"  # others hold the devices that the autoscaler would like
    MetricsAPITaken = "MetricsAPITaken"  # another adapter serves the metrics that HPAs ask for
    MetricsAPIMissing = "MetricsAPIMissing"  # nobody serves them
    SizeKept = "SizeKept"  # a rollout counts the pods, the autoscaler goes on after it
    PodsRefused = "PodsRefused"  # a quota or an admission policy refuses the pods


_AT_ZERO = "zero replicas are wanted"
_UNDER_WAY = (Reason.Loading, Reason.RollingOut)
_ALARMING = (Phase.Aborting, Phase.Aborted, Phase.Superseding)
_PATIENT = (Hold.Inconclusive, Hold.GateWait)
CANARY_ACTION = "Canary"
"""Action of the events that tell of a canary rollout's transitions."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the newest spec does not run, in words a person can act on."""

    reason: str
    message: str
    stalled: bool
    """True when only a change by a person helps."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the service stands; what :func:`build_conditions` is made from."""

    wanted: int
    ready: int
    rolled_out: bool
    """The newest revision has all its pods ready and is alone."""
    rolling: bool
    """Another revision still has pods."""
    problem: Problem | None
    capacity: tuple[str, str, str] | None = None
    """Status, reason and message of RolloutCapacity."""
    rollout: str = ""
    """Where a canary rollout is, in a sentence."""
    autoscaler: tuple[str, str, str] | None = None
    """Status, reason and message of AutoscalingReady."""


def build_conditions(observed: Observed, progress: Progress) -> list[dict[str, Any]]:
    """All conditions of a service; transition times are kept where the status did not flip."""
    ready = _ready(progress)
    conditions = [
        (ConditionType.Ready, *ready),
        (ConditionType.Available, *_available(progress)),
    ]
    problem = progress.problem
    if problem is not None and problem.stalled:
        conditions.append((ConditionType.Stalled, "True", problem.reason, problem.message))
    elif not progress.rolled_out or progress.ready < progress.wanted:
        conditions.append((ConditionType.Reconciling, "True", ready[1], ready[2]))
    if progress.capacity is not None:
        conditions.append((ConditionType.RolloutCapacity, *progress.capacity))
    if progress.autoscaler is not None:
        conditions.append((ConditionType.AutoscalingReady, *progress.autoscaler))
    previous = {c.get("type"): c for c in observed.service.status.get("conditions", ())}
    return [_condition(observed, previous.get(c[0]), *c) for c in conditions]


def _ready(progress: Progress) -> tuple[str, str, str]:
    counts = f"{progress.ready} of {progress.wanted} replicas are ready"
    if progress.problem is not None:
        serving = "; pods of the earlier spec still serve" if progress.ready else ""
        return "False", progress.problem.reason, progress.problem.message + serving
    if progress.wanted == 0:
        return "True", Reason.ScaledToZero, _AT_ZERO
    if progress.rolling:
        status = "True" if progress.ready else "False"
        what = progress.rollout or "the newest revision is being rolled out"
        return status, Reason.RollingOut, f"{what}; {counts}"
    if progress.ready == 0:
        return "False", Reason.Loading, f"the model is loading; {counts}"
    if progress.ready < progress.wanted or not progress.rolled_out:
        return "True", Reason.ScalingUp, counts
    return "True", Reason.Serving, counts


def _available(progress: Progress) -> tuple[str, str, str]:
    if progress.ready:
        return "True", Reason.PodsReady, f"ready pods: {progress.ready}"
    if progress.wanted == 0:
        return "False", Reason.ScaledToZero, _AT_ZERO
    return "False", Reason.NoReadyPods, "no pod answers requests"


def _condition(
    observed: Observed,
    previous: Mapping[str, Any] | None,
    type_: str,
    status: str,
    reason: str,
    message: str,
) -> dict[str, Any]:
    since = format_time(observed.now)
    if previous is not None and previous.get("status") == status:
        since = previous.get("lastTransitionTime", since)
    return {
        "type": str(type_),
        "status": status,
        "reason": str(reason),
        "message": message[:4096],
        "lastTransitionTime": since,
        "observedGeneration": observed.service.generation,
    }


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as the API server writes times."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def phase(progress: Progress) -> str:
    """One word for people."""
    if progress.problem is not None:
        return "Degraded" if progress.ready else "Failed" if progress.problem.stalled else "Pending"
    if progress.wanted == 0:
        return "Idle"
    if progress.rolling:
        return "RollingOut"
    if progress.ready == 0:
        return "Loading"
    return "Ready"


def status_events(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Event, ...]:
    """Events for what changed between two statuses; none for what stayed."""
    events = []
    before, after = old.get("updatedRevision"), new.get("updatedRevision")
    if before and after and before != after:
        message = f"Rolling out revision {after} in place of {before}"
        events.append(Event("Normal", "RolloutStarted", "Rollout", message))
    before, after = old.get("stableRevision"), new.get("stableRevision")
    if before and after and before != after:
        message = f"Revision {after} serves; {before} is removed"
        events.append(Event("Normal", "RolloutCompleted", "Rollout", message))
    events.extend(_canary_events(old.get("rollout") or {}, new.get("rollout") or {}))
    events.extend(_ready_events(_by_type(old), _by_type(new)))
    return tuple(events)


def _canary_events(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Event]:
    """One for each transition of a canary rollout, and one when it begins to wait."""
    before, after = load_rollout(old.get("state")), load_rollout(new.get("state"))
    if before is None or after is None:
        return
    if after.reason and (before.phase, before.since) != (after.phase, after.since):
        alarming = after.phase in _ALARMING
        message = f"{after.phase}: {after.message}"
        yield Event("Warning" if alarming else "Normal", after.reason, CANARY_ACTION, message)
    if after.hold and after.hold is not before.hold:
        patient = after.hold in _PATIENT
        kind: Literal["Normal", "Warning"] = "Normal" if patient else "Warning"
        yield Event(kind, after.hold, CANARY_ACTION, after.hold_message)


def _ready_events(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> Sequence[Event]:
    before, after = old.get("Ready", {}), new["Ready"]
    capacity = new.get("RolloutCapacity", {})
    events = []
    if capacity.get("reason") == "Replace" != old.get("RolloutCapacity", {}).get("reason"):
        events.append(Event("Normal", "ReplacingPods", "Rollout", capacity["message"]))
    was_failing = before.get("status") == "False" and before.get("reason") not in _UNDER_WAY
    is_failing = after["status"] == "False" and after["reason"] not in _UNDER_WAY
    if is_failing and before.get("reason") != after["reason"]:
        events.append(Event("Warning", after["reason"], "Reconcile", after["message"]))
    elif was_failing and after["status"] == "True":
        events.append(Event("Normal", "Recovered", "Reconcile", after["message"]))
    return events


def _by_type(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {c["type"]: c for c in status.get("conditions", ())}
