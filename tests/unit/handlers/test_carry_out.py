"""Single steps: what is ours is written, what is not is left alone and named."""

import pytest

from llmservice.adapters.ports import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from llmservice.adapters.store import Store
from llmservice.core.decision import Apply, Delete, LogRequest
from llmservice.core.observed import ApplyErrorKind, ChildRef, CrashLog, ServiceKey, ServiceObject
from llmservice.core.questions import RouteReading
from llmservice.core.router.gateway import WeightPatch
from llmservice.handlers.carry_out import CarryOut
from tests.unit.adapters.fake_cluster import FakeCluster
from tests.unit.handlers.fake_time import in_fake_time

KEY = ServiceKey("team", "mistral")
REF = ChildRef("Deployment", "mistral-abc")
SERVICE = ServiceObject(KEY, "s", 1, {}, {})
LABELS = {"app.kubernetes.io/managed-by": "llmservice", "llmservice.dev/service": "mistral"}
OURS = {"kind": "LLMService", "name": "mistral", "uid": "s", "controller": True}


def a_manifest(owners=(OURS,)):
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "mistral-abc",
            "labels": LABELS,
            "annotations": {"llmservice.dev/applied-hash": "h"},
            "ownerReferences": list(owners),
        },
        "spec": {"replicas": 1},
    }


def a_live(owners=(OURS,), **metadata):
    manifest = a_manifest(owners)
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": "team", **metadata}}


class Desk:
    """A CarryOut with its cluster and its store."""

    def __init__(self):
        self.cluster = FakeCluster()
        self.store = Store()
        self.store.put("LLMService", {"metadata": {"name": "mistral", "namespace": "team"}})
        self.carry_out = CarryOut(self.cluster, self.store)

    async def apply(self, *, force):
        return await self.carry_out.apply(SERVICE, Apply(REF, a_manifest(), force))

    def child(self):
        return self.store.child(KEY, REF)

    def see(self, live):
        self.store.put("Deployment", self.cluster.put(live, silent=True))


@in_fake_time
async def test_new_child_is_created_and_known_at_once():
    """The answer is in the store before any watch tells of it."""
    desk = Desk()

    assert await desk.apply(force=False) is None
    assert "h" == desk.child().applied_hash
    assert "1" == desk.cluster.applied[0]["metadata"]["resourceVersion"]


@in_fake_time
async def test_known_child_is_written_only_if_it_is_the_same_object():
    """Its uid goes along, so a namesake is never overwritten."""
    desk = Desk()
    desk.see(a_live())

    assert await desk.apply(force=True) is None
    assert desk.child().uid == desk.cluster.applied[0]["metadata"]["uid"]


@in_fake_time
async def test_foreign_object_with_our_childs_name_is_not_taken_over():
    """It answers with a conflict, which the status tells."""
    desk = Desk()
    stranger = {"kind": "Deployment", "metadata": {"name": "mistral-abc", "namespace": "team"}}
    desk.cluster.put(stranger)
    before = desk.cluster.objects["Deployment", "team", "mistral-abc"]
    error = await desk.apply(force=False)

    assert ApplyErrorKind.Conflict == error.kind
    assert "was not made by this operator" in error.message
    assert before is desk.cluster.objects["Deployment", "team", "mistral-abc"]


@in_fake_time
async def test_child_that_another_controller_owns_is_not_touched():
    """Not even asked for."""
    desk = Desk()
    owner = {"kind": "HelmRelease", "name": "x", "uid": "h", "controller": True}
    desk.see(a_live(owners=[owner]))
    error = await desk.apply(force=True)

    assert "is controlled by a HelmRelease" in error.message
    assert [] == desk.cluster.applied


@in_fake_time
async def test_child_of_another_service_is_not_touched():
    """Two services claim one name; the first has it."""
    desk = Desk()
    other = {"kind": "LLMService", "name": "other", "uid": "o", "controller": True}
    desk.cluster.put(a_live(owners=[other]))
    error = await desk.apply(force=False)

    assert "belongs to another LLMService" in error.message


