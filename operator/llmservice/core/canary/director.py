"""From what is observed of a service to what its canary rollout does next.

The rollout is read from the status, is moved on by at most one transition, and goes back into the
status. Pods and traffic follow from the one that was read.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from llmservice.api import names
from llmservice.api.v1alpha1 import CPU_RESOURCE, LLMServiceSpec, RolloutSpec, router_of
from llmservice.core import health
from llmservice.core.canary.gates import ask_gates
from llmservice.core.canary.intent import (
    as_canary,
    pods_of,
    shares_of,
    step_number,
    surge_pods,
)
from llmservice.core.canary.look import (
    DRAIN_POLL_SECONDS,
    Look,
    ask_to_warm_up,
    is_idle,
    look,
    warm_pods,
    warm_problem,
    watch_drain,
)
from llmservice.core.canary.machine import advance, begin, without_canary
from llmservice.core.canary.queue import Limits, who_is_first
from llmservice.core.canary.routers import Router, router_for
from llmservice.core.canary.state import (
    AT_REST,
    MAX_STATE,
    MOVING,
    CheckResult,
    Hold,
    Phase,
    Rollout,
    dump_rollout,
    read_rollout,
)
from llmservice.core.canary.traffic import wanted_traffic
from llmservice.core.canary.view import Verb, View
from llmservice.core.engine import served_name
from llmservice.core.observed import Observed, PodFacts
from llmservice.core.questions import Question
from llmservice.core.resources.children import DEADLINE_MARGIN_SECONDS
from llmservice.core.revisions import Revision, content_hash, pack_data
from llmservice.core.rollout import NoRoom
from llmservice.core.router.desired import Traffic
from llmservice.core.status import format_time

_PASSING = timedelta(minutes=3)
"""What may pass by itself (a registry that is away) has passed in a pod's first minutes, or not."""
_SOON_SECONDS = 1.0
_TAKEN_AWAY = frozenset(
    {"Evicted", "Preempting", "Terminated", "Shutdown", "NodeShutdown", "NodeLost"}
)
"""``status.reason`` of pods that a node put away, and that their Deployment has replaced
(Kubernetes: pkg/kubelet/{eviction,preemption,nodeshutdown}, pkg/controller/nodelifecycle)."""
_MAX_ACTION = 128
_WAITING = dict.fromkeys((Hold.RolloutQueue, Hold.StableNotReady), 5.0)
"""Seconds between looks while others have to move first."""
_POLLS = {
    Phase.Provisioning: 30.0,  # events tell of pods; only the deadline needs a look
    Phase.Warming: _SOON_SECONDS,
    Phase.Settling: _SOON_SECONDS,
    Phase.Baking: _SOON_SECONDS * 5,
    Phase.Draining: DRAIN_POLL_SECONDS,
}
"""Seconds between looks at what no event tells."""


@dataclass(frozen=True, slots=True)
class Course:
    """What a canary rollout wants now, and what it will be."""

    policy: RolloutSpec
    """By which it goes: each step has a weight."""
    rollout: Rollout
    """As read; what is done follows from it."""
    after: Rollout
    """To be written."""
    pods: Mapping[str, int]
    """By revision."""
    traffic: Traffic
    router: Router
    """To which the traffic is told."""
    ask: tuple[Question, ...]
    look: Look
    again_in: float | None
    """Seconds until it must be looked at again, if nothing happens before."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The service whose rollout it is."""

    observed: Observed
    spec: LLMServiceSpec
    target: str
    """Revision of the newest spec."""
    revisions: Mapping[str, Revision]
    """All that are known, the newest among them."""
    no_room: NoRoom | None
    limits: Limits = field(default_factory=Limits)
    """Of the rollouts of all services."""


def direct(subject: Subject) -> Course | None:
    """The course of the canary rollout; None for a service that has no need of one.

    A service without a stable revision has nothing to protect: its pods are simply made.
    """
    rollout = _read(subject)
    if rollout is None:
        return None
    subject = replace(subject, spec=as_canary(subject.spec))
    observed, policy = subject.observed, subject.spec.rollout
    ready = _ready(observed)
    pods = pods_of(rollout, policy, subject.spec.replicas)
    traffic = _traffic(subject, rollout, pods, ready)
    router = router_for(observed, subject.spec, rollout, traffic)
    if rollout.phase is Phase.Draining:
        found = watch_drain(rollout, observed, router.propagation_seconds)
    else:
        found = ask_gates(look(rollout, observed, policy), observed, policy)
    known = _note_served(replace(found.rollout, spec=None), observed)
    after = advance(known, _view(subject, known, router, ready))
    after = _keep_spec(rollout, replace(after, devices=_devices(after, subject)), observed)
    return Course(
        policy=policy,
        rollout=rollout,
        after=after,
        pods=pods,
        traffic=traffic,
        router=router,
        ask=(*found.ask, *_questions(subject, rollout, router)),
        look=found,
        again_in=_again_in(rollout, after, found, router),
    )


