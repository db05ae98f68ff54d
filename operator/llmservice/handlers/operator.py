"""The operator's life: who starts when, what runs together, and how it ends.

::

    connect -> health server -> wait for the lease -> wait for the CRD
      -> reflectors, workers, resync, kopf -> ready
      -> SIGTERM, a lost lease or a task that ended
      -> not ready, no new keys, finish writes (10 s), release the lease, stop kopf, close

A second instance waits at the lease, warm. An instance that lost the lease ends, and its kubelet
starts it anew: caches and queues of a former leader are not worth reasoning about.
"""

import asyncio
import gc
import logging
import random
import signal
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from llmservice.adapters.api_registration import read_metrics_api
from llmservice.adapters.events import EventRecorder
from llmservice.adapters.kube import Connection
from llmservice.adapters.object_questions import read_route, read_scaled_object
from llmservice.adapters.pod_questions import PodQuestions
from llmservice.adapters.ports import ClusterError, NotFound
from llmservice.adapters.reflector import Reflector
from llmservice.adapters.resources import CHILDREN, LLM_SERVICE, POD
from llmservice.adapters.rest import RestCluster
from llmservice.adapters.store import Change, Store, Touched
from llmservice.adapters.telemetry import HealthServer, Telemetry
from llmservice.adapters.webhooks import Webhooks
from llmservice.api import names
from llmservice.core.autoscaling.scaling import misses_metrics
from llmservice.core.decision import Decision, MetricsRequest
from llmservice.core.observed import Observed, ServiceKey
from llmservice.core.questions import CallGate, Question, ReadRoute, ReadScaledObject
from llmservice.core.reconcile import reconcile
from llmservice.core.situation import ClusterFacts
from llmservice.handlers.asking import Asking, Content
from llmservice.handlers.config import OperatorConfig
from llmservice.handlers.fence import FencedCluster
from llmservice.handlers.lease import LeaseElector, LeaseLost, LeaseSettings
from llmservice.handlers.logs import configure_logging
from llmservice.handlers.queue import Lane, WorkQueue
from llmservice.handlers.reconcile import GATHER_SECONDS, Reconciler
from llmservice.handlers.shell import Shell

_log = logging.getLogger(__name__)

_OURS = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
_URGENT_WORKERS = 2
_CRD_PAUSE_SECONDS = 2.0
_TOLERANCES_SINCE = (1, 35)
"""Kubernetes whose HPAs have tolerances by default; one with the feature switched off drops them,
and leaves them in our entry of managedFields, so that they are not written again and again."""
_METRICS_API_SECONDS = 60.0
"""As often as the metrics server looks whether the API has become free."""
_GC_THRESHOLD = (10_000, 20, 20)


def main(config: OperatorConfig) -> int:
    """Run the operator until SIGTERM; returns the exit code."""
    configure_logging()
    # What was imported stays; looking through it for garbage again and again costs a tenth of the
    # CPU and holds up the event loop.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)
    return asyncio.run(run(config))


async def run(config: OperatorConfig) -> int:
    """Run the operator until SIGTERM or SIGINT.

    Returns:
        0 after a signal, 1 when the lease was lost or something broke.
    """
    connection = await Connection.open(config.credentials)
    operator = Operator(config, connection)
    operator.handle_signals()
    return await operator.run()


