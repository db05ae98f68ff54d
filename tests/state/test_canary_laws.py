"""What holds of canary rollouts whatever happens, in whichever order.

Random events - edits, words of people, crashes, outages, deaths of the operator, time - hit a
service; after each decision the laws are checked, and once the events stop it must come to rest.
"""

import copy
import json
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmservice.core.canary.state import Phase
from tests.state.canary_world import canary_spec
from tests.state.gated_world import APPROVAL, RELEASE, SPEED
from tests.state.gateway_world import OWNERS_RULES, TRAFFIC
from tests.state.lawful_world import AT_EASE, ENDS, LawfulGatewayWorld, LawfulWorld

# Thousands of decisions each: seconds on a machine at rest, minutes beside a cluster that starts.
pytestmark = pytest.mark.timeout(600)

ENDURANCE = {**SPEED, "name": "endurance", "when": "BeforePromotion"}
QUICK = {
    "steps": [{"weight": 20}, {"weight": 50}],
    "gates": [SPEED, RELEASE],
    "guardrails": [
        {"metric": "errors", "maxErrorRatePercent": 20, "minRequests": 40},
    ],
    "windowSeconds": 10,
    "settleSeconds": 1,
    "bakeSeconds": 5,
    "stepTimeoutSeconds": 120,
    "onTimeout": "Abort",
    "provisionTimeoutSeconds": 120,
}


@dataclass(frozen=True)
class Happening:
    """Something that happens to a service."""

    kind: str
    value: Any = field(default=None)

    def hit(self, world: LawfulWorld) -> None:
        getattr(self, f"_{self.kind}")(world)

    def _engine(self, world: LawfulWorld) -> None:
        world.edit_engine(maxNumSeqs=self.value)

    def _slip(self, world: LawfulWorld) -> None:
        world.edit_engine(extraArgs=self.value)

    def _replicas(self, world: LawfulWorld) -> None:
        world.edit(replicas=self.value)

    def _rollout(self, world: LawfulWorld) -> None:
        world.edit(rollout={**world.spec["rollout"], **self.value})

    def _word(self, world: LawfulWorld) -> None:
        world.action = f"{self.value}/{world.version}"

    def _crash(self, world: LawfulWorld) -> None:
        world.crash(world.status[self.value])

    def _unheard(self, world: LawfulWorld) -> None:
        world.lose_node(world.status[self.value])

    def _taken(self, world: LawfulWorld) -> None:
        which, facts = self.value
        world.take_away(world.status[which], **facts)

    def _behave(self, world: LawfulWorld) -> None:
        which, changes = self.value
        behaviour = world.behaviour(world.status[which])
        for name, value in changes.items():
            setattr(behaviour, name, value)

    def _routers(self, world: LawfulWorld) -> None:
        world.deaf = set(self.value)

    def _room(self, world: LawfulWorld) -> None:
        world.room = self.value

    def _loads(self, world: LawfulWorld) -> None:
        world.loads = self.value

    def _load(self, world: LawfulWorld) -> None:
        world.requests_per_second = self.value

    def _gate(self, world: LawfulWorld) -> None:
        for name, value in self.value.items():
            setattr(world, name, value)

    def _job(self, world: LawfulWorld) -> None:
        world.lose_job()

    def _gateway(self, world: LawfulWorld) -> None:
        assert isinstance(world, LawfulGatewayWorld)
        for name, value in self.value.items():
            setattr(world, name, value)
        if not world.has_api:
            world.route = world.own = None

    def _owner(self, world: LawfulWorld) -> None:
        assert isinstance(world, LawfulGatewayWorld)
        if self.value is None:
            world.route = world.own = None
        else:
            world.owner_writes(self.value)

    def _restart(self, world: LawfulWorld) -> None:
        world.restart_operator()

    def _death(self, world: LawfulWorld) -> None:
        world.dies_after = world.writes + self.value

    def _time(self, world: LawfulWorld) -> None:
        world.live(self.value)


def some(kind: str, *values: Any) -> st.SearchStrategy[Happening]:
    """One of these happenings."""
    return st.sampled_from([Happening(kind, value) for value in values])


