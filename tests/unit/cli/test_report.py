"""The status of a service in words."""

from datetime import UTC, datetime
from typing import Any

import pytest

from llmservice.cli.report import Verdict, as_json, describe, summary, verdict

NOW = datetime(2026, 1, 31, 8, 10, 0, tzinfo=UTC)


def _service(*conditions: tuple[str, str, str, str], **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "qwen", "namespace": "team", "generation": 2},
        "spec": {"model": {"id": "Qwen/Qwen3-8B"}, "replicas": 2},
        "status": {
            "observedGeneration": 2,
            "phase": "Ready",
            "conditions": [
                {
                    "type": type_,
                    "status": value,
                    "reason": reason,
                    "message": message,
                    "lastTransitionTime": "2026-01-31T08:05:00Z",
                    "observedGeneration": 2,
                }
                for type_, value, reason, message in conditions
            ],
            **status,
        },
    }


READY = ("Ready", "True", "Serving", "2 of 2 replicas are ready")
NOT_READY = ("Ready", "False", "ImagePull", "the image cannot be pulled")
ROLLING = ("Reconciling", "True", "RollingOut", "the newest revision is rolled out")
STALLED = ("Stalled", "True", "InvalidSpec", "spec.engine.dtype: choose another")


@pytest.mark.parametrize(
    ("expected", "service"),
    [
        (Verdict.Ready, _service(READY)),
        (Verdict.Progressing, _service(READY, ROLLING)),
        (Verdict.Progressing, _service(READY, observedGeneration=1)),
        (Verdict.Progressing, _service(NOT_READY)),
        (Verdict.Progressing, {"metadata": {"name": "qwen", "generation": 1}, "spec": {}}),
        (Verdict.Stalled, _service(NOT_READY, STALLED)),
        (Verdict.Stalled, _service(READY, STALLED)),
        (Verdict.Progressing, _service(NOT_READY, STALLED, observedGeneration=1)),
    ],
)
def test_a_service_has_settled_as_kstatus_says(expected: Verdict, service: Any) -> None:
    """Ready with nothing under way, or stalled, and only on the newest spec."""
    assert expected is verdict(service)


@pytest.mark.parametrize(
    ("expected", "service"),
    [
        ("qwen: Ready: 2 of 2 replicas are ready", _service(READY)),
        ("qwen: Failed: spec.engine.dtype: choose another", _service(STALLED, phase="Failed")),
        (
            "qwen: Ready: the operator has not looked at the newest spec yet",
            _service(READY, observedGeneration=1),
        ),
    ],
)
def test_one_line_says_the_worst(expected: str, service: Any) -> None:
    """Phase, and what to know or do about it."""
    assert expected == summary(service)


def test_a_report_reads_like_a_letter() -> None:
    """Model, url, replicas, conditions in order, revisions with their roles, engine by flag."""
    service = _service(
        ROLLING,
        READY,
        ("Custom", "False", "Whatever", "ours"),
        url="http://qwen.team.svc",
        readyReplicas=2,
        updatedRevision="bbb",
        stableRevision="aaa",
        revisions=[
            {"hash": "bbb", "number": 2, "replicas": 1, "readyReplicas": 0},
            {"hash": "aaa", "number": 1, "replicas": 2, "readyReplicas": 2},
        ],
        engine={
            "image": "vllm/vllm-openai:v0.33.0",
            "version": "0.33",
            "arguments": ["Qwen/Qwen3-8B", "--port", "8000", "--enforce-eager", "--seed=1"],
        },
    )

    assert [
        "qwen: Ready: 2 of 2 replicas are ready",
        "  model      Qwen/Qwen3-8B",
        "  url        http://qwen.team.svc",
        "  replicas   2 of 2 ready",
        "  state      ready (Serving, for 5m): 2 of 2 replicas are ready",
        "             work is under way (RollingOut, for 5m): the newest revision is rolled out",
        "             not Custom (Whatever, for 5m): ours",
        "  revisions  2. bbb 0 of 1 ready (newest)",
        "             1. aaa 2 of 2 ready (stable)",
        "  engine     vLLM 0.33 (vllm/vllm-openai:v0.33.0)",
        "             Qwen/Qwen3-8B",
        "             --port 8000",
        "             --enforce-eager",
        "             --seed=1",
    ] == list(describe(service, NOW))


PLAN = {"kvCacheTokens": 32768, "maxConcurrency": "8.00"}


@pytest.mark.parametrize(
    ("expected", "status"),
    [
        ([], {"plan": {"outcome": "PlanUnknown"}}),
        (
            ["planned: 32768 tokens, or 8.00 requests of the greatest length"],
            {"plan": PLAN},
        ),
        (
            ["30000 tokens, or 7.32 requests of the greatest length"],
            {"plan": {}, "capacity": {"kvCacheTokens": 30000, "maxConcurrency": "7.32"}},
        ),
        (
            ["32768 tokens, or 8.00 requests of the greatest length; as planned"],
            {"plan": PLAN, "capacity": {**PLAN, "deviationPercent": 0}},
        ),
        (
            ["30000 tokens, or 7.32 requests of the greatest length; 8% less than planned: 32768"],
            {
                "plan": PLAN,
                "capacity": {
                    "kvCacheTokens": 30000,
                    "maxConcurrency": "7.32",
                    "deviationPercent": -8,
                },
            },
        ),
        (  # the newest spec is refused, the earlier one's engine serves on
            ["32768 tokens, or 8.00 requests of the greatest length"],
            {
                "plan": {"outcome": "InfeasiblePlan"},
                "capacity": {**PLAN, "deviationPercent": 3},
            },
        ),
    ],
)
def test_one_line_tells_the_kv_cache(expected: list[str], status: dict[str, Any]) -> None:
    """What the engine has outranks the plan, which is named when it was off."""
    lines = [line for line in describe(_service(READY, **status), NOW) if "kv cache" in line]

    assert [f"  kv cache   {text}" for text in expected] == lines


def test_a_service_without_status_can_be_reported() -> None:
    """What kubectl apply just made."""
    service = {"metadata": {"name": "qwen", "generation": 1}, "spec": {"model": {"id": "a/b"}}}

    assert [
        "qwen: Pending: no operator has looked at it yet",
        "  model      a/b",
        "  replicas   0 of 1 ready",
    ] == list(describe(service, NOW))


def test_programs_get_verdict_and_status() -> None:
    """The status as it is, and what to make of it."""
    service = _service(READY)

    assert {
        "name": "qwen",
        "namespace": "team",
        "verdict": "Ready",
        "current": True,
        "status": service["status"],
    } == as_json(service)
