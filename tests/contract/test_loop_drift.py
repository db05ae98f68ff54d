"""What is changed by hand comes back, every field we own; what is not ours is not touched."""

import asyncio
import contextlib
import json

import pytest

from e2e.cluster.api import RefusedError
from llmservice.adapters.resources import (
    CHILDREN,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    JOB,
    LLM_SERVICE,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    SERVICE_ACCOUNT,
)
from llmservice.handlers.budget import WriteBudget
from tests.bench.audit import Category, count
from tests.contract.conftest import condition

KINDS = sorted(CHILDREN.keys() - {JOB.kind})
"""A Job is there only while a gate waits for it, and is not changed once it is made."""
JSON_PATCH = "application/json-patch+json"
PATIENCE_SECONDS = 2.0
"""Far more than the 0.1 s it takes when the machine is not busy with other things."""


def named(children, kind):
    """The children of a kind, by name."""
    return {n.split("/")[1]: live for n, live in children.items() if n.startswith(f"{kind}/")}


def our_fields(live):
    """The fieldsV1 tree of our entry."""
    return next(
        entry["fieldsV1"]
        for entry in live["metadata"]["managedFields"]
        if entry["manager"] == "llmservice" and not entry.get("subresource")
    )


def leaves(tree, path=()):
    """Each field we own, as the fieldsV1 steps that lead to it."""
    for step, below in tree.items():
        if step == ".":
            continue
        if below and below != {".": {}}:
            yield from leaves(below, (*path, step))
        else:
            yield (*path, step)


def locate(live, path):
    """Keys and indexes that lead to a field in a live object; None when it is not there."""
    located = []
    for step in path:
        if step.startswith("f:"):
            key = step[2:]
        else:
            wanted = json.loads(step[2:])
            items = live if isinstance(live, list) else []
            key = next((i for i, item in enumerate(items) if wanted.items() <= item.items()), None)
        try:
            live = live[key]
        except (KeyError, TypeError):
            return None
        located.append(key)
    return located


def value_at(live, path):
    """The value of a field; None when it is not there."""
    located = locate(live, path)
    if located is None:
        return None
    for key in located:
        live = live[key]
    return live


def pointer(located):
    return "/" + "/".join(str(key).replace("~", "~0").replace("/", "~1") for key in located)


