"""Guardrails: what a canary must keep to, in its users' words.

They stand in ``spec.rollout``, ``llmservice judge replay`` reads them from a file, and
:mod:`llmservice.core.judge` decides by them. How fields must fit together is said in
:mod:`llmservice.api.rules`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmservice.api.rules import GUARDRAILS, first_problem
from llmservice.api.types import ApiObject

MAX_GUARDRAILS = 8

Metric = Literal["ttft", "latency", "itl", "errors"]
Quantile = Literal["p50", "p90", "p95", "p99"]
_Percent = Annotated[float, Field(gt=0, lt=100)]


class Guardrail(ApiObject):
    """One promise of a canary: not much worse than the live stable, or under a fixed limit."""

    metric: Metric
    """What is measured: ttft (seconds to the first token), latency (seconds to the last token), itl
    (seconds between two tokens) or errors (share of requests that failed). A failed request also
    counts as too slow."""
    quantile: Quantile | None = None
    """Which requests must be fast: p95 means 95 of 100, of itl 95 of 100 tokens. Not for
    errors. Default: p95."""
    max_increase_percent: Annotated[float, Field(ge=10, le=1000)] | None = None
    """How much worse than the stable revision, measured at the same time, the canary may be: the
    quantile for ttft, latency and itl (at least 10), the share of failed requests for errors (at
    least 30)."""
    max_seconds: Annotated[float, Field(gt=0, le=600)] | None = None
    """The quantile must stay under so many seconds, whatever stable does. Not for errors."""
    max_error_rate_percent: _Percent | None = None
    """So many percent of the canary's requests may fail, whatever stable does. For errors."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """No promotion before the canary served so many requests."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Risk to abort a canary that is exactly at maxIncreasePercent, 0.0001 to 0.2; one that is no
    worse than stable is aborted far more rarely. Shared among the guardrails."""
    power: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Chance to abort a canary that is clearly over maxIncreasePercent before its promotion, 0.5 to
    0.999."""

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        # Here too, as guardrails are also read without a service around them.
        if problem := first_problem(GUARDRAILS, self.model_dump(by_alias=True, exclude_none=True)):
            raise PydanticCustomError("guardrail", "{problem}", {"problem": problem})
        return self


DEFAULT_GUARDRAILS = (
    Guardrail(metric="ttft", quantile="p95", max_increase_percent=25, min_requests=50),
    Guardrail(metric="errors", max_increase_percent=50, max_error_rate_percent=5, min_requests=50),
)
"""Made for little traffic: an equal version passes after 80 to 120 requests of the canary, and one
that is twice as slow goes after about 100. A fixed limit of 1 percent alone would need 270."""
