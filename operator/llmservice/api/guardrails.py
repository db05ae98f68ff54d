"""Guardrails: what a canary must keep to, in its users' words.

They are not part of the CRD yet: the rollout that would act on them is still to come. Until then
``llmservice judge replay`` reads them, and :mod:`llmservice.core.judge` decides by them.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmservice.api.types import ApiObject

MAX_GUARDRAILS = 8
MIN_INCREASE = {"ttft": 10, "latency": 10, "errors": 30}
"""Percent. Closer than this to the live stable, identical versions would be aborted too often."""

Metric = Literal["ttft", "latency", "errors"]
Quantile = Literal["p50", "p90", "p95", "p99"]
_Percent = Annotated[float, Field(gt=0, lt=100)]


class Guardrail(ApiObject):
    """One promise of a canary: not much worse than the live stable, or under a fixed limit."""

    metric: Metric
    """What is measured: ttft (seconds to the first token), latency (seconds to the last token) or
    errors (share of requests that failed). A failed request also counts as too slow."""
    quantile: Quantile | None = None
    """Which requests must be fast: p95 means 95 of 100. For ttft and latency. Default: p95."""
    max_increase_percent: Annotated[float, Field(ge=10, le=1000)] | None = None
    """How much worse than the stable revision, measured at the same time, the canary may be: the
    quantile for ttft and latency (at least 10), the share of failed requests for errors (at
    least 30)."""
    max_seconds: Annotated[float, Field(gt=0, le=600)] | None = None
    """The quantile must stay under so many seconds, whatever stable does. For ttft and latency."""
    max_error_rate_percent: _Percent | None = None
    """So many percent of the canary's requests may fail, whatever stable does. For errors."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """No promotion before the canary served so many requests."""
    alpha: Annotated[float, Field(ge=0.0001, le=0.2)] = 0.05
    """Risk to abort a canary that is exactly at maxIncreasePercent; one that is no worse than
    stable is aborted far more rarely. Shared among the guardrails."""
    power: Annotated[float, Field(ge=0.5, le=0.999)] = 0.9
    """Chance to abort a canary that is clearly over maxIncreasePercent before it is promoted."""

    @model_validator(mode="after")
    def _check_fields_fit_metric(self) -> Self:
        if problem := _misfit(self):
            raise PydanticCustomError("guardrail", "{problem}", {"problem": problem})
        return self


def _misfit(guardrail: Guardrail) -> str | None:
    """What is wrong among the fields: a sentence that names field and fix."""
    times = guardrail.metric != "errors"
    for name, value, fits in (
        ("quantile", guardrail.quantile, times),
        ("maxSeconds", guardrail.max_seconds, times),
        ("maxErrorRatePercent", guardrail.max_error_rate_percent, not times),
    ):
        if value is not None and not fits:
            return f"{name} says nothing about {guardrail.metric}: remove it"
    absolute = "maxSeconds" if times else "maxErrorRatePercent"
    increase = guardrail.max_increase_percent
    if increase is None and guardrail.max_seconds is None and not guardrail.max_error_rate_percent:
        return f"it limits nothing: give maxIncreasePercent or {absolute}"
    least = MIN_INCREASE[guardrail.metric]
    if increase is not None and increase < least:
        return f"maxIncreasePercent must be at least {least} for {guardrail.metric}"
    return None
