"""A newer spec that is refused, while a canary of an earlier one has traffic."""

import random
from dataclasses import replace

import pytest
from pydantic import ValidationError

from llmservice.api.status import LLMServiceStatus
from llmservice.core.canary.state import MAX_STATE, dump_rollout, load_rollout
from tests.state.canary_world import CanaryWorld, after, canary_spec, serving
from tests.state.test_canary import crash
from tests.state.test_infeasible_plan import HUGE

INVALID = {"extraArgs": ["--swap-space", "4"]}


def refused(phase: str = "Judging", **changes) -> CanaryWorld:
    """A world whose canary is in this phase, and whose spec was just broken."""
    world = serving(**changes)
    world.edit_engine(maxNumSeqs=32)
    world.run_to("Preflight")
    world.run_to(phase)
    world.edit_engine(**INVALID)
    return world


def names_the_field(world: CanaryWorld) -> bool:
    """Whether a person reads what is wrong with the newest spec."""
    stalled, ready = world.condition("Stalled"), world.condition("Ready")
    assert stalled is not None
    assert ready is not None
    assert world.generation == world.status["observedGeneration"]
    return stalled["reason"] == "InvalidSpec" and "spec.engine.extraArgs[0]" in ready["message"]


@pytest.mark.parametrize("phase", ["Shifting", "Judging", "Baking"])
def test_bad_canary_is_turned_down_all_the_same(phase):
    """Judged by the guardrails that were accepted last; the condition names the field."""
    world = refused(phase)
    old, new = world.stable, world.newest
    world.behaviour(new).fails_every = 3
    world.run_to("Aborted")
    world.rest()

    assert names_the_field(world)
    assert {old: 4} == world.pods_by_revision()
    assert {old: 100} == world.shares()
    assert "GuardrailBroken" == world.rollout["reason"]
    assert [new] == [each["hash"] for each in world.rollout["rejected"]]
    assert f"mistral-{new}" not in {ref.name for ref in world.children if ref.kind == "Deployment"}


def test_canary_that_dies_loses_its_share():
    """In the very next look, as with a spec that is in order."""
    world = refused()
    old, new = world.stable, world.newest
    world.reconcile()
    crash(world, new)
    world.reconcile()

    assert {old: 100, new: 0} == world.shares()
    assert "Aborting" == world.rollout["phase"]


def test_person_may_abort():
    """Words are heard, whatever the spec says."""
    world = refused()
    world.action = "abort/1"
    world.run_to("Aborted")

    assert "AbortedByUser" == world.rollout["reason"]


def test_good_canary_is_promoted_and_the_old_pods_go():
    """It is what was asked for last; nothing of the refused spec is done."""
    world = refused()
    new = world.newest
    world.run_to("Stable")
    world.rest()

    assert names_the_field(world)
    assert new == world.stable == world.newest
    assert {new: 4} == world.pods_by_revision()
    assert {new: 100} == world.shares()
    assert {new} == world.revisions() - {"router"}
    decision = world.reconcile()
    done = (decision.apply, decision.delete, decision.status, decision.ask)
    assert ((), (), None, ()) == done
    assert "spec" not in world.rollout["state"]


def test_spec_that_is_mended_changes_nothing():
    """A slip of the finger does not cost the time that the step has had."""
    world = refused()
    begun = world.rollout["stepSince"]
    world.run(after(20))
    world.restart_operator()
    world.edit_engine(extraArgs=[])
    world.run(after(5))

    assert "Judging" == world.rollout["phase"]
    assert begun == world.rollout["stepSince"]
    assert world.condition("Stalled") is None


def test_next_edit_supersedes():
    """Once a newer spec is accepted, the canary is not what is wanted any more."""
    world = refused()
    old, new = world.stable, world.newest
    world.run(after(5))
    world.edit_engine(extraArgs=[], maxNumSeqs=16)
    world.run(lambda w: w.stable == w.newest != new)

    assert "Superseding" in world.phases
    assert world.stable not in (old, new)


