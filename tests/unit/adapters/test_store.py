"""The cache: older never replaces newer, deletions in a gap are found, snapshots are complete."""

from datetime import UTC, datetime, timedelta

import pytest

from llmservice.adapters import projection
from llmservice.adapters.store import Change, Store, Touched
from llmservice.core.observed import (
    ApplyError,
    ApplyErrorKind,
    ChildRef,
    CrashLog,
    KVCacheSize,
    MetricsRead,
    ServiceKey,
)
from llmservice.core.questions import (
    Answer,
    CallGate,
    GateAnswer,
    ReadEngine,
    ReadRoute,
    ReadRouter,
    RouteReading,
    WarmedUp,
    WarmUp,
)

KEY = ServiceKey("team", "mistral")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = {"app.kubernetes.io/managed-by": "llmservice", "llmservice.dev/service": "mistral"}
DEPLOYMENT = ChildRef("Deployment", "mistral-abc")


def a_service(version=1, *, uid="s", generation=1, action=None, **body):
    metadata = {
        "name": "mistral",
        "namespace": "team",
        "uid": uid,
        "resourceVersion": str(version),
        "generation": generation,
    }
    if action is not None:
        metadata["annotations"] = {"llmservice.dev/rollout-action": action}
    return {"metadata": metadata, "spec": {"a": 1}, **body}


def an_owned(name, version, *, uid="d", owner="s", hash_="h", fields=None, status=None):
    owners = [{"kind": "LLMService", "name": "mistral", "uid": owner, "controller": True}]
    entry = {"manager": "llmservice", "operation": "Apply", "fieldsV1": fields or {"f:spec": {}}}
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": LABELS,
            "annotations": {"llmservice.dev/applied-hash": hash_},
            "ownerReferences": owners if owner else [],
            "managedFields": [entry],
        },
        "status": status or {},
    }


def a_router(name, version):
    live = an_owned(name, version, uid="ru", owner=None)
    live["metadata"]["labels"] = {**LABELS, "app.kubernetes.io/component": "router"}
    return live


def a_store():
    store = Store()
    store.put("LLMService", a_service(1))
    store.put("Deployment", an_owned("mistral-abc", 10))
    return store


def touched(*changes):
    return [Touched(KEY, change) for change in changes]


def snapshot(store):
    return store.snapshot(KEY, NOW)


def test_snapshot_holds_service_children_and_pods():
    """All a decision may look at."""
    store = a_store()
    store.put("Pod", an_owned("p", 11, uid="pu", owner=None))
    observed = snapshot(store)

    assert ("s", 1, {"a": 1}, {}) == (
        observed.service.uid,
        observed.service.generation,
        observed.service.spec,
        observed.service.status,
    )
    assert {DEPLOYMENT} == set(observed.children)
    assert ["p"] == [pod.name for pod in observed.pods]
    assert NOW == observed.now


def test_no_service_no_snapshot():
    """Children of a deleted service are nobody's business."""
    store = Store()
    store.put("Deployment", an_owned("mistral-abc", 10))

    assert snapshot(store) is None
    assert [] == store.services()


def test_same_version_again_is_no_news():
    """The watch's echo of our own write enqueues nothing."""
    store = a_store()

    assert [] == list(store.put("Deployment", an_owned("mistral-abc", 10)))
    assert [] == list(store.put("LLMService", a_service(1)))


def test_older_event_changes_nothing():
    """The answer to our write is in the store before the watch tells of what was before it."""
    store = a_store()
    store.put_child(KEY, "Deployment", an_owned("mistral-abc", 20, hash_="new"))

    assert [] == list(store.put("Deployment", an_owned("mistral-abc", 15, hash_="old")))
    assert [] == list(store.remove("Deployment", an_owned("mistral-abc", 15)))
    assert "new" == snapshot(store).children[DEPLOYMENT].applied_hash


def test_version_nine_is_older_than_ten():
    """Versions are compared as numbers."""
    store = Store()
    store.put("LLMService", a_service(10))

    assert [] == list(store.put("LLMService", a_service(9, generation=2)))


