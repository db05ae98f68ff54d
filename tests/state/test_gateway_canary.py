"""Canary rollouts by the weights of an HTTPRoute, in a cluster whose gateway is a stand-in."""

from dataclasses import replace
from typing import Any

import pytest

from llmservice.core.observed import ChildRef
from tests.state.canary_world import after
from tests.state.gateway_world import GATEWAY, OWN, OWNERS_RULES, TRAFFIC, GatewayWorld, a_world
from tests.state.test_canary import PROMOTED

ENTRY = ChildRef("Service", "mistral")


def serving(route_name: str | None = None, **rollout: Any) -> GatewayWorld:
    """A world whose first revision serves behind the Gateway."""
    world = a_world(route_name, **rollout)
    world.run(lambda w: w.rollout.get("state", {}).get("routed", False))
    return world


def edited(route_name: str | None = None, **rollout: Any) -> tuple[GatewayWorld, str]:
    """A world that serves, with a new revision in preflight; and that revision."""
    world = serving(route_name, **rollout)
    world.edit_engine(maxNumSeqs=32)
    world.run_to("Preflight")
    return world, world.newest


both = pytest.mark.parametrize("route_name", [None, "chat"])


# --- the way there, and back ----------------------------------------------------------------------


@both
def test_good_canary_is_promoted_by_weights(route_name):
    """Same steps as with routers of our own; no request goes to where nobody serves."""
    world, new = edited(route_name)
    seen = set()

    def watch(world):
        ready = sum(p.ready for p in world.pods.values() if p.revision == new)
        seen.add((world.weights().get(f"mistral-{new}", 0), ready))
        return world.rollout["phase"] == "Stable"

    world.run(watch)
    world.rest()
    assert {(0, 0), (0, 1), (10, 1), (10, 2), (50, 2), (50, 4), (100, 4)} == seen
    assert new == world.stable
    assert {f"mistral-{new}": 100} == world.weights()
    assert {new: 4} == world.pods_by_revision()
    assert ["Stable", *PROMOTED] == world.phases
    assert 0 == world.lost


@both
def test_bad_canary_is_turned_down(route_name):
    """Engines alone tell of failures; all weight is back, and the canary's Service is not named."""
    world, new = edited(route_name)
    old = world.stable
    world.run_to("Judging")
    world.behaviour(new).fails_every = 5
    world.run_to("Aborted")
    world.rest()

    assert old == world.stable
    assert "GuardrailBroken" == world.rollout["reason"], world.rollout["message"]
    assert {f"mistral-{old}": 100} == world.weights()
    assert {old: 4} == world.pods_by_revision()


def test_rollouts_begin_without_an_event():
    """The status that names the first stable revision is nobody's news."""
    world = a_world()
    decisions = []
    while "stableRevision" not in world.status:
        decisions.append(world.reconcile())
        world.load_pods()

    assert "rollout" not in world.status
    assert 0.0 == decisions[-1].requeue_after_seconds


def test_no_router_is_made():
    """The Gateway is there already."""
    world = serving()
    world.rest()

    assert [] == [ref for ref in world.children if "router" in ref.name]
    assert OWN in world.children


def test_service_at_rest_reads_its_route_now_and_then():
    """Once a minute, and writes nothing."""
    world = serving()
    world.rest()
    reads, writes = world.reads, world.route_writes
    world.run(after(600))

    assert 9 <= world.reads - reads <= 11
    assert writes == world.route_writes


def test_clients_within_the_cluster_meet_no_canary():
    """They do not come in by the Gateway, so the entry Service names the stable revision."""
    world, new = edited()
    old = world.stable

    def selected(world):
        return world.manifests[ENTRY]["spec"]["selector"].get("llmservice.dev/revision")

    world.run_to("Judging")
    assert old == selected(world)
    world.run_to("Baking")
    assert old == selected(world)
    world.run_to("Stable")
    assert new == selected(world)


@both
def test_restart_in_the_middle_goes_on(route_name):
    """What was in memory is read again; no weight moves by it."""
    world, new = edited(route_name)
    world.run_to("Judging")
    world.restart_operator()
    world.run(after(5))
    assert 10 == world.weights()[f"mistral-{new}"]

    world.run_to("Stable")
    assert new == world.stable


