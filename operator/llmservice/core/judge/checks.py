"""What guardrails become: checks, each of a share of bad requests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmservice.api.guardrails import Guardrail, Metric
from llmservice.core.judge.counts import Counts, Histogram
from llmservice.core.judge.statistics import RatioTest

_DEFAULT_QUANTILE = "p95"
_CLEAR_ODDS = 1.7
"""Odds of a slow request, over those that are tolerated, that must be detected. At the slowest
tenth it is a ratio of shares of 1.6."""
_CLEAR_ERRORS = 8 / 3
"""The same for failed requests, as a ratio: they are rare, and small ratios take for ever."""
_NEGLIGIBLE_ERRORS = 0.01
"""So few failures need no comparison, where the guardrail does not say better."""
_LOOKBACK = 100
"""Requests of stable that make its quantile known, and slow ones among them."""
_LOOKBACK_SLOW = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One limit of one guardrail.

    Against the live stable (``ratio`` is set): the canary's share over ``stretch`` times a
    threshold, compared with stable's share over the threshold, which is stable's own quantile.
    Else: the canary's share over ``seconds`` (or of failures), compared with ``share``.
    """

    label: str
    """In the user's words; also the key of its tally."""
    metric: Metric
    share: float
    """Of bad requests that is allowed, or stable's at its quantile."""
    min_requests: int
    stretch: float = 1.0
    seconds: float | None = None
    """None for failures, and where stable's quantile decides."""
    ratio: RatioTest | None = None

    @property
    def is_learnt(self) -> bool:
        """Whether its threshold is a quantile of stable, which must be known first."""
        return self.ratio is not None and self.metric != "errors"

    @property
    def lookback(self) -> float:
        """Requests of stable after which its quantile is known."""
        return max(_LOOKBACK, _LOOKBACK_SLOW / self.share)

    def histogram(self, counts: Counts) -> Histogram | None:
        """The times that this check is about; None where the engine does not publish them.

        The times between the tokens of one request are alike, so a thousand of them say hardly
        more than one: they count as one request.
        """
        if self.metric == "itl":
            return counts.itl and counts.itl.counted_as(counts.requests - counts.failed)
        return counts.latency if self.metric == "latency" else counts.ttft

    def canary_limit(self, threshold: float | None) -> float | None:
        """Seconds over which a canary's request is bad, given stable's threshold."""
        return self.seconds if threshold is None else threshold * self.stretch

    def sample(self, counts: Counts, threshold: float | None) -> tuple[float, float] | None:
        """Requests and the bad ones among them; None where the engine does not publish their times.

        One that failed was not fast, so failing can never help a canary.
        """
        if threshold is None:
            return counts.requests, counts.failed
        times = self.histogram(counts)
        if times is None:
            return None
        # Each request has a first token and an end, but not all have times between tokens.
        requests = times.total + counts.failed if self.metric == "itl" else counts.requests
        return requests, min(requests, times.above(threshold) + counts.failed)


def compile_guardrails(guardrails: Sequence[Guardrail]) -> tuple[Check, ...]:
    """The checks of all guardrails, in their order."""
    return tuple(
        check for guardrail in guardrails for check in _checks_of(guardrail, len(guardrails))
    )


def _checks_of(guardrail: Guardrail, shared_by: int) -> Iterator[Check]:
    if guardrail.max_increase_percent is not None:
        # Bonferroni: each of m guardrails may err with an m-th of the risk.
        yield _relative(guardrail, guardrail.max_increase_percent, guardrail.alpha / shared_by)
    if guardrail.max_seconds is not None:
        name, share = _quantile(guardrail)
        yield Check(
            label=f"{name} at most {guardrail.max_seconds:g} s",
            metric=guardrail.metric,
            share=share,
            min_requests=guardrail.min_requests,
            seconds=guardrail.max_seconds,
        )
    if guardrail.max_error_rate_percent is not None:
        yield Check(
            label=f"errors at most {guardrail.max_error_rate_percent:g}%",
            metric="errors",
            share=guardrail.max_error_rate_percent / 100,
            min_requests=guardrail.min_requests,
        )


def _relative(guardrail: Guardrail, increase: float, alpha: float) -> Check:
    stretch = 1 + increase / 100
    if guardrail.metric == "errors":
        name, share = "errors", (guardrail.max_error_rate_percent or 0) / 100
        tolerated, detected, share = stretch, _CLEAR_ERRORS * stretch, share or _NEGLIGIBLE_ERRORS
        stretch = 1.0
    else:
        name, share = _quantile(guardrail)
        tolerated, detected = 1.0, _CLEAR_ODDS / (1 - share + _CLEAR_ODDS * share)
    return Check(
        label=f"{name} at most {increase:g}% worse than stable",
        metric=guardrail.metric,
        share=share,
        min_requests=guardrail.min_requests,
        stretch=stretch,
        ratio=RatioTest.with_risks(
            tolerated=tolerated, detected=detected, alpha=alpha, power=guardrail.power
        ),
    )


def _quantile(guardrail: Guardrail) -> tuple[str, float]:
    """Its name, and the share of requests over it."""
    quantile = guardrail.quantile or _DEFAULT_QUANTILE
    return f"{quantile} {guardrail.metric}", 1 - int(quantile[1:]) / 100
