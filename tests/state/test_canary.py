"""Canary rollouts from edit to end, and everything that can get in their way."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest

from llmservice.core.decision import Decision
from llmservice.core.failures import ContainerState
from llmservice.core.judge.counts import Tokens
from llmservice.core.observed import ChildRef, DeploymentFacts
from llmservice.core.questions import EngineReading
from llmservice.core.reconcile import reconcile
from tests.state.canary_world import CanaryWorld, after, canary_spec, serving
from tests.state.world import a_spec

STEP = ("Provisioning", "Warming", "Shifting", "Settling")
PROMOTED = (
    *("Preflight", *STEP, "Judging", *STEP, "Judging", *STEP),
    *("Baking", "Promoting", "Draining", "Stable"),
)


PATIENT = {"windowSeconds": 120}
"""For hours in which nothing happens."""


def edited(**changes):
    """A world that serves, with a new revision in preflight; and that revision."""
    world = serving(**changes)
    world.edit_engine(maxNumSeqs=32)
    world.run_to("Preflight")
    return world, world.newest


def crash(world, revision):
    """Every pod of a revision has died and loads anew."""
    died = ContainerState("engine", False, 1, None, None, "Error", 1, None)
    for name, pod in world.pods.items():
        if pod.revision == revision:
            world.pods[name] = replace(pod, ready=False, container=died)
    world._run_controllers()


def went_back(world, old, reason):
    """Assert that everything is as it was before the canary, and says why."""
    world.rest()
    assert old == world.stable
    assert {old: 4} == world.pods_by_revision()
    assert {old: 100} == world.shares()
    assert reason == world.rollout["reason"], world.rollout["message"]
    assert "RolloutAborted" == world.condition("Stalled")["reason"]
    assert "True" == world.condition("Available")["status"]


# --- the way there --------------------------------------------------------------------------------


def test_good_canary_is_promoted_step_by_step():
    """Capacity before traffic, every step judged, the old pods last; no request is lost."""
    world, new = edited()
    world.run_to("Stable")
    world.rest()

    assert world.stable == new
    assert {new: 4} == world.pods_by_revision()
    assert {new: 100} == world.shares()
    assert 0 == world.lost
    assert ["Stable", *PROMOTED] == world.phases
    assert "True" == world.condition("Ready")["status"]
    assert world.condition("Stalled") is None


def test_every_transition_is_an_event():
    """On-call reads in the events why it rolled back."""
    world, new = edited()
    world.behaviour(new).slower = 3.0
    world.run_to("Aborted")

    told = [(e.type, e.reason) for e in world.events if e.action == "Canary"]
    assert ("Normal", "TrafficShifted") in told
    assert ("Warning", "GuardrailBroken") in told
    assert ("Warning", "RouterNotReady") not in told
    broken = [e.message for e in world.events if e.reason == "GuardrailBroken"]
    assert ["Aborting", "Aborted"] == [message.partition(":")[0] for message in broken]
    assert all("p90 ttft at most 20% worse than stable" in message for message in broken)


def test_weights_and_pods_rise_together():
    """A weight is never in force before its pods are ready."""
    world, new = edited()
    seen = set()

    def watch(world):
        ready = sum(p.ready for p in world.pods.values() if p.revision == new)
        seen.add((round(world.shares().get(new, 0)), ready))
        return world.rollout["phase"] == "Stable"

    world.run(watch)

    assert {(0, 0), (0, 1), (10, 1), (10, 2), (50, 2), (50, 4), (100, 4)} == seen


def test_steps_of_pods_get_their_share_of_the_traffic():
    """One pod beside four gets a fifth, so it is as busy as they are, and the times compare."""
    world, new = edited(steps=[{"replicas": 1}, {"replicas": 4}])
    seen = set()

    def watch(world):
        ready = sum(p.ready for p in world.pods.values() if p.revision == new)
        seen.add((round(world.shares().get(new, 0)), ready, world.rollout["step"]))
        return world.rollout["phase"] == "Stable"

    world.run(watch)

    assert {(20, 1, 1), (50, 4, 2), (100, 4, 3)} <= seen
    assert {0, 20, 50, 100} == {weight for weight, _, _ in seen}


def test_pods_of_replace_share_the_traffic_of_what_is_there():
    """One of three pods gets a third."""
    world, new = edited(steps=[{"replicas": 1}], capacity="Replace", replicas=3)
    world.room = 3
    world.run_to("Judging")

    assert 33 == round(world.shares()[new])
    assert {world.stable: 2, new: 1} == world.pods_by_revision()


def test_service_at_rest_costs_nothing():
    """No write and no question once the routers are there."""
    world = serving()
    world.rest()
    decisions = [world.reconcile() for _ in range(3)]

    assert all(not (d.apply or d.delete or d.status or d.ask) for d in decisions)
    assert all(d.requeue_after_seconds is None for d in decisions)


def test_clients_go_to_engines_until_routers_are_there():
    """The entry Service turns to the routers only once they all route."""
    world = CanaryWorld(spec=canary_spec(), reachable=True, deaf={"router-1"})
    entry = ChildRef("Service", "mistral")
    world.run(after(60))
    assert "engine" == world.manifests[entry]["spec"]["selector"]["app.kubernetes.io/component"]

    world.deaf.clear()
    world.run(after(10))
    assert "router" == world.manifests[entry]["spec"]["selector"]["app.kubernetes.io/component"]


def test_leaving_canaries_removes_the_routers():
    """With another strategy the engines are reached directly, and no router object stays."""
    world = serving()
    world.rest()
    world.edit(rollout={"strategy": "RollingUpdate"})
    world.settle()

    entry = world.manifests[ChildRef("Service", "mistral")]
    assert "engine" == entry["spec"]["selector"]["app.kubernetes.io/component"]
    assert not [ref for ref in world.children if ref.name == "mistral-router"]
    assert "rollout" not in world.status


def test_router_without_canaries_moves_all_traffic_at_once():
    """With another strategy nothing is judged, but the order that loses no request stays."""
    spec = a_spec(replicas=4, traffic={"router": "Embedded"})
    world = CanaryWorld(spec=spec, reachable=True)
    world.run(lambda w: w.rollout.get("state", {}).get("routed", False))
    world.edit_engine(maxNumSeqs=32)
    world.run_to("Preflight")
    world.run_to("Stable")
    world.rest()

    assert world.stable == world.newest
    assert {world.newest: 4} == world.pods_by_revision()
    assert "Judging" not in world.phases
    assert 0 == world.lost


def test_deleted_service_is_left_to_the_garbage_collector():
    """In the midst of a rollout as well: nothing is written any more."""
    world, _ = edited()
    world.run_to("Judging")
    observed = world.observe()
    going = replace(observed, service=replace(observed.service, deleting=True))

    assert Decision() == reconcile(going, world.config)


def test_replicas_are_scaled_during_a_rollout():
    """More replicas are for both: stable at once, the canary by its share."""
    world, new = edited()
    world.run_to("Judging")
    world.edit(replicas=8)
    world.run(after(20))

    assert {world.stable: 8, new: 1} == world.pods_by_revision()
    assert "Judging" == world.rollout["phase"]


def test_service_with_no_replicas_changes_at_once():
    """Without traffic there is nothing to try a revision on."""
    world = serving()
    world.edit(replicas=0)
    world.rest()
    world.edit_engine(maxNumSeqs=32)
    world.run(lambda w: w.stable == w.newest)
    world.rest()

    assert "Stable" == world.rollout["phase"]
    assert {} == world.pods_by_revision()


def test_step_lasts_as_long_as_it_says():
    """72 hours are 72 hours, however good the evidence."""
    world, _ = edited(steps=[{"weight": 5, "durationSeconds": 259_200}], windowSeconds=3600)
    world.requests_per_second = 0.5
    world.run_to("Judging")
    begun = world.now
    world.run_to("Provisioning", seconds=300_000)

    assert timedelta(hours=72) <= world.now - begun < timedelta(hours=73.5)


# --- the way back ---------------------------------------------------------------------------------


def test_slow_canary_is_turned_down():
    """The traffic goes back, the pods go, the hash is remembered, and a person reads why."""
    world, new = edited()
    old = world.stable
    world.behaviour(new).slower = 3.0
    world.run_to("Aborted")

    went_back(world, old, "GuardrailBroken")
    assert "p90 ttft at most 20% worse than stable" in world.rollout["message"]
    assert ["abort"] == [c["verdict"] for c in world.rollout["checks"] if "ttft" in c["check"]]
    assert [new] == [r["hash"] for r in world.rollout["rejected"]]
    assert world.phases[-3:] == ["Aborting", "Draining", "Aborted"]
    assert 0 == world.lost


def test_failing_canary_is_turned_down():
    """Failures that only the routers saw count."""
    world, new = edited()
    old = world.stable
    world.behaviour(new).fails_every = 4
    world.run_to("Aborted")

    went_back(world, old, "GuardrailBroken")
    assert "errors at most 2%" in world.rollout["message"]


def test_canary_that_turns_bad_at_full_traffic_is_turned_down():
    """While it bakes there is no stable to compare with; fixed limits still hold."""
    world, new = edited()
    old = world.stable
    world.run_to("Baking")
    world.behaviour(new).fails_every = 3
    world.run_to("Aborted")

    went_back(world, old, "GuardrailBroken")


def test_canary_that_never_loads_gets_no_traffic():
    """An image that is not there ends it within minutes, with the cause in the message."""
    world, new = edited()
    old = world.stable
    world.run(lambda w: w.pods_by_revision().get(new), load=False)
    for name, pod in world.pods.items():
        if pod.revision == new:
            missing = ContainerState(
                "engine", False, 0, "ErrImagePull", "no such tag", None, None, None
            )
            world.pods[name] = replace(pod, container=missing)
    world.run(lambda w: w.rollout["phase"] == "Aborted", load=False)

    went_back(world, old, "CanaryFailed")
    assert "no such tag" in world.rollout["message"]
    assert "Shifting" not in world.phases


def test_canary_may_load_for_long():
    """Half an hour of loading is no fault; a canary that is not there in time is given up."""
    world, new = edited(provisionTimeoutSeconds=3600, **PATIENT)
    world.run(lambda w: w.pods_by_revision().get(new), load=False)
    world.run(after(3000), load=False)
    assert "Provisioning" == world.rollout["phase"]

    old = world.stable
    world.run(lambda w: w.rollout["phase"] == "Aborted", load=False)
    went_back(world, old, "CanaryNotReady")


def test_canary_that_does_not_answer_our_own_requests_gets_no_others():
    """A warm-up that fails ends it before a client is met."""
    world, new = edited()
    old = world.stable
    world.behaviour(new).cold = "HTTP 500: CUDA error"
    world.run_to("Aborted")

    went_back(world, old, "WarmUpFailed")
    assert "Shifting" not in world.phases
    assert "CUDA error" in world.rollout["message"]


def test_canary_that_crashes_under_traffic_is_turned_down_at_once():
    """Its share goes to stable in the very next look, without waiting for evidence."""
    world, new = edited()
    old = world.stable
    world.run(lambda w: w.rollout["phase"] == "Judging" and w.rollout["weight"] == 50)
    crash(world, new)
    crashed = world.now
    world.reconcile()
    assert {old: 100, new: 0} == world.shares()

    world.run(lambda w: w.rollout["phase"] == "Aborted", load=False)
    went_back(world, old, "CanaryFailed")
    assert world.now - crashed < timedelta(seconds=30)


def test_restart_of_a_canary_pod_is_reason_enough():
    """Also where it is ready again before anybody looked."""
    world, new = edited()
    world.run_to("Judging")
    for name, pod in world.pods.items():
        if pod.revision == new:
            killed = replace(pod.container, restart_count=1, terminated_reason="OOMKilled")
            world.pods[name] = replace(pod, container=killed)
    old = world.stable
    world.run_to("Aborted")

    went_back(world, old, "CanaryFailed")
    assert "restarted" in world.rollout["message"]


def test_abort_waits_for_what_is_answered():
    """No pod goes while it answers something, until the drain time is over."""
    world, new = edited()
    world.run_to("Judging")
    world.behaviour(new).in_flight = 1
    world.action = "abort/1"
    world.run_to("Draining")
    world.run(after(60))
    assert 1 == world.pods_by_revision()[new]

    world.behaviour(new).in_flight = 0
    world.run_to("Aborted", seconds=10)


def test_drain_ends():
    """A stream that never ends is left to the pod's own grace period."""
    world, new = edited()
    world.run_to("Judging")
    world.behaviour(new).in_flight = 1
    world.action = "abort/1"
    world.run_to("Draining")
    begun = world.now
    world.run_to("Aborted")

    assert 110 < (world.now - begun).total_seconds() < 140


