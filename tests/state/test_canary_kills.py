"""The operator dies after any of its writes; the next one ends the rollout just the same.

A whole rollout is played once, and then again for each of its writes: after that write nothing of
the decision is carried out, and what was only in memory is lost.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from llmservice.core.decision import Decision
from tests.state.canary_world import CanaryWorld, canary_spec

MIN_REQUESTS = 30
STEPS = (40, 80)
QUICK = {
    "steps": [{"weight": weight} for weight in STEPS],
    "guardrails": [
        {"metric": "ttft", "quantile": "p50", "maxIncreasePercent": 100, "minRequests": 30},
        {"metric": "errors", "maxErrorRatePercent": 30, "minRequests": 30},
    ],
    "windowSeconds": 5,
    "settleSeconds": 1,
    "bakeSeconds": 3,
}
ANSWERING_SECONDS = 3.0
"""What a revision is asked when it leaves takes so long to answer."""


def judged(rollout: dict[str, Any]) -> float:
    """Canary requests that count for the step."""
    return float(rollout["state"].get("judge", {}).get("stepRequests", 0.0))


@dataclass
class WatchedWorld(CanaryWorld):
    """Watches what must hold at any time."""

    steps_judged: dict[int, float] = field(default_factory=dict)
    """Weight -> requests that the canary served in the rounds that let it pass."""
    begun: dict[int, int] = field(default_factory=dict)
    """Weight -> what it had served when that step was first judged."""
    leaving: str | None = None
    asked_until: Any = None
    """When the leaving revision has answered everything."""
    drains: bool = False
    """Somebody drains the node of the canary's first pod once it has requests."""

    def reconcile(self) -> Decision:
        before = self.rollout
        if self.drains and before.get("phase") == "Judging":
            self.drains = False
            self.take_away(before["canaryRevision"])
        decision = super().reconcile()
        self._watch(before, self.rollout)
        return decision

    def _watch(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        self._watch_shares()
        self._watch_steps(before, after)
        self._watch_drain(after)

    def _watch_shares(self) -> None:
        ready = {pod.revision for pod in self.pods.values() if pod.ready}
        shares = self.shares()
        assert not ready or all(revision in ready for revision in shares if shares[revision])

    def _watch_steps(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        canary = after.get("canaryRevision")
        if canary is None:
            return
        served, weight = self.behaviour(canary).served, after["weight"]
        if after["phase"] == "Judging":
            assert weight in STEPS
            self.begun.setdefault(weight, served)
            counted = judged(after)
            assert counted <= served - self.begun[weight], "requests were counted twice"
        elif before.get("phase") == "Judging" and after["reason"] == "StepPassed":
            assert judged(before) <= served - self.begun[weight]
            self.steps_judged[weight] = judged(after)

    def _watch_drain(self, after: dict[str, Any]) -> None:
        """Requests that the leaving revision still answers keep its pods."""
        self.leaving = after.get("state", {}).get("leaving") or self.leaving
        leaving = self.leaving
        if leaving is None:
            return
        if after["phase"] == "Draining" and self.asked_until is None:
            self.behaviour(leaving).in_flight = 1
            self.asked_until = self.now.timestamp() + ANSWERING_SECONDS
        elif self.asked_until is not None and self.now.timestamp() >= self.asked_until:
            self.behaviour(leaving).in_flight = 0
        if self.behaviour(leaving).in_flight:
            assert self.pods_by_revision().get(leaving), "a pod went while it answered"


def beginning(*, fails_every: int = 0, drains: bool = False) -> WatchedWorld:
    """A service that was just edited."""
    world = WatchedWorld(spec=canary_spec(replicas=2, **QUICK), reachable=True)
    world.run(lambda w: w.rollout.get("state", {}).get("routed", False))
    world.rest()
    old = world.stable
    world.edit_engine(maxNumSeqs=32)
    world.run(lambda w: w.newest != old)
    world.behaviour(world.newest).fails_every = fails_every
    world.writes, world.requests_per_second, world.drains = 0, 60.0, drains
    return world


def ended(world: WatchedWorld) -> bool:
    """Nothing is under way any more."""
    return world.rollout["phase"] in ("Stable", "Aborted") and world.asked_until is not None


def final(world: WatchedWorld) -> dict[str, Any]:
    """What must be the same in the end, whoever died on the way."""
    world.rest()
    shares = {revision: share for revision, share in world.shares().items() if share}
    return {
        "stable": world.stable,
        "phase": world.rollout["phase"],
        "reason": world.rollout["reason"],
        "pods": world.pods_by_revision(),
        "shares": shares,
        "rejected": [(each["hash"], each["reason"]) for each in world.rollout.get("rejected", ())],
        "children": sorted(map(str, world.children)),
        "steps": sorted(world.steps_judged),
    }


def deaths(start: WatchedWorld) -> Iterator[WatchedWorld]:
    """The world after a death, once for each write of the rollout that begins here."""
    live, resting = copy.deepcopy(start), False
    while not resting:
        before = copy.deepcopy(live)
        decision = live.reconcile()
        for write in range(before.writes + 1, live.writes + 1):
            dying = copy.deepcopy(before)
            dying.dies_after = write
            yield dying
        resting = ended(live) and live.writes == before.writes
        live.load_pods()
        asks = bool(decision.ask)
        live.pass_time(1.0 if asks else min(max(decision.requeue_after_seconds or 0.0, 0.1), 10.0))


@pytest.mark.parametrize(
    ("fails_every", "drains", "phase", "steps"),
    [
        (0, False, "Stable", [*STEPS]),
        (2, False, "Aborted", []),
        (0, True, "Stable", [*STEPS]),
    ],
)
def test_killed_at_every_write(fails_every, drains, phase, steps):
    """The same end, with every step judged and every request answered."""
    start = beginning(fails_every=fails_every, drains=drains)
    calm = copy.deepcopy(start)
    calm.run(ended)
    wanted = final(calm)
    assert (phase, steps) == (wanted["phase"], wanted["steps"])
    assert drains == ("PodsTakenAway" in {event.reason for event in calm.events})
    assert 0 == calm.lost
    assert all(requests >= MIN_REQUESTS for requests in calm.steps_judged.values())

    count = 0
    for world in deaths(start):
        count += 1
        world.run(ended)
        assert wanted == final(world), f"killed after write {world.dies_after}"
        # Who routes while the operator is dead sends requests to where the pods were.
        assert drains or not world.lost
        assert all(requests >= MIN_REQUESTS for requests in world.steps_judged.values())
    assert count == calm.writes > 20


def test_killed_again_and_again():
    """An operator that never lives for more than a few writes gets there as well."""
    start = beginning()
    calm = copy.deepcopy(start)
    calm.run(ended)
    wanted = final(calm)
    for lifetime in (2, 3, 5):  # a window of evidence lies between two writes of a life
        world = copy.deepcopy(start)

        def dies_on(world: WatchedWorld, lifetime: int = lifetime) -> bool:
            if world.dies_after is None or world.writes >= world.dies_after:
                world.dies_after = world.writes + lifetime
            return ended(world)

        world.run(dies_on)
        world.dies_after = None
        assert wanted == final(world), f"killed after every {lifetime} writes"
        assert not world.lost
