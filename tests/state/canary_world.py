"""A world whose service has routers, clients and engines that count: rollouts in fast motion.

Clients ask evenly, each track gets its share of what the routers were told last, and how slow or
wrong it answers is set by the test. Like the world beneath it stands in for the real components
only where a test needs thousands of requests and outages at will.
"""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from llmservice.api import names
from llmservice.core.decision import Apply, Decision, Event
from llmservice.core.judge.counts import VLLM_LATENCY_EDGES, VLLM_TTFT_EDGES, Counts, Histogram
from llmservice.core.observed import ChildRef, KVCacheSize, Observed, PodFacts
from llmservice.core.questions import (
    Answer,
    EngineReading,
    Question,
    ReadEngine,
    ReadRouter,
    ReadScaledObject,
    ScaledObjectReading,
    Topic,
    WarmedUp,
    WarmUp,
    topic_of,
)
from llmservice.core.router.report import RouterReport, TrackReport
from tests.state.world import World, a_spec

ROLLOUT = {
    "strategy": "Canary",
    "capacity": "Surge",
    "steps": [{"weight": 10}, {"weight": 50}],
    "guardrails": [
        {"metric": "ttft", "quantile": "p90", "maxIncreasePercent": 20, "minRequests": 50},
        {"metric": "errors", "maxErrorRatePercent": 2, "minRequests": 150},
    ],
    "windowSeconds": 30,
    "settleSeconds": 15,
    "bakeSeconds": 60,
}
TTFTS = (0.05, 0.09, 0.2, 0.3, 0.3, 0.4, 0.4, 0.6, 0.6, 0.9)
"""Times of a healthy engine's requests, one after the other."""


def canary_spec(replicas: int = 4, **rollout: Any) -> dict[str, Any]:
    """A service that is rolled out by canaries; keyword arguments are fields of spec.rollout."""
    return a_spec(replicas=replicas, rollout={**ROLLOUT, **rollout})


class Killed(Exception):  # noqa: N818 - what happens to the operator is no error of the test
    """The operator is no more."""


@dataclass
class Behaviour:
    """How the engines of a revision answer."""

    slower: float = 1.0
    fails_every: int = 0
    """One of so many requests fails; 0 for none."""
    silent: bool = False
    """Their metrics are not to be had."""
    cold: str = ""
    """Why they do not answer the operator's own requests."""
    in_flight: int = 0
    """Requests that do not end."""
    served: int = 0
    failed: int = 0
    ttfts: Counter[float] = field(default_factory=Counter)


