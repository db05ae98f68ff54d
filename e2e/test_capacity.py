"""A rollout on a cluster without a spare device still ends, and says which way round it went."""

import json
from collections.abc import Iterator

import pytest

from e2e.follow import condition, follow, is_settled
from e2e.services import tiny_service, with_spec
from e2e.stage import Make, Stage
from e2e.traffic import complete

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# Nobody else's, so nothing else on the cluster can be scheduled by it.
DEVICE = "e2e.llmservice.dev/device"


@pytest.fixture
def one_device(stage: Stage) -> Iterator[str]:
    """One node claims one device; the scheduler and the kubelet believe it."""
    node = stage.kubectl.items("nodes")[0]["metadata"]["name"]
    path = "/status/capacity/" + DEVICE.replace("/", "~1")

    def patch(*operations: dict[str, str]) -> None:
        words = ("patch", "node", node, "--subresource=status", "--type=json")
        stage.kubectl(*words, f"--patch={json.dumps(operations)}")

    patch({"op": "add", "path": path, "value": "1"})
    yield DEVICE
    patch(
        {"op": "remove", "path": path},
        {"op": "remove", "path": path.replace("capacity", "allocatable")},
    )


def test_without_a_spare_device_a_rollout_replaces(
    stage: Stage, one_device: str, make: Make
) -> None:
    """The old pod makes room for the new one, and a condition has the scheduler's words for why."""
    service = tiny_service("full", stage.engine, drainTimeoutSeconds=5)
    name = make(with_spec(service, accelerator={"resource": one_device}))
    before = stage.settle(name)["status"]["stableRevision"]

    stage.kubectl.patch(f"llmservice/{name}", {"spec": {"engine": {"maxNumSeqs": 8}}})

    capacity = stage.await_reason(name, "RolloutCapacity", "Replace", seconds=90)
    assert f"Insufficient {one_device}" in capacity["message"]
    service = follow(stage.kubectl, name, is_settled, seconds=180, may_stall=True)
    assert before != service["status"]["stableRevision"]
    assert condition(service, "RolloutCapacity") is None
    assert isinstance(complete(stage.url(name), name, "Hello"), str)