def test_drain_begins_when_the_proxies_have_heard():
    """An acknowledgement is not yet all proxies: requests may still come for a moment."""
    world, _ = edited()
    world.run_to("Draining")
    begun = world.now
    world.run_to("Stable")

    assert (world.now - begun).total_seconds() > 5


def test_drain_waits_for_what_is_in_flight():
    """As engines tell it."""
    world, _ = edited()
    old = world.stable
    world.behaviour(old).in_flight = 3
    world.run_to("Draining")
    world.run(after(30))
    assert "Draining" == world.rollout["phase"]

    world.behaviour(old).in_flight = 0
    world.run_to("Stable", seconds=30)


def test_canary_that_dies_loses_its_weight_at_once():
    """Nothing answers in the place of a Service without endpoints."""
    world, new = edited()
    world.run_to("Judging")
    for name, pod in world.pods.items():
        if pod.revision == new:
            world.pods[name] = replace(pod, ready=False)
    world._run_controllers()
    world.reconcile()

    assert 0 == world.weights()[f"mistral-{new}"]


def test_weights_count_once_the_gateway_has_taken_them():
    """A route that says so is not enough."""
    world, new = edited()
    world.run_to("Warming")
    world.acknowledges = False
    world.run(lambda w: w.rollout["reason"] == "RouterNotReady")
    assert "Shifting" == world.rollout["phase"]
    assert 10 == world.weights()[f"mistral-{new}"]
    assert 0 == world.shares()[new]

    world.acknowledges = True
    world.run_to("Settling", seconds=60)


# --- drift ----------------------------------------------------------------------------------------


def test_edit_of_our_own_route_is_put_back():
    """Within about a minute, for nobody watches."""
    world = serving()
    world.rest()
    world.edit_route([{**world.rule(), "backendRefs": [{"name": "elsewhere", "port": 1}]}])
    world.run(after(90))

    assert {f"mistral-{world.stable}": 100} == world.weights()


def test_deleted_route_is_made_again():
    """A service without its route serves nobody from outside."""
    world = serving()
    world.rest()
    world.route = world.own = None
    world.run(after(90))

    assert {f"mistral-{world.stable}": 100} == world.weights()


def test_all_that_is_foreign_survives():
    """Other rules, and the matches and filters of ours."""
    world, new = edited("chat")
    world.run_to("Stable")
    world.rest()
    assert world.route is not None
    rules = world.route["spec"]["rules"]

    assert OWNERS_RULES[0] == rules[0]
    ours = {key: value for key, value in rules[1].items() if key != "backendRefs"}
    assert {k: v for k, v in OWNERS_RULES[1].items() if k != "backendRefs"} == ours
    assert [{"kind": "Service", "name": f"mistral-{new}", "port": 8000, "weight": 100}] == rules[1][
        "backendRefs"
    ]


def test_owner_who_edits_his_route_during_a_canary():
    """He moves our rule and puts his weights back: they are set again, where the rule is now."""
    world, new = edited("chat")
    world.run_to("Judging")
    world.edit_route(list(reversed(OWNERS_RULES)))
    world.run(after(90))
    assert 10 == world.weights()[f"mistral-{new}"]
    assert world.route is not None
    assert OWNERS_RULES[0] == world.route["spec"]["rules"][1]

    world.run_to("Stable")
    assert new == world.stable


# --- what can be amiss ----------------------------------------------------------------------------


def held(world: GatewayWorld) -> str:
    """A new revision is held in Preflight; why."""
    world.run(lambda w: w.condition("Available") is not None)
    world.run(after(60))
    assert "RouterNotReady" == world.rollout["reason"]
    world.edit_engine(maxNumSeqs=32)
    world.run(after(300))
    assert "Preflight" == world.rollout["phase"]
    assert "RouterNotReady" == world.rollout["reason"]
    assert "True" == world.condition("Available")["status"]
    return str(world.rollout["message"])


