"""Every write passes here: refused once our lease could have ended, and counted.

A write that starts in time may still arrive late, so each is also cut off when the lease would
end. Reads pass freely. What is written is not this module's business.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from llmservice.adapters.ports import (
    Cluster,
    Fenced,
    ListPage,
    Resource,
    Unavailable,
    WatchEvent,
)
from llmservice.core.observed import Manifest

_T = TypeVar("_T")


class FencedCluster:
    """A :class:`Cluster` that writes only while we lead.

    Args:
        cluster: where to.
        seconds_left: how long a write that starts now may take; 0 when none may.
        count: called with verb and kind of each write that is sent.
    """

    def __init__(
        self,
        cluster: Cluster,
        seconds_left: Callable[[], float],
        count: Callable[[str, str], None],
    ) -> None:
        self._cluster = cluster
        self._seconds_left = seconds_left
        self._count = count

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
        """Passed on."""
        return await self._cluster.list_page(
            resource,
            namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            limit=limit,
            continue_token=continue_token,
        )

    def watch(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str,
    ) -> AsyncIterator[WatchEvent]:
        """Passed on."""
        return self._cluster.watch(
            resource,
            namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            resource_version=resource_version,
        )

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """Passed on."""
        return await self._cluster.get(resource, namespace, name)

    async def pod_log(
        self, namespace: str, pod: str, *, container: str, previous: bool, tail_lines: int
    ) -> str:
        """Passed on."""
        return await self._cluster.pod_log(
            namespace, pod, container=container, previous=previous, tail_lines=tail_lines
        )

    async def apply(
        self,
        resource: Resource,
        namespace: str | None,
        manifest: Mapping[str, Any],
        *,
        field_manager: str,
        force: bool,
        subresource: str | None = None,
    ) -> Manifest:
        """Fenced."""
        kind = resource.kind if subresource is None else f"{resource.kind}/{subresource}"
        return await self._write(
            "apply",
            kind,
            lambda: self._cluster.apply(
                resource,
                namespace,
                manifest,
                field_manager=field_manager,
                force=force,
                subresource=subresource,
            ),
        )

    async def merge(
        self,
        resource: Resource,
        namespace: str | None,
        manifest: Mapping[str, Any],
        *,
        field_manager: str,
    ) -> Manifest:
        """Fenced."""
        return await self._write(
            "merge",
            resource.kind,
            lambda: self._cluster.merge(resource, namespace, manifest, field_manager=field_manager),
        )

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        field_manager: str,
    ) -> Manifest:
        """Fenced."""
        return await self._write(
            "patch",
            resource.kind,
            lambda: self._cluster.patch(
                resource, namespace, name, operations, field_manager=field_manager
            ),
        )

    async def create(
        self, resource: Resource, namespace: str | None, manifest: Mapping[str, Any]
    ) -> Manifest:
        """Fenced."""
        return await self._write(
            "create", resource.kind, lambda: self._cluster.create(resource, namespace, manifest)
        )

    async def replace(
        self, resource: Resource, namespace: str | None, manifest: Mapping[str, Any]
    ) -> Manifest:
        """Fenced."""
        return await self._write(
            "replace", resource.kind, lambda: self._cluster.replace(resource, namespace, manifest)
        )

    async def delete(
        self, resource: Resource, namespace: str | None, name: str, *, uid: str
    ) -> None:
        """Fenced."""
        await self._write(
            "delete",
            resource.kind,
            lambda: self._cluster.delete(resource, namespace, name, uid=uid),
        )

    async def _write(self, verb: str, kind: str, send: Callable[[], Awaitable[_T]]) -> _T:
        seconds = self._seconds_left()
        if seconds <= 0:
            raise Fenced("our lease could not be renewed")
        self._count(verb, kind)
        try:
            async with asyncio.timeout(seconds):
                return await send()
        except TimeoutError as error:
            raise Unavailable(f"no answer within the {seconds:.0f} s left of our lease") from error
