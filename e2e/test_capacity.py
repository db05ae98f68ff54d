"""A rollout on a cluster without a spare device still ends, and says which way round it went."""

from collections.abc import Callable

import pytest

from e2e.follow import condition, follow, is_settled
from e2e.services import tiny_service, with_spec
from e2e.stage import Make, Stage
from e2e.traffic import complete

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_without_a_spare_device_a_rollout_replaces(
    stage: Stage, devices: Callable[[int], str], make: Make
) -> None:
    """The old pod makes room for the new one, and a condition has the scheduler's words for why."""
    device = devices(1)
    service = tiny_service("full", stage.engine, drainTimeoutSeconds=5)
    name = make(with_spec(service, accelerator={"resource": device}))
    before = stage.settle(name)["status"]["stableRevision"]

    stage.kubectl.patch(f"llmservice/{name}", {"spec": {"engine": {"maxNumSeqs": 8}}})

    capacity = stage.await_reason(name, "RolloutCapacity", "Replace", seconds=90)
    assert f"Insufficient {device}" in capacity["message"]
    service = follow(stage.kubectl, name, is_settled, seconds=180, may_stall=True)
    assert before != service["status"]["stableRevision"]
    assert condition(service, "RolloutCapacity") is None
    assert isinstance(complete(stage.url(name), name, "Hello"), str)
