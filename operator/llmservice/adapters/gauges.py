"""The gauges of all engines, and the queues of all routers, never older than they may be.

Sink of a reflector over pods. Every pod that runs is asked over HTTP once per interval, at a moment
of its own, so that a thousand of them are no burst. What a pod says may be anything: it is bounded
in time and size, and what makes no sense counts as no answer. Pods that did not answer wait for
each other only: however many hang, the others are asked in time.
"""

import asyncio
import logging
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily

from llmservice.adapters import projection
from llmservice.adapters.engine_counts import parse_gauges
from llmservice.adapters.projection import Identity
from llmservice.adapters.store import Touched
from llmservice.adapters.strangers import fetch_metrics, fetch_report, open_session, why_silent
from llmservice.api import names
from llmservice.core.metrics_api import Engine, Router, View

_log = logging.getLogger(__name__)

POD_SELECTOR = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
"""Which pods the reflector has to bring."""

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


@dataclass(frozen=True, slots=True)
class Limits:
    """How often pods are asked, and how long an answer may take and is worth something."""

    interval: float = 5.0
    """Seconds between two questions to a pod."""
    max_age: float = 30.0
    """Seconds after which an answer tells nothing any more."""
    read: float = 2.0
    """Seconds that an answer may take."""
    at_once: int = 48
    """Pods that are asked at a time, of those that answered last time."""
    silent_at_once: int = 16
    """The same of those that did not."""


@dataclass(slots=True)
class _Target:
    """A pod that runs."""

    who: Identity
    address: str
    pod: Engine | Router
    asking: bool = False
    silent: bool = False
    """It did not answer last time."""

    def is_same(self, other: "_Target") -> bool:
        """Whether what it told is still true of the other."""
        return (self.who.uid, self.address, self.component) == (
            other.who.uid,
            other.address,
            other.component,
        )

    @property
    def component(self) -> str:
        engine = isinstance(self.pod, Engine)
        return names.ENGINE_COMPONENT if engine else names.ROUTER_COMPONENT

    @property
    def told(self) -> bool:
        """Whether it ever answered."""
        if isinstance(self.pod, Engine):
            return self.pod.sample is not None
        return self.pod.waiting is not None


