"""Why the newest revision's pods do not serve: one problem out of many symptoms.

Order matters: what the API server refused comes first, then what a quota refused, then what the
scheduler, the kubelet or the engine says about the pods. The engine's own words are in its log,
which is read once per crash (:func:`logs_to_read`).
"""

from collections.abc import Iterator

from llmservice.api import names
from llmservice.core import failures
from llmservice.core.decision import LogRequest
from llmservice.core.observed import ApplyErrorKind, DeploymentFacts, Observed, PodFacts
from llmservice.core.resources.autoscaler import SCALED_OBJECT_KIND
from llmservice.core.status import Problem, Reason

_APPLY_REASONS = {
    ApplyErrorKind.Conflict: Reason.ChildConflict,
    ApplyErrorKind.Invalid: Reason.ChildRefused,
    ApplyErrorKind.Forbidden: Reason.ChildRefused,
}


def find_problem(
    observed: Observed,
    revision_hash: str,
    deployment: DeploymentFacts | None,
    *,
    making_room: bool,
) -> Problem | None:
    """The problem to report for the newest revision, or None while all goes well.

    While a rollout makes room, a pod that waits for it is no problem.
    """
    for error in observed.apply_errors:
        return Problem(_APPLY_REASONS[error.kind], f"{error.ref}: {error.message}", stalled=True)
    for child in observed.children.values():
        if child.controller_kind == SCALED_OBJECT_KIND:
            continue  # the HPA that KEDA made of a ScaledObject of ours
        if child.controller_uid not in (None, observed.service.uid):
            message = (
                f"{child.ref} belongs to another controller: delete it, or give this LLMService"
                " another name"
            )
            return Problem(Reason.ChildConflict, message, stalled=False)
    refusal = deployment.failure if deployment and not deployment.ready_replicas else None
    if refusal and not making_room:
        return Problem(Reason.PodsRefused, refusal, stalled=False)
    found = [
        failure
        for pod in observed.pods
        if pod.revision == revision_hash and not pod.deleting
        if pod.scheduled or not making_room
        if (failure := diagnose_pod(observed, pod)) is not None
    ]
    if not found:
        return None
    # A cause that only a person can mend outranks one that may pass by itself.
    worst = min(found, key=lambda failure: failure.transient)
    return Problem(worst.reason, f"{worst.message} {worst.fix}".strip(), not worst.transient)


def diagnose_pod(observed: Observed, pod: PodFacts) -> failures.Failure | None:
    """Why this pod does not serve, or None while it serves or is still starting well."""
    if pod.ready:
        return None
    if not pod.scheduled:
        return failures.diagnose_scheduling("Unschedulable", pod.scheduling_message)
    if pod.container is None:
        return None
    log = observed.crash_logs.get(pod.uid)
    return failures.diagnose_container(pod.container, log.text if log else None)


def logs_to_read(observed: Observed) -> Iterator[LogRequest]:
    """Containers that ended since their log was last read."""
    for pod in observed.pods:
        state = pod.container
        if pod.ready or pod.deleting or state is None:
            continue
        ended_now = (
            state.terminated_reason is not None and state.waiting_reason is None and not pod.running
        )
        crashes = state.restart_count + (ended_now or state.waiting_reason == "CrashLoopBackOff")
        known = observed.crash_logs.get(pod.uid)
        if crashes and (known is None or known.restart_count < crashes):
            yield LogRequest(
                pod=pod.name,
                pod_uid=pod.uid,
                container=names.ENGINE_CONTAINER,
                restart_count=crashes,
                # A container that runs again has its last words in the previous one's log.
                previous=state.restart_count > 0 and not ended_now,
            )
