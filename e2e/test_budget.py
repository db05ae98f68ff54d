"""A budget of devices on a real cluster: who may grow is decided by priority, and told."""

import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from e2e import chart
from e2e.follow import condition, follow
from e2e.kubectl import JSON
from e2e.services import tiny_service, with_spec
from e2e.stage import Make, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

_BUDGET = "pair"


@pytest.fixture
def device(stage: Stage, devices: Callable[[int], str]) -> Iterator[str]:
    """A resource of which the services of the tests' namespace may have two.

    The node has three, so that it is not the scheduler who keeps to the budget.
    """
    device = devices(3)
    pair = {
        "name": _BUDGET,
        "namespaces": [stage.kubectl.namespace],
        "resource": device,
        "devices": 2,
    }
    chart.set_value(stage.kubectl, "gpuBudgets", [pair])
    yield device
    chart.set_value(stage.kubectl, "gpuBudgets", [])


def test_what_is_given_back_goes_to_the_highest_priority(
    stage: Stage, device: str, make: Make
) -> None:
    """Until then nobody loses a replica of its minimum, and who waits says who holds what."""

    def make_sharer(name: str, **sizes: int) -> str:
        service = tiny_service(name, stage.engine, drainTimeoutSeconds=5)
        return make(with_spec(service, accelerator={"resource": device}, autoscaling=sizes))

    with _watched(stage, device) as held:
        holder = make_sharer("holder", minReplicas=2, maxReplicas=3)
        follow(stage.kubectl, holder, _runs(2), seconds=180)
        assert [hpa["spec"]["maxReplicas"] for hpa in _autoscalers(stage, holder)] == [2]
        early = make_sharer("early", maxReplicas=1)
        assert f"{holder} holds 2, of 2" in _why_waiting(stage, early)
        urgent = make_sharer("urgent", maxReplicas=1, priority=10)
        assert f"{holder} holds 2, of 2" in _why_waiting(stage, urgent)

        stage.kubectl.patch(f"llmservice/{holder}", {"spec": {"autoscaling": {"minReplicas": 1}}})

        served = follow(stage.kubectl, urgent, _runs(1), seconds=180)
        ready = condition(served, "AutoscalingReady")
        assert ready is None or ready["reason"] != "WaitingForBudget"
        why = _why_waiting(stage, early)
        assert f"{holder} holds 1" in why
        assert f"{urgent} 1, of 2" in why
        assert [len(stage.pods(name)) for name in (holder, early, urgent)] == [1, 0, 1]
    assert held.most == 2


def _runs(replicas: int) -> Callable[[JSON], bool]:
    """Whether as many replicas are ready as there may be."""

    def runs(service: JSON) -> bool:
        status = service.get("status", {})
        most = status.get("autoscaling", {}).get("maxReplicas")
        return bool(status.get("readyReplicas") == replicas == most)

    return runs


def _autoscalers(stage: Stage, name: str) -> list[JSON]:
    return stage.kubectl.items("horizontalpodautoscalers", f"llmservice.dev/service={name}")


def _why_waiting(stage: Stage, name: str) -> str:
    waits = stage.await_reason(name, "AutoscalingReady", "WaitingForBudget", seconds=30)
    message = str(waits["message"])
    assert f"budget {_BUDGET}: " in message
    return message


@dataclass
class _Held:
    """Devices that pods have, those that stop included."""

    of_pods: dict[str, int] = field(default_factory=dict)
    most: int = 0
    """At one time."""

    def read(self, events: Iterable[str]) -> None:
        for line in events:
            event, pod, *devices = line.split()
            self.of_pods[pod] = 0 if event == "DELETED" else sum(map(int, devices))
            self.most = max(self.most, sum(self.of_pods.values()))


@contextmanager
def _watched(stage: Stage, device: str) -> Iterator[_Held]:
    """What pods hold of a resource, by every event of theirs while the `with` block runs."""
    escaped = device.replace(".", "\\.")
    asked = f"{{.object.spec.containers[*].resources.requests.{escaped}}}"
    line = f'{{.type}} {{.object.metadata.uid}} {asked}{{"\\n"}}'
    words = ("get", "pods", "--watch", "--output-watch-events", f"-o=jsonpath={line}")
    held, command = _Held(), [*stage.kubectl.words(), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        reader = threading.Thread(target=held.read, args=[watch.stdout], daemon=True)
        reader.start()
        try:
            yield held
            assert watch.poll() is None, "the watch ended early"
        finally:
            watch.terminate()
            reader.join()
