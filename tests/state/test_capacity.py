"""What an engine reports of its KV cache: when it is asked, and what becomes of the answer."""

from dataclasses import replace
from datetime import timedelta

import pytest

from llmservice.core.config import Config
from llmservice.core.observed import KVCacheSize
from tests.state.world import World, a_spec


def a_world(says=None, **fields):
    """A world whose engines can be asked."""
    return World(reachable=True, engine_says=says, **fields)


def told(world, share=1.0, concurrency=2.0):
    """An answer that is a share of the plan."""
    return KVCacheSize(round(world.status["plan"]["kvCacheTokens"] * share), concurrency)


def a_told_world(share=1.0, **fields):
    """A settled world whose engine told."""
    world = a_world(**fields)
    world.reconcile()
    world.engine_says = told(world, share)
    world.settle()
    return world


def age(world, seconds):
    """Time passes; one look."""
    world.now += timedelta(seconds=seconds)
    return world.reconcile()


def replace_pods(world):
    """The node goes; the Deployment makes new pods."""
    world.pods.clear()
    world.load_pods()


def test_the_status_tells_what_a_ready_engine_says():
    """Tokens and concurrency of the revision, and how far the plan was off."""
    world = a_told_world(share=0.9)

    assert {
        "revision": world.status["updatedRevision"],
        "kvCacheTokens": world.engine_says.tokens,
        "maxConcurrency": "2.00",
        "deviationPercent": -10,
    } == world.status["capacity"]


@pytest.mark.parametrize(("share", "percent"), [(1.0, 0), (1.004, 0), (1.026, 3), (0.5, -50)])
def test_deviation_is_the_engine_against_the_plan(share, percent):
    """Over 0 when the engine has more, in whole percents."""
    assert percent == a_told_world(share).status["capacity"]["deviationPercent"]


def test_no_plan_no_deviation():
    """A device that nobody knows cannot be planned for, and its engine still tells."""
    spec = a_spec(accelerator={"product": "Unheard-Of"})
    world = a_world(KVCacheSize(5000, 1.25), spec=spec)
    world.settle()

    assert {
        "revision": world.status["updatedRevision"],
        "kvCacheTokens": 5000,
        "maxConcurrency": "1.25",
    } == world.status["capacity"]


def test_a_deviation_goes_with_its_plan():
    """What was known of the engine stays, what was said of the plan does not."""
    world = a_told_world()
    capacity = {**world.status["capacity"], "deviationPercent": 7}
    world.status = {**world.status, "capacity": capacity}
    world.reconcile()
    assert 0 == world.status["capacity"]["deviationPercent"]

    world = a_world(KVCacheSize(5000, 1.25), spec=a_spec(accelerator={"product": "Unheard-Of"}))
    world.settle()
    before = world.status["capacity"]
    world.status = {**world.status, "capacity": {**before, "deviationPercent": 7}}
    world.reconcile()
    assert before == world.status["capacity"]


def test_nobody_is_asked_before_a_pod_is_ready():
    """A pod that loads its model has no KV cache yet."""
    world = a_world(KVCacheSize(5000, 1.25))
    world.settle(load=False)
    assert [] == world.asked

    world.load_pods()
    decision = world.reconcile()
    (pod,) = world.pods.values()
    assert (pod.name, pod.uid, pod.address) == (
        decision.read_metrics.pod,
        decision.read_metrics.pod_uid,
        decision.read_metrics.address,
    )


def test_one_of_many_is_asked_once():
    """All replicas of a revision are alike; at rest, and ever after, nobody is asked."""
    world = a_told_world(spec=a_spec(replicas=3))
    for _ in range(3):
        assert age(world, 3600).read_metrics is None

    assert 1 == len(world.asked)


def test_a_replaced_pod_is_not_asked():
    """What its revision has is known, to the next leader too: it is in the status."""
    world = a_told_world()
    before = world.status["capacity"]
    world.metrics_reads.clear()
    replace_pods(world)
    world.settle()

    assert before == world.status["capacity"]
    assert 1 == len(world.asked)


def test_scaling_to_zero_keeps_what_is_known():
    """The revision is the newest still."""
    world = a_told_world()
    before = world.status["capacity"]
    world.edit(replicas=0)
    world.settle()

    assert before == world.status["capacity"]