def test_stable_that_dies_during_an_abort_gets_no_traffic():
    """Traffic stays with the canary while it is the only one that serves."""
    world, new = edited()
    old = world.stable
    world.run_to("Judging")
    world.action = "abort/1"
    crash(world, old)
    world.run(after(30), load=False)
    assert "Aborting" == world.rollout["phase"]
    assert "StableNotReady" == world.rollout["reason"]
    assert {old: 0, new: 100} == world.shares()

    world.run_to("Aborted")
    went_back(world, old, "AbortedByUser")


# --- unknown is not bad ---------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [10, 110])
def test_metrics_that_are_gone_hold(minutes):
    """Neither promoted nor aborted without evidence; it goes on when they are back."""
    world, new = edited(**PATIENT)
    world.run_to("Judging")
    for revision in (world.stable, new):
        world.behaviour(revision).silent = True
    world.run(after(60 * minutes))

    assert "Judging" == world.rollout["phase"]
    assert "MetricsUnavailable" == world.rollout["reason"]
    for revision in (world.stable, new):
        world.behaviour(revision).silent = False
    world.run_to("Stable")
    assert new == world.stable


def test_no_traffic_holds():
    """A service that nobody asks is not judged."""
    world, _ = edited(**PATIENT)
    world.requests_per_second = 0.0
    world.run_to("Judging")
    world.run(after(3600))

    assert "NoTraffic" == world.rollout["reason"]
    assert "Judging" == world.rollout["phase"]
    assert "waiting" in world.rollout["message"]


