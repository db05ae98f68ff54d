"""Evidence: what is asked of pods, when, and what their answers add up to.

Nothing waits for an answer. What is missing is asked; a window ends once every pod has answered
since it was due, or was found silent. Counters come from two sides: engines know how long requests
took, routers know which ones failed, because an engine that died cannot tell.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from llmservice.api.v1alpha1 import RolloutSpec
from llmservice.core.canary.state import (
    FULL,
    MAX_MESSAGE,
    UNDER_WAY,
    CheckResult,
    Hold,
    Phase,
    Rollout,
)
from llmservice.core.judge import judge as judging
from llmservice.core.judge.checks import compile_guardrails
from llmservice.core.judge.counts import (
    VLLM_ITL_EDGES,
    VLLM_LATENCY_EDGES,
    VLLM_TTFT_EDGES,
    Counts,
    Histogram,
    Window,
)
from llmservice.core.judge.scrapes import Baselines, Scrape, count_increase
from llmservice.core.observed import Observed, PodFacts
from llmservice.core.questions import (
    Answer,
    EngineReading,
    Question,
    ReadEngine,
    ReadRouter,
    WarmedUp,
    WarmUp,
)
from llmservice.core.router.report import RouterReport

ROUTER_POLL_SECONDS = 0.2
DRAIN_POLL_SECONDS = 1.0
_HOLDS = {
    judging.Hold.NoData: Hold.MetricsUnavailable,
    judging.Hold.NoTraffic: Hold.NoTraffic,
}


@dataclass(frozen=True, slots=True)
class Look:
    """A rollout with what was learnt, and what is to be asked next."""

    rollout: Rollout
    ask: tuple[Question, ...] = ()
    baselines: Mapping[str, Baselines] | None = None
    again_in: float | None = None
    """Seconds until the next look, if nothing happens before."""


def look(rollout: Rollout, observed: Observed, policy: RolloutSpec) -> Look:
    """Take a window into account if one is complete, or ask for what it lacks."""
    if rollout.phase not in UNDER_WAY or rollout.phase is Phase.Preflight:
        return Look(rollout)
    due = _due(rollout, policy)
    if observed.now < due:
        return Look(rollout, again_in=(due - observed.now) / timedelta(seconds=1))
    engines = list(_serving(observed, rollout.stable, rollout.canary))
    ask = _ask(observed, engines, ready_routers(observed), due)
    if ask:
        return Look(rollout, ask, again_in=1.0)
    return _count(rollout, observed, policy)


def ready_routers(observed: Observed) -> list[PodFacts]:
    """Routers that clients reach."""
    return [pod for pod in observed.routers if pod.is_reachable]


def routers_behind(observed: Observed, version: str, since: datetime | None) -> str:
    """Why not every router routes by this version; empty when all do.

    Args:
        observed: routers and what they answered.
        version: of the traffic that is wanted.
        since: older answers do not count.
    """
    routers = ready_routers(observed)
    if not routers:
        return "no router is ready"
    for pod in routers:
        answer = observed.answers.get((ReadRouter, pod.uid))
        if answer is None or (since is not None and answer.at < since):
            return f"router {pod.name} was not heard yet"
        report = answer.content
        if not isinstance(report, RouterReport):
            return f"router {pod.name} does not answer"
        if report.version != version:
            return f"router {pod.name}: {report.problem or 'the new weights are not in force yet'}"
    return ""


def ask_routers(observed: Observed, version: str, since: datetime | None) -> tuple[Question, ...]:
    """Routers that are to be asked (again) whether they route by this version."""
    pause = timedelta(seconds=ROUTER_POLL_SECONDS)
    return tuple(
        ReadRouter(pod.uid, pod.address)
        for pod in ready_routers(observed)
        if (answer := observed.answers.get((ReadRouter, pod.uid))) is None
        or observed.now - answer.at >= pause
        if not _routes_by(answer, version, since)
    )


def _routes_by(answer: Answer | None, version: str, since: datetime | None) -> bool:
    if answer is None or not isinstance(answer.content, RouterReport):
        return False
    return answer.content.version == version and (since is None or answer.at >= since)


# --- warm-up --------------------------------------------------------------------------------------


def warm_pods(observed: Observed, revision: str) -> int:
    """Ready pods of a revision that have answered requests of ours."""
    return sum(
        isinstance(warmth := _warmth(observed, pod), WarmedUp) and not warmth.problem
        for pod in _serving(observed, revision)
    )


def warm_problem(observed: Observed, revision: str) -> str:
    """Why a pod did not answer them; empty when none failed."""
    for pod in _serving(observed, revision):
        warmth = _warmth(observed, pod)
        if isinstance(warmth, WarmedUp) and warmth.problem:
            return f"{pod.name}: {warmth.problem}"
    return ""


def ask_to_warm_up(
    observed: Observed, revision: str, model: str, policy: RolloutSpec
) -> tuple[Question, ...]:
    """Pods of a revision that have not been asked yet, or were not reached."""
    warm_up = policy.warm_up
    if not warm_up.requests:
        return ()
    just_now = observed.now - timedelta(seconds=DRAIN_POLL_SECONDS)
    return tuple(
        WarmUp(pod.uid, pod.address, model, warm_up.prompt, warm_up.requests)
        for pod in _serving(observed, revision)
        if (answer := observed.answers.get((WarmUp, pod.uid))) is None
        or (answer.content is None and answer.at < just_now)
    )


def _warmth(observed: Observed, pod: PodFacts) -> object:
    answer = observed.answers.get((WarmUp, pod.uid))
    return None if answer is None else answer.content


# --- draining -------------------------------------------------------------------------------------


def watch_drain(rollout: Rollout, observed: Observed, propagation_seconds: float) -> Look:
    """Ask the leaving engines and the routers whether anything is left to answer.

    Args:
        rollout: that drains.
        observed: what they answered.
        propagation_seconds: so long new requests may still come, so nothing counts as idle.
    """
    if observed.now < rollout.since + timedelta(seconds=propagation_seconds):
        return Look(rollout)
    pause = timedelta(seconds=DRAIN_POLL_SECONDS)
    fresh_after = observed.now - pause
    engines = list(_serving(observed, rollout.leaving))
    routers = ready_routers(observed)
    ask = _ask(observed, engines, routers, fresh_after)
    busy = _requests_left(rollout, observed, engines, routers)
    if busy == 0 and rollout.idle_since is None:
        rollout = replace(rollout, idle_since=observed.now)
    elif busy:
        rollout = replace(rollout, idle_since=None)
    return Look(rollout, ask, again_in=DRAIN_POLL_SECONDS)


def is_idle(rollout: Rollout, observed: Observed) -> bool:
    """Whether two looks in a row, a moment apart, found nothing left to answer."""
    if rollout.idle_since is None or rollout.leaving is None:
        return False
    engines, routers = list(_serving(observed, rollout.leaving)), ready_routers(observed)
    again = rollout.idle_since + timedelta(seconds=DRAIN_POLL_SECONDS / 2)
    if _requests_left(rollout, observed, engines, routers) != 0:
        return False
    return not _ask(observed, engines, routers, again)


def _requests_left(
    rollout: Rollout, observed: Observed, engines: list[PodFacts], routers: list[PodFacts]
) -> int | None:
    """Requests that the leaving revision is answering; None while somebody has not said."""
    left = 0
    asked: list[tuple[type[Question], PodFacts]] = [(ReadEngine, pod) for pod in engines]
    asked += [(ReadRouter, pod) for pod in routers]
    for kind, pod in asked:
        answer = observed.answers.get((kind, pod.uid))
        if answer is None or answer.at < rollout.since:
            return None
        match answer.content:
            case EngineReading(in_flight=requests):
                left += requests
            case RouterReport(tracks=tracks):
                track = tracks.get(rollout.leaving or "")
                left += track.active if track else 0
            case _:
                return None
    return left


# --- judging --------------------------------------------------------------------------------------


def _due(rollout: Rollout, policy: RolloutSpec) -> datetime:
    """When the present window ends; what is not judged ends a window of its own."""
    if rollout.looked_at is None:
        return rollout.since
    regular = rollout.looked_at + timedelta(seconds=policy.window_seconds)
    if rollout.phase is not Phase.Settling or rollout.looked_at >= rollout.since:
        return regular
    return rollout.since + timedelta(seconds=policy.settle_seconds)


def _serving(observed: Observed, *revisions: str | None) -> Iterator[PodFacts]:
    for pod in observed.pods:
        if pod.revision in revisions and pod.is_reachable:
            yield pod


def _ask(
    observed: Observed, engines: list[PodFacts], routers: list[PodFacts], since: datetime
) -> tuple[Question, ...]:
    """Ask those that have said nothing since."""

    def is_silent(kind: type[Question], pod: PodFacts) -> bool:
        answer = observed.answers.get((kind, pod.uid))
        return answer is None or answer.at < since

    asked: list[Question] = []
    asked += [ReadEngine(p.uid, p.address) for p in engines if is_silent(ReadEngine, p)]
    asked += [ReadRouter(p.uid, p.address) for p in routers if is_silent(ReadRouter, p)]
    return tuple(asked)


def _count(rollout: Rollout, observed: Observed, policy: RolloutSpec) -> Look:
    baselines: dict[str, Baselines] = {}
    counts: dict[str, Counts | None] = {}
    for track in (rollout.stable, rollout.canary or ""):
        engines = _engine_scrapes(observed, track)
        routers = _router_scrapes(observed, track)
        increases = []
        for key, scrapes in ((track, engines), (f"{track}/routers", routers)):
            known = observed.baselines.get(key, {})
            baselines[key], increase = count_increase(known, scrapes, observed.now.timestamp())
            increases.append(increase)
        counts[track] = _both_sides(*increases)
    judged = rollout.is_loaded and rollout.phase not in (Phase.Shifting, Phase.Settling)
    canary = counts[rollout.canary or ""] if judged else None
    promoting = rollout.phase is Phase.Gating and rollout.weight == FULL
    alone = promoting or rollout.phase is Phase.Baking
    stable = None if alone else counts[rollout.stable]
    checks = compile_guardrails(policy.guardrails)
    state, decision = judging.judge(checks, rollout.judge, Window(stable, canary))
    after = replace(rollout, looked_at=observed.now, judge=state)
    if judged:
        after = _remember(after, decision)
    return Look(after, baselines=baselines, again_in=float(policy.window_seconds))


def _remember(rollout: Rollout, decision: judging.Decision) -> Rollout:
    results = tuple(
        CheckResult(each.check, str(each.verdict), each.sentence[:MAX_MESSAGE])
        for each in decision.findings
    )
    hold, message = rollout.hold, rollout.hold_message
    if rollout.phase is Phase.Judging:
        waits = decision.verdict is judging.Verdict.Inconclusive
        hold = (
            _HOLDS.get(decision.hold or judging.Hold.TooFew, Hold.Inconclusive) if waits else None
        )
        message = decision.reason[:MAX_MESSAGE] if waits else ""
    return replace(
        rollout,
        verdict=decision.verdict,
        checks=results or rollout.checks,
        hold=hold,
        hold_message=message,
    )


def _engine_scrapes(observed: Observed, revision: str) -> Iterator[Scrape]:
    for pod in _serving(observed, revision):
        answer = observed.answers[ReadEngine, pod.uid]
        if isinstance(answer.content, EngineReading):
            yield Scrape(pod.uid, answer.at.timestamp(), answer.content.counts)


def _router_scrapes(observed: Observed, revision: str) -> Iterator[Scrape]:
    """Failures as routers count them, as counts that hold nothing else."""
    for pod in ready_routers(observed):
        answer = observed.answers[ReadRouter, pod.uid]
        if isinstance(answer.content, RouterReport):
            track = answer.content.tracks.get(revision)
            failed = float(track.failed) if track else 0.0
            yield Scrape(pod.uid, answer.at.timestamp(), _only_failures(failed))


def _only_failures(failed: float) -> Counts:
    return Counts(
        failed,
        failed,
        Histogram.of(VLLM_TTFT_EDGES),
        Histogram.of(VLLM_LATENCY_EDGES),
        Histogram.of(VLLM_ITL_EDGES),
    )


def _both_sides(engines: Counts | None, routers: Counts | None) -> Counts | None:
    """One track, as its engines and the routers saw it.

    A failure may be known to both, to routers only (the engine died) or to engines only (before
    0.33 a stream that ends in an error event looks complete), so the greater number counts.
    """
    seen = routers.failed if routers is not None else 0.0
    if engines is None:
        return _only_failures(seen) if seen else None
    failed = max(engines.failed, seen)
    return replace(engines, requests=engines.requests - engines.failed + failed, failed=failed)
