"""A few objects in memory behind the Cluster protocol, for timing and failures.

Only what these tests lean on: versions, conflicts, preconditions, pages, watches. What the API
server does with our objects is tested against a real one in ``tests/contract``.
"""

import asyncio
import copy
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from llmservice.adapters.ports import (
    ClusterError,
    Conflict,
    Gone,
    ListPage,
    NotFound,
    Resource,
    WatchEvent,
)

Place = tuple[str, str, str]


class FakeCluster:
    """Objects by kind, namespace and name; ``calls`` counts (verb, kind)."""

    def __init__(self) -> None:
        self.objects: dict[Place, dict[str, Any]] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        self.applied: list[dict[str, Any]] = []
        self.patched: list[tuple[str, list[Mapping[str, Any]]]] = []
        self.failures: dict[tuple[str, str], list[ClusterError]] = defaultdict(list)
        self.away: ClusterError | None = None
        """While set, every call fails with it."""
        self.hangs = False
        """While set, no call is ever answered."""
        self.page_size = 500
        self.log = ""
        self.version = 100
        self._watches: list[asyncio.Queue[WatchEvent | ClusterError | None]] = []

    # --- what tests do to it --------------------------------------------------------------------

    def put(self, live: Mapping[str, Any], *, silent: bool = False) -> dict[str, Any]:
        """Store an object as somebody else would; ``silent`` tells no watch."""
        place = _place(live)
        event = "MODIFIED" if place in self.objects else "ADDED"
        stored = self._store(place, live)
        if not silent:
            self.send(WatchEvent(event, stored))
        return stored

    def drop(self, live: Mapping[str, Any], *, silent: bool = False) -> None:
        """Delete an object as somebody else would."""
        self.version += 1
        gone = self.objects.pop(_place(live))
        gone["metadata"]["resourceVersion"] = str(self.version)
        if not silent:
            self.send(WatchEvent("DELETED", gone))

    def send(self, event: WatchEvent | ClusterError | None) -> None:
        """Say something on all watches; an error breaks them, None ends them."""
        for watch in self._watches:
            watch.put_nowait(event)

    # --- the protocol ---------------------------------------------------------------------------

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 500,
        continue_token: str | None = None,
    ) -> ListPage:
        await self._called("list", resource)
        found = [
            copy.deepcopy(live)
            for (kind, where, _), live in sorted(self.objects.items())
            if kind == resource.kind and namespace in (None, where)
        ]
        start = int(continue_token or 0)
        end = start + min(limit, self.page_size)
        more = str(end) if end < len(found) else None
        return ListPage(found[start:end], str(self.version), more)

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str,
    ) -> AsyncIterator[WatchEvent]:
        await self._called("watch", resource)
        events: asyncio.Queue[WatchEvent | ClusterError | None] = asyncio.Queue()
        self._watches.append(events)
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, ClusterError):
                    raise event
                yield event
        finally:
            self._watches.remove(events)

    async def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        await self._called("get", resource)
        return copy.deepcopy(self._existing((resource.kind, namespace, name)))

    async def apply(
        self,
        resource: Resource,
        namespace: str,
        manifest: Mapping[str, Any],
        *,
        field_manager: str,
        force: bool,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        await self._called("apply", resource)
        place = (resource.kind, namespace, manifest["metadata"]["name"])
        self.applied.append(copy.deepcopy(dict(manifest)))
        live = self.objects.get(place)
        if live is None and subresource:
            raise NotFound(f"{place} not found")
        self._check_preconditions(live, manifest["metadata"])
        body = {**(live or {}), **manifest}
        metadata = {**(live or {}).get("metadata", {}), **manifest["metadata"]}
        metadata["namespace"] = namespace
        if subresource is None:
            metadata["managedFields"] = [_entry(field_manager, manifest)]
        return copy.deepcopy(self._store(place, {**body, "metadata": metadata}))

    async def merge(
        self,
        resource: Resource,
        namespace: str,
        manifest: Mapping[str, Any],
        *,
        field_manager: str,
    ) -> dict[str, Any]:
        await self._called("merge", resource)
        place = (resource.kind, namespace, manifest["metadata"]["name"])
        live = self._existing(place)
        self._check_preconditions(live, manifest["metadata"])
        metadata = {**live["metadata"], **manifest["metadata"]}
        return copy.deepcopy(self._store(place, {**live, **manifest, "metadata": metadata}))

    async def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        field_manager: str,
    ) -> dict[str, Any]:
        """Notes the operations, and carries none out."""
        await self._called("patch", resource)
        place = (resource.kind, namespace, name)
        self.patched.append((field_manager, list(operations)))
        return copy.deepcopy(self._store(place, self._existing(place)))

    async def create(
        self, resource: Resource, namespace: str, manifest: Mapping[str, Any]
    ) -> dict[str, Any]:
        await self._called("create", resource)
        place = (resource.kind, namespace, manifest["metadata"]["name"])
        if place in self.objects:
            raise Conflict(f"{place} already exists")
        return copy.deepcopy(self._store(place, manifest))

    async def replace(
        self, resource: Resource, namespace: str, manifest: Mapping[str, Any]
    ) -> dict[str, Any]:
        await self._called("replace", resource)
        place = (resource.kind, namespace, manifest["metadata"]["name"])
        self._check_preconditions(self._existing(place), manifest["metadata"])
        return copy.deepcopy(self._store(place, manifest))

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str) -> None:
        await self._called("delete", resource)
        live = self.objects.get((resource.kind, namespace, name))
        if live is None:
            return
        if live["metadata"]["uid"] != uid:
            raise Conflict("uid")
        self.drop(live)

    async def pod_log(
        self, namespace: str, pod: str, *, container: str, previous: bool, tail_lines: int
    ) -> str:
        self.calls["log", "Pod"] += 1
        self._fail(("log", "Pod"))
        return self.log

    # --- inside ---------------------------------------------------------------------------------

    async def _called(self, verb: str, resource: Resource) -> None:
        self.calls[verb, resource.kind] += 1
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.away is not None:
            raise self.away
        self._fail((verb, resource.kind))

    def _fail(self, call: tuple[str, str]) -> None:
        if self.failures[call]:
            raise self.failures[call].pop(0)

    def _existing(self, place: Place) -> dict[str, Any]:
        if place not in self.objects:
            raise NotFound(f"{place} not found")
        return self.objects[place]

    def _check_preconditions(
        self, live: Mapping[str, Any] | None, metadata: Mapping[str, Any]
    ) -> None:
        if live is None:
            if "uid" in metadata:
                raise Conflict("uid mismatch: no existing object was found")
            return
        for field in ("uid", "resourceVersion"):
            if field in metadata and metadata[field] != live["metadata"][field]:
                raise Conflict("the object has been modified")

    def _store(self, place: Place, live: Mapping[str, Any]) -> dict[str, Any]:
        self.version += 1
        stored = copy.deepcopy(dict(live))
        metadata = stored.setdefault("metadata", {})
        metadata["resourceVersion"] = str(self.version)
        metadata["namespace"] = place[1]
        metadata.setdefault("uid", f"uid-{self.version}")
        self.objects[place] = stored
        return stored


def gone() -> Gone:
    """The answer to a watch whose version has expired."""
    return Gone("too old resource version")


def _place(live: Mapping[str, Any]) -> Place:
    return live["kind"], live["metadata"]["namespace"], live["metadata"]["name"]


def _entry(manager: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {"manager": manager, "operation": "Apply", "fieldsV1": _fields(manifest)}


def _fields(value: Any) -> dict[str, Any]:
    """A tree by which all of the manifest is owned; lists count as atomic."""
    if not isinstance(value, Mapping):
        return {}
    identity = ("apiVersion", "kind", "name", "namespace", "uid", "resourceVersion")
    return {f"f:{key}": _fields(below) for key, below in value.items() if key not in identity}
