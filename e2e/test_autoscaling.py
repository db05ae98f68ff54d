"""Autoscalers on real engines: a queue adds a replica, nobody asking takes the last one away."""

import json
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from e2e.canaries import is_routed
from e2e.cluster.processes import wait_until
from e2e.follow import condition, follow
from e2e.kubectl import JSON
from e2e.services import tiny_service, with_spec
from e2e.stage import Make, Stage
from e2e.traffic import Load, complete

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

_WAITING = "vllm:num_requests_waiting"
_LOAD = "llmservice:load"
_SERVED = "vllm:request_success_total"


def test_a_queue_adds_a_replica_without_a_failed_request(stage: Stage, make: Make) -> None:
    """Read from real engines, served by our metrics server, decided by a real HPA.

    What waits does so in the routers, so the newcomer gets its part of it; and it goes again
    without a lost request when the bounds say so.
    """
    service = tiny_service("grows", stage.engine, maxNumSeqs=1, drainTimeoutSeconds=60)
    sizes = {"minReplicas": 1, "maxReplicas": 2, "waitingPerReplica": 1, "coldStartSeconds": 60}
    name = make(with_spec(service, autoscaling=sizes, traffic={"router": "Embedded"}))
    follow(stage.kubectl, name, is_routed, seconds=240)
    follow(stage.kubectl, name, _is_decided, seconds=120)
    with Load(
        stage.url(name), name, clients=8, tokens=64, pause_seconds=0, limit_seconds=800
    ) as load:
        follow(stage.kubectl, name, _has_ready(2), seconds=400)
        both_since = time.monotonic()
        wait_until(
            lambda: min(_gauge(stage, pod, _SERVED) for pod in _names(stage, name)) >= 20,
            what="both engines to answer",
            seconds=300,
        )
        assert max(_gauge(stage, pod, _WAITING) for pod in _names(stage, name)) <= 1
        stage.kubectl.patch(f"llmservice/{name}", {"spec": {"autoscaling": {"maxReplicas": 1}}})
        wait_until(lambda: len(stage.pods(name)) == 1, what="one pod to stop", seconds=180)
    assert load.failures == []
    assert [each for each in load.answers if each.began > both_since]


def test_nobody_asking_takes_the_last_replica_and_a_request_brings_it_back(
    stage: Stage, make: Make
) -> None:
    """The first requests wait in the router, and are answered a moment after the pod is ready."""
    service = tiny_service("sleeps", stage.engine)
    sizes = {"minReplicas": 0, "maxReplicas": 2, "idleSeconds": 30}
    name = make(with_spec(service, autoscaling=sizes, traffic={"router": "Embedded"}))
    follow(stage.kubectl, name, is_routed, seconds=240)
    asleep = follow(stage.kubectl, name, _is_asleep, seconds=180)
    ready = condition(asleep, "Ready")
    assert ready is not None
    assert (ready["status"], ready["reason"]) == ("True", "ScaledToZero")
    wait_until(lambda: not stage.pods(name), what="the last pod to stop", seconds=180)

    with ThreadPoolExecutor(3) as clients:
        asked = [
            clients.submit(complete, stage.url(name), name, "Good morning", 4, seconds=240)
            for _ in range(3)
        ]
        follow(stage.kubectl, name, _has_ready(1), seconds=240)
        ready_at = time.monotonic()
        answers = [each.result() for each in asked]
    waited = time.monotonic() - ready_at
    assert len(answers) == 3
    print(f"the last of 3 held requests was answered {waited:.1f} s after the pod was ready")
    assert waited < 10


def test_metrics_are_served_under_their_own_names(stage: Stage, make: Make) -> None:
    """`kubectl get --raw` shows what the HPA reads; a service alone in the world has no queue."""
    service = tiny_service("measured", stage.engine)
    name = make(with_spec(service, autoscaling={"maxReplicas": 2}))
    follow(stage.kubectl, name, _is_decided, seconds=300)
    (pod,) = stage.pods(name)

    assert {pod["metadata"]["name"]: 0.0} == _values(stage, name, _WAITING)
    assert {pod["metadata"]["name"]: 0.0} == _values(stage, name, _LOAD, "concurrency=11.2")
    ready = condition(stage.kubectl.get(f"llmservice/{name}"), "AutoscalingReady")
    assert ready is not None
    assert ready["status"] == "True"


def _is_decided(service: JSON) -> bool:
    found = condition(service, "AutoscalingReady")
    return found is not None and found["status"] == "True" and found["reason"] != "SizeKept"


def _is_asleep(service: JSON) -> bool:
    return bool(service.get("status", {}).get("phase") == "Idle")


def _has_ready(replicas: int) -> Any:
    return lambda service: service.get("status", {}).get("readyReplicas") == replicas


def _names(stage: Stage, name: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in stage.pods(name)]


def _gauge(stage: Stage, pod: str, metric: str) -> float:
    """What an engine says itself, without anybody between."""
    url = f"{stage.gate.pod_url(stage.kubectl.namespace, pod)}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{metric}{{"))


def _values(stage: Stage, name: str, metric: str, parameter: str = "") -> dict[str, float]:
    """What the metrics API serves of each pod of a service."""
    where = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{stage.kubectl.namespace}/pods"
    asked = {"labelSelector": f"llmservice.dev/service={name}", "metricLabelSelector": parameter}
    query = urllib.parse.urlencode({key: value for key, value in asked.items() if value})
    found = json.loads(stage.kubectl("get", "--raw", f"{where}/*/{metric}?{query}"))
    return {item["describedObject"]["name"]: _number(item["value"]) for item in found["items"]}


def _number(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
