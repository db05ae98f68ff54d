"""The seams between the operator and the world: Protocols and the errors they raise.

::

    ClusterError
    +- NotFound          404
    +- Conflict          409: another field manager, a stale resourceVersion or uid
    +- Gone              410: the watch or list token expired, list again
    +- Invalid           400, 422: the API server refuses the object as it is
    +- Forbidden         403: our Role, a quota or an admission policy
    +- TooManyRequests   429: retry after ``retry_after_seconds``
    +- Unavailable       5xx, connection errors, time-outs: try again later
    +- Fenced            not sent: our lease could have expired
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmservice.core.observed import Manifest


class ClusterError(Exception):
    """The API server did not do what was asked. The message is its own, cut to 1 KiB."""


class NotFound(ClusterError):  # noqa: N818 - the names of the API conventions
    """The object is not there."""


class Conflict(ClusterError):  # noqa: N818
    """Someone else owns the field, or the object is not the one we saw."""


class Gone(ClusterError):  # noqa: N818
    """The list or watch token expired."""


class Invalid(ClusterError):  # noqa: N818
    """The object is refused as it is; trying again cannot help."""


class Forbidden(ClusterError):  # noqa: N818
    """Not allowed: our Role, a quota or an admission policy."""


class TooManyRequests(ClusterError):  # noqa: N818
    """The API server asks us to slow down."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(ClusterError):  # noqa: N818
    """The API server cannot be reached or failed."""


class Fenced(ClusterError):  # noqa: N818
    """A write that was not sent, because another instance may lead by now."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Where a kind lives in the API."""

    api_version: str
    plural: str
    kind: str
    namespaced: bool = True


@dataclass(frozen=True, slots=True)
class ListPage:
    """One chunk of a list."""

    items: list[Manifest]
    resource_version: str
    continue_token: str | None


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch: ``type`` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Manifest


class Cluster(Protocol):
    """The Kubernetes API, as dictionaries in and out. Every call may raise ClusterError.

    ``namespace`` is None for a kind that has none, and for lists and watches of all of them.
    """

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
        """One chunk; ``namespace=None`` lists all namespaces. Raises Gone when the token is old."""
        ...

    def watch(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str,
    ) -> AsyncIterator[WatchEvent]:
        """Events after ``resource_version``; ends when the server ends it. Raises Gone."""
        ...

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """Read one object."""
        ...

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
        """Server-side apply; returns the object as stored."""
        ...

    async def merge(
        self,
        resource: Resource,
        namespace: str | None,
        manifest: Mapping[str, Any],
        *,
        field_manager: str,
    ) -> Manifest:
        """Merge-patch: fields are set and lists replaced as a whole; nothing else is removed."""
        ...

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        field_manager: str,
    ) -> Manifest:
        """JSON patch: all operations or none. Raises Invalid when a ``test`` fails."""
        ...

    async def create(
        self, resource: Resource, namespace: str | None, manifest: Mapping[str, Any]
    ) -> Manifest:
        """Create one object (events, leases)."""
        ...

    async def replace(
        self, resource: Resource, namespace: str | None, manifest: Mapping[str, Any]
    ) -> Manifest:
        """Update one object; its ``metadata.resourceVersion`` guards against lost updates."""
        ...

    async def delete(
        self, resource: Resource, namespace: str | None, name: str, *, uid: str
    ) -> None:
        """Delete the object of that uid; one that is gone is no error."""
        ...

    async def pod_log(
        self, namespace: str, pod: str, *, container: str, previous: bool, tail_lines: int
    ) -> str:
        """The tail of a container's log, cut to 64 KiB."""
        ...
