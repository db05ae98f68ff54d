"""A service whose autoscaler counts its pods: at rest, through rollouts, and both hand-overs."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from llmservice.api import names
from llmservice.core.autoscaling.budget import Budget, Claim
from llmservice.core.autoscaling.scaling import MetricsApi, misses_metrics
from llmservice.core.decision import Delete
from llmservice.core.observed import AutoscalerFacts, Child, ChildRef
from llmservice.core.questions import Answer, ReadScaledObject, ScaledObjectReading
from llmservice.core.reconcile import reconcile
from llmservice.core.resources.autoscaler import (
    AUTOSCALER_KIND,
    PAUSED_ANNOTATION,
    SCALED_OBJECT_KIND,
)
from llmservice.core.situation import ClusterFacts
from tests.state.canary_world import CanaryWorld, after, canary_spec
from tests.state.world import World, a_spec

BOUNDS = {"minReplicas": 2, "maxReplicas": 10}


def autoscalers(world):
    """Manifest of each HPA by its revision."""
    return {
        ref.name.removeprefix("mistral-"): manifest["spec"]
        for ref, manifest in world.manifests.items()
        if ref.kind == AUTOSCALER_KIND
    }


def replicas(world):
    """Pods asked for, by revision."""
    return {
        ref.name.removeprefix("mistral-"): child.deployment.replicas
        for ref, child in world.children.items()
        if child.deployment is not None and ref.name != "mistral-router"
    }


def a_world(**autoscaling):
    """A settled service with an autoscaler."""
    world = World(spec=a_spec(autoscaling={**BOUNDS, **autoscaling}))
    world.settle()
    return world


def scale(world, wanted):
    """Let the HPA of every revision that has one want so many replicas."""
    world.autoscaler_wants = dict.fromkeys(autoscalers(world), wanted)
    world.settle()


def test_service_begins_with_its_minimum():
    """Not with one pod that an autoscaler then adds to."""
    world = World(spec=a_spec(autoscaling=BOUNDS))
    world.reconcile()

    assert [2] == list(replicas(world).values())
    world.settle()
    (spec,) = autoscalers(world).values()
    assert (2, 10) == (spec["minReplicas"], spec["maxReplicas"])


def test_autoscaler_is_not_fought():
    """Once it wrote a number, no decision of ours holds another one, nor owns the field."""
    world = a_world()
    scale(world, 7)
    (revision,) = replicas(world)

    assert {revision: 7} == replicas(world)
    assert "replicas" not in world.manifests[ChildRef("Deployment", f"mistral-{revision}")]["spec"]
    assert 7 == world.status["autoscaling"]["replicas"]
    assert "7 of 7 replicas are ready" in world.condition("Ready")["message"]
    assert not world.reconcile().apply


def test_handing_over_never_dips():
    """From a number in the spec to an autoscaler: somebody owns the field all the time."""
    world = World(spec=a_spec(replicas=5))
    world.settle()
    world.edit(autoscaling=BOUNDS)
    seen = []
    for _ in range(10):
        world.reconcile()
        world.load_pods()
        seen += replicas(world).values()

    assert {5} == set(seen)
    (revision,) = replicas(world)
    owners = world.replica_owners[ChildRef("Deployment", f"mistral-{revision}")]
    assert names.CHILD_MANAGER not in owners


def test_taking_back_sets_the_number_of_the_spec():
    """Without an autoscaler spec.replicas holds again, and the HPA is gone."""
    world = a_world()
    scale(world, 7)
    spec = {key: value for key, value in world.spec.items() if key != "autoscaling"}
    world.spec, world.generation = {**spec, "replicas": 4}, 2
    world.settle()

    assert [4] == list(replicas(world).values())
    assert {} == autoscalers(world)
    assert "autoscaling" not in world.status
    assert world.condition("AutoscalingReady") is None


def test_bounds_are_kept_at_once():
    """A raised minimum does not wait for the autoscaler, nor does a lowered maximum."""
    world = a_world()
    scale(world, 4)
    world.autoscaler_wants = {}
    world.edit(autoscaling={"minReplicas": 6, "maxReplicas": 10})
    world.settle()
    assert [6] == list(replicas(world).values())

    world.edit(autoscaling={"minReplicas": 1, "maxReplicas": 3})
    world.settle()
    assert [3] == list(replicas(world).values())


def test_zero_by_hand_is_mended():
    """An HPA does nothing for a target at zero, so we do."""
    world = a_world()
    (revision,) = replicas(world)
    world._set_replicas(ChildRef("Deployment", f"mistral-{revision}"), 0, "kubectl")
    world.settle()

    assert {revision: 2} == replicas(world)


def test_rolling_update_keeps_the_size():
    """While pods change places nobody else counts them; then the new revision is counted."""
    world = a_world()
    scale(world, 6)
    world.edit_engine(maxNumSeqs=32)
    world.reconcile()
    assert {} == autoscalers(world)
    assert "SizeKept" == world.condition("AutoscalingReady")["reason"]

    world.settle()
    assert [6] == list(replicas(world).values())
    assert replicas(world).keys() == autoscalers(world).keys()
    assert world.status["autoscaling"]["revision"] == world.status["stableRevision"]


def lose_metrics(world):
    """What the HPA says when nobody answers it."""
    (ref,) = [ref for ref in world.children if ref.kind == AUTOSCALER_KIND]
    failed = AutoscalerFacts(False, "FailedGetPodsMetric", "unable to get metric")
    world.children[ref] = replace(world.children[ref], autoscaler=failed)


def test_autoscaler_without_metrics_is_reported():
    """The condition repeats what the HPA says, and what to do."""
    world = a_world()
    lose_metrics(world)
    world.reconcile()
    condition = world.condition("AutoscalingReady")

    assert ("False", "FailedGetPodsMetric") == (condition["status"], condition["reason"])
    assert "unable to get metric; nothing is scaled down" in condition["message"]


@pytest.mark.parametrize(
    ("provider", "expected"),
    [("Builtin", "MetricsAPITaken"), ("PrometheusAdapter", "FailedGetPodsMetric")],
)
def test_adapter_in_the_way_is_named_where_it_is_not_asked_for(provider, expected):
    """Who serves metrics is looked at for those alone who miss ours."""
    world = a_world(provider=provider)
    assert not misses_metrics(world.observe())
    lose_metrics(world)
    assert misses_metrics(world.observe()) == (provider == "Builtin")

    taken = MetricsApi("v1beta1.custom.metrics.k8s.io", "Service monitoring/adapter")
    facts = ClusterFacts(metrics_api=taken)
    decision = reconcile(world.observe(), world.config, facts)
    conditions = {each["type"]: each["reason"] for each in decision.status["conditions"]}
    assert expected == conditions["AutoscalingReady"]
    assert "Serving" == conditions["Ready"]


def test_cluster_that_learns_tolerances_gets_them():
    """Of all that there is, only the HPA is written once more."""
    world = a_world()
    decision = reconcile(world.observe(), world.config, ClusterFacts(hpa_tolerances=True))
    (apply,) = decision.apply
    assert AUTOSCALER_KIND == apply.ref.kind
    assert "tolerance" in apply.manifest["spec"]["behavior"]["scaleUp"]


KEDA = {"provider": "KEDA", "prometheusUrl": "http://prometheus.monitoring.svc:9090"}


def scaled_objects(world):
    """Whether each ScaledObject is paused, by its revision."""
    return {
        ref.name.removeprefix("mistral-"): PAUSED_ANNOTATION in manifest["metadata"]["annotations"]
        for ref, manifest in world.manifests.items()
        if ref.kind == SCALED_OBJECT_KIND
    }


def a_keda_world():
    """A settled service that KEDA counts; it is looked at now and then, for ever."""
    world = a_world()
    world.edit(autoscaling={**BOUNDS, **KEDA})
    go_on(world)
    return world


def go_on(world):
    """For as long as a rollout takes."""
    for _ in range(20):
        world.reconcile()
        world.load_pods()
        world.now += timedelta(seconds=10)


def test_rolling_update_pauses_keda():
    """No HPA of its own meanwhile, and the ScaledObject does not have to be made again."""
    world = a_keda_world()
    (old,) = replicas(world)
    assert {old: False} == scaled_objects(world)
    world.edit_engine(maxNumSeqs=32)
    world.reconcile()
    (new,) = replicas(world).keys() - {old}
    assert {old: True, new: True} == scaled_objects(world)

    go_on(world)
    assert {new: 2} == replicas(world)
    assert {new: False} == scaled_objects(world)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ("True", "Scaling")),
        ({"health": {"s0": {"status": "Happy"}}}, ("True", "Scaling")),
        ({"health": {"s0": {"status": "Failing"}}}, ("False", "FailedGetExternalMetric")),
        (
            {"conditions": [{"type": "Ready", "status": "False", "reason": "Refused"}]},
            ("False", "Refused"),
        ),
    ],
)
def test_what_keda_says_outranks_its_hpa(said, expected):
    """Its HPA looks well while it is fed numbers that hold the pods."""
    world = a_keda_world()
    (name,) = (f"mistral-{each}" for each in replicas(world))
    hpa = ChildRef(AUTOSCALER_KIND, f"keda-hpa-{name}")
    made = world.children[ChildRef(SCALED_OBJECT_KIND, name)]
    theirs = replace(made, controller_uid=made.uid, controller_kind=SCALED_OBJECT_KIND)
    world.children[hpa] = replace(theirs, ref=hpa, autoscaler=AutoscalerFacts(active=True))
    answer = Answer(world.now, ScaledObjectReading({"status": said}))
    observed = replace(world.observe(), answers={(ReadScaledObject, name): answer})

    decision = reconcile(observed, world.config)
    status = decision.status or world.status
    found = {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}
    assert expected == found["AutoscalingReady"]
    assert ("True", "Serving") == found["Ready"]
    assert () == decision.ask
    assert 20.0 == decision.requeue_after_seconds


def test_keda_is_asked_now_and_then():
    """Nobody tells when it fails."""
    world = a_keda_world()
    (revision,) = replicas(world)
    question = ReadScaledObject("default", f"mistral-{revision}")
    assert (question,) == reconcile(world.observe(), world.config).ask
    for age, asked in ((19, ()), (20, (question,))):
        answer = Answer(world.now - timedelta(seconds=age), None)
        observed = replace(world.observe(), answers={(ReadScaledObject, question.name): answer})
        assert asked == reconcile(observed, world.config).ask


def test_another_provider_takes_over():
    """One object counts the pods at a time; the other one's goes with it."""
    world = a_world()
    (revision,) = autoscalers(world)
    world.edit(autoscaling={**BOUNDS, **KEDA})
    go_on(world)
    made = ChildRef(SCALED_OBJECT_KIND, f"mistral-{revision}")
    assert made in world.manifests
    assert {} == autoscalers(world)

    # KEDA's own HPA, by which we know that there is a ScaledObject after a restart.
    theirs = Child(
        ChildRef(AUTOSCALER_KIND, f"keda-hpa-mistral-{revision}"),
        uid="hpa",
        resource_version="1",
        applied_hash="copied",
        owned_fields="{}",
        controller_uid="so",
        controller_kind=SCALED_OBJECT_KIND,
        autoscaler=AutoscalerFacts(active=True),
    )
    del world.children[made], world.manifests[made]
    world.children[theirs.ref] = theirs
    world.edit(autoscaling=BOUNDS)
    assert [Delete(made, "so")] == list(reconcile(world.observe(), world.config).delete)


