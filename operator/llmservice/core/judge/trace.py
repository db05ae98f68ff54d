"""Recorded requests, cut into the windows that scraping would have given."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from llmservice.core.judge.counts import (
    FINE_EDGES,
    FINE_ITL_EDGES,
    VLLM_ITL_EDGES,
    VLLM_LATENCY_EDGES,
    VLLM_TTFT_EDGES,
    Counts,
    Histogram,
    Window,
)

Track = Literal["stable", "canary"]


@dataclass(frozen=True, slots=True)
class Request:
    """One recorded request."""

    seconds: float
    """When it ended, on any clock."""
    track: Track
    ttft: float | None
    """Seconds; None where no token came."""
    latency: float | None
    """Seconds; None where it never ended."""
    failed: bool
    itl: float | None = None
    """Mean seconds between its tokens; None where there were not two."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Edges of the histograms that an engine is read with."""

    ttft: tuple[float, ...]
    latency: tuple[float, ...]
    itl: tuple[float, ...]


FINE = Buckets(FINE_EDGES, FINE_EDGES, FINE_ITL_EDGES)
"""An engine that was given finer edges (``--custom-histogram-buckets``)."""
VLLM = Buckets(VLLM_TTFT_EDGES, VLLM_LATENCY_EDGES, VLLM_ITL_EDGES)
"""An engine as it comes."""


def cut_windows(
    requests: Iterable[Request], seconds: float, buckets: Buckets = FINE
) -> Iterator[tuple[float, Window]]:
    """Windows of so many ``seconds`` from the first request on, each with the time it ends.

    Windows without any request are left out: they would be no evidence.

    Args:
        requests: sorted by time; read no further than the window that is asked for.
        seconds: between two scrapes.
        buckets: what the engine would count times in.
    """
    start: float | None = None

    def number(request: Request) -> int:
        nonlocal start
        if start is None:
            start = request.seconds
        return int((request.seconds - start) // seconds)

    for index, group in groupby(requests, number):
        window = list(group)
        yield (
            (start or 0.0) + (index + 1) * seconds,
            Window(_count(window, "stable", buckets), _count(window, "canary", buckets)),
        )


def _count(window: list[Request], track: Track, buckets: Buckets) -> Counts:
    mine = [request for request in window if request.track == track]
    fine = [request for request in mine if not request.failed]
    return Counts(
        requests=len(mine),
        failed=len(mine) - len(fine),
        ttft=Histogram.of(buckets.ttft, (r.ttft for r in fine if r.ttft is not None)),
        latency=Histogram.of(buckets.latency, (r.latency for r in fine if r.latency is not None)),
        itl=Histogram.of(buckets.itl, (r.itl for r in fine if r.itl is not None)),
    )
