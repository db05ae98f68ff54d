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

from llmservice.core.autoscaling.policy import Sample
from llmservice.core.judge.counts import (
    VLLM_ITL_EDGES,
    VLLM_LATENCY_EDGES,
    VLLM_TTFT_EDGES,
    Counts,
    Histogram,
    Tokens,
)
from llmservice.core.questions import EngineReading

_ENDED = ("vllm:request_success_total", "vllm:request_success")
"""The counter, with the suffix that most versions of the exposition format ask for and without."""
_TTFT = "vllm:time_to_first_token_seconds_bucket"
_LATENCY = "vllm:e2e_request_latency_seconds_bucket"
_ITL = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
"""The same times; versions before 0.11 have the second name, some have both."""
_PROMPTS, _ANSWERS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
"""Of requests that ended: the counters of all tokens are ahead of them by what is under way."""
_QUERIES = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_queries")
_HITS = ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits")
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_KV_USAGE = "vllm:kv_cache_usage_perc"
_GAUGES = (_WAITING, _RUNNING, _KV_USAGE)
_WANTED = (
    *(*_ENDED, _TTFT, _LATENCY, *(f"{name}_bucket" for name in _ITL), _RUNNING, _WAITING),
    *(f"{_PROMPTS}_", f"{_ANSWERS}_", *_QUERIES, *_HITS),
)

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
    samples = _find(exposition, _WANTED)
    running, waiting = _total(samples[_RUNNING]), _total(samples[_WAITING])
    counts = _counts(samples, has_itl=any(name in exposition for name in _ITL))
    if counts is None or not (0 <= running < _NUMBER_LIMIT and 0 <= waiting < _NUMBER_LIMIT):
        return None
    return EngineReading(counts, int(running), int(waiting))


def parse_gauges(exposition: str) -> Sample | None:
    """The gauges of a replica; None when one of them is missing, or cannot be.

    Requests add up over ranks. Of their KV caches the fullest counts: that one preempts first.

    Raises:
        ValueError: this is no exposition format.
    """
    samples = _find(exposition, _GAUGES)
    if not all(samples[name] for name in _GAUGES):
        return None
    waiting, running = _total(samples[_WAITING]), _total(samples[_RUNNING])
    usages = [each.value for each in samples[_KV_USAGE]]
    if not all(0 <= usage <= 1 for usage in usages):
        return None
    if not all(0 <= each.value < _NUMBER_LIMIT for each in samples[_WAITING] + samples[_RUNNING]):
        return None
    return Sample(waiting, running, max(usages))


def _counts(samples: _Samples, *, has_itl: bool) -> Counts | None:
    ended = _first(samples, _ENDED)
    ttft = _histogram(samples[_TTFT], VLLM_TTFT_EDGES)
    latency = _histogram(samples[_LATENCY], VLLM_LATENCY_EDGES)
    itl = _histogram(_first(samples, [f"{name}_bucket" for name in _ITL]), VLLM_ITL_EDGES)
    if ttft is None or latency is None or itl is None:
        return None
    counts = Counts(
        _total(each for each in ended if each.labels.get(_REASON) != _CLIENT_HUNG_UP),
        _total(each for each in ended if each.labels.get(_REASON) == _ENGINE_FAILED),
        ttft,
        latency,
        itl if has_itl else None,
        Tokens(
            _total(samples[f"{_PROMPTS}_count"]),
            _total(samples[f"{_PROMPTS}_sum"]),
            _total(samples[f"{_ANSWERS}_sum"]),
            _total(_first(samples, _QUERIES)),
            _total(_first(samples, _HITS)),
            _squares(samples[f"{_PROMPTS}_bucket"]),
            _squares(samples[f"{_ANSWERS}_bucket"]),
        ),
    )
    return counts if counts.is_valid else None


def _squares(buckets: Iterable[_Sample]) -> float:
    """The sum of squares, at most: each value counts as the upper edge of its bucket.

    What is over the last edge counts as that edge. Each rank's buckets end with infinity.
    """
    total = below = last = 0.0
    for each in buckets:
        edge = float(each.labels.get("le", "NaN"))
        is_last = math.isinf(edge)
        last = last if is_last else edge
        total += max(0.0, each.value - below) * last**2
        below, last = (0.0, 0.0) if is_last else (each.value, last)
    return total if math.isfinite(total) else 0.0


def _first(samples: _Samples, names: Iterable[str]) -> list[_Sample]:
    """The samples of the first of these names that has any."""
    return next((samples[name] for name in names if samples[name]), [])


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


def _find(exposition: str, wanted: tuple[str, ...]) -> _Samples:
    found: _Samples = defaultdict(list)
    for line in exposition.split("\n"):
        if line.startswith(wanted):  # cheap, and leaves few lines
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
