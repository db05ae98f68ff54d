"""What is counted of one track's requests: how many, how many failed, how long the others took.

Times come as histograms because that is how engines publish them. Shares above a threshold are
exact where the threshold is an edge; between edges they are interpolated, the same way for both
tracks.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import add, sub

VLLM_TTFT_EDGES = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
"""Seconds. vllm-project/vllm:vllm/v1/metrics/buckets.py"""
VLLM_LATENCY_EDGES = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
"""Seconds. vllm-project/vllm:vllm/v1/metrics/buckets.py"""
VLLM_ITL_EDGES = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
"""Seconds. vllm-project/vllm:vllm/v1/metrics/buckets.py"""
FINE_EDGES = tuple(accumulate([1.1] * 117, lambda edge, step: edge * step, initial=0.01))
"""Seconds, from 10 ms to 12 minutes in steps of ten percent: the smallest increase that a
guardrail may ask for moves requests over at least one edge."""
FINE_ITL_EDGES = tuple(accumulate([1.1] * 117, lambda edge, step: edge * step, initial=0.001))
"""The same from 1 ms on, for the times between tokens."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many times lay in each bucket; one count more than edges, for what is over the last."""

    edges: tuple[float, ...]
    """Upper ends of the buckets in seconds, rising; a time on an edge is in the bucket below."""
    counts: tuple[float, ...]

    @classmethod
    def of(cls, edges: tuple[float, ...], times: Iterable[float] = ()) -> "Histogram":
        """The histogram of single times in seconds."""
        counts = [0.0] * (len(edges) + 1)
        for time in times:
            counts[bisect_left(edges, time)] += 1
        return cls(edges, tuple(counts))

    @property
    def total(self) -> float:
        """How many times there are."""
        return sum(self.counts)

    def above(self, seconds: float) -> float:
        """How many times were longer; between two edges a straight line is drawn."""
        place = bisect_left(self.edges, seconds)
        over = sum(self.counts[place + 1 :])
        if place == len(self.edges):
            return self.counts[-1]
        low = self.edges[place - 1] if place else 0.0
        inside = (self.edges[place] - seconds) / (self.edges[place] - low)
        return over + self.counts[place] * inside

    def quantile(self, share: float) -> float:
        """The time in seconds that ``share`` of all stay under; at most the last edge."""
        rank, below, low = share * self.total, 0.0, 0.0
        for edge, count in zip(self.edges, self.counts, strict=False):
            if count and below + count >= rank:
                return low + (edge - low) * (rank - below) / count
            below, low = below + count, edge
        return self.edges[-1]

    def counted_as(self, most: float) -> "Histogram":
        """The same times, each of so little weight that together they count as ``most``."""
        if self.total <= most:
            return self
        weight = most / self.total
        return Histogram(self.edges, tuple(count * weight for count in self.counts))

    def __add__(self, other: "Histogram") -> "Histogram":
        return self._combine(other, 1)

    def __sub__(self, other: "Histogram") -> "Histogram":
        return self._combine(other, -1)

    def _combine(self, other: "Histogram", sign: int) -> "Histogram":
        if other.edges != self.edges:
            raise ValueError("histograms with different edges do not add up")
        pairs = zip(self.counts, other.counts, strict=True)
        return Histogram(self.edges, tuple(mine + sign * theirs for mine, theirs in pairs))


@dataclass(frozen=True, slots=True)
class Tokens:
    """What requests were made of, to see whether two tracks were asked alike. Zero is unknown."""

    requests: float = 0.0
    """That ended and whose tokens these are. Here clients that hung up may be among them."""
    prompt: float = 0.0
    generated: float = 0.0
    queries: float = 0.0
    """Tokens of prompts that were looked up in the prefix cache."""
    hits: float = 0.0
    """And found."""
    prompt_squares: float = 0.0
    """Sum of the squares of each request's number, at least; with it the spread is known."""
    generated_squares: float = 0.0

    @property
    def hit_ratio(self) -> float:
        """Share of the prompts' tokens that the prefix cache had; zero where there is none."""
        return self.hits / self.queries if self.queries else 0.0

    @property
    def numbers(self) -> tuple[float, ...]:
        """All of them."""
        squares = self.prompt_squares, self.generated_squares
        return self.requests, self.prompt, self.generated, self.queries, self.hits, *squares

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*map(add, self.numbers, other.numbers))

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(*map(sub, self.numbers, other.numbers))


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of one track: counters since a start, or their increase over a window."""

    requests: float
    """All that ended, well or not. Clients that hung up are neither here nor in ``failed``."""
    failed: float
    """Answered with a server's error, or cut off in the middle. A stream that dies has long sent
    its status 200, so whoever counts must look at how streams ended, too."""
    ttft: Histogram
    latency: Histogram
    itl: Histogram | None = None
    """Times between two tokens, of a request many; None where the engine does not publish them."""
    tokens: Tokens = Tokens()

    @property
    def is_valid(self) -> bool:
        """Whether these can be counts: finite, not negative, no more failures than requests."""
        finite = all(math.isfinite(n) and n >= 0 for n in self.numbers)
        return finite and self.failed <= self.requests

    @property
    def edges(self) -> tuple[tuple[float, ...] | None, ...]:
        """Of all histograms: counts with other edges are not of the same engine."""
        return self.ttft.edges, self.latency.edges, self.itl.edges if self.itl else None

    @property
    def numbers(self) -> tuple[float, ...]:
        """Everything that only ever grows."""
        itl = self.itl.counts if self.itl else ()
        times = *self.ttft.counts, *self.latency.counts, *itl
        return self.requests, self.failed, *times, *self.tokens.numbers

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.requests + other.requests,
            self.failed + other.failed,
            self.ttft + other.ttft,
            self.latency + other.latency,
            self.itl + other.itl if self.itl and other.itl else None,
            self.tokens + other.tokens,
        )

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            self.requests - other.requests,
            self.failed - other.failed,
            self.ttft - other.ttft,
            self.latency - other.latency,
            self.itl - other.itl if self.itl and other.itl else None,
            self.tokens - other.tokens,
        )


@dataclass(frozen=True, slots=True)
class Window:
    """What both tracks did between two looks; None for a track of which nothing is known."""

    stable: Counts | None
    canary: Counts | None
