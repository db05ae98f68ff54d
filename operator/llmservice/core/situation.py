"""What is: the spec that counts, the revisions, and how many pods each of them gets.

Everything that is decided or reported of a service starts here. Nothing is compared with what is
live yet; :mod:`llmservice.core.reconcile` does that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from llmservice.api import names
from llmservice.api.v1alpha1 import LLMServiceSpec
from llmservice.core import status
from llmservice.core.autoscaling.budget import Bound, bounds_within
from llmservice.core.autoscaling.cold_start import cold_start_status
from llmservice.core.autoscaling.idle import Rest, rest
from llmservice.core.autoscaling.scaling import (
    MetricsApi,
    Scaling,
    current_size,
    of_canary,
    without_canary,
)
from llmservice.core.canary.director import (
    Course,
    Subject,
    direct,
)
from llmservice.core.canary.queue import Limits
from llmservice.core.canary.state import AT_REST, Hold, Phase, read_rollout
from llmservice.core.config import Config
from llmservice.core.observed import (
    DeploymentFacts,
    Observed,
)
from llmservice.core.planning import plan_status
from llmservice.core.resources.pod import build_pod_template
from llmservice.core.revisions import Revision, revision_hash, unpack_revision
from llmservice.core.rollout import Capacity, NoRoom, RolloutInput, RolloutPlan, plan_rollout
from llmservice.core.validation import InvalidSpec, ValidSpec, is_refused, validate_spec


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What is true of the cluster as a whole, and so of all services alike."""

    hpa_tolerances: bool = False
    """HPAs may have tolerances of their own. A server before 1.33 refuses the field."""
    metrics_api: MetricsApi | None = None
    """None where nobody looked, or may."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing is done by the newest spec."""

    problem: status.Problem
    plan: Mapping[str, Any] | None = None
    """``status.plan``, where that is why."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the steps below share: the valid spec, the revisions and how many pods each gets."""

    observed: Observed
    valid: ValidSpec
    target: Revision
    revisions: Mapping[str, Revision]
    """All that are known, the target among them."""
    deployments: Mapping[str, DeploymentFacts]
    rollout: RolloutPlan
    course: Course | None
    """Of a canary rollout; None where pods are simply replaced."""
    making_room: bool
    """A new pod that waits for a place is about to get one from an old pod."""
    scaling: Scaling
    """Which of the revisions an autoscaler sizes."""
    rest: Rest | None
    """What the routers have the size be; None without an autoscaler."""
    bound: Bound | None
    """Of its replicas, within the budgets of devices; None where there are none."""
    cluster: ClusterFacts
    refusal: Refusal | None = None
    """Of a newer spec than the one that all this is about."""

    @property
    def cold_start(self) -> dict[str, Any]:
        """``status.coldStart``; empty until a pod told."""
        before = self.observed.service.status.get("coldStart", {})
        return cold_start_status(before, self.observed.pods, self.target.hash) or {}


def judge(observed: Observed) -> ValidSpec | Refusal:
    """Whether anything is to be done by this spec."""
    valid = validate_spec(observed.service.key.name, observed.service.spec)
    if isinstance(valid, InvalidSpec):
        return Refusal(status.Problem(status.Reason.InvalidSpec, valid.message, stalled=True))
    if is_refused(valid) and revision_hash(valid.spec) not in stored_revisions(observed):
        plan = plan_status(valid.plan.memory)
        problem = status.Problem(status.Reason.InfeasiblePlan, plan["message"], stalled=True)
        return Refusal(problem, plan)
    return valid


def assess(
    observed: Observed, valid: ValidSpec, config: Config, cluster: ClusterFacts
) -> Situation:
    """Where a service stands by a spec that is valid."""
    stored = stored_revisions(observed)
    target = _target_revision(observed, valid, stored)
    deployments = {
        child.ref.name.removeprefix(f"{observed.service.key.name}-"): child.deployment
        for child in observed.children.values()
        if child.deployment is not None and not child.deleting
        if child.ref.name != names.router_name(observed.service.key.name)
    }
    valid, bound = _within_budgets(observed, valid, config)
    valid, rested = _sized(observed, valid, deployments)
    no_room = _no_room(observed, target, stored, deployments)
    policy = valid.spec.rollout
    revisions = {**stored, target.hash: target}
    limits = Limits(config.max_concurrent_rollouts, config.max_rollout_devices)
    course = direct(Subject(observed, valid.spec, target.hash, revisions, no_room, limits))
    given = RolloutInput(
        target=target.hash,
        wanted=valid.spec.replicas,
        deployments=deployments,
        policy=policy,
        no_room=no_room,
        now=observed.now,
        replacing=replacing_because(observed, target) is not None,
    )
    rollout = plan_rollout(given) if course is None else _as_plan(course, given)
    stopping = any(pod.deleting for pod in observed.pods)
    making_room = stopping or bool(no_room and no_room.freeing_helps and policy.capacity != "Surge")
    return Situation(
        observed,
        valid,
        target,
        revisions,
        deployments,
        rollout,
        course,
        making_room,
        _scaling(valid.spec, target, rollout, course),
        rested,
        bound,
        cluster,
    )


def _within_budgets(
    observed: Observed, valid: ValidSpec, config: Config
) -> tuple[ValidSpec, Bound | None]:
    """The spec with bounds that the budgets of devices have room for."""
    wish, claim = valid.spec.autoscaling, observed.claim
    if wish is None or claim is None or not config.budgets:
        return valid, None
    bound = bounds_within(claim, observed.other_claims, config.budgets)
    least, most = min(wish.min_replicas, bound.replicas), bound.replicas
    within = wish.model_copy(update={"min_replicas": least, "max_replicas": most})
    return replace(valid, spec=valid.spec.model_copy(update={"autoscaling": within})), bound


