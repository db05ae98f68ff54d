"""Metrics of the operator that follow single services."""

from llmservice.adapters.telemetry import Telemetry
from llmservice.core.observed import ServiceKey

KEY, OTHER = ServiceKey("team", "mistral"), ServiceKey("team", "qwen")
RATIO = "llmservice_plan_kv_cache_tokens_ratio"


def ratio(telemetry, key):
    labels = {"namespace": key.namespace, "name": key.name}
    return telemetry.registry.get_sample_value(RATIO, labels)


def test_plan_ratio_lives_as_long_as_it_is_known():
    """It is set, moved and removed for one service, and a removed one may be removed again."""
    telemetry = Telemetry()
    telemetry.set_plan_ratio(KEY, None)
    assert ratio(telemetry, KEY) is None

    telemetry.set_plan_ratio(KEY, 0.9)
    telemetry.set_plan_ratio(OTHER, 1.0)
    telemetry.set_plan_ratio(KEY, 1.1)
    assert [1.1, 1.0] == [ratio(telemetry, KEY), ratio(telemetry, OTHER)]

    telemetry.set_plan_ratio(KEY, None)
    telemetry.set_plan_ratio(KEY, None)
    assert [None, 1.0] == [ratio(telemetry, KEY), ratio(telemetry, OTHER)]


def test_cold_start_is_published_by_stage():
    """Each stage has a cause of its own, so each is a series; all go with the service."""
    telemetry = Telemetry()

    def published():
        name, labels = "llmservice_cold_start_seconds", {"namespace": "team", "name": "mistral"}
        found = [
            telemetry.registry.get_sample_value(name, {**labels, "stage": stage})
            for stage in ("schedule", "pull", "load")
        ]
        return [value for value in found if value is not None]

    telemetry.set_cold_start(KEY, {"scheduleSeconds": 1, "pullSeconds": 20, "loadSeconds": 90})
    assert [1, 20, 90] == published()
    telemetry.set_cold_start(KEY, {})
    assert [] == published()
