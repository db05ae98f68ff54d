"""The whole status of a service, from its situation.

:mod:`llmservice.core.status` has the conditions and events that it is told in.
"""

from typing import Any

from llmservice.api import names
from llmservice.core import health, status
from llmservice.core.autoscaling.keda import trouble
from llmservice.core.autoscaling.scaling import (
    autoscaler_condition,
)
from llmservice.core.canary.director import (
    rollout_status,
    summary,
)
from llmservice.core.canary.state import Phase
from llmservice.core.capacity import capacity_status
from llmservice.core.observed import (
    AutoscalerFacts,
)
from llmservice.core.planning import plan_status
from llmservice.core.resources.autoscaler import hpa_ref
from llmservice.core.rollout import Capacity
from llmservice.core.situation import Situation, replacing_because


def service_status(situation: Situation) -> dict[str, Any]:
    """``status`` as it is to be."""
    observed, target, rollout = situation.observed, situation.target, situation.rollout
    service, old = observed.service, observed.service.status
    plan = plan_status(situation.valid.plan.memory)
    pods = [pod for pod in observed.pods if not pod.deleting]
    progress = _progress(situation, sum(pod.ready for pod in pods))
    course = situation.course
    stable = target.hash if rollout.complete else old.get("stableRevision")
    if course is not None:
        stable = course.after.stable
    new = {
        "observedGeneration": service.generation,
        "phase": status.phase(progress),
        "url": f"http://{service.key.name}.{service.key.namespace}.svc"
        f":{situation.valid.spec.service.port}/v1",
        "replicas": len(pods),
        "readyReplicas": progress.ready,
        "terminatingReplicas": len(observed.pods) - len(pods) if observed.claim else None,
        "selector": ",".join(
            f"{key}={value}"
            for key, value in sorted(names.engine_selector(service.key.name).items())
        ),
        "stableRevision": stable,
        "updatedRevision": target.hash,
        "revisions": _revision_statuses(situation),
        "rollout": rollout_status(course) if course else None,
        "autoscaling": _autoscaling_status(situation),
        "coldStart": situation.cold_start or None,
        "engine": {
            "image": target.engine["image"],
            "version": target.version,
            "arguments": target.engine["args"],
        },
        "plan": (situation.refusal and situation.refusal.plan) or plan,
        "capacity": capacity_status(observed, target.hash, plan),
        "conditions": status.build_conditions(observed, progress),
    }
    return {key: value for key, value in new.items() if value is not None}


def _progress(situation: Situation, ready: int) -> status.Progress:
    observed, target, rollout = situation.observed, situation.target, situation.rollout
    rolling = any(
        h != target.hash and (d.replicas or d.current_replicas)
        for h, d in situation.deployments.items()
    )
    return status.Progress(
        wanted=situation.valid.spec.replicas,
        ready=ready,
        rolled_out=rollout.complete,
        rolling=rolling,
        problem=(situation.refusal and situation.refusal.problem)
        or _rejection(situation)
        or _no_budget(situation)
        or health.find_problem(
            observed,
            target.hash,
            situation.deployments.get(target.hash),
            making_room=situation.making_room,
        ),
        capacity=_capacity(situation, rolling=rolling),
        rollout=summary(situation.course) if situation.course else "",
        autoscaler=_autoscaler(situation),
    )


def _autoscaling_status(situation: Situation) -> dict[str, Any] | None:
    wish, scaling = situation.valid.spec.autoscaling, situation.scaling
    if wish is None:
        return None
    size = situation.valid.spec.replicas
    wanted = _wanted_replicas(situation, size)
    status = {
        "replicas": size,
        "minReplicas": wish.min_replicas,
        "maxReplicas": wish.max_replicas,
        "wantedReplicas": wanted if wanted > size else None,
        "revision": scaling.lead,
        "message": situation.bound.message if situation.bound else None,
    }
    return {key: value for key, value in status.items() if value not in (None, "")}


def _wanted_replicas(situation: Situation, size: int) -> int:
    """One more than it has while a bound holds the autoscaler of the lead back, or its waking."""
    if situation.rest is not None and situation.rest.size > size:
        return situation.rest.size
    facts = _lead_facts(situation)
    return max(size, facts.desired + 1) if facts and facts.limited == "TooManyReplicas" else size


def _lead_facts(situation: Situation) -> AutoscalerFacts | None:
    """What the autoscaler says that decides on the service's size."""
    wish, lead = situation.valid.spec.autoscaling, situation.scaling.lead
    if wish is None or lead is None:
        return None
    ref = hpa_ref(wish, situation.observed.service.key.name, lead)
    child = situation.observed.children.get(ref)
    return child.autoscaler if child else None


def _autoscaler(situation: Situation) -> tuple[str, str, str] | None:
    """Whether an autoscaler sizes the service, and if not, why."""
    wish = situation.valid.spec.autoscaling
    if wish is None:
        return None
    lead = situation.scaling.lead
    if situation.bound is not None and situation.bound.message:
        return "False", status.Reason.WaitingForBudget, situation.bound.message
    if situation.valid.spec.replicas == 0:
        return "True", status.Reason.ScaledToZero, "the next request starts a replica"
    if lead is None:
        message = "the number of replicas stays while revisions change places"
        return "True", status.Reason.SizeKept, message
    if wish.provider == "KEDA":
        name = names.revision_name(situation.observed.service.key.name, lead)
        if (found := trouble(situation.observed, name)) is not None:
            return autoscaler_condition(found)
    api = situation.cluster.metrics_api if wish.provider == "Builtin" else None
    return autoscaler_condition(_lead_facts(situation), api)


def _no_budget(situation: Situation) -> status.Problem | None:
    """That no replica fits into a budget, though there should be one."""
    bound = situation.bound
    if bound is None or not bound.message or situation.valid.spec.replicas:
        return None
    return status.Problem(status.Reason.WaitingForBudget, bound.message, stalled=False)


def _rejection(situation: Situation) -> status.Problem | None:
    """That the newest revision was turned down, until the spec changes or a person asks again."""
    course = situation.course
    if course is None or course.after.phase is not Phase.Aborted:
        return None
    message = (
        f"revision {situation.target.hash} was turned down: {course.after.message}; change the"
        f" spec, or try again with `llmservice retry {situation.observed.service.key.name}`"
    )
    return status.Problem(status.Reason.RolloutAborted, message, stalled=True)


def _capacity(situation: Situation, *, rolling: bool) -> tuple[str, str, str] | None:
    """Which way round the rollout goes, and why."""
    rollout = situation.rollout
    because = replacing_because(situation.observed, situation.target)
    replaces = rollout.capacity is Capacity.Replace or not rolling
    if because and replaces and not rollout.complete:
        # Said until the new pods are ready, in the words that name what is missing.
        return "True", Capacity.Replace, because
    if not rolling:
        return None
    if rollout.waiting:
        return "False", status.Reason.WaitingForRoom, rollout.why
    return "True", str(rollout.capacity), rollout.why


def _revision_statuses(situation: Situation) -> list[dict[str, Any]]:
    live = sorted(
        (
            situation.revisions[hash_]
            for hash_ in situation.rollout.replicas
            if hash_ in situation.revisions
            and (hash_ == situation.target.hash or not situation.rollout.complete)
        ),
        key=lambda revision: -revision.number,
    )
    return [
        {
            "hash": revision.hash,
            "number": revision.number,
            "replicas": situation.rollout.replicas[revision.hash],
            "readyReplicas": sum(
                pod.ready and not pod.deleting and pod.revision == revision.hash
                for pod in situation.observed.pods
            ),
        }
        for revision in live
    ]