def test_versions_that_are_no_numbers_tell_only_same_or_not():
    """Nothing is assumed of an API server that numbers otherwise."""
    store = Store()
    store.put("LLMService", a_service("b"))

    assert [] == list(store.put("LLMService", a_service("b", generation=2)))
    assert touched(Change.Shape) == list(store.put("LLMService", a_service("a", generation=3)))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (a_service(2, generation=2), [Change.Shape]),
        (a_service(2, uid="other"), [Change.Shape]),
        (a_service(2, action="promote"), [Change.Shape]),
        (a_service(2, status={"x": 1}), [Change.Facts]),
        (a_service(2), []),
    ],
    ids=["edit", "recreated", "action", "status", "label"],
)
def test_what_a_service_event_means(event, expected):
    """An edit is urgent; a label of no interest makes no work."""
    assert touched(*expected) == list(a_store().put("LLMService", event))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (an_owned("mistral-abc", 11), []),
        (an_owned("mistral-abc", 11, status={"readyReplicas": 1}), [Change.Facts]),
        (an_owned("mistral-abc", 11, fields={"f:x": {}}), [Change.Shape]),
        (an_owned("mistral-abc", 11, hash_=None), [Change.Shape]),
        (an_owned("mistral-abc", 11, owner=None), [Change.Shape]),
        (an_owned("mistral-def", 11), [Change.Facts]),
    ],
    ids=["irrelevant", "progress", "hand-edited", "unhashed", "disowned", "new"],
)
def test_what_a_child_event_means(event, expected):
    """A hand edit is urgent; progress is not; a heartbeat is nothing."""
    assert touched(*expected) == list(a_store().put("Deployment", event))


def test_deleted_child_is_urgent():
    """It has to come back at once."""
    store = a_store()

    assert touched(Change.Shape) == list(store.remove("Deployment", an_owned("mistral-abc", 12)))
    assert {} == snapshot(store).children


def test_list_finds_what_was_deleted_during_a_gap():
    """No event tells of it."""
    store = a_store()
    store.put("Deployment", an_owned("mistral-def", 11))
    seen = [projection.identity(an_owned("mistral-def", 11))]

    assert touched(Change.Shape) == list(store.retain("Deployment", None, seen, "12"))
    assert {ChildRef("Deployment", "mistral-def")} == set(snapshot(store).children)


def test_list_does_not_drop_what_is_newer_than_it():
    """A child that we created while the list was on its way."""
    store = a_store()
    store.put_child(KEY, "Deployment", an_owned("mistral-new", 30))

    store.retain("Deployment", None, [], "20")

    assert {ChildRef("Deployment", "mistral-new")} == set(snapshot(store).children)


def test_list_of_one_namespace_or_kind_says_nothing_of_others():
    """Each reflector speaks for its own."""
    store = a_store()

    assert [] == list(store.retain("Deployment", "elsewhere", [], "99"))
    assert [] == list(store.retain("Service", None, [], "99"))
    assert touched(Change.Shape) == list(store.retain("LLMService", "team", [], "99"))


def test_child_of_a_namesakes_past_life_counts_as_going():
    """A recreated service waits for the garbage collector instead of fighting it."""
    store = Store()
    store.put("LLMService", a_service(50, uid="new"))
    store.put("Deployment", an_owned("mistral-abc", 10, owner="old"))

    assert snapshot(store).children[DEPLOYMENT].deleting


def test_disowned_child_is_still_known_by_its_labels():
    """Its owner reference can be put back."""
    store = a_store()
    store.put("Deployment", an_owned("mistral-abc", 11, owner=None))

    assert snapshot(store).children[DEPLOYMENT].controller_uid is None


