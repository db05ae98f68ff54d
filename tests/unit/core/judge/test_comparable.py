"""When a canary cannot be compared: other prompts, a prefix cache that is still empty."""

import pytest

from llmservice.core.judge.comparable import COLD_REQUESTS, describe_caches, describe_mix, is_cold
from llmservice.core.judge.counts import Tokens, Window
from llmservice.core.judge.state import JudgeState
from tests.unit.core.judge.traffic import with_tokens

STABLE = Tokens(1000, 500_000, 200_000, 500_000, 300_000)
"""500 tokens in, 200 out, 60 % of the former known."""


def asked(prompt=500, generated=200, requests=500):
    """What a canary was asked, on average."""
    return JudgeState(
        canary_tokens=Tokens(requests, requests * prompt, requests * generated),
        stable_tokens=STABLE,
    )


def cached(canary=0.0, stable=0.6, requests=50, cold_requests=0.0):
    """How much of the prompts was known."""
    return JudgeState(
        cold_requests=cold_requests,
        canary_tokens=Tokens(requests, 0, 0, requests * 500, requests * 500 * canary),
        stable_tokens=Tokens(1000, 0, 0, 500_000, 500_000 * stable),
    )


@pytest.mark.parametrize(
    ("state", "ttft", "latency"),
    [
        (asked(), "", ""),
        (asked(prompt=649), "", ""),
        (asked(prompt=651), "prompts have 651", "prompts have 651"),
        (asked(prompt=380), "prompts have 380", "prompts have 380"),
        (asked(generated=100), "", "answers have 100"),
        (asked(prompt=900, generated=900), "prompts have 900", "and the canary's answers have 900"),
        (asked(requests=0), "", ""),
        (asked(prompt=0), "", ""),
        (JudgeState(), "", ""),
    ],
)
def test_unlike_prompts(state, ttft, latency):
    """Over 30 % to either side, with both means; what is not known is not unlike."""
    found = {metric: describe_mix(state, metric) for metric in ("ttft", "latency", "itl")}

    assert found["latency"] == found["itl"]
    for words, said in ((ttft, found["ttft"]), (latency, found["latency"])):
        assert words in said
        assert bool(words) is bool(said)
        assert not said or "stable's" in said


@pytest.mark.parametrize(("requests", "unlike"), [(400, False), (40_000, True)])
def test_a_few_long_answers_are_chance(requests, unlike):
    """One stream of 800 tokens in a hundred: the mean of 400 requests says little about them."""

    def answers(number, long):
        short = number - long
        return Tokens(
            number,
            generated=4 * short + 800 * long,
            generated_squares=16 * short + 800**2 * long,
        )

    canary, stable = answers(requests, requests // 200), answers(10 * requests, requests // 8)
    state = JudgeState(canary_tokens=canary, stable_tokens=stable)
    assert 1.3 < (stable.generated / stable.requests) / (canary.generated / canary.requests)

    assert unlike is bool(describe_mix(state, "latency"))


@pytest.mark.parametrize(
    ("state", "cold"),
    [
        (cached(canary=0.1), True),
        (cached(canary=0.47), True),
        (cached(canary=0.49), False),
        (cached(canary=0.0, stable=0.19), False),
        (cached(canary=0.0, stable=0.21), True),
        (cached(canary=0.0, cold_requests=COLD_REQUESTS - 1), True),
        (cached(canary=0.0, cold_requests=COLD_REQUESTS), False),
        (JudgeState(stable_tokens=STABLE), True),
        (JudgeState(stable_tokens=STABLE, canary_tokens=Tokens(50, 25_000)), False),
        (JudgeState(), False),
    ],
    ids=[
        *("far-under", "under", "over", "stable-has-few-hits", "stable-has-some"),
        *("not-for-ever-yet", "not-for-ever", "not-served-yet", "has-no-cache", "unknown"),
    ],
)
def test_cold_cache(state, cold):
    """Under 80 % of a hit ratio that matters, for a while."""
    assert is_cold(state) is cold


def test_stable_is_known_by_the_window_at_hand():
    """The first one of a canary is already left out; silence of stable says nothing."""
    window = Window(with_tokens(STABLE), with_tokens(Tokens()))

    assert is_cold(JudgeState(), window)
    assert not is_cold(JudgeState(), Window(None, window.canary))


def test_a_low_hit_ratio_is_told():
    """Also of a canary that has no cache, and only where it is low."""
    assert "had 10% of the prompts' tokens, stable's 60%" in describe_caches(cached(canary=0.1))
    assert "had 0% of" in describe_caches(
        JudgeState(stable_tokens=STABLE, canary_tokens=Tokens(50, 25_000))
    )
    assert "" == describe_caches(cached(canary=0.5)) == describe_caches(JudgeState())
