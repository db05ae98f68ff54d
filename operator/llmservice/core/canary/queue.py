"""Whose rollout comes first, where only so many may be under way at a time.

Rollouts that have left Preflight come before those that wait there, and among these the one that
began first: all of it stands in statuses, so all workers and every new leader find the same order.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from llmservice.core.canary.state import AT_REST, Phase, Rollout, read_rollout, seconds_since

NOTICE_SECONDS = 5.0
"""So long a rollout shows that it wants to begin, lest two that begin at once overlook each other:
the status of one that began before may still be on its way."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Of all canary rollouts that are under way; 0 for any number."""

    rollouts: int = 0
    devices: int = 0
    """Accelerators that they hold, beside those of the replicas that were asked for."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A rollout among those of all services; the lesser comes first."""

    waits: bool
    """It is still in Preflight."""
    began: datetime
    service: str
    """Namespace and name."""
    devices: int = field(default=0, compare=False)
    """What it holds, or will."""


def place_of(service: str, status: Mapping[str, Any]) -> Place | None:
    """The place of a service, by its status; None while it has no rollout under way."""
    rollout = read_rollout(status)
    if rollout is None or rollout.phase in AT_REST:
        return None
    began = rollout.began or rollout.since
    if began.tzinfo is None:  # not ours, and no order could be told
        return None
    return Place(rollout.phase is Phase.Preflight, began, service, rollout.devices)


def who_is_first(
    rollout: Rollout, service: str, others: Collection[Place], limits: Limits, now: datetime
) -> str:
    """Why a rollout has to wait for others; empty when it is its turn.

    Args:
        rollout: of the service.
        service: its namespace and name.
        others: the places of all other services.
        limits: what may be under way at a time.
        now: the time.
    """
    if limits == Limits() or rollout.phase is not Phase.Preflight:
        return ""
    began = rollout.began or rollout.since
    ahead = sorted(place for place in others if place < Place(True, began, service))
    if limits.rollouts and len(ahead) >= limits.rollouts:
        return _behind(ahead, f"at most {limits.rollouts} rollouts at a time")
    wanted, limit = rollout.devices, limits.devices
    alone = f"its {wanted} accelerators are over the limit of {limit}, so it goes alone"
    too_large = 0 < limit < wanted
    if limit and wanted and (holders := [place for place in ahead if place.devices]):
        taken = sum(place.devices for place in holders)
        if taken + wanted > limit:
            takes = f"it takes {wanted} accelerators, {taken} of {limit} are taken"
            return _behind(holders, alone if too_large else takes)
    if seconds_since(began, now) < NOTICE_SECONDS:
        seen = "it is seen whether rollouts of other services come first"
        return f"{seen}; {alone}" if too_large else seen
    return ""


def _behind(ahead: Sequence[Place], why: str) -> str:
    first = ", ".join(place.service for place in ahead[:_NAMED])
    more = f" and {len(ahead) - _NAMED} more" if len(ahead) > _NAMED else ""
    return f"{why}, and others come first: {first}{more}"
