"""Gates: one after another is asked, by the operator itself or by a Job, and what it said is kept.

A gate agrees, refuses, or has not made up its mind: then the rollout holds. Who has agreed is not
asked again in this rollout. Nothing here waits: what is missing is asked, and a Job is wanted.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from math import isfinite
from typing import Any

from llmservice.api.gates import BenchGate, Gate, WebhookGate
from llmservice.api.v1alpha1 import RolloutSpec
from llmservice.core.canary.look import Look
from llmservice.core.canary.state import FULL, CheckResult, Phase, Rollout
from llmservice.core.failures import last_meaningful_line
from llmservice.core.judge.judge import Verdict
from llmservice.core.observed import (
    ChildRef,
    JobFacts,
    Observed,
    PodFacts,
    ServiceKey,
    ServiceObject,
)
from llmservice.core.questions import CallGate, GateAnswer
from llmservice.core.resources.bench import bench_name

GATE_POLL_SECONDS = 10.0
"""Between two questions to a webhook that has not made up its mind."""
_WATCH_SECONDS = 30.0
"""Events tell of Jobs and pods."""
_LONGEST_WORD = 512
_OUT_OF_RETRIES = "BackoffLimitExceeded"
_LIMITS = (
    ("min_request_throughput", "request_throughput"),
    ("min_output_throughput", "output_throughput"),
    ("max_mean_ttft_milliseconds", "mean_ttft_ms"),
    ("max_p99_ttft_milliseconds", "p99_ttft_ms"),
    ("max_mean_tpot_milliseconds", "mean_tpot_ms"),
    ("max_p99_tpot_milliseconds", "p99_tpot_ms"),
    ("max_p99_itl_milliseconds", "p99_itl_ms"),
)
"""Fields of a bench gate, and the key of vLLM's result that each limits."""


def open_gate(rollout: Rollout, policy: RolloutSpec) -> Gate | None:
    """The gate that has to agree next at this point of the rollout; None when all have."""
    if rollout.ungated:
        return None
    when = "BeforePromotion" if rollout.weight == FULL else "BeforeTraffic"
    agreed = {each.check for each in rollout.gates if each.verdict == Verdict.Promote}
    return next((g for g in policy.gates if g.when == when and g.name not in agreed), None)


def open_bench(
    rollout: Rollout, policy: RolloutSpec, service: ServiceObject
) -> tuple[str, BenchGate] | None:
    """The Job that is wanted now, if one is: its name, and what it runs."""
    gate = open_gate(rollout, policy) if rollout.phase is Phase.Gating else None
    if gate is None or gate.bench is None:
        return None
    return _job_name(rollout, gate, service), gate.bench


def refusal(rollout: Rollout) -> str | None:
    """What the gate says that refused."""
    return _said(rollout, Verdict.Abort)


def hesitation(rollout: Rollout) -> str | None:
    """What the gate is waited for that has not made up its mind."""
    return _said(rollout, Verdict.Inconclusive)


def ask_gates(found: Look, observed: Observed, policy: RolloutSpec) -> Look:
    """Take in what the open gate says, or ask it."""
    rollout = found.rollout
    gate = open_gate(rollout, policy) if rollout.phase is Phase.Gating else None
    if gate is None:
        return found
    if gate.bench is not None:
        result, pause = _read(rollout, gate, gate.bench, observed), _WATCH_SECONDS
    else:
        result, pause = _hear(rollout, gate, observed)
    if gate.webhook is not None and pause <= 0:
        call = _call(rollout, gate, gate.webhook, observed.service.key)
        found, pause = replace(found, ask=(*found.ask, call)), GATE_POLL_SECONDS
    agreed = tuple(each for each in rollout.gates if each.verdict == Verdict.Promote)
    again_in = pause if found.again_in is None else min(found.again_in, pause)
    return replace(found, rollout=replace(rollout, gates=(*agreed, result)), again_in=again_in)


def _said(rollout: Rollout, verdict: Verdict) -> str | None:
    results = (each for each in rollout.gates if each.verdict == verdict)
    return next((f"gate {each.check}: {each.message}" for each in results), None)


def _result(gate: Gate, verdict: Verdict, message: str) -> CheckResult:
    return CheckResult(gate.name, str(verdict), message)


# --- webhooks -------------------------------------------------------------------------------------


def _hear(rollout: Rollout, gate: Gate, observed: Observed) -> tuple[CheckResult, float]:
    """What a webhook says, and seconds until it is to be asked (again)."""
    answer = observed.answers.get((CallGate, gate.name))
    content = answer.content if answer is not None else None
    if answer is None or answer.at < rollout.since:
        return _result(gate, Verdict.Inconclusive, "it is being asked"), 0.0
    pause = GATE_POLL_SECONDS - answer.age(observed.now)
    if not isinstance(content, GateAnswer):
        return _result(gate, Verdict.Inconclusive, "it could not be asked"), pause
    if content.trial != _trial(rollout):  # it was asked about another one, and that took long
        return _result(gate, Verdict.Inconclusive, "it is being asked"), 0.0
    verdict, message = _verdict(content)
    return _result(gate, verdict, message), pause if verdict is Verdict.Inconclusive else 1.0


