"""How many may wait at a gate, so that a newcomer does not wait for much longer than is said.

Envoy bounds how many wait, and cannot tell who waits from who is in a silent prefill. But behind N
others one waits for as long as N requests take to end (Little's law), and how fast they end can be
seen. So whoever would wait too long is refused at the entrance, and whoever waits already stays.

A pace is only seen where requests wait: before, it is that of the clients and not of the engines.
Without enough evidence there is no bound from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from llmservice.core.router.agent import Gate
from llmservice.core.router.desired import Track, Traffic, answering_track, handed_limit

LEAST_SECONDS = 30.0
"""What is seen for a shorter time is no pace."""
_LEAST_ENDED = 10
_GAP_SECONDS = 10.0
"""A queue that was seen empty for longer begins anew; a short one may be so for a moment."""
_KEPT = 600
"""Looks. Of more, every second one goes: where it takes so long until all have had their turn, a
second more or less is no matter."""
_UNSTEADY = 10
"""Two counters of Envoy are not read in the same moment, so their difference may fall a little."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a gate had done when it was looked at."""

    at: float
    """Seconds of a clock that only rises."""
    worked: float
    """Seconds times engines since the first look, so that a pace holds for other numbers, too."""
    ended: int
    """Requests that were handed on and have ended."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What was seen of a gate since requests wait there."""

    looks: tuple[Look, ...] = ()
    handed: int = 0
    waiting: int = 0
    filled: int = 0
    """The most that was handed on at a time, of what may be: less where a limit has just risen."""


Paces = Mapping[str, Pace]
"""By the track's name."""


def look_again(
    before: Paces, gates: Mapping[str, Gate], traffic: Traffic, now: float
) -> dict[str, Pace]:
    """What is known of the gates after one more look.

    Args:
        before: after the look before.
        gates: as Envoy counts them now.
        traffic: what Envoy is to follow.
        now: seconds of a clock that only rises.
    """
    return {
        track.name: _look(
            before.get(track.name, Pace()),
            gates.get(track.name, Gate(0, 0)),
            traffic,
            track,
            now,
        )
        for track in traffic.tracks
    }


def _look(pace: Pace, gate: Gate, traffic: Traffic, track: Track, now: float) -> Pace:
    looks, engines = pace.looks, _engines(traffic, track)
    if looks and (
        now - looks[-1].at > _GAP_SECONDS
        or gate.ended < looks[-1].ended - _UNSTEADY  # another Envoy
        or track.bypassing  # engines do more than what passes the gate
    ):
        looks = ()
    if gate.waiting and engines:
        last = looks[-1] if looks else Look(now, 0.0, gate.ended)
        worked = last.worked + engines * (now - last.at)
        look = Look(now, worked, max(last.ended, gate.ended))
        # Silence moves the last look on. So a pace begins with an answer, and what engines do
        # before their first ones does not make them slow.
        kept = looks[:-1] if look.ended == last.ended else looks
        looks = (*(kept if len(kept) < _KEPT else kept[::2]), look)
    filled, limit = max(pace.filled, gate.handed), handed_limit(traffic, track)
    return Pace(looks, gate.handed, gate.waiting, filled if limit is None else min(filled, limit))


def bound_waiting(traffic: Traffic, paces: Paces) -> Traffic:
    """The traffic with what may wait at each gate; its version stays what it was."""
    tracks = tuple(
        replace(track, waiting=_waiting(traffic, track, paces.get(track.name, Pace())))
        for track in traffic.tracks
    )
    return replace(traffic, tracks=tracks)


def _waiting(traffic: Traffic, track: Track, pace: Pace) -> int | None:
    limit, engines = handed_limit(traffic, track), _engines(traffic, track)
    if limit is None or not engines:
        return None
    per_second = _per_engine_second(pace.looks, limit)
    if per_second is None:
        return None
    waiting = ceil(per_second * engines * traffic.max_wait_seconds)
    if waiting >= traffic.max_waiting:
        return None
    # One for each engine, so that none runs dry. And who is handed on waits for a moment, too: as
    # many as there is room for, and with it for the request that makes Envoy notice new engines.
    waiting = max(waiting, ceil(engines / traffic.routers))
    if limit > pace.filled:
        # Nor does it notice them where more wait than may, since engines were faster before.
        waiting = max(waiting, pace.waiting)
    most = waiting + max(0, limit - pace.handed)
    return most if most < traffic.max_waiting + limit else None


def _per_engine_second(looks: tuple[Look, ...], turnover: int) -> float | None:
    """Requests that an engine ends in a second, by the newest looks that are evidence enough.

    That is once as many ended as run at a time: those that began together end together.
    """
    if not looks:
        return None
    now = looks[-1]
    for then in reversed(looks):
        seconds, ended = now.at - then.at, now.ended - then.ended
        if seconds >= LEAST_SECONDS and ended >= max(turnover, _LEAST_ENDED):
            return ended / (now.worked - then.worked)
    return None


def _engines(traffic: Traffic, track: Track) -> int:
    answering = answering_track(traffic, track)
    return 0 if answering is None else answering.ready