class Operator:
    """One instance; make it within a running event loop, run it once.

    Args:
        config: its settings.
        connection: the API server.
    """

    def __init__(self, config: OperatorConfig, connection: Connection) -> None:
        self.store = Store(config.core.budgets)
        self.queue = WorkQueue()
        self.telemetry = Telemetry()
        self.synced = asyncio.Event()
        """Set once all caches are filled and the workers work."""
        self._config = config
        self._facts = ClusterFacts()
        self._without_metrics: set[ServiceKey] = set()
        self._metrics_missed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._cluster = RestCluster(connection)
        self._elector = LeaseElector(
            self._cluster, LeaseSettings(config.lease_namespace, config.lease_name, config.identity)
        )
        self._shell = Shell(connection, config.namespaces, self._on_service)
        self._reflectors = [
            self._reflector(resource, namespace)
            for resource in (*CHILDREN.values(), POD)
            for namespace in self._scopes()
        ]
        fenced = FencedCluster(
            self._cluster, self._elector.seconds_left, self.telemetry.count_write
        )
        self._pods, self._gates = PodQuestions(), Webhooks()
        self._asking = Asking(self._answer, self.store, self.queue, lambda: self._elector.leading)
        self._reconciler = Reconciler(
            cluster=fenced,
            store=self.store,
            queue=self.queue,
            events=EventRecorder(fenced, config.identity),
            telemetry=self.telemetry,
            decide=self._decide,
            ask_pods=self._asking.ask,
        )
        self.health = HealthServer(self.telemetry, self._ready)
        self._publish_gauges()

    def handle_signals(self) -> None:
        """Stop on SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)

    def stop(self) -> None:
        """Have :meth:`run` end in good order."""
        self._stopping.set()

    async def run(self) -> int:
        """Stand by, lead, shut down; returns the exit code."""
        stopped = self._start("stop", self._stopping.wait())
        await self.health.start(self._config.metrics_port)
        try:
            if await self._before_stop(self._prepare(), stopped):
                await self._lead(stopped)
        finally:
            asked = stopped.done()
            self._stopping.set()
            await self._shut_down()
        return 0 if asked else 1

    async def _prepare(self) -> None:
        await self._elector.acquire()
        self._start("lease", self._elector.hold())
        await self._wait_for_crd()
        try:
            tolerances = await self._cluster.server_version() >= _TOLERANCES_SINCE
        except ClusterError as error:
            _log.warning("the version of Kubernetes is not known: %s", error)
        else:
            self._facts = replace(self._facts, hpa_tolerances=tolerances)

    async def _lead(self, stopped: asyncio.Task[Any]) -> None:
        """Until we are stopped, or a task ends, which none does while all is well."""
        for reflector in self._reflectors:
            self._start(f"reflector of {reflector.resource.plural}", reflector.run())
        for lane in [Lane.Background] * self._config.workers + [Lane.Urgent] * _URGENT_WORKERS:
            self._start("worker", self._work(lane))
        self._start("resync", self._resync())
        self._start("metrics API", self._look_at_metrics_api())
        self._start("readiness", self._become_ready())
        self._start("kopf", self._shell.run(self.handle_signals))
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            self._report_end()

    def _start(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.append(task)
        return task

    async def _before_stop(
        self, work: Coroutine[Any, Any, None], stopped: asyncio.Task[Any]
    ) -> bool:
        """Do ``work``; True when it was done before we were told to stop."""
        task = asyncio.create_task(work)
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return True
        await _cancel(task)
        return False

    async def _wait_for_crd(self) -> None:
        """Wait until the resource exists; kopf looks for it once, at its start."""
        namespace = self._scopes()[0]
        while True:
            try:
                await self._cluster.list_page(LLM_SERVICE, namespace, limit=1)
            except NotFound:
                _log.warning("the CRD %s.%s is not installed; waiting", names.PLURAL, names.GROUP)
            except ClusterError as error:
                _log.warning("cannot list %s: %s", names.PLURAL, error)
            else:
                return
            await asyncio.sleep(_CRD_PAUSE_SECONDS)

    async def _become_ready(self) -> None:
        for reflector in self._reflectors:
            await reflector.synced.wait()
        await self._shell.ready.wait()
        self.synced.set()
        _log.info("leading, all caches filled")
        await asyncio.Event().wait()

    async def _work(self, worst: Lane) -> None:
        await self.synced.wait()
        await self._reconciler.work(worst)

    async def _resync(self) -> None:
        """Now and then, list the services anew and look at all of them.

        kopf does not notice a deletion while its watch was broken; this does, and it heals
        whatever else a lost event may leave behind.
        """
        lists = [self._reflector(LLM_SERVICE, namespace) for namespace in self._scopes()]
        while True:
            period = self._config.resync_seconds * random.uniform(0.8, 1.2)  # noqa: S311
            await asyncio.sleep(period)
            try:
                for each in lists:
                    await each.relist()
            except ClusterError as error:
                _log.warning("cannot list %s: %s", names.PLURAL, error)
            for key in self.store.services():
                self.queue.add(key, Lane.Background)

    def _decide(self, observed: Observed) -> Decision:
        if misses_metrics(observed):
            self._without_metrics.add(observed.service.key)
            self._metrics_missed.set()
        else:
            self._without_metrics.discard(observed.service.key)
        return reconcile(observed, self._config.core, self._facts)

    async def _look_at_metrics_api(self) -> None:
        """While services miss metrics, see who serves them; once for all, and not all the time."""
        while True:
            self._without_metrics.intersection_update(self.store.services())
            if not self._without_metrics:
                self._metrics_missed.clear()
                await self._metrics_missed.wait()
            found = await read_metrics_api(self._cluster)
            if found is not None and found != self._facts.metrics_api:
                self._facts = replace(self._facts, metrics_api=found)
                for key in self._without_metrics:
                    self.queue.add(key, Lane.Normal)
            await asyncio.sleep(_METRICS_API_SECONDS)

    async def _answer(self, question: Question | MetricsRequest) -> Content:
        if isinstance(question, ReadRoute):
            return await read_route(self._cluster, question)
        if isinstance(question, ReadScaledObject):
            return await read_scaled_object(self._cluster, question)
        if isinstance(question, CallGate):
            return await self._gates.call(question)
        return await self._pods.answer(question)

    # --- events -------------------------------------------------------------------------------

    def _on_service(self, kind: str | None, live: Mapping[str, Any]) -> None:
        if kind == "DELETED":
            touched = self.store.remove(LLM_SERVICE.kind, live)
        else:
            touched = self.store.put(LLM_SERVICE.kind, live)
        for each in touched:
            urgent = each.change is Change.Shape
            self.queue.add(each.key, Lane.Urgent if urgent else Lane.Normal)

    def _on_owned(self, touched: Touched) -> None:
        if touched.change is Change.Shape:
            self.queue.add(touched.key, Lane.Urgent)
        else:
            self.queue.add_after(touched.key, GATHER_SECONDS)

    def _reflector(self, resource: Any, namespace: str | None) -> Reflector:
        ours = "" if resource is LLM_SERVICE else _OURS
        return Reflector(
            self._cluster,
            resource,
            namespace,
            sink=self.store,
            touched=self._on_owned,
            label_selector=ours,
        )

    def _scopes(self) -> tuple[str | None, ...]:
        return self._config.namespaces or (None,)

    # --- the end ------------------------------------------------------------------------------

    async def _shut_down(self) -> None:
        """Let writes finish, then give the lease back, then stop the rest."""
        self.queue.close()
        workers = [task for task in self._tasks if task.get_name() == "worker"]
        if self.synced.is_set() and workers:
            await asyncio.wait(workers, timeout=self._config.shutdown_seconds)
        # The lease last, and given back only when nothing can write any more.
        await _cancel(*reversed(self._tasks))
        await self._asking.close()
        await self._pods.close()
        await self._gates.close()
        await self._elector.release()
        await self.health.close()
        await self._cluster.close()

    def _report_end(self) -> None:
        for task in self._tasks:
            if not task.done() or task.cancelled():
                continue
            error = task.exception()
            if isinstance(error, LeaseLost):
                _log.warning("the lease is lost: %s", error)
            else:
                _log.error("%s ended: %r", task.get_name(), error, exc_info=error)

    # --- telling others -----------------------------------------------------------------------

    def _ready(self) -> tuple[bool, str]:
        if self._stopping.is_set():
            return False, "shutting down"
        if self.synced.is_set():
            return True, "leading" if self._elector.leading else "leading, API server out of reach"
        if self._elector.leading:
            return False, "leading, caches not filled yet"
        if self._elector.reachable:
            return True, "standing by"
        return False, "API server out of reach"

    def _publish_gauges(self) -> None:
        self.telemetry.leader.set_function(lambda: float(self._elector.leading))
        self.telemetry.queue_depth.set_function(lambda: float(len(self.queue)))
        self.telemetry.queue_oldest_seconds.set_function(self.queue.oldest_age_seconds)
        self.telemetry.watch_ages(self._watch_ages)

    def _watch_ages(self) -> dict[tuple[str, str], float]:
        now = asyncio.get_running_loop().time()
        return {
            (each.resource.kind, each.namespace or ""): now - each.last_event
            for each in self._reflectors
            if each.last_event is not None
        }


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task
