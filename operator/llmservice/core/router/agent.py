"""What the agent in a router's pod works out: the traffic to bring about, and what Envoy counted.

The operator orders weights and knows no addresses; EndpointSlices say where engines are and know
no weights. An order that is damaged, or would lead requests to nobody, is not followed; where
engines are is followed always, in the last good order too.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmservice.core.router.desired import (
    Endpoint,
    RefusedTraffic,
    Traffic,
    format_traffic,
    handed_limit,
    refuse_shift,
    waiting_limit,
)
from llmservice.core.router.report import TrackReport

_DIGEST_LENGTH = 10
_NOTICEABLE = 0.1

_REQUESTS = ("upstream_rq_completed",)
_ACTIVE = ("upstream_rq_active", "upstream_rq_pending_active")
"""The second waits for a connection to an engine and is about to be its work."""
_FAILURES = (
    "upstream_rq_5xx",
    "retry.upstream_rq_completed",
    "upstream_rq_pending_failure_eject",
    "upstream_cx_destroy_remote_with_active_rq",
)
"""What goes wrong in four ways, each counted once and where it happened, whoever answered in the
end: an error that the client saw, an answer that was tried again (503), no connection, and an
engine that hung up in the middle of a request, before its first byte or after. A client that hangs
up counts nowhere. Only a request that no engine connects to is counted more than once: with every
attempt, and with the 503 that the client gets."""

_GATE, _WAITING, _HANDED = "gate", "upstream_rq_pending_active", "upstream_cx_active"
_BEGUN, _RUNNING = "upstream_rq_total", "upstream_rq_active"
_AT_A_GATE = {
    _WAITING: ("upstream_rq_pending_active",),
    "upstream_rq_pending_overflow": ("upstream_rq_completed", "upstream_rq_5xx"),
}
"""As what a gate's counters count: who waits there is the track's work already, and who is turned
away because too many wait is one that it failed, as where there is no gate."""

COUNTERS = r"^cluster\.(?:(?:share|track)-[^.]+\.(?:{})|{}-[^.]+\.(?:{}))$".format(
    "|".join(re.escape(name) for name in (*_REQUESTS, *_ACTIVE, *_FAILURES)),
    _GATE,
    "|".join(_AT_A_GATE),
)
"""Regular expression of the counters that :func:`count_tracks` needs, by full name."""
_TRACK = "track"
GATES = (
    rf"^cluster\.(?:{_GATE}-[^.]+\.(?:{_WAITING}|{_HANDED}|{_BEGUN}|{_RUNNING})"
    rf"|{_TRACK}-[^.]+\.(?:{'|'.join(_ACTIVE)}))$"
)
"""The same for :func:`read_gates`."""

Endpoints = Mapping[str, tuple[Endpoint, ...]]
"""Engines by the track's name."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to bring Envoy to, and why it is not what was ordered last."""

    order: Traffic | None
    """The order that is followed, as the operator wrote it; None if there never was a good one."""
    problem: str = ""


def choose_target(
    ordered: Traffic | RefusedTraffic | None, before: Traffic | None, endpoints: Endpoints
) -> Target:
    """The new order if it can be followed, else the one before.

    Args:
        ordered: what the ConfigMap says; None if there is none.
        before: the order that Envoy took last; None when it has none yet. Then any will do, also
            one that nobody can serve yet: an Envoy that answers 503 while engines load is better
            than none.
        endpoints: where engines are.
    """
    if ordered is None:
        return Target(before, "nobody says which traffic is wanted: there is no ConfigMap")
    if isinstance(ordered, RefusedTraffic):
        return Target(before, ordered.message)
    if before is not None:
        refused = refuse_shift(before, join_endpoints(ordered, endpoints))
        if refused is not None:
            return Target(before, f"version {ordered.version}: {refused.message}")
    return Target(ordered)


