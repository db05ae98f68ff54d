"""How many replicas a service may have where several share a budget of devices.

All replicas that anybody could have stand in one line, and get devices while there are any::

    minimums of services that have them   even if the budget was lowered: they are never taken
    other minimums                        higher priority first, then by name
    what is wanted above                  higher priority first; of equals, who has fewest devices
    room to grow                          shared alike, so that most scaling needs no decision

A replica that does not fit into one of its budgets is left out, as are the later ones of its
service. The line depends on wishes and sizes, not on bounds: it is where everybody is going.

How they get there: a bound falls at once to its place in the line, and rises only by devices that
nobody holds. Held is what a service was granted or has pods for, those included that stop or that
a rollout adds. So the sum stays within the budget while devices change hands, and a rollout's
extra pods hold up others, but take nothing from them. While nobody waits, no bound changes.

Nothing but specs and statuses is looked at, so every worker and every new leader finds the same.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from heapq import merge
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from llmservice.api.types import ApiObject, LabelValue, Namespace, QualifiedName, keyed_by
from llmservice.api.v1alpha1 import LLMServiceSpec, Parallelism, parse_spec

_FIELD = "gpuBudgets"
"""What the platform team writes them under."""
_NAMED = 3
"""Services that a message names."""


class Budget(ApiObject):
    """Devices that some services share."""

    name: Namespace
    """A DNS label, for people."""
    namespaces: tuple[Namespace, ...] = ()
    """Those of the services; empty for all."""
    labels: dict[QualifiedName, LabelValue] = Field(default_factory=dict)
    """That the LLMServices bear, every one; empty for any."""
    resource: QualifiedName = "nvidia.com/gpu"
    """As in ``spec.accelerator.resource``."""
    devices: Annotated[int, Field(ge=0, le=1_000_000)]
    """At most so many."""

    def covers(self, claim: "Claim") -> bool:
        """Whether a service takes its devices from here."""
        return (
            claim.resource == self.resource
            and (not self.namespaces or claim.namespace in self.namespaces)
            and self.labels.items() <= claim.labels.items()
        )


_BUDGETS: TypeAdapter[tuple[Budget, ...]] = TypeAdapter(
    Annotated[tuple[Budget, ...], keyed_by("name")]
)


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """The budgets in a JSON list.

    Raises:
        ValueError: it is none; the message names the first field that is wrong.
    """
    try:
        return _BUDGETS.validate_json(
            text, strict=True, extra="forbid", by_alias=True, by_name=False
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
        raise ValueError(f"{_FIELD}{where}: {first['msg']}") from error


@dataclass(frozen=True, slots=True)
class Claim:
    """What a service has of a resource, and what it would like. A fixed one likes what it has."""

    service: str
    """Namespace and name."""
    labels: Mapping[str, str]
    resource: str
    devices: int
    """Of one replica."""
    replicas: int
    """Its size, without what a rollout adds."""
    pods: int
    """That hold devices, or are asked for; those included that stop."""
    least: int
    most: int
    wanted: int
    """By its autoscaler; more than ``replicas`` while a bound keeps it from going on."""
    granted: int
    """The bound that it was given last."""
    priority: int = 0

    @property
    def namespace(self) -> str:
        """Of the service."""
        return self.service.partition("/")[0]

    @property
    def need(self) -> int:
        """Replicas that it would like to have now."""
        return min(max(self.least, self.wanted), self.most)

    @property
    def has(self) -> int:
        """Replicas that it has, or may have whenever it likes."""
        return max(self.granted, self.replicas)

    @property
    def held(self) -> int:
        """Devices that nobody else can have now."""
        return self.devices * max(self.has, self.pods)


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a service may grow now."""

    replicas: int
    """At most; less than its minimum, even 0, if that does not fit."""
    message: str = ""
    """What it waits for, and who holds it; empty while it has what it needs."""