def _sized(
    observed: Observed, valid: ValidSpec, deployments: Mapping[str, DeploymentFacts]
) -> tuple[ValidSpec, Rest | None]:
    """The spec with the replicas that its autoscaler wants, if it has one."""
    wish, status = valid.spec.autoscaling, observed.service.status
    if wish is None:
        return valid, None
    if wish.max_replicas == 0:  # nothing of it fits into its budget
        sleeps = observed.claim is not None and observed.claim.least == 0
        rested = rest(observed, wish, 0, at_rest=True) if sleeps else None
        return replace(valid, spec=valid.spec.model_copy(update={"replicas": 0})), rested
    before = status.get("autoscaling", {})
    size = current_size(wish, before, deployments, status.get("stableRevision"))
    kept = read_rollout(status)
    at_rest = kept is not None and kept.phase in AT_REST
    rested = rest(observed, wish, size, at_rest=at_rest)
    return replace(valid, spec=valid.spec.model_copy(update={"replicas": rested.size})), rested


def _scaling(
    spec: LLMServiceSpec, target: Revision, rollout: RolloutPlan, course: Course | None
) -> Scaling:
    wish = spec.autoscaling
    if wish is None or spec.replicas == 0:
        return Scaling({}, None)
    if course is not None:
        return of_canary(wish, course.rollout, course.pods)
    others = any(replicas for hash_, replicas in rollout.replicas.items() if hash_ != target.hash)
    return without_canary(wish, target.hash, alone=not others)


def _as_plan(course: Course, given: RolloutInput) -> RolloutPlan:
    """A canary's course in the words of every rollout."""
    now = course.rollout
    facts = given.deployments.get(given.target)
    ready = min(facts.ready_replicas, facts.replicas) if facts else 0
    waits = now.hold is Hold.CapacityWait
    return RolloutPlan(
        replicas=course.pods,
        capacity=Capacity(now.capacity),
        why=(now.hold_message if waits else now.message) or "no canary is under way",
        complete=now.phase is Phase.Stable and now.stable == given.target and ready >= given.wanted,
        waiting=waits,
    )


def stored_revisions(observed: Observed) -> dict[str, Revision]:
    """All that ControllerRevisions keep, by hash."""
    prefix = f"{observed.service.key.name}-"
    # The status outranks the object: a number edited by hand there is put back.
    numbers = {r["hash"]: r["number"] for r in observed.service.status.get("revisions", ())}
    stored = {}
    for child in observed.children.values():
        if child.revision is not None and not child.deleting:
            hash_ = child.ref.name.removeprefix(prefix)
            number = numbers.get(hash_, child.revision.number)
            stored[hash_] = unpack_revision(hash_, replace(child.revision, number=number))
    return stored


def _target_revision(
    observed: Observed, valid: ValidSpec, stored: Mapping[str, Revision]
) -> Revision:
    """The revision of the newest spec; a stored one keeps its template to the letter."""
    hash_ = revision_hash(valid.spec)
    latest = max((revision.number for revision in stored.values()), default=0)
    known = stored.get(hash_)
    if known is None:
        name = observed.service.key.name
        template = build_pod_template(name, hash_, valid.plan.spec, valid.plan)
        planned = plan_status(valid.plan.memory).get("maxNumSeqs")
        return Revision(hash_, latest + 1, template, valid.plan.version, planned)
    return replace(known, number=known.number if known.number == latest else latest + 1)


def _no_room(
    observed: Observed,
    target: Revision,
    stored: Mapping[str, Revision],
    deployments: Mapping[str, DeploymentFacts],
) -> NoRoom | None:
    """No new pod gets a place, and none is about to: neither one that loads nor one that stops."""
    if any(pod.deleting for pod in observed.pods):
        return None
    new = (p for p in observed.pods if p.revision == target.hash and not p.phase_reason)
    unready = [p for p in new if not p.ready]
    facts = deployments.get(target.hash)
    if unready and not any(pod.scheduled for pod in unready):
        message = unready[0].scheduling_message
    elif facts is not None and facts.failure and facts.current_replicas < facts.replicas:
        message = facts.failure
    else:
        return None
    live = [
        stored[h] for h, d in deployments.items() if d.replicas + d.current_replicas and h in stored
    ]
    helps = any(_same_place(target, old) for old in live if old.hash != target.hash)
    return NoRoom(_waiting_since(observed), message, helps)


def _waiting_since(observed: Observed) -> datetime:
    """Since when the status says that there is no room; now, if it does not."""
    for condition in observed.service.status.get("conditions", ()):
        is_waiting = condition["status"] == "False"
        if condition["type"] == status.ConditionType.RolloutCapacity and is_waiting:
            return datetime.fromisoformat(condition["lastTransitionTime"])
    return observed.now


def _same_place(new: Revision, old: Revision) -> bool:
    """Whether a stopped pod of ``old`` leaves just the place that ``new`` asks for."""
    fields = ("affinity", "nodeSelector", "tolerations", "topologySpreadConstraints")
    new_pod, old_pod = new.template["spec"], old.template["spec"]
    return (
        all(new_pod.get(field) == old_pod.get(field) for field in fields)
        and new.engine["resources"] == old.engine["resources"]
    )


def replacing_because(observed: Observed, target: Revision) -> str | None:
    """Why this rollout goes by Replace, as it was said when it began; None if it does not."""
    if observed.service.status.get("updatedRevision") != target.hash:
        return None
    for condition in observed.service.status.get("conditions", ()):
        if condition.get("type") == status.ConditionType.RolloutCapacity:
            return condition.get("message") if condition.get("reason") == "Replace" else None
    return None
