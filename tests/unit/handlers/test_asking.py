"""Pods are asked beside the reconciles: nothing twice, a service woken once, none by a stand-by."""

import asyncio
from collections import Counter

from llmservice.adapters.store import Store
from llmservice.core.decision import MetricsRequest
from llmservice.core.observed import ChildRef, KVCacheSize, ServiceKey
from llmservice.core.questions import (
    CallGate,
    GateAnswer,
    ReadEngine,
    ReadRoute,
    ReadRouter,
    ReadScaledObject,
    RouteReading,
    ScaledObjectReading,
    WarmedUp,
    WarmUp,
)
from llmservice.core.router.report import RouterReport
from llmservice.handlers.asking import Asking
from llmservice.handlers.queue import Lane, WorkQueue
from tests.unit.handlers.fake_time import in_fake_time, now

KEY = ServiceKey("team", "mistral")
LABELS = {"app.kubernetes.io/managed-by": "llmservice", "llmservice.dev/service": "mistral"}
REPORT = RouterReport("v1")
SIZE = KVCacheSize(32768, 8.0)
CAPACITY = MetricsRequest("p", "a", "10.0.0.1")


def reads(*uids):
    return [ReadEngine(uid, f"10.0.0.{number}") for number, uid in enumerate(uids, start=1)]


def a_warm_up(uid="a"):
    return WarmUp(uid, "10.0.0.1", "tiny", "Hello", 3)


class Queue(WorkQueue):
    """Notes when a key was added, and how urgently."""

    def __init__(self):
        super().__init__()
        self.added = []

    def add(self, key, lane=Lane.Normal):
        self.added.append((round(now() - 1000.0, 3), key, lane))
        super().add(key, lane)


class Desk:
    """Questions whose answers come after as many seconds as ``takes`` says."""

    def __init__(self, **takes):
        self.takes = takes
        self.leading = True
        self.asked = Counter()
        self.at_once = self.most_at_once = 0
        self.store, self.queue = Store(), Queue()
        self.asking = Asking(self.answer, self.store, self.queue, lambda: self.leading)
        self.store.put("LLMService", {"metadata": {"name": "mistral", "namespace": "team"}})
        for uid in ("a", "b", "c"):
            metadata = {"name": f"p-{uid}", "namespace": "team", "uid": uid, "labels": LABELS}
            self.store.put("Pod", {"metadata": metadata})

    async def answer(self, question):
        self.asked[question] += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        kind = type(question).__name__
        pod_uid = getattr(question, "pod_uid", None)
        await asyncio.sleep(self.takes.get(pod_uid, self.takes.get(kind, 0.1)))
        self.at_once -= 1
        if pod_uid == "c":
            raise RuntimeError("a fault of ours")
        if isinstance(question, CallGate):
            return GateAnswer(question.trial, 200, "")
        return {"ReadRouter": REPORT, "WarmUp": WarmedUp("slow"), "MetricsRequest": SIZE}.get(kind)

    def ask(self, *questions, key=KEY):
        self.asking.ask(key, questions)

    def answers(self):
        answers = self.store.snapshot(KEY, None).answers
        return {(kind.__name__, uid): answer.content for (kind, uid), answer in answers.items()}


@in_fake_time
async def test_service_is_looked_at_once_when_all_have_answered():
    """The caller does not wait; answers are in the store by then, whatever came of them."""
    desk = Desk(a=0.2, b=0.7)
    desk.ask(*reads("a"), ReadRouter("b", "10.0.0.2"), ReadRouter("c", "10.0.0.3"))
    assert {} == desk.answers()

    await asyncio.sleep(30)
    assert [(0.7, KEY, Lane.Urgent)] == desk.queue.added
    expected = {("ReadEngine", "a"): None, ("ReadRouter", "b"): REPORT, ("ReadRouter", "c"): None}
    assert expected == desk.answers()


@in_fake_time
async def test_who_dangles_is_not_waited_for():
    """A second after the first answer the service is looked at, and again for what came later."""
    desk = Desk(a=0.2, b=0.3, c=2.0)
    desk.ask(*reads("a", "b", "c"))
    await asyncio.sleep(30)

    assert [(1.2, KEY, Lane.Urgent), (2.0, KEY, Lane.Urgent)] == desk.queue.added


@in_fake_time
async def test_open_question_is_not_put_twice():
    """Every pass asks until the answer is there."""
    desk = Desk()
    for _ in range(3):
        desk.ask(*reads("a"))
        await asyncio.sleep(0.01)
    await asyncio.sleep(1)
    assert {1} == set(desk.asked.values())
    assert 1 == len(desk.queue.added)

    desk.ask(*reads("a"))
    await asyncio.sleep(1)
    assert {2} == set(desk.asked.values())
    assert 2 == len(desk.queue.added)


@in_fake_time
async def test_warm_up_holds_up_no_read():
    """Neither its answer nor its turn; and it wakes the service when it is done itself."""
    desk = Desk(WarmUp=60)
    for number in range(100):
        desk.ask(a_warm_up(), key=ServiceKey("team", f"s{number}"))
    desk.ask(a_warm_up(), *reads("a", "b"))
    await asyncio.sleep(1)
    assert [(0.1, KEY, Lane.Urgent)] == desk.queue.added

    await asyncio.sleep(600)
    assert 101 == desk.asked[a_warm_up()]
    assert [0.1, 420.0] == [round(at, 1) for at, key, _ in desk.queue.added if key == KEY]
    assert WarmedUp("slow") == desk.answers()["WarmUp", "a"]