def join_endpoints(order: Traffic, endpoints: Endpoints) -> Traffic:
    """The order with its engines, and a version that names both."""
    tracks = tuple(
        replace(track, endpoints=endpoints.get(track.name, ())) for track in order.tracks
    )
    joined = replace(order, tracks=tracks)
    digest = hashlib.sha256(format_traffic(joined).encode()).hexdigest()[:_DIGEST_LENGTH]
    return replace(joined, version=f"{order.version}.{digest}")


def version_of_order(version: str | None) -> str | None:
    """The order's part of a version that :func:`join_endpoints` made."""
    return None if version is None else version.rpartition(".")[0]


def count_tracks(stats: Mapping[str, int]) -> dict[str, TrackReport]:
    """What each track did, by its name.

    A canary's requests are counted in its share's cluster, and in the track's own once it is
    stable or when a client chose it; so both are added. The first one goes when the canary becomes
    stable, and what it counted too: numbers may fall then, as they do when Envoy restarts.

    Args:
        stats: Envoy's counters that match :data:`COUNTERS`.
    """
    tracks: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, value in stats.items():
        if re.match(COUNTERS, name):
            _, cluster, counter = name.split(".", 2)
            kind, _, track = cluster.partition("-")
            for meant in _AT_A_GATE[counter] if kind == _GATE else (counter,):
                tracks[track][meant] += value
    return {name: _report(counters) for name, counters in sorted(tracks.items())}


@dataclass(frozen=True, slots=True)
class Gate:
    """The queue of a track, now."""

    waiting: int
    handed: int
    """Requests that have passed it and are not answered yet."""
    ended: int = 0
    """Requests that have passed it since Envoy started, and are over."""
    bypassing: int = 0
    """Requests that the track's engines have less those that passed it: so many bypassed it; or
    below zero, another track's engines have them."""


def read_gates(stats: Mapping[str, int]) -> dict[str, Gate]:
    """The gates by their tracks' names; none where engines are handed whatever comes.

    Args:
        stats: Envoy's counters that match :data:`GATES`.
    """
    kinds = (name.split(".")[1].partition("-") for name in stats)
    tracks = {track for kind, _, track in kinds if kind == _GATE}
    return {track: _gate(stats, track) for track in sorted(tracks)}


def _gate(stats: Mapping[str, int], track: str) -> Gate:
    waiting, handed, begun, running = (
        stats.get(f"cluster.{_GATE}-{track}.{counter}", 0)
        for counter in (_WAITING, _HANDED, _BEGUN, _RUNNING)
    )
    at_engines = sum(stats.get(f"cluster.{_TRACK}-{track}.{counter}", 0) for counter in _ACTIVE)
    return Gate(waiting, handed, begun - running, at_engines - running)


def stuck_gates(gates: Mapping[str, Gate], traffic: Traffic) -> dict[str, int]:
    """Where requests wait though more may be handed on: how many more, by the track's name.

    Envoy looks at a limit when a request comes or ends, and not when the limit rises. A queue to
    which nobody is let in is left out: what comes to make Envoy look would be a failure.
    """
    stuck = {}
    for track in traffic.tracks:
        gate, limit = gates.get(track.name, Gate(0, 0)), handed_limit(traffic, track)
        more = gate.waiting if limit is None else min(gate.waiting, limit - gate.handed)
        most = waiting_limit(traffic, track)
        if more > 0 and (most is None or gate.waiting < most):
            stuck[track.name] = more
    return stuck


def has_moved(before: Traffic, after: Traffic) -> bool:
    """Whether what the agent finds out by itself differs so much that it is worth telling Envoy.

    Both are of the same order.
    """
    pairs = zip(before.tracks, after.tracks, strict=True)
    return before.bypass != after.bypass or any(
        old.bypassing != new.bypassing or _differ(old.waiting, new.waiting) for old, new in pairs
    )


def _differ(one: int | None, other: int | None) -> bool:
    if one is None or other is None:
        return one is not other
    return abs(one - other) > _NOTICEABLE * one


def _report(counters: Mapping[str, int]) -> TrackReport:
    requests, active, failed = (
        sum(counters[name] for name in names) for names in (_REQUESTS, _ACTIVE, _FAILURES)
    )
    return TrackReport(active, requests, failed)
