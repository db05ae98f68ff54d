"""The judge's laws, what it makes of missing data, and how often it errs."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice.api.guardrails import Guardrail
from llmservice.core.canary.state import load_rollout
from llmservice.core.judge import judge as judge_module
from llmservice.core.judge.counts import Counts, Tokens, Window
from llmservice.core.judge.judge import Hold, Verdict, begin_step, judge, weigh
from llmservice.core.judge.state import JudgeState
from tests.unit.core.judge.traffic import (
    ERRORS,
    ITL,
    LOOKBACK,
    NOTHING,
    P90,
    UNDER_A_SECOND,
    USUAL,
    checks,
    counts,
    draw,
    dumped,
    handed_over,
    judged,
    streamed,
    verdict_of,
    with_tokens,
)

ALL = checks(P90, UNDER_A_SECOND, ERRORS)
RANK = [Verdict.Abort, Verdict.Inconclusive, Verdict.Promote]
small = st.integers(0, 8)
windows = st.lists(
    st.tuples(small, small, small, small, small, small).map(
        lambda n: Window(counts(n[0] * 5, n[1], n[2]), counts(n[3] * 5, n[4], n[5]))
    ),
    max_size=12,
)
fast = settings(max_examples=25, deadline=None)


# --- outcomes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guardrail", "canary", "verdict"),
    [
        (P90, counts(190, 10), Verdict.Promote),
        (P90, counts(140, 60), Verdict.Abort),
        (UNDER_A_SECOND, counts(195, 5), Verdict.Promote),
        (UNDER_A_SECOND, counts(150, 50), Verdict.Abort),
        (UNDER_A_SECOND, counts(180, 20), Verdict.Inconclusive),
        (ERRORS, counts(300), Verdict.Promote),
        (ERRORS, counts(180, 0, 20), Verdict.Abort),
    ],
)
def test_outcomes(guardrail, canary, verdict):
    """Clear cases are decided, a share at the limit is not."""
    _, decision = judged(checks(guardrail), [*LOOKBACK, Window(USUAL, canary)])

    assert verdict is decision.verdict
    assert f"{canary.requests:.0f}" in decision.reason


def test_failed_requests_are_slow_requests():
    """An engine that fails fast keeps no promise about time."""
    _, decision = judged(checks(P90), [*LOOKBACK, Window(USUAL, counts(140, 0, 60))])

    assert Verdict.Abort is decision.verdict


def test_one_failing_guardrail_aborts_and_all_must_pass():
    """The reason is that of the one that decided."""
    both = checks(P90, ERRORS)
    _, slow = judged(both, [*LOOKBACK, Window(USUAL, counts(180, 120))])
    _, few = judged(both, [*LOOKBACK, Window(USUAL, counts(100, 5))])
    _, good = judged(both, [*LOOKBACK, Window(USUAL, counts(290, 10))])

    assert (Verdict.Abort, True) == (slow.verdict, slow.reason.startswith("p90 ttft"))
    assert (Verdict.Inconclusive, Hold.Undecided) == (few.verdict, few.hold)
    assert Verdict.Promote is good.verdict


def test_no_promotion_under_the_minimum_sample():
    """However good it looks."""
    rules = checks(Guardrail(metric="ttft", max_seconds=10, min_requests=500))
    _, few = judged(rules, [Window(USUAL, counts(499))])
    _, enough = judged(rules, [Window(USUAL, counts(500))])

    assert (Verdict.Inconclusive, Hold.TooFew) == (few.verdict, few.hold)
    assert "499 of 500 canary requests" in few.reason
    assert Verdict.Promote is enough.verdict


def test_a_clear_failure_needs_no_minimum_sample():
    """Five bad requests are enough when there is no doubt, two never are."""
    rules = checks(Guardrail(metric="errors", max_error_rate_percent=1))
    _, five = judged(rules, [Window(USUAL, counts(5, 0, 5))])
    _, two = judged(rules, [Window(USUAL, counts(0, 0, 2))])

    assert (Verdict.Abort, Verdict.Inconclusive) == (five.verdict, two.verdict)


def test_rare_failures_abort_nothing():
    """Four in 8,000 against none is four times nothing."""
    rules = checks(Guardrail(metric="errors", max_increase_percent=50))
    canary = [Window(counts(20000), counts(1999, 0, 1))] * 4

    assert Verdict.Abort is not judged(rules, canary)[1].verdict


def test_worse_than_live_stable_is_not_promoted_for_being_fast_enough():
    """Stable got faster since its quantile was learnt, and the canary did not follow."""
    quiet = [Window(counts(300), counts(195, 4))]
    _, decision = judged(checks(P90), [*LOOKBACK, *quiet])

    assert (Verdict.Inconclusive, Hold.Undecided) == (decision.verdict, decision.hold)


def test_each_step_needs_its_own_requests():
    """Evidence carries over, the minimum sample does not."""
    state, promoted = judged(checks(P90), [*LOOKBACK, Window(USUAL, counts(190, 10))])
    state, next_step = judge(checks(P90), begin_step(state), Window(USUAL, counts(19, 1)))
    _, later = judge(checks(P90), state, Window(USUAL, counts(95, 5)))

    assert Verdict.Promote is promoted.verdict
    assert (Verdict.Inconclusive, Hold.TooFew) == (next_step.verdict, next_step.hold)
    assert Verdict.Promote is later.verdict


def test_a_canary_that_turns_bad_after_days_is_aborted():
    """Good evidence is not saved up for ever."""
    good, bad = Window(USUAL, counts(90, 10)), Window(USUAL, counts(70, 30))
    state, _ = judged(checks(P90), [*LOOKBACK, *[good] * 1000])

    assert Verdict.Abort is judged(checks(P90), [bad] * 5, state)[1].verdict


def test_without_guardrails_nothing_is_decided():
    """Nobody promised anything, so nothing was kept."""
    assert Verdict.Inconclusive is judged((), [Window(USUAL, USUAL)])[1].verdict


def test_threshold_is_learnt_before_the_canary_is_judged():
    """A rollout that starts with its canary holds until stable is known."""
    short = Window(counts(45, 5), counts(0, 50))
    state, early = judged(checks(P90), [short])
    _, late = judged(checks(P90), [short] * 2, state)

    assert (Verdict.Inconclusive, Hold.Learning) == (early.verdict, early.hold)
    assert "100 requests: 50" in early.reason
    assert Verdict.Abort is late.verdict


# --- missing and broken data ----------------------------------------------------------------------

BROKEN = Counts(math.nan, 0, USUAL.ttft, USUAL.latency)
PASSING = judged(checks(P90), [*LOOKBACK, Window(USUAL, counts(190, 10))])[0]
FAILING = judged(checks(P90), [*LOOKBACK, Window(USUAL, counts(100, 100))])[0]


@pytest.mark.parametrize("state", [PASSING, FAILING, JudgeState()], ids=["good", "bad", "new"])
@pytest.mark.parametrize(
    ("canary", "hold"),
    [(None, Hold.NoData), (BROKEN, Hold.NoData), (NOTHING, Hold.NoTraffic)],
    ids=["none", "broken", "no-traffic"],
)
def test_no_data_holds(state, canary, hold):
    """Whatever was known before: neither promoted nor aborted, and no evidence."""
    after, decision = judge(checks(P90), state, Window(USUAL, canary))

    assert (Verdict.Inconclusive, hold) == (decision.verdict, decision.hold)
    assert (state.canary_requests, weigh(checks(P90), state).findings[0].evidence) == (
        after.canary_requests,
        weigh(checks(P90), after).findings[0].evidence,
    )


@pytest.mark.parametrize("stable", [None, BROKEN])
def test_no_data_of_stable_never_promotes(stable):
    """A canary that failed stays failed, a good one waits for its peer."""
    good = judge(checks(P90), PASSING, Window(stable, counts(95, 5)))[1]
    failed = judge(checks(P90), FAILING, Window(stable, counts(95, 5)))[1]

    assert (Verdict.Inconclusive, Hold.NoData) == (good.verdict, good.hold)
    assert Verdict.Abort is failed.verdict


@fast
@given(windows, st.integers(0, 12))
def test_an_outage_in_between_changes_nothing(sequence, place):
    """Windows without data can stand anywhere."""
    outage = [Window(None, None), Window(BROKEN, BROKEN)]

    before, after = sequence[:place], sequence[place:]
    undisturbed, _ = judged(ALL, [*LOOKBACK, *sequence])

    assert undisturbed == judged(ALL, [*LOOKBACK, *before, *outage, *after])[0]


# --- times between tokens -------------------------------------------------------------------------

STREAMS = streamed(90, 10)
STREAMED = [Window(STREAMS, streamed(0))] * 5


@pytest.mark.parametrize(
    ("canary", "verdict"),
    [
        (streamed(190, 10), Verdict.Promote),
        (streamed(140, 60), Verdict.Abort),
        (streamed(140, 0, 60), Verdict.Abort),
        (streamed(18, 2), Verdict.Inconclusive),
    ],
)
def test_tokens_are_judged_by_the_requests_they_are_of(canary, verdict):
    """Two thousand tokens of twenty requests are twenty, not two thousand."""
    _, decision = judged(checks(ITL), [*STREAMED, Window(STREAMS, canary)])

    assert verdict is decision.verdict
    assert f"of the tokens of {canary.requests:.0f} canary requests" in decision.reason


def test_longer_answers_are_no_more_evidence():
    """Ten times the tokens, the same numbers."""
    long = [Window(streamed(90, 10, tokens=1000), streamed(19, 1, tokens=1000))]
    short = [Window(STREAMS, streamed(19, 1))]

    evidence = [
        judged(checks(ITL), [*STREAMED, *windows])[1].findings[0].evidence
        for windows in (long, short)
    ]
    assert evidence[0] == pytest.approx(evidence[1])


@pytest.mark.parametrize(
    ("stable", "canary", "whose"),
    [
        (STREAMS, USUAL, "the canary's engines publish"),
        (USUAL, streamed(90, 10), "stable's engines publish"),
        (USUAL, USUAL, "the canary's engines and stable's engines publish"),
    ],
)
def test_an_engine_that_does_not_publish_them_holds(stable, canary, whose):
    """It aborts nothing and promotes nothing, and the others go on."""
    windows = [Window(stable, counts(0))] * 5 + [Window(stable, canary)] * 3
    _, decision = judged(checks(ITL, P90), windows)

    itl, ttft = decision.findings
    assert (Verdict.Inconclusive, Hold.NotPublished) == (itl.verdict, itl.hold)
    assert f"{whose} no times between tokens: guard latency instead" in itl.sentence
    assert Verdict.Promote is ttft.verdict
    assert Hold.NotPublished is decision.hold


def test_a_fixed_limit_needs_only_the_canarys_tokens():
    """Whatever stable publishes."""
    rules = checks(Guardrail(metric="itl", quantile="p90", max_seconds=1.5))
    _, decision = judged(rules, [Window(USUAL, streamed(195, 5))])

    assert Verdict.Promote is decision.verdict


# --- what cannot be compared ----------------------------------------------------------------------


def asked(number, prompt=500, generated=200, hit_ratio=0.0):
    """What so many requests were made of."""
    queries = number * prompt
    return Tokens(number, queries, number * generated, queries, queries * hit_ratio)


AS_USUAL = with_tokens(asked(100), USUAL)
GOOD, BAD = counts(300), counts(140, 0, 60)
LATENCY = P90.model_copy(update={"metric": "latency"})


@pytest.mark.parametrize("canary", [GOOD, BAD], ids=["good", "bad"])
@pytest.mark.parametrize(
    ("guardrail", "tokens", "holds"),
    [
        (P90, asked(200), False),
        (P90, asked(200, prompt=1000), True),
        (P90, asked(200, prompt=250), True),
        (P90, asked(200, generated=1000), False),
        (LATENCY, asked(200, generated=1000), True),
        (LATENCY, asked(200, generated=50), True),
        (UNDER_A_SECOND, asked(200, prompt=1000), False),
        (ERRORS, asked(200, prompt=1000), False),
    ],
)
def test_unlike_prompts_are_not_compared(canary, guardrail, tokens, holds):
    """Longer or shorter, neither for nor against; what needs no comparison is judged."""
    window = Window(AS_USUAL, with_tokens(tokens, canary))
    _, decision = judged(checks(guardrail), [*LOOKBACK, window])

    assert holds is (decision.hold is Hold.UnlikeMix)
    assert holds is (decision.verdict is Verdict.Inconclusive)
    if holds:
        assert "tokens on average, stable's" in decision.reason
        assert "wait for more of them; or guard errors or maxSeconds" in decision.reason


def test_prompts_that_become_alike_are_compared():
    """More requests even it out, and the next step is looked at anew."""
    unlike = Window(AS_USUAL, with_tokens(asked(100, prompt=800), counts(50, 50)))
    like = Window(AS_USUAL, with_tokens(asked(100), counts(70, 30)))
    state, first = judged(checks(P90), [*LOOKBACK, unlike])
    state, second = judged(checks(P90), [like], state)
    _, third = judged(checks(P90), [like], begin_step(state))

    assert (Hold.UnlikeMix, Verdict.Abort) == (first.hold, second.verdict)
    assert Verdict.Abort is third.verdict


WARM = with_tokens(asked(100, hit_ratio=0.6), USUAL)
COLD_SLOW = with_tokens(asked(30, hit_ratio=0.1), counts(10, 20))
WARM_FAST = with_tokens(asked(100, hit_ratio=0.6), counts(95, 5))


def test_a_cold_cache_is_no_evidence_on_times():
    """From the canary's first request on; errors are judged meanwhile."""
    state, cold = judged(checks(P90, UNDER_A_SECOND, ERRORS), [*LOOKBACK, Window(WARM, COLD_SLOW)])

    assert (Verdict.Inconclusive, Hold.ColdCache) == (cold.verdict, cold.hold)
    assert [0, 0, 30, 30] == [each.tally.canary_requests for each in cold.findings]
    assert "canary's prefix cache had 10% of the prompts' tokens, stable's 60%" in cold.reason
    assert "30 of at most 100 requests" in cold.reason
    failing = with_tokens(asked(30, hit_ratio=0.1), counts(10, 0, 20))
    assert Verdict.Abort is judged(checks(P90, ERRORS), [Window(WARM, failing)], state)[1].verdict


