"""The size of a service, and what its condition says."""

import pytest

from llmservice.api.v1alpha1 import AutoscalingSpec
from llmservice.core.autoscaling.scaling import autoscaler_condition, current_size
from llmservice.core.observed import AutoscalerFacts, DeploymentFacts

WISH = AutoscalingSpec(min_replicas=2, max_replicas=8)
SLEEPY = AutoscalingSpec(min_replicas=0, max_replicas=8)


def live(replicas):
    """One Deployment of the stable revision."""
    return {"r1": DeploymentFacts(replicas, replicas, replicas)}


@pytest.mark.parametrize(
    ("expected", "wish", "status", "deployments"),
    [
        pytest.param(2, WISH, {}, {}, id="new"),
        pytest.param(5, WISH, {}, live(5), id="sized by hand before"),
        pytest.param(8, WISH, {}, live(20), id="more than it may have"),
        pytest.param(6, WISH, {"revision": "r1", "replicas": 3}, live(6), id="led"),
        pytest.param(2, WISH, {"revision": "r1", "replicas": 3}, live(0), id="zero by hand"),
        pytest.param(3, WISH, {"replicas": 3}, live(6), id="kept during a rollout"),
        pytest.param(3, WISH, {"revision": "gone", "replicas": 3}, live(6), id="lead is gone"),
        pytest.param(0, SLEEPY, {"replicas": 0}, live(0), id="asleep"),
        pytest.param(1, SLEEPY, {"revision": "r1", "replicas": 1}, live(0), id="woken by hand"),
        pytest.param(2, WISH, {"replicas": 0}, live(0), id="may not sleep any more"),
        pytest.param(1, SLEEPY, {}, {}, id="a new one does not begin asleep"),
    ],
)
def test_size(expected, wish, status, deployments):
    assert expected == current_size(wish, status, deployments, "r1")


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        (("Unknown", "AutoscalerStarting"), None),
        (("Unknown", "AutoscalerStarting"), AutoscalerFacts()),
        (("True", "Scaling"), AutoscalerFacts(active=True)),
        (("True", "TooManyReplicas"), AutoscalerFacts(active=True, limited="TooManyReplicas")),
        (("False", "FailedGetScale"), AutoscalerFacts(False, "FailedGetScale", "forbidden")),
    ],
)
def test_condition(expected, facts):
    status, reason, message = autoscaler_condition(facts)
    assert expected == (status, reason)
    assert message
    assert status != "False" or facts.message in message
