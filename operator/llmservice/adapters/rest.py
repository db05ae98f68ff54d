"""The Kubernetes API over a thin aiohttp session: URLs, content types, errors, streams.

Implements :class:`llmservice.adapters.ports.Cluster`. Generated clients spend five times the CPU
on a request, and this is the loop that also reads the watches. It retries nothing: the work queue
alone decides about that.
"""

import json
import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from llmservice.adapters import ports
from llmservice.adapters.kube import Connection
from llmservice.adapters.ports import ListPage, Resource, WatchEvent
from llmservice.adapters.resources import POD
from llmservice.core.observed import Manifest

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_JSON = "application/json"
_MERGE = "application/merge-patch+json"
_PATCH = "application/json-patch+json"
_APPLY = "application/apply-patch+yaml"  # JSON is YAML

_MESSAGE_LIMIT = 1024
_LOG_LIMIT = 64 * 1024
_DEFAULT_RETRY_AFTER_SECONDS = 1.0

_CONNECT_SECONDS = 5.0
_INACTIVITY_SECONDS = 70.0
"""The API server sends a bookmark a minute; a stream silent for longer may be dead."""
_WATCH_SECONDS = (1200, 1800)
"""A watch's length, drawn at random so that thousands of them do not renew together."""

_ERRORS: Mapping[int, type[ports.ClusterError]] = {
    400: ports.Invalid,
    403: ports.Forbidden,
    404: ports.NotFound,
    405: ports.Invalid,
    409: ports.Conflict,
    410: ports.Gone,
    413: ports.Invalid,
    415: ports.Invalid,
    422: ports.Invalid,
}
_TYPED_PATCH = "failed to create typed patch object"
"""How server-side apply starts its answer to an unknown or mistyped field, with HTTP 500."""
_TOO_MANY_REQUESTS = 429
_BAD_REQUEST = 400


