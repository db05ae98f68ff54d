"""What a router's pod says of itself: which traffic is in force, and what each track did with it.

The agent in the pod writes it, the operator reads it. It comes over the network, so it is parsed
strictly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

_STRICT = ConfigDict(extra="ignore", strict=True)
_Count = Annotated[int, Field(ge=0, le=1 << 60)]
_Text = Annotated[str, Field(max_length=1024)]


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class TrackReport:
    """One track as Envoy counted it, since Envoy started."""

    active: _Count
    """Requests that its engines are answering now, and those that wait for one of them."""
    requests: _Count
    """Requests that were sent its way."""
    failed: _Count
    """Those that it failed, also where stable answered in its place or the stream broke off."""


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class RouterReport:
    """One router pod, now."""

    version: _Text | None
    """Version of the traffic that Envoy routes by; None before it has any."""
    tracks: Mapping[str, TrackReport] = field(default_factory=dict)
    """By the track's name, a revision's hash."""
    waiting: _Count = 0
    """Requests that wait in this pod until an engine has room, of all tracks."""
    idle_seconds: _Count = 0
    """How long no request has been in this pod."""
    problem: _Text = ""
    """Why the newest traffic is not in force; empty when it is."""


_ADAPTER = TypeAdapter(RouterReport)


def format_report(report: RouterReport) -> str:
    """The report as JSON."""
    return _ADAPTER.dump_json(report).decode()


def parse_report(text: str | bytes) -> RouterReport | None:
    """Read what :func:`format_report` wrote; None for anything else."""
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError:
        return None
