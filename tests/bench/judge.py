"""How often the judge errs: simulated canaries, one JSON line per scenario.

``make bench-judge``. Requests arrive at random (Poisson), times are exponential with a mean of one
second on stable; a canary is slower by a factor, or fails more often. Each run looks every 30 s, as
a rollout would, learns from stable alone first, and ends with a verdict or after an hour. Columns
ending in ``study`` are the figures of the design study that the judge must reproduce: it simulated
the bare test with a share of slow requests of 10 %; here the same ratios of shares come about
through guardrails and times ("p90 at most 10 % worse" tolerates a ratio of 1.25).
"""

import argparse
import json
import math
import random
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

from llmservice.api.guardrails import Guardrail, Metric
from llmservice.core.judge.checks import Check, compile_guardrails
from llmservice.core.judge.counts import Counts, Histogram, Tokens, Window
from llmservice.core.judge.judge import Verdict, judge
from llmservice.core.judge.state import JudgeState
from llmservice.core.judge.trace import FINE, VLLM, Buckets

WINDOW = 30.0
_CAP = 120
_LOOKBACK_REQUESTS = 300
_STUDY = "p90 at most 10% worse"
_ITL_SECONDS = 0.03
"""Mean time between tokens on stable."""
_ANSWER_TOKENS = 200
_PROMPT_TOKENS = 1000
_WARMS_UP = 30
"""Requests in which the share of prompts that a new prefix cache lacks falls to a third."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much traffic there is, and which share of it the canary gets."""

    rate: float
    """Requests per second."""
    weight: float

    def __str__(self) -> str:
        return f"{self.rate:g} rps, {100 * self.weight:g}%"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A guardrail and a canary."""

    guard: str
    what: str
    """How the canary is, in words."""
    guardrails: tuple[Guardrail, ...]
    bad: bool
    """Whether it breaks a guardrail, so that an abort is right."""
    load: Load = Load(2, 0.1)
    slower: float = 1.0
    errors: tuple[float, float] = (0.0, 0.0)
    """Shares of stable and canary that fail."""
    shape: float = 1.0
    """Of the Weibull distribution of times; below 1 the tail is heavier than exponential."""
    misses: float = 0.0
    """Share of requests that miss a cache: ten times slower, with no times in between."""
    burst: float = 0.0
    """Coefficient of variation of the share of slow requests over windows."""
    prompts: float | None = None
    """Times grow with prompts, whose lengths are log-normal; the canary's are so often longer."""
    hits: tuple[float, float] | None = None
    """Shares of prompts that the prefix cache has: stable's, and the canary's in the end. What it
    lacks takes ten times as long. The canary's cache begins empty."""
    buckets: Buckets = FINE
    naive: bool = False
    """Judged by comparing raw quantiles instead."""
    study: tuple[float, float | None] | None = None
    """Rate of aborts, and median requests to the decision, in the study."""

    @property
    def name(self) -> str:
        """One line that says it all."""
        edges = "" if self.buckets is FINE else ", vLLM's buckets"
        judged = "raw comparison" if self.naive else self.guard
        return f"{judged}{edges}; {self.load}; {self.what}"


def _times(
    quantile: str,
    increase: float | None = None,
    seconds: float | None = None,
    metric: Metric = "ttft",
) -> Any:
    return (
        Guardrail(
            metric=metric,
            quantile=quantile,
            max_increase_percent=increase,
            max_seconds=seconds,
            min_requests=50,
        ),
    )


def _errors(increase: float | None, rate: float | None) -> Any:
    return (
        Guardrail(
            metric="errors",
            max_increase_percent=increase,
            max_error_rate_percent=rate,
            min_requests=50,
        ),
    )


def scenarios() -> Iterator[Scenario]:
    """All of them: those of the study, then what users would write."""
    yield from _of_study()
    yield from _of_users()
    yield from _of_tokens()
    yield from _of_unlike_tracks()
    yield from _of_raw_comparison()