def test_child_that_moves_to_another_service_leaves_the_first():
    """Both services are told."""
    store = a_store()
    stolen = an_owned("mistral-abc", 11, owner=None)
    stolen["metadata"]["labels"] = {**LABELS, "llmservice.dev/service": "other"}
    other = ServiceKey("team", "other")

    assert {KEY, other} == {each.key for each in store.put("Deployment", stolen)}
    assert {} == snapshot(store).children


def test_crash_log_lives_as_long_as_its_pod():
    """Logs are big; a pod that is gone takes its log along."""
    store = a_store()
    store.put("Pod", an_owned("p", 11, uid="pu", owner=None))
    store.put_crash_log(KEY, "pu", 2, "CUDA out of memory")
    store.put_crash_log(KEY, "unknown", 1, "never kept")

    assert {"pu": CrashLog(2, "CUDA out of memory")} == snapshot(store).crash_logs

    store.remove("Pod", an_owned("p", 12, uid="pu"))

    assert {} == snapshot(store).crash_logs


def test_metrics_reads_are_counted_as_long_as_their_pod_lives():
    """Each try counts; a pod of the same name that replaces it starts anew."""
    store = a_store()
    store.put("Pod", an_owned("p", 11, uid="pu", owner=None))
    later = NOW + timedelta(seconds=5)
    store.put_metrics_read(KEY, "pu", NOW, None)
    store.put_metrics_read(KEY, "pu", later, KVCacheSize(32768, 8.0))
    store.put_metrics_read(KEY, "unknown", NOW, None)
    store.put_metrics_read(ServiceKey("team", "other"), "pu", NOW, None)

    reads = {"pu": MetricsRead(2, later, KVCacheSize(32768, 8.0))}
    assert reads == snapshot(store).metrics_reads

    store.put("Pod", an_owned("p", 12, uid="other", owner=None))

    assert {} == snapshot(store).metrics_reads


def test_routers_are_no_engines():
    """A pod's component says which it is; one without is an engine, as they always were."""
    store = a_store()
    store.put("Pod", a_router("r", 11))
    store.put("Pod", an_owned("p", 12, uid="pu", owner=None))
    observed = snapshot(store)

    assert ["p"] == [pod.name for pod in observed.pods]
    assert ["r"] == [pod.name for pod in observed.routers]

    store.remove("Pod", a_router("r", 13))
    assert () == snapshot(store).routers


def test_benches_are_no_engines():
    """They have figures, and serve nobody."""
    store = a_store()
    live = an_owned("b", 11, uid="bu", owner=None)
    live["metadata"]["labels"] = {**LABELS, "app.kubernetes.io/component": "bench"}
    store.put("Pod", live)

    assert ((), ()) == (snapshot(store).pods, snapshot(store).routers)
    assert ["b"] == [pod.name for pod in snapshot(store).bench_pods]


def test_end_of_a_job_is_news():
    """The gate that waits for it looks."""
    store = a_store()
    store.put("Job", an_owned("j", 11))
    ended = an_owned("j", 12, status={"conditions": [{"type": "Complete", "status": "True"}]})

    assert touched(Change.Facts) == list(store.put("Job", ended))
    assert snapshot(store).children[ChildRef("Job", "j")].job.succeeded


def test_last_word_of_a_gate_is_kept():
    """No pod stands for it."""
    store = a_store()
    question = CallGate("approval", "http://approval/", 10, "abc", "{}")
    for status in (503, 200):
        answer = Answer(NOW, GateAnswer("abc", status, ""))
        store.put_answer(KEY, question, answer)

    assert {(CallGate, "approval"): answer} == snapshot(store).answers


def test_pod_that_becomes_a_router_is_news():
    """Somebody edited its label."""
    store = a_store()
    store.put("Pod", an_owned("r", 11, uid="ru", owner=None))

    assert touched(Change.Facts) == list(store.put("Pod", a_router("r", 12)))
    assert ((), 1) == (snapshot(store).pods, len(snapshot(store).routers))


