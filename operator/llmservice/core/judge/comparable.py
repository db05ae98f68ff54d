"""Whether a canary may be compared with stable at all.

Two versions that are the same look different when one of them is asked for more, or has to compute
prompts that the other still knows. Neither is evidence, so neither decides.
"""

from llmservice.api.guardrails import Metric
from llmservice.core.judge.counts import Tokens, Window
from llmservice.core.judge.state import JudgeState

_ALIKE = 1.3
"""Greatest ratio of two means at which requests are still alike."""
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
    totals = [("prompts", canary.prompt, stable.prompt)]
    if metric != "ttft":  # what comes after the first token cannot delay it
        totals.append(("answers", canary.generated, stable.generated))
    means = [(what, c / canary.requests, s / stable.requests) for what, c, s in totals]
    return " and ".join(
        f"the canary's {what} have {c:.0f} tokens on average, stable's {s:.0f}"
        for what, c, s in means
        if min(c, s) > 0 and max(c, s) > _ALIKE * min(c, s)
    )


def _is_colder(canary: Tokens, stable: Tokens) -> bool:
    return stable.hit_ratio >= _MATTERS and canary.hit_ratio < _WARM * stable.hit_ratio