def _verdict(answer: GateAnswer) -> tuple[Verdict, str]:
    status, said = answer.status, answer.said[:_LONGEST_WORD]
    if status is None:
        return Verdict.Inconclusive, said or "it cannot be reached"
    if status // 100 == 2:  # noqa: PLR2004 - the class of an HTTP status
        return Verdict.Promote, f"HTTP {status}"  # what agrees need not say why, nor leak
    if status // 100 == 4 and status != 429:  # noqa: PLR2004
        return Verdict.Abort, said or f"HTTP {status}"
    return Verdict.Inconclusive, f"HTTP {status}: {said}".rstrip(": ")


def _call(rollout: Rollout, gate: Gate, webhook: WebhookGate, key: ServiceKey) -> CallGate:
    told = {
        "service": key.name,
        "namespace": key.namespace,
        "gate": gate.name,
        "phase": gate.when,
        "canaryRevision": rollout.canary,
        "stableRevision": rollout.stable,
        "weight": rollout.weight,
        "evidence": [
            {"check": each.check, "verdict": each.verdict, "message": each.message}
            for each in (*rollout.checks, *rollout.gates)
        ],
    }
    return CallGate(
        name=gate.name,
        url=webhook.url,
        timeout_seconds=webhook.timeout_seconds,
        trial=_trial(rollout),
        body=json.dumps(told),
    )


def _trial(rollout: Rollout) -> str:
    began = rollout.began.isoformat() if rollout.began else ""
    return f"{rollout.canary} {began}"


# --- benches --------------------------------------------------------------------------------------


def _job_name(rollout: Rollout, gate: Gate, service: ServiceObject) -> str:
    """Another canary, other settings and another trial of the same canary have another Job."""
    settings = gate.model_dump(mode="json", exclude_defaults=True)
    return bench_name(service, gate.name, [_trial(rollout), settings])


def _read(rollout: Rollout, gate: Gate, bench: BenchGate, observed: Observed) -> CheckResult:
    ref = ChildRef("Job", _job_name(rollout, gate, observed.service))
    child = observed.children.get(ref)
    pod = next((each for each in observed.bench_pods if each.job == ref.name), None)
    refused = next((error.message for error in observed.apply_errors if error.ref == ref), None)
    if child is None or child.deleting or child.job is None:
        said = refused or "its Job is being made"
        return _result(gate, Verdict.Inconclusive, said[:_LONGEST_WORD])
    if pod is not None and _exit_code(pod) == 0:
        return _result(gate, *_judge(bench, _message(pod)))
    problem = _problem(child.job, pod)
    if problem:
        return _result(gate, Verdict.Abort, f"vllm bench serve did not run: {problem}")
    return _result(gate, Verdict.Inconclusive, _waits(pod)[:_LONGEST_WORD] or f"{ref} runs")


def _waits(pod: PodFacts | None) -> str:
    """Why a pod does not run yet, as far as Kubernetes says."""
    if pod is None:
        return ""
    if not pod.scheduled:
        return pod.scheduling_message
    return (pod.container.waiting_message or "") if pod.container is not None else ""


def _problem(job: JobFacts, pod: PodFacts | None) -> str:
    """Why there will be no figures; empty while there may be some."""
    if job.failed and (pod is None or not job.failed.startswith(_OUT_OF_RETRIES)):
        return job.failed[:_LONGEST_WORD]
    if pod is None:
        return "its pod is gone, and its figures with it" if job.succeeded else ""
    # A pod that is deleted was stopped by its Job, which will say why.
    ended = _exit_code(pod) is not None and not pod.deleting
    if not ended and not job.failed:
        return ""
    if not ended:
        return pod.phase_reason or job.failed[:_LONGEST_WORD]
    return f"exit code {_exit_code(pod)}: {last_meaningful_line(_message(pod))}".rstrip(": ")


def _exit_code(pod: PodFacts) -> int | None:
    return None if pod.container is None or pod.running else pod.container.exit_code


def _message(pod: PodFacts) -> str:
    return (pod.container.terminated_message or "") if pod.container is not None else ""


def _judge(bench: BenchGate, message: str) -> tuple[Verdict, str]:
    """Hold the figures of vLLM's result against the limits."""
    try:
        figures = json.loads(message)
    except ValueError:
        figures = None
    if not isinstance(figures, dict):
        return Verdict.Abort, "vllm bench serve told no figures"
    completed = figures.get("completed")
    if completed != bench.num_prompts:
        return Verdict.Abort, f"{completed or 0} of {bench.num_prompts} requests were answered"
    compared = list(_compare(bench, figures))
    missed = [sentence for is_kept, sentence in compared if not is_kept]
    kept = [sentence for is_kept, sentence in compared if is_kept]
    return (Verdict.Abort if missed else Verdict.Promote), "; ".join(missed or kept)


def _compare(bench: BenchGate, figures: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    for field, key in _LIMITS:
        limit = getattr(bench, field)
        if limit is None:
            continue
        figure = figures.get(key)
        if not isinstance(figure, int | float) or not isfinite(figure):
            yield False, f"{key} is not known"
        elif field.startswith("min"):
            yield figure >= limit, f"{key} is {figure:.6g}, and must be at least {limit:g}"
        else:
            yield figure <= limit, f"{key} is {figure:.6g}, and may be at most {limit:g}"
