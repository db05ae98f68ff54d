"""What the judge remembers between looks: small, frozen, and fit for a status."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field, with_config
from pydantic.alias_generators import to_camel

from llmservice.core.judge.counts import Histogram, Tokens

_Amount = Annotated[float, Field(ge=0)]
_LENIENT = ConfigDict(allow_inf_nan=False, extra="ignore", alias_generator=to_camel)
"""What a newer operator kept besides is no reason to forget the rollout that this belongs to."""


@with_config(_LENIENT)
@dataclass(frozen=True, slots=True)
class Tally:
    """The evidence of one check. Stable's numbers are of windows in which the canary served."""

    threshold: _Amount | None = None
    """Stable's quantile in seconds, frozen once known."""
    slack: _Amount = 1.0
    """Factor of the rates that are tolerated and detected, learnt with the threshold."""
    lookback: Histogram | None = None
    """Times of stable while the threshold is being learnt."""
    log_ratio: float = 0.0
    """Log likelihood ratio, before it is divided by the dispersion."""
    canary_requests: _Amount = 0.0
    canary_bad: _Amount = 0.0
    stable_requests: _Amount = 0.0
    stable_bad: _Amount = 0.0
    stable_windows: Annotated[int, Field(ge=0)] = 0
    stable_squares: _Amount = 0.0
    """Sum over windows of bad requests squared over requests."""


@with_config(_LENIENT)
@dataclass(frozen=True, slots=True)
class JudgeState:
    """All evidence on one canary."""

    canary_requests: _Amount = 0.0
    """Since the canary began."""
    step_requests: _Amount = 0.0
    """Since the step began; each step needs requests of its own, as load may change a verdict."""
    cold_requests: _Amount = 0.0
    """Of these, what was served before the prefix cache was warm. A step may bring new pods."""
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """By the check's label: a guardrail that is edited starts anew, the others go on."""
    canary_tokens: Tokens = field(default_factory=Tokens)
    """Of windows of this step in which both tracks were heard and the canary served."""
    stable_tokens: Tokens = field(default_factory=Tokens)
    """Of the same windows."""
