"""Deleting an LLMService takes everything with it, and nothing of its neighbour."""

import pytest

from e2e.cluster.processes import wait_until
from e2e.services import tiny_service
from e2e.stage import Make, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

KINDS = (
    "deployments,replicasets,pods,services,endpointslices,serviceaccounts,controllerrevisions,"
    "poddisruptionbudgets"
)


def children(stage: Stage, name: str) -> set[str]:
    """Everything that bears a service's label, as kind/name."""
    words = ("get", KINDS, f"--selector=llmservice.dev/service={name}", "-o=name")
    return set(stage.kubectl(*words).split())


def test_deleting_a_service_removes_all_its_children(stage: Stage, make: Make) -> None:
    """Kubernetes' own garbage collector takes them by their owner; no finalizer holds anything."""
    missing = {"image": "localhost/llmservice/missing:v0.32.0"}
    doomed = make(tiny_service("doomed", stage.engine, **missing))
    neighbour = make(tiny_service("doomed-too", stage.engine, **missing))

    def all_there() -> bool:
        # The entry Service and the revision's: one object more than there are kinds.
        return all(
            len(children(stage, name)) > len(KINDS.split(",")) for name in (doomed, neighbour)
        )

    wait_until(all_there, what="the children of both services", seconds=60)
    kept = children(stage, neighbour)
    stage.kubectl("delete", f"llmservice/{doomed}")
    wait_until(lambda: not children(stage, doomed), what="the end of all children", seconds=60)
    assert kept == children(stage, neighbour)
