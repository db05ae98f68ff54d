"""The status of a service in words."""

from datetime import UTC, datetime
from typing import Any

import pytest

from llmservice.cli.report import (
    Verdict,
    as_json,
    describe,
    evidence,
    news,
    place,
    summary,
    verdict,
)

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


CHECKS = [
    {
        "check": "p95 ttft at most 25% worse than stable",
        "verdict": "promote",
        "message": "p95 ttft at most 25% worse than stable: 3 of 125 canary requests over 0.9 s",
    },
    {"check": "errors at most 5%", "verdict": "inconclusive", "message": "0 of 40 (undecided)"},
]


def _rolling(phase: str, **rollout: Any) -> dict[str, Any]:
    return _service(
        READY,
        ROLLING,
        phase="RollingOut",
        stableRevision="aaa",
        updatedRevision="bbb",
        rollout={
            "phase": phase,
            "canaryRevision": "bbb",
            "step": 2,
            "steps": 3,
            "weight": 25,
            "since": "2026-01-31T08:05:00Z",
            "reason": "Settled",
            "message": "from here on it is judged",
            **rollout,
        },
    )


def _told(service: dict[str, Any]) -> list[str]:
    """The rows of a report that are about the rollout, without their head."""
    lines = list(describe(service, NOW))
    start = next((n for n, line in enumerate(lines) if line.startswith("  rollout ")), len(lines))
    rows = lines[start : start + 1]
    for line in lines[start + 1 :]:
        if line[2:3] != " ":
            break
        rows.append(line)
    return [row[13:] for row in rows]


def test_a_rollout_is_told_with_its_evidence() -> None:
    """Phase, place, what each guardrail says, and what it waits for."""
    service = _rolling("Judging", reason="Inconclusive", checks=CHECKS, canaryRequests=125)

    assert [
        "Judging (Inconclusive, for 5m): from here on it is judged",
        "step 2 of 3 (25% of the requests) for bbb; 125 requests judged",
        "promote: p95 ttft at most 25% worse than stable: 3 of 125 canary requests over 0.9 s",
        "inconclusive: errors at most 5%: 0 of 40 (undecided)",
        "waits for more requests of the canary; `llmservice promote qwen` does without",
    ] == _told(service)


@pytest.mark.parametrize(
    ("expected", "step", "weight"),
    [
        ("the start (0% of the requests)", 0, 0),
        ("step 1 of 3 (5% of the requests)", 1, 5),
        ("step 3 of 3 (50% of the requests)", 3, 50),
        ("the end (100% of the requests)", 4, 100),
    ],
)
def test_a_place_is_a_step_or_an_end(expected: str, step: int, weight: int) -> None:
    """Before the first step nothing is given to the canary, after the last one everything."""
    assert expected == place({"step": step, "steps": 3, "weight": weight})


@pytest.mark.parametrize(
    ("phase", "reason", "words"),
    [
        ("Paused", "StepPassed", "waits for you: `llmservice resume qwen` goes on, "),
        ("Judging", "NoTraffic", "waits for requests, as nobody asks the canary"),
        ("Judging", "MetricsUnavailable", "waits for metrics of the engines"),
        ("Provisioning", "CapacityWait", "waits for a free device"),
        ("Shifting", "RouterNotReady", "waits for the routers"),
        ("Aborting", "StableNotReady", "waits for a ready pod of the stable revision"),
        ("Preflight", "RolloutQueue", "waits for rollouts of other services"),
        (
            "Aborted",
            "GuardrailBroken",
            "waits for a change of the spec, or `llmservice retry qwen`",
        ),
    ],
)
def test_a_rollout_that_is_held_says_what_for(phase: str, reason: str, words: str) -> None:
    """The last line is what a person can do, or wait for."""
    assert _told(_rolling(phase, reason=reason))[-1].startswith(words)


def test_a_rollout_at_rest_is_not_told() -> None:
    """The last one's remains are no news."""
    assert [] == _told(_rolling("Stable", canaryRevision=None, checks=CHECKS))


def test_a_rollout_is_told_in_a_line() -> None:
    """Phase, place and reason; but what is worse comes first, and a rollout at rest is none."""
    service = _rolling("Judging")
    place = "Judging, step 2 of 3 (25% of the requests)"
    assert f"qwen: RollingOut: {place}: from here on it is judged" == summary(service)

    service["status"]["conditions"][0] |= {"status": "False", "message": "the image is missing"}
    assert "qwen: RollingOut: the image is missing" == summary(service)

    assert "qwen: RollingOut: 2 of 2 replicas are ready" == summary(_rolling("Aborted"))


def test_numbers_are_no_news_but_verdicts_are() -> None:
    """In a log a rollout of hours must not take a line for every window."""
    before = _rolling("Judging", checks=CHECKS, message="40 of 50 requests")
    later = _rolling("Judging", checks=CHECKS, message="45 of 50 requests")
    turned = [CHECKS[0], {**CHECKS[1], "verdict": "promote"}]

    assert news(before) == news(later)
    assert news(before) != news(_rolling("Judging", checks=turned))
    assert news(before) != news(_rolling("Judging", checks=CHECKS, weight=50))
    assert news(before) != news(_rolling("Judging", checks=CHECKS, reason="NoTraffic"))
    assert news(before) != news(_rolling("Paused", checks=CHECKS))


def test_evidence_is_for_a_rollout_that_moves() -> None:
    """Under a line of ``--watch``; nothing at rest, nor before the operator has looked."""
    assert 2 == len(list(evidence(_rolling("Judging", checks=CHECKS))))
    assert [] == list(evidence(_rolling("Stable", checks=CHECKS)))
    assert [] == list(evidence(_service(READY)))

    unseen = _rolling("Judging", checks=CHECKS)
    unseen["status"]["observedGeneration"] = 1
    assert [] == list(evidence(unseen))


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


def test_an_autoscaled_service_is_measured_by_its_own_size() -> None:
    """Bounds, whether somebody decides, and what one more replica costs in time."""
    service = _service(
        READY,
        ("AutoscalingReady", "False", "FailedGetPodsMetric", "no metrics; nothing is scaled down"),
        readyReplicas=5,
        autoscaling={"replicas": 5, "minReplicas": 1, "maxReplicas": 9, "message": "waits for 2"},
        coldStart={"scheduleSeconds": 2, "pullSeconds": 8, "loadSeconds": 90, "seconds": 100},
    )
    report = "\n".join(describe(service, NOW))

    assert "5 of 5 ready" in report
    assert "1 to 9 replicas; kept while revisions change places" in report
    assert "waits for 2" in report
    assert "a new replica takes 100 s: schedule 2 s, pull 8 s, load 90 s" in report
    assert "autoscaler does not decide (FailedGetPodsMetric, for 5m): no metrics" in report