def test_step_without_evidence_ends_as_its_timeout_says():
    """With onTimeout Abort the traffic goes back."""
    world, _ = edited(stepTimeoutSeconds=600, onTimeout="Abort")
    old = world.stable
    world.requests_per_second = 0.0
    world.run_to("Aborted")

    went_back(world, old, "StepTimedOut")


def test_router_that_does_not_take_the_weights_holds():
    """Not all routers agree, so nothing is judged; the message names the one."""
    world, _ = edited()
    world.run_to("Warming")
    world.deaf.add("router-1")
    world.run(after(300))

    assert "Shifting" == world.rollout["phase"]
    assert "RouterNotReady" == world.rollout["reason"]
    assert "router-1" in world.rollout["message"]
    world.deaf.clear()
    world.run_to("Judging")


def test_new_leader_takes_no_old_counts_for_evidence():
    """What engines counted before it looked first is not of any window."""
    world, new = edited()
    world.run_to("Judging")
    for _ in range(30):
        world.restart_operator()
        world.run(after(20))
    assert "Judging" == world.rollout["phase"]
    assert 0 == world.rollout["canaryRequests"]

    world.run_to("Stable")
    assert new == world.stable


# --- capacity -------------------------------------------------------------------------------------


def test_no_spare_device_and_auto_replaces():
    """An old pod makes room, one always stays until the canary has all traffic."""
    world, new = edited(capacity="Auto", replicas=4)
    world.room = 4
    seen = []

    def watch(world):
        seen.append(world.pods_by_revision())
        return world.rollout["phase"] == "Stable"

    world.run(watch)
    world.rest()

    assert new == world.stable
    assert {new: 4} == world.pods_by_revision()
    assert all(max(pods.values()) >= 2 for pods in seen)
    assert 0 == world.lost