def test_action_is_what_its_annotation_says():
    """Until it is taken away, which is urgent, too."""
    store = a_store()
    assert snapshot(store).service.action is None
    store.put("LLMService", a_service(2, action="promote/7"))
    assert "promote/7" == snapshot(store).service.action
    assert [] == list(store.put("LLMService", a_service(3, action="promote/7")))
    assert touched(Change.Shape) == list(store.put("LLMService", a_service(4)))


def test_last_answer_of_each_kind_is_kept_as_long_as_its_pod_lives():
    """Newer ones take the place of older ones, also when they say nothing."""
    store = a_store()
    store.put("Pod", an_owned("p", 11, uid="pu", owner=None))
    store.put("Pod", a_router("r", 11))
    engine, router = ReadEngine("pu", "10.0.0.1"), ReadRouter("ru", "10.0.0.2")
    warm_up = WarmUp("pu", "10.0.0.1", "tiny", "Hello", 3)
    failed, warm = Answer(NOW, None), Answer(NOW, WarmedUp())
    later = Answer(NOW + timedelta(seconds=1), None)
    for question, answer in (
        (engine, failed),
        (router, failed),
        (warm_up, warm),
        (engine, later),
        (ReadEngine("unknown", "10.0.0.3"), failed),
    ):
        store.put_answer(KEY, question, answer)
    store.put_answer(ServiceKey("team", "other"), engine, failed)

    told = {(ReadEngine, "pu"): later, (ReadRouter, "ru"): failed, (WarmUp, "pu"): warm}
    assert told == snapshot(store).answers

    store.put("Pod", an_owned("p", 12, uid="other", owner=None))
    assert {(ReadRouter, "ru"): failed} == snapshot(store).answers

    store.forget(KEY)
    store.put("LLMService", a_service(20, uid="new"))
    assert {} == snapshot(store).answers


def test_route_that_was_read_is_known_until_its_service_goes():
    """Of any name; no pod stands for it, and no watch tells that our own is gone."""
    store = a_store()
    question, answer = ReadRoute("team", "chat"), Answer(NOW, RouteReading(None))
    store.put_answer(KEY, question, answer)
    store.put("HTTPRoute", an_owned("mistral", 11))
    assert {(ReadRoute, "chat"): answer} == snapshot(store).answers
    assert ChildRef("HTTPRoute", "mistral") in snapshot(store).children

    store.forget(KEY)
    store.put_answer(KEY, question, answer)
    store.put("LLMService", a_service(20, uid="new"))
    assert {} == snapshot(store).answers
    assert ChildRef("HTTPRoute", "mistral") not in snapshot(store).children


def test_baselines_are_forgotten_with_the_service():
    """A namesake starts without them."""
    store = a_store()
    assert {} == snapshot(store).baselines

    store.put_baselines(KEY, {"abc": {}})
    assert {"abc": {}} == snapshot(store).baselines

    store.forget(KEY)
    store.put_baselines(KEY, {"abc": {}})
    store.put_baselines(ServiceKey("team", "other"), {"abc": {}})
    store.put("LLMService", a_service(20, uid="new"))
    assert {} == snapshot(store).baselines


def test_apply_errors_tell_whether_they_are_news():
    """The same refusal again is no reason to write a status."""
    store = a_store()
    error = ApplyError(DEPLOYMENT, ApplyErrorKind.Forbidden, "quota")

    assert store.set_apply_errors(KEY, (error,))
    assert not store.set_apply_errors(KEY, (error,))
    assert (error,) == snapshot(store).apply_errors
    assert store.set_apply_errors(KEY, ())


def test_forgotten_service_leaves_nothing_behind():
    """Once its children are collected too."""
    store = a_store()
    store.forget(KEY)
    store.remove("Deployment", an_owned("mistral-abc", 12))

    assert {} == store._entries
    assert {} == store._owners


def test_strangers_are_not_kept():
    """Objects that carry neither our labels nor our owner reference."""
    store = Store()
    live = an_owned("x", 1, owner=None)
    live["metadata"]["labels"] = {}

    assert [] == list(store.put("Deployment", live))
    assert {} == store._entries
