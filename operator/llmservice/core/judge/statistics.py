"""The three formulas of the judge. Sources: ``docs/rollouts.md``."""

import math
from dataclasses import dataclass

MAX_DISPERSION = 10.0
MIN_WINDOWS = 5
"""Fewer say nothing about how much counts scatter."""


@dataclass(frozen=True, slots=True)
class RatioTest:
    """Wald's sequential test of how often a bad request is the canary's.

    ``tolerated`` and ``detected`` are rates of bad requests, canary over stable.
    """

    tolerated: float
    detected: float
    abort_at: float
    """Log likelihood ratio from which the canary is worse than tolerated."""
    promote_at: float
    """And under which it is not."""

    @classmethod
    def with_risks(
        cls, *, tolerated: float, detected: float, alpha: float, power: float
    ) -> "RatioTest":
        """A test that aborts at ``tolerated`` with about ``alpha``, at ``detected`` with power."""
        miss = 1 - power
        return cls(tolerated, detected, math.log(power / alpha), math.log(miss / (1 - alpha)))

    def slack(self, identical: float) -> float:
        """Factor of both rates that keeps a canary of rate ``identical`` from being aborted.

        With it ``identical`` is under ``tolerated`` by half of what ``detected`` is over it, in
        logarithms: there the risk of an abort is about the square of alpha.
        """
        return max(1.0, identical * math.sqrt(self.detected / self.tolerated) / self.tolerated)

    def evidence(
        self, canary: tuple[float, float], stable: tuple[float, float], slack: float = 1.0
    ) -> float:
        """Log likelihood ratio of one window; each side is (requests, bad ones).

        Only who had the bad requests counts, not how many there were, so that a change of load
        or of the canary's weight is no evidence. ``slack`` is a factor of both rates.
        """
        (n_canary, bad_canary), (n_stable, bad_stable) = canary, stable
        if not n_canary or not n_stable:
            return 0.0
        low, high = (
            rate * n_canary / (rate * n_canary + n_stable)
            for rate in (slack * self.tolerated, slack * self.detected)
        )
        return bad_canary * math.log(high / low) + bad_stable * math.log((1 - high) / (1 - low))


def wilson_bounds(bad: float, requests: float, z: float) -> tuple[float, float]:
    """Where the true share of bad requests lies, ``z`` standard deviations to each side."""
    if requests <= 0:
        return 0.0, 1.0
    share, square = bad / requests, z * z
    middle = share + square / (2 * requests)
    reach = z * math.sqrt(share * (1 - share) / requests + square / (4 * requests * requests))
    scale = 1 + square / requests
    low = (middle - reach) / scale if bad else 0.0
    return max(0.0, low), min(1.0, (middle + reach) / scale)


def dispersion(windows: int, requests: float, bad: float, squares: float) -> float:
    """How much more than by chance the bad requests of windows scatter, between 1 and 10.

    Pearson's chi-squared over its degrees of freedom.

    Args:
        windows: how many were summed.
        requests: in all of them.
        bad: in all of them.
        squares: sum over windows of bad requests squared over requests.
    """
    share = bad / requests if requests else 0.0
    if windows < MIN_WINDOWS or not 0 < share < 1:
        return 1.0
    chi_squared = (squares - bad * share) / (share * (1 - share))
    return min(MAX_DISPERSION, max(1.0, chi_squared / (windows - 1)))
