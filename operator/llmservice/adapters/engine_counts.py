"""What an engine's ``/metrics`` say of its requests: how many, how they ended, how long they took.

vLLM writes one series for each data-parallel rank; a replica is their sum. A pod runs the user's
image, so what it says may be anything: it is read strictly, and in time that grows with its length
only. prometheus_client's parser reads all of it, which takes thirty times as long.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from llmservice.core.judge.counts import (
    VLLM_LATENCY_EDGES,
    VLLM_TTFT_EDGES,
    Counts,
    Histogram,
)
from llmservice.core.questions import EngineReading

_ENDED = ("vllm:request_success_total", "vllm:request_success")
"""The counter, with the suffix that most versions of the exposition format ask for and without."""
_TTFT = "vllm:time_to_first_token_seconds_bucket"
_LATENCY = "vllm:e2e_request_latency_seconds_bucket"
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_WANTED = (*_ENDED, _TTFT, _LATENCY, _RUNNING, _WAITING)

_REASON = "finished_reason"
_CLIENT_HUNG_UP = "abort"
_ENGINE_FAILED = "error"
_LABEL = re.compile(r'\s*(\w+)\s*=\s*"([^"\\]*(?:\\.[^"\\]*)*)"\s*,?\s*')
_NUMBER_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class _Sample:
    labels: Mapping[str, str]
    """As they are written: those that are looked at need no escapes."""
    value: float


_Samples = defaultdict[str, list[_Sample]]


def parse_reading(exposition: str) -> EngineReading | None:
    """The reading of a replica; None when this is no engine, or its numbers cannot be.

    An engine that had no request yet may leave out series; they are zero.

    Raises:
        ValueError: this is no exposition format.
    """
    # Every version names this gauge, at least to describe it. Without it nobody could tell an
    # engine that is idle from one that keeps its numbers to itself (``--disable-log-stats``).
    if _RUNNING not in exposition:
        return None
    samples = _find(exposition)
    running, waiting = _total(samples[_RUNNING]), _total(samples[_WAITING])
    counts = _counts(samples)
    if counts is None or not (0 <= running < _NUMBER_LIMIT and 0 <= waiting < _NUMBER_LIMIT):
        return None
    return EngineReading(counts, int(running), int(waiting))


def _counts(samples: _Samples) -> Counts | None:
    ended = next((samples[name] for name in _ENDED if samples[name]), [])
    ttft = _histogram(samples[_TTFT], VLLM_TTFT_EDGES)
    latency = _histogram(samples[_LATENCY], VLLM_LATENCY_EDGES)
    if ttft is None or latency is None:
        return None
    counts = Counts(
        _total(each for each in ended if each.labels.get(_REASON) != _CLIENT_HUNG_UP),
        _total(each for each in ended if each.labels.get(_REASON) == _ENGINE_FAILED),
        ttft,
        latency,
    )
    return counts if counts.is_valid else None


def _total(samples: Iterable[_Sample]) -> float:
    return sum(each.value for each in samples)


def _histogram(buckets: list[_Sample], usual: tuple[float, ...]) -> Histogram | None:
    """The sum over ranks; None unless all of them have the same edges, infinity among them."""
    if not buckets:
        return Histogram.of(usual)
    found: defaultdict[float, list[float]] = defaultdict(list)
    for each in buckets:
        found[float(each.labels.get("le", "NaN"))].append(each.value)
    ranks = len(next(iter(found.values())))
    edges = sorted(found)
    rising = all(lower < upper for lower, upper in pairwise(edges))  # NaN does not
    alike = all(len(values) == ranks for values in found.values())
    if not (rising and alike and 0 <= edges[0] < edges[-1] == math.inf):
        return None
    below = [0.0, *(sum(found[edge]) for edge in edges)]
    counts = tuple(upper - lower for lower, upper in pairwise(below))
    return Histogram(tuple(edges[:-1]), counts)


def _find(exposition: str) -> _Samples:
    found: _Samples = defaultdict(list)
    for line in exposition.split("\n"):
        if line.startswith(_WANTED):  # cheap, and leaves few lines
            name, sample = _sample(line)
            found[name].append(sample)
    return found


def _sample(line: str) -> tuple[str, _Sample]:
    name, brace, rest = line.partition("{")
    labels: dict[str, str] = {}
    if brace:
        at = 0
        while label := _LABEL.match(rest, at):
            labels[label[1]] = label[2]
            at = label.end()
        if not rest.startswith("}", at):
            raise ValueError(f"no labels: {line[:128]!r}")
        rest = rest[at + 1 :]
    else:
        name, _, rest = line.partition(" ")
    value, *_ = rest.split(maxsplit=1) or [""]  # a timestamp may follow
    return name.rstrip(), _Sample(labels, float(value))
