"""What a running engine reports of its KV cache: whom to ask, when, and how far the plan was off.

One ready pod of the newest revision is asked, again after growing pauses while it does not tell.
Once it told, the status remembers; nothing is asked until another revision is the newest.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from llmservice.core.decision import MetricsRequest
from llmservice.core.observed import MetricsRead, Observed

_PAUSES_SECONDS = (5.0, 20.0, 80.0, 320.0)
"""After each try that told nothing; after one more the pod is given up."""


def capacity_status(
    observed: Observed, revision: str, plan: Mapping[str, Any]
) -> dict[str, Any] | None:
    """``status.capacity`` of a revision; None until one of its engines told.

    Args:
        observed: what is known.
        revision: hash of the newest revision.
        plan: its ``status.plan``.
    """
    found = _told_before(observed, revision) or _told_now(observed, revision)
    if found is None:
        return None
    planned = plan.get("kvCacheTokens")
    if planned:
        off = found["kvCacheTokens"] - planned
        found["deviationPercent"] = round(100 * off / planned)
    return found


def planned_ratio(status: Mapping[str, Any]) -> float | None:
    """Tokens that the engine has for each that was planned; None unless both are known."""
    has = status.get("capacity", {}).get("kvCacheTokens")
    planned = status.get("plan", {}).get("kvCacheTokens")
    return has / planned if has and planned else None


def next_read(observed: Observed, revision: str) -> tuple[MetricsRequest, float] | None:
    """The pod to ask and in how many seconds; None when there is nothing (more) to ask."""
    if _told_before(observed, revision) or _told_now(observed, revision):
        return None
    reads = observed.metrics_reads
    ready = (pod for pod in observed.pods if pod.revision == revision and pod.is_reachable)
    # The one that was asked before goes first, so that a revision's pods are not asked in turn.
    pod = min(ready, key=lambda pod: (pod.uid not in reads, pod.created, pod.name), default=None)
    if pod is None:
        return None
    request = MetricsRequest(pod.name, pod.uid, pod.address)
    last = reads.get(pod.uid)
    if last is None:
        return request, 0.0
    if last.tries > len(_PAUSES_SECONDS):
        return None
    return request, _pause_left(observed, last)


def _pause_left(observed: Observed, last: MetricsRead) -> float:
    due = last.at + timedelta(seconds=_PAUSES_SECONDS[last.tries - 1])
    return max(0.0, (due - observed.now) / timedelta(seconds=1))


def _told_before(observed: Observed, revision: str) -> dict[str, Any] | None:
    known = observed.service.status.get("capacity", {})
    if known.get("revision") != revision:
        return None
    return {field: value for field, value in known.items() if field != "deviationPercent"}


def _told_now(observed: Observed, revision: str) -> dict[str, Any] | None:
    reads = (observed.metrics_reads.get(p.uid) for p in observed.pods if p.revision == revision)
    size = next((read.size for read in reads if read and read.size), None)
    if size is None:
        return None
    return {
        "revision": revision,
        "kvCacheTokens": size.tokens,
        "maxConcurrency": f"{size.concurrency:.2f}",
    }