def canary_world(**rollout):
    """A service with an autoscaler whose canary has just begun."""
    spec = canary_spec(**rollout) | {"autoscaling": BOUNDS}
    world = CanaryWorld(spec=spec, reachable=True)
    world.run(lambda w: w.rollout.get("phase") == "Stable" and w.condition("AutoscalingReady"))
    world.autoscaler_wants = dict.fromkeys(autoscalers(world), 6)
    world.run(lambda w: w.status["autoscaling"]["replicas"] == 6)
    world.autoscaler_wants = {}
    world.edit_engine(maxNumSeqs=32)
    return world


def concurrency(spec):
    """Requests that one replica should carry, as the HPA has it."""
    return float(spec["metrics"][1]["pods"]["metric"]["selector"]["matchLabels"]["concurrency"])


def test_canary_and_stable_are_sized_separately():
    """Stable as if it had all of the traffic, so that it can take it back."""
    world = canary_world()
    stable = world.status["stableRevision"]
    world.run(lambda w: w.rollout.get("weight") == 50 and w.rollout["phase"] == "Judging")
    found = autoscalers(world)
    canary = world.rollout["canaryRevision"]

    assert {stable, canary} == set(found)
    assert 0.5 * 0.7 * 64 == pytest.approx(concurrency(found[stable]), abs=0.1)
    assert 0.7 * 32 == pytest.approx(concurrency(found[canary]), abs=0.1)
    assert (2, 3) == (found[stable]["minReplicas"], found[canary]["minReplicas"])
    assert {stable: 6, canary: 3} == replicas(world)


