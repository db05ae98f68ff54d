"""The rollout machine: which transition comes next, as a table that a diagram is drawn from.

Of the rows whose phase fits, the first whose condition holds is taken, one at a time. Rows that
take a canary back stand first: no step forward is made while there is a reason to go back.
Conditions read a :class:`Rollout` and a :class:`View` and give the sentence that a person reads.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from llmservice.core.canary.gates import hesitation, open_gate, refusal
from llmservice.core.canary.intent import canary_pods, next_weight, step_at
from llmservice.core.canary.state import (
    AT_REST,
    FULL,
    MAX_MESSAGE,
    MAX_REJECTED,
    MOVING,
    UNDER_WAY,
    Hold,
    Outcome,
    Phase,
    Rejected,
    Rollout,
    seconds_since,
)
from llmservice.core.canary.view import View
from llmservice.core.judge.judge import Verdict
from llmservice.core.judge.judge import begin_step as begin_judging
from llmservice.core.rollout import SCHEDULING_GRACE

Condition = Callable[[Rollout, View], str | None]

STABLE_DOWN_SECONDS = 60.0
"""Stable pods that are all away this long are not coming back by themselves."""
ROUTER_GRACE_SECONDS = 10.0
"""Routers take new weights in tens of milliseconds; after this long one is worth naming."""


@dataclass(frozen=True, slots=True)
class Transition:
    """From any of ``sources`` to ``target`` when the condition holds."""

    sources: frozenset[Phase]
    when: Condition
    target: Phase
    reason: str
    """CamelCase word for events, metrics and the status."""


def advance(rollout: Rollout, view: View) -> Rollout:
    """The rollout after the next transition, or after none."""
    rollout = _wait_or_make_room(rollout, view)
    for row in TRANSITIONS:
        if rollout.phase in row.sources and (message := row.when(rollout, view)) is not None:
            rollout = _enter(rollout, view, row, message)
            break
    may_turn = rollout.phase in AT_REST or rollout.phase is Phase.Preflight
    if not rollout.routed and may_turn and not view.behind:
        rollout = replace(rollout, routed=True)
    if view.tried_action != rollout.handled_action:
        rollout = replace(rollout, handled_action=view.tried_action)
    return rollout


def begin(stable: str, now: datetime, action: str | None) -> Rollout:
    """A rollout of a service that has had none; what was asked of an earlier one is over."""
    return Rollout(Phase.Stable, stable, since=now, handled_action=action)


def without_canary(rollout: Rollout, now: datetime) -> Rollout:
    """At rest, as if the canary had never been; what was turned down before stays so."""
    return _afresh(replace(rollout, phase=Phase.Stable, since=now))


# --- conditions: back -----------------------------------------------------------------------------


def _superseded(rollout: Rollout, view: View) -> str | None:
    if view.target in (rollout.canary, rollout.stable):
        return None
    return f"revision {view.target} is newer than {rollout.canary}"


def _reverted(rollout: Rollout, view: View) -> str | None:
    return (
        "the spec is that of the stable revision again" if view.target == rollout.stable else None
    )


def _asked(word: str, sentence: str) -> Condition:
    def condition(rollout: Rollout, view: View) -> str | None:
        del rollout
        return sentence if view.verb is not None and view.verb.word == word else None

    condition.__name__ = f"_asked_to_{word.replace('-', '_')}"
    return condition


def _canary_failed(rollout: Rollout, view: View) -> str | None:
    if view.failure:
        return view.failure
    return view.trouble or None if rollout.is_loaded and view.wanted else None


def _late(rollout: Rollout, view: View) -> str | None:
    waited = seconds_since(rollout.since, view.now)
    if rollout.hold is not None or not view.wanted or waited < view.provision_seconds:
        return None
    return f"the canary's pods were not ready within {view.provision_seconds:g} s"


def _warm_up_failed(rollout: Rollout, view: View) -> str | None:
    del rollout
    if not view.warm_problem:
        return None
    return f"the canary did not answer our own requests: {view.warm_problem}"


def _guardrail_broken(rollout: Rollout, view: View) -> str | None:
    if rollout.verdict is not Verdict.Abort or view.policy.mode == "Observe":
        return None
    broken = [each.message for each in rollout.checks if each.verdict == Verdict.Abort]
    return "; ".join(broken) or "a guardrail is broken"


def _gate_refused(rollout: Rollout, view: View) -> str | None:
    del view
    return refusal(rollout)


def _step_timed_out(rollout: Rollout, view: View) -> str | None:
    limit = view.policy.step_timeout_seconds
    if limit is None or view.policy.on_timeout != "Abort" or _passes(rollout, view):
        return None
    if rollout.step_since is None or seconds_since(rollout.step_since, view.now) < limit:
        return None
    return f"no verdict within {limit} s: {rollout.hold_message or 'not enough evidence'}"


# --- conditions: on -------------------------------------------------------------------------------


def _changed(rollout: Rollout, view: View) -> str | None:
    if view.target == rollout.stable or rollout.rejection(view.target):
        return None
    return f"revision {view.target} is to replace {rollout.stable}"


def _rejected_before(rollout: Rollout, view: View) -> str | None:
    rejected = rollout.rejection(view.target)
    return None if rejected is None else rejected.message


def _emptied(rollout: Rollout, view: View) -> str | None:
    if view.wanted or not rollout.pods_for:
        return None
    return "spec.replicas is 0; it begins anew once there are pods again"


def _nothing_runs(rollout: Rollout, view: View) -> str | None:
    if view.wanted or view.target == rollout.stable or rollout.rejection(view.target):
        return None
    return "spec.replicas is 0, so there is no traffic to try the new revision on"


def _clear(rollout: Rollout, view: View) -> str | None:
    if view.queue or not view.wanted:
        return None
    if not view.ready_of(rollout.stable):
        down = seconds_since(rollout.since, view.now) >= STABLE_DOWN_SECONDS
        return "the stable revision serves nobody, so nothing is put at risk" if down else None
    if view.behind or not rollout.routed:
        return None
    return "the stable revision serves through routers that are up to date"


def _provisioned(rollout: Rollout, view: View) -> str | None:
    needed, ready = canary_pods(rollout, view.policy, view.wanted), view.ready_of(rollout.canary)
    if ready < needed:
        return None
    return "a pod of the canary is ready" if ready == 1 else f"{ready} pods of the canary are ready"


def _warmed(rollout: Rollout, view: View) -> str | None:
    needed = canary_pods(rollout, view.policy, view.wanted)
    warm = view.warm.get(rollout.canary or "", 0)
    if view.policy.warm_up.requests and warm < needed:
        return None
    return "the canary's pods have answered requests"


def _warmed_and_gated(rollout: Rollout, view: View) -> str | None:
    gate = None if rollout.is_loaded else open_gate(rollout, view.policy)
    warmed = _warmed(rollout, view)
    return None if gate is None or warmed is None else f"{warmed}; gate {gate.name} has to agree"


def _gates_agreed(rollout: Rollout, view: View) -> str | None:
    return None if open_gate(rollout, view.policy) else "all gates agree"


def _acknowledged(rollout: Rollout, view: View) -> str | None:
    if view.wanted == 0:
        return "nobody is served"
    if view.behind or (rollout.is_loaded and not view.ready_of(rollout.canary)):
        return None
    return f"{view.routers} give the canary {rollout.weight} %"


def _returned(rollout: Rollout, view: View) -> str | None:
    if view.wanted and (view.behind or not view.ready_of(rollout.stable)):
        return None
    return "all traffic is back at the stable revision"


def _settled(rollout: Rollout, view: View) -> str | None:
    seconds = view.policy.settle_seconds
    if seconds_since(rollout.since, view.now) < seconds or rollout.weight == FULL:
        return None
    # What was served until now must be counted and put aside first.
    counted = rollout.looked_at is not None and rollout.looked_at >= rollout.since
    return "from here on it is judged" if counted else None


def _settled_at_full(rollout: Rollout, view: View) -> str | None:
    settled = seconds_since(rollout.since, view.now) >= view.policy.settle_seconds
    return "the canary has all traffic" if settled and rollout.weight == FULL else None


def _taken_away(rollout: Rollout, view: View) -> str | None:
    needs_pods = rollout.is_loaded or rollout.phase in (Phase.Warming, Phase.Gating)
    if not needs_pods or not view.wanted or view.ready_of(rollout.canary):
        return None
    return "the canary has no ready pod, though none has failed; it waits for another one"


def _passes(rollout: Rollout, view: View) -> bool:
    judged = view.policy.guardrails and view.policy.mode == "Enforce"
    if judged and rollout.verdict is not Verdict.Promote:
        return False
    step = step_at(view.policy, rollout.weight)
    least = step.duration_seconds if step else 0
    return rollout.step_since is not None and seconds_since(rollout.step_since, view.now) >= least


def _passed(rollout: Rollout, view: View) -> str | None:
    return f"{rollout.weight} % went well" if _passes(rollout, view) else None


def _passed_and_waits(rollout: Rollout, view: View) -> str | None:
    step = step_at(view.policy, rollout.weight)
    if step is None or not step.pause or not _passes(rollout, view):
        return None
    return f"{rollout.weight} % went well; the step waits for `resume`"


def _baked(rollout: Rollout, view: View) -> str | None:
    seconds = seconds_since(rollout.since, view.now)
    if seconds < view.policy.bake_seconds:
        return None
    return f"the canary served all traffic for {seconds:.0f} s"


def _baked_and_gated(rollout: Rollout, view: View) -> str | None:
    gate, baked = open_gate(rollout, view.policy), _baked(rollout, view)
    return None if gate is None or baked is None else f"{baked}; gate {gate.name} has to agree"


def _drained(rollout: Rollout, view: View) -> str | None:
    if not view.ready_of(rollout.leaving):
        return f"no pod of {rollout.leaving} serves"
    if view.wanted and not view.ready_of(rollout.stable):
        return None  # it is the only one that serves
    if view.leaving_idle:
        return f"{rollout.leaving} answers nothing any more"
    if seconds_since(rollout.since, view.now) >= view.drain_seconds:
        return f"{rollout.leaving} had {view.drain_seconds:g} s to answer; its pods get the same"
    return None


def _drained_after_abort(rollout: Rollout, view: View) -> str | None:
    return _drained(rollout, view) if rollout.outcome is Outcome.Aborted else None


def _retried(rollout: Rollout, view: View) -> str | None:
    return None if view.target == rollout.stable else _retry(rollout, view)


def _resumed_before_start(rollout: Rollout, view: View) -> str | None:
    return None if rollout.pods_for else _resume(rollout, view) or _promote(rollout, view)


# --- the table ------------------------------------------------------------------------------------


def _row(sources: frozenset[Phase] | Phase, when: Condition, target: Phase, why: str) -> Transition:
    found = frozenset({sources}) if isinstance(sources, Phase) else sources
    return Transition(found, when, target, why)


def _where(condition: Condition, *, full: bool) -> Condition:
    """Only for a canary that has all requests, or only for one that has not."""

    def narrowed(rollout: Rollout, view: View) -> str | None:
        return condition(rollout, view) if (rollout.weight == FULL) is full else None

    narrowed.__name__ = condition.__name__
    return narrowed


_MADE = UNDER_WAY - {Phase.Preflight}
_RUNNING = UNDER_WAY - {Phase.Paused}
_abort = _asked("abort", "a person asked to abort")
_pause = _asked("pause", "a person asked to pause")
_resume = _asked("resume", "a person asked to go on")
_promote = _asked("promote", "a person asked to let this step pass")
_promote_fully = _asked("promote-full", "a person asked to promote without further steps")
_retry = _asked("retry", "a person asked to try again")
_retried.__name__ = _retry.__name__

TRANSITIONS: tuple[Transition, ...] = (
    # back
    _row(UNDER_WAY, _superseded, Phase.Superseding, "Superseded"),
    _row(UNDER_WAY, _reverted, Phase.Aborting, "Reverted"),
    _row(UNDER_WAY, _abort, Phase.Aborting, "AbortedByUser"),
    _row(_MADE, _canary_failed, Phase.Aborting, "CanaryFailed"),
    _row(Phase.Provisioning, _late, Phase.Aborting, "CanaryNotReady"),
    _row(Phase.Warming, _warm_up_failed, Phase.Aborting, "WarmUpFailed"),
    _row(_MADE, _guardrail_broken, Phase.Aborting, "GuardrailBroken"),
    _row(Phase.Gating, _gate_refused, Phase.Aborting, "GateRefused"),
    _row(Phase.Judging, _step_timed_out, Phase.Aborting, "StepTimedOut"),
    _row(Phase.Paused, _emptied, Phase.Paused, "NothingRuns"),
    _row(_MADE, _emptied, Phase.Preflight, "NothingRuns"),
    # what a person asks
    _row(_RUNNING, _pause, Phase.Paused, "PausedByUser"),
    _row(Phase.Paused, _resumed_before_start, Phase.Preflight, "Resumed"),
    _row(Phase.Paused, _resume, Phase.Provisioning, "Resumed"),
    _row(Phase.Paused, _promote, Phase.Provisioning, "PromotedByUser"),
    _row(Phase.Judging, _promote, Phase.Provisioning, "PromotedByUser"),
    _row(Phase.Baking, _promote, Phase.Promoting, "PromotedByUser"),
    _row(Phase.Gating, _where(_promote, full=False), Phase.Shifting, "PromotedByUser"),
    _row(Phase.Gating, _where(_promote, full=True), Phase.Promoting, "PromotedByUser"),
    # It has all requests, and would only start to bake anew.
    _row(Phase.Gating, _where(_promote_fully, full=True), Phase.Promoting, "PromotedByUser"),
    _row(UNDER_WAY, _promote_fully, Phase.Provisioning, "PromotedByUser"),
    _row(Phase.Aborted, _retried, Phase.Preflight, "RetriedByUser"),
    # on
    _row(Phase.Paused, _taken_away, Phase.Paused, "PodsTakenAway"),
    _row(_MADE, _taken_away, Phase.Provisioning, "PodsTakenAway"),
    _row(Phase.Stable, _nothing_runs, Phase.Promoting, "NothingRuns"),
    _row(Phase.Stable, _rejected_before, Phase.Aborted, "RevisionRejected"),
    _row(Phase.Stable, _changed, Phase.Preflight, "NewRevision"),
    _row(Phase.Preflight, _clear, Phase.Provisioning, "PreflightPassed"),
    _row(Phase.Provisioning, _provisioned, Phase.Warming, "CanaryReady"),
    _row(Phase.Warming, _warmed_and_gated, Phase.Gating, "CanaryWarm"),
    _row(Phase.Warming, _warmed, Phase.Shifting, "CanaryWarm"),
    _row(Phase.Gating, _where(_gates_agreed, full=False), Phase.Shifting, "GatesAgreed"),
    _row(Phase.Shifting, _acknowledged, Phase.Settling, "TrafficShifted"),
    _row(Phase.Settling, _settled, Phase.Judging, "Settled"),
    _row(Phase.Settling, _settled_at_full, Phase.Baking, "AllTraffic"),
    _row(Phase.Judging, _passed_and_waits, Phase.Paused, "StepPassed"),
    _row(Phase.Judging, _passed, Phase.Provisioning, "StepPassed"),
    _row(Phase.Baking, _baked_and_gated, Phase.Gating, "Baked"),
    _row(Phase.Baking, _baked, Phase.Promoting, "Baked"),
    _row(Phase.Gating, _where(_gates_agreed, full=True), Phase.Promoting, "GatesAgreed"),
    _row(Phase.Promoting, _acknowledged, Phase.Draining, "Promoted"),
    # the end
    _row(Phase.Aborting, _returned, Phase.Draining, "TrafficReturned"),
    _row(Phase.Superseding, _returned, Phase.Draining, "TrafficReturned"),
    _row(Phase.Draining, _drained_after_abort, Phase.Aborted, "Aborted"),
    _row(Phase.Draining, _drained, Phase.Stable, "Drained"),
    _row(Phase.Aborted, _reverted, Phase.Stable, "Reverted"),
    _row(Phase.Aborted, _changed, Phase.Preflight, "NewRevision"),
)


# --- what a transition leaves behind --------------------------------------------------------------


def _enter(rollout: Rollout, view: View, row: Transition, message: str) -> Rollout:
    after = replace(
        rollout,
        phase=row.target,
        since=view.now,
        reason=row.reason,
        message=message[:MAX_MESSAGE],
        hold=None,
        hold_message="",
    )
    settle = _ENTER.get(row.target)
    return after if settle is None else settle(rollout, after, view)


def _afresh(rollout: Rollout) -> Rollout:
    """Its phase, and what outlives the canary that it was about."""
    return Rollout(
        phase=rollout.phase,
        stable=rollout.stable,
        since=rollout.since,
        rejected=rollout.rejected,
        handled_action=rollout.handled_action,
        routed=rollout.routed,
        router=rollout.router,
    )


def _enter_preflight(before: Rollout, after: Rollout, view: View) -> Rollout:
    others = tuple(each for each in after.rejected if each.hash != view.target)
    return replace(
        _afresh(after),
        began=before.began or view.now,
        canary=view.target,
        to=next_weight(view.policy, 0),
        capacity="Replace" if view.policy.capacity == "Replace" else "Surge",
        reason=after.reason,
        message=after.message,
        rejected=others,
    )


def _enter_provisioning(before: Rollout, after: Rollout, view: View) -> Rollout:
    if after.reason == "PodsTakenAway":  # the step goes on once another pod is warm
        return replace(after, weight=0, lost_at=before.lost_at or view.now)
    after = replace(after, step_since=None, lost_at=None)
    if after.reason in ("StepPassed", "PromotedByUser") and before.weight == before.to:
        after = replace(after, to=next_weight(view.policy, after.weight))
    whole = view.verb is not None and view.verb.word == "promote-full"
    stable_down = before.phase is Phase.Preflight and not view.ready_of(after.stable)
    at_once = whole or stable_down
    to = FULL if at_once else after.to
    ungated = at_once or after.ungated
    return replace(after, to=to, pods_for=max(to, after.pods_for), ungated=ungated)


def _enter_shifting(before: Rollout, after: Rollout, view: View) -> Rollout:
    del before, view
    return replace(after, weight=after.to, verdict=None)


def _enter_judging(before: Rollout, after: Rollout, view: View) -> Rollout:
    after = replace(after, lost_at=None)
    if before.step_since is not None and before.lost_at is not None:
        step_since = before.step_since + (view.now - before.lost_at)
        return replace(after, step_since=step_since, verdict=None)
    return replace(
        after, step_since=view.now, verdict=None, judge=begin_judging(after.judge), checks=()
    )


def _enter_paused(before: Rollout, after: Rollout, view: View) -> Rollout:
    if after.reason == "NothingRuns":
        return _enter_preflight(before, after, view)
    if after.reason == "PodsTakenAway":
        return replace(after, weight=0)
    if after.reason != "StepPassed":
        return after
    return replace(after, to=next_weight(view.policy, before.weight))


def _enter_promoting(before: Rollout, after: Rollout, view: View) -> Rollout:
    return replace(
        after,
        stable=view.target if before.canary is None else before.canary,
        leaving=before.stable,
        canary=None,
        outcome=Outcome.Promoted,
    )


def _enter_aborting(before: Rollout, after: Rollout, view: View) -> Rollout:
    del view
    if after.reason == "Reverted":
        return replace(after, weight=0, outcome=Outcome.Reverted)
    rejected = Rejected(before.canary or "", after.reason, after.message, after.since)
    kept = (rejected, *after.rejected)[:MAX_REJECTED]
    return replace(after, weight=0, outcome=Outcome.Aborted, rejected=kept)


def _enter_superseding(before: Rollout, after: Rollout, view: View) -> Rollout:
    del before, view
    return replace(after, weight=0, outcome=Outcome.Superseded)


def _enter_draining(before: Rollout, after: Rollout, view: View) -> Rollout:
    del view
    leaving = before.leaving if before.outcome is Outcome.Promoted else before.canary
    return replace(after, leaving=leaving, canary=None, idle_since=None)


def _enter_rest(before: Rollout, after: Rollout, view: View) -> Rollout:
    """With the evidence that it ended with."""
    del before
    why = after.rejection(view.target) if after.phase is Phase.Aborted else None
    return replace(
        _afresh(after),
        reason=after.reason if why is None else why.reason,
        message=after.message if why is None else why.message,
        checks=after.checks,
        gates=after.gates,
    )


_ENTER: dict[Phase, Callable[[Rollout, Rollout, View], Rollout]] = {
    Phase.Stable: _enter_rest,
    Phase.Aborted: _enter_rest,
    Phase.Preflight: _enter_preflight,
    Phase.Provisioning: _enter_provisioning,
    Phase.Shifting: _enter_shifting,
    Phase.Judging: _enter_judging,
    Phase.Paused: _enter_paused,
    Phase.Promoting: _enter_promoting,
    Phase.Aborting: _enter_aborting,
    Phase.Superseding: _enter_superseding,
    Phase.Draining: _enter_draining,
}


# --- waiting --------------------------------------------------------------------------------------


def _wait_or_make_room(rollout: Rollout, view: View) -> Rollout:
    """Why it does not go on, if that is not the canary's fault."""
    if rollout.phase is Phase.Provisioning:
        return _find_room(rollout, view)
    hold, message = _hold(rollout, view)
    down = rollout.phase is Phase.Preflight and hold is Hold.StableNotReady
    if down and rollout.hold is not Hold.StableNotReady:  # down since now, not since it waits
        rollout = replace(rollout, since=view.now)
    if rollout.phase is Phase.Judging and hold is None:
        return rollout  # the judge says what it waits for
    return replace(rollout, hold=hold, hold_message=message)