def rollout_status(course: Course) -> dict[str, Any]:
    """``status.rollout``: what people read, and under ``state`` what the operator goes on from."""
    after, policy = course.after, course.policy
    waits = f"{after.message}; waiting: {after.hold_message}" if after.hold else after.message
    in_trial = after.phase not in AT_REST
    status = {
        "phase": str(after.phase),
        "canaryRevision": after.canary,
        "step": step_number(policy, after.weight) if in_trial else 0,
        "steps": len(policy.steps),
        "weight": after.weight if in_trial else 0,
        "capacity": after.capacity if in_trial else None,
        "since": format_time(after.since),
        "stepSince": format_time(after.step_since) if after.step_since else None,
        "reason": str(after.hold or after.reason) or "Stable",
        "message": waits[:4096],
        "canaryRequests": int(after.judge.canary_requests) if in_trial else None,
        "checks": [
            {"check": each.check, "verdict": each.verdict, "message": each.message}
            for each in (*after.checks, *_gate_checks(after))
        ],
        "handledAction": after.handled_action,
        "rejected": [
            {
                "hash": each.hash,
                "reason": each.reason,
                "message": each.message,
                "time": format_time(each.time),
            }
            for each in after.rejected
        ],
        "state": dump_rollout(after),
    }
    return {key: value for key, value in status.items() if value not in (None, [], "")}


def last_spec(observed: Observed) -> Mapping[str, Any] | None:
    """The newest spec that was accepted, unparsed, for a rollout that is under way.

    The stored one may be refused by now; a canary must not be left alone with its traffic for that.
    """
    rollout = read_rollout(observed.service.status)
    if rollout is None or not rollout.spec:
        return None
    try:
        spec = json.loads(zlib.decompress(rollout.spec))
    except (zlib.error, ValueError):
        return None  # somebody else wrote it
    return spec if isinstance(spec, dict) else None


def _keep_spec(before: Rollout, after: Rollout, observed: Observed) -> Rollout:
    """Until what the rollout leaves behind is cleared away, that is one look longer than it."""
    if before.phase in AT_REST and after.phase in AT_REST:
        return after
    kept = replace(after, spec=pack_data(dict(observed.service.spec)))
    return kept if len(dump_rollout(kept)) <= MAX_STATE else after


def _devices(rollout: Rollout, subject: Subject) -> int:
    """Accelerators that it holds at most, beside those that the service has at rest."""
    if rollout.canary != subject.target:
        return 0 if rollout.phase in AT_REST else rollout.devices  # it ends
    resource = subject.spec.accelerator.resource
    if resource == CPU_RESOURCE:
        return 0
    limits = subject.revisions[subject.target].engine["resources"].get("limits", {})
    return surge_pods(rollout, subject.spec.replicas) * int(limits.get(resource, 0))


def _gate_checks(rollout: Rollout) -> Iterator[CheckResult]:
    return (replace(each, check=f"gate {each.check}") for each in rollout.gates)


def summary(course: Course) -> str:
    """Where the rollout is, in a sentence; empty when none is under way."""
    after = course.after
    if after.phase in AT_REST:
        return ""
    waits = f"; waiting: {after.hold_message}" if after.hold else ""
    return f"{after.phase} at {after.weight} %: {after.message}{waits}"


def _read(subject: Subject) -> Rollout | None:
    status = subject.observed.service.status
    kept = read_rollout(status)
    under_way = kept is not None and kept.phase not in AT_REST
    if router_of(subject.spec) == "None" and not under_way:
        return None
    if kept is not None and kept.stable in subject.revisions:
        if kept.canary is None or kept.canary in subject.revisions:
            return _with_router(kept, subject.spec)
        # The spec was changed again before anything was made of that canary.
        return _with_router(without_canary(kept, subject.observed.now), subject.spec)
    if kept is not None:
        return None
    stable = status.get("stableRevision", "")
    if stable not in subject.revisions:
        return None
    begun = begin(stable, subject.observed.now, _action(subject.observed))
    return _with_router(begun, subject.spec)


def _with_router(rollout: Rollout, spec: LLMServiceSpec) -> Rollout:
    """A canary ends by the router that it began with, since that is where its weights are."""
    wanted = router_of(spec)
    on_trial = rollout.phase not in (*AT_REST, Phase.Preflight)
    if on_trial or wanted in (rollout.router, "None"):
        return rollout
    return replace(rollout, router=wanted, routed=False)


def _traffic(
    subject: Subject, rollout: Rollout, pods: Mapping[str, int], ready: Mapping[str, int]
) -> Traffic:
    shares = shares_of(rollout, ready)
    return wanted_traffic(rollout.stable, shares, pods, subject.revisions, subject.spec)


def _ready(observed: Observed) -> dict[str, int]:
    """Ready pods by revision."""
    ready: dict[str, int] = {}
    for pod in observed.pods:
        if pod.ready and not pod.deleting:
            ready[pod.revision] = ready.get(pod.revision, 0) + 1
    return ready


