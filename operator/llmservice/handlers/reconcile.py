"""Key in, cluster brought up to date: what surrounds ``core.reconcile``.

::

    snapshot -> decide -> apply, delete, read logs -> snapshot -> decide -> ... -> status -> events

The deciding is repeated until it asks for nothing new, so the status that is written is that of
the cluster after our writes, and is written once. The queue is told how it went; it alone decides
when to come back. A fault in deciding (a bug) hits one service and is slowed down, never the
process.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from llmservice.adapters.clock import utc_now
from llmservice.adapters.events import EventRecorder
from llmservice.adapters.ports import Cluster, ClusterError, NotFound, TooManyRequests
from llmservice.adapters.resources import LLM_SERVICE
from llmservice.adapters.store import Change, Store
from llmservice.adapters.telemetry import Telemetry
from llmservice.api import names
from llmservice.core.decision import Apply, Decision
from llmservice.core.observed import ApplyError, ChildRef, Observed, ServiceKey
from llmservice.handlers.budget import WriteBudget
from llmservice.handlers.carry_out import CarryOut
from llmservice.handlers.queue import Lane, WorkQueue

_log = logging.getLogger(__name__)

_SOONEST_SECONDS = 0.5
_ROUNDS = 6
"""More than any healthy decision needs; the rest is left for the next time."""


@dataclass(slots=True)
class _Progress:
    """What one pass already tried, so that no request is repeated within it."""

    sent: set[tuple[ChildRef, str]] = field(default_factory=set)
    errors: dict[ChildRef, ApplyError] = field(default_factory=dict)
    settled: bool = True

    def fresh(self, decision: Decision) -> tuple[Apply, ...]:
        return tuple(a for a in decision.apply if (a.ref, _digest(a)) not in self.sent)


class Reconciler:
    """Brings one service after another up to date; any number of workers share it.

    Args:
        cluster: fenced.
        store: what is known; filled by the watches, and here by the answers to writes.
        queue: which service is next.
        events: where changes are told.
        telemetry: what is counted.
        decide: ``core.reconcile.reconcile`` with its settings.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        store: Store,
        queue: WorkQueue,
        events: EventRecorder,
        telemetry: Telemetry,
        decide: Callable[[Observed], Decision],
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._queue = queue
        self._events = events
        self._telemetry = telemetry
        self._decide = decide
        self._carry_out = CarryOut(cluster, store)
        self._budget = WriteBudget(_local_time)
        self._bugs: dict[ServiceKey, str] = {}

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
        if (wait := self._budget.seconds_to_wait(key)) > 0:
            _log.warning("%s: too many writes, something undoes them; again in %.0f s", key, wait)
            self._queue.add_after(key, wait)
            return
        outcome = await self._converge(key)
        if outcome is None:
            self._queue.forget(key)
            return
        observed, decision, settled = outcome
        if decision.status is not None and not await self._write_status(observed, decision):
            return
        if settled:
            self._queue.succeed(key)
        else:
            self._queue.retry(key)
        if decision.requeue_after_seconds is not None:
            self._queue.add_after(key, max(_SOONEST_SECONDS, decision.requeue_after_seconds))

    async def _converge(self, key: ServiceKey) -> tuple[Observed, Decision, bool] | None:
        """Decide and carry out until nothing new is asked for.

        Returns:
            The last snapshot, what was decided on it, and whether all of it is done; None when
            there is no such service (any more).
        """
        progress = _Progress()
        rounds_left = _ROUNDS
        while (observed := self._store.snapshot(key, utc_now())) is not None:
            decision = self._decide(observed)
            worked = await self._round(observed, decision, progress)
            news = self._store.set_apply_errors(key, tuple(progress.errors.values()))
            rounds_left -= 1
            if not (worked or news) or not rounds_left:
                return observed, decision, not (worked or decision.apply)
        return None

    async def _round(self, observed: Observed, decision: Decision, progress: _Progress) -> bool:
        """Carry out what was not tried yet; True when there was any."""
        key = observed.service.key
        fresh = progress.fresh(decision)
        deletes = [d for d in decision.delete if (d.ref, d.uid) not in progress.sent]
        self._budget.spend(key, len(fresh) + len(deletes))
        for apply in fresh:
            progress.sent.add((apply.ref, _digest(apply)))
            error = await self._carry_out.apply(observed.service, apply)
            if error is None:
                progress.errors.pop(apply.ref, None)
            else:
                progress.errors[apply.ref] = error
        for delete in deletes:
            progress.sent.add((delete.ref, delete.uid))
            await self._carry_out.delete(key, delete)
        await self._carry_out.read_logs(key, decision.read_logs)
        return bool(fresh or deletes or decision.read_logs)

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
            self._store.forget(key)
            self._queue.forget(key)
            return False
        for touched in self._store.put(LLM_SERVICE.kind, live):
            if touched.change is Change.Shape:  # the answer brought an edit that no event told yet
                self._queue.add(touched.key, Lane.Urgent)
        for event in decision.events:
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