def test_a_warm_cache_is_judged():
    """What made it warm is not counted, so the choice owes nothing to it."""
    windows = [Window(WARM, COLD_SLOW), *[Window(WARM, WARM_FAST)] * 4]
    _, decision = judged(checks(P90), [*LOOKBACK, *windows])

    assert Verdict.Promote is decision.verdict
    assert 300 == decision.findings[0].tally.canary_requests
    assert "prefix cache" not in decision.reason


def test_a_cache_that_stays_cold_is_judged_after_a_hundred_requests():
    """It may be what is wrong with the canary; the sentence says so."""
    windows = [Window(WARM, COLD_SLOW)] * 5
    _, fourth = judged(checks(P90), [*LOOKBACK, *windows[:4]])
    _, fifth = judged(checks(P90), [*LOOKBACK, *windows])

    assert fourth.reason.startswith("p90 ttft at most 50% worse than stable: no evidence yet")
    assert Verdict.Abort is fifth.verdict
    assert "the canary's prefix cache had 10% of the prompts' tokens" in fifth.reason


def test_new_pods_of_a_step_have_cold_caches_of_their_own():
    """The evidence of earlier steps does not decide until there is some of this one."""
    rules, step = checks(P90), [Window(WARM, COLD_SLOW), *[Window(WARM, WARM_FAST)] * 2]
    state, first = judged(rules, [*LOOKBACK, *[Window(WARM, WARM_FAST)] * 3])
    held = [judged(rules, step[:number], begin_step(state))[1] for number in (1, 2, 3)]
    tiny = Window(WARM, with_tokens(asked(50, hit_ratio=0.6), counts(48, 2)))
    _, few = judged(rules, [*step[:2], tiny], begin_step(state))

    assert [Hold.ColdCache, Hold.TooFew, None] == [each.hold for each in held]
    assert Verdict.Promote is first.verdict is held[2].verdict
    assert "(50 of 100 canary requests)" in few.reason


