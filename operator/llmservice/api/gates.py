"""Gates: who has to agree before a canary meets a client, or before it becomes stable.

They stand in ``spec.rollout``; :mod:`llmservice.core.canary.gates` asks them one after another. How
fields must fit together is said in :mod:`llmservice.api.rules`.
"""

from typing import Annotated, Literal

from pydantic import Field

from llmservice.api.types import ApiObject

MAX_GATES = 8
_GATE_TOKENS = 131_072
_Least = Annotated[float, Field(gt=0, le=1_000_000_000)]
_Most = Annotated[float, Field(gt=0, le=86_400_000)]


class WebhookGate(ApiObject):
    """A program of yours that is asked by a POST."""

    url: Annotated[str, Field(max_length=2048, pattern=r"^https?://[0-9A-Za-z\[][!-?A-~]*$")]
    """Address, http or https, without credentials. An answer 2xx lets pass; 429, 5xx and silence
    are asked again; any other 4xx refuses, with the body's first words as the reason."""
    timeout_seconds: Annotated[int, Field(ge=1, le=60)] = 10
    """How long an answer may take, 1 to 60."""


class BenchGate(ApiObject):
    """A run of `vllm bench serve` against the canary's pods; it must keep all limits."""

    num_prompts: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Requests, 1 to 10000; each of them must be answered (--num-prompts)."""
    request_rate: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Requests per second (--request-rate). Default: all at once."""
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Most requests at a time (--max-concurrency). Default: no limit."""
    input_tokens: Annotated[int, Field(ge=1, le=_GATE_TOKENS)] = 1024
    """Length of a prompt of random words (--random-input-len), 1 to 131072."""
    output_tokens: Annotated[int, Field(ge=1, le=_GATE_TOKENS)] = 128
    """Length of an answer (--random-output-len), 1 to 131072."""
    timeout_seconds: Annotated[int, Field(ge=60, le=7200)] = 900
    """How long the Job may take from its creation, image pull included, 60 to 7200."""
    min_request_throughput: _Least | None = None
    """Answered requests per second (request_throughput of the result) must be at least so many."""
    min_output_throughput: _Least | None = None
    """Generated tokens per second (output_throughput) must be at least so many."""
    max_mean_ttft_milliseconds: _Most | None = None
    """Mean time to the first token (mean_ttft_ms) may be at most so long."""
    max_p99_ttft_milliseconds: _Most | None = None
    """99 of 100 times to the first token (p99_ttft_ms) may be at most so long."""
    max_mean_tpot_milliseconds: _Most | None = None
    """Mean time per further token (mean_tpot_ms) may be at most so long."""
    max_p99_tpot_milliseconds: _Most | None = None
    """99 of 100 times per further token (p99_tpot_ms) may be at most so long."""
    max_p99_itl_milliseconds: _Most | None = None
    """99 of 100 pauses between tokens (p99_itl_ms) may be at most so long."""


class Gate(ApiObject):
    """One that has to agree; set exactly one of webhook and bench."""

    name: Annotated[
        str, Field(min_length=1, max_length=32, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    ]
    """What it is called, for people."""
    when: Literal["BeforeTraffic", "BeforePromotion"] = "BeforeTraffic"
    """BeforeTraffic: warm, and no client was sent to it yet. BeforePromotion: it has all requests,
    and the old pods still stand by."""
    webhook: WebhookGate | None = None
    """A program of yours that is asked by a POST."""
    bench: BenchGate | None = None
    """A run of `vllm bench serve` against the canary's pods."""