def claim_of(
    service: str, labels: Mapping[str, str], spec: Mapping[str, Any], status: Mapping[str, Any]
) -> Claim | None:
    """The claim of a service; None for a spec that nobody can read.

    Each pod counts as one of the newest spec, also while older ones with other devices run.

    Args:
        service: namespace and name.
        labels: of the LLMService.
        spec: as the API server holds it.
        status: as it was written last.
    """
    try:
        wish = parse_spec(dict(spec))
    except ValidationError:
        return None
    there = _number(status, "replicas", 0)
    asked = sum(_number(each, "replicas", 0) for each in status.get("revisions") or ())
    pods = max(there + _number(status, "terminatingReplicas", 0), asked)
    devices = _devices(wish, status)
    resource, scaling = wish.accelerator.resource, wish.autoscaling
    if scaling is None:
        size = wish.replicas
        return Claim(service, labels, resource, devices, size, pods, size, size, size, size)
    told = status.get("autoscaling") or {}
    size = _number(told, "replicas", there)
    return Claim(
        service,
        labels,
        resource,
        devices,
        replicas=size,
        pods=pods,
        least=scaling.min_replicas,
        most=scaling.max_replicas,
        # One that was never sized begins with a replica, also if it may sleep later.
        wanted=_number(told, "wantedReplicas", size if told else max(1, size)),
        granted=_number(told, "maxReplicas", size),
        priority=scaling.priority,
    )


def bounds_within(claim: Claim, others: Iterable[Claim], budgets: Sequence[Budget]) -> Bound:
    """How many replicas a service may have now.

    Args:
        claim: of the service.
        others: of all other services.
        budgets: all that there are.
    """
    mine = [budget for budget in budgets if budget.covers(claim)]
    if not mine:
        return Bound(claim.most)
    claims = (claim, *others)
    if all(_is_settled(budget, claims) for budget in mine):
        return Bound(min(claim.has, claim.most))
    sharers = _sharers(claims, budgets)
    shares = _shares(sharers, budgets)
    replicas = _reachable(sharers, budgets, shares)[claim.service]
    return Bound(replicas, _message(claim, replicas, mine, sharers, shares))


def share_a_budget(one: Claim, other: Claim, budgets: Iterable[Budget]) -> bool:
    """Whether a change of one claim may change the bound of the other, directly."""
    return any(budget.covers(one) and budget.covers(other) for budget in budgets)


# --- reading a service --------------------------------------------------------------------------


def _devices(spec: LLMServiceSpec, status: Mapping[str, Any]) -> int:
    """Of one replica; what the user leaves open was chosen by the memory plan."""
    ranks = spec.engine.parallelism or Parallelism()
    tensor = ranks.tensor or _number(status.get("plan") or {}, "tensor", 1)
    return spec.accelerator.count or tensor * ranks.pipeline * ranks.data


def _number(of: Mapping[str, Any], name: str, default: int) -> int:
    value = of.get(name)
    return value if isinstance(value, int) else default


# --- the line -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sharer:
    claim: Claim
    budgets: tuple[str, ...]
    """Names of those that it takes devices from."""


class _Stage(IntEnum):
    Kept = 0
    Least = 1
    Wanted = 2
    Spare = 3


class _Turn(NamedTuple):
    """A replica's place in the line; the lesser comes first."""

    stage: _Stage
    rank: int
    """Less for a higher priority."""
    level: int
    """Devices of the service up to this one, of those that this stage is about."""
    new: bool
    """Of two that are level, the service that has it keeps it."""
    service: str
    number: int
    """From 1."""


def _sharers(claims: Iterable[Claim], budgets: Sequence[Budget]) -> dict[str, _Sharer]:
    """By service; without those that no budget covers."""
    found = {}
    for claim in claims:
        names = tuple(budget.name for budget in budgets if budget.covers(claim))
        if names:
            found[claim.service] = _Sharer(claim, names)
    return found


def _turns(claim: Claim, full: set[str]) -> Iterator[_Turn]:
    """The replicas of a service, in order, until it is told to be full."""
    need, rank = claim.need, -claim.priority
    for number in range(1, claim.most + 1):
        if claim.service in full:
            return
        new, level = number > claim.replicas, number * claim.devices
        if number <= claim.least:
            stage = _Stage.Least if new else _Stage.Kept
            yield _Turn(stage, rank, 0, new, claim.service, number)
        elif number <= need:
            yield _Turn(_Stage.Wanted, rank, level, new, claim.service, number)
        else:
            spare = level - need * claim.devices
            yield _Turn(_Stage.Spare, 0, spare, True, claim.service, number)