EVICTED = {"ready": False, "phase_reason": "Evicted"}
WHICH = ("stableRevision", "updatedRevision")
BEHAVIOURS = (
    *({"silent": True}, {"silent": False}, {"cold": "HTTP 500"}, {"cold": ""}),
    *({"fails_every": 2}, {"fails_every": 0}, {"in_flight": 1}, {"in_flight": 0}),
)
GATES = ((), (APPROVAL,), (APPROVAL, SPEED), (SPEED, ENDURANCE), (RELEASE, ENDURANCE))
TIME = some("time", 0.1, 1.0, 4.0, 15.0, 15.0, 40.0, 150.0)
HAPPENINGS = st.one_of(
    TIME,
    some("engine", 64, 32, 16),
    some("slip", ["--swap-space", "4"], []),
    some("replicas", 0, 1, 2, 4),
    some(
        "rollout",
        {"steps": [{"weight": 10}]},
        {"steps": [{"weight": 20}, {"weight": 50, "pause": True}]},
        {"steps": [{"weight": 5}, {"weight": 20}, {"weight": 90, "durationSeconds": 20}]},
        {"capacity": "Auto"},
        {"capacity": "Replace"},
        {"capacity": "Surge"},
        {"warmUp": {"requests": 0}},
    ),
    some("word", "pause", "resume", "promote", "promote-full", "abort", "retry", "x" * 300),
    some("crash", *WHICH),
    some("unheard", *WHICH),
    some("taken", *((which, how) for which in WHICH for how in ({}, EVICTED))),
    some("behave", *((which, how) for which in WHICH for how in BEHAVIOURS)),
    some("routers", (), ("router-0",)),
    some("room", 0, 2, 4, 100),
    some("loads", False, True),
    some("load", 0.0, 20.0),
    some("restart", None),
    some("death", 1, 2, 3, 5),
    some("rollout", *({"gates": list(gates)} for gates in GATES)),
    some("gate", *({"says": says} for says in (200, 403, 503, None, "lost", "stale"))),
    some("gate", {"gate_takes": 0.0}, {"gate_takes": 20.0}, {"gate_takes": 200.0}),
    some("gate", *({"bench_does": does} for does in (*ENDS, "hang"))),
    some("job", None),
)
MOMENT, WHILE = Happening("time", 0.1), Happening("time", 15.0)
FEWER = (Happening("replicas", 1), MOMENT)
AUTO = Happening("rollout", {"capacity": "Auto"})
APPROVED = Happening("rollout", {"gates": [APPROVAL]})
ABORT = Happening("word", "abort")
ELSEWHERE = ({**OWNERS_RULES[1], "backendRefs": [{"name": "elsewhere", "port": 80, "weight": 1}]},)
ROUTES = st.one_of(
    some(
        "gateway",
        {"acknowledges": False},
        {"acknowledges": True},
        {"accepts": False},
        {"accepts": True},
        {"has_api": False},
        {"has_api": True},
        {"says_nothing": True},
        {"says_nothing": False},
        {"refuses": "denied", "refuses_patches": "denied"},
        {"refuses": "", "refuses_patches": ""},
    ),
    some("owner", None, ELSEWHERE, OWNERS_RULES, OWNERS_RULES[:1], OWNERS_RULES[::-1]),
)


def lives(*happenings: st.SearchStrategy[Happening]) -> Any:
    """What happens, and how long it is quiet after each."""
    return st.lists(st.tuples(st.one_of(*happenings), TIME), min_size=1, max_size=6)


LAPS = (
    {},
    {"Judging 20": ABORT},
    {"Judging 50": Happening("engine", 16)},
    {"Judging 50": Happening("word", "pause")},
)


