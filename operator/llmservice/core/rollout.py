"""How many pods each revision gets while one replaces another.

The arithmetic is that of the Deployment controller's rolling update
(kubernetes/kubernetes:pkg/controller/deployment/rolling.go), over one Deployment per revision
instead of one ReplicaSet. It never asks for more than ``wanted + surge`` pods and never takes a
ready pod away below ``wanted - unavailable``.

Whether there is room for a surge is asked of the scheduler, not simulated: the new revision's
first pod is created, and if the scheduler finds no room for it while the old pods hold just what
it needs, an old pod makes room. That honors taints, affinities, quotas and cluster autoscalers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from llmservice.api.v1alpha1 import RolloutSpec
from llmservice.core.observed import DeploymentFacts

SCHEDULING_GRACE = timedelta(seconds=30)
"""A cluster autoscaler gets this long to answer before a running pod is given up for room."""


class Capacity(StrEnum):
    """Which way round a rollout goes."""

    Surge = "Surge"
    Replace = "Replace"


@dataclass(frozen=True, slots=True)
class NoRoom:
    """The scheduler (or a quota) leaves a pod of the new revision without a place."""

    since: datetime
    """Since when this was seen without a break."""
    message: str
    freeing_helps: bool
    """Whether a stopped old pod leaves exactly the place the new one asks for."""


@dataclass(frozen=True, slots=True)
class RolloutInput:
    """What the split depends on; ``deployments`` holds the live ones by revision hash."""

    target: str
    wanted: int
    deployments: Mapping[str, DeploymentFacts]
    policy: RolloutSpec
    no_room: NoRoom | None
    now: datetime
    replacing: bool = False
    """The status says that this rollout replaces; asking again for every pod would cost time."""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """Replicas per revision hash, which way round, and why."""

    replicas: Mapping[str, int]
    capacity: Capacity
    why: str
    complete: bool
    """All wanted pods of the target are ready and no other revision has pods."""
    waiting: bool = False
    """A new pod has no place, and nothing is stopped for it (yet)."""
    check_again_at: datetime | None = None


_NOTHING = DeploymentFacts(replicas=0, current_replicas=0, ready_replicas=0)


def plan_rollout(given: RolloutInput) -> RolloutPlan:
    """Next number of pods of each revision."""
    new = given.deployments.get(given.target, _NOTHING)
    others = {h: d for h, d in given.deployments.items() if h != given.target}
    if not any(d.replicas or d.current_replicas for d in others.values()):
        replicas = dict.fromkeys(others, 0) | {given.target: given.wanted}
        ready = min(new.ready_replicas, new.replicas) >= given.wanted
        return RolloutPlan(replicas, Capacity.Surge, "no other revision has pods", complete=ready)
    if given.policy.strategy == "Recreate":
        return _recreate(given, others)
    return _rolling(given, new, others)


def _recreate(given: RolloutInput, others: Mapping[str, DeploymentFacts]) -> RolloutPlan:
    replicas = dict.fromkeys(others, 0) | {given.target: 0}
    why = "strategy Recreate stops all old pods first"
    return RolloutPlan(replicas, Capacity.Replace, why, complete=False)


def _rolling(
    given: RolloutInput, new: DeploymentFacts, others: Mapping[str, DeploymentFacts]
) -> RolloutPlan:
    capacity, why = _choose_capacity(given)
    if capacity is Capacity.Replace and not given.replacing:
        # Said before it is done: once the only old pod stops, nothing else would tell why.
        asked_now = {h: d.replicas for h, d in others.items()} | {given.target: new.replicas}
        return RolloutPlan(asked_now, capacity, why, complete=False, check_again_at=given.now)
    quarter = max(1, given.wanted // 4)
    surge, unavailable = (quarter, 0) if capacity is Capacity.Surge else (0, quarter)
    asked = new.replicas + sum(d.replicas for d in others.values())
    grown = min(given.wanted, new.replicas + max(0, given.wanted + surge - asked))
    replicas = {given.target: grown}
    replicas |= _shrink(given.wanted - unavailable, new, others)
    waiting = given.no_room is not None and capacity is Capacity.Surge
    return RolloutPlan(
        replicas,
        capacity,
        why,
        complete=False,
        waiting=waiting,
        check_again_at=given.no_room.since + SCHEDULING_GRACE
        if given.no_room and waiting
        else None,
    )


def _choose_capacity(given: RolloutInput) -> tuple[Capacity, str]:
    policy, room = given.policy.capacity, given.no_room
    if policy == "Replace":
        return Capacity.Replace, "spec.rollout.capacity is Replace"
    if policy == "Auto" and given.replacing:
        return Capacity.Replace, "no room for an extra pod was found"
    if room is None:
        return Capacity.Surge, "a new pod is added before an old one stops"
    if policy == "Surge":
        why = "waiting for room, as spec.rollout.capacity is Surge"
    elif not room.freeing_helps:
        why = "waiting for room, as stopping an old pod would not make any"
    elif given.now < room.since + SCHEDULING_GRACE:
        why = "giving a cluster autoscaler time to make room"
    else:
        return Capacity.Replace, f"no room for an extra pod: {room.message}"
    return Capacity.Surge, f"{why}: {room.message}"


def _shrink(
    min_ready: int, new: DeploymentFacts, others: Mapping[str, DeploymentFacts]
) -> dict[str, int]:
    """Old pods that may stay: first those that do not serve go, then what is not needed."""
    new_ready = min(new.ready_replicas, new.replicas)
    asked = new.replicas + sum(d.replicas for d in others.values())
    to_clean_up = max(0, asked - min_ready - (new.replicas - new_ready))
    ready = new_ready + sum(min(d.ready_replicas, d.replicas) for d in others.values())
    to_remove = max(0, ready - min_ready)
    left = {}
    for revision in sorted(others):
        old = others[revision]
        old_ready = min(old.ready_replicas, old.replicas)
        unready = min(to_clean_up, old.replicas - old_ready)
        to_clean_up -= unready
        removed = min(to_remove, to_clean_up, old_ready)
        to_remove -= removed
        to_clean_up -= removed
        left[revision] = old.replicas - unready - removed
    return left