def test_no_spare_device_and_surge_waits():
    """Nothing is stopped for a canary that shall be extra; the message says what is missing."""
    world, new = edited(**PATIENT)
    world.room = 4
    world.run(after(7200))

    assert "Provisioning" == world.rollout["phase"]
    assert "CapacityWait" == world.rollout["reason"]
    assert "Insufficient nvidia.com/gpu" in world.rollout["message"]
    assert {world.stable: 4, new: 1} == world.pods_by_revision()
    world.room = 8
    world.run_to("Stable")
    assert new == world.stable


def test_one_replica_and_no_spare_device_waits():
    """There is no way without an outage, and it says which ways there are."""
    world, _ = edited(capacity="Auto", replicas=1, **PATIENT)
    world.room = 1
    world.run(after(7200))

    assert "CapacityWait" == world.rollout["reason"]
    assert "Recreate" in world.rollout["message"]
    assert 1 == world.status["readyReplicas"]


def test_replace_from_the_start():
    """Both revisions share the devices that one had."""
    world, new = edited(capacity="Replace")
    world.room = 4
    world.run_to("Judging")
    assert {world.stable: 3, new: 1} == world.pods_by_revision()

    world.run_to("Stable")
    world.rest()
    assert {new: 4} == world.pods_by_revision()
    assert 0 == world.lost