@cache
def starts(router: str) -> dict[str, LawfulWorld]:
    """The world in every phase that there is, some of them at more than one weight.

    Behind a Gateway those of a canary that is promoted.
    """
    found: dict[str, LawfulWorld] = {}
    for lap in LAPS if router == "Embedded" else LAPS[:1]:
        hits = dict(lap)
        world, rounds = beginning(router), 0
        while rounds < 5:
            world.tick()
            place = f"{world.rollout['phase']} {world.rollout['weight']}"
            rounds += world.rollout["phase"] in AT_EASE
            if place not in found:
                found[place] = copy.deepcopy(world)
            if place in hits:
                hits.pop(place).hit(world)
    return found


def beginning(router: str) -> LawfulWorld:
    """A service that serves, and a new revision of it."""
    spec = canary_spec(replicas=2, **QUICK)
    world = LawfulWorld(spec=spec, reachable=True)
    if router != "Embedded":
        traffic = {**TRAFFIC, **({"routeName": "chat"} if router == "Gateway chat" else {})}
        world = LawfulGatewayWorld(spec={**spec, "traffic": traffic}, reachable=True)
        world.owner_writes(OWNERS_RULES)
    while not world.rollout.get("state", {}).get("routed"):
        world.tick()
    world.edit_engine(maxNumSeqs=32)
    return world


def at_ease(world: LawfulWorld) -> bool:
    """Nothing is to be waited for; at zero pods a rollout waits for clients to come back."""
    phase = world.rollout["phase"]
    return phase in AT_EASE or (phase == "Preflight" and world.spec["replicas"] == 0)


def live_through(world: LawfulWorld, happenings: list[tuple[Happening, Happening]]) -> None:
    """The laws hold through all of it, and it comes to rest once it is left in peace."""
    for happening, pause in happenings:
        happening.hit(world)
        pause.hit(world)
    world.heal()
    world.tick()
    end = world.now + timedelta(hours=2)
    while not at_ease(world):
        assert world.now < end, json.dumps(world.rollout, indent=1)
        world.tick()
    for _ in range(3):
        world.tick()
    world.check_peace()


def test_every_phase_is_a_start():
    """What is random begins everywhere."""
    assert set(Phase) == {start.partition(" ")[0] for start in starts("Embedded")}


@example("Judging 50", [(Happening("crash", "updatedRevision"), MOMENT)])
@example("Baking 100", [(Happening("crash", "updatedRevision"), MOMENT)])
@example("Judging 20", [(Happening("crash", "stableRevision"), MOMENT)])
@example("Provisioning 20", [(Happening("room", 0), WHILE), FEWER])
@example("Warming 20", [(Happening("routers", ("router-0",)), WHILE)])
@example("Judging 50", [(Happening("taken", ("updatedRevision", EVICTED)), WHILE)])
@example("Judging 50", [(Happening("slip", ["--swap-space", "4"]), Happening("time", 150.0))])
@example("Judging 20", [(Happening("room", 0), MOMENT), (AUTO, Happening("time", 150.0))])
@example("Warming 0", [(Happening("gate", {"bench_does": "vanish"}), WHILE)])
@example("Warming 0", [(APPROVED, WHILE), (ABORT, WHILE), (Happening("word", "retry"), WHILE)])
@example("Baking 100", [(Happening("gate", {"says": "stale"}), Happening("time", 40.0))])
@example("Baking 100", [(Happening("gate", {"says": "lost"}), Happening("time", 40.0))])
@settings(max_examples=40)
@given(st.deferred(lambda: st.sampled_from(sorted(starts("Embedded")))), lives(HAPPENINGS))
def test_laws(start, happenings):
    """With routers of the service's own."""
    live_through(copy.deepcopy(starts("Embedded")[start]), happenings)


@example("Gateway", "Shifting 20", [(Happening("gateway", {"accepts": False}), MOMENT)])
@settings(max_examples=30)
@given(
    st.sampled_from(["Gateway", "Gateway chat"]),
    st.deferred(lambda: st.sampled_from(sorted(starts("Gateway")))),
    lives(HAPPENINGS, ROUTES, ROUTES),
)
def test_laws_behind_a_gateway(router, start, happenings):
    """With an HTTPRoute, ours or a user's."""
    live_through(copy.deepcopy(starts(router)[start]), happenings)