@dataclass
class CanaryWorld(World):
    """One service with routers in front."""

    spec: dict[str, Any] = field(default_factory=canary_spec)
    engine_says: KVCacheSize | None = field(default_factory=lambda: KVCacheSize(1000, 1.0))
    requests_per_second: float = 20.0
    taken: list[PodFacts] = field(default_factory=list)
    """Pods that somebody took away; their Deployment has replaced them."""
    routers: dict[str, PodFacts] = field(default_factory=dict)
    deaf: set[str] = field(default_factory=set)
    """Routers that do not take new weights."""
    heard: dict[str, str] = field(default_factory=dict)
    """Router -> traffic that it routes by."""
    answers: dict[Topic, Answer] = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    action: str | None = None
    engines_count_failures: bool = False
    """Without routers nobody else does."""
    held: int = 0
    """Requests that wait in each router."""
    idle_seconds: float = 0.0
    """How long the routers have had no request."""
    lost: int = 0
    """Requests sent to where nobody served."""
    phases: list[str] = field(default_factory=list)
    """In the order in which they were written."""
    events: list[Event] = field(default_factory=list)
    writes: int = 0
    dies_after: int | None = None
    """The operator's last write: what was to come after it in the same decision is lost."""

    def behaviour(self, revision: str) -> Behaviour:
        """How a revision answers; what is set there counts from now on."""
        return self.behaviours.setdefault(revision, Behaviour())

    def observe(self) -> Observed:
        base = super().observe()
        return replace(
            base,
            service=replace(base.service, action=self.action),
            pods=(*base.pods, *self.taken),
            routers=tuple(self.routers.values()),
            answers=dict(self.answers),
            baselines=dict(self.baselines),
        )

    def reconcile(self) -> Decision:
        """Decide once, carry it out, answer what was asked, note a new phase."""
        try:
            decision = super().reconcile()
        except Killed:
            self.restart_operator()
            self._run_controllers()
            decision = Decision(requeue_after_seconds=1.0)
        self.events += decision.events
        if decision.baselines is not None:
            self.baselines = dict(decision.baselines)
        self._run_routers()
        for question in decision.ask:
            self._hear(question)
        phase = self.rollout.get("phase")
        if phase is not None and (not self.phases or self.phases[-1] != phase):
            self.phases.append(phase)
        return decision

    def run(self, until: Any, *, seconds: float = 7200, load: bool = True) -> None:
        """Let time pass and clients ask until ``until(world)`` holds."""
        end = self.now + timedelta(seconds=seconds)
        while not until(self):
            if self.now > end:
                raise AssertionError(
                    f"not within {seconds} s: {json.dumps(self.rollout, indent=1)}"
                )
            decision = self.reconcile()
            moved = self.load_pods() if load else False
            moved = moved or bool(decision.apply or decision.delete or decision.status)
            pause = decision.requeue_after_seconds
            if decision.ask or (pause is None and moved):
                pause = 1.0
            self.pass_time(60.0 if pause is None else min(max(pause, 0.1), 3600.0))

    def run_to(self, *phases: str, seconds: float = 7200) -> None:
        """Let time pass until the rollout is in one of these phases."""
        self.run(lambda world: world.rollout.get("phase") in phases, seconds=seconds)

    def rest(self) -> None:
        """Carry out what follows from a phase that was just entered."""
        for _ in range(5):
            self.reconcile()
            self.load_pods()
            self.pass_time(1.0)

    def pass_time(self, seconds: float) -> None:
        """Clients ask for so long."""
        self.now += timedelta(seconds=seconds)
        for revision, share in self.shares().items():
            self._serve(revision, self.requests_per_second * seconds * share / 100)

    def shares(self) -> dict[str, float]:
        """Percent by revision, as the routers that clients reach route."""
        told = [json.loads(self.heard[name]) for name in self.routers if name in self.heard]
        found: dict[str, float] = {}
        for traffic in told:
            for track in traffic["tracks"]:
                share = track["weight"] / 100 / len(told)
                found[track["name"]] = found.get(track["name"], 0.0) + share
        return found

    @property
    def rollout(self) -> dict[str, Any]:
        """``status.rollout``, with its state read."""
        told = self.status.get("rollout", {})
        return {**told, "state": json.loads(told["state"])} if told else {}

    @property
    def stable(self) -> str:
        """The revision that serves."""
        return self.status["stableRevision"]

    @property
    def newest(self) -> str:
        """The revision of the newest spec."""
        return self.status["updatedRevision"]

    def pods_by_revision(self) -> dict[str, int]:
        """How many pods each revision has."""
        found: dict[str, int] = {}
        for pod in self.pods.values():
            found[pod.revision] = found.get(pod.revision, 0) + 1
        return found

    def take_away(self, revision: str, **facts: Any) -> None:
        """Delete all pods of a revision, or what else the facts say of their end."""
        for name, pod in list(self.pods.items()):
            if pod.revision == revision:
                self.taken.append(replace(pod, **(facts or {"deleting": True})))
                del self.pods[name]
        self._run_controllers()

    def lose_node(self, revision: str) -> None:
        """The nodes of its pods do not answer, as Kubernetes says it of the pods."""
        for name, pod in self.pods.items():
            if pod.revision == revision:
                self.pods[name] = replace(pod, ready=False, silent=True)
        self._run_controllers()

    def load_pods(self) -> bool:
        """By the time another pod is loaded, a deleted one has ended."""
        self.taken = [pod for pod in self.taken if not pod.deleting]
        return super().load_pods()

    def restart_operator(self) -> None:
        """What was only in memory is gone."""
        self.answers.clear()
        self.baselines.clear()

    # --- the components -----------------------------------------------------------------------

    def _apply(self, apply: Apply) -> None:
        super()._apply(apply)
        self._wrote()

    def _delete(self, ref: ChildRef) -> None:
        super()._delete(ref)
        self._wrote()

    def _put_status(self, status: Any) -> None:
        super()._put_status(status)
        self._wrote()

    def _wrote(self) -> None:
        self.writes += 1
        if self.writes == self.dies_after:
            raise Killed

    def _run_controllers(self) -> None:
        router = ChildRef("Deployment", names.router_name("mistral"))
        kept = self.children.pop(router, None)
        super()._run_controllers()
        if kept is not None:
            self.children[router] = kept

    def _run_routers(self) -> None:
        deployment = self.manifests.get(ChildRef("Deployment", names.router_name("mistral")))
        if deployment is None:
            self.routers.clear()
            return
        for number in range(deployment["spec"]["replicas"]):
            name = f"router-{number}"
            if name not in self.routers:
                self.routers[name] = PodFacts(
                    name, name, "", ready=True, created=self.now, address=f"10.1.0.{number}"
                )
        told = self.manifests[ChildRef("ConfigMap", names.router_name("mistral"))]["data"]
        for name in sorted(self.routers.keys() - self.deaf):
            self.heard[name] = told[names.TRAFFIC_KEY]

    def _serve(self, revision: str, requests: float) -> None:
        how = self.behaviour(revision)
        serving = any(p.ready and p.revision == revision for p in self.pods.values())
        if not serving:
            self.lost += round(requests)
            return
        for _ in range(round(requests + (how.served % 7) / 7 - 0.5)):
            how.served += 1
            if how.fails_every and how.served % how.fails_every == 0:
                how.failed += 1
            else:
                how.ttfts[TTFTS[how.served % len(TTFTS)] * how.slower] += 1

    def _hear(self, question: Question) -> None:
        self.answers[topic_of(question)] = Answer(self.now, self._say(question))

    def _say(self, question: Question) -> Any:
        if isinstance(question, ReadRouter):
            return self._report(question.pod_uid)
        if isinstance(question, ReadScaledObject):
            return ScaledObjectReading({"metadata": {"name": question.name}})
        assert isinstance(question, ReadEngine | WarmUp)
        pod = self.pods.get(question.pod_uid)
        if pod is None:
            return None
        how = self.behaviour(pod.revision)
        if isinstance(question, WarmUp):
            return WarmedUp(how.cold)
        if how.silent:
            return None
        alike = [p.name for p in self.pods.values() if p.revision == pod.revision and p.ready]
        # What the revision served is told by its first pod; the others served nothing.
        first = pod.name == min(alike, default="")
        ttfts = how.ttfts if first else Counter()
        latencies = {3 * time: count for time, count in ttfts.items()}
        failed = how.failed if first and self.engines_count_failures else 0
        counts = Counts(
            float(ttfts.total() + failed),
            float(failed),
            _histogram(VLLM_TTFT_EDGES, ttfts),
            _histogram(VLLM_LATENCY_EDGES, latencies),
        )
        return EngineReading(counts, running=how.in_flight if first else 0, waiting=0)

    def _report(self, name: str) -> RouterReport | None:
        if name not in self.heard:
            return None
        version = json.loads(self.heard[name])["version"]
        first = name == min(self.routers)
        tracks = {
            revision: TrackReport(
                active=how.in_flight if first else 0,
                requests=how.served if first else 0,
                failed=how.failed if first else 0,
            )
            for revision, how in self.behaviours.items()
        }
        return RouterReport(version, tracks, waiting=self.held, idle_seconds=int(self.idle_seconds))


def _histogram(edges: tuple[float, ...], times: Mapping[float, int]) -> Histogram:
    counts = [0.0] * (len(edges) + 1)
    for time, count in times.items():
        counts[bisect_left(edges, time)] += count
    return Histogram(edges, tuple(counts))


def after(seconds: float) -> Any:
    """A condition that holds so many seconds after it was first asked."""
    begun: list[datetime] = []

    def condition(world: World) -> bool:
        begun.append(world.now)
        return world.now - begun[0] >= timedelta(seconds=seconds)

    return condition


def serving(**changes: Any) -> CanaryWorld:
    """A world whose first revision serves through routers."""
    world = CanaryWorld(spec=canary_spec(**changes), reachable=True)
    world.run(lambda w: w.rollout.get("state", {}).get("routed", False))
    return world