# --- other specs meanwhile ------------------------------------------------------------------------


def test_third_version_supersedes():
    """The traffic is back before the third version gets a pod."""
    world, second = edited()
    old = world.stable
    world.run_to("Judging")
    world.edit_engine(maxNumSeqs=16)
    world.run_to("Preflight")
    assert {old: 100} == world.shares()
    assert second not in world.pods_by_revision() or world.rollout["weight"] == 0

    world.run_to("Stable")
    world.rest()
    assert world.stable == world.newest not in (old, second)
    assert [] == world.rollout.get("rejected", [])
    assert world.phases.count("Superseding") == 1


def test_revert_goes_back_at_once_and_rejects_nothing():
    """The old words again: the canary leaves and may come back later."""
    world, new = edited()
    old = world.stable
    world.run_to("Judging")
    world.edit_engine(maxNumSeqs=64)
    world.run_to("Stable", seconds=60)
    world.rest()
    assert old == world.stable
    assert {old: 4} == world.pods_by_revision()

    world.edit_engine(maxNumSeqs=32)
    world.run_to("Preflight")
    world.run_to("Stable")
    assert new == world.stable


def test_rejected_revision_is_not_tried_again_by_a_resync():
    """Not by the same words again, not by going back and forth; only when a person asks."""
    world, new = edited()
    old = world.stable
    world.action = "abort/1"
    world.run_to("Aborted")
    world.edit_engine(maxNumSeqs=64)
    world.run_to("Stable")
    world.edit_engine(maxNumSeqs=32)
    world.run(after(3600))
    went_back(world, old, "AbortedByUser")

    world.action = "retry/2"
    world.run_to("Stable")
    assert new == world.stable


def test_edited_steps_never_jump():
    """From 10 % it goes to the next weight of the new list, and never back."""
    world, new = edited()
    world.run_to("Judging")
    world.edit(rollout={**world.spec["rollout"], "steps": [{"weight": 5}, {"weight": 20}]})
    seen = []

    def watch(world):
        seen.append(round(world.shares().get(new, 0)))
        return world.rollout["phase"] == "Stable"

    world.run(watch)

    assert [0, 10, 20, 100] == sorted({0, *seen})
    assert sorted(seen) == seen


# --- what people ask ------------------------------------------------------------------------------


def test_pause_and_resume():
    """A paused rollout keeps its weight, is still judged, and goes on where it was."""
    world, new = edited(**PATIENT)
    world.run_to("Judging")
    world.action = "pause/1"
    world.run(after(3600))
    assert "Paused" == world.rollout["phase"]
    assert 10 == round(world.shares()[new])

    world.action = "resume/2"
    world.run_to("Stable")
    assert new == world.stable


def test_paused_canary_that_breaks_a_guardrail_is_turned_down():
    """A pause is no licence."""
    world, new = edited()
    world.run_to("Judging")
    world.action = "pause/1"
    world.run_to("Paused")
    world.behaviour(new).fails_every = 3
    world.run_to("Aborted")


def test_step_that_waits_for_a_person():
    """It goes on only by resume or promote."""
    world, new = edited(steps=[{"weight": 10, "pause": True}, {"weight": 50}], **PATIENT)
    world.run_to("Paused")
    world.run(after(3600))
    assert "Paused" == world.rollout["phase"]
    assert "StepPassed" == world.rollout["reason"]
    assert {world.stable: 4, new: 1} == world.pods_by_revision()

    world.action = "promote/1"
    world.run(lambda w: w.rollout["weight"] == 50)


def test_promote_skips_one_step_and_full_skips_all():
    """Judging is skipped, capacity never."""
    world, new = edited()
    world.requests_per_second = 0.0
    world.run_to("Judging")
    world.action = "promote/1"
    world.run(lambda w: w.rollout["weight"] == 50 and w.rollout["phase"] == "Judging")
    world.action = "promote-full/2"
    world.run_to("Baking")
    assert {world.stable: 4, new: 4} == world.pods_by_revision()


def test_each_word_is_acted_upon_once():
    """The annotation stays there; a later rollout is not aborted by it."""
    world, _ = edited()
    world.run_to("Judging")
    world.action = "abort/1"
    world.run_to("Aborted")
    world.edit_engine(maxNumSeqs=16)
    world.run_to("Stable")

    assert world.stable == world.newest