@in_fake_time
async def test_own_child_that_the_cache_missed_is_met_and_kept():
    """A leader before us made it; no conflict is reported."""
    desk = Desk()
    desk.cluster.put(a_live())

    assert await desk.apply(force=False) is None
    assert desk.child() is not None


@in_fake_time
async def test_own_child_that_lost_its_labels_and_owner_is_recognised():
    """By the hash we left on it."""
    desk = Desk()
    desk.cluster.put(a_live(owners=[], labels={}))

    assert await desk.apply(force=False) is None
    assert desk.child() is not None


@in_fake_time
async def test_child_that_is_going_is_waited_for():
    """It comes back when it is gone."""
    desk = Desk()
    desk.cluster.put(a_live(deletionTimestamp="2026-01-01T00:00:00Z"))

    with pytest.raises(Unavailable):
        await desk.apply(force=False)


@in_fake_time
async def test_child_that_went_before_the_watch_told_is_tried_again():
    """Our knowledge was old: forget it."""
    desk = Desk()
    desk.see(a_live())
    desk.cluster.objects.clear()

    with pytest.raises(Unavailable):
        await desk.apply(force=True)
    assert desk.child() is None


@in_fake_time
async def test_known_child_replaced_by_a_stranger_is_left_alone():
    """The uid tells."""
    desk = Desk()
    desk.see(a_live())
    desk.cluster.objects.clear()
    desk.cluster.put(
        {"kind": "Deployment", "metadata": {"name": "mistral-abc", "namespace": "team"}}
    )
    error = await desk.apply(force=True)

    assert ApplyErrorKind.Conflict == error.kind


@in_fake_time
async def test_version_conflict_on_the_same_object_is_tried_again():
    """The API server was busy with it."""
    desk = Desk()
    desk.see(a_live())
    desk.cluster.failures["apply", "Deployment"] = [Conflict("busy")]

    with pytest.raises(Unavailable):
        await desk.apply(force=True)


@in_fake_time
async def test_list_that_others_made_invalid_is_made_ours_again():
    """An apply alone cannot remove their items."""
    desk = Desk()
    desk.see(a_live())
    desk.cluster.failures["apply", "Deployment"] = [Invalid("ports[1].name: Duplicate value")]

    assert await desk.apply(force=True) is None
    assert 1 == desk.cluster.calls["merge", "Deployment"]


@in_fake_time
async def test_manifest_that_is_invalid_by_itself_stays_refused():
    """The merge is refused just the same."""
    desk = Desk()
    desk.see(a_live())
    desk.cluster.failures["apply", "Deployment"] = [Invalid("bad")]
    desk.cluster.failures["merge", "Deployment"] = [Invalid("bad")]

    assert ApplyErrorKind.Invalid == (await desk.apply(force=True)).kind


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (Invalid("spec.replicas: must not be negative"), ApplyErrorKind.Invalid),
        (Forbidden("exceeded quota"), ApplyErrorKind.Forbidden),
    ],
)
def test_refusal_is_reported_in_the_servers_words(raised, expected):
    """A person has to do something about it."""

    @in_fake_time
    async def refused():
        desk = Desk()
        desk.cluster.failures["apply", "Deployment"] = [raised]
        error = await desk.apply(force=False)

        assert (REF, expected, str(raised)) == (error.ref, error.kind, error.message)

    refused()


@pytest.mark.parametrize(
    "raised", [Unavailable("x"), TooManyRequests("x", 3), NotFound("x")], ids=repr
)
def test_trouble_that_may_pass_is_raised(raised):
    """The queue decides when to try again."""

    @in_fake_time
    async def trouble():
        desk = Desk()
        desk.cluster.failures["apply", "Deployment"] = [raised]
        with pytest.raises(type(raised)):
            await desk.apply(force=False)

    trouble()


