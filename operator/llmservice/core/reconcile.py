"""The table of contents of the product: observed in, decision out.

::

    spec --validate, plan--> Stalled/InvalidSpec or InfeasiblePlan, children left as they are;
      |                      a canary under way goes on by the last spec that was accepted
      |
      v
    revision (hash; stored pod template, or a new one) -> pods per revision (rollout)
      |
      v
    children wanted  - children live  = apply, delete
    problems of pods, progress        = status, events, logs and metrics to read

Pure and level-triggered: it reads nothing but :class:`Observed` and :class:`ClusterFacts`, so any
lost or repeated event ends in the same state, and a new leader continues where the old one stopped.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from llmservice.api import names
from llmservice.api.gates import BenchGate
from llmservice.api.v1alpha1 import router_of
from llmservice.core import health, status
from llmservice.core.autoscaling.idle import Rest
from llmservice.core.autoscaling.keda import Looks, look
from llmservice.core.canary.director import Course, last_spec
from llmservice.core.canary.gates import open_bench
from llmservice.core.capacity import next_read
from llmservice.core.config import Config
from llmservice.core.decision import Apply, Decision, Delete
from llmservice.core.observed import Child, ChildRef, Manifest, Observed
from llmservice.core.ownership import lost_fields, owns
from llmservice.core.reporting import service_status
from llmservice.core.resources import children as build
from llmservice.core.resources.autoscaler import (
    SCALED_OBJECT_KIND,
    autoscaler_ref,
    build_autoscaler,
    unwanted_autoscalers,
)
from llmservice.core.resources.bench import build_bench
from llmservice.core.revisions import Revision, content_hash
from llmservice.core.router.gateway import ROUTE_KIND
from llmservice.core.situation import ClusterFacts, Refusal, Situation, assess, judge
from llmservice.core.validation import InvalidSpec, ValidSpec, validate_spec

_UNKNOWN = ClusterFacts()


def reconcile(observed: Observed, config: Config, cluster: ClusterFacts = _UNKNOWN) -> Decision:
    """Decide what to do for one service, now."""
    if observed.service.deleting:
        return Decision()  # the garbage collector takes the children
    judged = judge(observed)
    if isinstance(judged, Refusal):
        return _refuse(observed, judged, config, cluster)
    return _decide(assess(observed, judged, config, cluster), config)


def _decide(situation: Situation, config: Config) -> Decision:
    observed, service = situation.observed, situation.observed.service
    new_status = service_status(situation)
    changed = new_status != service.status
    to_read = next_read(observed, situation.target.hash) if config.engine_metrics else None
    request, read_in = to_read or (None, 0.0)
    askers = _askers(situation)
    return Decision(
        apply=tuple(_to_apply(situation, config)),
        delete=tuple(_to_delete(situation, config)),
        status=new_status if changed else None,
        events=status.status_events(service.status, new_status) if changed else (),
        read_logs=tuple(health.logs_to_read(observed)),
        read_metrics=request if read_in <= 0 else None,
        ask=tuple(dict.fromkeys(question for asker in askers for question in asker.ask)),
        patch_route=situation.course.router.patch() if situation.course else None,
        baselines=situation.course.look.baselines if situation.course else None,
        most_replicas=situation.bound.replicas if situation.bound else None,
        requeue_after_seconds=_requeue_after(situation, askers, read_in),
    )


def _askers(situation: Situation) -> list[Course | Rest | Looks]:
    """All that ask something, and say when they are to be looked at again."""
    names = _scaled_objects(situation)
    looks = look(situation.observed, names) if names else None
    found = (situation.course, situation.rest, looks)
    return [asker for asker in found if asker is not None]


def desired_children(observed: Observed, config: Config) -> list[Manifest] | InvalidSpec:
    """Every child as it should be, live or not; what ``llmservice render`` prints."""
    valid = validate_spec(observed.service.key.name, observed.service.spec)
    if isinstance(valid, InvalidSpec):
        return valid
    situation = assess(observed, valid, config, _UNKNOWN)
    return [_stamped(manifest) for manifest in _desired(situation, config)]


def _refuse(
    observed: Observed, refusal: Refusal, config: Config, cluster: ClusterFacts
) -> Decision:
    """Say what is wrong; the pods of the earlier spec go on serving.

    A canary that is under way goes on by that spec: it is judged, and taken back, as before.
    """
    service, spec = observed.service, last_spec(observed)
    if spec is not None:
        earlier = replace(observed, service=replace(service, spec=spec))
        judged = judge(earlier)
        if isinstance(judged, ValidSpec):
            situation = replace(assess(earlier, judged, config, cluster), refusal=refusal)
            return _decide(situation, config)
    ready = sum(pod.ready for pod in observed.pods)
    progress = status.Progress(
        wanted=ready,
        ready=ready,
        rolled_out=False,
        rolling=False,
        problem=refusal.problem,
    )
    new = {
        **service.status,
        "observedGeneration": service.generation,
        "phase": status.phase(progress),
        "readyReplicas": ready,
        **({"plan": refusal.plan} if refusal.plan else {}),
        "conditions": status.build_conditions(observed, progress),
    }
    if new == service.status:
        return Decision()
    return Decision(status=new, events=status.status_events(service.status, new))


# --- children -----------------------------------------------------------------------------------


def _desired(situation: Situation, config: Config) -> Iterator[Manifest]:
    """In the order in which they are applied: what pods need comes before pods."""
    service, spec, course = situation.observed.service, situation.valid.spec, situation.course
    yield build.build_service_account(service)
    yield course.router.entry() if course else build.build_entry_service(service, spec)
    yield build.build_disruption_budget(service)
    for revision, replicas in _live_revisions(situation):
        yield build.build_controller_revision(service, revision)
        yield build.build_headless_service(service, revision.hash)
        sized = situation.scaling.revisions.get(revision.hash)
        counted = sized is not None and revision.hash in situation.deployments
        yield build.build_deployment(service, spec, revision, None if counted else replicas)
        if spec.autoscaling is not None and _has_autoscaler(situation, revision.hash):
            measured = situation.cold_start.get("seconds")
            tolerances = situation.cluster.hpa_tolerances
            yield build_autoscaler(
                service, spec.autoscaling, revision, sized, measured, tolerances=tolerances
            )
    if course is not None:
        yield from course.router.children(config)
    if (bench := _wanted_bench(situation)) is not None:
        yield build_bench(service, *bench)


def _live_revisions(situation: Situation) -> Iterator[tuple[Revision, int]]:
    """Those that have pods, and how many of them."""
    for hash_, replicas in sorted(situation.rollout.replicas.items()):
        revision = situation.revisions.get(hash_)
        is_target = hash_ == situation.target.hash
        if revision is not None and (is_target or not situation.rollout.complete):
            yield revision, replicas


def _has_autoscaler(situation: Situation, revision: str) -> bool:
    """KEDA's is paused while it must not count, an HPA is not there."""
    wish = situation.valid.spec.autoscaling
    is_sized = revision in situation.scaling.revisions
    return wish is not None and (is_sized or wish.provider == "KEDA")


