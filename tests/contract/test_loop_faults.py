"""Watches expire, caches lie, rights and quotas are short: nothing crashes, loops or is lost."""

import asyncio
import contextlib

import pytest

from llmservice.adapters.reflector import Reflector
from llmservice.adapters.resources import LLM_SERVICE, SERVICE
from llmservice.adapters.store import Store
from llmservice.core.observed import ServiceKey
from tests.bench.audit import Category, count
from tests.contract.conftest import CLUSTER_WIDE_USER, condition


async def test_expired_watch_is_answered_by_a_list_and_its_difference(kube):
    """A real 410: what was deleted and created meanwhile is known afterwards."""
    store, touched = Store(), []
    reflector = Reflector(kube.cluster, SERVICE, kube.namespace, sink=store, touched=touched.append)

    def a_child(name):
        labels = {"app.kubernetes.io/managed-by": "llmservice", "llmservice.dev/service": "mistral"}
        ports = {"ports": [{"port": 80}], "clusterIP": "None"}
        return {"metadata": {"name": name, "labels": labels}, "spec": ports}

    async def run_until(condition, what):
        task = asyncio.create_task(reflector.run())
        try:
            await kube.eventually(condition, what)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def knows(*names):
        return {place.name for place in store._owners} == set(names)

    await kube.cluster.create(SERVICE, kube.namespace, a_child("a"))
    await kube.cluster.create(SERVICE, kube.namespace, a_child("b"))
    await run_until(lambda: knows("a", "b"), "the list")
    await kube.delete(SERVICE, "a")
    await kube.cluster.create(SERVICE, kube.namespace, a_child("c"))
    touched.clear()
    reflector._version = "1"
    await run_until(lambda: knows("b", "c"), "the difference")

    assert {ServiceKey(kube.namespace, "mistral")} == {each.key for each in touched}


async def test_service_whose_deletion_was_missed_is_forgotten(kube, start_operator):
    """The next resync finds out, and until then nothing is left behind for it."""
    running = await start_operator(resync_seconds=2)
    store = running.operator.store
    phantom = {
        "metadata": {
            "name": "phantom",
            "namespace": kube.namespace,
            "uid": "c7e5f4a0-0000-4000-8000-000000000000",
            "resourceVersion": "5",
            "generation": 1,
        },
        "spec": {"model": {"id": "a/b"}, "engine": {"image": "vllm/vllm-openai:v0.33.0"}},
    }
    store.put(LLM_SERVICE.kind, phantom)

    async def forgotten():
        return not store.services()

    await kube.eventually(forgotten, "the resync to drop it")

    store.put(LLM_SERVICE.kind, phantom)
    running.operator.queue.add(ServiceKey(kube.namespace, "phantom"))
    await kube.eventually(forgotten, "the status write to tell")

    async def collected():
        return not await kube.children("phantom")

    await kube.eventually(collected, "the garbage collector to take what was made", 60)


async def test_service_that_kopf_missed_is_found_by_the_resync(kube, start_operator):
    """Whatever keeps an event away, ten minutes later the service is seen."""
    running = await start_operator(resync_seconds=2)
    running.operator._on_service = lambda *_: None
    running.operator._shell._registry._watching._handlers.clear()
    await kube.create_service()
    await kube.until_ready(seconds=20)


async def test_quota_is_told_and_its_end_is_noticed(kube, start_operator):
    """The API server's words in the status, its neighbour unharmed, no request storm."""
    await start_operator()
    await kube.ready_service("neighbour")
    quota = {"metadata": {"name": "q"}, "spec": {"hard": {"count/deployments.apps": "1"}}}
    path = f"/api/v1/namespaces/{kube.namespace}/resourcequotas"
    kube.plane.api.create(path, {"apiVersion": "v1", "kind": "ResourceQuota", **quota})

    async def enforced():
        live = kube.plane.api.get(f"{path}/q")
        return live.get("status", {}).get("used", {}).get("count/deployments.apps") == "1"

    await kube.eventually(enforced, "the quota to be enforced")
    follower = kube.follow()
    await kube.create_service()

    async def told():
        ready = condition(await kube.service(), "Ready")
        return ready.get("status") == "False" and "exceeded quota" in ready["message"]

    await kube.eventually(told, "the quota to be told")
    await asyncio.sleep(5)
    refused = [request for request in follower.poll() if request.failed]

    assert 2 <= len(refused) <= 6
    assert count(follower.requests)[Category.Status] <= 2
    assert "Serving" == condition(await kube.service("neighbour"), "Ready")["reason"]

    kube.plane.api.call("DELETE", f"{path}/q")
    await kube.until_ready(seconds=60)


