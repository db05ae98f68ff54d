"""From a service to its children and its status, and then to silence."""

import asyncio

from llmservice.adapters.resources import DEPLOYMENT, LLM_SERVICE
from tests.bench.audit import BACKGROUND, Category, count
from tests.contract.conftest import PLAIN_KINDS

COLLECT_SECONDS = 60
"""The garbage collector learns of a new CRD within 30 s."""


def work(follower):
    """What the operator did, without what it needs to be there at all."""
    counted = count(follower.poll())
    return {category: n for category, n in counted.items() if category not in BACKGROUND}


async def test_service_gets_its_children_and_serves(kube, start_operator):
    """Each kind of child, controlled by the service; status and events tell."""
    await start_operator()
    live = await kube.ready_service(replicas=2)
    children = await kube.children()

    assert PLAIN_KINDS == {name.split("/")[0] for name in children}
    for child in children.values():
        (owner,) = child["metadata"]["ownerReferences"]
        assert (live["metadata"]["uid"], True, True) == (
            owner["uid"],
            owner["controller"],
            owner["blockOwnerDeletion"],
        )
    assert 2 == live["status"]["readyReplicas"]


async def test_new_service_costs_its_children_and_its_status_only(kube, start_operator):
    """No reads, nothing written twice, nothing refused."""
    await start_operator()
    follower = kube.follow()
    await kube.ready_service()
    children = await kube.children()
    await kube.until_quiet(follower)
    done = work(follower)

    assert len(children) == done[Category.Child]
    assert done[Category.Status] <= 2  # that it loads, and that it serves
    assert {Category.Child, Category.Status} == set(done) - {Category.Event}
    assert [] == [request for request in follower.requests if request.failed]


async def test_idle_operator_asks_and_writes_nothing(kube, start_operator):
    """Ten services at rest cost no request but the lease's."""
    follower = kube.follow()
    await start_operator()
    for number in range(10):
        await kube.create_service(f"mistral-{number}")
    for number in range(10):
        await kube.until_ready(f"mistral-{number}")
    await kube.until_quiet(follower)
    follower = kube.follow()
    await asyncio.sleep(10)  # silence is only seen over time
    requests = follower.poll()

    assert {Category.Lease} == set(count(requests))
    assert len(requests) <= 6


async def test_restart_with_nothing_changed_writes_nothing(kube, start_operator):
    """Whatever the operator knows, it finds in the cluster."""
    follower = kube.follow()
    first = await start_operator()
    await kube.ready_service()
    await kube.until_quiet(follower)
    assert 0 == await first.stop()
    follower = kube.follow()
    await start_operator()
    await kube.until_quiet(follower)

    assert {Category.List} == set(work(follower))


async def test_edit_reaches_the_children(kube, start_operator):
    """A knob makes a new revision; replicas only scale the one there is."""
    await start_operator()
    before = await kube.ready_service()
    await kube.edit_service(replicas=2)
    scaled = await kube.until_ready()

    assert before["status"]["stableRevision"] == scaled["status"]["stableRevision"]
    assert 2 == scaled["status"]["readyReplicas"]

    await kube.edit_service(engine={"maxNumSeqs": 128})
    after = await kube.until_ready()

    assert before["status"]["stableRevision"] != after["status"]["stableRevision"]

    async def only_the_new_one():
        deployments = await kube.list(DEPLOYMENT)
        return [d["metadata"]["name"] for d in deployments] == [
            f"mistral-{after['status']['stableRevision']}"
        ]

    await kube.eventually(only_the_new_one, "the old revision's Deployment to go")


async def test_deleted_service_takes_its_children_along(kube, start_operator):
    """The garbage collector does it; the operator neither helps nor fights it.

    A child's end may be seen before its owner's. Then the operator looks at what it met, no more.
    """
    running = await start_operator()
    await kube.ready_service()
    follower = kube.follow()
    await kube.delete(LLM_SERVICE, "mistral")

    async def nothing_left():
        return not await kube.children()

    await kube.eventually(nothing_left, "the children to be collected", COLLECT_SECONDS)
    await asyncio.sleep(0.5)

    assert set(work(follower)) <= {Category.Read}
    assert [] == running.operator.store.services()


async def test_recreated_service_starts_anew(kube, start_operator):
    """Its namesake's children are waited for, not fought over."""
    await start_operator()
    first = await kube.ready_service()
    await kube.delete(LLM_SERVICE, "mistral")
    await kube.create_service()
    second = await kube.until_ready(seconds=COLLECT_SECONDS)

    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    for child in (await kube.children()).values():
        assert second["metadata"]["uid"] == child["metadata"]["ownerReferences"][0]["uid"]


async def test_service_is_left_without_marks_of_the_framework(kube, start_operator):
    """No finalizer, no annotation, no field of spec is ours."""
    await start_operator()
    live = await kube.ready_service()
    ours = [
        entry
        for entry in live["metadata"]["managedFields"]
        if entry["manager"].startswith("llmservice") or "kopf" in entry["manager"]
    ]

    assert not live["metadata"].get("finalizers")
    assert not live["metadata"].get("annotations")
    assert [("llmservice-status", "status")] == [
        (entry["manager"], entry.get("subresource")) for entry in ours
    ]
    assert {"f:status"} == set(ours[0]["fieldsV1"])
