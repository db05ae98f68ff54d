"""The traffic that is wanted: which track gets which share, and where its engines are.

It travels as JSON, so it is parsed strictly and judged before anything is made from it. Two
judgements differ on purpose: :func:`parse_traffic` refuses what Envoy would refuse or route
wrongly, at any time; :func:`refuse_shift` refuses to *move* a share to where nobody serves. A
track that loses its engines later is a fact, not an order: it must reach Envoy.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from math import ceil
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from llmservice.api.admission import shape_violations
from llmservice.api.rules import Violation

TOTAL_WEIGHT = 10_000
"""Weights are hundredths of a percent. The total never changes: it is the number of buckets that
sessions are hashed into, and another number would deal all of them anew."""

_STRICT = ConfigDict(extra="forbid", strict=True)
_HEADER = r"^[a-z0-9][a-z0-9-]*$"

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
HeaderName = Annotated[str, Field(pattern=_HEADER, max_length=100)]
CookieName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=100)]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=100)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Endpoint:
    """One engine."""

    address: str
    """``IP:port``, an IPv6 address in brackets. Names are refused: Envoy takes only addresses."""
    ready: bool

    @property
    def host(self) -> str:
        """The IP address without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port."""
        return int(self.address.rpartition(":")[2])


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Capacity:
    """What a track is handed at most, over all its engines.

    Envoy answers 503 to the rest, also of a canary: what is too much for it is not moved to stable.
    """

    requests: Count
    """Requests that run: engines times the sequences that each batches."""
    queued: Count
    """Requests that wait in Envoy for one of these to end."""


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Track:
    """One revision as traffic sees it."""

    name: Name
    weight: Annotated[int, Field(ge=0, le=TOTAL_WEIGHT)]
    """Share in hundredths of a percent."""
    capacity: Capacity
    """Without effect where ``per_engine`` says how much is handed on."""
    endpoints: tuple[Endpoint, ...] = ()
    per_engine: Count | None = None
    """Requests that one engine is handed at most, by all routers together; the others wait in the
    routers, where they can still go to any engine. None hands on whatever comes."""
    waiting: Count | None = None
    """Requests that may wait in one router, with those that it is about to hand on, as fast as
    they go now. Each router finds it out by itself (core/router/pace.py); None is as many as
    ``max_waiting`` says."""
    bypassing: Annotated[int, Field(ge=0)] = 0
    """Requests that its engines have, but that bypassed its gate: so many fewer may pass it. Each
    router finds it out by itself (core/router/bypass.py)."""

    @property
    def is_serving(self) -> bool:
        """Whether an engine is ready."""
        return self.ready > 0

    @property
    def ready(self) -> int:
        """How many engines are ready."""
        return sum(endpoint.ready for endpoint in self.endpoints)


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Affinity:
    """What names a session: a request header, or a cookie that the application set."""

    header: HeaderName | None = None
    cookie: CookieName | None = None


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a single request."""

    body_bytes: Annotated[int, Field(ge=1024, le=256 << 20)] = 8 << 20
    """Envoy keeps a request until its answer begins, to be able to try it again; above: 413."""


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Traffic:
    """All that a router of one service is told."""

    version: Version
    """Names this state; Envoy is asked for it to know whether it took effect."""
    stable: Name
    """The track that also answers what another one cannot."""
    tracks: tuple[Track, ...]
    affinity: Affinity | None = None
    track_header: bool = False
    """Whether a client may choose its track by a header. Otherwise the header is dropped."""
    limits: Limits = field(default_factory=Limits)
    routers: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many router pods share this traffic: each hands on its part of what engines take."""
    max_waiting: Count = 1024
    """Requests that may wait in one router for the engines of a track, beside as many as it may
    hand on; the next gets 503."""
    max_wait_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """How long a newcomer may expect to wait; one that would wait for longer gets 503."""

    hold_seconds: Annotated[int, Field(ge=0, le=3600)] = 0
    """How long a request waits for the first engine while none is ready; 0 answers 503 at once."""
    bypass: bool = False
    """Whether requests bypass the gate, as engines have room for all that come. Each router finds
    it out by itself (core/router/bypass.py)."""

    @property
    def is_gated(self) -> bool:
        """Whether requests pass a gate, where they wait: all or none."""
        return self.holds or any(track.per_engine is not None for track in self.tracks)

    @property
    def can_bypass(self) -> bool:
        """Whether the gate has a bypass. During a rollout all tracks are reached the same way."""
        return self.is_gated and len(self.tracks) == 1

    @property
    def holds(self) -> bool:
        """Whether requests wait for the first engine."""
        return self.hold_seconds > 0

    @property
    def is_serving(self) -> bool:
        """Whether any engine is ready."""
        return any(track.is_serving for track in self.tracks)

    def track(self, name: str) -> Track | None:
        """The track of this name."""
        return next((track for track in self.tracks if track.name == name), None)


@dataclass(frozen=True, slots=True)
class RefusedTraffic:
    """All that is wrong with a wanted traffic."""

    violations: tuple[Violation, ...]

    @property
    def message(self) -> str:
        """Every violation in one line."""
        return "; ".join(str(violation) for violation in self.violations)


_ADAPTER = TypeAdapter(Traffic)


def parse_traffic(text: str | bytes) -> Traffic | RefusedTraffic:
    """Read what :func:`format_traffic` wrote; anything else is refused with all its reasons."""
    try:
        traffic = _ADAPTER.validate_json(text)
    except ValidationError as error:
        return RefusedTraffic(tuple(shape_violations(error, "traffic")))
    return check_traffic(traffic)


def format_traffic(traffic: Traffic) -> str:
    """The traffic as JSON; equal traffic gives equal text.

    What is as it is by default is left out: a router of an older release refuses names that it
    does not know, and may understand all else.
    """
    return _ADAPTER.dump_json(traffic, exclude_defaults=True).decode()


def answering_track(traffic: Traffic, track: Track) -> Track | None:
    """Whose engines answer the requests of a track: itself, or stable. None while nobody does."""
    answering = track if track.is_serving else traffic.track(traffic.stable)
    return answering if answering is not None and answering.is_serving else None


def handed_limit(traffic: Traffic, track: Track) -> int | None:
    """Requests of a track that may be handed on by its gate at a time; None is no limit."""
    limit = full_limit(traffic, track)
    return None if limit is None else max(1, limit - track.bypassing)


def full_limit(traffic: Traffic, track: Track) -> int | None:
    """Requests of a track that one router hands on at most; None is no limit.

    Those of a track without a ready engine are stable's to answer. With no engine at all it is
    one, who asks for all that wait behind it; or whoever comes, to be told that there is none.
    """
    if not traffic.is_serving:
        return 1 if traffic.holds else None
    answering = answering_track(traffic, track)
    if answering is None or answering.per_engine is None:
        return None
    return ceil(answering.ready * answering.per_engine / traffic.routers)


def waiting_limit(traffic: Traffic, track: Track) -> int | None:
    """Requests that may wait at the gate of a track; None where :func:`handed_limit` is none.

    Who is handed on waits for a moment, too. And where a full queue has to notice that the limit
    rose, there is room for the request that makes it look.
    """
    limit = handed_limit(traffic, track)
    if limit is None:
        return None
    return traffic.max_waiting + limit if track.waiting is None else track.waiting


def check_traffic(traffic: Traffic) -> Traffic | RefusedTraffic:
    """The traffic itself, if Envoy would carry it out as meant."""
    violations = tuple(_violations(traffic))
    return RefusedTraffic(violations) if violations else traffic


def refuse_shift(before: Traffic, after: Traffic) -> RefusedTraffic | None:
    """Refuse to raise a weight on a track that has no ready engine."""
    violations = []
    for index, track in enumerate(after.tracks):
        old = before.track(track.name)
        if track.weight > (old.weight if old else 0) and not track.is_serving:
            message = f"{track.name} has no ready engine, so its weight cannot rise"
            violations.append(Violation(f"traffic.tracks[{index}].weight", message))
    return RefusedTraffic(tuple(violations)) if violations else None


def _violations(traffic: Traffic) -> Iterator[Violation]:
    yield from _check_weights(traffic)
    for name, times in Counter(track.name for track in traffic.tracks).items():
        if times > 1:
            yield Violation("traffic.tracks", f"{name} is listed {times} times")
    if traffic.track(traffic.stable) is None:
        yield Violation("traffic.stable", f"no track is named {traffic.stable}")
    if traffic.affinity is not None:
        given = (traffic.affinity.header, traffic.affinity.cookie)
        if given.count(None) != 1:
            yield Violation("traffic.affinity", "give either header or cookie")
    for index, track in enumerate(traffic.tracks):
        yield from _check_endpoints(f"traffic.tracks[{index}].endpoints", track)


def _check_weights(traffic: Traffic) -> Iterator[Violation]:
    total = sum(track.weight for track in traffic.tracks)
    shares = [track.name for track in traffic.tracks if track.weight]
    if total == 0:
        # Envoy keeps its old routes when it is told this, so nobody would notice.
        yield Violation("traffic.tracks", "all weights are zero, so no request could go anywhere")
    elif total != TOTAL_WEIGHT:
        yield Violation("traffic.tracks", f"weights add up to {total}, not {TOTAL_WEIGHT}")
    if len(shares) > 2 or (len(shares) == 2 and traffic.stable not in shares):  # noqa: PLR2004
        # With a third one, raising a share would move sessions between the other two.
        message = f"only {traffic.stable} and one other track may have a weight, not {shares}"
        yield Violation("traffic.tracks", message)


def _check_endpoints(path: str, track: Track) -> Iterator[Violation]:
    for endpoint in track.endpoints:
        if not _is_address(endpoint):
            message = f"{endpoint.address!r} is not IP:port (an IPv6 address in brackets)"
            yield Violation(path, message)
    for address, times in Counter(endpoint.address for endpoint in track.endpoints).items():
        if times > 1:
            yield Violation(path, f"{address} is listed {times} times")


def _is_address(endpoint: Endpoint) -> bool:
    host, colon, port = endpoint.address.rpartition(":")
    if "%" in host:  # a scope means something on one machine only
        return False
    if not colon or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16):
        return False
    try:
        address = ip_address(endpoint.host)
    except ValueError:
        return False
    return host == (f"[{address}]" if address.version == 6 else str(address))  # noqa: PLR2004
