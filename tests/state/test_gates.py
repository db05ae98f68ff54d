"""Gates of a canary: who has to agree before clients meet it, and before it is promoted."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from llmservice.core.observed import ApplyError, ApplyErrorKind, JobFacts
from llmservice.core.questions import Answer, CallGate, GateAnswer
from tests.state.canary_world import after, canary_spec
from tests.state.gated_world import APPROVAL, FIGURES, RELEASE, SPEED, GatedWorld


def gated(*gates, **rollout):
    """A world that serves, with a new revision whose gates are asked next."""
    world = GatedWorld(spec=canary_spec(gates=list(gates), **rollout), reachable=True)
    world.run(lambda w: w.rollout.get("state", {}).get("routed", False))
    world.edit_engine(maxNumSeqs=32)
    world.run_to("Gating")
    return world, world.newest


def checks(world):
    """Gates in the status, and what they say."""
    told = world.rollout.get("checks", ())
    return {c["check"]: c["verdict"] for c in told if c["check"].startswith("gate ")}


# --- webhooks -------------------------------------------------------------------------------------


def test_gate_that_agrees_lets_the_canary_meet_clients():
    """It is asked once, after the warm-up and before any request of a client."""
    world, new = gated(APPROVAL)
    assert 0 == world.shares().get(new, 0)
    world.run_to("Stable")

    assert world.stable == new
    assert world.phases.index("Gating") == world.phases.index("Warming") + 1
    assert "Shifting" == world.phases[world.phases.index("Gating") + 1]
    assert 1 == world.phases.count("Gating")
    assert 1 == len(world.calls)
    assert {"gate approval": "promote"} == checks(world)


def test_gate_is_told_what_it_is_asked_about():
    """Enough to look the canary up, and the evidence."""
    world, new = gated(APPROVAL, RELEASE)
    old = world.stable
    world.run_to("Stable")
    before, at_the_end = (json.loads(call.body) for call in world.calls)

    assert {
        "service": "mistral",
        "namespace": "default",
        "gate": "approval",
        "phase": "BeforeTraffic",
        "canaryRevision": new,
        "stableRevision": old,
        "weight": 0,
        "evidence": [],
    } == before
    assert ("BeforePromotion", 100) == (at_the_end["phase"], at_the_end["weight"])
    told = {each["check"]: each["verdict"] for each in at_the_end["evidence"]}
    assert "promote" == told["approval"]
    assert "p90 ttft at most 20% worse than stable" in told


def test_gate_that_refuses_ends_the_canary():
    """Before any client met it, with the gate's own words."""
    world, new = gated(APPROVAL)
    old = world.stable
    world.says, world.words = 403, "not on a Friday"
    world.run_to("Aborted")
    world.rest()

    assert old == world.stable
    assert {old: 4} == world.pods_by_revision()
    assert "GateRefused" == world.rollout["reason"]
    assert "gate approval: not on a Friday" in world.condition("Stalled")["message"]
    assert 0 == world.behaviour(new).served


@pytest.mark.parametrize("says", [None, 500, 503, 429, 302])
def test_gate_without_an_opinion_is_asked_again(says):
    """Every ten seconds, for as long as it takes; nothing is held against the canary."""
    world, new = gated(APPROVAL)
    world.says = says
    world.run(after(3600))
    assert "Gating" == world.rollout["phase"]
    assert "GateWait" == world.rollout["reason"]
    assert "gate approval" in world.rollout["message"]
    assert 300 < len(world.calls) <= 361

    world.says = 204
    world.run_to("Stable")
    assert world.stable == new


