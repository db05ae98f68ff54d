"""One pass: decided again until nothing new is asked, status once, events after it."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from llmservice.adapters.events import EventRecorder
from llmservice.adapters.ports import Fenced, Forbidden, NotFound, TooManyRequests, Unavailable
from llmservice.adapters.store import Store
from llmservice.adapters.telemetry import Telemetry
from llmservice.core.decision import Apply, Decision, Delete, Event, LogRequest, MetricsRequest
from llmservice.core.observed import ChildRef, Observed, ServiceKey
from llmservice.core.questions import ReadEngine
from llmservice.handlers.queue import Lane, WorkQueue
from llmservice.handlers.reconcile import GATHER_SECONDS, Reconciler
from tests.unit.adapters.fake_cluster import FakeCluster
from tests.unit.handlers.fake_time import in_fake_time, now

KEY = ServiceKey("team", "mistral")
SERVICE = {
    "kind": "LLMService",
    "metadata": {"name": "mistral", "namespace": "team", "generation": 1, "uid": "s"},
    "spec": {"children": 2},
}
EVENT = Event("Normal", "Created", "Reconcile", "it is there")
OWNER = {"kind": "LLMService", "name": "mistral", "uid": "s", "controller": True}
LABELS = {"app.kubernetes.io/managed-by": "llmservice", "llmservice.dev/service": "mistral"}


def a_child(number):
    return {
        "kind": "Service",
        "metadata": {
            "name": f"mistral-{number}",
            "labels": LABELS,
            "annotations": {"llmservice.dev/applied-hash": f"hash-{number}"},
            "ownerReferences": [OWNER],
        },
    }


def decide(observed: Observed) -> Decision:
    """As many Services as the spec says; a status that tells how many there are."""
    refs = [ChildRef("Service", f"mistral-{n}") for n in range(observed.service.spec["children"])]
    apply = [
        Apply(ref, a_child(number), force=ref in observed.children)
        for number, ref in enumerate(refs)
        if getattr(observed.children.get(ref), "applied_hash", None) != f"hash-{number}"
    ]
    surplus = [c for ref, c in observed.children.items() if ref not in refs]
    status = {
        "children": len(observed.children),
        "errors": [str(error.ref) for error in observed.apply_errors],
    }
    changed = status != observed.service.status
    return Decision(
        apply=tuple(apply),
        delete=tuple(Delete(child.ref, child.uid) for child in surplus),
        status=status if changed else None,
        events=(EVENT,) if changed else (),
    )


@dataclass
class Rig:
    """A Reconciler on a fake cluster."""

    decide: object = decide
    cluster: FakeCluster = field(default_factory=FakeCluster)
    store: Store = field(default_factory=Store)

    def __post_init__(self):
        self.queue = WorkQueue(jitter=lambda: 1.0)
        self.telemetry = Telemetry()
        self.asked = []
        self.reconciler = Reconciler(
            cluster=self.cluster,
            store=self.store,
            queue=self.queue,
            events=EventRecorder(self.cluster, "pod-1"),
            telemetry=self.telemetry,
            decide=self.decide,
            ask_pods=lambda key, questions: self.asked.extend((key, each) for each in questions),
        )
        self.edit(SERVICE)

    def edit(self, live):
        self.store.put("LLMService", self.cluster.put(live, silent=True))

    async def process(self):
        """One pass; what it asked of the cluster."""
        self.cluster.calls.clear()
        self.queue._due.pop(KEY, None)
        await self.reconciler.process(KEY)
        return dict(self.cluster.calls)

    async def settle(self):
        """Passes until nothing is left to look at in a moment; what they asked of the cluster."""
        calls = Counter(await self.process())
        while self.is_due_after() == pytest.approx(GATHER_SECONDS):
            await asyncio.sleep(GATHER_SECONDS)
            calls.update(await self.process())
        return dict(calls)

    @property
    def status(self):
        return self.cluster.objects["LLMService", "team", "mistral"].get("status")

    def uid(self):
        return self.cluster.objects["Service", "team", "mistral-0"]["metadata"]["uid"]

    def result(self, result):
        return self.telemetry.registry.get_sample_value(
            "llmservice_reconcile_seconds_count", {"result": result}
        )

    def is_due_after(self):
        """Seconds until the key comes back; None if it does not."""
        return self.queue._due[KEY] - now() if KEY in self.queue._due else None


@in_fake_time
async def test_new_service_costs_its_children_and_one_status():
    """No reads, and the status tells of the cluster after the writes."""
    rig = Rig()
    calls = await rig.settle()

    assert {
        ("apply", "Service"): 2,
        ("apply", "LLMService"): 1,
        ("create", "Event"): 1,
    } == calls
    assert {"children": 2, "errors": []} == rig.status
    assert 2 == rig.result("OK")
    assert rig.is_due_after() is None


@in_fake_time
async def test_unchanged_service_costs_nothing():
    """However often it is looked at."""
    rig = Rig()
    await rig.settle()

    for _ in range(10):
        assert {} == await rig.settle()


@in_fake_time
async def test_surplus_child_is_deleted():
    """With its uid."""
    rig = Rig()
    await rig.settle()
    edited = {**SERVICE, "spec": {"children": 1}}
    edited["metadata"] = {**SERVICE["metadata"], "generation": 2}
    rig.edit(edited)
    calls = await rig.settle()

    assert 1 == calls["delete", "Service"]
    assert {"children": 1, "errors": []} == rig.status


@in_fake_time
async def test_refused_child_is_told_and_tried_ever_less_often():
    """Its neighbours are written all the same; the status is written once, not at each try."""
    rig = Rig()
    rig.cluster.failures["apply", "Service"] = [Forbidden("quota")] * 3
    await rig.settle()

    assert {"children": 0, "errors": ["Service/mistral-0", "Service/mistral-1"]} == rig.status
    assert 0.5 == pytest.approx(rig.is_due_after())

    await asyncio.sleep(0.5)
    calls = await rig.settle()

    assert {"children": 1, "errors": ["Service/mistral-0"]} == rig.status
    assert 2 == calls["apply", "Service"]
    assert 1 == pytest.approx(rig.is_due_after())

    rig.cluster.failures["apply", "Service"] = [Forbidden("quota")]
    await asyncio.sleep(1)
    calls = await rig.settle()

    assert {("apply", "Service"): 1} == calls

    await asyncio.sleep(2)
    await rig.settle()

    assert {"children": 2, "errors": []} == rig.status


@in_fake_time
async def test_child_that_is_undone_at_once_is_not_written_in_a_loop():
    """A webhook that rewrites our field costs one write a pass, and passes back off."""
    rig = Rig()
    apply = rig.cluster.apply

    async def undone(resource, namespace, manifest, **options):
        live = await apply(resource, namespace, manifest, **options)
        if resource.kind == "Service":
            live["metadata"]["annotations"] = {}
        return live

    rig.cluster.apply = undone
    calls = await rig.settle()

    assert 2 == calls["apply", "Service"]
    pauses = []
    for _ in range(4):
        pauses.append(round(rig.is_due_after(), 3))
        await asyncio.sleep(pauses[-1])
        await rig.settle()
    assert [0.5, 1, 2, 4] == pauses


@in_fake_time
async def test_fight_over_a_field_is_slowed_down():
    """Each round looks like an honest hand edit; the budget sees through it."""
    rig = Rig()
    await rig.settle()
    started, writes = now(), 0
    while now() - started < 600:
        undone = a_child(0)
        undone["metadata"] |= {"annotations": {}, "namespace": "team", "uid": rig.uid()}
        rig.store.put("Service", rig.cluster.put(undone, silent=True))
        writes += sum((await rig.settle()).values())
        await asyncio.sleep(0.1)

    assert writes < 60 + 600 * 0.5 + 10


@pytest.mark.parametrize(
    ("raised", "pause"),
    [(Unavailable("away"), 0.5), (TooManyRequests("slow down", 9), 9), (Fenced("lost"), 0.5)],
)
def test_trouble_is_retried_without_a_status(raised, pause):
    """Half-done work is not reported as a result."""

    @in_fake_time
    async def trouble():
        rig = Rig()
        rig.cluster.failures["apply", "Service"] = [raised]
        await rig.settle()

        assert rig.status is None
        assert pause == pytest.approx(rig.is_due_after())
        assert 1 == rig.result(type(raised).__name__)

        await asyncio.sleep(pause)
        await rig.settle()
        assert {"children": 2, "errors": []} == rig.status

    trouble()


@in_fake_time
async def test_events_wait_for_the_status():
    """What could not be written did not happen."""
    rig = Rig()
    rig.cluster.failures["apply", "LLMService"] = [Unavailable("away")]
    calls = await rig.settle()

    assert ("create", "Event") not in calls

    await asyncio.sleep(1)
    assert 1 == (await rig.settle())["create", "Event"]


@in_fake_time
async def test_service_that_is_gone_is_forgotten():
    """Its deletion was missed; the status write tells."""
    rig = Rig()
    rig.cluster.failures["apply", "LLMService"] = [NotFound("gone")]
    await rig.settle()

    assert [] == rig.store.services()
    assert rig.is_due_after() is None
    assert {} == await rig.settle()


@in_fake_time
async def test_child_deleted_with_its_service_is_not_made_again():
    """The garbage collector's deletions may be told before the service's own."""
    rig = Rig()
    await rig.settle()
    child = rig.cluster.objects.pop(("Service", "team", "mistral-0"))
    service = rig.cluster.objects.pop(("LLMService", "team", "mistral"))
    rig.store.remove("Service", child)

    assert {("get", "LLMService"): 1} == await rig.settle()
    assert [] == rig.store.services()

    rig.edit(service)
    rig.store.remove("Service", rig.cluster.objects.pop(("Service", "team", "mistral-1")))
    calls = await rig.settle()

    assert (1, 2) == (calls["get", "LLMService"], calls["apply", "Service"])


@in_fake_time
async def test_edit_that_came_with_the_answer_is_looked_at():
    """The status answer holds the newest spec, before any watch tells of it."""
    rig = Rig()
    apply = rig.cluster.apply

    async def meanwhile(resource, namespace, manifest, **options):
        live = await apply(resource, namespace, manifest, **options)
        if resource.kind == "LLMService":
            live["metadata"]["generation"] = 2
        return live

    rig.cluster.apply = meanwhile
    await rig.settle()

    assert KEY == await asyncio.wait_for(rig.queue.get(Lane.Urgent), 1)


@in_fake_time
async def test_fault_in_deciding_hits_one_service_and_slows_down(caplog):
    """The traceback once, then a line; other services go on."""
    bad = {"on": True}

    def faulty(observed):
        if bad["on"]:
            raise KeyError("a bug")
        return decide(observed)

    rig = Rig(faulty)
    pauses = []
    for _ in range(4):
        await rig.settle()
        pauses.append(round(rig.is_due_after(), 3))
        await asyncio.sleep(pauses[-1])

    assert [0.5, 1, 2, 4] == pauses
    assert 1 == sum("Traceback" in record.getMessage() for record in caplog.records)
    assert 4 == rig.telemetry.registry.get_sample_value("llmservice_errors_total", {"error": "Bug"})

    bad["on"] = False
    await rig.settle()
    assert {"children": 2, "errors": []} == rig.status


@in_fake_time
async def test_log_is_read_before_the_status_is_written():
    """So that the first status after a crash names the cause."""

    def crashed(observed):
        known = observed.crash_logs.get("pu")
        status = {"cause": known.text if known else "unknown"}
        request = () if known else (LogRequest("p", "pu", "engine", 1, previous=True),)
        changed = status != observed.service.status
        return Decision(status=status if changed else None, read_logs=request)

    rig = Rig(crashed)
    metadata = {"name": "p", "namespace": "team", "uid": "pu", "labels": LABELS}
    rig.store.put("Pod", {"metadata": metadata})
    rig.cluster.log = "CUDA out of memory"
    calls = await rig.settle()

    assert {("log", "Pod"): 1, ("apply", "LLMService"): 1} == calls
    assert {"cause": "CUDA out of memory"} == rig.status


@in_fake_time
async def test_pods_are_asked_and_the_pass_goes_on():
    """Nothing waits for their answers: the status is written at once."""
    question, request = ReadEngine("pu", "10.0.0.7"), MetricsRequest("p", "pu", "10.0.0.7")
    decision = Decision(status={"told": False}, ask=(question,), read_metrics=request)
    rig = Rig(lambda _: decision)
    calls = await rig.process()

    assert [(KEY, question), (KEY, request)] == rig.asked
    assert {("apply", "LLMService"): 1} == calls


@in_fake_time
async def test_baselines_are_kept_with_the_status_that_counts_them():
    """And at once where no status is written; None leaves them."""
    decisions = iter(
        [
            Decision(status={"counted": 1}, baselines={"abc": {}}),
            Decision(),
            Decision(baselines={"def": {}}),
        ]
    )
    seen = []

    def note(observed):
        seen.append(observed.baselines)
        return next(decisions, Decision())

    rig = Rig(note)
    for _ in range(4):
        await rig.process()

    assert [{}, {"abc": {}}, {"abc": {}}, {"def": {}}] == seen


@in_fake_time
async def test_baselines_are_not_kept_before_the_report():
    """A pass that had something to do is repeated, and would count from too late a moment."""

    def note(observed):
        decision = decide(observed)
        return replace(decision, baselines={"abc": {}})

    rig = Rig(note)
    await rig.process()
    assert {} == rig.store.snapshot(KEY, None).baselines
    await rig.settle()
    assert {"abc": {}} == rig.store.snapshot(KEY, None).baselines


@in_fake_time
async def test_no_evidence_is_counted_twice_when_the_write_of_a_status_fails():
    """It may have been written all the same; then the old baselines would count it again."""
    rig = Rig(lambda _: Decision(status={"counted": 2}, baselines={"abc": {}}))
    rig.store.put_baselines(KEY, {"old": {}})
    rig.cluster.failures["apply", "LLMService"] = [Unavailable("lost")]
    await rig.process()
    assert {} == rig.store.snapshot(KEY, None).baselines


@in_fake_time
async def test_plan_ratio_is_published_until_the_service_goes():
    """It follows the status, the live one where nothing is written."""
    told = {"plan": {"kvCacheTokens": 1000}, "capacity": {"kvCacheTokens": 900}}
    rig = Rig(lambda observed: Decision(status=None if observed.service.status else told))

    def ratio():
        labels = {"namespace": "team", "name": "mistral"}
        name = "llmservice_plan_kv_cache_tokens_ratio"
        return rig.telemetry.registry.get_sample_value(name, labels)

    for _ in range(2):
        await rig.process()
        assert 0.9 == ratio()

    rig.edit({**SERVICE, "status": {"plan": {}, "capacity": told["capacity"]}})
    await rig.process()
    assert ratio() is None

    rig.edit({**SERVICE, "status": told})
    await rig.process()
    assert 0.9 == ratio()
    rig.store.forget(KEY)
    await rig.process()
    assert ratio() is None


@in_fake_time
async def test_decision_that_never_settles_is_slowed_down():
    """One that changes its mind every time gets its status, and longer and longer pauses."""
    count = iter(range(1000))

    def fickle(_):
        child = a_child(0)
        child["metadata"]["annotations"]["llmservice.dev/applied-hash"] = str(next(count))
        return Decision(apply=(Apply(ChildRef("Service", "mistral-0"), child, force=True),))

    rig = Rig(fickle)
    pauses = []
    for _ in range(4):
        calls = await rig.settle()
        assert calls["apply", "Service"] == 3
        pauses.append(round(rig.is_due_after(), 3))
        await asyncio.sleep(pauses[-1])

    assert [0.5, 1, 2, 4] == pauses


@in_fake_time
async def test_time_to_look_again_is_kept():
    """The decision says when."""
    rig = Rig(lambda _: Decision(requeue_after_seconds=30))
    await rig.settle()

    assert 30 == pytest.approx(rig.is_due_after())


@in_fake_time
async def test_workers_share_the_queue_until_it_is_closed():
    """And finish what they hold."""
    rig = Rig()
    workers = [asyncio.create_task(rig.reconciler.work()) for _ in range(3)]
    rig.queue.add(KEY)
    await asyncio.sleep(1)
    rig.queue.close()
    await asyncio.wait_for(asyncio.gather(*workers), 1)

    assert {"children": 2, "errors": []} == rig.status
