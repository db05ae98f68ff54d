"""Canary pods that somebody takes away, and pods that restart before they serve."""

from dataclasses import replace
from datetime import datetime

import pytest

from llmservice.core.failures import ContainerState
from tests.state.canary_world import CanaryWorld, after, serving
from tests.state.test_canary import crash
from tests.state.world import starting

KILLED = ContainerState("engine", False, 0, None, None, "Error", 137, None)
WAYS = {
    "deleted": {},
    "evicted": {"ready": False, "phase_reason": "Evicted", "container": KILLED},
    "preempted": {"ready": False, "phase_reason": "Preempting", "container": KILLED},
    "node shut down": {"ready": False, "phase_reason": "Terminated", "container": KILLED},
}


def tried(phase: str = "Judging", **changes) -> tuple[CanaryWorld, str]:
    """A world whose canary is in this phase; and that revision."""
    world = serving(**changes)
    world.edit_engine(maxNumSeqs=32)
    world.run_to("Preflight")
    world.run_to(phase)
    return world, world.newest


def restarts(world, revision, *, ready):
    """Every pod of a revision has restarted once."""
    again = ContainerState("engine", ready, 1, None, None, None, None, None)
    for name, pod in world.pods.items():
        if pod.revision == revision:
            world.pods[name] = replace(pod, ready=ready, container=again)
    world._run_controllers()


@pytest.mark.parametrize("facts", WAYS.values(), ids=WAYS)
def test_pod_that_is_taken_away_is_no_fault(facts):
    """Stable answers until another pod is warm, then the rollout goes on at the same share."""
    world, new = tried()
    world.take_away(new, **facts)
    world.reconcile()
    assert "PodsTakenAway" == world.rollout["reason"]
    world.reconcile()
    assert {world.stable: 100, new: 0} == world.shares()

    seen = len(world.phases)
    world.run_to("Judging")
    assert {world.stable: 90, new: 10} == world.shares()
    assert ["Warming", "Shifting", "Settling", "Judging"] == world.phases[seen:]
    world.run_to("Stable")
    assert new == world.stable
    assert 0 == world.lost


@pytest.mark.parametrize("phase", ["Warming", "Shifting", "Settling", "Baking"])
def test_it_goes_on_from_any_phase(phase):
    """Whatever it did when its pods went."""
    world, new = tried(phase)
    weight = world.rollout["weight"]
    world.take_away(new)
    world.run_to("Provisioning")
    world.run_to("Settling")
    assert max(10, weight) == world.rollout["weight"]
    world.run_to("Stable")
    assert new == world.stable


def test_step_keeps_the_time_that_it_has_had():
    """The three days of a step do not begin anew, and the time of loading is not of them."""
    day = 86_400
    steps = [{"weight": 10, "durationSeconds": 3 * day}]
    world, new = tried(steps=steps, windowSeconds=3600, provisionTimeoutSeconds=7200)
    world.requests_per_second = 0.5
    begun = datetime.fromisoformat(world.rollout["stepSince"])
    world.run(after(2 * day), seconds=3 * day)
    requests = world.rollout["canaryRequests"]
    world.take_away(new)
    gone = world.now
    world.run(after(3600), load=False)
    world.run_to("Judging")
    loading = (world.now - gone).total_seconds()

    since = datetime.fromisoformat(world.rollout["stepSince"])
    assert loading - 1 <= (since - begun).total_seconds() <= loading + 1
    assert requests <= world.rollout["canaryRequests"]
    world.run_to("Provisioning", seconds=2 * day)
    assert "StepPassed" == world.rollout["reason"]
    assert 3 * day + 3600 <= (world.now - begun).total_seconds() < 3.3 * day


def test_next_step_has_its_own_time():
    """Its pods are taken away while it is being prepared, when the step before has passed."""
    steps = [{"weight": 10, "durationSeconds": 600}, {"weight": 50, "durationSeconds": 900}]
    world, new = tried(steps=steps)
    world.run_to("Provisioning")
    world.take_away(new)
    world.run_to("Judging")
    assert 50 == world.rollout["weight"]
    begun = world.now
    world.run_to("Provisioning")

    assert (world.now - begun).total_seconds() >= 900


def test_pods_that_do_not_come_back_end_it():
    """After the time that pods have to load."""
    world, new = tried(provisionTimeoutSeconds=600, stepTimeoutSeconds=60, onTimeout="Abort")
    old = world.stable
    world.take_away(new)
    world.run(after(500), load=False)
    assert "Provisioning" == world.rollout["phase"]
    world.run(lambda w: w.rollout["phase"] == "Aborted", load=False)

    assert "CanaryNotReady" == world.rollout["reason"]
    assert {old: 100, new: 0} == world.shares()


def test_timeout_of_a_step_leaves_out_the_loading():
    """A step of two minutes is not over because a pod took five to load."""
    world, new = tried(stepTimeoutSeconds=240, onTimeout="Abort", windowSeconds=10)
    world.requests_per_second = 0.0
    world.run(after(60))
    world.take_away(new)
    world.run(after(300), load=False)
    world.run_to("Judging")
    world.requests_per_second = 20.0
    world.run_to("Stable")

    assert new == world.stable