def test_an_engine_that_does_not_tell_is_asked_again_after_growing_pauses():
    """Five tries, planned by the decision itself, then none for as long as the pod lives."""
    world = a_world(spec=a_spec(replicas=2))
    world.settle(load=False)
    world.load_pods()
    world.reconcile()
    pauses = []
    while (pause := world.reconcile().requeue_after_seconds) is not None:
        assert age(world, pause - 1).read_metrics is None
        assert age(world, 1).read_metrics is not None
        pauses.append(pause)

    assert [5, 20, 80, 320] == pauses
    assert 5 == len(world.asked)
    assert 1 == len(set(world.asked))
    assert age(world, 86_400).read_metrics is None
    assert "capacity" not in world.status


def test_a_pod_that_was_asked_goes_on_being_asked():
    """An older one that becomes ready later is not asked in its place."""
    world = a_world(spec=a_spec(replicas=2))
    world.settle(load=False)
    late, early = sorted(world.pods)
    world.load_pods()
    world.pods[late] = replace(world.pods[late], ready=False)
    world.reconcile()
    world.load_pods()
    world.settle()

    assert [early] * 5 == world.asked


def test_a_later_try_may_tell():
    """Nothing is asked after it."""
    world = a_world()
    world.settle(load=False)
    world.load_pods()
    world.reconcile()
    world.engine_says = told(world)
    assert age(world, 5).read_metrics is not None

    world.settle()
    assert 0 == world.status["capacity"]["deviationPercent"]
    assert 2 == len(world.asked)


def test_a_pod_given_up_is_replaced_by_one_that_is_asked():
    """Tries are counted by pod."""
    world = a_world()
    world.settle()
    assert 5 == len(world.asked)
    world.engine_says = told(world)
    replace_pods(world)
    world.settle()

    assert 6 == len(world.asked)
    assert "capacity" in world.status


def test_another_revision_starts_anew():
    """The old figure goes with the old target, though its pods serve on; the new one is asked."""
    world = a_told_world(share=0.9)
    old = world.status["capacity"]["revision"]
    world.edit_engine(maxNumSeqs=32)
    world.reconcile()
    assert "capacity" not in world.status
    assert 1 == len(world.asked)

    world.engine_says = told(world)
    world.settle()
    capacity = world.status["capacity"]
    assert old != world.status["updatedRevision"] == capacity["revision"]
    assert 0 == capacity["deviationPercent"]
    assert 2 == len(world.asked)


def test_a_refused_edit_keeps_what_the_serving_revision_told():
    """No other revision became the target; nobody is asked."""
    world = a_told_world()
    before = world.status["capacity"]
    world.edit_engine(extraArgs=["--port", "1"])
    world.settle()

    assert "True" == world.condition("Stalled")["status"]
    assert before == world.status["capacity"]
    assert 1 == len(world.asked)


@pytest.mark.parametrize("fields", [{"deleting": True}, {"address": ""}, {"ready": False}])
def test_a_pod_that_cannot_answer_is_not_asked(fields):
    """It goes, has no address, or does not serve."""
    world = a_world()
    world.settle(load=False)
    world.load_pods()
    world.pods = {name: replace(pod, **fields) for name, pod in world.pods.items()}

    assert world.reconcile().read_metrics is None


def test_an_operator_that_reaches_no_pod_asks_nobody():
    """And keeps what another one, or an earlier setting, found out."""
    world = a_world(config=Config(engine_metrics=False))
    world.settle()
    assert [] == world.asked

    world = a_told_world()
    before = world.status["capacity"]
    world.config = Config(engine_metrics=False)
    world.settle()
    assert before == world.status["capacity"]


def test_each_data_parallel_rank_is_planned_for():
    """A replica's engines tell of the sum, so the plan does too."""
    plans = []
    for parallelism in ({"tensor": 1}, {"tensor": 1, "data": 2}):
        world = World()
        fixed = {"kvCacheMemoryBytes": "2Gi", "maxModelLen": 4096}
        world.edit_engine(parallelism=parallelism, **fixed)
        world.reconcile()
        plans.append(world.status["plan"])

    assert 2 * plans[0]["kvCacheTokens"] == plans[1]["kvCacheTokens"]
    assert 2 * float(plans[0]["maxConcurrency"]) == float(plans[1]["maxConcurrency"])
