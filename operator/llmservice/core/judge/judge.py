"""One look at a canary: a window of counts goes in, evidence and a decision come out.

A look decides from all evidence so far, however often one looks: the ratio test may be read after
every window without erring more (that is what sequential means). A window in which nothing is
heard of the canary adds no evidence and decides nothing; one without stable promotes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from llmservice.core.judge.checks import Check
from llmservice.core.judge.comparable import (
    COLD_REQUESTS,
    describe_caches,
    describe_mix,
    is_cold,
)
from llmservice.core.judge.counts import Counts, Histogram, Tokens, Window
from llmservice.core.judge.state import JudgeState, Tally
from llmservice.core.judge.statistics import dispersion, wilson_bounds
from llmservice.core.judge.wording import describe

_PASS_Z = 1.645
"""95 % sure to be under a limit."""
_FAIL_Z = 3.0
"""Over a limit by three standard deviations: it is looked at every window, not once."""
_MIN_BAD = 3
_EARLY_BAD = 5
"""So many bad requests abort before the minimum sample is there."""
_RARE = 0.001
"""A smaller share of bad requests aborts nothing, whatever stable's is."""
_DEEPEST = -7.0
"""Good evidence is not saved up further: a canary that turns bad after days must be seen soon."""


class Verdict(StrEnum):
    """What a rollout should do."""

    Promote = "promote"
    Abort = "abort"
    Inconclusive = "inconclusive"


class Hold(StrEnum):
    """Why a decision waits."""

    NoData = "NoData"
    """Nothing usable was heard from one of the tracks."""
    NoTraffic = "NoTraffic"
    """The canary served nothing."""
    Learning = "Learning"
    """Stable's own times are not known yet."""
    NotPublished = "NotPublished"
    """An engine does not publish what the guardrail is about."""
    ColdCache = "ColdCache"
    """The canary's prefix cache is new, so all that is known of its times is that."""
    UnlikeMix = "UnlikeMix"
    """The canary is asked other things than stable, so the two cannot be compared."""
    TooFew = "TooFew"
    """Under the minimum sample."""
    Undecided = "Undecided"
    """The evidence lies between the bounds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says, with the numbers it says it from."""

    check: str
    verdict: Verdict
    sentence: str
    hold: Hold | None
    tally: Tally
    seconds: float | None = None
    """Over which the canary's requests are bad; None for failures, or while it is learnt."""
    evidence: float | None = None
    """Log likelihood ratio over dispersion; None for a fixed limit."""
    abort_at: float | None = None
    promote_at: float | None = None
    low: float = 0.0
    """Lower bound of the canary's share of bad requests, the one that must be over a limit."""
    high: float = 1.0
    """Upper bound, the one that must be under it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do and why."""

    verdict: Verdict
    reason: str
    canary_requests: float
    findings: tuple[Finding, ...]
    hold: Hold | None = None


def judge(
    checks: Sequence[Check], state: JudgeState, window: Window
) -> tuple[JudgeState, Decision]:
    """Take one window into account and decide."""
    window = Window(_usable(window.stable), _usable(window.canary))
    state = _observe(checks, state, window)
    decision = weigh(checks, state, window)
    if window.canary is None:
        decision = _held(decision, Hold.NoData, "no usable counts from the canary")
    elif not window.canary.requests:
        decision = _held(decision, Hold.NoTraffic, "the canary served no request")
    elif window.stable is None and decision.verdict is not Verdict.Abort:
        # What the canary does on its own can condemn it; to be let through it needs its peer.
        decision = _held(decision, Hold.NoData, "no usable counts from stable")
    return state, decision


def weigh(checks: Sequence[Check], state: JudgeState, window: Window | None = None) -> Decision:
    """What the evidence says so far; the last window shows what engines do not publish."""
    findings = tuple(
        _weigh_check(check, state.tallies.get(check.label, Tally()), state, window)
        for check in checks
    )
    for verdict in (Verdict.Abort, Verdict.Inconclusive, Verdict.Promote):
        decisive = [finding for finding in findings if finding.verdict is verdict]
        if decisive:
            break
    else:
        return Decision(Verdict.Inconclusive, "no guardrails", state.canary_requests, ())
    reason = "; ".join(finding.sentence for finding in decisive)
    return Decision(verdict, reason, state.canary_requests, findings, decisive[0].hold)


