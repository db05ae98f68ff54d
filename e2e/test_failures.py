"""Every way in which an engine fails to start is named, with what to do about it."""

from typing import Any

import pytest

from e2e.services import tiny_service, with_spec
from e2e.stage import Make, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# What to change in a service that runs, the reason in its Ready condition, and a word of the
# message: what was asked for, or what it lacks.
ENGINES: dict[str, tuple[dict[str, Any], str, str]] = {
    "image": (
        {"image": "localhost/llmservice/missing:v0.32.0"},
        "ImagePullFailed",
        "localhost/llmservice/missing:v0.32.0",
    ),
    "secret": (
        {"env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "k"}}}]},
        "SecretMissing",
        "absent",
    ),
    "kv-cache": (
        # Else the plan refuses it before there is a pod.
        {"kvCacheMemoryBytes": "256Ki", "plan": "Advisory"},
        "KVCacheTooSmall",
        "spec.engine.maxModelLen",
    ),
    "memory": (
        {"resources": {"limits": {"memory": "200Mi"}}},
        "OOMKilled",
        "spec.engine.resources.limits.memory",
    ),
    "flag": (
        # The version says otherwise than the image, so only the engine can tell.
        {"version": "0.33.0", "extraArgs": ["--monokernel"]},
        "InvalidEngineArgs",
        "--monokernel",
    ),
}


@pytest.mark.parametrize("failure", ENGINES)
def test_an_engine_that_cannot_start_says_why(stage: Stage, make: Make, failure: str) -> None:
    """The reason names the cause and the message what to look at."""
    change, reason, word = ENGINES[failure]
    name = make(tiny_service(f"bad-{failure}", stage.engine, **change))
    ready = stage.await_reason(name, "Ready", reason)
    assert ready["status"] == "False"
    assert word in ready["message"]


def test_a_model_that_is_not_in_the_image_is_named(stage: Stage, make: Make) -> None:
    """A path that does not exist, in the words of the spec."""
    service = tiny_service("bad-model", stage.engine)
    service["spec"]["model"]["id"] = "/models/absent"
    name = make(service)
    ready = stage.await_reason(name, "Ready", "ModelNotFound")
    assert "/models/absent" in ready["message"]


def test_pods_that_fit_nowhere_repeat_the_scheduler(stage: Stage, make: Make) -> None:
    """More devices than any node has: the scheduler's own sentence, not a guess."""
    service = with_spec(
        tiny_service("bad-place", stage.engine),
        accelerator={"resource": "e2e.llmservice.dev/unheard-of", "count": 1},
    )
    name = make(service)
    ready = stage.await_reason(name, "Ready", "Unschedulable")
    assert "e2e.llmservice.dev/unheard-of" in ready["message"]
