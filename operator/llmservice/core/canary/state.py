"""A canary rollout as it is kept in the status: frozen, small, and complete.

Everything that a new leader needs to go on is here; nothing else is remembered anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic.alias_generators import to_camel

from llmservice.api.v1alpha1 import Router
from llmservice.core.judge.judge import Verdict
from llmservice.core.judge.state import JudgeState

FULL = 100
"""Percent of the traffic when the canary has all of it."""
MAX_REJECTED = 10
MAX_STATE = 65_536
"""Characters of the whole rollout, as the CRD lets them be."""
MAX_MESSAGE = 1024
"""Characters of one sentence in the status."""


class Phase(StrEnum):
    """Where a rollout is."""

    Stable = "Stable"  # one revision serves, and it is the newest
    Preflight = "Preflight"  # a new revision waits until nothing stands in its way
    Provisioning = "Provisioning"  # its pods for the next weight load the model
    Warming = "Warming"  # they answer a few requests of our own
    Gating = "Gating"  # others have to agree: a program of the user's, a benchmark
    Shifting = "Shifting"  # the routers take the weight
    Settling = "Settling"  # what happens now is not judged yet
    Judging = "Judging"  # evidence is gathered at this weight
    Paused = "Paused"  # a person has to say how to go on
    Baking = "Baking"  # the canary has all traffic, the old pods still stand by
    Promoting = "Promoting"  # the canary becomes stable
    Draining = "Draining"  # what a revision still answers comes to its end
    Aborting = "Aborting"  # the traffic goes back
    Superseding = "Superseding"  # the traffic goes back, as there is a newer revision
    Aborted = "Aborted"  # the newest revision was turned down, the old one serves


UNDER_WAY = frozenset(
    {
        *(Phase.Preflight, Phase.Provisioning, Phase.Warming, Phase.Gating, Phase.Shifting),
        *(Phase.Settling, Phase.Judging, Phase.Paused, Phase.Baking),
    }
)
"""A canary may still become stable."""
AT_REST = frozenset({Phase.Stable, Phase.Aborted})
MOVING = frozenset(
    {Phase.Preflight, Phase.Shifting, Phase.Promoting, Phase.Aborting, Phase.Superseding}
)
"""The next step depends on what the routers have taken."""


class Hold(StrEnum):
    """Why a rollout waits where it is, though nothing is wrong with its canary."""

    Inconclusive = "Inconclusive"  # not enough evidence yet, either way
    MetricsUnavailable = "MetricsUnavailable"  # engines do not tell what they did
    NoTraffic = "NoTraffic"  # nobody asks the canary
    CapacityWait = "CapacityWait"  # no device is free for the canary's pods
    RouterNotReady = "RouterNotReady"  # a router is missing, or does not take the weights
    StableNotReady = "StableNotReady"  # traffic cannot go to where nobody serves
    GateWait = "GateWait"  # a gate has not made up its mind
    RolloutQueue = "RolloutQueue"  # other services' rollouts come first


class Outcome(StrEnum):
    """What a rollout that drains has come to."""

    Promoted = "Promoted"
    Aborted = "Aborted"
    Reverted = "Reverted"
    Superseded = "Superseded"


Capacity = Literal["Surge", "Replace"]
_STRICT = ConfigDict(
    extra="ignore",
    alias_generator=to_camel,
    allow_inf_nan=False,
    ser_json_bytes="base64",
    val_json_bytes="base64",
)


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Rejected:
    """A revision that was turned down; it is not tried again unless a person asks."""

    hash: str
    reason: str
    message: str
    time: datetime


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one guardrail said in the last look, for people."""

    check: str
    verdict: str
    message: str


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Rollout:
    """Where a canary rollout is."""

    phase: Phase
    stable: str
    """Revision that serves, and that takes the traffic back."""
    since: datetime
    """Since when it is in this phase."""
    began: datetime | None = None
    """Since when the canary is on trial, or waits to be."""
    canary: str | None = None
    """Revision on trial."""
    leaving: str | None = None
    """Revision whose pods go once they have answered what they were asked."""
    weight: int = 0
    """Percent of the traffic that the canary is to get now."""
    to: int = 0
    """The weight that comes next."""
    pods_for: int = 0
    """The weight that the canary has its pods for."""
    capacity: Capacity = "Surge"
    devices: int = 0
    """Accelerators that it holds at most, beside those of the replicas that were asked for."""
    reason: str = ""
    """Of the last transition."""
    message: str = ""
    hold: Hold | None = None
    hold_message: str = ""
    outcome: Outcome | None = None
    """What the rollout that is ending has come to."""
    step_since: datetime | None = None
    """Since when the canary is judged at this weight; time without its pods does not count."""
    served: Mapping[str, int] = field(default_factory=dict)
    """Restarts of the canary's pods when they were first seen ready, by a hash of their uid: what
    happened while they loaded is not held against them."""
    lost_at: datetime | None = None
    """Since when its pods are missed that somebody took away."""
    looked_at: datetime | None = None
    """End of the last window that was counted."""
    idle_since: datetime | None = None
    """Since when the leaving pods answer nothing, as far as is known."""
    judge: JudgeState = field(default_factory=JudgeState)
    verdict: Verdict | None = None
    """What the evidence of this step says."""
    checks: tuple[CheckResult, ...] = ()
    gates: tuple[CheckResult, ...] = ()
    """Gates that have agreed (`promote`), and what the open one says; each by its bare name."""
    ungated: bool = False
    """No gate is asked: a person said so, or nobody was served."""
    handled_action: str | None = None
    """The last word of a person that was acted upon."""
    rejected: tuple[Rejected, ...] = ()
    routed: bool = False
    """Clients come in by the routers; until these are there, they go to the engines directly."""
    router: Router = "Embedded"
    """What divides its requests."""
    spec: bytes | None = None
    """The newest spec that was accepted, packed: what a canary goes by while a newer one is
    refused. None at rest, and for one that is too large to be kept."""

    @property
    def is_loaded(self) -> bool:
        """Whether the canary is given traffic."""
        return self.canary is not None and self.weight > 0

    def rejection(self, revision: str) -> Rejected | None:
        """Why a revision was turned down, if it was."""
        return next((each for each in self.rejected if each.hash == revision), None)


_ADAPTER = TypeAdapter(Rollout)


def dump_rollout(rollout: Rollout) -> str:
    """The rollout as JSON text; :func:`load_rollout` gives back exactly the same one.

    Text, because server-side apply merges an object field by field: a map that lost its last entry
    comes back as null, and what was read would be no rollout any more.
    """
    return _ADAPTER.dump_json(rollout, by_alias=True, exclude_none=True).decode()


def load_rollout(value: object) -> Rollout | None:
    """The rollout that was dumped, or None for what is none."""
    if not isinstance(value, str):
        return None
    try:
        return _ADAPTER.validate_json(value)
    except ValidationError:
        return None


def read_rollout(status: Mapping[str, Any]) -> Rollout | None:
    """The rollout of a service by its status; None while it has none, or none that is ours."""
    told = status.get("rollout")
    return load_rollout(told.get("state")) if isinstance(told, Mapping) else None


def seconds_since(moment: datetime, now: datetime) -> float:
    """How long ago; below zero for what is to come."""
    return (now - moment) / timedelta(seconds=1)