def another(value):
    """Some other value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value + "x"
        case [first, *_] if isinstance(first, str):
            return [*value, "x"]
        case _:
            return {}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_field_we_own_is_put_back(kube, start_operator, kind):
    """Removed or changed by hand, one after the other, whatever the kind."""
    running = await start_operator()
    # A hundred edits in a row look like a fight, which is slowed down; see test_budget.
    running.operator._reconciler._budget = WriteBudget(lambda: 0.0, burst=10_000)
    resource = CHILDREN[kind]
    name, before = min((await kube.service_with(kind)).items())
    ours = our_fields(before)
    edited = set()

    async def restored(path):
        live = await kube.get(resource, name)
        return live and value_at(live, path) == value_at(before, path) and our_fields(live) == ours

    for path in leaves(ours):
        for operation in ("remove", "replace"):
            live = await kube.get(resource, name)
            where = pointer(locate(live, path))
            edit = {"op": operation, "path": where, "value": another(value_at(before, path))}
            try:
                await kube.patch(resource, name, [edit], content_type=JSON_PATCH)
            except RefusedError:
                continue  # immutable, or demanded by the API server: nobody can change it
            edited.add(path)
            what = f"{where} of {kind} to come back after {operation}"
            await kube.eventually(lambda path=path: restored(path), what, PATIENCE_SECONDS)

    assert edited
    assert condition(await kube.service(), "Stalled") == {}


@pytest.mark.parametrize("kind", KINDS)
async def test_deleted_child_comes_back(kube, start_operator, kind):
    """At once, and it is the same as before."""
    await start_operator()
    resource = CHILDREN[kind]
    name, before = min((await kube.service_with(kind)).items())
    await kube.delete(resource, name)

    async def back():
        live = await kube.get(resource, name)
        return live and live["metadata"]["uid"] != before["metadata"]["uid"] and live

    live = await kube.eventually(back, f"{kind} to come back", PATIENCE_SECONDS)

    assert our_fields(before) == our_fields(live)


async def test_labels_taken_away_do_not_lose_the_child(kube, start_operator):
    """It leaves the watch, is found by its name, known by its owner, and labelled again."""
    await start_operator()
    await kube.ready_service()
    name = "mistral-engine"
    before = await kube.get(SERVICE_ACCOUNT, name)
    await kube.patch(SERVICE_ACCOUNT, name, {"metadata": {"labels": None}})

    async def labelled():
        live = await kube.get(SERVICE_ACCOUNT, name)
        return live["metadata"].get("labels") == before["metadata"]["labels"]

    await kube.eventually(labelled, "the labels to come back", PATIENCE_SECONDS)
    assert condition(await kube.service(), "Stalled") == {}


async def test_fields_of_others_are_left_alone(kube, start_operator):
    """An annotation, a label, a field that we do not set."""
    await start_operator()
    await kube.ready_service()
    name = next(iter(named(await kube.children(), "Deployment")))
    await kube.patch(
        DEPLOYMENT,
        name,
        {
            "metadata": {"annotations": {"team": "a"}, "labels": {"team": "a"}},
            "spec": {"minReadySeconds": 1},
        },
    )
    await kube.edit_service(replicas=2)
    await kube.until_ready()
    live = await kube.get(DEPLOYMENT, name)

    assert ("a", "a", 1) == (
        live["metadata"]["annotations"]["team"],
        live["metadata"]["labels"]["team"],
        live["spec"]["minReadySeconds"],
    )


def a_stranger(resource, name):
    spec = {
        "ServiceAccount": {},
        "Service": {"spec": {"ports": [{"port": 9}], "clusterIP": "None"}},
        "PodDisruptionBudget": {"spec": {"selector": {"matchLabels": {"a": "b"}}}},
    }[resource.kind]
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name},
        **spec,
    }


@pytest.mark.parametrize(
    ("resource", "name"),
    [(SERVICE_ACCOUNT, "mistral-engine"), (SERVICE, "mistral"), (POD_DISRUPTION_BUDGET, "mistral")],
    ids=lambda value: getattr(value, "kind", value),
)
async def test_foreign_object_with_a_childs_name_is_not_taken_over(
    kube, start_operator, resource, name
):
    """Not a field of it changes, the status says so, and removing it is all it takes."""
    stranger = await kube.cluster.create(resource, kube.namespace, a_stranger(resource, name))
    await start_operator()
    follower = kube.follow()
    await kube.create_service()

    async def told():
        ready = condition(await kube.service(), "Ready")
        return ready.get("reason") == "ChildConflict" and ready["message"]

    message = await kube.eventually(told, "the conflict to be told")
    assert f"{resource.kind}/{name}" in message
    await asyncio.sleep(2)

    assert count(follower.poll())[Category.Status] <= 3  # told once, not at each try
    live = await kube.get(resource, name)
    for part in ("uid", "labels", "annotations", "ownerReferences"):
        assert stranger["metadata"].get(part) == live["metadata"].get(part)
    assert stranger.get("spec") == live.get("spec")

    await kube.delete(resource, name)
    await kube.until_ready()


async def test_child_that_another_controller_owns_is_not_touched(kube, start_operator):
    """Whoever made it ours in name keeps it."""
    await start_operator()
    await kube.ready_service()
    owner = await kube.cluster.create(
        SERVICE_ACCOUNT, kube.namespace, a_stranger(SERVICE_ACCOUNT, "somebody")
    )
    reference = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "name": "somebody",
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    edit = [
        {"op": "replace", "path": "/metadata/ownerReferences", "value": [reference]},
        {"op": "replace", "path": "/spec/minAvailable", "value": 0},
        {"op": "remove", "path": "/spec/maxUnavailable"},
    ]
    for accepted in (edit, edit[:1]):
        with contextlib.suppress(RefusedError):
            await kube.patch(
                POD_DISRUPTION_BUDGET,
                "mistral",
                accepted,
                content_type=JSON_PATCH,
            )
    taken = await kube.get(POD_DISRUPTION_BUDGET, "mistral")
    assert [reference] == taken["metadata"]["ownerReferences"]

    async def told():
        return condition(await kube.service(), "Ready").get("reason") == "ChildConflict"

    await kube.eventually(told, "the conflict to be told")
    live = await kube.get(POD_DISRUPTION_BUDGET, "mistral")

    assert taken["metadata"]["ownerReferences"] == live["metadata"]["ownerReferences"]
    assert taken["spec"] == live["spec"]


async def test_two_services_that_claim_one_name_do_not_fight(kube, start_operator):
    """The one that has it keeps it; the other says so."""
    await start_operator()
    first = await kube.ready_service("a")
    follower = kube.follow()
    # The engine's ServiceAccount of `a` has the name of the entry Service of no one else; so make
    # the clash where names are free: a Service named like the other's child.
    await kube.create_service("a-engine")
    await kube.until_ready("a-engine")
    await asyncio.sleep(1)

    assert first["status"] == (await kube.service("a"))["status"]
    assert [] == [each for each in follower.poll() if each.failed and each.code != 404]


async def test_stored_pod_template_cannot_be_edited(kube, start_operator):
    """It is what pods are made of; the API server itself refuses."""
    await start_operator()
    await kube.ready_service()
    name = next(iter(named(await kube.children(), "ControllerRevision")))

    with pytest.raises(RefusedError, match="is invalid: data"):
        await kube.patch(CONTROLLER_REVISION, name, {"data": {"engineVersion": "9"}})


async def test_status_written_by_hand_is_put_right(kube, start_operator):
    """The status says what is, whoever wrote into it."""
    await start_operator()
    before = await kube.ready_service()
    await kube.patch(LLM_SERVICE, "mistral", {"status": {"phase": "Idle"}}, subresource="status")

    async def right():
        return (await kube.service())["status"]["phase"] == before["status"]["phase"]

    await kube.eventually(right, "the status to be put right", PATIENCE_SECONDS)