def _autoscalers(situation: Situation) -> list[ChildRef]:
    """All that there should be."""
    wish, service = situation.valid.spec.autoscaling, situation.observed.service
    hashes = [revision.hash for revision, _ in _live_revisions(situation)]
    return [
        autoscaler_ref(wish, service, each)
        for each in hashes
        if wish is not None and _has_autoscaler(situation, each)
    ]


def _scaled_objects(situation: Situation) -> list[str]:
    """Names of those that there should be."""
    return [ref.name for ref in _autoscalers(situation) if ref.kind == SCALED_OBJECT_KIND]


def _wanted_bench(situation: Situation) -> tuple[str, BenchGate, Revision] | None:
    """The Job whose figures a gate waits for: name, what it runs, whose pods answer."""
    if situation.course is None:
        return None
    rollout = situation.course.rollout
    found = open_bench(rollout, situation.valid.spec.rollout, situation.observed.service)
    canary = situation.revisions.get(rollout.canary or "")
    return None if found is None or canary is None else (*found, canary)


def _stamped(manifest: Manifest) -> Manifest:
    """The manifest with the hash of its own content, by which a later look knows it again."""
    own = manifest["metadata"].get("annotations", {})
    annotations = {**own, names.APPLIED_HASH_ANNOTATION: content_hash(manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def _to_apply(situation: Situation, config: Config) -> Iterator[Apply]:
    for manifest in map(_stamped, _desired(situation, config)):
        ref = ChildRef(manifest["kind"], manifest["metadata"]["name"])
        live = situation.observed.children.get(ref)
        if live is not None and live.deployment is not None and not live.deleting:
            yield from _scale(situation, live, live.deployment.replicas)
        if not _is_current(live, manifest, situation.observed.service.uid):
            yield Apply(ref, manifest, force=live is not None)


def _scale(situation: Situation, live: Child, now: int) -> Iterator[Apply]:
    """What only we can do where an autoscaler counts: bounds kept at once, a start from zero.

    And the hand-over: nobody lets go of ``spec.replicas`` before another one holds it.
    """
    service = situation.observed.service
    hash_ = live.ref.name.removeprefix(f"{service.key.name}-")
    sized = situation.scaling.revisions.get(hash_)
    if sized is None or live.controller_uid != service.uid:
        return
    inside = sized.bounds.clamp(max(now, _size_to_restore(situation, hash_)))
    if inside != now or owns(live.owned_fields, "spec", "replicas"):
        manifest = build.build_scale(live, service, inside)
        yield Apply(live.ref, manifest, force=True, manager=names.SCALE_MANAGER)


def _size_to_restore(situation: Situation, revision: str) -> int:
    """What a revision needs that takes the lead; 0 for one that has it, and for others."""
    led = situation.observed.service.status.get("autoscaling", {}).get("revision")
    takes_over = revision == situation.scaling.lead != led
    return situation.valid.spec.replicas if takes_over else 0


def _is_current(live: Child | None, manifest: Manifest, owner_uid: str) -> bool:
    if live is None:
        return False
    if live.deleting or live.controller_uid not in (None, owner_uid):
        return True  # written when it is gone; another controller's object is not ours to touch
    if live.job is not None:
        return True  # its pod cannot be changed
    digest = manifest["metadata"]["annotations"][names.APPLIED_HASH_ANNOTATION]
    return live.applied_hash == digest and not lost_fields(manifest, live.owned_fields)


def _to_delete(situation: Situation, config: Config) -> Iterator[Delete]:
    """What is not needed any more: of revisions, of history over the limit, of routers."""
    observed = situation.observed
    autoscalers = _autoscalers(situation)
    yield from unwanted_autoscalers(observed.service, autoscalers, observed.children)
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


def _history(situation: Situation, config: Config) -> Iterator[str]:
    """The newest revisions besides that of the spec."""
    others = (r for r in situation.revisions.values() if r.hash != situation.target.hash)
    newest = sorted(others, key=lambda revision: revision.number, reverse=True)
    return (revision.hash for revision in newest[: config.revision_history_limit])


def _requeue_after(
    situation: Situation, askers: list[Course | Rest | Looks], read_in: float
) -> float | None:
    pauses = [read_in] if read_in > 0 else []
    pauses += [asker.again_in for asker in askers if asker.again_in is not None]
    is_routed = router_of(situation.valid.spec) != "None"
    if situation.course is None and situation.rollout.complete and is_routed:
        pauses.append(0.0)  # a course starts from the status that is about to be written
    at = situation.rollout.check_again_at
    if at is not None:
        pauses.append(max(0.0, (at - situation.observed.now) / timedelta(seconds=1)))
    return min(pauses, default=None)
