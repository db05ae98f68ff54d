"""The API server's audit log as a list of requests: who wrote what, and when.

The log is exact and costs the measured program nothing, so every count and every latency of the
benchmark comes from here. Lines look like this, one per finished request::

    {"verb": "patch", "user": {"username": "..."}, "objectRef": {"resource": "services", ...},
     "responseStatus": {"code": 201}, "requestReceivedTimestamp": "...", "stageTimestamp": "..."}
"""

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

CHILD_RESOURCES = frozenset(
    {"serviceaccounts", "services", "poddisruptionbudgets", "controllerrevisions", "deployments"}
)
_FIRST_ERROR = 400


class Category(StrEnum):
    """What a request of the operator is for."""

    Child = "child"
    Status = "status"
    Event = "event"
    Read = "read"
    List = "list"
    Lease = "lease"
    Watch = "watch"
    Discovery = "discovery"
    Other = "other"


_BY_VERB = {"get": Category.Read, "list": Category.List, "watch": Category.Watch}
_BY_RESOURCE = {"leases": Category.Lease, "events": Category.Event}

BACKGROUND = frozenset({Category.Lease, Category.Watch, Category.Discovery})
"""What an operator needs to be there at all; counted apart."""


@dataclass(frozen=True, slots=True)
class Request:
    """One finished request. Times are seconds since the epoch, by the API server's clock."""

    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    received: float
    completed: float

    @property
    def category(self) -> Category:
        """What it is for."""
        if not self.resource:
            return Category.Discovery
        if self.verb in _BY_VERB:
            category = _BY_VERB[self.verb]
        elif self.subresource == "status":
            category = Category.Status
        elif self.resource in CHILD_RESOURCES:
            category = Category.Child
        else:
            category = Category.Other
        return _BY_RESOURCE.get(self.resource, category)

    @property
    def failed(self) -> bool:
        """Whether the API server refused it."""
        return self.code >= _FIRST_ERROR


class AuditLog:
    """An audit log that is still being written."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def follow(self, *users: str) -> "Follower":
        """What ``users`` do from now on."""
        return Follower(self._file, users)


class Follower:
    """The requests of some users since it was made; :meth:`poll` brings it up to date."""

    def __init__(self, file: Path, users: Iterable[str]) -> None:
        self.requests: list[Request] = []
        """In the order in which they ended."""
        self._file = file
        self._position = file.stat().st_size
        # Parsing everybody's lines would take CPU from what is being measured.
        self._needles = [f'"username":{json.dumps(user)}'.encode() for user in users]

    def poll(self) -> list[Request]:
        """All requests so far."""
        with self._file.open("rb") as log:
            log.seek(self._position)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                if any(needle in line for needle in self._needles):
                    self.requests.append(_parse(json.loads(line)))
        return self.requests


def count(requests: Iterable[Request]) -> Counter[Category]:
    """How many requests of each category."""
    return Counter(request.category for request in requests)


def now() -> float:
    """The clock of the audit log, which is this machine's."""
    return time.time()  # noqa: TID251 - compared with timestamps of another process


def _parse(event: dict[str, Any]) -> Request:
    target = event.get("objectRef") or {}
    return Request(
        user=event["user"]["username"],
        verb=event["verb"],
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=(event.get("responseStatus") or {}).get("code", 0),
        received=_seconds(event["requestReceivedTimestamp"]),
        completed=_seconds(event["stageTimestamp"]),
    )


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
