"""One look at a canary: a window of counts goes in, evidence and a decision come out.

A look decides from all evidence so far, however often one looks: the ratio test may be read after
every window without erring more (that is what sequential means). A window in which nothing is
heard of the canary adds no evidence and decides nothing; one without stable promotes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from llmservice.core.judge.checks import Check
from llmservice.core.judge.counts import Counts, Histogram, Window
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
    decision = weigh(checks, state)
    if window.canary is None:
        decision = _held(decision, Hold.NoData, "no usable counts from the canary")
    elif not window.canary.requests:
        decision = _held(decision, Hold.NoTraffic, "the canary served no request")
    elif window.stable is None and decision.verdict is not Verdict.Abort:
        # What the canary does on its own can condemn it; to be let through it needs its peer.
        decision = _held(decision, Hold.NoData, "no usable counts from stable")
    return state, decision


def weigh(checks: Sequence[Check], state: JudgeState) -> Decision:
    """What the evidence says so far."""
    findings = tuple(
        _weigh_check(check, state.tallies.get(check.label, Tally()), state) for check in checks
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
    """The state at a new weight: evidence carries over, the minimum sample is asked for again."""
    return replace(state, step_requests=0.0)


def _held(decision: Decision, hold: Hold, reason: str) -> Decision:
    return replace(decision, verdict=Verdict.Inconclusive, reason=reason, hold=hold)


def _usable(counts: Counts | None) -> Counts | None:
    return counts if counts is not None and counts.is_valid else None


# --- evidence -----------------------------------------------------------------------------------


def _observe(checks: Sequence[Check], state: JudgeState, window: Window) -> JudgeState:
    served = window.canary.requests if window.canary else 0.0
    return JudgeState(
        canary_requests=state.canary_requests + served,
        step_requests=state.step_requests + served,
        tallies={
            check.label: _count(check, state.tallies.get(check.label, Tally()), window)
            for check in checks
        },
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
    canary = window.canary.requests, check.bad(window.canary, check.canary_limit(tally.threshold))
    tally = replace(
        tally,
        canary_requests=tally.canary_requests + canary[0],
        canary_bad=tally.canary_bad + canary[1],
    )
    if window.stable is None or not window.stable.requests:
        return tally
    stable = window.stable.requests, check.bad(window.stable, threshold)
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
    if stable is None:
        return tally
    times, before = check.histogram(stable), tally.lookback
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


def _weigh_check(check: Check, tally: Tally, state: JudgeState) -> Finding:
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
    served = min(tally.canary_requests, state.step_requests)
    verdict, hold = _outcome(check, tally, served, fails=fails, passes=passes)
    return Finding(
        check=check.label,
        verdict=verdict,
        sentence=describe(check, tally, low, high, evidence)
        + _why_held(check, tally, served, hold),
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


def _why_held(check: Check, tally: Tally, served: float, hold: Hold | None) -> str:
    if hold is Hold.Learning:
        seen = tally.lookback.total if tally.lookback else 0
        return f" (stable's own times are known after {check.lookback:.0f} requests: {seen:.0f})"
    if hold is Hold.TooFew:
        return f" ({served:.0f} of {check.min_requests} canary requests)"
    return " (undecided)" if hold is Hold.Undecided else ""
