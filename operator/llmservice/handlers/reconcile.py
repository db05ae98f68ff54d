"""Key in, cluster brought up to date: what surrounds ``core.reconcile``.

::

    snapshot -> decide -> is there anything to do that was not just tried?
                            yes: apply, patch, delete, read logs; look again in a moment
                            no:  status (once, if it changed), events

So a status tells of the cluster after our writes and after what they set off at once, and a new
service costs its children and one status. The queue is told how it went; it alone decides when to
come back. A fault in deciding (a bug) hits one service and is slowed down, never the process.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from llmservice.adapters.clock import utc_now
from llmservice.adapters.events import EventRecorder
from llmservice.adapters.ports import Cluster, ClusterError, NotFound, TooManyRequests
from llmservice.adapters.resources import LLM_SERVICE
from llmservice.adapters.store import Change, Store
from llmservice.adapters.telemetry import Telemetry
from llmservice.api import names
from llmservice.core.capacity import planned_ratio
from llmservice.core.decision import Apply, Decision, MetricsRequest
from llmservice.core.observed import ApplyError, ChildRef, Observed, ServiceKey
from llmservice.core.questions import Question
from llmservice.core.status import CANARY_ACTION
from llmservice.handlers.budget import WriteBudget
from llmservice.handlers.carry_out import CarryOut
from llmservice.handlers.queue import Lane, WorkQueue

_log = logging.getLogger(__name__)

GATHER_SECONDS = 0.2
"""Progress comes in bursts (a scale-up, a pod's phases): one look and one status write do."""
_SOONEST_SECONDS = 0.5
_UNREPORTED_PASSES = 3
"""A service that always has something to do gets a status, and a pause, in between."""

_Attempt = tuple[ChildRef, str, str | None]
"""A child, what was wanted of it, and the version it had after we tried."""


@dataclass(slots=True)
class _Tried:
    """What was attempted since the last report; trying it again at once cannot help."""

    attempts: set[_Attempt] = field(default_factory=set)
    errors: dict[ChildRef, ApplyError] = field(default_factory=dict)
    passes: int = 0


class Reconciler:
    """Brings one service after another up to date; any number of workers share it.

    Args:
        cluster: fenced.
        store: what is known; filled by the watches, and here by the answers to writes.
        queue: which service is next.
        events: where changes are told.
        telemetry: what is counted.
        decide: ``core.reconcile.reconcile`` with its settings.
        ask_pods: puts questions to pods, and waits for nothing.
    """

    def __init__(  # noqa: PLR0913 - the seams to all that surrounds it
        self,
        *,
        cluster: Cluster,
        store: Store,
        queue: WorkQueue,
        events: EventRecorder,
        telemetry: Telemetry,
        decide: Callable[[Observed], Decision],
        ask_pods: Callable[[ServiceKey, Iterable[Question | MetricsRequest]], None],
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._queue = queue
        self._events = events
        self._telemetry = telemetry
        self._decide = decide
        self._ask_pods = ask_pods
        self._carry_out = CarryOut(cluster, store)
        self._budget = WriteBudget(_local_time)
        self._bugs: dict[ServiceKey, str] = {}
        self._tried: dict[ServiceKey, _Tried] = {}

    async def work(self, worst: Lane = Lane.Background) -> None:
        """A worker: reconcile keys of lane ``worst`` or better until the queue is closed."""
        while (key := await self._queue.get(worst)) is not None:
            try:
                await self.process(key)
            finally:
                self._queue.done(key)

    async def process(self, key: ServiceKey) -> None:
        """One pass over one service; never raises an Exception."""
        started = _local_time()
        try:
            await self._pass(key)
        except ClusterError as error:
            result = type(error).__name__
            at_least = error.retry_after_seconds if isinstance(error, TooManyRequests) else 0.0
            pause = self._queue.retry(key, at_least)
            _log.info("%s: again in %.1f s: %s: %s", key, pause, result, error)
        except Exception as error:  # noqa: BLE001 - one service's fault must not stop the others
            result = "Bug"
            self._report_bug(key, error, self._queue.retry(key))
        else:
            result = "OK"
            self._bugs.pop(key, None)
        if result != "OK":
            self._telemetry.errors.labels(result).inc()
        self._telemetry.reconcile_seconds.labels(result).observe(_local_time() - started)

    async def _pass(self, key: ServiceKey) -> None:
        if self._store.is_bereft(key):
            await self._confirm(key)
        observed = self._store.snapshot(key, utc_now())
        if observed is None:
            self._forget(key)
            return
        decision = self._decide(observed)
        if decision.most_replicas is not None:
            self._store.claims.reserve(key, decision.most_replicas)
        capacity = () if decision.read_metrics is None else (decision.read_metrics,)
        self._ask_pods(key, (*decision.ask, *capacity))
        tried = self._tried.setdefault(key, _Tried())
        if self._may_write(key) and await self._work_on(observed, decision, tried):
            tried.passes += 1
            if tried.passes < _UNREPORTED_PASSES:
                self._queue.add_after(key, GATHER_SECONDS)
                return
        await self._report(observed, decision)

    async def _confirm(self, key: ServiceKey) -> None:
        """A child was deleted: see whether the service was, before making the child again.

        The garbage collector's deletions may be told before the service's own.
        """
        try:
            live = await self._cluster.get(LLM_SERVICE, key.namespace, key.name)
        except NotFound:
            self._forget(key)
        else:
            self._store.put(LLM_SERVICE.kind, live)
            self._store.confirm(key)

    async def _work_on(self, observed: Observed, decision: Decision, tried: _Tried) -> bool:
        """Carry out what was not just tried; True when there was any."""
        key = observed.service.key
        applies = [a for a in decision.apply if self._attempt(key, a) not in tried.attempts]
        deletes = [d for d in decision.delete if (d.ref, d.uid, None) not in tried.attempts]
        patch = decision.patch_route
        self._budget.spend(key, len(applies) + len(deletes) + (patch is not None))
        for apply in applies:
            error = await self._carry_out.apply(observed.service, apply)
            tried.attempts.add(self._attempt(key, apply))
            tried.errors.pop(apply.ref, None)
            if error is not None:
                tried.errors[apply.ref] = error
        if patch is not None:
            await self._carry_out.patch_route(key, patch)
        for delete in deletes:
            await self._carry_out.delete(key, delete)
            tried.attempts.add((delete.ref, delete.uid, None))
        await self._carry_out.read_logs(key, decision.read_logs)
        wanted = {apply.ref for apply in decision.apply}
        errors = tuple(error for ref, error in tried.errors.items() if ref in wanted)
        news = self._store.set_apply_errors(key, errors)
        return bool(applies or patch or deletes or decision.read_logs or news)

    async def _report(self, observed: Observed, decision: Decision) -> None:
        key = observed.service.key
        del self._tried[key]
        if decision.status is not None and decision.baselines is not None:
            # Should the answer to this write get lost, a window's evidence is lost with it:
            # counting it twice, in the status and from the old baselines again, would be worse.
            self._store.put_baselines(key, {})
        if decision.status is not None and not await self._write_status(observed, decision):
            self._forget(key)
            return
        self._store.claims.settle(key)
        if decision.baselines is not None:
            self._store.put_baselines(key, decision.baselines)
        status = observed.service.status if decision.status is None else decision.status
        self._telemetry.set_plan_ratio(key, planned_ratio(status))
        self._telemetry.set_cold_start(key, status.get("coldStart", {}))
        if decision.apply:  # refused, or undone as soon as it was written
            self._queue.retry(key)
        else:
            self._queue.succeed(key)
        if decision.requeue_after_seconds is not None:
            self._queue.add_after(key, max(_SOONEST_SECONDS, decision.requeue_after_seconds))

    def _attempt(self, key: ServiceKey, apply: Apply) -> _Attempt:
        child = self._store.child(key, apply.ref)
        return apply.ref, _digest(apply), None if child is None else child.resource_version

    def _may_write(self, key: ServiceKey) -> bool:
        wait = self._budget.seconds_to_wait(key)
        if wait > 0:
            _log.warning("%s: too many writes, something undoes them; again in %.0f s", key, wait)
            self._queue.add_after(key, wait)
        return wait <= 0

    def _forget(self, key: ServiceKey) -> None:
        for touched in self._store.forget(key):
            self._queue.add(touched.key, Lane.Normal)
        self._queue.forget(key)
        self._telemetry.set_plan_ratio(key, None)
        self._telemetry.set_cold_start(key, {})
        self._tried.pop(key, None)
        self._bugs.pop(key, None)

    async def _write_status(self, observed: Observed, decision: Decision) -> bool:
        """False when the service turned out to be gone."""
        key = observed.service.key
        self._budget.spend(key, 1)
        manifest = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            # The uid keeps the status of a deleted service off its namesake.
            "metadata": {"name": key.name, "uid": observed.service.uid},
            "status": decision.status,
        }
        try:
            live = await self._cluster.apply(
                LLM_SERVICE,
                key.namespace,
                manifest,
                field_manager=names.STATUS_MANAGER,
                force=True,
                subresource="status",
            )
        except NotFound:
            return False
        for touched in self._store.put(LLM_SERVICE.kind, live):
            if touched.change is Change.Shape:  # the answer brought an edit that no event told yet
                self._queue.add(touched.key, Lane.Urgent)
            elif touched.key != key:  # it shares a budget
                self._queue.add(touched.key, Lane.Normal)
        for event in decision.events:
            if event.action == CANARY_ACTION:
                self._telemetry.rollout_transitions.labels(event.reason).inc()
            await self._events.record(observed.service, event)
        return True

    def _report_bug(self, key: ServiceKey, error: Exception, pause: float) -> None:
        """The whole traceback once, then a line, until it changes or is gone."""
        trace = "".join(traceback.format_exception(error))
        if self._bugs.get(key) == trace:
            _log.error("%s: the same fault again, next try in %.0f s: %r", key, pause, error)
        else:
            self._bugs[key] = trace
            _log.error("%s: a fault of the operator, next try in %.0f s\n%s", key, pause, trace)


def _digest(apply: Apply) -> str:
    annotations = apply.manifest["metadata"].get("annotations", {})
    return str(annotations.get(names.APPLIED_HASH_ANNOTATION, ""))


def _local_time() -> float:
    return asyncio.get_running_loop().time()