def test_size_follows_stable_during_a_canary():
    """A stable that grows has the canary grow with it."""
    world = canary_world()
    world.run(lambda w: w.rollout.get("weight") == 50 and w.rollout["phase"] == "Judging")
    stable, canary = world.status["stableRevision"], world.rollout["canaryRevision"]
    world.autoscaler_wants = {stable: 10}
    world.run(lambda w: replicas(w) == {stable: 10, canary: 5}, seconds=60)


def test_promoted_canary_keeps_the_size():
    """From the first step to the end there are never fewer pods than the traffic needs."""
    world = canary_world()
    before = world.status["stableRevision"]
    world.run(lambda w: before not in replicas(w))

    assert [6] == list(replicas(world).values())
    assert replicas(world).keys() == autoscalers(world).keys()
    assert 0 == world.lost
    assert "SizeKept" != world.condition("AutoscalingReady")["reason"]


def test_stable_with_less_than_half_is_not_counted_by_keda():
    """Paused, until its pods go; the canary is not."""
    spec = canary_spec() | {"autoscaling": {**BOUNDS, **KEDA}}
    world = CanaryWorld(spec=spec, reachable=True)
    world.run(lambda w: w.rollout.get("phase") == "Stable" and w.condition("AutoscalingReady"))
    world.edit_engine(maxNumSeqs=32)
    world.run(lambda w: w.rollout.get("weight") == 50 and w.rollout["phase"] == "Judging")
    stable, canary = world.status["stableRevision"], world.rollout["canaryRevision"]
    assert {stable: False, canary: False} == scaled_objects(world)

    world.run(lambda w: w.rollout.get("weight", 0) > 50)
    world.reconcile()
    assert {stable: True, canary: False} == scaled_objects(world)
    world.run(lambda w: stable not in replicas(w))
    world.reconcile()
    assert {canary: False} == scaled_objects(world)


