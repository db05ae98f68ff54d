"""The work queue: which services to look at next, each by one worker at a time.

The semantics are client-go's (k8s.io/client-go/util/workqueue): a key that is added twice is done
once; a key added while it is being done is done again afterwards; a failed key comes back after an
exponential pause, all failed keys together no faster than a token bucket lets them. Beyond it, a
key has a lane: what a person waits for overtakes a thousand keys of a resync or a bulk creation.
The queue knows nothing about what a key means, and it alone decides about retries.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from llmservice.core.observed import ServiceKey


class Lane(IntEnum):
    """Who goes first; lower lanes get every eighth turn, so none starves."""

    Urgent = 0  # an edit, a deleted or hand-edited child
    Normal = 1  # new services, progress of pods
    Background = 2  # resync


_FAIR_TURN = 8


@dataclass(frozen=True, slots=True)
class Backoff:
    """How fast failed keys come back.

    ``rate`` and ``burst`` bound all of them together, in keys per second and keys.
    """

    first_seconds: float = 0.5
    longest_seconds: float = 300.0
    rate: float = 10.0
    burst: float = 100.0


@dataclass(slots=True)
class _Item:
    lane: Lane
    added: float
    """Event loop time of the first add that is not done yet."""


@dataclass(slots=True, order=True)
class _Timer:
    due: float
    key: ServiceKey = field(compare=False)


class WorkQueue:
    """Keys to reconcile; for one event loop.

    Args:
        backoff: how fast failed keys come back.
        jitter: factor drawn for each pause, so that neighbors spread.
    """

    def __init__(
        self,
        backoff: Backoff | None = None,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0),  # noqa: S311
    ) -> None:
        self._backoff = backoff or Backoff()
        self._jitter = jitter
        self._lanes: dict[Lane, deque[ServiceKey]] = {lane: deque() for lane in Lane}
        self._dirty: dict[ServiceKey, _Item] = {}
        self._processing: set[ServiceKey] = set()
        self._failures: dict[ServiceKey, int] = {}
        self._timers: list[_Timer] = []
        self._due: dict[ServiceKey, float] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in Lane}
        self._turn = 0
        self._tokens = self._backoff.burst
        self._tokens_at = 0.0
        self._closed = False

    def __len__(self) -> int:
        """Keys that wait for a worker; not those that wait for their time."""
        return sum(1 for key in self._dirty if key not in self._processing)

    def oldest_age_seconds(self) -> float:
        """For how long the longest waiting key has waited, 0 when none does."""
        now = _now()
        return max((now - item.added for item in self._dirty.values()), default=0.0)

    def add(self, key: ServiceKey, lane: Lane = Lane.Normal) -> None:
        """Have ``key`` done soon; adding it again may only move it forward."""
        if self._closed:
            return
        item = self._dirty.get(key)
        if item is not None and item.lane <= lane:
            return
        if item is None:
            self._dirty[key] = _Item(lane, _now())
        else:
            item.lane = lane  # its place in the old lane is skipped when it comes up
        if key not in self._processing:
            self._lanes[lane].append(key)
            self._wake(lane)

    def add_after(self, key: ServiceKey, seconds: float) -> None:
        """Have ``key`` done after a while; an earlier time that is set already stands."""
        due = _now() + seconds
        if self._closed or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._timers, _Timer(due, key))
        self._set_alarm()

    def retry(self, key: ServiceKey, at_least_seconds: float = 0.0) -> float:
        """Have a failed ``key`` done again after its pause; returns the pause in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause = self._backoff.first_seconds * 2.0 ** min(failures, 30)
        pause = min(self._backoff.longest_seconds, pause) * self._jitter()
        pause = max(pause, at_least_seconds, self._token_seconds())
        self.add_after(key, pause)
        return pause

    def succeed(self, key: ServiceKey) -> None:
        """``key`` went well: its next failure starts with a short pause again."""
        self._failures.pop(key, None)

    def forget(self, key: ServiceKey) -> None:
        """``key`` is gone for good: drop what is remembered and planned for it."""
        self._failures.pop(key, None)
        self._due.pop(key, None)

    async def get(self, worst: Lane = Lane.Background) -> ServiceKey | None:
        """Wait for the next key of lane ``worst`` or better; the caller calls :meth:`done` for it.

        Returns:
            The key, or None once the queue is closed.
        """
        while not self._closed:
            key = self._pop(worst)
            if key is not None:
                self._processing.add(key)
                del self._dirty[key]
                return key
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[worst].append(future)
            await future
        return None

    def done(self, key: ServiceKey) -> None:
        """A worker is done with ``key``; if it was added meanwhile, it is due again."""
        self._processing.discard(key)
        item = self._dirty.get(key)
        if item is not None and not self._closed:
            self._lanes[item.lane].append(key)
            self._wake(item.lane)

    def close(self) -> None:
        """Hand out no more keys; those being done are finished by their workers."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        for waiting in self._waiting.values():
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    # --- inside -------------------------------------------------------------------------------

    def _pop(self, worst: Lane) -> ServiceKey | None:
        self._turn += 1
        lanes = [lane for lane in Lane if lane <= worst]
        if self._turn % _FAIR_TURN == 0:
            lanes.reverse()
        for lane in lanes:
            waiting = self._lanes[lane]
            while waiting:
                key = waiting.popleft()
                item = self._dirty.get(key)
                if item is not None and item.lane == lane and key not in self._processing:
                    return key
        return None

    def _wake(self, lane: Lane) -> None:
        """Wake one worker that may take ``lane``, the choosiest first."""
        for worst in Lane:
            if worst < lane:
                continue
            waiting = self._waiting[worst]
            while waiting:
                future = waiting.popleft()
                if not future.done():
                    future.set_result(None)
                    return

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._timers and not self._closed:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_at(self._timers[0].due, self._ring)

    def _ring(self) -> None:
        now = _now()
        while self._timers and self._timers[0].due <= now:
            timer = heapq.heappop(self._timers)
            if self._due.get(timer.key) == timer.due:
                del self._due[timer.key]
                self.add(timer.key)
        self._set_alarm()

    def _token_seconds(self) -> float:
        """Take one token; how long until it is there."""
        now = _now()
        refilled = self._tokens + (now - self._tokens_at) * self._backoff.rate
        self._tokens = min(self._backoff.burst, refilled) - 1
        self._tokens_at = now
        return max(0.0, -self._tokens / self._backoff.rate)


def _now() -> float:
    return asyncio.get_running_loop().time()
