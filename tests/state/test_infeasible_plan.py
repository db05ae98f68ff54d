"""What an infeasible memory plan does to a service, and what it leaves alone."""

from tests.state.world import World, a_spec

HUGE = {
    "model": {"id": "meta-llama/Llama-3.3-70B-Instruct"},
    "accelerator": {"resource": "nvidia.com/gpu", "product": "NVIDIA-A10G", "count": 1},
}
SMALL = {**HUGE, "model": {"id": "Qwen/Qwen3-4B"}}


def test_no_pod_is_made():
    """Nothing loads 131 GiB to die of them; the sentence says what would fit."""
    world = World(spec=a_spec(**HUGE))
    world.settle()
    stalled = world.condition("Stalled")

    assert ({}, {}) == (world.pods, world.children)
    assert ("True", "InfeasiblePlan") == (stalled["status"], stalled["reason"])
    assert "does not fit 1 x A10G" in stalled["message"]
    assert stalled["message"].endswith("set accelerator.count to 16")
    assert "InfeasiblePlan" == world.status["plan"]["outcome"]


def test_advisory_only_says_so():
    """The user knows better: the pods are made."""
    world = World(spec=a_spec(**HUGE, engine={"plan": "Advisory"}))
    world.settle()

    assert world.pods
    assert "InfeasiblePlan" == world.status["plan"]["outcome"]


def test_the_earlier_spec_goes_on_serving():
    """An edit that cannot fit stops nothing, and mending it goes on."""
    world = World(spec=a_spec(**SMALL))
    world.settle()
    before = world.revisions()
    world.edit(model=HUGE["model"])
    world.settle()

    assert before == world.revisions()
    assert "pods of the earlier spec still serve" in world.condition("Ready")["message"]
    assert "True" == world.condition("Available")["status"]
    world.edit(model=SMALL["model"])
    world.settle()
    assert "True" == world.condition("Ready")["status"]
    assert "Fits" == world.status["plan"]["outcome"]


def test_a_running_revision_outranks_the_plan():
    """A newer operator that thinks otherwise does not stop what runs."""
    world = World(spec=a_spec(**HUGE, engine={"plan": "Advisory"}))
    world.settle()
    before = world.revisions()
    world.edit(engine={"plan": "Enforce"})
    world.settle()

    assert before == world.revisions()
    assert "True" == world.condition("Ready")["status"]


def test_unknown_model_is_never_blocked():
    """The plan says what it would need to know."""
    world = World(spec=a_spec(model={"id": "nobody/knows-this"}))
    world.settle()

    assert "True" == world.condition("Ready")["status"]
    assert "PlanUnknown" == world.status["plan"]["outcome"]
    assert "spec.model.architecture" in world.status["plan"]["message"]