def test_cluster_without_gateway_api():
    """It says what to install, asks rarely, writes nothing, and goes on once it is there."""
    world = a_world()
    world.has_api = False
    assert "install Gateway API v1.4.0" in held(world)
    reads = world.reads
    world.run(after(600))
    assert world.reads - reads <= 61
    assert 0 == world.route_writes

    world.has_api = True
    world.run_to("Stable")
    assert world.newest == world.stable


def test_gateway_api_that_is_too_old():
    """The API server refuses the route; a person reads why, and what is needed."""
    world = a_world()
    world.refuses = ".spec.rules[0].name: field not declared in schema"
    message = held(world)
    assert "field not declared in schema (Gateway API v1.4.0 or newer is needed)" in message
    writes = world.route_writes
    world.run(after(600))
    assert world.route_writes - writes <= 130

    world.refuses = ""
    world.run_to("Stable")
    assert world.newest == world.stable


def test_route_that_is_not_there():
    """Of a user's route we make none."""
    world = a_world("chat")
    route, world.route = world.route, None
    assert "HTTPRoute default/chat does not exist" in held(world)

    world.route = route
    world.run_to("Stable")


def test_route_without_our_rule():
    """Nothing is guessed."""
    world = a_world("chat")
    world.edit_route(OWNERS_RULES[:1])
    assert "has no rules named llmservice; name exactly one so" in held(world)
    assert 0 == world.route_writes

    world.edit_route(OWNERS_RULES)
    world.run_to("Stable")


def test_gateway_that_does_not_take_the_route():
    """It is named."""
    world = a_world()
    world.acknowledges = False
    assert "no controller has reported on Gateway gateways/public; does it exist?" in held(world)

    world.acknowledges = True
    world.run_to("Stable")


def test_patch_that_is_refused_holds_and_is_tried_rarely():
    """An admission policy, for instance, in its own words."""
    world = a_world("chat")
    world.refuses_patches = "HTTPRoute/chat: denied by policy"
    assert "denied by policy" in held(world)
    writes = world.route_writes
    world.run(after(600))
    assert world.route_writes - writes <= 61

    world.refuses_patches = ""
    world.run_to("Stable")


def test_api_server_that_does_not_say():
    """Nothing is written before the route was seen."""
    world = a_world()
    world.says_nothing = True
    assert "cannot be read: the API server does not answer" in held(world)
    assert 0 == world.route_writes

    world.says_nothing = False
    world.run_to("Stable")


def test_gateway_that_is_taken_away_in_the_middle():
    """Weights cannot be written any more: it holds, says what to do, and goes on."""
    world, new = edited()
    world.run_to("Judging")
    world.edit(traffic={"router": "Embedded"})
    world.action = "abort/1"
    world.run(lambda w: w.rollout["reason"] == "RouterNotReady")
    assert "began with router Gateway: set traffic.gatewayRef" in world.rollout["message"]
    assert 10 == world.weights()[f"mistral-{new}"]

    world.edit(traffic=TRAFFIC)
    world.run_to("Aborted")
    world.rest()
    assert {f"mistral-{world.stable}": 100} == world.weights()


# --- from one router to another -------------------------------------------------------------------


def test_leaving_the_gateway_removes_our_route():
    """Clients within the cluster reach all engines again."""
    world = serving()
    world.rest()
    world.edit(traffic={}, rollout={"strategy": "RollingUpdate"})
    for _ in range(5):
        world.reconcile()

    assert OWN not in world.children
    assert "llmservice.dev/revision" not in world.manifests[ENTRY]["spec"]["selector"]


def test_routers_of_our_own_come_before_clients_are_sent_there():
    """Having been routed by a Gateway says nothing of routers that are not there yet."""
    world = serving()
    world.rest()
    world.edit(traffic={"router": "Embedded"})
    world.reconcile()
    selector = world.manifests[ENTRY]["spec"]["selector"]

    assert "engine" == selector["app.kubernetes.io/component"]
    assert OWN not in world.children


def test_canary_ends_by_the_router_that_it_began_with():
    """Its weights are there."""
    world, new = edited()
    world.run_to("Judging")
    world.edit(traffic={"router": "Embedded", "gatewayRef": GATEWAY})
    world.run(after(5))
    assert 10 == world.weights()[f"mistral-{new}"]

    world.run_to("Stable")
    world.reconcile()
    assert OWN not in world.children
