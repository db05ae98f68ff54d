"""From the counters that pods publish to what was counted since the last look.

Baselines are kept in memory only: a new leader looks once to set them, and loses the evidence of
one window, which costs time and can never decide anything wrongly.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

from llmservice.core.judge.counts import Counts

MAX_AGE = 60.0
"""Seconds after which a sample says nothing about now."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """The counters of one pod at one moment."""

    pod: str
    """Its uid."""
    at: float
    """When it was read, in seconds on the clock of ``now``."""
    counts: Counts
    """Since its engine started."""


Baselines = Mapping[str, Scrape]
"""The last good scrape of each pod, by uid."""


def count_increase(
    baselines: Baselines, scrapes: Iterable[Scrape], now: float
) -> tuple[Baselines, Counts | None]:
    """The baselines for the next look, and what one track's pods did since the last.

    Old samples, samples that were seen before and those that hold no counts are passed over. A
    pod seen for the first time sets its baseline only: what it counted before is not of this
    window. None means that no pod said anything new.
    """
    fresh = {
        scrape.pod: scrape
        for scrape in scrapes
        if scrape.counts.is_valid and 0 <= now - scrape.at <= MAX_AGE
        if scrape.pod not in baselines or scrape.at > baselines[scrape.pod].at
    }
    grown = [
        _since(baselines[pod].counts, scrape.counts)
        for pod, scrape in sorted(fresh.items())
        if pod in baselines
    ]
    return {**baselines, **fresh}, _sum(grown)


def _since(before: Counts, after: Counts) -> Counts:
    """The increase; counters that fell were started anew, and have counted from zero since."""
    if before.edges != after.edges:
        return after
    increase = after - before
    return after if min(increase.numbers) < 0 else increase


def _sum(counts: list[Counts]) -> Counts | None:
    """Pods of one track run the same engine; one with other edges is left out."""
    alike = [each for each in counts if each.edges == counts[0].edges]
    return reduce(add, alike) if alike else None
