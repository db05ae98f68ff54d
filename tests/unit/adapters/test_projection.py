"""Live objects reduced to facts; whatever arrives, nothing raises."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.adapters import projection
from llmservice.core.failures import ContainerState
from llmservice.core.observed import (
    AutoscalerFacts,
    ChildRef,
    DeploymentFacts,
    JobFacts,
    ServiceKey,
)
from llmservice.core.revisions import pack_data

LABELS = {"app.kubernetes.io/managed-by": "llmservice", "llmservice.dev/service": "mistral"}


def a_deployment(**changes):
    live = {
        "metadata": {
            "name": "mistral-abc",
            "namespace": "team",
            "uid": "u1",
            "resourceVersion": "7",
            "labels": LABELS,
            "annotations": {"llmservice.dev/applied-hash": "h"},
            "ownerReferences": [
                {"kind": "Other", "name": "x", "uid": "o"},
                {"kind": "LLMService", "name": "mistral", "uid": "s", "controller": True},
            ],
            "managedFields": [
                {"manager": "llmservice", "operation": "Apply", "fieldsV1": {"f:spec": {}}}
            ],
        },
        "spec": {"replicas": 3},
        "status": {"replicas": 2, "readyReplicas": 1},
    }
    return {**live, **changes}


def test_deployment_is_reduced_to_what_a_rollout_looks_at():
    """Identity, ownership, hash and replicas; nothing of the pod template."""
    child = projection.child("Deployment", a_deployment())

    assert ChildRef("Deployment", "mistral-abc") == child.ref
    assert ("u1", "7", "h") == (child.uid, child.resource_version, child.applied_hash)
    assert ("s", "LLMService") == (child.controller_uid, child.controller_kind)
    assert '{"f:spec":{}}' == child.owned_fields
    assert DeploymentFacts(3, 2, 1) == child.deployment
    assert not child.deleting


def test_refused_pods_are_seen_on_the_deployment():
    """The message of ReplicaFailure while it is True."""
    condition = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    child = projection.child("Deployment", a_deployment(status={"conditions": [condition]}))

    assert "exceeded quota" == child.deployment.failure

    healed = {**condition, "status": "False"}
    child = projection.child("Deployment", a_deployment(status={"conditions": [healed]}))

    assert child.deployment.failure is None


def test_revision_keeps_its_data():
    """To the letter, compressed."""
    data = {"engineVersion": "0.33", "template": {"spec": {"containers": []}}}
    child = projection.child("ControllerRevision", {"metadata": {}, "revision": 4, "data": data})

    assert (4, pack_data(data)) == (child.revision.number, child.revision.data)


def test_equal_shapes_are_one_string():
    """Memory for a thousand services is that of a handful."""
    one = projection.child("Service", a_deployment())
    other = projection.child("Service", json.loads(json.dumps(a_deployment())))

    assert one.owned_fields is other.owned_fields


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ServiceKey("team", "mistral")),
        ({"ownerReferences": []}, ServiceKey("team", "mistral")),
        ({"labels": {}}, ServiceKey("team", "mistral")),
        ({"labels": {**LABELS, "llmservice.dev/service": "x"}}, ServiceKey("team", "mistral")),
        ({"labels": {}, "ownerReferences": []}, None),
        ({"labels": {"llmservice.dev/service": "mistral"}, "ownerReferences": []}, None),
    ],
)
def test_child_is_attributed_by_controller_then_by_labels(changes, expected):
    """A hand-edited label does not lose a child; a stranger is nobody's."""
    metadata = {**a_deployment()["metadata"], **changes}

    assert expected == projection.service_key({"metadata": metadata})


def a_pod(**status):
    return {
        "metadata": {
            "name": "p",
            "uid": "pu",
            "namespace": "team",
            "creationTimestamp": "2026-01-31T08:00:00Z",
            "labels": {**LABELS, "llmservice.dev/revision": "abc"},
        },
        "status": status,
    }


def test_ready_pod():
    """Ready is the kubelet's word."""
    ready = [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]
    pod = projection.pod(a_pod(conditions=ready))

    assert ("p", "pu", "abc", True, True) == (
        pod.name,
        pod.uid,
        pod.revision,
        pod.ready,
        pod.scheduled,
    )
    assert datetime(2026, 1, 31, 8, tzinfo=UTC) == pod.created
    assert pod.container is None
    assert "" == pod.address


@pytest.mark.parametrize(
    ("ready", "silent"),
    [
        ({"status": "False"}, True),
        ({"status": "False", "reason": "ContainersNotReady"}, False),
        ({"status": "False", "reason": "ReadinessGatesNotReady"}, False),
        ({"status": "True"}, False),
        ({}, False),
    ],
)
def test_silent_pod(ready, silent):
    """Not ready without a kubelet's reason: its node does not answer."""
    assert silent == projection.pod(a_pod(conditions=[{"type": "Ready", **ready}])).silent


def test_pod_has_its_first_address():
    """The one of the cluster's own address family."""
    both = [{"ip": "fd00::7"}, {"ip": "10.0.0.7"}]
    assert "fd00::7" == projection.pod(a_pod(podIP="fd00::7", podIPs=both)).address


def test_unschedulable_pod_keeps_the_schedulers_words():
    """They say what is missing."""
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: no gpu"}
    pod = projection.pod(a_pod(conditions=[condition]))

    assert not pod.scheduled
    assert "0/3 nodes: no gpu" == pod.scheduling_message


@pytest.mark.parametrize(
    ("state", "last", "running", "expected"),
    [
        (
            {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
            {},
            False,
            ("ImagePullBackOff", "no such image", None, None, None),
        ),
        (
            {"terminated": {"reason": "Error", "exitCode": 1, "message": "boom"}},
            {},
            False,
            (None, None, "Error", 1, "boom"),
        ),
        (
            {"waiting": {"reason": "CrashLoopBackOff"}},
            {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
            False,
            ("CrashLoopBackOff", None, "OOMKilled", 137, None),
        ),
        (
            {"running": {}},
            {"terminated": {"reason": "Error", "exitCode": 0}},
            True,
            (None, None, "Error", 0, None),
        ),
    ],
)
def test_container_tells_what_it_waits_for_and_how_it_last_ended(state, last, running, expected):
    """The last end counts even while the container runs again."""
    engine = {"name": "engine", "restartCount": 2, "state": state, "lastState": last}
    sidecar = {"name": "sidecar", "restartCount": 9}
    pod = projection.pod(a_pod(containerStatuses=[sidecar, engine]))

    assert ContainerState("engine", False, 2, *expected) == pod.container
    assert running == pod.running


def test_bench_tells_its_figures():
    """The message of its container, and the Job that it is of."""
    said = {"terminated": {"reason": "Completed", "exitCode": 0, "message": "{}"}}
    live = a_pod(containerStatuses=[{"name": "bench", "state": said}])
    live["metadata"]["labels"]["batch.kubernetes.io/job-name"] = "mistral-bench-speed-x"
    pod = projection.pod(live)

    assert "mistral-bench-speed-x" == pod.job
    assert ("bench", 0, "{}") == (
        pod.container.name,
        pod.container.exit_code,
        pod.container.terminated_message,
    )


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], JobFacts()),
        ([{"type": "Complete", "status": "True"}], JobFacts(succeeded=True)),
        ([{"type": "Complete", "status": "False"}], JobFacts()),
        ([{"type": "Suspended", "status": "True"}], JobFacts()),
        (
            [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "late"}],
            JobFacts(failed="DeadlineExceeded: late"),
        ),
    ],
)
def test_job_tells_how_it_ended(conditions, expected):
    """Its conditions say it."""
    child = projection.child("Job", a_deployment(status={"conditions": conditions}))

    assert expected == child.job
    assert (expected != JobFacts()) == child.job.ended


@pytest.mark.parametrize(
    ("expected", "conditions"),
    [
        (AutoscalerFacts(), []),
        (AutoscalerFacts(active=True, reason="ValidMetricFound"), [("ScalingActive", "True")]),
        (
            AutoscalerFacts(active=True, reason="ValidMetricFound", limited="TooManyReplicas"),
            [("ScalingActive", "True"), ("ScalingLimited", "True")],
        ),
        (
            AutoscalerFacts(active=False, reason="FailedGetPodsMetric", message="words"),
            [("ScalingActive", "False"), ("ScalingLimited", "False")],
        ),
        (
            AutoscalerFacts(active=False, reason="FailedGetScale", message="words"),
            [("AbleToScale", "False"), ("ScalingActive", "True")],
        ),
    ],
    ids=["new", "works", "at a bound", "without metrics", "without a target"],
)
def test_autoscaler_is_reduced_to_whether_it_decides(expected, conditions):
    """A change of counts or times alone is none, or every look would be an event."""
    reasons = {
        ("ScalingActive", "True"): "ValidMetricFound",
        ("ScalingActive", "False"): "FailedGetPodsMetric",
        ("ScalingLimited", "True"): "TooManyReplicas",
        ("AbleToScale", "False"): "FailedGetScale",
    }
    status = [
        {"type": type_, "status": value, "reason": reasons.get((type_, value)), "message": "words"}
        for type_, value in conditions
    ]
    live = {"metadata": {"name": "mistral-abc"}, "status": {"conditions": status}}

    assert expected == projection.child("HorizontalPodAutoscaler", live).autoscaler


def test_pod_tells_when_it_came_along():
    """Only while it is so: a pod that is not ready has no time of that."""
    times = ["2026-01-01T00:00:01Z", "2026-01-01T00:00:31Z", "2026-01-01T00:02:00Z"]
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": times[0]},
        {"type": "Ready", "status": "True", "lastTransitionTime": times[2]},
    ]
    engine = {"name": "engine", "state": {"running": {"startedAt": times[1]}}}
    status = {"conditions": conditions, "containerStatuses": [engine]}
    pod = projection.pod({"metadata": {"name": "a"}, "status": status})
    told = [pod.scheduled_at, pod.started_at, pod.ready_since]
    assert [datetime.fromisoformat(each) for each in times] == told

    conditions[1]["status"] = "False"
    engine["state"] = {"waiting": {}}
    pod = projection.pod({"metadata": {"name": "a"}, "status": status})
    assert (None, None) == (pod.started_at, pod.ready_since)


def test_missing_optional_parts_are_no_trouble():
    """The bare minimum of every kind."""
    for kind in ("Deployment", "Service", "ControllerRevision", "PodDisruptionBudget"):
        assert "{}" == projection.child(kind, {"metadata": {"name": "x"}}).owned_fields
    assert not projection.pod({"metadata": {"name": "x"}}).ready
    assert b"{}" == projection.stored_service({"metadata": {"name": "x"}}).spec


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
odd = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
# Objects with the right keys in the right places and anything below them.
metadata = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        (
            "name",
            "namespace",
            "uid",
            "resourceVersion",
            "labels",
            "annotations",
            "ownerReferences",
            "managedFields",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
        ),
        odd,
    ),
)
lists = st.lists(
    odd | st.fixed_dictionaries({"type": odd, "status": odd, "name": st.just("engine") | odd})
)
status = st.fixed_dictionaries(
    {}, optional={"conditions": odd | lists, "containerStatuses": odd | lists, "replicas": odd}
)
live = st.fixed_dictionaries(
    {}, optional={"metadata": odd | metadata, "status": odd | status, "spec": odd, "data": odd}
)


@given(live)
def test_odd_objects_never_raise(value):
    """A newer API, a broken webhook or a person may send anything."""
    projection.identity(value)
    projection.service_key(value)
    projection.stored_service(value)
    projection.pod(value)
    projection.component(value)
    for kind in ("Deployment", "ControllerRevision", "Service"):
        projection.child(kind, value)
