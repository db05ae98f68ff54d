"""Keeps the store equal to the API server for one kind: list, then watch, then list again.

A list in chunks fills the store; its version starts a watch, which bookmarks keep young. When the
version has expired (410), the list is taken again, and what it no longer holds is reported as
gone: deletions during the gap make no event. Nothing else about the objects is known here.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from llmservice.adapters import projection
from llmservice.adapters.ports import Cluster, ClusterError, Gone, ListPage, Resource
from llmservice.adapters.projection import Identity
from llmservice.adapters.store import Touched

_log = logging.getLogger(__name__)

_PAGE = 100
"""Objects per chunk of a list. A parsed chunk is the highest tide of memory: five hundred
Deployments are 50 MiB."""
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_RENEWAL_PAUSE_SECONDS = 0.1
"""Between two watches, so that a server that ends each at once is not flooded."""


class Sink(Protocol):
    """Where the objects go; :class:`llmservice.adapters.store.Store`."""

    def put(self, kind: str, live: Mapping[str, Any]) -> Iterable[Touched]:
        """Take in one live object."""
        ...

    def remove(self, kind: str, live: Mapping[str, Any]) -> Iterable[Touched]:
        """Take in that one is gone."""
        ...

    def retain(
        self, kind: str, namespace: str | None, seen: Iterable[Identity], resource_version: str
    ) -> Iterable[Touched]:
        """Take in that a list held only ``seen``."""
        ...


class Reflector:
    """One kind in one namespace, or in all (``namespace=None``).

    Args:
        cluster: where to read.
        resource: the kind.
        namespace: where to look, None for everywhere.
        sink: where the objects go.
        touched: called with each service that an event concerns.
        label_selector: which objects; the API server filters.
        field_selector: likewise; rights to one object only need ``metadata.name=NAME`` here.
    """

    def __init__(  # noqa: PLR0913 - what to read of the kind, and where it goes
        self,
        cluster: Cluster,
        resource: Resource,
        namespace: str | None,
        *,
        sink: Sink,
        touched: Callable[[Touched], None],
        label_selector: str = "",
        field_selector: str = "",
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.synced = asyncio.Event()
        """Set once the first list is in the store."""
        self.last_event: float | None = None
        """When the stream last said anything, bookmarks included; the event loop's clock."""
        self._cluster = cluster
        self._sink = sink
        self._touched = touched
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._version: str | None = None
        self._failures = 0

    async def run(self) -> None:
        """Follow the API server until cancelled, whatever it does meanwhile."""
        while True:
            try:
                if self._version is None:
                    await self.relist()
                await self._watch(self._version or "")
                await asyncio.sleep(_RENEWAL_PAUSE_SECONDS)
            except Gone:
                self._version = None  # not a failure: time passed
            except ClusterError as error:
                await self._pause(error)

    async def relist(self) -> None:
        """Bring the store up to date from a list.

        Raises:
            ClusterError: the API server does not answer or refuses.
        """
        seen: list[Identity] = []
        page = await self._page(None)
        # The first page's version: the later ones are read from the same snapshot.
        version = page.resource_version
        while True:
            while page.items:  # an object is let go as soon as it is taken in
                live = page.items.pop()
                seen.append(projection.identity(live))
                self._take(self._sink.put, live)
            if page.continue_token is None:
                break
            page = await self._page(page.continue_token)
        self._report(self._sink.retain(self.resource.kind, self.namespace, seen, version))
        self._version = version
        self._alive()
        self.synced.set()

    async def _page(self, continue_token: str | None) -> ListPage:
        return await self._cluster.list_page(
            self.resource,
            self.namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            limit=_PAGE,
            continue_token=continue_token,
        )

    async def _watch(self, version: str) -> None:
        events = self._cluster.watch(
            self.resource,
            self.namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            resource_version=version,
        )
        async for event in events:
            self._alive()
            if event.type in ("ADDED", "MODIFIED"):
                self._take(self._sink.put, event.object)
            elif event.type == "DELETED":
                self._take(self._sink.remove, event.object)
            self._version = projection.identity(event.object).resource_version or self._version

    def _alive(self) -> None:
        if self._failures:
            _log.info("following %s again", self.resource.plural)
        self._failures = 0
        self.last_event = asyncio.get_running_loop().time()

    def _take(
        self,
        take: Callable[[str, Mapping[str, Any]], Iterable[Touched]],
        live: Mapping[str, Any],
    ) -> None:
        """One object that cannot be taken in must not keep the others out."""
        try:
            self._report(take(self.resource.kind, live))
        except Exception:  # noqa: BLE001
            who = projection.identity(live)
            _log.exception("cannot take in %s %s/%s", self.resource.kind, who.namespace, who.name)

    def _report(self, touched: Iterable[Touched]) -> None:
        for each in touched:
            self._touched(each)

    async def _pause(self, error: ClusterError) -> None:
        seconds = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self._failures)
        if not self._failures:
            _log.warning(
                "cannot follow %s: %s: %s", self.resource.plural, type(error).__name__, error
            )
        self._failures += 1
        await asyncio.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load
