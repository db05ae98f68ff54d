"""Asks engines for their metrics beside the reconciles, which never wait for an engine.

What came of it goes to the store, and the service is looked at again. Whom to ask, and how often,
is decided elsewhere.
"""

import asyncio
from collections.abc import Awaitable, Callable

from llmservice.adapters.clock import utc_now
from llmservice.adapters.store import Store
from llmservice.core.decision import MetricsRequest
from llmservice.core.observed import KVCacheSize, ServiceKey
from llmservice.handlers.queue import WorkQueue

_AT_ONCE = 16


class EngineReader:
    """One question at a time to each service's engines.

    Args:
        read: asks the engine at an address; raises nothing.
        store: is told what came of it.
        queue: looks at the service again.
        leading: whether this instance does the work now; a stand-by asks nobody.
    """

    def __init__(
        self,
        read: Callable[[str], Awaitable[KVCacheSize | None]],
        store: Store,
        queue: WorkQueue,
        leading: Callable[[], bool],
    ) -> None:
        self._read = read
        self._store = store
        self._queue = queue
        self._leading = leading
        self._tasks: dict[ServiceKey, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)

    def ask(self, key: ServiceKey, request: MetricsRequest) -> None:
        """Start asking, unless this service's engine is being asked."""
        if key not in self._tasks:
            task = asyncio.create_task(self._ask(key, request))
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def close(self) -> None:
        """Give up the questions that are open."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, key: ServiceKey, request: MetricsRequest) -> None:
        async with self._room:
            if not self._leading():
                return
            size = await self._read(request.address)
        self._store.put_metrics_read(key, request.pod_uid, utc_now(), size)
        self._queue.add(key)