class Gauges:
    """Asks pods; make it within a running event loop.

    Args:
        registry: where its own metrics go.
        clock: seconds that never go back; ages are measured with it.
        limits: how often, how long, how many at once.
        engine_port: where engines listen.
        agent_port: where the agents of routers listen.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
        engine_port: int = names.ENGINE_PORT,
        agent_port: int = names.ROUTER_AGENT_PORT,
    ) -> None:
        self._clock = clock
        self._limits = limits or Limits()
        self._engine_port = engine_port
        self._agent_port = agent_port
        self._targets: defaultdict[str, dict[str, _Target]] = defaultdict(dict)
        """By namespace and name."""
        self._listed: set[str | None] = set()
        """Namespaces; None is all of them."""
        self._asked: set[str | None] = set()
        """Those whose pods of the first list have been asked."""
        self._any_listed = asyncio.Event()
        self._answering = asyncio.Semaphore(self._limits.at_once)
        self._silent = asyncio.Semaphore(self._limits.silent_at_once)
        self._session = open_session()
        self._seconds = Histogram(
            "llmservice_metrics_scrape_seconds",
            "Time to read the gauges of an engine or the report of a router",
            ["component", "result"],
            buckets=_BUCKETS,
            registry=registry,
        )
        registry.register(_Counts(self))

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    # --- reading ------------------------------------------------------------------------------

    def problems(self) -> tuple[str, ...]:
        """Why answers would be worse than another replica's; empty when they are as good."""
        if not self._listed:
            return ("the pods are not known yet",)
        return () if self._listed <= self._asked else ("not all pods have been asked yet",)

    def view(self, namespace: str) -> View:
        """All that is known of a namespace."""
        targets = self._targets.get(namespace, {})
        engines = {n: t.pod for n, t in targets.items() if isinstance(t.pod, Engine)}
        routers = [t.pod for t in targets.values() if isinstance(t.pod, Router)]
        return View(engines, routers, self._clock(), self._limits.max_age)

    def counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """By component: the pods that are asked, and those without a fresh answer."""
        now, asked, unknown = self._clock(), Counter[str](), Counter[str]()
        for target in self._all():
            asked[target.component] += 1
            fresh = target.told and now - target.pod.taken <= self._limits.max_age
            unknown[target.component] += not fresh
        return asked, unknown

    def _all(self) -> Iterator[_Target]:
        return (target for targets in self._targets.values() for target in targets.values())

    # --- pods ---------------------------------------------------------------------------------

    def put(self, kind: str, live: Mapping[str, Any]) -> Iterable[Touched]:
        """Take in a live pod."""
        new = _target(live)
        if new is None:  # it ended, or is none of ours
            return self.remove(kind, live)
        targets = self._targets[new.who.namespace]
        old = targets.get(new.who.name)
        if old is None or not old.is_same(new):
            targets[new.who.name] = new
        else:
            old.pod = _renewed(old.pod, new.pod)
        return ()

    def remove(self, kind: str, live: Mapping[str, Any]) -> Iterable[Touched]:  # noqa: ARG002
        """Take in that a pod is gone."""
        who = projection.identity(live)
        self._forget(who.namespace, who.name)
        return ()

    def retain(
        self,
        kind: str,  # noqa: ARG002 - there is one only
        namespace: str | None,
        seen: Iterable[Identity],
        resource_version: str,  # noqa: ARG002 - a list is as new as what came before it
    ) -> Iterable[Touched]:
        """Take in that a list held only ``seen``."""
        kept = {(each.namespace, each.name) for each in seen}
        for target in [*self._all()]:
            who = target.who
            if namespace in (None, who.namespace) and (who.namespace, who.name) not in kept:
                self._forget(who.namespace, who.name)
        self._listed.add(namespace)
        self._any_listed.set()
        return ()

    def _forget(self, namespace: str, name: str) -> None:
        targets = self._targets.get(namespace, {})
        targets.pop(name, None)
        if not targets:
            self._targets.pop(namespace, None)

    # --- scraping -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask all pods, again and again, until cancelled."""
        await self._any_listed.wait()
        async with asyncio.TaskGroup() as questions:
            while True:
                await self._ask_all(questions)

    async def _ask_all(self, questions: asyncio.TaskGroup) -> None:
        """One interval: each pod has a slot of it, and is asked at some moment of the slot."""
        loop, interval = asyncio.get_running_loop(), self._limits.interval
        started, listed, targets = loop.time(), {*self._listed}, [*self._all()]
        for number, target in enumerate(targets):
            slot = (number + random.random()) / len(targets)  # noqa: S311 - spreads load
            await asyncio.sleep(started + slot * interval - loop.time())
            if not target.asking:  # else it waits for others that are silent
                target.asking = True
                questions.create_task(self._ask(target))
        await asyncio.sleep(started + interval - loop.time())
        self._asked |= listed

    async def _ask(self, target: _Target) -> None:
        async with self._silent if target.silent else self._answering:
            started, why = self._clock(), ""
            try:
                async with asyncio.timeout(self._limits.read):
                    told = await self._read(target, started)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                told, why = False, why_silent(error)
            seconds = self._clock() - started
        result = "ok" if told else "failed"
        self._seconds.labels(target.component, result).observe(seconds)
        if told == target.silent:
            who = target.who
            words = "tells" if told else f"does not tell: {why or 'no numbers that can be'}"
            _log.info("%s %s/%s %s", target.component, who.namespace, who.name, words)
        target.silent, target.asking = not told, False

    async def _read(self, target: _Target, taken: float) -> bool:
        """Ask a pod and keep what it tells; False when that makes no sense."""
        if isinstance(target.pod, Engine):
            told = await fetch_metrics(self._session, target.address, self._engine_port)
            sample = parse_gauges(told)
            if sample is None:
                return False
            target.pod = replace(target.pod, sample=sample, taken=taken)
            return True
        report = await fetch_report(self._session, target.address, self._agent_port)
        if report is None:
            return False
        target.pod = replace(target.pod, waiting=report.waiting, taken=taken)
        return True


def _target(live: Mapping[str, Any]) -> _Target | None:
    """What there is to ask; None for a pod that does not run, and for one of another kind."""
    metadata = projection.mapping(live.get("metadata"))
    labels = {
        k: v for k, v in projection.mapping(metadata.get("labels")).items() if isinstance(v, str)
    }
    service, facts = labels.get(names.SERVICE_LABEL, ""), projection.pod(live)
    running = projection.mapping(live.get("status")).get("phase") == "Running"
    if not (service and running and facts.address):
        return None
    pod: Engine | Router
    match labels.get(names.COMPONENT_LABEL):
        case names.ENGINE_COMPONENT:
            pod = Engine(service, facts.revision, labels, facts.ready, facts.deleting)
        case names.ROUTER_COMPONENT:
            pod = Router(service)
        case _:
            return None
    return _Target(projection.identity(live), facts.address, pod)


def _renewed(old: Engine | Router, new: Engine | Router) -> Engine | Router:
    """What is new of a pod, with what it told before."""
    if isinstance(old, Engine) and isinstance(new, Engine):
        return replace(new, sample=old.sample, taken=old.taken)
    if isinstance(old, Router) and isinstance(new, Router):
        return replace(new, waiting=old.waiting, taken=old.taken)
    return new


class _Counts:
    """Read when scraped, so that answers age without anybody's help."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[GaugeMetricFamily]:
        asked, unknown = self._gauges.counts()
        for name, what, numbers in (
            ("pods", "Pods whose gauges or reports are read", asked),
            ("pods_without_sample", "Of those, the ones that lately told nothing", unknown),
        ):
            family = GaugeMetricFamily(f"llmservice_metrics_{name}", what, labels=["component"])
            for component in (names.ENGINE_COMPONENT, names.ROUTER_COMPONENT):
                family.add_metric([component], numbers.get(component, 0))
            yield family
