"""Puts the questions of decisions, beside the reconciles, which never wait for an answer.

Answers go to the store, and the service is looked at again. What to ask, whom, and how often, is
decided elsewhere.

Questions of one service that are open together make a round: the service is looked at when all of
them are answered, and no later than a moment after the first answer. What takes long has rounds,
and room, of its own, so that nothing waits for it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import assert_never

from llmservice.adapters.clock import utc_now
from llmservice.adapters.resources import HTTP_ROUTE, SCALED_OBJECT
from llmservice.adapters.store import Store
from llmservice.core.decision import MetricsRequest
from llmservice.core.observed import ChildRef, KVCacheSize, Manifest, ServiceKey
from llmservice.core.questions import (
    Answer,
    CallGate,
    Question,
    ReadEngine,
    ReadRoute,
    ReadRouter,
    ReadScaledObject,
    RouteReading,
    Said,
    ScaledObjectReading,
    Topic,
    WarmUp,
    topic_of,
)
from llmservice.handlers.queue import Lane, WorkQueue

_log = logging.getLogger(__name__)

_TOGETHER_SECONDS = 1.0
"""For how long an answer waits for others."""

Content = Said | KVCacheSize | None


class _Kind(Enum):
    """Questions that share rounds and room."""

    Reads = auto()
    WarmUps = auto()
    Gates = auto()
    Capacity = auto()


_AT_ONCE = {_Kind.Reads: 32, _Kind.WarmUps: 16, _Kind.Gates: 32, _Kind.Capacity: 16}
_LANES = dict.fromkeys(_Kind, Lane.Urgent) | {_Kind.Capacity: Lane.Normal}
"""A rollout waits for its answers; nothing waits for what a KV cache holds."""

_RoundKey = tuple[ServiceKey, _Kind]
_Topic = Topic | tuple[type[MetricsRequest], str]


@dataclass(slots=True)
class _Round:
    open: set[_Topic] = field(default_factory=set)
    alarm: asyncio.TimerHandle | None = None
    """Set by an answer that waits for others."""


class Asking:
    """All questions that are open.

    Args:
        answer: puts a question to whom it is for.
        store: is told what came of it.
        queue: looks at the service again.
        leading: whether this instance does the work now; a stand-by asks nobody.
    """

    def __init__(
        self,
        answer: Callable[[Question | MetricsRequest], Awaitable[Content]],
        store: Store,
        queue: WorkQueue,
        leading: Callable[[], bool],
    ) -> None:
        self._answer = answer
        self._store = store
        self._queue = queue
        self._leading = leading
        self._room = {kind: asyncio.Semaphore(number) for kind, number in _AT_ONCE.items()}
        self._rounds: dict[_RoundKey, _Round] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, key: ServiceKey, questions: Iterable[Question | MetricsRequest]) -> None:
        """Start asking what is not being asked already; waits for nothing."""
        for question in questions:
            current = self._rounds.setdefault((key, _kind(question)), _Round())
            topic = _topic(question)
            if topic not in current.open:
                current.open.add(topic)
                task = asyncio.create_task(self._put(key, question))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up the questions that are open."""
        for current in self._rounds.values():
            _silence(current)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _put(self, key: ServiceKey, question: Question | MetricsRequest) -> None:
        told = False
        try:
            async with self._room[_kind(question)]:
                if self._leading():
                    self._keep(key, question, await self._ask(question))
                    told = True
        finally:
            self._end(key, question, told=told)

    async def _ask(self, question: Question | MetricsRequest) -> Content:
        try:
            return await self._answer(question)
        except Exception:  # noqa: BLE001 - a rollout that waits must learn of it
            _log.exception("a fault of the operator in asking %s", type(question).__name__)
            return None

    def _keep(self, key: ServiceKey, question: Question | MetricsRequest, content: Content) -> None:
        now = utc_now()
        if isinstance(question, MetricsRequest):
            size = content if isinstance(content, KVCacheSize) else None
            self._store.put_metrics_read(key, question.pod_uid, now, size)
        else:
            said = None if isinstance(content, KVCacheSize) else content
            self._store.put_answer(key, question, Answer(now, said))
        if isinstance(content, RouteReading) and isinstance(question, ReadRoute):
            self._keep_child(key, ChildRef(HTTP_ROUTE.kind, question.name), content.route)
        elif isinstance(content, ScaledObjectReading) and isinstance(question, ReadScaledObject):
            self._keep_child(key, ChildRef(SCALED_OBJECT.kind, question.name), content.live)

    def _keep_child(self, key: ServiceKey, ref: ChildRef, live: Manifest | None) -> None:
        """Of these no watch tells."""
        if live is None:
            self._store.remove_child(key, ref)
        else:
            self._store.put(ref.kind, live)

    def _end(self, key: ServiceKey, question: Question | MetricsRequest, *, told: bool) -> None:
        """Close a question; look at the service once the round is over, or has taken too long."""
        kind = _kind(question)
        current = self._rounds[key, kind]
        current.open.discard(_topic(question))
        if not current.open:
            del self._rounds[key, kind]
            if told or current.alarm is not None:
                self._wake(key, kind, current)
        elif told and current.alarm is None:
            current.alarm = asyncio.get_running_loop().call_later(
                _TOGETHER_SECONDS, self._wake, key, kind, current
            )

    def _wake(self, key: ServiceKey, kind: _Kind, current: _Round) -> None:
        _silence(current)
        self._queue.add(key, _LANES[kind])


def _kind(question: Question | MetricsRequest) -> _Kind:
    match question:
        case ReadEngine() | ReadRouter() | ReadRoute() | ReadScaledObject():
            return _Kind.Reads
        case WarmUp():
            return _Kind.WarmUps
        case CallGate():
            return _Kind.Gates
        case MetricsRequest():
            return _Kind.Capacity
        case _:
            assert_never(question)


def _topic(question: Question | MetricsRequest) -> _Topic:
    if isinstance(question, MetricsRequest):
        return type(question), question.pod_uid
    return topic_of(question)


def _silence(current: _Round) -> None:
    if current.alarm is not None:
        current.alarm.cancel()
        current.alarm = None
