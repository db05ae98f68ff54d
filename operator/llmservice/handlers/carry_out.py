"""The single steps of a decision: apply or delete a child, patch a route, read a crash's log.

Says what came of each: done, refused for good (an :class:`ApplyError`, which belongs in the
status), or a :class:`ClusterError` that another try may get past. What is not ours is not touched.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from llmservice.adapters import projection
from llmservice.adapters.clock import utc_now
from llmservice.adapters.ports import (
    Cluster,
    ClusterError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Resource,
    TooManyRequests,
    Unavailable,
)
from llmservice.adapters.resources import HTTP_ROUTE, OPTIONAL, WRITTEN
from llmservice.adapters.store import Store
from llmservice.api import names
from llmservice.core.decision import Apply, Delete, LogRequest
from llmservice.core.observed import (
    ApplyError,
    ApplyErrorKind,
    Child,
    Manifest,
    ServiceKey,
    ServiceObject,
)
from llmservice.core.questions import Answer, ReadRoute, RouteReading
from llmservice.core.router.gateway import WeightPatch

_log = logging.getLogger(__name__)

_NEVER_SEEN = "1"
"""A resource version that no object has: an apply with it creates, and never takes over."""
_NAMESPACE_GOES = "because it is being terminated"
_LOG_LINES = 400
_LOG_SECONDS = 5.0


class CarryOut:
    """Carries out the steps of decisions.

    Args:
        cluster: fenced.
        store: is told what the API server answered, so that nobody waits for the watch.
    """

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self._cluster = cluster
        self._store = store

    async def apply(self, service: ServiceObject, apply: Apply) -> ApplyError | None:
        """Write one child.

        Returns:
            None when it is written, else why it will not be until something changes.

        Raises:
            ClusterError: it may work the next time.
        """
        child = self._store.child(service.key, apply.ref) if apply.force else None
        try:
            return await self._apply(service, apply, child)
        except Conflict:
            met = await self._meet(service.key, apply)
        if child is not None and child.uid == met.uid:
            raise Unavailable(f"{apply.ref} changed while it was written")
        return await self._apply(service, apply, met)

    async def _apply(
        self, service: ServiceObject, apply: Apply, child: Child | None
    ) -> ApplyError | None:
        resource = WRITTEN[apply.ref.kind]
        if child is not None and not _is_ours(child, service.uid):
            return _foreign(apply, child)
        try:
            live = await self._write(resource, service.key.namespace, apply, child)
        except Invalid as error:
            return ApplyError(apply.ref, ApplyErrorKind.Invalid, str(error))
        except NotFound:
            if apply.ref.kind not in OPTIONAL:
                raise
            message = f"the cluster does not know {resource.kind} ({resource.api_version})"
            return ApplyError(apply.ref, ApplyErrorKind.Invalid, f"{message}: install it")
        except Forbidden as error:
            if _NAMESPACE_GOES in str(error):
                raise Unavailable(str(error)) from error  # and the service with it
            return ApplyError(apply.ref, ApplyErrorKind.Forbidden, str(error))
        self._store.put_child(service.key, apply.ref.kind, live)
        return None

    async def _write(
        self, resource: Resource, namespace: str, apply: Apply, child: Child | None
    ) -> Manifest:
        pinned = {"uid": child.uid} if child else {"resourceVersion": _NEVER_SEEN}
        metadata = {**apply.manifest["metadata"], **pinned}
        pinned_manifest = {**apply.manifest, "metadata": metadata}
        how: dict[str, Any] = {"field_manager": apply.manager, "force": child is not None}
        try:
            return await self._cluster.apply(resource, namespace, pinned_manifest, **how)
        except Invalid:
            if child is None:
                raise
        # An apply cannot remove what others put into a list, and the two may not go together: a
        # port whose number was edited bears the name of ours. A merge makes the list ours again.
        await self._cluster.merge(resource, namespace, pinned_manifest, field_manager=apply.manager)
        return await self._cluster.apply(resource, namespace, pinned_manifest, **how)

    async def patch_route(self, key: ServiceKey, patch: WeightPatch) -> None:
        """Set weights in somebody else's route; the store gets to know how it is afterwards.

        Raises:
            ClusterError: it may work the next time.
        """
        try:
            reading = await self._patch_route(key.namespace, patch)
        except NotFound:
            reading = RouteReading(None)
        question = ReadRoute(key.namespace, patch.route)
        self._store.put_answer(key, question, Answer(utc_now(), reading))

    async def _patch_route(self, namespace: str, patch: WeightPatch) -> RouteReading:
        try:
            live = await self._cluster.patch(
                HTTP_ROUTE,
                namespace,
                patch.route,
                patch.operations,
                field_manager=names.TRAFFIC_MANAGER,
            )
        except (Conflict, Forbidden, Invalid) as error:
            live = await self._cluster.get(HTTP_ROUTE, namespace, patch.route)
            if live["metadata"]["generation"] != patch.generation:
                return RouteReading(live)  # its owner changed it meanwhile
            return RouteReading(live, f"{HTTP_ROUTE.kind}/{patch.route}: {error}")
        return RouteReading(live)

    async def delete(self, key: ServiceKey, delete: Delete) -> None:
        """Delete one child, if it is the one that was meant."""
        try:
            await self._cluster.delete(
                WRITTEN[delete.ref.kind], key.namespace, delete.ref.name, uid=delete.uid
            )
        except Conflict:
            _log.info("%s: %s is another object by now; left alone", key, delete.ref)
        self._store.remove_child(key, delete.ref)

    async def read_logs(self, key: ServiceKey, requests: Iterable[LogRequest]) -> None:
        """Read the logs of crashed containers; one that cannot be read counts as empty."""
        await asyncio.gather(*(self._read_log(key, request) for request in requests))

    async def _read_log(self, key: ServiceKey, request: LogRequest) -> None:
        try:
            async with asyncio.timeout(_LOG_SECONDS):
                text = await self._cluster.pod_log(
                    key.namespace,
                    request.pod,
                    container=request.container,
                    previous=request.previous,
                    tail_lines=_LOG_LINES,
                )
        except TooManyRequests:
            raise
        except (ClusterError, TimeoutError) as error:
            _log.info("%s: no log of pod %s: %s", key, request.pod, error)
            text = ""
        self._store.put_crash_log(key, request.pod_uid, request.restart_count, text)

    async def _meet(self, key: ServiceKey, apply: Apply) -> Child:
        """The object is not the one we know: look at it."""
        resource = WRITTEN[apply.ref.kind]
        try:
            live = await self._cluster.get(resource, key.namespace, apply.ref.name)
        except NotFound:
            self._store.remove_child(key, apply.ref)
            raise Unavailable(f"{apply.ref} went away while it was written") from None
        child = projection.child(apply.ref.kind, live)
        if child.deleting:
            raise Unavailable(f"{apply.ref} is about to go")
        return child


def _is_ours(child: Child, service_uid: str) -> bool:
    """Whether a child is controlled by the service, or by nobody any more but was made by us."""
    if child.controller_uid is None:
        return child.owned_fields != "{}" or child.applied_hash is not None
    return child.controller_uid == service_uid


def _foreign(apply: Apply, child: Child) -> ApplyError:
    if child.controller_uid is None:
        whose = "was not made by this operator"
    elif child.controller_kind == names.KIND:
        whose = "belongs to another LLMService"
    else:
        whose = f"is controlled by a {child.controller_kind}"
    message = f"an object of this name exists and {whose}; delete it or rename the service"
    return ApplyError(apply.ref, ApplyErrorKind.Conflict, message)
