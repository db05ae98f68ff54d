"""Windows of traffic to judge: made up by number, or drawn at random with a seed."""

import random
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

from llmservice.api.guardrails import Guardrail
from llmservice.core.canary.state import Phase, Rollout, dump_rollout, load_rollout
from llmservice.core.judge.checks import compile_guardrails
from llmservice.core.judge.counts import Counts, Histogram, Tokens, Window
from llmservice.core.judge.judge import Verdict, judge
from llmservice.core.judge.state import JudgeState

EDGES = (0.5, 1.0, 1.5, 2.0, 4.0)
FAST, SLOW = 0.4, 3.0
P90 = Guardrail(metric="ttft", quantile="p90", max_increase_percent=50)
"""With ``counts`` its threshold is 1 second, or less, and the canary's under 1.5: between FAST and
SLOW."""
UNDER_A_SECOND = Guardrail(metric="ttft", quantile="p90", max_seconds=1.5)
ITL = Guardrail(metric="itl", quantile="p90", max_increase_percent=50)
ERRORS = Guardrail(metric="errors", max_increase_percent=50, max_error_rate_percent=2)


def counts(fast: int, slow: int = 0, failed: int = 0) -> Counts:
    times = Histogram.of(EDGES, [FAST] * fast + [SLOW] * slow)
    return Counts(fast + slow + failed, failed, times, times)


def streamed(fast: int, slow: int = 0, failed: int = 0, *, tokens: int = 100) -> Counts:
    """Requests with so many times between tokens each."""
    times = Histogram.of(EDGES, [FAST] * fast * tokens + [SLOW] * slow * tokens)
    return replace(counts(fast, slow, failed), itl=times)


def with_tokens(tokens: Tokens, of: Counts | None = None) -> Counts:
    """Requests (a hundred, unless said otherwise) that were made of these tokens."""
    return replace(of or counts(90, 10), tokens=tokens)


NOTHING = counts(0)
USUAL = counts(90, 10)
"""A hundred of stable's requests, the slowest tenth slow."""


def checks(*guardrails: Guardrail):
    return compile_guardrails(guardrails)


def judged(rules, windows, state=None):
    """State and decision after all windows."""
    state, decision = state or JudgeState(), None
    for window in windows:
        state, decision = judge(rules, state, window)
    return state, decision


def verdict_of(rules, windows):
    """The first verdict that ends a rollout's step, and the canary's requests until then."""
    state = JudgeState()
    for window in windows:
        state, decision = judge(rules, state, window)
        if decision.verdict is not Verdict.Inconclusive:
            break
    return decision.verdict, decision.canary_requests


def dumped(state):
    """The text in a status that has this state in it."""
    return dump_rollout(Rollout(Phase.Judging, "a", datetime(2026, 1, 1, tzinfo=UTC), judge=state))


def handed_over(state):
    """The state as a new leader reads it."""
    return load_rollout(dumped(state)).judge


LOOKBACK = [Window(USUAL, NOTHING)] * 5


def draw(seed, *, slow=(0.1, 0.1), failed=(0.0, 0.0), sizes=(54, 6), windows=60):
    """Windows of stable and canary whose requests are slow or fail by chance."""
    rng = random.Random(seed)
    drawn = []
    for _ in range(windows):
        tracks = []
        for size, slow_share, failed_share in zip(sizes, slow, failed, strict=True):
            luck = [rng.random() for _ in range(size)]
            bad = sum(x < failed_share for x in luck)
            late = sum(failed_share <= x < failed_share + slow_share for x in luck)
            tracks.append(_cached(size - bad - late, late, bad))
        drawn.append(Window(*tracks))
    return [*LOOKBACK, *drawn]


_cached = cache(counts)