def _of_study() -> Iterator[Scenario]:
    p90, thin = _times("p90", 10), Load(0.2, 0.5)
    for ratio, abort, requests in (
        *((1.0, 0.004, 89), (1.25, 0.028, 135), (1.5, 0.246, 200)),
        *((2.0, 0.930, 144), (3.0, 1.0, 58)),
    ):
        what = "identical" if ratio == 1 else f"{ratio:g} times as many slow requests"
        yield Scenario(
            _STUDY, what, p90, ratio > 1.25, slower=_factor(ratio), study=(abort, requests)
        )
    yield Scenario(_STUDY, "identical", p90, bad=False, load=thin, study=(0.001, 192))
    yield Scenario(
        *(_STUDY, "3 times as many slow requests", p90, True, thin, _factor(3)), study=(0.993, 126)
    )
    for burst, abort in ((0.5, 0.002), (1.0, 0.002)):
        what = f"identical, bursts of CV {burst:g}"
        yield Scenario(_STUDY, what, p90, bad=False, burst=burst, study=(abort, None))
    guard, errors = "errors at most 50% worse and 2%", _errors(50, 2)
    both = (0.005, 0.005)
    yield Scenario(guard, "0.5% on both", errors, bad=False, errors=both, study=(0.001, 140))
    yield Scenario(
        guard, "2.5% against 0.5%", errors, bad=True, errors=(0.005, 0.025), study=(0.885, 252)
    )


def _of_users() -> Iterator[Scenario]:
    p95 = _times("p95", 15)
    for load in (Load(20, 0.05), Load(2, 0.1), Load(0.5, 0.1), Load(0.2, 0.5)):
        yield Scenario("p95 at most 15% worse", "identical", p95, bad=False, load=load)
    for slower in (1.15, 1.3, 1.5, 2.0, 3.0):
        what = f"{100 * (slower - 1):.0f}% slower"
        yield Scenario("p95 at most 15% worse", what, p95, slower > 1.15, slower=slower)
    for slower in (1.0, 1.5, 2.0):
        what = f"{100 * (slower - 1):.0f}% slower" if slower > 1 else "identical"
        yield Scenario("p95 at most 15% worse", what, p95, slower > 1, slower=slower, buckets=VLLM)
    heavy = "identical, heavy tail (Weibull 1/2)"
    yield Scenario(_STUDY, heavy, _times("p90", 10), bad=False, shape=0.5)
    yield Scenario("p95 at most 15% worse", heavy, p95, bad=False, shape=0.5)
    misses = "identical, one in {} misses a cache"
    gap = {"bad": False, "shape": 5.0}
    yield Scenario(_STUDY, misses.format(10), _times("p90", 10), misses=0.1, **gap)
    yield Scenario("p95 at most 15% worse", misses.format(20), p95, misses=0.05, **gap)
    for quantile, increase, slower in (("p50", 20, 2.0), ("p99", 50, 3.0)):
        guard, guardrails = f"{quantile} at most {increase}% worse", _times(quantile, increase)
        yield Scenario(guard, "identical", guardrails, bad=False)
        what = f"{100 * (slower - 1):.0f}% slower"
        yield Scenario(guard, what, guardrails, bad=True, slower=slower)
    limit = _times("p95", None, 4.0)
    yield Scenario("p95 at most 4 s", "p95 of 3 s", limit, bad=False)
    yield Scenario("p95 at most 4 s", "p95 of 6 s", limit, bad=True, slower=2.0)
    half = _errors(None, 0.5)
    yield Scenario("errors at most 0.5%", "none", half, bad=False)
    yield Scenario("errors at most 0.5%", "0.2%", half, bad=False, errors=(0.002, 0.002))
    yield Scenario("errors at most 0.5%", "2.5%", half, bad=True, errors=(0.002, 0.025))
    relative = _errors(50, None)
    yield Scenario("errors at most 50% worse", "none", relative, bad=False)
    yield Scenario("errors at most 50% worse", "1% on both", relative, False, errors=(0.01, 0.01))
    yield Scenario("errors at most 50% worse", "5% against 1%", relative, True, errors=(0.01, 0.05))
    all_three = (*p95, *_times("p50", 20)[:1], *half)
    guard = "p95 15%, p50 20%, errors 0.5%"
    yield Scenario(guard, "identical", all_three, bad=False)
    yield Scenario(guard, "100% slower", all_three, bad=True, slower=2.0)


def _of_tokens() -> Iterator[Scenario]:
    guard, guardrails = "itl: p95 at most 15% worse", _times("p95", 15, metric="itl")
    for slower in (1.0, 1.15, 1.5, 2.0):
        what = f"{100 * (slower - 1):.0f}% slower" if slower > 1 else "identical"
        yield Scenario(guard, what, guardrails, slower > 1.15, slower=slower)
    for slower in (1.0, 2.0):
        what = f"{100 * (slower - 1):.0f}% slower" if slower > 1 else "identical"
        even = f"{what}, even times (Weibull 5)"
        yield Scenario(guard, even, guardrails, slower > 1, slower=slower, shape=5.0, buckets=VLLM)