def test_old_answer_does_not_count():
    """What was said of another revision or trial, or before, says nothing about this one."""
    world, new = gated(APPROVAL)
    world.says = 503
    world.reconcile()
    about_another = GateAnswer("another", 403, "no")
    world.answers[CallGate, "approval"] = Answer(world.now, about_another)
    world.reconcile()
    assert "Gating" == world.rollout["phase"]

    too_old = world.now - timedelta(hours=1)
    said = GateAnswer(world.calls[-1].trial, 403, "no")
    world.answers[CallGate, "approval"] = Answer(too_old, said)
    world.reconcile()
    assert "Gating" == world.rollout["phase"]

    world.action = "abort/1"
    world.run_to("Aborted")
    world.action = "retry/2"
    world.run_to("Gating")
    asked = len(world.calls)
    world.answers[CallGate, "approval"] = Answer(world.now, said)
    world.reconcile()
    assert "Gating" == world.rollout["phase"]
    assert asked < len(world.calls)
    assert new == json.loads(world.calls[-1].body)["canaryRevision"]


def test_fault_of_ours_is_no_opinion():
    """Neither a refusal nor a reason to ask without a pause."""
    world, _ = gated(APPROVAL)
    world.answers[CallGate, "approval"] = Answer(world.now, None)
    asked = [q for q in world.reconcile().ask if isinstance(q, CallGate)]

    assert [] == asked
    assert "Gating" == world.rollout["phase"]


def test_gates_are_asked_one_after_another():
    """In the order of the list; who has agreed is not asked again, also after a pause."""
    other = {"name": "budget", "webhook": {"url": "http://budget/"}}
    world, _ = gated(APPROVAL, other)
    world.run(lambda w: [c.name for c in w.calls][-1:] == ["approval"])
    world.says = 503
    world.run(lambda w: [c.name for c in w.calls][-1:] == ["budget"])
    world.action = "pause/1"
    world.run_to("Paused")
    world.action, world.says = "resume/2", 200
    world.run_to("Settling")

    assert 1 == [call.name for call in world.calls].count("approval")


def test_gate_before_the_promotion_is_asked_after_the_bake():
    """The canary has all requests, and the old pods still stand by."""
    world, new = gated_at_the_end()
    assert {new: 100, world.stable: 0} == world.shares()
    assert 4 == world.pods_by_revision()[world.stable]

    old = world.stable
    world.says = 409
    world.run_to("Aborted")
    world.rest()
    assert {old: 100} == world.shares()
    assert "GateRefused" == world.rollout["reason"]
    assert 0 == world.lost


def gated_at_the_end():
    world = GatedWorld(spec=canary_spec(gates=[RELEASE]), reachable=True, says=503)
    world.run(lambda w: w.rollout.get("state", {}).get("routed", False))
    world.edit_engine(maxNumSeqs=32)
    world.run_to("Gating")
    world.rest()
    assert "Baking" in world.phases
    return world, world.newest


def test_guardrails_hold_while_a_gate_is_asked_at_the_end():
    """A canary that turns bad meanwhile is turned down."""
    world, new = gated_at_the_end()
    world.behaviour(new).fails_every = 3
    world.run_to("Aborted")

    assert "GuardrailBroken" == world.rollout["reason"]


# --- people ---------------------------------------------------------------------------------------


def test_person_may_do_without_the_gate():
    """`promote` goes on from where it is."""
    world, new = gated(APPROVAL)
    world.says = None
    world.action = "promote/1"
    world.run_to("Judging")
    assert 10 == world.rollout["weight"]
    assert "Warming" == world.phases[world.phases.index("Gating") - 1]

    world.run_to("Stable")
    assert world.stable == new


@pytest.mark.parametrize("word", ["promote/1", "promote-full/1"])
def test_person_may_do_without_the_gate_at_the_end(word):
    """It is promoted; it does not begin to bake anew."""
    world, new = gated_at_the_end()
    world.action = word
    world.run_to("Stable")

    assert world.stable == new
    assert 1 == world.phases.count("Baking")


def test_full_promotion_asks_no_gate():
    """Neither now nor at the end."""
    world, new = gated(APPROVAL, RELEASE)
    world.says, world.action = None, "promote-full/1"
    world.run_to("Stable")

    assert world.stable == new
    assert 1 == world.phases.count("Gating")