def test_replacing_canary_keeps_the_size():
    """Pods that make room are no reason to shrink the service, look after look."""
    world = canary_world(capacity="Replace")
    before = world.status["stableRevision"]
    world.run(lambda w: w.rollout.get("weight") == 50)
    assert 6 == sum(replicas(world).values())
    assert {} == autoscalers(world)
    world.run(lambda w: before not in replicas(w))
    world.reconcile()

    assert [6] == list(replicas(world).values())


def test_cold_start_is_measured_and_fed_back():
    """How long a pod took to schedule, pull and load is what a scale-up waits for."""
    world = a_world()
    (revision,) = replicas(world)
    (name, pod), *_ = sorted(world.pods.items())
    stages = [timedelta(seconds=each) for each in (10, 60, 500)]
    world.pods[name] = replace(
        pod,
        created=world.now,
        scheduled_at=world.now + stages[0],
        started_at=world.now + stages[1],
        ready_since=world.now + stages[2],
    )
    world.reconcile()
    measured = world.status["coldStart"]
    assert (10, 50, 440, 500) == tuple(
        measured[f"{stage}econds"] for stage in ("scheduleS", "pullS", "loadS", "s")
    )
    world.reconcile()
    (spec,) = autoscalers(world).values()
    assert {510} == {each["periodSeconds"] for each in spec["behavior"]["scaleUp"]["policies"]}
    assert revision == measured["revision"]


