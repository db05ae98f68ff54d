"""Who owns ``spec.replicas``, proved on the API server and with the real HPA controller."""

import asyncio
import json
from functools import partial

import pytest

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.toolchain import binaries
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.resources import AUTOSCALER, DEPLOYMENT
from llmservice.adapters.rest import RestCluster
from llmservice.api import names
from llmservice.core.ownership import owned_fields, owns
from llmservice.handlers import operator
from tests.chart.conftest import Helm
from tests.contract.conftest import OPERATOR_USER, condition

BOUNDS = {"minReplicas": 2, "maxReplicas": 6}
TAKEN = "v1beta1.custom.metrics.k8s.io"
"""By an adapter that knows nothing newer."""


async def the_deployment(kube):
    """The only one."""
    (live,) = await kube.list(DEPLOYMENT, "llmservice.dev/revision")
    return live


async def replicas(kube):
    """Pods that are asked for."""
    return (await the_deployment(kube))["spec"]["replicas"]


def owners(live):
    """Field managers of spec.replicas."""
    return {
        entry["manager"]
        for entry in live["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }


async def scale(kube, wanted):
    """Write the scale subresource, as the HPA controller does."""
    live = await the_deployment(kube)
    patch = {"spec": {"replicas": wanted}}
    await kube.patch(DEPLOYMENT, live["metadata"]["name"], patch, subresource="scale")


async def until_replicas(kube, wanted):
    """Wait until so many pods are asked for."""

    async def there():
        return await replicas(kube) == wanted

    await kube.eventually(there, f"{wanted} replicas")


async def until_handed_over(kube):
    """Wait until the operator does not own the number of pods any more."""

    async def given():
        found = owners(await the_deployment(kube))
        return names.CHILD_MANAGER not in found and found

    return await kube.eventually(given, "the hand-over of spec.replicas")


async def test_autoscaler_keeps_what_it_wrote(kube, start_operator):
    """The operator holds neither the field nor another opinion."""
    await start_operator()
    await kube.ready_service(autoscaling=BOUNDS)
    assert 2 == await replicas(kube)
    await until_handed_over(kube)
    await scale(kube, 5)
    await kube.until_ready()
    follower = kube.follow()
    await kube.until_quiet(follower)

    live = await the_deployment(kube)
    assert 5 == live["spec"]["replicas"]
    assert not owners(live) & {names.CHILD_MANAGER, names.SCALE_MANAGER}
    assert 5 == (await kube.service())["status"]["autoscaling"]["replicas"]


async def test_handing_over_in_both_directions_never_dips(kube, start_operator):
    """No version of the Deployment ever asked for another number than the two that were wanted."""
    await start_operator()
    await kube.ready_service(replicas=4)
    seen = []
    watch = asyncio.create_task(follow_replicas(kube, seen))
    await kube.edit_service(autoscaling=BOUNDS)
    await until_handed_over(kube)
    await kube.eventually(lambda: an_autoscaler(kube), "an autoscaler")
    await kube.edit_service(autoscaling=None, replicas=3)
    await until_replicas(kube, 3)

    async def gone():
        return not await kube.list(AUTOSCALER)

    await kube.eventually(gone, "no autoscaler")
    watch.cancel()
    assert {4, 3} == set(seen)
    assert names.CHILD_MANAGER in owners(await the_deployment(kube))


async def an_autoscaler(kube):
    """The HPAs there are."""
    return await kube.list(AUTOSCALER)


async def follow_replicas(kube, seen):
    """Note each number of pods that a Deployment is asked for, one after the other."""
    version = (await the_deployment(kube))["metadata"]["resourceVersion"]
    events = kube.cluster.watch(
        DEPLOYMENT,
        kube.namespace,
        label_selector="llmservice.dev/revision",
        resource_version=version,
    )
    async for event in events:
        seen.append(event.object["spec"]["replicas"])


async def test_a_raised_minimum_holds_at_once(kube, start_operator):
    """Within the operator's own time, without metrics, and the HPA agrees."""
    await start_operator()
    await kube.ready_service(autoscaling=BOUNDS)
    await until_handed_over(kube)
    await kube.edit_service(autoscaling={"minReplicas": 5, "maxReplicas": 6})
    await until_replicas(kube, 5)
    await kube.edit_service(autoscaling={"minReplicas": 1, "maxReplicas": 3})
    await until_replicas(kube, 3)


async def test_no_metrics_are_no_reason_to_scale_down(kube, start_operator):
    """Nobody serves the metrics API here: the condition says so, and all pods stay."""
    await start_operator()
    await kube.ready_service(autoscaling=BOUNDS)
    await until_handed_over(kube)
    await scale(kube, 4)

    async def reported():
        found = condition(await kube.service(), "AutoscalingReady")
        return found if found.get("status") == "False" else None

    found = await kube.eventually(reported, "AutoscalingReady to be False")
    assert "FailedGetPodsMetric" == found["reason"]
    assert "nothing is scaled down" in found["message"]
    assert 4 == await replicas(kube)


@pytest.fixture
def adapter(control_plane):
    """Another adapter has the API, and the operator the chart's right to see that."""
    role, binding = (
        manifest
        for manifest in Helm(binaries() / "helm").template()
        if manifest["metadata"]["name"] == "llmservice-metrics-api"
    )
    group = "rbac.authorization.k8s.io"
    binding["subjects"] = [{"apiGroup": group, "kind": "User", "name": OPERATOR_USER}]
    api_service = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": TAKEN},
        "spec": {
            "group": "custom.metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"namespace": "monitoring", "name": "prometheus-adapter"},
        },
    }
    made = [role, binding, api_service]
    for each in made:
        control_plane.kubectl("apply", "-f", "-", input=json.dumps(each))
    yield
    for each in made:  # above all the APIService: namespaces cannot go while it leads nowhere
        name = each["metadata"]["name"]
        control_plane.kubectl("delete", each["kind"], name, "--ignore-not-found")


async def test_adapter_that_has_the_metrics_api_is_named(
    kube, start_operator, adapter, monkeypatch
):
    """The operator looks for itself, and says what to do, also when the adapter has gone."""
    monkeypatch.setattr(operator, "_METRICS_API_SECONDS", 1.0)
    await start_operator()
    await kube.ready_service(autoscaling=BOUNDS)

    async def reported(reason):
        found = condition(await kube.service(), "AutoscalingReady")
        return found if found.get("reason") == reason else None

    found = await kube.eventually(partial(reported, "MetricsAPITaken"), "MetricsAPITaken", 30)
    assert "False" == found["status"]
    assert f"{TAKEN} belongs to Service monitoring/prometheus-adapter" in found["message"]

    await asyncio.to_thread(kube.plane.kubectl, "delete", "apiservice", TAKEN)
    await kube.eventually(partial(reported, "MetricsAPIMissing"), "MetricsAPIMissing", 30)


async def test_second_autoscaler_on_the_same_pods_is_named(kube, start_operator):
    """Two would undo each other; Kubernetes stops both, and the condition says which to delete."""
    await start_operator()
    await kube.ready_service(autoscaling=BOUNDS)
    await until_handed_over(kube)
    (ours,) = await kube.list(AUTOSCALER)
    second = {
        "apiVersion": AUTOSCALER.api_version,
        "kind": AUTOSCALER.kind,
        "metadata": {"name": "second", "namespace": kube.namespace},
        "spec": {"scaleTargetRef": ours["spec"]["scaleTargetRef"], "maxReplicas": 9},
    }
    await asyncio.to_thread(kube.plane.kubectl, "apply", "-f", "-", input=json.dumps(second))

    async def reported():
        found = condition(await kube.service(), "AutoscalingReady")
        return found if found.get("reason") == "AmbiguousSelector" else None

    found = await kube.eventually(reported, "AmbiguousSelector")
    assert "another HorizontalPodAutoscaler counts the same pods" in found["message"]


async def test_keda_that_is_not_there_is_named(kube, start_operator):
    """And nothing else waits for it: the pods run, with as many as the minimum says."""
    await start_operator()
    keda = {"provider": "KEDA", "prometheusUrl": "http://prometheus.monitoring.svc:9090"}
    await kube.create_service(autoscaling={**BOUNDS, **keda})

    async def reported():
        found = condition(await kube.service(), "Ready")
        return found if found.get("reason") == "ChildRefused" else None

    found = await kube.eventually(reported, "ChildRefused")
    assert (
        "the cluster does not know ScaledObject (keda.sh/v1alpha1): install it"
        in (found["message"])
    )
    assert 2 == await replicas(kube)


def tolerances(hpa):
    """Of each direction that has one."""
    behavior = hpa["spec"]["behavior"]
    return {name: each["tolerance"] for name, each in behavior.items() if "tolerance" in each}


async def test_tolerances_are_written_and_not_written_again(kube, start_operator):
    """On a server that has them, which this one is."""
    await start_operator()
    await kube.ready_service(autoscaling=BOUNDS)
    await until_handed_over(kube)
    await kube.eventually(lambda: an_autoscaler(kube), "an autoscaler")
    await kube.until_quiet(kube.follow())

    (live,) = await kube.list(AUTOSCALER)
    assert {"scaleUp": "100m", "scaleDown": "100m"} == tolerances(live)


async def test_tolerances_that_a_server_drops_are_no_drift():
    """As one does whose feature is off: the field stays ours, so nobody writes it for ever."""
    flags = {"kube-apiserver": ["--emulated-version=1.34"]}
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"}
    directions = {name: {"tolerance": "100m"} for name in ("scaleUp", "scaleDown")}
    wanted = {
        "apiVersion": AUTOSCALER.api_version,
        "kind": AUTOSCALER.kind,
        "metadata": {"name": "engine"},
        "spec": {"scaleTargetRef": target, "maxReplicas": 3, "behavior": directions},
    }
    with ControlPlane(nodes=0, flags=flags) as plane:
        cluster = RestCluster(await Connection.open(Credentials(kubeconfig=plane.kubeconfig)))
        manager = names.CHILD_MANAGER
        await cluster.apply(AUTOSCALER, "default", wanted, field_manager=manager, force=True)
        # Whoever writes next has the server work out anew who owns what.
        plane.kubectl("annotate", "hpa", "engine", "seen=yes")
        live = await cluster.get(AUTOSCALER, "default", "engine")
        await cluster.close()

    owned = owned_fields(live["metadata"]["managedFields"])
    assert {} == tolerances(live)
    assert all(owns(owned, "spec", "behavior", name, "tolerance") for name in directions)
