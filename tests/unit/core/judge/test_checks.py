"""What guardrails become, and which are refused."""

import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from llmservice.api.guardrails import Guardrail
from llmservice.core.judge.checks import compile_guardrails
from tests.unit.core.judge.traffic import NOTHING, streamed


def parse(**fields):
    return Guardrail.model_validate_json(json.dumps(fields), strict=True)


def test_a_guardrail_says_what_it_checks():
    """One check per limit, in the words of the user."""
    found = compile_guardrails(
        [
            parse(metric="ttft", maxIncreasePercent=15, maxSeconds=2.5),
            parse(metric="latency", quantile="p50", maxSeconds=30),
            parse(metric="itl", maxIncreasePercent=20, maxSeconds=0.05),
            parse(metric="errors", maxIncreasePercent=50, maxErrorRatePercent=0.5),
        ]
    )

    assert [
        "p95 ttft at most 15% worse than stable",
        "p95 ttft at most 2.5 s",
        "p50 latency at most 30 s",
        "p95 itl at most 20% worse than stable",
        "p95 itl at most 0.05 s",
        "errors at most 50% worse than stable",
        "errors at most 0.5%",
    ] == [check.label for check in found]


def test_clear_ratios_are_those_of_the_study():
    """Slow requests of the last tenth: 1.6 times; failures 1.5 tolerated, 4 detected."""
    p90, errors = compile_guardrails(
        [
            parse(metric="ttft", quantile="p90", maxIncreasePercent=10),
            parse(metric="errors", maxIncreasePercent=50),
        ]
    )

    assert (1.0, 1.59) == (p90.ratio.tolerated, pytest.approx(p90.ratio.detected, abs=0.01))
    assert (1.5, pytest.approx(4)) == (errors.ratio.tolerated, errors.ratio.detected)


def test_more_guardrails_share_the_risk():
    """Two of them: each needs more evidence to abort."""
    ttft, errors = (
        parse(metric="ttft", maxIncreasePercent=15),
        parse(metric="errors", maxErrorRatePercent=1),
    )
    (alone,) = compile_guardrails([ttft])
    beside, _ = compile_guardrails([ttft, errors])

    assert beside.ratio.abort_at == pytest.approx(alone.ratio.abort_at + 0.693, abs=0.001)


@pytest.mark.parametrize(
    ("counted", "sample"),
    [
        (streamed(90, 10), (100, 10)),
        (streamed(90, 10, tokens=1), (100, 10)),
        (streamed(90, 0, 10), (100, 10)),
        (replace(streamed(90, 10), requests=10), (10, 1)),
        (replace(streamed(90, 10), requests=5, failed=5), (5, 5)),
        (replace(streamed(9, 1, tokens=1), requests=1000), (10, 1)),
        (replace(NOTHING, itl=NOTHING.ttft), (0, 0)),
        (NOTHING, None),
    ],
    ids=[
        *("a-hundred-tokens-each", "two-tokens-each", "failed", "few-ended", "only-failed"),
        *("most-have-one-token", "nothing", "not-published"),
    ],
)
def test_all_tokens_of_a_request_count_as_one(counted, sample):
    """However many they are: what is true of one is true of the next."""
    (check,) = compile_guardrails([parse(metric="itl", maxSeconds=1.5)])

    found = check.sample(counted, 1.5)

    assert sample == (found if sample is None else pytest.approx(found))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric": "ttft"}, "it limits nothing: give maxIncreasePercent or maxSeconds"),
        ({"metric": "errors"}, "it limits nothing: give maxIncreasePercent or maxErrorRatePercent"),
        ({"metric": "errors", "quantile": "p95"}, "quantile says nothing about errors"),
        ({"metric": "errors", "maxSeconds": 2}, "maxSeconds says nothing about errors"),
        (
            {"metric": "ttft", "maxErrorRatePercent": 2},
            "maxErrorRatePercent says nothing about ttft",
        ),
        ({"metric": "errors", "maxIncreasePercent": 20}, "must be at least 30 for errors"),
        ({"metric": "ttft", "maxIncreasePercent": 5}, "greater than or equal to 10"),
        ({"metric": "ttft", "quantile": "p97", "maxSeconds": 2}, "quantile"),
        ({"metric": "speed", "maxSeconds": 2}, "metric"),
        ({"metric": "ttft", "maxSeconds": 0}, "greater than 0"),
        ({"metric": "ttft", "maxSeconds": 2, "minRequests": 0}, "minRequests"),
        ({"metric": "ttft", "maxSeconds": 2, "alpha": 0.9}, "alpha"),
    ],
)
def test_refused(fields, words):
    """With a sentence that names the field."""
    with pytest.raises(ValidationError) as caught:
        parse(**fields)

    assert words in str(caught.value)
