"""Whether a canary may be compared with stable at all.

Two versions that are the same look different when one of them is asked for more, or has to compute
prompts that the other still knows. Neither is evidence, so neither decides.
"""

from dataclasses import dataclass
from math import sqrt

from llmservice.api.guardrails import Metric
from llmservice.core.judge.counts import Tokens, Window
from llmservice.core.judge.state import JudgeState

_ALIKE = 1.3
"""Greatest ratio of two means at which requests are still alike."""
_SIGMAS = 3.0
"""Standard deviations that chance is not believed to have caused."""
_WARM = 0.8
"""Share of stable's hit ratio from which a canary's prefix cache is warm."""
_MATTERS = 0.2
"""A smaller hit ratio of stable makes no difference that would be worth waiting for."""
COLD_REQUESTS = 100
"""Requests of a canary, in one step, after which its cache is what it is: a version whose cache
does not work must be judged, too."""


def is_cold(state: JudgeState, window: Window | None = None) -> bool:
    """Whether what a canary takes still says that it is new, rather than that it is worse.

    Args:
        state: before the window. What a canary does in a window has no part in choosing whether
            it counts, as slow windows would be left out more often than fast ones.
        window: what stable does in it may help to know stable.
    """
    canary, stable = state.canary_tokens, state.stable_tokens
    if window is not None and window.stable is not None:
        stable += window.stable.tokens
    if state.cold_requests >= COLD_REQUESTS:
        return False
    is_without_cache = canary.requests and not canary.queries
    return not is_without_cache and _is_colder(canary, stable)


def describe_caches(state: JudgeState) -> str:
    """Both hit ratios, where the canary's is so low that a person should know; else nothing."""
    canary, stable = state.canary_tokens, state.stable_tokens
    if not (canary.requests and _is_colder(canary, stable)):
        return ""
    share = f"{100 * canary.hit_ratio:.0f}% of the prompts' tokens"
    return f"the canary's prefix cache had {share}, stable's {100 * stable.hit_ratio:.0f}%"


def describe_mix(state: JudgeState, metric: Metric) -> str:
    """In what the canary's requests are unlike stable's, as far as the metric depends on it."""
    canary, stable = state.canary_tokens, state.stable_tokens
    if not (canary.requests and stable.requests):
        return ""
    means = [("prompts", _mean_prompt(canary), _mean_prompt(stable))]
    if metric != "ttft":  # what comes after the first token cannot delay it
        means.append(("answers", _mean_answer(canary), _mean_answer(stable)))
    return " and ".join(
        f"the canary's {what} have {of_canary.value:.0f} tokens on average,"
        f" stable's {of_stable.value:.0f}"
        for what, of_canary, of_stable in means
        if _are_unlike(of_canary, of_stable)
    )


@dataclass(frozen=True, slots=True)
class _Mean:
    value: float
    variance: float
    """Of the mean, not of single requests."""


def _mean_prompt(tokens: Tokens) -> _Mean:
    return _mean(tokens.requests, tokens.prompt, tokens.prompt_squares)


def _mean_answer(tokens: Tokens) -> _Mean:
    return _mean(tokens.requests, tokens.generated, tokens.generated_squares)


def _mean(requests: float, total: float, squares: float) -> _Mean:
    mean = total / requests
    # Of those who do not tell how lengths spread, as much as of waiting times.
    spread = squares / requests - mean**2 if squares else mean**2
    return _Mean(mean, max(0.0, spread) / requests)


def _are_unlike(canary: _Mean, stable: _Mean) -> bool:
    """By more than chance: one long stream in a hundred moves a mean by more than the ratio."""
    low, high = sorted((canary.value, stable.value))
    by_chance = _SIGMAS * sqrt(canary.variance + stable.variance)
    return low > 0 and high > _ALIKE * low and high - low > by_chance


def _is_colder(canary: Tokens, stable: Tokens) -> bool:
    return stable.hit_ratio >= _MATTERS and canary.hit_ratio < _WARM * stable.hit_ratio