def _of_unlike_tracks() -> Iterator[Scenario]:
    guard, p95 = "p95 at most 15% worse", _times("p95", 15)
    like = "prompts of many lengths (log-normal)"
    yield Scenario(guard, f"identical, {like}", p95, bad=False, prompts=1.0)
    yield Scenario(guard, f"100% slower, {like}", p95, bad=True, prompts=1.0, slower=2.0)
    yield Scenario(guard, "identical, prompts twice as long", p95, bad=False, prompts=2.0)
    cold: dict[str, Any] = {"hits": (0.97, 0.97), "shape": 5.0}
    yield Scenario(guard, "identical, cold prefix cache", p95, bad=False, **cold)
    yield Scenario(guard, "100% slower, cold prefix cache", p95, bad=True, slower=2.0, **cold)
    broken = {**cold, "hits": (0.97, 0.0)}
    yield Scenario(guard, "prefix cache that stays empty", p95, bad=True, **broken)


def _of_raw_comparison() -> Iterator[Scenario]:
    for load, abort in ((Load(2, 0.1), 0.544), (Load(0.5, 0.1), 0.462), (Load(0.2, 0.5), 0.992)):
        yield Scenario("", "identical", (), bad=False, load=load, naive=True, study=(abort, None))


def _factor(ratio: float) -> float:
    """How much slower a canary is that has ``ratio`` times stable's slowest tenth."""
    return math.log(0.1) / math.log(0.1 * ratio)


# --- one run --------------------------------------------------------------------------------------


def simulate(scenario: Scenario, runs: int, seed: int = 1) -> dict[str, Any]:
    """The line of one scenario; the same for the same seed."""
    checks = compile_guardrails(scenario.guardrails)
    one = _compare_raw if scenario.naive else _run
    ends = [
        one(scenario, checks, random.Random(f"{seed} {scenario.name} {number}"))
        for number in range(runs)
    ]
    aborted = [requests for verdict, requests in ends if verdict is Verdict.Abort]
    promoted = [requests for verdict, requests in ends if verdict is Verdict.Promote]
    rate = round(len(aborted) / runs, 4)
    line = {
        "scenario": scenario.name,
        "runs": runs,
        "false_abort_rate": None if scenario.bad else rate,
        "detection_rate": rate if scenario.bad else None,
        "median_canary_requests_to_abort": median(aborted) if aborted else None,
        "promote_rate": round(len(promoted) / runs, 4),
        "median_canary_requests_to_promote": median(promoted) if promoted else None,
    }
    if scenario.study:
        line |= {"aborts_in_study": scenario.study[0], "requests_in_study": scenario.study[1]}
    return line


def _run(scenario: Scenario, checks: Sequence[Check], rng: random.Random) -> tuple[Verdict, float]:
    rate, weight = scenario.load.rate, scenario.load.weight
    state, requests = JudgeState(), 0.0
    for _ in range(math.ceil(_LOOKBACK_REQUESTS / rate / WINDOW)):
        window = Window(_draw(scenario, rng, rate), _draw(scenario, rng, 0))
        state, _ = judge(checks, state, window)
    for _ in range(_CAP):
        stable = _draw(scenario, rng, rate * (1 - weight))
        canary = _draw(scenario, rng, rate * weight, state.canary_requests)
        state, decision = judge(checks, state, Window(stable, canary))
        requests = decision.canary_requests
        if decision.verdict is not Verdict.Inconclusive:
            return decision.verdict, requests
    return Verdict.Inconclusive, requests


def _counts(scenario: Scenario, rng: random.Random, rate: float, *, canary: bool = False) -> Counts:
    requests = _poisson(rng, rate * WINDOW)
    share = scenario.errors[canary]
    failed = sum(rng.random() < share for _ in range(requests)) if share else 0
    scale = (scenario.slower if canary else 1.0) * _burst(scenario, rng)
    edges = scenario.buckets.ttft
    counts = [0.0] * (len(edges) + 1)
    weights = _weights(edges, scale, scenario.shape, scenario.misses)
    for bucket in rng.choices(range(len(counts)), cum_weights=weights, k=requests - failed):
        counts[bucket] += 1
    times = Histogram(edges, tuple(counts))
    return Counts(requests, failed, times, times)


def _draw(
    scenario: Scenario, rng: random.Random, rate: float, served: float | None = None
) -> Counts:
    """One track's window; ``served`` is how many requests the canary had before."""
    canary = served is not None
    if scenario.guardrails[0].metric == "itl":
        return _of_answers(scenario, rng, rate, scenario.slower if canary else 1.0)
    if scenario.prompts is not None:
        longer = scenario.prompts if canary else 1.0
        return _of_prompts(rng, rate, longer, scenario.slower if canary else 1.0)
    if scenario.hits is not None:
        return _of_caches(scenario, rng, rate, served)
    return _counts(scenario, rng, rate, canary=canary)