def _view(subject: Subject, rollout: Rollout, router: Router, ready: Mapping[str, int]) -> View:
    observed, spec = subject.observed, subject.spec
    action = _action(observed)
    canary = rollout.canary or ""
    given = spec.rollout.provision_timeout_seconds
    since = rollout.since if rollout.phase in MOVING else None
    return View(
        now=observed.now,
        target=subject.target,
        policy=spec.rollout,
        wanted=spec.replicas,
        drain_seconds=spec.engine.drain_timeout_seconds,
        provision_seconds=given or spec.engine.startup_timeout_seconds + DEADLINE_MARGIN_SECONDS,
        ready=ready,
        warm={canary: warm_pods(observed, canary)},
        warm_problem=warm_problem(observed, canary),
        routers=router.title,
        behind=router.behind(since),
        leaving_idle=is_idle(rollout, observed),
        failure=_failure(observed, canary),
        trouble=_trouble(rollout, observed),
        no_room=subject.no_room,
        queue=who_is_first(
            rollout,
            str(observed.service.key),
            observed.other_rollouts,
            subject.limits,
            observed.now,
        ),
        verb=_verb(action) if action != rollout.handled_action else None,
        tried_action=action,
    )


def _action(observed: Observed) -> str | None:
    """As much of the annotation as the status may hold."""
    action = observed.service.action
    return action[:_MAX_ACTION] if action else None


def _verb(action: str | None) -> Verb | None:
    return Verb(action.partition("/")[0], action) if action else None


def _failure(observed: Observed, canary: str) -> str:
    """What only a person can mend."""
    child = names.revision_name(observed.service.key.name, canary)
    for error in observed.apply_errors:
        if error.ref.name == child:
            return f"{error.ref}: {error.message}"
    for pod in _pods_of(observed, canary):
        found = health.diagnose_pod(observed, pod) if pod.scheduled else None
        old = observed.now - pod.created >= _PASSING
        if found is not None and (old or not found.transient):
            return f"{pod.name}: {found.message} {found.fix}".strip()
    return ""


def _trouble(rollout: Rollout, observed: Observed) -> str:
    """What became of pods that have been ready, and that nobody took away."""
    pods = list(_pods_of(observed, rollout.canary))
    served = [pod for pod in pods if _mark(pod) in rollout.served]
    for pod in served:
        if _restarts(pod) > rollout.served[_mark(pod)]:
            found = health.diagnose_pod(observed, pod)
            why = f": {found.message}" if found else ""
            return f"{pod.name} restarted {_restarts(pod)} times{why}"
    # A pod whose node does not answer is as good as taken away; Kubernetes does so minutes later.
    if any(not pod.silent for pod in served) and not any(pod.ready for pod in pods):
        return "no pod of the canary is ready any more"
    return ""


def _note_served(rollout: Rollout, observed: Observed) -> Rollout:
    """Note the canary's pods that are ready for the first time; forget those that are gone."""
    served = {
        mark: rollout.served.get(mark, _restarts(pod))
        for pod in _pods_of(observed, rollout.canary)
        if (mark := _mark(pod)) in rollout.served or pod.ready
    }
    return replace(rollout, served=dict(sorted(served.items())))


def _mark(pod: PodFacts) -> str:
    """What tells one pod from another, in few letters: there may be a thousand."""
    return content_hash(pod.uid, 8)


def _restarts(pod: PodFacts) -> int:
    return pod.container.restart_count if pod.container is not None else 0


def _pods_of(observed: Observed, revision: str | None) -> Iterator[PodFacts]:
    """Pods that are to stay."""
    for pod in observed.pods:
        if pod.revision == revision and not pod.deleting and pod.phase_reason not in _TAKEN_AWAY:
            yield pod


def _questions(subject: Subject, rollout: Rollout, router: Router) -> tuple[Question, ...]:
    """What the phase needs to know besides the evidence."""
    observed, spec = subject.observed, subject.spec
    if rollout.phase in MOVING:
        return router.ask(rollout.since)
    if rollout.phase in AT_REST and not rollout.routed:
        return router.ask(None)
    if rollout.phase is Phase.Warming and rollout.canary:
        model = served_name(observed.service.key.name, spec)
        warm_up = ask_to_warm_up(observed, rollout.canary, model, spec.rollout)
        return (*warm_up, *router.watch())
    return router.watch()


def _again_in(rollout: Rollout, after: Rollout, found: Look, router: Router) -> float | None:
    if after != rollout:
        return 0.0
    pause = _WAITING.get(rollout.hold) if rollout.hold else None
    moving = router.poll_seconds if rollout.phase in MOVING else None
    pause = pause or moving or _POLLS.get(rollout.phase)
    if rollout.phase in AT_REST and not rollout.routed:
        pause = max(_SOON_SECONDS, router.poll_seconds)
    pauses = (found.again_in, pause, router.watch_seconds)
    return min((each for each in pauses if each is not None), default=None)