def _hold(rollout: Rollout, view: View) -> tuple[Hold | None, str]:
    if rollout.phase is Phase.Gating:
        waits = hesitation(rollout)
        return (Hold.GateWait, waits[:MAX_MESSAGE]) if waits else (None, "")
    if rollout.phase is Phase.Preflight and view.queue:
        return Hold.RolloutQueue, view.queue
    returning = rollout.phase in (Phase.Aborting, Phase.Superseding, Phase.Preflight)
    alone = rollout.phase is Phase.Draining and view.ready_of(rollout.leaving)
    if (returning or alone) and view.wanted and not view.ready_of(rollout.stable):
        return Hold.StableNotReady, f"no pod of the stable revision {rollout.stable} is ready"
    moving = rollout.phase in MOVING or (rollout.phase in AT_REST and not rollout.routed)
    slow = seconds_since(rollout.since, view.now) >= ROUTER_GRACE_SECONDS
    if moving and view.behind and slow:
        return Hold.RouterNotReady, view.behind
    return None, ""


def _find_room(rollout: Rollout, view: View) -> Rollout:
    room = view.no_room
    if room is None:
        if rollout.hold is not None:  # the clock for the pods begins anew
            return replace(rollout, hold=None, hold_message="", since=view.now)
        return rollout
    if rollout.capacity == "Surge" and view.policy.capacity == "Auto" and room.freeing_helps:
        if view.wanted > 1 and view.now >= room.since + SCHEDULING_GRACE:
            message = f"no room for an extra pod, so an old one makes room: {room.message}"
            return replace(
                rollout, capacity="Replace", since=view.now, message=message[:MAX_MESSAGE]
            )
        if view.wanted == 1:
            message = (
                f"no room for a second pod: {room.message}; with one replica nothing can make room"
                " without an outage: add a device, or set spec.rollout.strategy to Recreate"
            )
            return replace(rollout, hold=Hold.CapacityWait, hold_message=message[:MAX_MESSAGE])
    return replace(rollout, hold=Hold.CapacityWait, hold_message=room.message[:MAX_MESSAGE])