@pytest.mark.parametrize("gate", [APPROVAL, SPEED])
@pytest.mark.parametrize(
    ("change", "phases"),
    [
        (lambda w: setattr(w, "action", "abort/1"), ["Aborting", "Draining", "Aborted"]),
        (lambda w: setattr(w, "action", "pause/1"), ["Paused"]),
        (lambda w: w.edit_engine(maxNumSeqs=64), ["Aborting", "Draining", "Stable"]),
        (
            lambda w: w.edit_engine(maxNumSeqs=16),
            ["Superseding", "Draining", "Stable", "Preflight"],
        ),
        (lambda w: w.edit(replicas=0), ["Preflight"]),
    ],
)
def test_gate_that_is_waited_for_holds_up_no_way_back(gate, change, phases):
    """Words of a person and edits act as in any other phase."""
    world, _ = gated(gate)
    world.says = None
    world.rest()
    begun = len(world.phases)
    change(world)
    world.run(lambda w: len(w.phases) >= begun + len(phases))

    assert phases == world.phases[begun:][: len(phases)]


# --- benches --------------------------------------------------------------------------------------


def benched(**rollout):
    """A world whose bench runs."""
    world, new = gated(SPEED, **rollout)
    world.run(lambda w: w.job is not None)
    return world, new


def test_bench_that_keeps_its_limits_lets_the_canary_meet_clients():
    """The Job is the service's, runs against the canary, and its figures are told."""
    world, new = benched()
    manifest = world.manifests[world.job]
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    assert f"http://mistral-{new}.default.svc:8000" in container["args"]
    assert "mistral" == manifest["metadata"]["ownerReferences"][0]["name"]
    world.run(after(100))
    assert "GateWait" == world.rollout["reason"]
    assert 1 == len(world.jobs)

    world.end_bench(json.dumps(FIGURES))
    world.run_to("Judging")
    said = [c["message"] for c in world.rollout["state"]["gates"]]
    kept = "output_throughput is 250, and must be at least 100"
    assert [f"{kept}; p99_ttft_ms is 320.25, and may be at most 500"] == said


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        ({"p99_ttft_ms": 501.0}, "p99_ttft_ms is 501, and may be at most 500"),
        ({"output_throughput": 99.5}, "output_throughput is 99.5, and must be at least 100"),
        ({"p99_ttft_ms": None}, "p99_ttft_ms is not known"),
        ({"p99_ttft_ms": float("nan")}, "p99_ttft_ms is not known"),
        ({"p99_ttft_ms": "1"}, "p99_ttft_ms is not known"),
        ({"completed": 49}, "49 of 50 requests were answered"),
        ({"completed": None}, "0 of 50 requests were answered"),
    ],
)
def test_bench_that_misses_a_limit_ends_the_canary(figures, why):
    """Before any client met it; a request that fails is a miss, too."""
    world, new = benched()
    old = world.stable
    world.end_bench(json.dumps({**FIGURES, **figures}))
    world.run_to("Aborted")
    world.rest()

    assert "GateRefused" == world.rollout["reason"]
    assert f"gate speed: {why}" == world.rollout["message"]
    assert {old: 4} == world.pods_by_revision()
    assert 0 == world.behaviour(new).served


@pytest.mark.parametrize("message", ["", "[1]", "{", "\x00"])
def test_bench_that_tells_nothing_ends_the_canary(message):
    """Missing figures are not good figures."""
    world, _ = benched()
    world.end_bench(message)
    world.run_to("Aborted")

    assert "gate speed: vllm bench serve told no figures" == world.rollout["message"]


def test_bench_that_fails_says_why():
    """The last words of its log."""
    world, _ = benched()
    world.end_bench("Traceback\nOSError: no tokenizer at /models", exit_code=1)
    world.run_to("Aborted")

    assert "vllm bench serve did not run: exit code 1" in world.rollout["message"]
    assert "OSError: no tokenizer at /models" in world.rollout["message"]