def begin_step(state: JudgeState) -> JudgeState:
    """The state at a new weight: evidence carries over, the minimum sample is asked for again.

    So is whether the two can be compared: there may be new pods, and other clients.
    """
    return replace(
        state,
        step_requests=0.0,
        cold_requests=0.0,
        canary_tokens=Tokens(),
        stable_tokens=Tokens(),
    )


def _held(decision: Decision, hold: Hold, reason: str) -> Decision:
    return replace(decision, verdict=Verdict.Inconclusive, reason=reason, hold=hold)


def _usable(counts: Counts | None) -> Counts | None:
    return counts if counts is not None and counts.is_valid else None


# --- evidence -----------------------------------------------------------------------------------


def _observe(checks: Sequence[Check], state: JudgeState, window: Window) -> JudgeState:
    stable, canary = window.stable, window.canary
    served = canary.requests if canary else 0.0
    is_early = is_cold(state, window)
    of_times = replace(window, canary=None) if is_early else window
    tallies = {
        check.label: _count(
            check,
            state.tallies.get(check.label, Tally()),
            window if check.metric == "errors" else of_times,
        )
        for check in checks
    }
    after = replace(
        state,
        canary_requests=state.canary_requests + served,
        step_requests=state.step_requests + served,
        cold_requests=state.cold_requests + (served if is_early else 0.0),
        tallies=tallies,
    )
    if not (canary and stable and served):
        return after
    return replace(
        after,
        canary_tokens=state.canary_tokens + canary.tokens,
        stable_tokens=state.stable_tokens + stable.tokens,
    )


def _count(check: Check, tally: Tally, window: Window) -> Tally:
    served = window.canary is not None and window.canary.requests > 0
    if check.is_learnt and tally.threshold is None:
        if not served or tally.lookback is None or tally.lookback.total < check.lookback:
            return _learn(check, tally, window.stable)
        tally = _freeze(check, tally.lookback)
    if window.canary is None or not served:
        return tally
    threshold = tally.threshold if check.is_learnt else check.seconds
    canary = check.sample(window.canary, check.canary_limit(tally.threshold))
    if canary is None:
        return tally
    tally = replace(
        tally,
        canary_requests=tally.canary_requests + canary[0],
        canary_bad=tally.canary_bad + canary[1],
    )
    stable = check.sample(window.stable, threshold) if window.stable else None
    if stable is None or not stable[0]:
        return tally
    log_ratio = tally.log_ratio
    if check.ratio is not None:
        log_ratio += check.ratio.evidence(canary, stable, tally.slack)
    return replace(
        tally,
        log_ratio=max(_DEEPEST, log_ratio),
        stable_requests=tally.stable_requests + stable[0],
        stable_bad=tally.stable_bad + stable[1],
        stable_windows=tally.stable_windows + 1,
        stable_squares=tally.stable_squares + stable[1] ** 2 / stable[0],
    )


def _learn(check: Check, tally: Tally, stable: Counts | None) -> Tally:
    """Stable's own times, until they are enough and the canary serves."""
    times, before = check.histogram(stable) if stable else None, tally.lookback
    if times is None:
        return tally
    anew = before is None or before.edges != times.edges
    return replace(tally, lookback=times if before is None or anew else before + times)


def _freeze(check: Check, lookback: Histogram) -> Tally:
    """What is learnt from earlier windows only: what it is put to had no part in choosing it."""
    # Over the last edge nothing can be told apart.
    threshold = min(lookback.quantile(1 - check.share), lookback.edges[-1] / check.stretch)
    # So often is a version identical to stable over the canary's limit, for each time that stable
    # is over the threshold. Usually that is well under 1; where stable has no times in between (one
    # in ten misses a cache, say) it is 1, and too many identical versions would be aborted.
    identical = lookback.above(threshold * check.stretch) / max(1.0, lookback.above(threshold))
    return Tally(threshold=threshold, slack=check.ratio.slack(identical) if check.ratio else 1.0)


# --- decision -----------------------------------------------------------------------------------


