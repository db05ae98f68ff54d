"""What the operator says about itself: Prometheus metrics, and whether it is alive and ready.

One HTTP port serves ``/metrics``, ``/healthz`` (the event loop turns) and ``/readyz`` (this
instance does its part: it leads with full caches, or stands by with the API server in reach).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import (
    GC_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from llmservice.adapters.http_server import HttpServer
from llmservice.core.observed import ServiceKey

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Telemetry:
    """The metrics of one operator; each has its own registry, so two can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(GC_COLLECTOR)
        self.reconcile_seconds = Histogram(
            "llmservice_reconcile_seconds",
            "Time to bring one service up to date, writes included",
            ["result"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.writes = Counter(
            "llmservice_writes",
            "Requests sent that change something",
            ["verb", "kind"],
            registry=self.registry,
        )
        self.errors = Counter(
            "llmservice_errors",
            "Reconciles that failed, by kind of error; Bug is a fault of the operator itself",
            ["error"],
            registry=self.registry,
        )
        self.rollout_transitions = Counter(
            "llmservice_rollout_transitions",
            "Transitions of canary rollouts, and waits that began, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.leader = Gauge(
            "llmservice_leader", "1 while this instance may write", registry=self.registry
        )
        self.queue_depth = Gauge(
            "llmservice_queue_depth", "Services waiting for a worker", registry=self.registry
        )
        self.queue_oldest_seconds = Gauge(
            "llmservice_queue_oldest_seconds",
            "How long the longest waiting service has waited",
            registry=self.registry,
        )
        self._plan_ratio = _ServiceGauge(
            "llmservice_plan_kv_cache_tokens_ratio",
            "Tokens that the engine's KV cache holds for each that was planned",
            self.registry,
        )
        self._cold_start = _ServiceGauge(
            "llmservice_cold_start_seconds",
            "How long a new engine pod takes until it serves, by stage: schedule, pull, load",
            self.registry,
            "stage",
        )

    def count_write(self, verb: str, kind: str) -> None:
        """Count one request that changes something."""
        self.writes.labels(verb, kind).inc()

    def set_plan_ratio(self, key: ServiceKey, ratio: float | None) -> None:
        """Publish how a service's engine compares with its plan; None publishes nothing."""
        self._plan_ratio.set(ratio, key)

    def set_cold_start(self, key: ServiceKey, measured: Mapping[str, Any]) -> None:
        """Publish ``status.coldStart``; an empty one publishes nothing."""
        for stage in ("schedule", "pull", "load"):
            self._cold_start.set(measured.get(f"{stage}Seconds"), key, stage)

    def watch_ages(self, ages: Callable[[], Mapping[tuple[str, str], float]]) -> None:
        """Publish the seconds since each watch said anything, by kind and namespace."""
        self.registry.register(_WatchAges(ages))


class _ServiceGauge:
    """A number of each service; written only when it changes, and gone with its service."""

    def __init__(self, name: str, help_: str, registry: CollectorRegistry, *labels: str) -> None:
        self._gauge = Gauge(name, help_, ["namespace", "name", *labels], registry=registry)
        self._values: dict[tuple[str, ...], float] = {}

    def set(self, value: float | None, key: ServiceKey, *labels: str) -> None:
        """Publish a value; None takes back what was published."""
        full = (key.namespace, key.name, *labels)
        if self._values.get(full) == value:
            return
        if value is None:
            del self._values[full]
            self._gauge.remove(*full)
        else:
            self._values[full] = value
            self._gauge.labels(*full).set(value)


class _WatchAges:
    """Read when scraped, so that a silent watch ages without anybody's help."""

    def __init__(self, ages: Callable[[], Mapping[tuple[str, str], float]]) -> None:
        self._ages = ages

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "llmservice_watch_last_event_seconds",
            "Seconds since the API server last said anything on a watch, bookmarks included",
            labels=["kind", "namespace"],
        )
        for labels, seconds in self._ages().items():
            family.add_metric(labels, seconds)
        yield family


class HealthServer(HttpServer):
    """Serves a :class:`Telemetry` and two questions.

    Args:
        telemetry: what to serve under ``/metrics``.
        ready: whether this instance does its part, and in words why not.
    """

    def __init__(self, telemetry: Telemetry, ready: Callable[[], tuple[bool, str]]) -> None:
        self._telemetry = telemetry
        self._ready = ready
        super().__init__(
            {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        )

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        ready, why = self._ready()
        return web.Response(status=200 if ready else 503, text=f"{why}\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return exposition(self._telemetry.registry)


def exposition(registry: CollectorRegistry) -> web.Response:
    """The answer of ``/metrics``."""
    return web.Response(
        body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )
