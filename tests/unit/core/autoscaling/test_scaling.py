"""The size of a service, and what its condition says."""

import pytest

from llmservice.api.v1alpha1 import AutoscalingSpec
from llmservice.core.autoscaling.scaling import MetricsApi, autoscaler_condition, current_size
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


OURS = MetricsApi("v1beta2.custom.metrics.k8s.io", "Service llmservice/ms", ours=True)
NOBODYS = MetricsApi("v1beta2.custom.metrics.k8s.io", "")
TAKEN = MetricsApi("v1beta1.custom.metrics.k8s.io", "Service monitoring/prometheus-adapter")


@pytest.mark.parametrize(
    ("expected", "failure", "api"),
    [
        ("FailedGetPodsMetric", "FailedGetPodsMetric", None),
        ("FailedGetPodsMetric", "FailedGetPodsMetric", OURS),
        ("MetricsAPIMissing", "FailedGetPodsMetric", NOBODYS),
        ("MetricsAPITaken", "FailedGetPodsMetric", TAKEN),
        ("FailedGetScale", "FailedGetScale", TAKEN),
    ],
)
def test_missing_metrics_are_told_with_who_serves_them(expected, failure, api):
    """Where it is known; of any other failure the API's owner is innocent."""
    condition = autoscaler_condition(AutoscalerFacts(False, failure, "words"), api)
    assert ("False", expected) == condition[:2]


def test_an_api_of_another_is_named_with_its_owner_and_the_way_out():
    """Message of MetricsAPITaken."""
    _, _, message = autoscaler_condition(AutoscalerFacts(False, "FailedGetPodsMetric"), TAKEN)
    for words in (TAKEN.api_service, TAKEN.owner, "remove that adapter", "PrometheusAdapter"):
        assert words in message
