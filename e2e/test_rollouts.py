"""A changed knob reaches the engines without a failed request, whatever happens to the operator."""

import time
from typing import Any

import pytest

from e2e import chart
from e2e.cluster.processes import wait_until
from e2e.follow import condition, follow
from e2e.stage import Stage
from e2e.traffic import Load
from llmservice.core.resources.pod import PRE_STOP_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_a_knob_edit_rolls_out_without_a_failed_request(stage: Stage, shared: str) -> None:
    """Short answers and long streams go on through start, switch and drain, and none fails."""
    url = stage.url(shared)
    before = stage.kubectl.get(f"llmservice/{shared}")["status"]["stableRevision"]
    with Load(url, shared, clients=2) as short, Load(url, shared, clients=2, tokens=1200) as long:
        stage.kubectl.patch(f"llmservice/{shared}", {"spec": {"engine": {"maxNumSeqs": 24}}})
        service = stage.settle(shared)
        stage.await_drain(shared)
    assert short.failures + long.failures == []
    assert len(short.answers) > 20
    assert long.answers

    status = service["status"]
    arguments = status["engine"]["arguments"]
    assert arguments[arguments.index("--max-num-seqs") + 1] == "24"
    assert before != status["stableRevision"]
    (deployment,) = stage.kubectl.items("deployments", f"llmservice.dev/service={shared}")
    assert f"{shared}-{status['stableRevision']}" == deployment["metadata"]["name"]
    assert before in stage.revisions(shared)


def test_a_rollout_goes_on_after_the_operator_was_killed(stage: Stage, shared: str) -> None:
    """All operator pods are killed halfway: the rollout ends, in one new revision."""
    before = stage.revisions(shared)
    system = stage.kubectl.within(chart.NAMESPACE)
    with Load(stage.url(shared), shared, clients=1) as load:
        stage.kubectl.patch(f"llmservice/{shared}", {"spec": {"engine": {"maxNumSeqs": 20}}})
        follow(stage.kubectl, shared, lambda s: len(s["status"]["revisions"]) > 1, seconds=30)
        operators = "--selector=app.kubernetes.io/name=llmservice-operator"
        system("delete", "pods", operators, "--force", "--grace-period=0")
        service = stage.settle(shared)
        stage.await_drain(shared)
    assert load.failures == []
    assert {service["status"]["stableRevision"]} == stage.revisions(shared) - before
    (pod,) = stage.pods(shared)
    assert service["status"]["stableRevision"] in pod["metadata"]["name"]
    system("rollout", "status", chart.OPERATOR, "--timeout=60s")


def test_a_spec_that_cannot_run_leaves_the_old_pods_serving(stage: Stage, shared: str) -> None:
    """Ready says that the image cannot be pulled, requests are answered, a revert undoes it."""
    (pod,) = stage.pods(shared)
    with Load(stage.url(shared), shared, clients=1) as load:
        broken = {"spec": {"engine": {"image": "localhost/llmservice/missing:v0.32.0"}}}
        stage.kubectl.patch(f"llmservice/{shared}", broken)
        ready = stage.await_reason(shared, "Ready", "ImagePullFailed", seconds=60)
        assert ready["status"] == "False"
        available = condition(stage.kubectl.get(f"llmservice/{shared}"), "Available")
        assert available is not None
        assert available["status"] == "True"
        stage.kubectl.patch(f"llmservice/{shared}", {"spec": {"engine": {"image": stage.engine}}})
        stage.settle(shared)
    assert load.failures == []
    assert [pod["metadata"]["uid"]] == [each["metadata"]["uid"] for each in stage.pods(shared)]


def test_a_stopped_pod_finishes_its_streams(stage: Stage, shared: str) -> None:
    """What a deleted pod has begun it ends to the last token, also after the SIGTERM.

    What comes after the SIGTERM is refused: with an error, or for a moment with an empty answer
    that says "abort" (vLLM 0.32, `v1/engine/core.py`, `_reject_add_in_shutdown`).
    """
    (pod,) = stage.pods(shared)
    url = stage.gate.pod_url(stage.kubectl.namespace, pod["metadata"]["name"])
    # The short client notices when the pod takes nothing new; a long answer is always under way,
    # and as they differ in length, never all of them end at that moment.
    direct: dict[str, Any] = {"clients": 1, "pause_seconds": 0, "until_failure": True}
    with (
        Load(url, shared, tokens=1000, **direct) as long,
        Load(url, shared, tokens=1700, **direct) as longer,
        Load(url, shared, tokens=8, **direct) as short,
    ):
        wait_until(lambda: bool(short.answers), what="a first answer", seconds=30)
        stopped_after = time.monotonic() + PRE_STOP_SECONDS
        stage.kubectl("delete", f"pod/{pod['metadata']['name']}", "--wait=false")
        wait_until(lambda: bool(short.failures), what="the pod to refuse requests", seconds=90)
    refused_at = short.failures[0].ended
    failures = short.failures + long.failures + longer.failures
    assert [failure for failure in failures if failure.began < stopped_after] == []
    streams = long.answers + longer.answers
    assert [stream for stream in streams if stream.began < refused_at < stream.ended]
