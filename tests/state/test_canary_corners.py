"""Canary rollouts where two things happen at once, or just between two writes."""

from dataclasses import replace

import pytest

from tests.state.canary_world import CanaryWorld, after, serving
from tests.state.test_canary import crash

QUICK = {"windowSeconds": 10, "settleSeconds": 1, "bakeSeconds": 5}


def edited(**changes) -> CanaryWorld:
    """A world that serves, and has a new revision in preflight."""
    world = serving(**{**QUICK, **changes})
    world.edit_engine(maxNumSeqs=32)
    world.run_to("Preflight")
    return world


def turned_down() -> CanaryWorld:
    """A world whose newest revision was aborted."""
    world = edited()
    world.action = "abort/1"
    world.run_to("Aborted")
    world.rest()
    return world


def test_retry_of_a_spec_that_went_back_takes_no_pod():
    """Asked to try again when the spec is that of stable: there is nothing to try."""
    world = turned_down()
    world.edit_engine(maxNumSeqs=64)
    world.action = "retry/2"
    world.rest()

    assert "Stable" == world.rollout["phase"]
    assert {world.stable: 4} == world.pods_by_revision()
    assert "Preflight" not in world.phases[world.phases.index("Aborted") :]


def test_what_was_turned_down_is_not_let_in_at_zero_replicas():
    """No pods, no traffic, no risk - but somebody said no to it."""
    world = turned_down()
    old, bad = world.stable, world.newest
    world.edit_engine(maxNumSeqs=64)
    world.run_to("Stable")
    world.edit(replicas=0)
    world.rest()
    world.edit_engine(maxNumSeqs=32)
    world.rest()
    world.edit(replicas=4)
    world.run(after(600))

    assert bad == world.newest
    assert {old: 4} == world.pods_by_revision()
    assert "Aborted" == world.rollout["phase"]


def test_edited_again_before_anything_was_made():
    """The status names a canary of which no child was written: the next one is tried instead."""
    world = serving(**QUICK)
    old = world.stable
    world.edit_engine(maxNumSeqs=32)
    world.reconcile()
    assert "Preflight" == world.rollout["phase"]
    world.edit_engine(maxNumSeqs=16)
    world.reconcile()
    assert {old: 4} == world.pods_by_revision()
    assert world.rollout["state"]["routed"]

    assert world.newest == world.rollout["canaryRevision"]

    world.run_to("Stable")
    assert world.stable == world.newest != old
    assert "Judging" in world.phases


@pytest.mark.parametrize("word", [None, "pause"])
def test_no_replicas_for_a_while_is_no_fault_of_the_canary(word):
    """Its pods are gone and load anew when they are wanted again; it is judged from the start."""
    world = edited()
    new = world.newest
    world.run_to("Judging")
    if word:
        world.action = f"{word}/1"
        world.run_to("Paused")
    world.edit(replicas=0)
    world.run(after(300))
    assert {} == world.pods_by_revision()
    assert ("Paused" if word else "Preflight") == world.rollout["phase"]
    assert 0 == world.rollout["weight"]

    world.edit(replicas=4)
    world.run(after(10))
    assert [] == world.rollout.get("rejected", [])
    world.action = "resume/2" if word else None
    world.run_to("Judging")
    assert 10 == world.rollout["weight"]
    world.run_to("Stable")
    assert new == world.stable


def test_new_stable_that_dies_while_the_old_one_drains_gets_its_traffic_back():
    """The old pods answer, and stay, until the new ones are back."""
    world = edited()
    old, new = world.stable, world.newest
    world.run_to("Draining")
    crash(world, new)
    world.run(after(300), load=False)

    assert {new: 0, old: 100} == world.shares()
    assert "Draining" == world.rollout["phase"]
    assert "StableNotReady" == world.rollout["reason"]
    assert world.pods_by_revision()[old]
    world.run_to("Stable")
    world.rest()
    assert {new: 4} == world.pods_by_revision()
    assert {new: 100} == world.shares()


def test_pause_before_the_start_does_not_lead_around_preflight():
    """Resumed, it looks at stable and routers first, as if it had not been paused."""
    world = edited()
    world.action = "pause/1"
    world.run_to("Paused")
    world.deaf.update(world.routers)
    world.answers.clear()
    world.heard.clear()
    world.action = "resume/2"
    world.run(after(60))

    assert "Preflight" == world.rollout["phase"]
    assert "RouterNotReady" == world.rollout["reason"]


def test_long_words_fit_into_the_status():
    """What a person writes may be longer than the status takes."""
    world = edited()
    world.run_to("Judging")
    world.action = "abort/" + "x" * 500
    world.run_to("Aborted")
    world.rest()

    assert 128 == len(world.rollout["handledAction"])
    assert not world.reconcile().status


def test_stable_that_blinks_late_in_preflight_is_not_down():
    """Only what has been down for a while is replaced without a trial."""
    world = serving(**QUICK)
    world.edit_engine(maxNumSeqs=32)
    world.deaf.update(world.routers)
    world.answers.clear()
    world.heard.clear()
    world.run(after(600))
    assert "Preflight" == world.rollout["phase"]
    world.pods = {name: replace(pod, ready=False) for name, pod in world.pods.items()}
    world.reconcile()
    world.reconcile()
    assert "Preflight" == world.rollout["phase"]
    world.deaf.clear()
    world.run_to("Stable")

    assert "Judging" in world.phases