@pytest.fixture
def newer_crd(control_plane):
    """A CRD of a later version: spec and status take fields that this operator does not know."""
    crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/llmservices.llmservice.dev"
    keep = "x-kubernetes-preserve-unknown-fields"
    fields = "/spec/versions/0/schema/openAPIV3Schema/properties"
    headers = {"Content-Type": "application/json-patch+json"}
    places = [f"{fields}/{part}/{keep}" for part in ("spec", "status", "spec/properties/engine")]
    add = [{"op": "add", "path": place, "value": True} for place in places]
    control_plane.api.call("PATCH", crd, add, headers)
    yield
    control_plane.api.call("PATCH", crd, [{"op": "remove", "path": p} for p in places], headers)


async def test_unknown_new_fields_do_no_harm(kube, start_operator, newer_crd):
    """After a rollback of the operator: what it does not know it does not mind."""
    engine = {"image": "vllm/vllm-openai:v0.33.0", "warpDrive": {"factor": 9}}

    async def kept():  # the API server takes a moment to serve the newer schema
        with contextlib.suppress(Exception):
            await kube.delete(LLM_SERVICE, "probe")
        await kube.create_service("probe", engine=engine)
        return "warpDrive" in (await kube.service("probe"))["spec"]["engine"]

    await kube.eventually(kept, "the newer CRD")
    running = await start_operator()
    await kube.create_service(future={"a": [1, None, {}]}, engine=engine)
    live = await kube.until_ready()

    assert {"factor": 9} == live["spec"]["engine"]["warpDrive"]
    assert {"a": [1, None, {}]} == live["spec"]["future"]
    assert 0 == (
        running.operator.telemetry.registry.get_sample_value(
            "llmservice_errors_total", {"error": "Bug"}
        )
        or 0
    )


async def test_one_namespace_is_served_and_no_other_is_asked_for(
    kube, start_operator, control_plane
):
    """Namespaced mode needs no right outside its namespaces."""
    follower = kube.follow()
    await start_operator()
    await kube.ready_service()
    namespaces = {request.namespace for request in follower.poll() if request.resource}

    assert {kube.namespace} == namespaces
    assert [] == [request for request in follower.requests if request.code == 403]


async def test_all_namespaces_are_served_with_a_cluster_role(
    kube, start_operator, cluster_wide_kubeconfig
):
    """One list and one watch per kind, whatever the number of namespaces."""
    from llmservice.adapters.kube import Credentials

    follower = kube.follow(CLUSTER_WIDE_USER)
    await start_operator(
        user=CLUSTER_WIDE_USER,
        namespaces=(),
        credentials=Credentials(kubeconfig=cluster_wide_kubeconfig),
    )
    await kube.ready_service()
    requests = follower.poll()
    lists = [each for each in requests if each.verb == "list" and each.resource == "deployments"]

    # Namespaces of earlier tests may still be on their way out.
    mine = [each for each in requests if each.namespace in ("", kube.namespace)]
    assert [] == [each for each in mine if each.code == 403]
    assert [""] == [each.namespace for each in lists]


async def test_health_and_metrics_are_served(kube, start_operator):
    """What probes and Prometheus ask."""
    running = await start_operator()
    await kube.ready_service()
    _, metrics = await running.ask("/metrics")

    assert (200, "ok\n") == await running.ask("/healthz")
    assert (200, "leading\n") == await running.ask("/readyz")
    for name in (
        'llmservice_writes_total{kind="Deployment",verb="apply"} 1.0',
        "llmservice_leader 1.0",
        "llmservice_queue_depth 0.0",
        'llmservice_watch_last_event_seconds{kind="Pod"',
        'llmservice_reconcile_seconds_count{result="OK"}',
        "process_resident_memory_bytes",
    ):
        assert name in metrics


async def test_plan_that_cannot_fit_makes_no_pod(kube, start_operator):
    """Nothing but a status is written, and mending the spec goes on from there."""
    await start_operator()
    follower = kube.follow()
    place = {"resource": "nvidia.com/gpu", "product": "NVIDIA-A10G", "count": 1}
    await kube.create_service(model={"id": "meta-llama/Llama-3.3-70B-Instruct"}, accelerator=place)

    async def refused():
        return condition(await kube.service(), "Stalled").get("reason") == "InfeasiblePlan"

    await kube.eventually(refused, "the refusal")
    await kube.until_quiet(follower)

    assert {} == await kube.children()
    assert "InfeasiblePlan" == (await kube.service())["status"]["plan"]["outcome"]
    await kube.edit_service(engine={"plan": "Advisory"})
    await kube.eventually(kube.children, "the children")