def _weigh_check(check: Check, tally: Tally, state: JudgeState, window: Window | None) -> Finding:
    low, _ = wilson_bounds(tally.canary_bad, tally.canary_requests, _FAIL_Z)
    _, high = wilson_bounds(tally.canary_bad, tally.canary_requests, _PASS_Z)
    evidence = None
    if check.ratio is None:
        fails, passes = low > check.share, high <= check.share
    else:
        evidence = tally.log_ratio / dispersion(
            tally.stable_windows, tally.stable_requests, tally.stable_bad, tally.stable_squares
        )
        fails = (
            evidence >= check.ratio.abort_at and tally.canary_bad >= _RARE * tally.canary_requests
        )
        # Where hardly anything is bad on either side, no ratio is ever known, nor needed.
        passes = evidence <= check.ratio.promote_at or (evidence <= 0 and high <= check.share)
    counted = state.step_requests - (0.0 if check.metric == "errors" else state.cold_requests)
    served = min(tally.canary_requests, counted)
    verdict, hold = _outcome(check, tally, served, fails=fails, passes=passes)
    invalid = _why_invalid(check, state, window, verdict)
    if invalid is None:
        words = _why_held(check, tally, served, hold) + _note(check, tally, state)
    else:
        (hold, words), verdict = invalid, Verdict.Inconclusive
    return Finding(
        check=check.label,
        verdict=verdict,
        sentence=describe(check, tally, low, high, evidence) + words,
        hold=hold,
        tally=tally,
        seconds=check.canary_limit(tally.threshold),
        evidence=evidence,
        abort_at=check.ratio.abort_at if check.ratio else None,
        promote_at=check.ratio.promote_at if check.ratio else None,
        low=low,
        high=high,
    )


def _outcome(
    check: Check, tally: Tally, served: float, *, fails: bool, passes: bool
) -> tuple[Verdict, Hold | None]:
    if check.is_learnt and tally.threshold is None:
        return Verdict.Inconclusive, Hold.Learning
    enough = served >= check.min_requests
    if fails and tally.canary_bad >= (_MIN_BAD if enough else _EARLY_BAD):
        return Verdict.Abort, None
    if not enough:
        return Verdict.Inconclusive, Hold.TooFew
    return (Verdict.Promote, None) if passes else (Verdict.Inconclusive, Hold.Undecided)


def _why_invalid(
    check: Check, state: JudgeState, window: Window | None, verdict: Verdict
) -> tuple[Hold, str] | None:
    """Why the evidence on times decides nothing, whatever it is."""
    if check.metric == "errors":
        return None
    if mute := " and ".join(_mute(check, window)):
        words = f"{mute} publish no times between tokens: guard latency instead"
        return Hold.NotPublished, f" ({words})"
    if state.cold_requests and is_cold(state):
        caches = describe_caches(state) or "the canary's prefix cache is new"
        limit = f"{state.cold_requests:.0f} of at most {COLD_REQUESTS}"
        return Hold.ColdCache, f" (not counted while {caches}: {limit} requests)"
    # A fixed limit holds whatever stable does, so it needs no likeness.
    decides = check.ratio is not None and verdict is not Verdict.Inconclusive
    if decides and (unlike := describe_mix(state, check.metric)):
        ways_out = "where sessions stick, wait for more of them; or guard errors or maxSeconds"
        return Hold.UnlikeMix, f" (no comparison, as {unlike}: {ways_out})"
    return None


def _mute(check: Check, window: Window | None) -> Iterator[str]:
    """Whose engines serve and do not publish the times."""
    if window is None:
        return
    tracks = [("the canary's engines", window.canary)]
    if check.ratio is not None:
        tracks.append(("stable's engines", window.stable))
    for whose, counts in tracks:
        if counts is not None and counts.requests and check.histogram(counts) is None:
            yield whose


def _why_held(check: Check, tally: Tally, served: float, hold: Hold | None) -> str:
    if hold is Hold.Learning:
        seen = tally.lookback.total if tally.lookback else 0
        return f" (stable's own times are known after {check.lookback:.0f} requests: {seen:.0f})"
    if hold is Hold.TooFew:
        return f" ({served:.0f} of {check.min_requests} canary requests)"
    return " (undecided)" if hold is Hold.Undecided else ""


def _note(check: Check, tally: Tally, state: JudgeState) -> str:
    """What a person should know of the evidence on times, though it counts."""
    caches = describe_caches(state)
    return f"; {caches}" if caches and tally.canary_requests and check.metric != "errors" else ""