# --- laws -----------------------------------------------------------------------------------------


@fast
@given(windows, st.randoms(use_true_random=False))
def test_order_of_windows_does_not_matter(sequence, rng):
    """Once the threshold is known: the sum of evidence has no order."""
    shuffled = rng.sample(sequence, len(sequence))
    known = [*LOOKBACK, Window(USUAL, counts(9, 1))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_module, "_DEEPEST", -math.inf)  # where it is cut depends on the order
        one = weigh(ALL, judged(ALL, [*known, *sequence])[0])
        other = weigh(ALL, judged(ALL, [*known, *shuffled])[0])

    for mine, theirs in zip(one.findings, other.findings, strict=True):
        assert mine.evidence == pytest.approx(theirs.evidence)
        assert mine.tally.canary_bad == pytest.approx(theirs.tally.canary_bad)


@fast
@given(windows, st.data())
def test_more_errors_never_help(sequence, data):
    """A canary request that fails instead never makes a verdict better, by any guardrail."""
    served = [n for n, w in enumerate(sequence) if w.canary.requests > w.canary.failed]
    if not served:
        return
    place = data.draw(st.sampled_from(served))
    worse = [*sequence]
    worse[place] = replace(sequence[place], canary=_one_fails(sequence[place].canary))

    for window in range(place, len(sequence)):
        before = judged(ALL, [*LOOKBACK, *sequence[: window + 1]])[1]
        after = judged(ALL, [*LOOKBACK, *worse[: window + 1]])[1]
        assert RANK.index(after.verdict) <= RANK.index(before.verdict)