@in_fake_time
async def test_gate_holds_up_nothing_else():
    """It may take a minute; it is asked once at a time, whatever it is told."""
    desk = Desk(CallGate=60)
    gates = [CallGate("approval", "http://approval/", 60, revision, "{}") for revision in "ab"]
    desk.ask(*gates, a_warm_up(), *reads("a"))
    await asyncio.sleep(1)
    assert {KEY} == {key for _, key, _ in desk.queue.added}
    assert ("CallGate", "approval") not in desk.answers()

    await asyncio.sleep(100)
    assert (60.0, KEY, Lane.Urgent) == desk.queue.added[-1]
    assert [1, 0] == [desk.asked[gate] for gate in gates]
    assert GateAnswer("a", 200, "") == desk.answers()["CallGate", "approval"]


@in_fake_time
async def test_capacity_is_read_in_no_hurry():
    """Tries are counted, and people's edits go first."""
    desk = Desk()
    desk.ask(CAPACITY, *reads("a"))
    await asyncio.sleep(1)
    read = desk.store.snapshot(KEY, None).metrics_reads["a"]

    assert (1, SIZE) == (read.tries, read.size)
    assert {(0.1, KEY, Lane.Normal), (0.1, KEY, Lane.Urgent)} == set(desk.queue.added)
    assert {("ReadEngine", "a"): None} == desk.answers()


@in_fake_time
async def test_who_does_not_lead_asks_nobody():
    """Another instance may lead by now, and ask."""
    desk = Desk()
    desk.leading = False
    desk.ask(*reads("a"), CAPACITY, a_warm_up())
    await asyncio.sleep(30)
    assert not desk.asked
    assert {} == desk.answers()
    assert [] == desk.queue.added

    desk.leading = True
    desk.ask(*reads("a"))
    await asyncio.sleep(30)
    assert [KEY] == [key for _, key, _ in desk.queue.added]


@in_fake_time
async def test_few_are_asked_at_a_time():
    """A thousand pods are no thousand connections."""
    desk = Desk()
    desk.ask(*reads(*(f"pod-{number}" for number in range(1000))))
    await asyncio.sleep(60)

    assert 1000 == len(desk.asked)
    assert 32 == desk.most_at_once


@in_fake_time
async def test_answer_of_a_pod_that_is_gone_is_dropped():
    """And nothing of the question stays."""
    desk = Desk()
    desk.ask(*reads("a", "unknown"))
    pod = {"metadata": {"name": "p-a", "namespace": "team"}}
    desk.store.remove("Pod", pod)
    await asyncio.sleep(1)

    assert {} == desk.answers()
    assert {} == desk.asking._rounds
    assert set() == desk.asking._tasks


@in_fake_time
async def test_closing_gives_up_what_is_open():
    """Nothing of it is told afterwards."""
    desk = Desk(a=0.2, b=50)
    desk.ask(*reads("a", "b"), a_warm_up("b"), CAPACITY)
    await asyncio.sleep(0.5)
    told = desk.answers(), list(desk.queue.added)
    await desk.asking.close()
    await asyncio.sleep(100)

    assert told == (desk.answers(), desk.queue.added)


class Routes(Desk):
    """Questions about a route, of which ``live`` is what there is."""

    live = None

    async def answer(self, question):
        self.asked[question] += 1
        return RouteReading(self.live)

    async def read(self):
        self.ask(ReadRoute("team", "mistral"))
        await asyncio.sleep(1)
        return self.store.child(KEY, ChildRef("HTTPRoute", "mistral"))


@in_fake_time
async def test_route_of_ours_that_was_read_is_a_child():
    """As a watch would tell it: it may have been edited, or be gone."""
    desk = Routes()
    owner = {"kind": "LLMService", "name": "mistral", "uid": "s", "controller": True}
    named = {"name": "mistral", "namespace": "team", "uid": "r", "resourceVersion": "7"}
    desk.live = {"metadata": {**named, "ownerReferences": [owner]}}
    assert "7" == (await desk.read()).resource_version
    assert {("ReadRoute", "mistral"): RouteReading(desk.live)} == desk.answers()

    desk.live = None
    assert await desk.read() is None


@in_fake_time
async def test_route_of_somebody_else_is_no_child():
    """Whatever its name."""
    desk = Routes()
    desk.live = {"metadata": {"name": "mistral", "namespace": "team", "uid": "r"}}

    assert await desk.read() is None
    assert {("ReadRoute", "mistral"): RouteReading(desk.live)} == desk.answers()


class ScaledObjects(Desk):
    """Questions about a ScaledObject, of which ``live`` is what there is."""

    live = None

    async def answer(self, question):
        self.asked[question] += 1
        return ScaledObjectReading(self.live)

    async def read(self):
        self.ask(ReadScaledObject("team", "mistral-abc"))
        await asyncio.sleep(1)
        return self.store.child(KEY, ChildRef("ScaledObject", "mistral-abc"))


@in_fake_time
async def test_scaled_object_that_was_read_is_a_child():
    """It may have been deleted by hand while it had no HPA, by which that is noticed."""
    desk = ScaledObjects()
    named = {"name": "mistral-abc", "namespace": "team", "uid": "so", "resourceVersion": "7"}
    desk.live = {"metadata": {**named, "labels": LABELS}}
    assert "7" == (await desk.read()).resource_version

    desk.live = None
    assert await desk.read() is None