# --- to zero and back ------------------------------------------------------------------------


def sleepy(**spec):
    """A service that may sleep, awake with one replica behind its routers."""
    wish = {"minReplicas": 0, "maxReplicas": 4, "idleSeconds": 300}
    world = CanaryWorld(
        spec=a_spec(autoscaling=wish, traffic={"router": "Embedded"}, **spec),
        reachable=True,
        requests_per_second=0.0,
    )
    world.run(lambda w: w.rollout.get("state", {}).get("routed") and autoscalers(w))
    return world


def asleep(world):
    """Whether no pod is asked for."""
    return set(replicas(world).values()) == {0}


def test_idle_service_goes_to_zero_and_stays_ready():
    """By intent: nothing is wrong, and nothing has to be done."""
    world = sleepy()
    world.idle_seconds = 301
    world.run(asleep, seconds=120)
    world.run(after(60))

    assert {} == autoscalers(world)
    assert ("True", "ScaledToZero") == tuple(
        world.condition("Ready")[each] for each in ("status", "reason")
    )
    assert "Idle" == world.status["phase"]
    assert 0 == world.status["autoscaling"]["replicas"]
    assert 600 == json.loads(world.heard["router-0"])["hold_seconds"]


def test_first_request_wakes_it():
    """What waits in any router starts one replica; from there the autoscaler goes on."""
    world = sleepy()
    world.idle_seconds = 301
    world.run(asleep, seconds=120)
    before = world.now
    world.held, world.idle_seconds = 1, 0
    world.run(lambda w: not asleep(w), seconds=60)
    assert (world.now - before).total_seconds() <= 2

    world.held = 0
    world.run(lambda w: w.condition("Ready")["reason"] == "Serving", seconds=60)
    assert [1] == list(replicas(world).values())
    assert replicas(world).keys() == autoscalers(world).keys()


@pytest.mark.parametrize("unknown", ["busy", "silent", "another"])
def test_who_may_be_asked_stays_awake(unknown):
    """A router that had a request, or does not tell, or just began, may know better."""
    world = sleepy()
    world.idle_seconds = 299 if unknown == "busy" else 301
    if unknown == "silent":
        world.heard.pop("router-1")
        world.deaf.add("router-1")
    if unknown == "another":
        world.spec["autoscaling"]["minReplicas"] = 1
        world.edit()
    world.run(after(900))

    assert [1] == list(replicas(world).values())


def test_sleep_by_hand_is_none():
    """Zero pods that nobody decided on are mended at once, also where zero is allowed."""
    world = sleepy()
    (revision,) = replicas(world)
    world._set_replicas(ChildRef("Deployment", f"mistral-{revision}"), 0, "kubectl")
    world.run(lambda w: replicas(w) == {revision: 1}, seconds=30)


def test_what_was_just_put_to_sleep_is_left_asleep():
    """The status tells of it a look later: until then it must not look like zero by hand."""
    world = sleepy()
    awake = world.status
    world.idle_seconds = 301
    world.now += timedelta(seconds=301)
    world.run(asleep, seconds=120)
    world.status = awake
    for _ in range(5):
        world.reconcile()
        assert asleep(world)

    assert 0 == world.status["autoscaling"]["replicas"]


def test_new_leader_lets_it_sleep():
    """What was only in memory is no reason to wake anybody up."""
    world = sleepy()
    world.idle_seconds = 301
    world.run(asleep, seconds=120)
    world.restart_operator()
    world.run(after(60))

    assert asleep(world)


# --- budgets of devices ----------------------------------------------------------------------


