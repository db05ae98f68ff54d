"""Engines are asked beside the reconciles: one question a service, none by a stand-by."""

import asyncio

from llmservice.adapters.store import Store
from llmservice.core.decision import MetricsRequest
from llmservice.core.observed import KVCacheSize, ServiceKey
from llmservice.handlers.engines import EngineReader
from llmservice.handlers.queue import WorkQueue
from tests.unit.handlers.fake_time import in_fake_time

KEY = ServiceKey("team", "mistral")
LABELS = {"app.kubernetes.io/managed-by": "llmservice", "llmservice.dev/service": "mistral"}
REQUEST = MetricsRequest("p", "pu", "10.0.0.7")
SIZE = KVCacheSize(32768, 8.0)


class Desk:
    """An EngineReader whose engine answers once it is let."""

    def __init__(self):
        self.store, self.queue = Store(), WorkQueue()
        self.leading = True
        self.asked = []
        self.answer = asyncio.Event()
        self.reader = EngineReader(self.read, self.store, self.queue, lambda: self.leading)
        self.store.put("LLMService", {"metadata": {"name": "mistral", "namespace": "team"}})
        metadata = {"name": "p", "namespace": "team", "uid": "pu", "labels": LABELS}
        self.store.put("Pod", {"metadata": metadata})

    async def read(self, address):
        self.asked.append(address)
        await self.answer.wait()
        return SIZE

    async def let_run(self):
        for _ in range(5):
            await asyncio.sleep(0)

    def reads(self):
        reads = self.store.snapshot(KEY, None).metrics_reads
        return {uid: (read.tries, read.size) for uid, read in reads.items()}


@in_fake_time
async def test_answer_is_kept_and_the_service_looked_at_again():
    """The caller does not wait; the answer comes back through store and queue."""
    desk = Desk()
    desk.reader.ask(KEY, REQUEST)
    await desk.let_run()
    assert {} == desk.reads()

    desk.answer.set()
    assert KEY == await desk.queue.get()
    assert {"pu": (1, SIZE)} == desk.reads()
    assert ["10.0.0.7"] == desk.asked


@in_fake_time
async def test_a_service_is_asked_one_question_at_a_time():
    """Every pass asks until the answer is there; only the first asks the engine."""
    desk = Desk()
    for _ in range(3):
        desk.reader.ask(KEY, REQUEST)
        await desk.let_run()
    assert 1 == len(desk.asked)

    desk.answer.set()
    await desk.let_run()
    desk.reader.ask(KEY, REQUEST)
    await desk.let_run()
    assert 2 == len(desk.asked)
    assert {"pu": (2, SIZE)} == desk.reads()


@in_fake_time
async def test_who_does_not_lead_asks_nobody():
    """Another instance may lead by now, and ask."""
    desk = Desk()
    desk.leading = False
    desk.reader.ask(KEY, REQUEST)
    await desk.let_run()

    assert [] == desk.asked
    assert {} == desk.reads()


@in_fake_time
async def test_few_are_asked_at_a_time():
    """A thousand services that become ready at once are no thousand connections."""
    desk = Desk()
    for number in range(100):
        desk.reader.ask(ServiceKey("team", f"s{number}"), REQUEST)
    await desk.let_run()
    assert 16 == len(desk.asked)

    desk.answer.set()
    for _ in range(50):
        await desk.let_run()
    assert 100 == len(desk.asked)


@in_fake_time
async def test_closing_gives_up_what_is_open():
    """Nothing of it is told afterwards."""
    desk = Desk()
    desk.reader.ask(KEY, REQUEST)
    await desk.let_run()
    await desk.reader.close()
    desk.answer.set()
    await desk.let_run()

    assert {} == desk.reads()
    assert 0 == len(desk.queue)