def _one_fails(canary: Counts) -> Counts:
    place = next(n for n, count in enumerate(canary.ttft.counts) if count)
    fewer = tuple(c - (n == place) for n, c in enumerate(canary.ttft.counts))
    times = replace(canary.ttft, counts=fewer)
    return Counts(canary.requests, canary.failed + 1, times, times)


@fast
@given(windows, st.integers(0, 12))
def test_a_new_leader_continues(sequence, place):
    """Through JSON and back after any window, nothing differs."""
    first, _ = judged(ALL, sequence[:place])
    resumed = handed_over(first)

    assert first == resumed
    assert judged(ALL, sequence)[0] == judged(ALL, sequence[place:], resumed)[0]


def test_a_state_of_the_version_before_is_continued():
    """It knew nothing of tokens."""
    state, _ = judged(ALL, [*LOOKBACK, Window(USUAL, counts(50, 5))])
    before = json.loads(dumped(state))
    for name in ("coldRequests", "canaryTokens", "stableTokens"):
        del before["judge"][name]

    assert state == load_rollout(json.dumps(before)).judge


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"canaryRequests": -1},
        {"canaryTokens": {"prompt": math.nan}},
        {"canaryRequests": math.nan},
        {"tallies": {"x": {"logRatio": math.inf}}},
    ],
)
def test_a_state_that_is_none_is_not_continued(value):
    """Nor is the rollout: it starts anew rather than from nonsense."""
    rollout = json.loads(dumped(JudgeState()))

    assert load_rollout(json.dumps(rollout)) is not None
    assert load_rollout(json.dumps(rollout | {"judge": value})) is None