def _of_answers(scenario: Scenario, rng: random.Random, rate: float, slower: float) -> Counts:
    """Answers of exponential lengths; all tokens of one take the same time."""
    edges, requests = scenario.buckets.itl, _poisson(rng, rate * WINDOW)
    counts = [0.0] * (len(edges) + 1)
    weights = _weights(edges, slower * _ITL_SECONDS, scenario.shape, 0.0)
    for bucket in rng.choices(range(len(counts)), cum_weights=weights, k=requests):
        counts[bucket] += 1 + int(rng.expovariate(1 / _ANSWER_TOKENS))
    idle = Histogram.of(FINE.ttft)
    return Counts(requests, 0, idle, idle, Histogram(edges, tuple(counts)))


def _of_prompts(rng: random.Random, rate: float, longer: float, slower: float) -> Counts:
    """Prompts whose lengths have a coefficient of variation of 1.3, and the times they take."""
    lengths = [longer * rng.lognormvariate(-0.5, 1) for _ in range(_poisson(rng, rate * WINDOW))]
    times = Histogram.of(FINE.ttft, (slower * length for length in lengths))
    tokens = Tokens(len(lengths), _PROMPT_TOKENS * sum(lengths))
    return Counts(len(lengths), 0, times, times, None, tokens)


def _of_caches(scenario: Scenario, rng: random.Random, rate: float, served: float | None) -> Counts:
    """Prompts of which the cache has all or nothing."""
    assert scenario.hits is not None
    edges, requests, hits = FINE.ttft, _poisson(rng, rate * WINDOW), 0
    hit_ratio = scenario.hits[served is not None]
    scale = 1.0 if served is None else scenario.slower
    counts = [0.0] * (len(edges) + 1)
    for number in range(requests):
        warmth = 1.0 if served is None else 1 - math.exp(-(served + number) / _WARMS_UP)
        hit = rng.random() < hit_ratio * warmth
        weights = _weights(edges, scale if hit else 10 * scale, scenario.shape, 0.0)
        counts[bisect_left(weights, rng.random())] += 1
        hits += hit
    times = Histogram(edges, tuple(counts))
    tokens = Tokens(requests, 0, 0, _PROMPT_TOKENS * requests, _PROMPT_TOKENS * hits)
    return Counts(requests, 0, times, times, None, tokens)


def _burst(scenario: Scenario, rng: random.Random) -> float:
    """A factor of times that multiplies the slowest tenth by a gamma variate of mean 1."""
    if not scenario.burst:
        return 1.0
    shape = 1 / scenario.burst**2
    share = min(0.9, max(1e-6, 0.1 * rng.gammavariate(shape, 1 / shape)))
    return round(_factor(share / 0.1), 2)


@cache
def _weights(
    edges: tuple[float, ...], scale: float, shape: float, misses: float
) -> tuple[float, ...]:
    """Cumulative chances of the buckets for Weibull times."""

    def under(edge: float, scale: float) -> float:
        return 1 - math.exp(-((edge / scale) ** shape))

    return (
        *((1 - misses) * under(edge, scale) + misses * under(edge, 10 * scale) for edge in edges),
        1.0,
    )


def _poisson(rng: random.Random, mean: float) -> int:
    """Arrivals in a window: gaps are exponential."""
    if not mean:
        return 0
    number, left = 0, mean - rng.expovariate(1)
    while left > 0:
        number += 1
        left -= rng.expovariate(1)
    return number


def _compare_raw(
    scenario: Scenario, _: Sequence[Check], rng: random.Random
) -> tuple[Verdict, float]:
    """What comparing two p95 numbers does: a look each window, the fourth that is over 1.2 aborts.

    That is a failure limit of 3, over 20 looks.
    """
    rate, weight = scenario.load.rate, scenario.load.weight
    failures, requests = 0, 0
    for _ in range(20):
        stable, canary = (
            sorted(rng.expovariate(1) for _ in range(_poisson(rng, WINDOW * rate * share)))
            for share in (1 - weight, weight)
        )
        requests += len(canary)
        if stable and canary:
            failures += _p95(canary) > 1.2 * _p95(stable)
        if failures == 4:
            return Verdict.Abort, requests
    return Verdict.Promote, requests


def _p95(times: list[float]) -> float:
    return times[math.ceil(0.95 * len(times)) - 1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per scenario."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=800, help="per scenario (default 800)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios that say so")
    parsed = parser.parse_args(arguments)
    for scenario in scenarios():
        if parsed.only in scenario.name:
            print(json.dumps(simulate(scenario, parsed.runs, parsed.seed)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
