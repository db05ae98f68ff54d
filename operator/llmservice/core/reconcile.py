"""The table of contents of the product: observed in, decision out.

::

    spec --validate, plan--> Stalled/InvalidSpec or InfeasiblePlan, children left as they are
      |
      v
    revision (hash; stored pod template, or a new one) -> pods per revision (rollout)
      |
      v
    children wanted  - children live  = apply, delete
    problems of pods, progress        = status, events, logs and metrics to read

Pure and level-triggered: it reads nothing but :class:`Observed`, so any lost or repeated event
ends in the same state, and a new leader continues where the old one stopped.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from llmservice.api import names
from llmservice.api.gates import BenchGate
from llmservice.api.v1alpha1 import router_of
from llmservice.core import health, status
from llmservice.core.canary.director import Course, Subject, direct, rollout_status, summary
from llmservice.core.canary.gates import open_bench
from llmservice.core.canary.state import Hold, Phase
from llmservice.core.capacity import capacity_status, next_read
from llmservice.core.config import Config
from llmservice.core.decision import Apply, Decision, Delete
from llmservice.core.observed import Child, ChildRef, DeploymentFacts, Manifest, Observed
from llmservice.core.ownership import lost_fields
from llmservice.core.planning import plan_status
from llmservice.core.resources import children as build
from llmservice.core.resources.bench import build_bench
from llmservice.core.resources.pod import build_pod_template
from llmservice.core.revisions import Revision, content_hash, revision_hash, unpack_revision
from llmservice.core.rollout import Capacity, NoRoom, RolloutInput, RolloutPlan, plan_rollout
from llmservice.core.router.gateway import ROUTE_KIND
from llmservice.core.validation import InvalidSpec, ValidSpec, is_refused, validate_spec


@dataclass(frozen=True, slots=True)
class _Situation:
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


def reconcile(observed: Observed, config: Config) -> Decision:
    """Decide what to do for one service, now."""
    service = observed.service
    if service.deleting:
        return Decision()  # the garbage collector takes the children
    valid = validate_spec(service.key.name, service.spec)
    if isinstance(valid, InvalidSpec):
        problem = status.Problem(status.Reason.InvalidSpec, valid.message, stalled=True)
        return _refuse(observed, problem)
    if is_refused(valid) and revision_hash(valid.spec) not in _stored_revisions(observed):
        plan = plan_status(valid.plan.memory)
        problem = status.Problem(status.Reason.InfeasiblePlan, plan["message"], stalled=True)
        return _refuse(observed, problem, plan)
    situation = _assess(observed, valid, config)
    new_status = _status(situation, config)
    changed = new_status != service.status
    to_read = next_read(observed, situation.target.hash) if config.engine_metrics else None
    request, read_in = to_read or (None, 0.0)
    return Decision(
        apply=tuple(_to_apply(situation, config)),
        delete=tuple(_to_delete(situation, config)),
        status=new_status if changed else None,
        events=status.status_events(service.status, new_status) if changed else (),
        read_logs=tuple(health.logs_to_read(observed)),
        read_metrics=request if read_in <= 0 else None,
        ask=situation.course.ask if situation.course else (),
        patch_route=situation.course.router.patch() if situation.course else None,
        baselines=situation.course.look.baselines if situation.course else None,
        requeue_after_seconds=_requeue_after(situation, read_in),
    )


def desired_children(observed: Observed, config: Config) -> list[Manifest] | InvalidSpec:
    """Every child as it should be, live or not; what ``llmservice render`` prints."""
    valid = validate_spec(observed.service.key.name, observed.service.spec)
    if isinstance(valid, InvalidSpec):
        return valid
    return [_stamped(manifest) for manifest in _desired(_assess(observed, valid, config), config)]


def _refuse(
    observed: Observed, problem: status.Problem, plan: Mapping[str, Any] | None = None
) -> Decision:
    """Say what is wrong; the pods of the earlier spec go on serving."""
    service = observed.service
    ready = sum(pod.ready for pod in observed.pods)
    progress = status.Progress(
        wanted=ready,
        ready=ready,
        rolled_out=False,
        rolling=False,
        problem=problem,
    )
    new = {
        **service.status,
        "observedGeneration": service.generation,
        "phase": status.phase(progress),
        "readyReplicas": ready,
        **({"plan": plan} if plan else {}),
        "conditions": status.build_conditions(observed, progress),
    }
    if new == service.status:
        return Decision()
    return Decision(status=new, events=status.status_events(service.status, new))


def _assess(observed: Observed, valid: ValidSpec, config: Config) -> _Situation:
    stored = _stored_revisions(observed)
    target = _target_revision(observed, valid, stored)
    deployments = {
        child.ref.name.removeprefix(f"{observed.service.key.name}-"): child.deployment
        for child in observed.children.values()
        if child.deployment is not None and not child.deleting
        if child.ref.name != names.router_name(observed.service.key.name)
    }
    no_room = _no_room(observed, target, stored, deployments)
    policy = valid.spec.rollout
    revisions = {**stored, target.hash: target}
    limit = config.max_concurrent_rollouts
    course = direct(Subject(observed, valid.spec, target.hash, revisions, no_room, limit))
    given = RolloutInput(
        target=target.hash,
        wanted=valid.spec.replicas,
        deployments=deployments,
        policy=policy,
        no_room=no_room,
        now=observed.now,
        replacing=_replacing_because(observed, target) is not None,
    )
    rollout = plan_rollout(given) if course is None else _as_plan(course, given)
    stopping = any(pod.deleting for pod in observed.pods)
    making_room = stopping or bool(no_room and no_room.freeing_helps and policy.capacity != "Surge")
    return _Situation(observed, valid, target, revisions, deployments, rollout, course, making_room)


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


def _stored_revisions(observed: Observed) -> dict[str, Revision]:
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
        return Revision(hash_, latest + 1, template, valid.plan.version)
    number = known.number if known.number == latest else latest + 1
    return Revision(hash_, number, known.template, known.version)


def _no_room(
    observed: Observed,
    target: Revision,
    stored: Mapping[str, Revision],
    deployments: Mapping[str, DeploymentFacts],
) -> NoRoom | None:
    """No new pod gets a place, and none is about to: neither one that loads nor one that stops."""
    if any(pod.deleting for pod in observed.pods):
        return None
    unready = [p for p in observed.pods if p.revision == target.hash and not p.ready]
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


def _replacing_because(observed: Observed, target: Revision) -> str | None:
    """Why this rollout goes by Replace, as it was said when it began; None if it does not."""
    if observed.service.status.get("updatedRevision") != target.hash:
        return None
    for condition in observed.service.status.get("conditions", ()):
        if condition.get("type") == status.ConditionType.RolloutCapacity:
            return condition.get("message") if condition.get("reason") == "Replace" else None
    return None


# --- children -----------------------------------------------------------------------------------


def _desired(situation: _Situation, config: Config) -> Iterator[Manifest]:
    """In the order in which they are applied: what pods need comes before pods."""
    service, spec, course = situation.observed.service, situation.valid.spec, situation.course
    yield build.build_service_account(service)
    yield course.router.entry() if course else build.build_entry_service(service, spec)
    yield build.build_disruption_budget(service)
    for hash_, replicas in sorted(situation.rollout.replicas.items()):
        revision = situation.revisions.get(hash_)
        is_target = hash_ == situation.target.hash
        if revision is None or (not is_target and situation.rollout.complete):
            continue
        yield build.build_controller_revision(service, revision)
        yield build.build_headless_service(service, hash_)
        yield build.build_deployment(service, spec, revision, replicas)
    if course is not None:
        yield from course.router.children(config)
    if (bench := _wanted_bench(situation)) is not None:
        yield build_bench(service, *bench, config)


def _wanted_bench(situation: _Situation) -> tuple[str, BenchGate, Revision] | None:
    """The Job whose figures a gate waits for: name, what it runs, whose pods answer."""
    if situation.course is None:
        return None
    rollout = situation.course.rollout
    found = open_bench(rollout, situation.valid.spec.rollout, situation.observed.service)
    canary = situation.revisions.get(rollout.canary or "")
    return None if found is None or canary is None else (*found, canary)


def _stamped(manifest: Manifest) -> Manifest:
    """The manifest with the hash of its own content, by which a later look knows it again."""
    annotations = {names.APPLIED_HASH_ANNOTATION: content_hash(manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def _to_apply(situation: _Situation, config: Config) -> Iterator[Apply]:
    for manifest in map(_stamped, _desired(situation, config)):
        ref = ChildRef(manifest["kind"], manifest["metadata"]["name"])
        live = situation.observed.children.get(ref)
        if not _is_current(live, manifest, situation.observed.service.uid):
            yield Apply(ref, manifest, force=live is not None)


def _is_current(live: Child | None, manifest: Manifest, owner_uid: str) -> bool:
    if live is None:
        return False
    if live.deleting or live.controller_uid not in (None, owner_uid):
        return True  # written when it is gone; another controller's object is not ours to touch
    if live.job is not None:
        return True  # its pod cannot be changed
    digest = manifest["metadata"]["annotations"][names.APPLIED_HASH_ANNOTATION]
    return live.applied_hash == digest and not lost_fields(manifest, live.owned_fields)


def _to_delete(situation: _Situation, config: Config) -> Iterator[Delete]:
    """What is not needed any more: of revisions, of history over the limit, of routers."""
    if situation.course is None and not situation.rollout.complete:
        return
    service = situation.observed.service.key.name
    live = set(situation.course.pods) if situation.course else {situation.target.hash}
    kept = live | {situation.target.hash} | set(_history(situation, config))
    live_names = {names.revision_name(service, hash_) for hash_ in live}
    kept_names = {names.revision_name(service, hash_) for hash_ in kept}
    bench = _wanted_bench(situation)
    for ref, child in sorted(situation.observed.children.items()):
        if child.deleting or child.controller_uid != situation.observed.service.uid:
            continue
        if ref.name == names.router_name(service) or ref.kind == ROUTE_KIND:
            gone = situation.course is None or not situation.course.router.keeps(ref)
        elif ref.kind == "ControllerRevision":
            gone = ref.name not in kept_names
        elif ref.kind == "Deployment" or (ref.kind == "Service" and ref.name != service):
            gone = ref.name not in live_names
        elif child.job is not None:
            gone = not child.job.ended and (bench is None or ref.name != bench[0])
        else:
            gone = False
        if gone:
            yield Delete(ref, child.uid)


def _history(situation: _Situation, config: Config) -> Iterator[str]:
    """The newest revisions besides that of the spec."""
    others = (r for r in situation.revisions.values() if r.hash != situation.target.hash)
    newest = sorted(others, key=lambda revision: revision.number, reverse=True)
    return (revision.hash for revision in newest[: config.revision_history_limit])


# --- status -------------------------------------------------------------------------------------


def _status(situation: _Situation, config: Config) -> dict[str, Any]:
    observed, target, rollout = situation.observed, situation.target, situation.rollout
    service, old = observed.service, observed.service.status
    plan = plan_status(situation.valid.plan.memory)
    pods = [pod for pod in observed.pods if not pod.deleting]
    ready = sum(pod.ready for pod in pods)
    rolling = any(
        h != target.hash and (d.replicas or d.current_replicas)
        for h, d in situation.deployments.items()
    )
    progress = status.Progress(
        wanted=situation.valid.spec.replicas,
        ready=ready,
        rolled_out=rollout.complete,
        rolling=rolling,
        problem=_rejection(situation)
        or health.find_problem(
            observed,
            target.hash,
            situation.deployments.get(target.hash),
            making_room=situation.making_room,
        ),
        capacity=_capacity(situation, rolling=rolling),
        rollout=summary(situation.course) if situation.course else "",
    )
    course = situation.course
    stable = target.hash if rollout.complete else old.get("stableRevision")
    if course is not None:
        stable = course.after.stable
    new = {
        "observedGeneration": service.generation,
        "phase": status.phase(progress),
        "url": f"http://{service.key.name}.{service.key.namespace}.svc.{config.cluster_domain}"
        f":{situation.valid.spec.service.port}/v1",
        "replicas": len(pods),
        "readyReplicas": ready,
        "selector": ",".join(
            f"{key}={value}"
            for key, value in sorted(names.engine_selector(service.key.name).items())
        ),
        "stableRevision": stable,
        "updatedRevision": target.hash,
        "revisions": _revision_statuses(situation),
        "rollout": rollout_status(course) if course else None,
        "engine": {
            "image": target.engine["image"],
            "version": target.version,
            "arguments": target.engine["args"],
        },
        "plan": plan,
        "capacity": capacity_status(observed, target.hash, plan),
        "conditions": status.build_conditions(observed, progress),
    }
    return {key: value for key, value in new.items() if value is not None}


def _rejection(situation: _Situation) -> status.Problem | None:
    """That the newest revision was turned down, until the spec changes or a person asks again."""
    course = situation.course
    if course is None or course.after.phase is not Phase.Aborted:
        return None
    message = (
        f"revision {situation.target.hash} was turned down: {course.after.message}; change the"
        f" spec, or try again with `llmservice retry {situation.observed.service.key.name}`"
    )
    return status.Problem(status.Reason.RolloutAborted, message, stalled=True)


def _capacity(situation: _Situation, *, rolling: bool) -> tuple[str, str, str] | None:
    """Which way round the rollout goes, and why."""
    rollout = situation.rollout
    because = _replacing_because(situation.observed, situation.target)
    replaces = rollout.capacity is Capacity.Replace or not rolling
    if because and replaces and not rollout.complete:
        # Said until the new pods are ready, in the words that name what is missing.
        return "True", Capacity.Replace, because
    if not rolling:
        return None
    if rollout.waiting:
        return "False", status.Reason.WaitingForRoom, rollout.why
    return "True", str(rollout.capacity), rollout.why


def _revision_statuses(situation: _Situation) -> list[dict[str, Any]]:
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


def _requeue_after(situation: _Situation, read_in: float) -> float | None:
    pauses = [read_in] if read_in > 0 else []
    if situation.course is not None and situation.course.again_in is not None:
        pauses.append(situation.course.again_in)
    is_routed = router_of(situation.valid.spec) != "None"
    if situation.course is None and situation.rollout.complete and is_routed:
        pauses.append(0.0)  # a course starts from the status that is about to be written
    at = situation.rollout.check_again_at
    if at is not None:
        pauses.append(max(0.0, (at - situation.observed.now) / timedelta(seconds=1)))
    return min(pauses, default=None)
