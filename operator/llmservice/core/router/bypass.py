"""Whether requests bypass a gate, which is not free: while engines have room for all that come.

Nothing bounds a bypass but whoever looks at what engines have, a few times a second. So it begins
only while they have room for many times more, and ends long before they are full. Those that are on
their way around the gate then are taken off its limit until they end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil

from llmservice.core.router.agent import Gate
from llmservice.core.router.desired import Track, Traffic, full_limit

CALM_SECONDS = 10.0
"""For how long there must have been room before a bypass begins."""
LEAST_LIMIT = 32
"""Where fewer fill all engines, there is none: they can come between two looks."""
_CALM, _CROWDED = 1 / 4, 1 / 2
"""Parts of what engines are handed at most."""
_STEPS = 16
"""A limit moves in steps of this part: each is a change of files, and counters of Envoy are not
read in the same moment."""


@dataclass(frozen=True, slots=True)
class Bypass:
    """What the last look at a service's gates tells."""

    on: bool = False
    under_way: Mapping[str, int] = field(default_factory=dict)
    """By the track's name: requests that bypassed its gate and have not ended, in steps."""
    calm_since: float | None = None

    @property
    def is_moving(self) -> bool:
        """Whether the next look should come soon."""
        return self.on or any(self.under_way.values())


def look_around(before: Bypass, gates: Mapping[str, Gate], traffic: Traffic, now: float) -> Bypass:
    """What is to be done after one more look.

    Args:
        before: after the look before.
        gates: as Envoy counts them now.
        traffic: what Envoy is to follow.
        now: seconds of a clock that only rises.
    """
    under_way = {track.name: _under_way(traffic, track, gates) for track in traffic.tracks}
    if not _may_bypass(traffic) or _filled(traffic, gates) > (_CROWDED if before.on else _CALM):
        return Bypass(under_way=under_way)
    since = now if before.calm_since is None else before.calm_since
    return Bypass(before.on or now - since >= CALM_SECONDS, under_way, since)


def with_bypass(traffic: Traffic, bypass: Bypass) -> Traffic:
    """The traffic with its gate bypassed or not; its version stays what it was."""
    is_on = bypass.on and _may_bypass(traffic)
    under_way = {} if is_on else bypass.under_way
    tracks = tuple(
        replace(track, bypassing=under_way.get(track.name, 0)) for track in traffic.tracks
    )
    return replace(traffic, tracks=tracks, bypass=is_on)


def _under_way(traffic: Traffic, track: Track, gates: Mapping[str, Gate]) -> int:
    limit = full_limit(traffic, track)
    if limit is None or limit < LEAST_LIMIT or track.name not in gates:
        return 0
    # What stable answers for a canary passed a gate, too.
    found = min(gates[track.name].bypassing, sum(gate.bypassing for gate in gates.values()))
    step = limit // _STEPS
    return min(limit, step * ceil(found / step)) if found > step else 0


def _filled(traffic: Traffic, gates: Mapping[str, Gate]) -> float:
    """What engines have and are about to get, as a part of what they may have."""
    (track,) = traffic.tracks
    gate, limit = gates.get(track.name), full_limit(traffic, track)
    if gate is None:  # Envoy has not taken it yet
        return 1.0
    return (gate.waiting + gate.handed + gate.bypassing) / limit if limit is not None else 0.0


def _may_bypass(traffic: Traffic) -> bool:
    if not (traffic.can_bypass and traffic.is_serving):
        return False
    limit = full_limit(traffic, traffic.tracks[0])
    return limit is None or limit >= LEAST_LIMIT
