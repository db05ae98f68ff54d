"""kopf, embedded: it watches the LLMServices and hands each event on; nothing more.

Exactly one ``on.event``, no other handlers, no-op storages, nothing posted or scanned: kopf then
writes nothing at all to the cluster, adds no annotations or finalizers, and spends its time on
events only. What an event means is the callers' business.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

import kopf

from llmservice.adapters.kube import Connection
from llmservice.api import names

_CHUNK = 100
"""Objects per chunk of the first list; kopf starts a task for each at once."""
_STOP_SECONDS = 5.0
_RETRIES_SECONDS = (0.5, 1, 2, 4, *([5] * 60))
"""Five minutes of an API server that answers with errors, before kopf gives up and we exit."""

OnEvent = Callable[[str | None, Mapping[str, Any]], None]
"""Called with the event's type (None for an object found by listing) and the live object."""


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf copies the whole object several times an event to find differences nobody asks for."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """No handler of ours has progress to remember."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


class Shell:
    """kopf in our event loop; make it within one.

    ``kopf.operator`` would cancel, when it ends, every task of the loop that was made after it
    started, ours included. So its tasks are spawned and ended here.

    Args:
        connection: kopf gets a session of its own from it.
        namespaces: where to watch, empty for everywhere.
        on_event: called for every event.
    """

    def __init__(
        self, connection: Connection, namespaces: tuple[str, ...], on_event: OnEvent
    ) -> None:
        self._connection = connection
        self._namespaces = namespaces
        self._registry = self._build_registry(on_event)
        self.ready = asyncio.Event()
        """Set once kopf has started up."""

    async def run(self, handle_signals: Callable[[], None]) -> None:
        """Watch until cancelled; ends by itself only if kopf gives up.

        Args:
            handle_signals: called once kopf has taken SIGTERM and SIGINT for itself.
        """
        tasks = await kopf.spawn_tasks(
            registry=self._registry,
            settings=_settings(),
            standalone=True,
            # Else kopf asks for the name of the user, and that of a container has none.
            identity=cast("Any", names.MANAGED_BY),
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            ready_flag=self.ready,
        )
        handle_signals()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
        for task in done:
            task.result()

    def _build_registry(self, on_event: OnEvent) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(
                server=self._connection.server, aiohttp_session=self._connection.session()
            )

        @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
        async def handle(event: Mapping[str, Any], **_: Any) -> None:
            on_event(event["type"], event["object"])

        return registry


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.process.ultimate_exiting_timeout = None  # the kubelet has a grace period of its own
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 1.0
    settings.watching.chunk_size = _CHUNK
    settings.watching.connect_timeout = 5.0
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 5.0
    settings.networking.error_backoffs = _RETRIES_SECONDS
    settings.networking.enforce_retry_after = True
    return settings
