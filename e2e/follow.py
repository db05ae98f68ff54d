"""Watches one LLMService and says what changes, until something holds."""

import time
from collections.abc import Callable

from e2e.cluster.progress import ClusterError, say
from e2e.kubectl import JSON, Kubectl

_PAUSE_SECONDS = 0.5


def follow(
    kubectl: Kubectl,
    name: str,
    done: Callable[[JSON], bool],
    *,
    seconds: float,
    remark: Callable[[], str] = lambda: "",
    may_stall: bool = False,
) -> JSON:
    """Print each change of the service's status until `done(service)`; the service as it is then.

    Args:
        kubectl: the cluster and the namespace.
        name: of the LLMService.
        done: judged on the whole object at every look.
        seconds: longest wait.
        remark: added to each line.
        may_stall: go on waiting although only a change by a person helps.

    Raises:
        ClusterError: the service is stalled, or time is up; the message has its own words.
    """
    deadline = time.monotonic() + seconds
    said = ""
    while True:
        service = kubectl.get(f"llmservice/{name}")
        line = describe(service)
        if line != said:
            say(f"  {line}{remark()}")
            said = line
        if done(service):
            return service
        stalled = condition(service, "Stalled") if is_current(service) else None
        if stalled and not may_stall:
            raise ClusterError(f"{name} is stalled, {stalled['reason']}: {stalled['message']}")
        if time.monotonic() > deadline:
            raise ClusterError(f"gave up after {seconds:.0f} s; {name}: {line}")
        time.sleep(_PAUSE_SECONDS)


def describe(service: JSON) -> str:
    """One line: phase, ready pods of each revision, and why."""
    status = service.get("status", {})
    ready = condition(service, "Ready") or {}
    pods = ", ".join(
        f"revision {r['number']} ({r['hash']}) {r['readyReplicas']}/{r['replicas']} ready"
        for r in status.get("revisions", ())
    )
    why = ready.get("message", "not seen yet")
    rollout = status.get("rollout", {})
    if rollout.get("canaryRevision"):
        why = f"{rollout['phase']} at {rollout['weight']} %: {rollout.get('message', '')}"
    words = (status.get("phase", "-"), pods or "no pods", why)
    return " | ".join(words)


def condition(service: JSON, kind: str) -> JSON | None:
    """A condition of the service by its type."""
    conditions = service.get("status", {}).get("conditions", ())
    return next((c for c in conditions if c["type"] == kind), None)


def is_current(service: JSON) -> bool:
    """Whether the status is about the newest spec."""
    status = service.get("status", {})
    return bool(status.get("observedGeneration") == service["metadata"]["generation"])


def is_settled(service: JSON) -> bool:
    """Whether the newest spec, and nothing else, runs with all its replicas."""
    status = service.get("status", {})
    return (
        is_current(service)
        and status.get("phase") == "Ready"
        and status.get("stableRevision") == status.get("updatedRevision")
        and status.get("readyReplicas") == service["spec"].get("replicas", 1)
    )