class RestCluster:
    """The API server behind a :class:`Connection`. Make it within a running event loop.

    Args:
        connection: where, and who we are.
        limit: requests in flight at a time, watches not counted.
        request_seconds: limit of one request, watches not counted.
    """

    def __init__(
        self, connection: Connection, *, limit: int = 32, request_seconds: float = 30.0
    ) -> None:
        self._server = connection.server
        self._requests = connection.session(limit)
        self._streams = connection.session()
        self._timeout = aiohttp.ClientTimeout(total=request_seconds, sock_connect=_CONNECT_SECONDS)

    async def close(self) -> None:
        """Close all connections."""
        await self._requests.close()
        await self._streams.close()

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
        """See :meth:`llmservice.adapters.ports.Cluster.list_page`."""
        query = {"limit": str(limit), **_selectors(label_selector, field_selector)}
        if continue_token:
            query["continue"] = continue_token
        page = await self._call("GET", _path(resource, namespace), query)
        metadata = page.get("metadata") or {}
        return ListPage(
            items=page.get("items") or [],
            resource_version=str(metadata.get("resourceVersion", "")),
            continue_token=metadata.get("continue") or None,
        )

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str,
    ) -> AsyncIterator[WatchEvent]:
        """See :meth:`llmservice.adapters.ports.Cluster.watch`."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(random.randint(*_WATCH_SECONDS)),  # noqa: S311 - spreads load
            **_selectors(label_selector, field_selector),
        }
        timeout = aiohttp.ClientTimeout(
            sock_connect=_CONNECT_SECONDS, sock_read=_INACTIVITY_SECONDS
        )
        url = self._url(_path(resource, namespace), query)
        # After its own restart an API server sends no bookmarks on a kind until something happens
        # to it, so silence is the end of a watch and no error.
        with _connection_errors(), suppress(aiohttp.SocketTimeoutError):
            async with self._streams.get(url, timeout=timeout) as response:
                await _raise_for_status(response)
                async for line in _lines(response.content):
                    yield _watch_event(line)

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """See :meth:`llmservice.adapters.ports.Cluster.get`."""
        return await self._call("GET", _path(resource, namespace, name))

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
        """See :meth:`llmservice.adapters.ports.Cluster.apply`."""
        path = _path(resource, namespace, manifest["metadata"]["name"], subresource)
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        return await self._call("PATCH", path, query, manifest, content_type=_APPLY)

    async def merge(
        self,
        resource: Resource,
        namespace: str | None,
        manifest: Mapping[str, Any],
        *,
        field_manager: str,
    ) -> Manifest:
        """See :meth:`llmservice.adapters.ports.Cluster.merge`."""
        path = _path(resource, namespace, manifest["metadata"]["name"])
        query = {"fieldManager": field_manager}
        return await self._call("PATCH", path, query, manifest, content_type=_MERGE)

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        field_manager: str,
    ) -> Manifest:
        """See :meth:`llmservice.adapters.ports.Cluster.patch`."""
        path, query = _path(resource, namespace, name), {"fieldManager": field_manager}
        return await self._call("PATCH", path, query, operations, content_type=_PATCH)

    async def create(
        self, resource: Resource, namespace: str | None, manifest: Mapping[str, Any]
    ) -> Manifest:
        """See :meth:`llmservice.adapters.ports.Cluster.create`."""
        return await self._call("POST", _path(resource, namespace), body=manifest)

    async def replace(
        self, resource: Resource, namespace: str | None, manifest: Mapping[str, Any]
    ) -> Manifest:
        """See :meth:`llmservice.adapters.ports.Cluster.replace`."""
        path = _path(resource, namespace, manifest["metadata"]["name"])
        return await self._call("PUT", path, body=manifest)

    async def delete(
        self, resource: Resource, namespace: str | None, name: str, *, uid: str
    ) -> None:
        """See :meth:`llmservice.adapters.ports.Cluster.delete`."""
        options = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        try:
            await self._call("DELETE", _path(resource, namespace, name), body=options)
        except ports.NotFound:
            return

    async def pod_log(
        self, namespace: str, pod: str, *, container: str, previous: bool, tail_lines: int
    ) -> str:
        """See :meth:`llmservice.adapters.ports.Cluster.pod_log`."""
        # Not limitBytes: it keeps the first bytes of the tail, and the cause stands in the last.
        query = {
            "container": container,
            "previous": "true" if previous else "false",
            "tailLines": str(tail_lines),
        }
        tail = b""
        with _connection_errors():
            async with self._requests.get(
                self._url(_path(POD, namespace, pod, "log"), query), timeout=self._timeout
            ) as response:
                await _raise_for_status(response)
                async for chunk in response.content.iter_any():
                    tail = (tail + chunk)[-_LOG_LIMIT:]
        return tail.decode(errors="replace")

    async def server_version(self) -> tuple[int, int]:
        """Major and minor version of Kubernetes.

        Raises:
            ClusterError: the API server does not say.
        """
        with _connection_errors():
            found = await self._call("GET", "/version")
            # Some providers write `35+`.
            major, minor = (re.sub(r"\D.*", "", str(found[part])) for part in ("major", "minor"))
            return int(major), int(minor)

    async def _call(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        content_type: str = _JSON,
    ) -> Manifest:
        data = None if body is None else _ENCODE(body).encode()
        headers = {"Accept": _JSON, "Content-Type": content_type}
        with _connection_errors():
            async with self._requests.request(
                verb, self._url(path, query), data=data, headers=headers, timeout=self._timeout
            ) as response:
                await _raise_for_status(response)
                answer = json.loads(await response.read())
        return answer if isinstance(answer, dict) else {}

    def _url(self, path: str, query: Mapping[str, str] | None) -> URL:
        suffix = f"?{urlencode(query)}" if query else ""
        return URL(f"{self._server}{path}{suffix}", encoded=True)


def _path(
    resource: Resource,
    namespace: str | None,
    name: str | None = None,
    subresource: str | None = None,
) -> str:
    group = "/api/" if "/" not in resource.api_version else "/apis/"
    parts = [group + resource.api_version]
    if namespace is not None:
        parts += ["namespaces", namespace]
    parts += [part for part in (resource.plural, name, subresource) if part is not None]
    return "/".join(parts)


def _selectors(labels: str, fields: str) -> dict[str, str]:
    found = {"labelSelector": labels, "fieldSelector": fields}
    return {key: selector for key, selector in found.items() if selector}


@contextmanager
def _connection_errors() -> Iterator[None]:
    """Turns what aiohttp raises, and answers that are no JSON, into :class:`ports.Unavailable`."""
    try:
        yield
    except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
        text = f"{type(error).__name__}: {error}"[:_MESSAGE_LIMIT]
        raise ports.Unavailable(text) from error


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if response.status < _BAD_REQUEST:
        return
    message = _status_message(await response.read()) or f"HTTP {response.status}"
    if response.status == _TOO_MANY_REQUESTS:
        raise ports.TooManyRequests(message, _retry_after_seconds(response.headers))
    if message.startswith(_TYPED_PATCH):
        raise ports.Invalid(message)
    raise _ERRORS.get(response.status, ports.Unavailable)(message)


def _status_message(body: bytes) -> str:
    """The API server's words. Anything but a Status could be a proxy's page or hold secrets."""
    try:
        status = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(status, dict) or status.get("kind") != "Status":
        return ""
    return str(status.get("message", ""))[:_MESSAGE_LIMIT]


def _retry_after_seconds(headers: Mapping[str, str]) -> float:
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return _DEFAULT_RETRY_AFTER_SECONDS


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a stream, however long; ``readline`` gives up at a fixed size."""
    parts: list[bytes] = []
    async for chunk in content.iter_any():
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            parts.append(line)
            yield b"".join(parts)
            parts.clear()
        if rest:
            parts.append(rest)


def _watch_event(line: bytes) -> WatchEvent:
    event = json.loads(line)
    if not (isinstance(event, dict) and isinstance(event["object"], dict)):
        raise ValueError("this is no watch event")  # noqa: TRY004 - nonsense, not a wrong argument
    kind, body = event["type"], event["object"]
    if kind == "ERROR":
        message = str(body.get("message", ""))[:_MESSAGE_LIMIT]
        raise _ERRORS.get(int(body.get("code") or 0), ports.Unavailable)(message)
    return WatchEvent(kind, body)
