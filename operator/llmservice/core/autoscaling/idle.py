"""To zero replicas when nobody asks, and back with the first request.

The routers say both: how long nothing went through them, and how many requests wait in them while
no engine runs. An HPA could do neither: what it reads are metrics of pods, and there are none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from llmservice.api.v1alpha1 import AutoscalingSpec
from llmservice.core.observed import Observed, PodFacts
from llmservice.core.questions import Question, ReadRouter
from llmservice.core.router.report import RouterReport

WAKE_SECONDS = 0.5
"""Between looks at routers while there are no engines: what a first request waits for us."""
WATCH_SECONDS = 20.0
"""Between looks while engines run."""


@dataclass(frozen=True, slots=True)
class Rest:
    """What the routers have the size be, and what they are to be asked next."""

    size: int
    ask: tuple[Question, ...] = ()
    again_in: float | None = None


def rest(observed: Observed, wish: AutoscalingSpec, size: int, *, at_rest: bool) -> Rest:
    """The size of a service that may go to zero; any other keeps its own.

    Args:
        observed: the routers, and what they answered.
        wish: whether and when.
        size: what it is by its autoscaler; 0 for a service that sleeps.
        at_rest: no rollout is under way; a canary that nobody asks is a matter of its own.
    """
    if wish.min_replicas > 0:
        return Rest(size)
    pause = WATCH_SECONDS if size else WAKE_SECONDS
    routers = [pod for pod in observed.routers if pod.is_reachable]
    reports = [_report(observed, pod, pause) for pod in routers]
    ask = tuple(_questions(observed, routers, pause))
    if size == 0:
        woken = any(report is not None and report.waiting for report in reports)
        return Rest(1 if woken else 0, ask, pause)
    idle = bool(reports) and all(
        report is not None and report.idle_seconds >= wish.idle_seconds for report in reports
    )
    may_sleep = idle and at_rest and _had_its_chance(observed, wish.idle_seconds)
    return Rest(0 if may_sleep else size, ask, pause)


def _had_its_chance(observed: Observed, seconds: float) -> bool:
    """Whether an engine has served for that long: who woke it up may have to come again.

    Without engines it is asleep already, and the status will say so.
    """
    since = timedelta(seconds=seconds)
    pods = [pod for pod in observed.pods if not pod.deleting]
    return not pods or any(
        pod.ready and (pod.ready_since is None or observed.now - pod.ready_since >= since)
        for pod in pods
    )


def _report(observed: Observed, pod: PodFacts, pause: float) -> RouterReport | None:
    """What a router said lately; an old answer may hide requests that came since."""
    answer = observed.answers.get((ReadRouter, pod.uid))
    if answer is None or answer.age(observed.now) > 3 * pause + 2:
        return None
    return answer.content if isinstance(answer.content, RouterReport) else None


def _questions(observed: Observed, routers: list[PodFacts], pause: float) -> Iterator[Question]:
    for pod in routers:
        answer = observed.answers.get((ReadRouter, pod.uid))
        if answer is None or answer.age(observed.now) >= pause:
            yield ReadRouter(pod.uid, pod.address)