def test_replacement_that_crashes_is_a_failed_canary():
    """Somebody took the first one away, nobody the second one."""
    world, new = tried()
    world.take_away(new)
    world.run_to("Provisioning")
    world.run_to("Judging")
    crash(world, new)
    world.run_to("Aborted")

    assert "CanaryFailed" == world.rollout["reason"]


def test_node_that_does_not_answer_is_no_fault():
    """The pod is not ready, and no kubelet says why."""
    world, new = tried()
    world.lose_node(new)
    world.run(after(300), load=False)
    assert "PodsTakenAway" == world.rollout["reason"]
    assert {world.stable: 100, new: 0} == world.shares()

    world.take_away(new)  # five minutes are what Kubernetes gives a node by default
    world.run_to("Stable")
    assert new == world.stable
    assert 0 == world.lost


def test_node_that_answers_again():
    """The same pod goes on."""
    world, new = tried()
    pods = set(world.pods)
    world.lose_node(new)
    world.run(after(60), load=False)
    assert {world.stable: 100, new: 0} == world.shares()
    assert pods == set(world.pods)

    world.run_to("Stable")
    assert new == world.stable


def test_node_that_does_not_answer_excuses_its_own_pods_only():
    """Of two canary pods one is on such a node, the other one fails its probe."""
    world, new = tried("Baking", replicas=2)
    gone, failing = [name for name, pod in world.pods.items() if pod.revision == new]
    world.pods[gone] = replace(world.pods[gone], ready=False, silent=True)
    world.pods[failing] = replace(world.pods[failing], ready=False, container=starting())
    world.run(lambda w: w.rollout["phase"] == "Aborted", load=False)

    assert "CanaryFailed" == world.rollout["reason"]


SERVES = ContainerState("engine", True, 0, None, None, None, None, None)


@pytest.mark.parametrize("engine", [starting(), SERVES], ids=["engine", "side-car"])
def test_probe_that_fails_is_a_failed_canary(engine):
    """Nobody took it away; it, or what stands beside it, does not answer."""
    world, new = tried()
    for name, pod in world.pods.items():
        if pod.revision == new:
            world.pods[name] = replace(pod, ready=False, container=engine)
    world.run(lambda w: w.rollout["phase"] == "Aborted", load=False)

    assert "CanaryFailed" == world.rollout["reason"]
    assert "no pod of the canary is ready any more" in world.rollout["message"]


def test_one_pod_of_two_is_replaced_without_a_stop():
    """The other one serves on."""
    world, new = tried(steps=[{"weight": 50}])
    name = min(n for n, pod in world.pods.items() if pod.revision == new)
    world.taken.append(replace(world.pods.pop(name), deleting=True))
    world._run_controllers()
    world.reconcile()
    world.reconcile()

    assert "Judging" == world.rollout["phase"]
    assert {world.stable: 50, new: 50} == world.shares()


def test_paused_rollout_stays_paused():
    """Its share is with stable, and comes back when a person says how to go on."""
    world, new = tried()
    world.action = "pause/1"
    world.run_to("Paused")
    world.take_away(new)
    world.run(after(300))

    assert "Paused" == world.rollout["phase"]
    assert {world.stable: 100, new: 0} == world.shares()
    world.action = "resume/2"
    world.run_to("Judging")
    assert {world.stable: 90, new: 10} == world.shares()


def test_restart_while_it_loads_is_forgotten():
    """It had no weight, and is ready now: what counts is what it does from here on."""
    world = serving()
    world.edit_engine(maxNumSeqs=32)
    world.run(lambda w: w.pods_by_revision().get(w.newest) and w.newest != w.stable, load=False)
    new = world.newest
    world.pods = {name: replace(pod, scheduled=True) for name, pod in world.pods.items()}
    restarts(world, new, ready=True)
    world.run_to("Judging")
    assert [1] == [
        pod.container.restart_count for pod in world.pods.values() if pod.revision == new
    ]

    crashed = ContainerState("engine", True, 2, None, None, "Error", 1, None)
    for name, pod in world.pods.items():
        if pod.revision == new:
            world.pods[name] = replace(pod, container=crashed)
    world.run_to("Aborted")
    assert "restarted 2 times" in world.rollout["message"]


def test_restart_while_a_pod_of_a_later_step_loads_is_forgotten():
    """The first pod has traffic by then."""
    world, new = tried(steps=[{"weight": 10}, {"weight": 50}])
    world.run(lambda w: w.pods_by_revision().get(new) == 2, load=False)
    again = ContainerState("engine", True, 1, None, None, None, None, None)
    for name, pod in world.pods.items():
        if pod.revision == new and not pod.ready:
            world.pods[name] = replace(pod, scheduled=True, ready=True, container=again)
    world._run_controllers()
    world.run_to("Stable")

    assert new == world.stable


def test_new_leader_knows_what_has_served():
    """It stands in the status: a crash before it looked for the first time is one."""
    world, new = tried()
    world.restart_operator()
    restarts(world, new, ready=True)
    world.run_to("Aborted")

    assert "CanaryFailed" == world.rollout["reason"]