def test_bench_that_takes_too_long_says_so():
    """The Job's own words, not those of the pod that was stopped."""
    world, _ = benched()
    world.end_bench("Terminated", exit_code=143, deleting=True)
    world.run(after(5))
    assert "Gating" == world.rollout["phase"]

    world.end_job(JobFacts(failed="DeadlineExceeded: Job was active longer than its deadline"))
    world.run_to("Aborted")
    assert "DeadlineExceeded" in world.rollout["message"]


@pytest.mark.parametrize(
    "job", [JobFacts(succeeded=True), JobFacts(failed="BackoffLimitExceeded: it failed")]
)
def test_bench_whose_pod_went_away_ends_the_canary(job):
    """There is nobody left to ask."""
    world, _ = benched()
    world.benches.clear()
    world.end_job(job)
    world.run_to("Aborted")

    assert "GateRefused" == world.rollout["reason"]


def test_bench_that_waits_for_a_place_says_so():
    """The scheduler's words are in the status."""
    world, _ = benched()
    name = world.job.name
    world.benches[name] = replace(
        world.benches[name], scheduled=False, scheduling_message="0/1 nodes: Insufficient cpu."
    )
    world.run(after(60))

    assert "Insufficient cpu" in world.rollout["message"]


def test_job_that_is_refused_is_waited_for():
    """It is not the canary's fault that nobody may make a Job."""
    world, _ = benched()
    ref = world.job
    world._delete(ref)
    world._apply = lambda apply: None
    world.refusals = (ApplyError(ref, ApplyErrorKind.Forbidden, "quota exceeded"),)
    world.run(after(60))

    assert "GateWait" == world.rollout["reason"]
    assert "quota exceeded" in world.rollout["message"]


def test_bench_that_nobody_waits_for_is_stopped():
    """An abort frees the canary from its load; one that has ended is kept for its log."""
    world, _ = benched()
    world.action = "abort/1"
    world.run_to("Aborted")
    world.rest()
    assert world.job is None

    world, _ = benched()
    world.end_bench(json.dumps(FIGURES))
    world.end_job(JobFacts(succeeded=True))
    world.run_to("Stable")
    world.rest()
    assert world.job is not None


def test_another_trial_has_another_bench():
    """What an earlier Job said is not said of this one."""
    world, _ = benched()
    world.end_bench(json.dumps({**FIGURES, "completed": 0}))
    world.end_job(JobFacts(succeeded=True))
    world.run_to("Aborted")
    world.action = "retry/1"
    world.run_to("Gating")
    world.run(lambda w: len(w.jobs) == 2)
    world.run(after(100))

    assert "Gating" == world.rollout["phase"]
    assert 2 == len(set(world.jobs))


def test_new_leader_goes_on_with_the_bench():
    """Nothing but the status and the cluster is needed."""
    world, new = benched()
    world.restart_operator()
    world.end_bench(json.dumps(FIGURES))
    world.restart_operator()
    world.run_to("Stable")

    assert world.stable == new
    assert 1 == len(world.jobs)


@pytest.mark.parametrize("writes", range(1, 9))
def test_operator_that_dies_asks_no_gate_in_vain(writes):
    """Whatever it wrote last: one Job, and no way past a gate."""
    world, new = gated(SPEED, {**APPROVAL, "name": "budget"})
    world.dies_after = world.writes + writes
    world.run(lambda w: w.job is not None)
    world.rest()
    assert "Gating" == world.rollout["phase"]

    world.end_bench(json.dumps(FIGURES))
    world.run_to("Shifting")
    assert {"gate speed": "promote", "gate budget": "promote"} == checks(world)
    world.run_to("Stable")
    assert world.stable == new
    assert 1 == len(world.jobs)


def test_job_is_made_once():
    """Its pod cannot be changed, so an edit of the operator's words must not touch it."""
    world, _ = benched()
    world.children[world.job] = replace(world.children[world.job], applied_hash="older")

    assert [] == [a for a in world.reconcile().apply if a.ref.kind == "Job"]