def test_observe_reports_and_goes_on():
    """In mode Observe a broken guardrail is told and nothing more."""
    world, new = edited(mode="Observe", steps=[{"weight": 10, "durationSeconds": 900}])
    world.behaviour(new).slower = 3.0
    world.run_to("Judging")
    world.run(after(600))
    assert "abort" in [c["verdict"] for c in world.rollout["checks"]]

    world.run_to("Stable")
    assert new == world.stable


def test_broken_stable_may_be_mended():
    """Where nobody is served nothing is at risk: the fix goes out without a trial."""
    world = serving()
    crash(world, world.stable)
    world.edit_engine(maxNumSeqs=32)
    world.run(lambda w: w.rollout["phase"] == "Preflight", load=False)
    new, old = world.newest, world.stable

    def only_new_loads(world):
        for name, pod in world.pods.items():
            if pod.revision == new and pod.scheduled and not pod.ready:
                state = ContainerState("engine", True, 0, None, None, None, None, None)
                world.pods[name] = replace(pod, ready=True, container=state)
        world._run_controllers()
        return world.rollout["phase"] == "Stable"

    world.run(only_new_loads, load=False)
    assert new == world.stable != old
    assert "Judging" not in world.phases


def test_deployment_facts_of_the_router_are_no_revision():
    """The router's Deployment is not taken for a revision's."""
    world = serving()
    router = ChildRef("Deployment", "mistral-router")
    world.children[router] = replace(world.children[router], deployment=DeploymentFacts(2, 2, 2))
    world.rest()

    assert "True" == world.condition("Ready")["status"]
    assert 1 == len(world.status["revisions"])


# --- what cannot be compared ----------------------------------------------------------------------


def made_of(world, tokens_of):
    """Engines of a world tell what requests were made of: tokens by revision and their number."""
    say = world._say

    def tell(question):
        reading = say(question)
        if not isinstance(reading, EngineReading):
            return reading
        revision = world.pods[question.pod_uid].revision
        tokens = tokens_of(revision, reading.counts.requests)
        return replace(reading, counts=replace(reading.counts, tokens=tokens))

    world._say = tell


def test_canary_that_is_asked_for_more_is_held_not_aborted():
    """Sessions that stick gave it the longer prompts; as they become alike it is judged."""
    world, new = edited(steps=[{"weight": 10}])
    world.behaviour(new).slower = 2.0
    longer = [math.inf]
    """So many of its requests had twice the tokens."""
    made_of(world, lambda rev, n: Tokens(n, 500 * (n + (rev == new) * min(n, longer[0]))))
    world.run_to("Judging")
    world.run(after(600))

    assert ("Judging", "Inconclusive") == (world.rollout["phase"], world.rollout["reason"])
    assert "prompts have 1000 tokens on average, stable's 500" in world.rollout["message"]
    longer[0] = world.behaviour(new).served
    world.run_to("Aborted")
    assert "GuardrailBroken" == world.rollout["reason"]


def test_canary_whose_errors_break_a_guardrail_is_aborted_whatever_it_is_asked():
    """Failing needs no comparison of times."""
    world, new = edited()
    world.behaviour(new).fails_every = 5
    made_of(world, lambda rev, n: Tokens(n, (1000 if rev == new else 500) * n))
    world.run_to("Aborted")

    assert "errors at most 2%" in world.rollout["message"]


def test_canary_with_an_empty_prefix_cache_is_not_aborted_for_it():
    """Its first requests are slow, as every prompt is new to it."""
    world, new = edited()
    how = world.behaviour(new)

    def tokens(revision, number):
        missed = min(number, 60) if revision == new else 0.4 * number
        return Tokens(number, 500 * number, 0, 500 * number, 500 * (number - missed))

    made_of(world, tokens)
    how.slower = 4.0
    world.run(lambda _: how.served >= 60)
    how.slower = 1.0
    world.run_to("Stable")

    assert new == world.stable


def test_engines_that_do_not_publish_what_is_guarded_hold_the_rollout():
    """Neither good nor bad: a person reads why, and says how to go on."""
    world, new = edited(guardrails=[{"metric": "itl", "maxIncreasePercent": 20}])
    world.behaviour(new).slower = 3.0
    world.run_to("Judging")
    world.run(after(1800))

    assert ("Judging", "Inconclusive") == (world.rollout["phase"], world.rollout["reason"])
    assert "engines publish no times between tokens" in world.rollout["message"]
