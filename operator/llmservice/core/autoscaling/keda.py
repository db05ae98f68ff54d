"""What KEDA says of the ScaledObjects of a service: asked for now and then, never watched.

KEDA's HPA is watched, but does not tell all. While a trigger gets no answer it is fed numbers that
hold the pods, and looks well; and where KEDA refuses a ScaledObject there is no HPA at all.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from llmservice.core.observed import AutoscalerFacts, Observed
from llmservice.core.questions import Question, ReadScaledObject, ScaledObjectReading

ASK_SECONDS = 20.0
"""Between two looks at a ScaledObject."""


def to_ask(observed: Observed, names: list[str]) -> tuple[tuple[Question, ...], float | None]:
    """Which ScaledObjects are to be looked at now, and in how many seconds the next one."""
    ages = {name: _age(observed, name) for name in names}
    due = [name for name, age in ages.items() if age is None or age >= ASK_SECONDS]
    waits = [ASK_SECONDS - (age or 0.0) for name, age in ages.items() if name not in due]
    namespace = observed.service.key.namespace
    asked = tuple(ReadScaledObject(namespace, name) for name in due)
    return asked, min(waits, default=ASK_SECONDS) if names else None


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


def _age(observed: Observed, name: str) -> float | None:
    answer = observed.answers.get((ReadScaledObject, name))
    return None if answer is None else (observed.now - answer.at) / timedelta(seconds=1)