@in_fake_time
async def test_namespace_that_is_being_deleted_is_no_refusal_to_report():
    """The service goes with it; a status would be noise."""
    desk = Desk()
    said = "unable to create new content in namespace t because it is being terminated"
    desk.cluster.failures["apply", "Deployment"] = [Forbidden(said)]

    with pytest.raises(Unavailable, match="terminated"):
        await desk.apply(force=False)


@in_fake_time
async def test_delete_means_the_object_we_saw():
    """A namesake that came since stays."""
    desk = Desk()
    desk.see(a_live())
    uid = desk.child().uid
    await desk.carry_out.delete(KEY, Delete(REF, "another"))

    assert desk.cluster.objects

    await desk.carry_out.delete(KEY, Delete(REF, uid))

    assert {} == desk.cluster.objects
    assert desk.child() is None


def a_desk_with_a_crash():
    desk = Desk()
    desk.store.put(
        "Pod", {"metadata": {"name": "p", "namespace": "team", "uid": "pu", "labels": LABELS}}
    )
    return desk, LogRequest("p", "pu", "engine", 3, previous=True)


@in_fake_time
async def test_log_of_a_crash_is_kept():
    """Once per restart."""
    desk, request = a_desk_with_a_crash()
    desk.cluster.log = "CUDA out of memory"
    await desk.carry_out.read_logs(KEY, [request])

    logs = desk.store.snapshot(KEY, None).crash_logs
    assert {"pu": CrashLog(3, "CUDA out of memory")} == logs


@in_fake_time
async def test_log_that_cannot_be_read_counts_as_empty():
    """A kubelet that does not answer is not asked again for the same crash."""
    desk, request = a_desk_with_a_crash()
    desk.cluster.failures["log", "Pod"] = [Unavailable("kubelet")]
    await desk.carry_out.read_logs(KEY, [request])

    assert {"pu": CrashLog(3, "")} == desk.store.snapshot(KEY, None).crash_logs


PATCH = WeightPatch("chat", 4, ({"op": "test", "path": "/spec/rules/0", "value": {}},))


class RouteDesk(Desk):
    """With a route of somebody else's."""

    def __init__(self, generation=4):
        super().__init__()
        metadata = {"name": "chat", "namespace": "team", "generation": generation}
        self.cluster.put({"kind": "HTTPRoute", "metadata": metadata})

    async def patch(self):
        await self.carry_out.patch_route(KEY, PATCH)
        [answer] = self.store.snapshot(KEY, None).answers.values()
        return answer.content


@in_fake_time
async def test_patched_route_is_known_at_once():
    """Under a name of its own in the list of who set what."""
    desk = RouteDesk()
    reading = await desk.patch()

    assert [("llmservice-traffic", list(PATCH.operations))] == desk.cluster.patched
    assert ("chat", "") == (reading.route["metadata"]["name"], reading.problem)


@pytest.mark.parametrize("error", [Invalid("422"), Conflict("409")])
@in_fake_time
async def test_route_that_changed_meanwhile_is_read_again(error):
    """The next look plans anew, from what is there now."""
    desk = RouteDesk(generation=5)
    desk.cluster.failures["patch", "HTTPRoute"] = [error]
    reading = await desk.patch()

    assert (5, "") == (reading.route["metadata"]["generation"], reading.problem)


@pytest.mark.parametrize("error", [Invalid("denied"), Forbidden("denied")])
@in_fake_time
async def test_patch_that_is_refused_says_why(error):
    """The route is as it was, so planning anew would give the same."""
    desk = RouteDesk()
    desk.cluster.failures["patch", "HTTPRoute"] = [error]

    assert "HTTPRoute/chat: denied" == (await desk.patch()).problem


@in_fake_time
async def test_route_that_went_away_is_known_to_be_gone():
    """No other step waits for it."""
    desk = RouteDesk()
    desk.cluster.objects.clear()

    assert RouteReading(None) == await desk.patch()