def test_other_fields_of_a_refused_spec_do_nothing():
    """Neither its replicas nor its guardrails."""
    world = refused()
    world.edit(replicas=9, rollout={**world.spec["rollout"], "guardrails": []})
    world.run(lambda w: w.rollout.get("checks"))

    assert {world.stable: 4, world.newest: 1} == world.pods_by_revision()
    assert 2 == len(world.rollout["checks"])


def test_plan_that_does_not_fit_is_refused_likewise():
    """The status has the plan of the newest spec, and the canary is judged by the earlier one."""
    world = serving()
    world.edit_engine(maxNumSeqs=32)
    world.run_to("Preflight")
    world.run_to("Judging")
    old, new = world.stable, world.newest
    world.edit(model=HUGE["model"], accelerator=HUGE["accelerator"])
    world.behaviour(new).fails_every = 3
    world.run_to("Aborted")
    world.rest()

    assert "InfeasiblePlan" == world.condition("Stalled")["reason"]
    assert "InfeasiblePlan" == world.status["plan"]["outcome"]
    assert {old: 4} == world.pods_by_revision()


def test_nothing_is_begun_by_a_spec_that_is_refused_at_rest():
    """Without a canary all stays as it is."""
    world = serving()
    world.edit_engine(**INVALID, maxNumSeqs=32)
    world.run(after(300))

    assert names_the_field(world)
    assert "Stable" == world.rollout["phase"]
    assert {world.stable: 4} == world.pods_by_revision()


@pytest.mark.parametrize("packed", [None, b"no zlib", b"x\x9c\x03\x00\x00\x00\x00\x01"])
def test_state_of_another_hand_is_no_accident(packed):
    """Where the earlier spec is not to be had, all stays as it is, and says why."""
    world = refused()
    kept = load_rollout(world.status["rollout"]["state"])
    assert kept is not None
    told = dump_rollout(replace(kept, spec=packed))
    world.status["rollout"]["state"] = told
    world.run(after(60))

    assert names_the_field(world)
    assert "Judging" == world.rollout["phase"]
    assert told == world.status["rollout"]["state"]


def test_spec_that_is_too_large_is_not_kept():
    """The state has to fit into the status."""
    world = serving()
    world.edit_engine(maxNumSeqs=32)
    noise = random.Random(7).randbytes(60_000).hex()
    world.edit_engine(env=[{"name": f"NOISE_{n}", "value": noise[n::60]} for n in range(60)])
    world.run_to("Preflight")

    assert "spec" not in world.rollout["state"]


def test_large_spec_is_kept_and_the_status_holds_it():
    """The limit is that of the API server."""
    world = serving()
    noise = random.Random(7).randbytes(40_000).hex()
    world.edit_engine(env=[{"name": f"NOISE_{n}", "value": noise[n::60]} for n in range(60)])
    world.run_to("Preflight")

    state = world.status["rollout"]["state"]
    assert "spec" in world.rollout["state"]
    assert 50_000 < len(state) <= MAX_STATE
    assert state == LLMServiceStatus.model_validate(world.status).rollout.state
    with pytest.raises(ValidationError):
        LLMServiceStatus.model_validate({"rollout": {"state": "x" * (MAX_STATE + 1)}})


def test_thousand_pods_fit_into_the_status():
    """What is known of each is short."""
    spec = canary_spec(replicas=1000, steps=[{"weight": 99}])
    world = CanaryWorld(spec=spec, reachable=True, room=2000, requests_per_second=0.0)
    world.run(lambda w: w.rollout.get("state", {}).get("routed", False))
    world.edit_engine(maxNumSeqs=32)
    world.run_to("Preflight")
    world.run_to("Settling")

    assert 990 == len(world.rollout["state"]["served"])
    assert len(world.status["rollout"]["state"]) < MAX_STATE / 3