def in_a_budget(devices, held):
    """A service that shares a budget with another one, which holds some of it."""
    world = World(spec=a_spec(autoscaling=BOUNDS))
    world.config = replace(
        world.config, budgets=(Budget(name="team", devices=devices, resource="nvidia.com/gpu"),)
    )
    world.other_claims = (
        Claim("default/other", {}, "nvidia.com/gpu", 1, held, held, held, held, held, held),
    )
    return world


def test_budget_bounds_the_autoscaler():
    """What others hold is not there, and the condition says who they are."""
    world = in_a_budget(devices=8, held=5)
    world.settle()
    (spec,) = autoscalers(world).values()
    assert (2, 3) == (spec["minReplicas"], spec["maxReplicas"])

    (ref,) = [ref for ref in world.children if ref.kind == AUTOSCALER_KIND]
    full = AutoscalerFacts(True, "ValidMetricFound", "", 3, "TooManyReplicas")
    world._set_replicas(ChildRef("Deployment", ref.name), 3, "kube-controller-manager")
    world.children[ref] = replace(world.children[ref], autoscaler=full)
    world.reconcile()
    world.reconcile()
    condition = world.condition("AutoscalingReady")
    assert ("False", "WaitingForBudget") == (condition["status"], condition["reason"])
    assert "default/other holds 5" in condition["message"]
    assert condition["message"] == world.status["autoscaling"]["message"]


def test_minimum_that_does_not_fit_makes_no_pods():
    """And says so; it begins by itself once there is room."""
    world = in_a_budget(devices=8, held=8)
    world.reconcile()
    world.reconcile()
    assert [0] == list(replicas(world).values())
    assert "minReplicas 2 does not fit" in world.condition("AutoscalingReady")["message"]

    world.other_claims = ()
    world.settle()
    assert [2] == list(replicas(world).values())


def test_a_sleeper_without_room_wakes_up_once_there_is_some():
    """Its routers are asked also while its budget has nothing, and who waits is told why."""
    world = sleepy()
    world.idle_seconds = 301
    world.now += timedelta(seconds=301)
    world.run(asleep, seconds=120)
    budget = Budget(name="team", devices=8, resource="nvidia.com/gpu")
    world.config = replace(world.config, budgets=(budget,))
    full = Claim("default/other", {}, "nvidia.com/gpu", 1, 8, 8, 8, 8, 8, 8)
    world.other_claims = (full,)
    world.held, world.idle_seconds = 1, 0
    world.run(lambda w: w.status["autoscaling"].get("wantedReplicas") == 1, seconds=60)
    world.run(lambda w: w.condition("Ready")["reason"] == "WaitingForBudget", seconds=60)
    assert "False" == world.condition("Ready")["status"]
    assert asleep(world)

    world.other_claims = ()
    world.run(lambda w: not asleep(w), seconds=60)


def test_who_was_woken_up_stays_until_somebody_could_be_served():
    """The client may have given up while the model loaded, and come again."""
    world = sleepy()
    world.idle_seconds = 301
    world.now += timedelta(seconds=301)
    world.run(asleep, seconds=120)
    world.held = 1
    world.run(lambda w: not asleep(w), seconds=60, load=False)
    world.held = 0
    world.run(after(900), load=False)

    assert not asleep(world)


def test_surge_comes_on_top_of_the_maximum():
    """A service at its maximum can still try a new revision, as with a Deployment's maxSurge."""
    spec = canary_spec() | {"autoscaling": {"minReplicas": 1, "maxReplicas": 1}}
    world = CanaryWorld(spec=spec, reachable=True)
    world.run(lambda w: w.rollout.get("phase") == "Stable" and autoscalers(w))
    before = world.status["stableRevision"]
    world.edit_engine(maxNumSeqs=32)
    world.run(lambda w: w.rollout.get("weight") == 50)
    assert [1, 1] == list(replicas(world).values())
    world.run(lambda w: before not in replicas(w))

    assert [1] == list(replicas(world).values())
    assert 0 == world.lost
