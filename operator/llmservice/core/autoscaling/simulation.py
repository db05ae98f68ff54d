"""Replays a trace of requests against a fleet of engines that a policy scales.

A data path sends each request to the ready replica with the fewest outstanding ones. Either it
hands over everything at once, so that queues are the engines' (what proxies do), or it bounds what
an engine is handed and keeps the rest, in order, where it can still go anywhere. Everything else is
what a Deployment does: the youngest replicas go first, those that are not ready before all others,
and one that is removed finishes what it has. Called by ``llmservice autoscale simulate``.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from llmservice.core.autoscaling.engine import Engine, EngineModel, Request
from llmservice.core.autoscaling.policy import Autoscaler, PodView, Sample, View

_PENDING_SHARE = 1 / 3
"""Of a cold start: until the container runs; the rest is loading, with no gauges to read."""
_QUEUE_SHARE = 1 / 8
"""Of its sequences: how many requests may queue in an engine if the data path keeps the rest."""
_STALE_SCRAPES = 3
_SECONDS_PER_HOUR = 3600.0
_NEVER = float("inf")


class Queueing(StrEnum):
    """Where requests wait."""

    ENGINE = "engine"
    DATA_PATH = "data-path"


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated besides the trace and the policy."""

    engine: EngineModel = field(default_factory=EngineModel)
    min_replicas: int = 1
    max_replicas: int = 16
    slo_seconds: float = 5.0
    """A request whose first token takes longer is a miss."""
    queueing: Queueing = Queueing.ENGINE
    scrape_seconds: float = 15.0
    """Between two reads of the engines' gauges; half of it passes before a policy sees one."""
    slow_replica: float = 1.0
    """How many times slower than the others the first replica is."""
    deploy_at: float = _NEVER
    """When a new version replaces every replica, one at a time, after the newcomer is ready."""
    blackout: tuple[float, float] = (_NEVER, _NEVER)
    """From when to when no scrape succeeds."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The fleet at one time."""

    at: float
    replicas: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a policy made of a trace."""

    gpu_hours: float
    """Replica-hours until the last request ended, those of starting and draining ones included."""
    slo_miss_rate: float
    """0 to 1."""
    scale_changes: int
    ttft_p95: float
    """Seconds."""
    timeline: tuple[Moment, ...]


@dataclass(slots=True)
class _Replica:
    engine: Engine
    generation: int
    started: float
    ready_at: float
    terminating: bool = False
    sample: Sample | None = None
    sampled_at: float = -_NEVER


def simulate(requests: Sequence[Request], policy: Autoscaler, scenario: Scenario) -> Result:
    """Replay a trace; the requests are not changed.

    Args:
        requests: in order of arrival.
        policy: fresh, for policies remember.
        scenario: engines, bounds and events.

    """
    return _Simulation([replace(request) for request in requests], policy, scenario).run()


class _Simulation:
    """One run. Events are (time, number, engine or None, version); None is a tick."""

    def __init__(self, requests: list[Request], policy: Autoscaler, scenario: Scenario) -> None:
        self._requests, self._policy, self._scenario = requests, policy, scenario
        self._replicas: list[_Replica] = []
        self._by_engine: dict[Engine, _Replica] = {}
        self._serving: list[Engine] = []
        self._held: deque[Request] = deque()
        self._events: list[tuple[float, int, Engine | None, int]] = []
        self._pushed = 0
        self._created = self._generation = 0
        self._target = scenario.min_replicas
        self._in_flight = 0
        self._gpu_seconds = 0.0
        self._changes = 0
        self._timeline: list[Moment] = []
        seqs = scenario.engine.max_num_seqs
        self._bound = seqs + max(1, int(seqs * _QUEUE_SHARE))
        if scenario.queueing is Queueing.ENGINE:
            self._bound = len(requests) + 1
        self._next_scrape = scenario.scrape_seconds / 2
        self._next_decision = policy.interval
        self._now = 0.0

    def run(self) -> Result:
        for _ in range(self._target):
            self._start(ready=True)
        self._serve()
        self._push_tick()
        arrivals, index = self._requests, 0
        while index < len(arrivals) or self._in_flight:
            event_at = self._events[0][0]
            if index < len(arrivals) and arrivals[index].arrival <= event_at:
                self._now = arrivals[index].arrival
                self._in_flight += 1
                self._dispatch(arrivals[index])
                index += 1
                continue
            at, _, engine, version = heapq.heappop(self._events)
            if engine is None:
                self._now = at
                self._tick()
            elif engine.version == version:
                self._now = at
                self._engine_event(engine)
        return self._result()

    # --- requests -------------------------------------------------------------------------------

    def _dispatch(self, request: Request) -> None:
        engine = min(self._serving, key=_outstanding) if not self._held else None
        if engine is None or engine.outstanding >= self._bound:
            self._held.append(request)
            return
        engine.add(request, self._now)
        self._plan(engine)

    def _engine_event(self, engine: Engine) -> None:
        self._in_flight -= engine.run(self._now)
        self._plan(engine)
        if self._held:
            self._release_held()
        replica = self._by_engine[engine]
        if replica.terminating and not engine.outstanding:
            self._remove(replica)

    def _release_held(self) -> None:
        while self._held:
            engine = min(self._serving, key=_outstanding)
            if engine.outstanding >= self._bound:
                return
            engine.add(self._held.popleft(), self._now)
            self._plan(engine)

    def _plan(self, engine: Engine) -> None:
        engine.version += 1
        if engine.outstanding:
            self._push(engine.next_event(), engine, engine.version)

    def _push(self, at: float, engine: Engine | None, version: int) -> None:
        # The number keeps the order of equal times, and engines are never compared.
        self._pushed += 1
        heapq.heappush(self._events, (at, self._pushed, engine, version))

    # --- time -----------------------------------------------------------------------------------

    def _push_tick(self) -> None:
        """The next moment at which something other than a request happens."""
        starting = [r.ready_at for r in self._replicas if r.ready_at > self._now]
        deploy = self._scenario.deploy_at if self._generation == 0 else _NEVER
        self._push(min([self._next_scrape, self._next_decision, deploy, *starting]), None, 0)

    def _tick(self) -> None:
        if self._now >= self._scenario.deploy_at and self._generation == 0:
            self._generation = 1
        self._reconcile()
        if self._now >= self._next_scrape:
            self._next_scrape += self._scenario.scrape_seconds
            self._scrape()
        if self._now >= self._next_decision:
            self._next_decision += self._policy.interval
            self._decide()
        self._push_tick()

    def _scrape(self) -> None:
        begin, end = self._scenario.blackout
        if begin <= self._now < end:
            return
        for replica in self._replicas:
            engine = replica.engine
            if replica.ready_at <= self._now:
                engine.advance(self._now)
                replica.sample = Sample(engine.waiting, engine.running, engine.kv_usage)
                replica.sampled_at = self._now

    def _decide(self) -> None:
        self._timeline.append(Moment(self._now, self._target, self._in_flight))
        wanted = self._policy.decide(self._view())
        if wanted != self._target:
            self._changes += 1
            self._target = wanted
            self._reconcile()

    def _view(self) -> View:
        return View(
            self._now,
            self._target,
            tuple(self._pod(replica) for replica in self._replicas),
            held=len(self._held),
            in_flight=self._in_flight,
        )

    def _pod(self, replica: _Replica) -> PodView:
        loading = replica.started + (replica.ready_at - replica.started) * _PENDING_SHARE
        stale = self._now - replica.sampled_at > _STALE_SCRAPES * self._scenario.scrape_seconds
        return PodView(
            replica.engine.name,
            ready=replica.ready_at <= self._now,
            pending=self._now < loading,
            terminating=replica.terminating,
            sample=None if stale else replica.sample,
        )

    # --- replicas -------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """What a Deployment with one surge pod and none unavailable would do."""
        live = [replica for replica in self._replicas if not replica.terminating]
        outdated = [replica for replica in live if replica.generation < self._generation]
        for _ in range(self._target + bool(outdated) - len(live)):
            self._start(ready=False)
        self._terminate(live, len(live) - self._target - bool(outdated))
        ready = [r for r in live if not r.terminating and r.ready_at <= self._now]
        outdated = [replica for replica in outdated if not replica.terminating]
        self._terminate(outdated, min(len(outdated), len(ready) - self._target))
        self._serve()

    def _terminate(self, candidates: list[_Replica], count: int) -> None:
        """The first to go do not serve yet, then are outdated, then young."""
        order = sorted(
            candidates,
            key=lambda r: (r.ready_at <= self._now, r.generation >= self._generation, -r.started),
        )
        for replica in order[: max(0, count)]:
            replica.terminating = True
            if not replica.engine.outstanding:
                self._remove(replica)

    def _start(self, *, ready: bool) -> None:
        scenario = self._scenario
        slowness = scenario.slow_replica if self._created == 0 else 1.0
        engine = Engine(f"pod-{self._created}", scenario.engine, slowness)
        self._created += 1
        ready_at = self._now + (0.0 if ready else scenario.engine.cold_start_seconds)
        replica = _Replica(engine, self._generation, self._now, ready_at)
        self._replicas.append(replica)
        self._by_engine[engine] = replica

    def _remove(self, replica: _Replica) -> None:
        self._gpu_seconds += self._now - replica.started
        self._replicas.remove(replica)
        del self._by_engine[replica.engine]

    def _serve(self) -> None:
        self._serving = [
            r.engine for r in self._replicas if r.ready_at <= self._now and not r.terminating
        ]
        if self._held:
            self._release_held()

    def _result(self) -> Result:
        for replica in list(self._replicas):
            self._remove(replica)
        ttfts = sorted(request.ttft for request in self._requests)
        misses = sum(ttft > self._scenario.slo_seconds for ttft in ttfts)
        return Result(
            self._gpu_seconds / _SECONDS_PER_HOUR,
            misses / len(ttfts),
            self._changes,
            ttfts[min(len(ttfts) - 1, int(0.95 * len(ttfts)))],
            tuple(self._timeline),
        )


def _outstanding(engine: Engine) -> int:
    return engine.outstanding