def _line(sharers: Mapping[str, _Sharer], full: set[str]) -> Iterator[_Turn]:
    return merge(*(_turns(sharer.claim, full) for sharer in sharers.values()))


def _take(rooms: dict[str, int], sharer: _Sharer, *, anyway: bool = False) -> bool:
    """Give a replica its devices, if all of its budgets have them."""
    devices = sharer.claim.devices
    if not anyway and any(rooms[name] < devices for name in sharer.budgets):
        return False
    for name in sharer.budgets:
        rooms[name] -= devices
    return True


def _shares(sharers: Mapping[str, _Sharer], budgets: Iterable[Budget]) -> dict[str, int]:
    """Replicas by service, once all devices have changed hands."""
    rooms = {budget.name: budget.devices for budget in budgets}
    shares, full = dict.fromkeys(sharers, 0), set[str]()
    for turn in _line(sharers, full):
        if _take(rooms, sharers[turn.service], anyway=turn.stage is _Stage.Kept):
            shares[turn.service] = turn.number
        else:
            full.add(turn.service)
    return shares


def _reachable(
    sharers: Mapping[str, _Sharer], budgets: Iterable[Budget], shares: Mapping[str, int]
) -> dict[str, int]:
    """Replicas by service that can be had of the shares while others hold what they hold."""
    rooms = {
        budget.name: budget.devices
        - sum(each.claim.held for each in sharers.values() if budget.name in each.budgets)
        for budget in budgets
    }
    bounds = {name: min(shares[name], each.claim.has) for name, each in sharers.items()}
    full = {name for name, share in shares.items() if share <= bounds[name]}
    for turn in _line(sharers, full):
        if turn.number <= bounds[turn.service]:
            continue
        if turn.number <= shares[turn.service] and _take(rooms, sharers[turn.service]):
            bounds[turn.service] = turn.number
        else:
            full.add(turn.service)
    return bounds


def _is_settled(budget: Budget, claims: Iterable[Claim]) -> bool:
    """Whether nobody waits, and nobody has too much."""
    covered = [claim for claim in claims if budget.covers(claim)]
    return (
        all(claim.need <= claim.has for claim in covered)
        and sum(claim.devices * claim.has for claim in covered) <= budget.devices
    )


# --- words --------------------------------------------------------------------------------------


def _message(
    claim: Claim,
    replicas: int,
    mine: Sequence[Budget],
    sharers: Mapping[str, _Sharer],
    shares: Mapping[str, int],
) -> str:
    missing = (claim.need - replicas) * claim.devices
    if missing <= 0:
        return ""
    own = claim.devices * max(replicas, claim.replicas, claim.pods)
    others = {
        budget.name: [
            each.claim
            for name, each in sharers.items()
            if budget.name in each.budgets and name != claim.service
        ]
        for budget in mine
    }
    rooms = {b.name: b.devices - own - sum(c.held for c in others[b.name]) for b in mine}
    used_up = [budget for budget in mine if rooms[budget.name] < claim.devices]
    why = "; ".join(_used_up(b, others[b.name], shares) for b in used_up or mine)
    message = f"waits for {missing} {claim.resource} of {why}"
    if replicas < claim.least:
        return f"minReplicas {claim.least} does not fit: {message}"
    return message


def _used_up(budget: Budget, others: Sequence[Claim], shares: Mapping[str, int]) -> str:
    """Who has how many, the greatest first; while nobody has any, who is about to."""
    verb, devices_of = "holds", {claim.service: claim.held for claim in others}
    if not any(devices_of.values()):
        verb, devices_of = "gets", {c.service: c.devices * shares[c.service] for c in others}
    most = sorted((-devices, service) for service, devices in devices_of.items() if devices)
    named = [f"{service} {-devices}" for devices, service in most[:_NAMED]]
    if named:
        named[0] = named[0].replace(" ", f" {verb} ")
    if len(most) > _NAMED:
        named.append(f"{len(most) - _NAMED} others {-sum(devices for devices, _ in most[_NAMED:])}")
    holders = ", ".join(named) or "others hold none"
    return f"budget {budget.name}: {holders}, of {budget.devices}"
