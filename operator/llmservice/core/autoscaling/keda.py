"""What KEDA says of the ScaledObjects of a service: asked for now and then, never watched.

KEDA's HPA is watched, but does not tell all. While a trigger gets no answer it is fed numbers that
hold the pods, and looks well; and where KEDA refuses a ScaledObject there is no HPA at all.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmservice.core.observed import AutoscalerFacts, Observed
from llmservice.core.questions import Question, ReadScaledObject, ScaledObjectReading

ASK_SECONDS = 20.0
"""Between two looks at a ScaledObject."""


@dataclass(frozen=True, slots=True)
class Looks:
    """Which ScaledObjects are to be looked at now, and in how many seconds the next one."""

    ask: tuple[Question, ...]
    again_in: float


def look(observed: Observed, names: Iterable[str]) -> Looks:
    """Look at each of these when it was not lately."""
    due, again_in = [], ASK_SECONDS
    for name in names:
        answer = observed.answers.get((ReadScaledObject, name))
        left = 0.0 if answer is None else ASK_SECONDS - answer.age(observed.now)
        if left > 0:
            again_in = min(again_in, left)
        else:
            due.append(ReadScaledObject(observed.service.key.namespace, name))
    return Looks(tuple(due), again_in)


def trouble(observed: Observed, name: str) -> AutoscalerFacts | None:
    """What keeps KEDA from counting by its triggers; None if nothing does, or nobody knows."""
    answer = observed.answers.get((ReadScaledObject, name))
    if answer is None or not isinstance(answer.content, ScaledObjectReading):
        return None
    status = (answer.content.live or {}).get("status") or {}
    if failing := sorted(_failing(status)):
        message = f"KEDA holds the pods, without an answer for {', '.join(failing)}"
        return AutoscalerFacts(False, "FailedGetExternalMetric", message)
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Ready" and condition.get("status") == "False":
            message = f"KEDA says of ScaledObject {name}: {condition.get('message')}"
            return AutoscalerFacts(False, str(condition.get("reason", "")), message)
    return None


def _failing(status: Mapping[str, Any]) -> Iterator[str]:
    for metric, health in (status.get("health") or {}).items():
        if health.get("status") == "Failing":
            yield metric