def test_what_a_newer_operator_kept_besides_is_no_nonsense():
    """Who goes back to the version before keeps the rollout, its pause and its rejections."""
    state, _ = judged(ALL, [*LOOKBACK, Window(USUAL, counts(50, 5))])
    newer = json.loads(dumped(state))
    newer["judge"]["surprise"] = 1
    for tally in newer["judge"]["tallies"].values():
        tally["surprise"] = 1

    assert state == load_rollout(json.dumps(newer)).judge


def test_an_edited_guardrail_starts_anew_and_others_go_on():
    """Evidence is kept by what was promised."""
    state, _ = judged(ALL, [*LOOKBACK, Window(USUAL, counts(50, 5))])
    edited = checks(P90, UNDER_A_SECOND.model_copy(update={"max_seconds": 2.0}), ERRORS)
    after, _ = judge(edited, state, Window(USUAL, counts(10)))

    found = [after.tallies[check.label].canary_requests for check in edited]
    assert [65, 10, 65, 65] == found


# --- how often it errs ----------------------------------------------------------------------------


def _rates(rules, runs, **how):
    ends = [verdict_of(rules, draw(seed, **how)) for seed in range(runs)]
    return [sum(end[0] is verdict for end in ends) / runs for verdict in RANK], ends


def test_identical_versions_are_promoted():
    """Of 100 at most one is aborted, and nearly all are promoted within half an hour."""
    (aborted, _, promoted), _ = _rates(checks(P90, ERRORS), 100, failed=(0.003, 0.003))

    assert aborted <= 0.01
    assert promoted >= 0.9


def test_slow_and_failing_canaries_are_aborted():
    """Three times the slow requests, or 5 % failing: at least nine in ten, and soon."""
    (slow, _, _), ends = _rates(checks(P90), 60, slow=(0.1, 0.3))
    (failing, _, _), _ = _rates(checks(ERRORS), 60, failed=(0.005, 0.05))

    assert slow >= 0.9
    assert failing >= 0.9
    assert sorted(requests for _, requests in ends)[30] <= 90
