"""How long a new replica takes, as seen on the pods of a service.

One more pod helps after it was scheduled, its images were pulled and its model was loaded. The
autoscaler must not ask again for what is on its way for that long.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from llmservice.core.observed import PodFacts
from llmservice.core.status import format_time

DEFAULT_SECONDS = 180.0
"""Of a service that has no pods to tell."""


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Seconds of each stage."""

    schedule: int
    """Until a node was found."""
    pull: int
    """Until the engine's container ran: images, volumes, init containers."""
    load: int
    """Until the pod was ready: weights, compilation, warm-up of the engine."""

    @property
    def total(self) -> int:
        """From creation to readiness."""
        return self.schedule + self.pull + self.load


def cold_start_status(
    before: Mapping[str, Any], pods: Iterable[PodFacts], revision: str
) -> dict[str, Any] | None:
    """``status.coldStart``; None until a pod of the service told.

    Each new pod of the revision counts half: one node that pulls slowly is not all of them.

    Args:
        before: as written last; empty for nothing.
        pods: engine pods.
        revision: whose pods are measured.
    """
    kept = before if before.get("revision") == revision else {}
    # Not one that counted before, nor an older one: it may be ready for the second time.
    since = kept.get("podCreated", "")
    found = _newest((pod for pod in pods if format_time(pod.created) > since), revision)
    if found is None:
        return dict(before) or None
    pod, measured = found
    stages = {
        f"{stage}Seconds": _between(kept.get(f"{stage}Seconds"), getattr(measured, stage))
        for stage in ("schedule", "pull", "load")
    }
    told = {"revision": revision, "pod": pod.name, "podCreated": format_time(pod.created)}
    return {**told, **stages, "seconds": sum(stages.values())}


def measure(pod: PodFacts) -> ColdStart | None:
    """The stages of a pod that became ready at its first try; None for another."""
    crashed = pod.container is None or pod.container.restart_count
    moments = (pod.scheduled_at, pod.started_at, pod.ready_since)
    if crashed or not pod.ready or None in moments:
        return None
    at = [pod.created, *(each for each in moments if each is not None)]
    return ColdStart(*(_seconds(start, end) for start, end in pairwise(at)))


def _newest(pods: Iterable[PodFacts], revision: str) -> tuple[PodFacts, ColdStart] | None:
    measured = (
        (pod, found)
        for pod in pods
        if pod.revision == revision and (found := measure(pod)) is not None
    )
    return max(measured, key=lambda each: (each[0].created, each[0].name), default=None)


def _seconds(start: datetime, end: datetime) -> int:
    return max(0, round((end - start) / timedelta(seconds=1)))


def _between(kept: object, new: int) -> int:
    return round((kept + new) / 2) if isinstance(kept, int) else new
