"""What holds of canary rollouts whatever happens, in whichever order.

Random events - edits, words of people, crashes, outages, deaths of the operator, time - hit a
service; after each decision the laws are checked, and once the events stop it must come to rest.
"""

import copy
import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmservice.api import names
from llmservice.api.status import LLMServiceStatus
from llmservice.core.canary.state import AT_REST, Phase, dump_rollout, load_rollout
from llmservice.core.decision import Decision
from llmservice.core.failures import ContainerState
from llmservice.core.observed import ChildRef
from tests.state.canary_world import CanaryWorld, canary_spec

QUICK = {
    "steps": [{"weight": 20}, {"weight": 50}],
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
GRANTS = ("PreflightPassed", "StepPassed", "PromotedByUser")
"""Reasons for which one more weight may be given."""
AT_EASE = {*AT_REST, "Paused"}


@dataclass
class LawfulWorld(CanaryWorld):
    """Checks the laws after every decision."""

    loads: bool = True
    """Pods become ready."""
    granted: int = 0
    """How often the weight may still rise."""
    accepted: dict[str, Any] = field(default_factory=dict)
    """The newest spec that was not refused."""

    def reconcile(self) -> Decision:
        before = self.rollout
        ready = {pod.revision for pod in self.pods.values() if pod.ready}
        alive = self.dies_after
        earlier = copy.copy(self)
        earlier.pods, earlier.heard = dict(self.pods), dict(self.heard)
        earlier.manifests = dict(self.manifests)
        decision = super().reconcile()
        if not any(c["reason"] == "InvalidSpec" for c in self.status["conditions"]):
            self.accepted = self.spec
        self.check_status()
        self.check_steps(earlier, before, self.rollout)
        told = before.get("state")
        died = alive is not None and self.writes >= alive
        if told is not None and not died:
            self.check_shares(ready)
            self.check_pods(told)
        self.check_weights(before, self.rollout)
        return decision

    def check_status(self) -> None:
        """The API server takes it, and the next operator reads just what this one wrote."""
        parsed = LLMServiceStatus.model_validate_json(json.dumps(self.status), strict=True)
        assert self.status == parsed.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if self.rollout:
            kept = self.status["rollout"]["state"]
            rollout = load_rollout(kept)
            assert rollout is not None
            assert kept == dump_rollout(rollout)

    def check_shares(self, ready: set[str]) -> None:
        """No traffic for a revision without a ready pod while another one has some."""
        told = self.manifests[ChildRef("ConfigMap", names.router_name("mistral"))]["data"]
        tracks = json.loads(told[names.TRAFFIC_KEY])["tracks"]
        assert sum(track["weight"] for track in tracks) == 10_000
        loaded = {track["name"] for track in tracks if track["weight"]}
        staying = {revision for revision in ready if self.wanted_pods().get(revision)}
        assert not staying or loaded <= ready, (tracks, ready)

    def wanted_pods(self) -> dict[str, int]:
        """By revision, as its Deployment says."""
        return {
            ref.name.removeprefix("mistral-"): manifest["spec"]["replicas"]
            for ref, manifest in self.manifests.items()
            if ref.kind == "Deployment" and ref.name != names.router_name("mistral")
        }

    def check_pods(self, told: dict[str, Any]) -> None:
        """Never more than the service may have, none for what was turned down."""
        wanted, pods = self.accepted["replicas"], self.wanted_pods()
        assert max(pods.values()) <= wanted
        most = max(2, wanted) if told.get("capacity") == "Replace" else 2 * wanted
        assert sum(pods.values()) <= most, pods
        ending = {told.get("canary"), told.get("leaving")}
        for each in told.get("rejected", ()):
            assert not pods.get(each["hash"]) or each["hash"] in ending
        assert wanted == 0 or pods[told["stable"]] > 0 or told["phase"] == "Draining"

    def check_steps(
        self, earlier: "LawfulWorld", before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        """Pods before traffic; and no step on before the routers have the one before."""
        phase = after.get("phase")
        if before.get("phase") in (None, phase) or not self.accepted["replicas"]:
            return
        if phase == "Warming":
            canary = after["canaryRevision"]
            # Fewer may be needed since the replicas were edited just now.
            needed = min(earlier.wanted_pods()[canary], self.wanted_pods()[canary])
            ready = sum(pod.ready and pod.revision == canary for pod in earlier.pods.values())
            assert ready >= needed >= 1
        if phase in ("Settling", "Draining") and earlier.routers:
            told = earlier.manifests[ChildRef("ConfigMap", names.router_name("mistral"))]["data"]
            heard = {earlier.heard.get(name) for name in earlier.routers}
            assert {told[names.TRAFFIC_KEY]} == heard

    def check_weights(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """The weight rises by a passed step or by somebody's word, and by nothing else."""
        if before == after or not after:
            return
        if after["phase"] in ("Preflight", *AT_REST):
            self.granted = 0
        moved = before.get("phase") != after["phase"] or before.get("since") != after["since"]
        if before.get("phase") == after["phase"] and "hold" in before["state"]:
            moved = False  # it goes on waiting, from now on
        if after["reason"] == "PodsTakenAway" and moved:
            # What it had, or was about to get, it may get again.
            assert after["weight"] == 0
            assert after["state"]["to"] == before["state"]["to"]
            self.granted = max(1, self.granted)
        if moved and after["reason"] in GRANTS and after["phase"] in ("Provisioning", "Paused"):
            self.granted += 1
            passed = after["reason"] == "StepPassed"
            assert not passed or after["state"]["verdict"] == "promote"
        same = before.get("canaryRevision") == after.get("canaryRevision")
        if same and after["weight"] > before.get("weight", 0):
            assert "Shifting" == after["phase"]
            assert self.granted > 0
            self.granted = 0

    def live(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + timedelta(seconds=seconds)
        while self.now < end:
            self.tick()

    def tick(self) -> None:
        """One decision, and the time until the next one."""
        decision = self.reconcile()
        moved = self.load_pods() if self.loads else False
        moved = moved or bool(decision.apply or decision.delete or decision.status)
        pause = decision.requeue_after_seconds
        if decision.ask or (pause is None and moved):
            pause = 1.0
        self.pass_time(60.0 if pause is None else min(max(pause, 0.2), 60.0))

    def crash(self, revision: str) -> None:
        """All its pods died, and load anew."""
        died = ContainerState("engine", False, 1, None, None, "Error", 1, None)
        for name, pod in self.pods.items():
            if pod.revision == revision:
                self.pods[name] = replace(pod, ready=False, container=died)
        self._run_controllers()

    def heal(self) -> None:
        """Everything outside works from now on, and the spec is valid."""
        self.dies_after, self.room, self.loads = None, 100, True
        self.deaf.clear()
        self.behaviours = {
            revision: replace(how, silent=False, cold="", fails_every=0, in_flight=0)
            for revision, how in self.behaviours.items()
        }
        self.requests_per_second = 20.0
        self.edit(rollout={**self.spec["rollout"], "capacity": "Surge"})
        self.edit_engine(extraArgs=[])


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
    some("taken", *((which, how) for which in WHICH for how in ({}, EVICTED))),
    some("behave", *((which, how) for which in WHICH for how in BEHAVIOURS)),
    some("routers", (), ("router-0",)),
    some("room", 0, 2, 4, 100),
    some("loads", False, True),
    some("load", 0.0, 20.0),
    some("restart", None),
    some("death", 1, 2, 3, 5),
)
FEWER = (Happening("replicas", 1), Happening("time", 0.1))
LIVES = st.lists(st.tuples(HAPPENINGS, TIME), min_size=1, max_size=6)


@cache
def starts() -> dict[str, LawfulWorld]:
    """The world in every phase that there is, some of them at more than one weight."""
    found: dict[str, LawfulWorld] = {}
    for hits in (
        {},
        {"Judging 20": Happening("word", "abort")},
        {"Judging 50": Happening("engine", 16)},
        {"Judging 50": Happening("word", "pause")},
    ):
        world, rounds = beginning(), 0
        while rounds < 5:
            world.tick()
            place = f"{world.rollout['phase']} {world.rollout['weight']}"
            rounds += world.rollout["phase"] in AT_EASE
            found.setdefault(place, copy.deepcopy(world))
            if place in hits:
                hits.pop(place).hit(world)
    return found


def beginning() -> LawfulWorld:
    """A service that serves, and a new revision of it."""
    world = LawfulWorld(spec=canary_spec(replicas=2, **QUICK), reachable=True)
    while not world.rollout.get("state", {}).get("routed"):
        world.tick()
    world.edit_engine(maxNumSeqs=32)
    return world


def at_ease(world: LawfulWorld) -> bool:
    """Nothing is to be waited for; at zero pods a rollout waits for clients to come back."""
    phase = world.rollout["phase"]
    return phase in AT_EASE or (phase == "Preflight" and world.spec["replicas"] == 0)


def test_every_phase_is_a_start():
    """What is random begins everywhere but at gates, which this service has none of."""
    assert set(Phase) - {"Gating"} == {start.partition(" ")[0] for start in starts()}


@example("Judging 50", [(Happening("crash", "updatedRevision"), Happening("time", 0.1))])
@example("Baking 100", [(Happening("crash", "updatedRevision"), Happening("time", 0.1))])
@example("Judging 20", [(Happening("crash", "stableRevision"), Happening("time", 0.1))])
@example("Provisioning 20", [(Happening("room", 0), Happening("time", 15.0)), FEWER])
@example("Warming 20", [(Happening("routers", ("router-0",)), Happening("time", 15.0))])
@example(
    "Judging 50", [(Happening("taken", ("updatedRevision", EVICTED)), Happening("time", 15.0))]
)
@example("Judging 50", [(Happening("slip", ["--swap-space", "4"]), Happening("time", 150.0))])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.deferred(lambda: st.sampled_from(sorted(starts()))), LIVES)
def test_laws(start, happenings):
    """The laws hold through all of it, and it comes to rest once it is left in peace."""
    world = copy.deepcopy(starts()[start])
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

    phase, wanted = world.rollout["phase"], world.spec["replicas"]
    if phase in AT_REST:
        assert world.pods_by_revision() == ({world.stable: wanted} if wanted else {})
        assert (world.stable == world.newest) == (phase == "Stable")
