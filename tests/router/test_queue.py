"""Requests wait in the router, where they can still go to any engine."""

import asyncio
import io
import json
from collections import Counter
from dataclasses import dataclass, replace
from statistics import median
from typing import Self

import aiohttp
import pytest

from e2e.cluster.processes import ProcessGroup
from llmservice.adapters.route_files import Acknowledged, drain
from llmservice.core.router import pace
from llmservice.core.router.desired import Affinity, Traffic
from llmservice.handlers import route_agent
from tests.bench import procfs
from tests.router.agent_pod import RouterPod
from tests.router.conftest import Router
from tests.router.engine import Engine, a_split, a_track, until
from tests.router.queue import Queue, are_inside, names

MIB = 1 << 20


@pytest.fixture
def per_engine() -> None:
    """Each test says it itself."""


def a_queue(version: str, per_engine: int, *engines: Engine, **more: int) -> Traffic:
    """One revision, whose engines are handed so much each."""
    track = replace(a_track("stable", 10_000, *engines), per_engine=per_engine)
    return Traffic(version, stable="stable", tracks=(track,), **more)


# --- the queue ----------------------------------------------------------------------------------


async def test_an_engine_is_handed_no_more_than_it_may_be(router, engines):
    """The others wait, and go in the order in which they came."""
    engine = await engines("stable")
    envoy = await router(a_queue("v1", 2, engine))
    queue = Queue(envoy)
    await queue.come(12)
    await are_inside(2, engine)
    assert 10 == await queue.waiting()
    assert 12 == (await envoy.admin.tracks())["stable"].active

    for number in range(12):
        engine.turns.release()
        assert 200 == await queue.asked[number]
        assert len(engine.inside) <= 2
    assert names(range(12)) == engine.came
    assert (0, 12, 0) == _numbers((await envoy.admin.tracks())["stable"])
    assert 12 == (await envoy.admin.gates())["stable"].ended


def _numbers(report) -> tuple[int, int, int]:
    return report.active, report.requests, report.failed


async def test_whoever_has_room_first_gets_the_next(router, engines):
    """Not the engine that was free when the request came: none was."""
    busy, quick = await engines("busy"), await engines("quick")
    envoy = await router(a_queue("v1", 1, busy, quick))
    queue = Queue(envoy)
    await queue.come(8)
    await are_inside(2, busy, quick)

    for _ in range(7):
        quick.turns.release()
    await are_inside(1, busy, quick)
    assert (1, 7) == (len(busy.came), len(quick.came))
    busy.turns.release()
    assert [200] * 8 == await queue.statuses()


async def test_engines_get_equally_many(router, engines):
    """By the fewest requests of all, not of two picked at random."""
    three = [await engines("stable") for _ in range(3)]
    envoy = await router(a_queue("v1", 4, *three))
    queue = Queue(envoy)
    await queue.come(15)
    await are_inside(12, *three)
    assert [4, 4, 4] == [len(engine.inside) for engine in three]
    for engine in three:
        for _ in range(15):
            engine.turns.release()
    assert [200] * 15 == await queue.statuses()


async def test_a_limit_that_falls_is_kept(router, engines):
    """Connections from before carry no further requests once they have had their time."""
    engine = await engines("stable")
    envoy = await router(a_queue("v1", 6, engine))
    queue = Queue(envoy)
    await queue.come(16)
    await are_inside(6, engine)
    await envoy.files.apply(a_queue("v2", 2, engine))

    async def all_are_old() -> bool:
        counter = "cluster.gate-stable.upstream_cx_max_duration_reached"
        return await envoy.counter(counter) == 6

    await until(all_are_old, "connections that have had their time")
    for number in range(16):
        engine.turns.release()
        assert 200 == await queue.asked[number]
        assert len(engine.came) <= max(6, number + 3)
    assert names(range(16)) == engine.came


async def test_a_client_that_hangs_up_while_it_waits_reaches_no_engine(router, engines):
    """Nor does it keep a place."""
    engine = await engines("stable")
    envoy = await router(a_queue("v1", 1, engine))
    queue = Queue(envoy)
    await queue.come(4)
    await are_inside(1, engine)
    queue.asked.pop(1).cancel()

    async def gone() -> bool:
        return await queue.waiting() == 2

    await until(gone, "a shorter queue")
    for _ in range(3):
        engine.turns.release()
    assert [200] * 3 == await queue.statuses()
    assert names([0, 2, 3]) == engine.came


async def test_a_client_that_hangs_up_while_it_runs_makes_room(router, engines):
    """The engine hears of it through both listeners."""
    engine = await engines("stable")
    envoy = await router(a_queue("v1", 1, engine))
    queue = Queue(envoy)
    await queue.come(2)
    await are_inside(1, engine)
    queue.asked.pop(0).cancel()

    async def next_one() -> bool:
        return engine.inside == ["1"]

    await until(next_one, "the next request")
    engine.turns.release()
    assert [200] == await queue.statuses()


async def test_a_full_queue_says_so(router, engines):
    """503, when to come again, and an error as OpenAI's clients read it; counted as a failure."""
    engine = await engines("stable")
    envoy = await router(a_queue("v1", 1, engine, max_waiting=3))
    queue = Queue(envoy)
    await queue.come(1)
    await are_inside(1, engine)
    await queue.come(4)  # one more than may wait, as who is handed on waits for a moment, too

    async with envoy.client.get(envoy.url) as answer:
        assert 503 == answer.status
        assert "5" == answer.headers["retry-after"]
        assert "queue_full" == (await answer.json())["error"]["code"]
    assert (5, 1, 1) == _numbers((await envoy.admin.tracks())["stable"])
    assert 0 == (await envoy.admin.gates())["stable"].ended
    for _ in range(5):
        engine.turns.release()
    assert [200] * 5 == await queue.statuses()


async def test_two_routers_share_what_an_engine_is_handed(engines, tmp_path):
    """Each hands on its half, rounded up."""
    engine = await engines("stable")
    with ProcessGroup(tmp_path / "one") as one, ProcessGroup(tmp_path / "two") as two:
        routers = [Router(tmp_path / name, group) for name, group in (("1", one), ("2", two))]
        for each in routers:
            each.folder.parent.mkdir()
            await each.start(a_queue("v1", 3, engine, routers=2))
        queues = [Queue(each) for each in routers]
        for queue in queues:
            await queue.come(5)
        await are_inside(4, engine)
        assert [3, 3] == [await queue.waiting() for queue in queues]
        for _ in range(10):
            engine.turns.release()
        for queue in queues:
            assert [200] * 5 == await queue.statuses()
        for each in routers:
            await each.close()


async def test_sessions_keep_their_engine(router, engines):
    """Behind the gate the session's header is still known."""
    engines_of = [await engines(f"engine{number}") for number in range(4)]
    traffic = replace(a_queue("v1", 8, *engines_of), affinity=Affinity(header="x-user"))
    envoy = await router(traffic)

    for number in range(20):
        user = {"x-user": f"user-{number}"}
        assert 1 == len({await envoy.ask(**user) for _ in range(4)})


async def test_clients_cannot_pass_the_gate(router, engines):
    """The header by which a request goes on from it is dropped."""
    stable, canary = await engines("stable"), await engines("canary")
    split = a_split("v1", 0, stable, canary)
    tracks = tuple(replace(track, per_engine=1) for track in split.tracks)
    envoy = await router(replace(split, tracks=tracks))
    queue = Queue(envoy)
    await queue.come(1)
    await are_inside(1, stable)

    for cluster in ("track-stable", "track-canary", "nudge", "x"):
        await queue.come(1, **{"x-llm-gate": cluster})
    assert (4, 1) == (await queue.waiting(), len(stable.inside))
    for _ in range(5):
        stable.turns.release()
    assert [200] * 5 == await queue.statuses()
    assert not canary.headers
    assert not {"x-llm-gate"} & {key.lower() for seen in stable.headers for key in seen}


async def test_who_waited_for_a_track_that_went_is_answered_by_stable(router, engines):
    """Its queue outlives it."""
    stable, canary = await engines("stable"), await engines("canary")
    split = a_split("v1", 10_000, stable, canary)
    tracks = tuple(replace(track, per_engine=1) for track in split.tracks)
    envoy = await router(replace(split, tracks=tracks))
    queue = Queue(envoy)
    await queue.come(3)
    await are_inside(1, canary)

    assert Acknowledged("v2") == await envoy.files.apply(a_queue("v2", 1, stable))
    for engine in (canary, stable, stable):
        engine.turns.release()
    assert [200] * 3 == await queue.statuses()
    assert (["0"], ["1", "2"]) == (canary.came, stable.came)


async def test_a_drain_waits_for_the_queue(router, engines):
    """Who waits when a router's end begins is answered, too."""
    engine = await engines("stable")
    envoy = await router(a_queue("v1", 1, engine))
    queue = Queue(envoy)
    await queue.come(4)
    await are_inside(1, engine)

    draining = asyncio.create_task(drain(envoy.admin, at_least_seconds=0, at_most_seconds=20))
    for _ in range(4):
        assert not draining.done()
        engine.turns.release()
        await asyncio.wait(queue.asked, return_when=asyncio.FIRST_COMPLETED)
        queue.asked = [task for task in queue.asked if not task.done()] or queue.asked
    assert {200} == set(await queue.statuses())
    assert 0 == await draining
    assert names(range(4)) == engine.came


async def test_bodies_that_wait_have_a_bound(engines, tmp_path):
    """Above it requests are refused as by a full queue; who waits already is answered."""
    engine = await engines("stable")
    with ProcessGroup(tmp_path / "envoy") as group:
        envoy = Router(tmp_path, group, memory_bytes=160 * MIB)
        await envoy.start(a_queue("v1", 1, engine))
        queue = Queue(envoy)
        await queue.come(1)
        await are_inside(1, engine)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            posts: list[asyncio.Task[int]] = []
            while not any(post.done() for post in posts):
                posts += [asyncio.create_task(_post(client, envoy.url)) for _ in range(4)]
                await until(_wait_or_are_done(queue, posts), "requests that wait")
            waiting = await queue.waiting()
            assert procfs.peak_rss_mib(group.pid_of("envoy")) < 280
            for _ in range(1 + len(posts)):
                engine.turns.release()
            statuses = await asyncio.gather(*posts)
        assert {200: waiting, 503: len(posts) - waiting} == Counter(statuses)
        assert waiting > 5
        assert [200] == await queue.statuses()
        await envoy.close()


async def _post(client: aiohttp.ClientSession, url: str) -> int:
    async with client.post(f"{url}/turn/large", data=io.BytesIO(b"x" * (7 * MIB))) as answer:
        await answer.read()
        return answer.status


def _wait_or_are_done(queue: Queue, posts: list[asyncio.Task[int]]):
    async def they_do() -> bool:
        return await queue.waiting() + sum(post.done() for post in posts) == len(posts)

    return they_do


# --- with the agent -----------------------------------------------------------------------------


@pytest.fixture
async def pod(tmp_path):
    """A pod that hands each engine one request."""
    with ProcessGroup(tmp_path / "envoy") as group:
        pod = RouterPod(tmp_path, group, per_engine=1)
        yield pod
        await pod.close()


async def test_newcomers_take_from_the_queue_at_once(pod, engines):
    """Without a further request, and without an answer of the engine that was there."""
    first, *newcomers = [await engines("stable") for _ in range(8)]
    pod.place("stable", first)
    pod.order("v1", stable=10_000)
    await pod.start()
    queue = Queue(pod.router)
    await queue.come(12)
    await are_inside(1, first)
    assert 11 == (await pod.report()).waiting

    for number, engine in enumerate(newcomers):
        pod.place("stable", engine)
        await are_inside(number + 2, first, *newcomers)
    assert [1] * 8 == [len(engine.inside) for engine in (first, *newcomers)]
    for engine in (first, *newcomers):
        for _ in range(12):
            engine.turns.release()
    assert [200] * 12 == await queue.statuses()


async def test_newcomers_are_noticed_by_a_full_queue(pod, engines):
    """Where no further request would be let in to make it look."""
    first, second = await engines("stable"), await engines("stable")
    pod.place("stable", first)
    pod.order("v1", stable=10_000, max_waiting=2)
    await pod.start()
    queue = Queue(pod.router)
    await queue.come(1)
    await are_inside(1, first)
    await queue.come(4)

    pod.place("stable", second)
    await are_inside(2, first, second)
    for engine in (first, second):
        for _ in range(4):
            engine.turns.release()
    assert [200, 200, 200, 200, 503] == await queue.statuses()


# --- as fast as engines are ---------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    came: float
    seconds: float
    status: int
    retry_after: str | None
    text: str


class Crowd:
    """Sixty clients of an engine that answers twenty a second, one after the other.

    Who is answered asks again, who is refused does so after half a second.
    """

    def __init__(self, router: Router, engine: Engine) -> None:
        self._router, self._engine = router, engine
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        self._client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        tasks = [self._work(), *(self._live() for _ in range(60))]
        self._tasks = [asyncio.create_task(each) for each in tasks]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    def refused(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            if self._engine.inside:
                self._engine.turns.release()

    async def _live(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            came = clock()
            async with self._client.get(f"{self._router.url}/turn/anyone") as answer:
                text = await answer.text()
            again = answer.headers.get("retry-after")
            self.answers.append(Answer(came, clock() - came, answer.status, again, text))
            await asyncio.sleep(0.5 if again else 0)


@pytest.fixture
def quick_eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is evidence enough."""
    monkeypatch.setattr(pace, "LEAST_SECONDS", 1.0)
    monkeypatch.setattr(route_agent, "_LOOK_SECONDS", 0.1)


@pytest.mark.usefixtures("quick_eyes")
async def test_who_would_wait_for_too_long_is_refused_at_once(pod, engines):
    """And whoever is let in is answered in about that time: here in one second, and not three."""
    engine = await engines("stable")
    pod.place("stable", engine)
    pod.order("v1", max_wait_seconds=1, stable=10_000)
    await pod.start()
    async with Crowd(pod.router, engine) as crowd:

        async def is_bounded() -> bool:
            return len(crowd.refused()) > 0

        await until(is_bounded, "a refusal")
        since = max(answer.came for answer in crowd.refused())

        def let_in() -> list[Answer]:
            return [one for one in crowd.answers if one.came > since and one.status == 200]

        async def enough() -> bool:
            return len(let_in()) >= 40

        await until(enough, "answers to those who were let in")
        assert median(answer.seconds for answer in let_in()) < 2
        assert median(answer.seconds for answer in crowd.refused()) < 0.5
        for answer in crowd.refused():
            assert (503, "5") == (answer.status, answer.retry_after)
            assert "queue_full" == json.loads(answer.text)["error"]["code"]
        assert "" == (await pod.report()).problem


@pytest.mark.usefixtures("quick_eyes")
async def test_nobody_is_refused_who_may_wait_that_long(pod, engines):
    """The same crowd without a word about the time: ten minutes are enough for all of it."""
    engine = await engines("stable")
    pod.place("stable", engine)
    pod.order("v1", stable=10_000)
    await pod.start()
    async with Crowd(pod.router, engine) as crowd:

        async def enough() -> bool:
            return len(crowd.answers) >= 80

        await until(enough, "answers")
        assert not crowd.refused()
        assert median(answer.seconds for answer in crowd.answers[60:]) > 2


@pytest.mark.usefixtures("quick_eyes")
async def test_newcomers_are_noticed_by_a_queue_that_is_longer_than_it_may_be(pod, engines):
    """It became so when the engine slowed down; and what makes Envoy look is no failure."""
    first, *newcomers = [await engines("stable") for _ in range(3)]
    pod.place("stable", first)
    pod.order("v1", max_wait_seconds=1, stable=10_000)
    await pod.start()
    queue = Queue(pod.router)
    await queue.come(30)
    for number in range(12):
        first.turns.release()
        assert 200 == await queue.asked[number]

    async def is_slow() -> bool:
        bounds = [track.waiting for track in pod.agent._target.tracks]
        return all(bound is not None and bound < 4 for bound in bounds)

    await until(is_slow, "a bound below what waits")
    for number, engine in enumerate(newcomers):
        pod.place("stable", engine)
        await are_inside(number + 2, first, *newcomers)
    assert 15 == await queue.waiting()
    # One may come just when the bound falls again; otherwise it would be some forty a second.
    assert (await pod.report()).tracks["stable"].failed < 5
    for engine in (first, *newcomers):
        for _ in range(18):
            engine.turns.release()
    assert [200] * 30 == await queue.statuses()


# --- without an engine --------------------------------------------------------------------------


async def test_requests_are_held_until_there_is_an_engine(pod, engines):
    """In order, and none of it counts as a failure."""
    engine = await engines("stable")
    pod.order("v1", hold_seconds=60, stable=10_000)
    await pod.start()
    await pod.until_in_force("v1")
    queue = Queue(pod.router)
    await queue.come(5)

    async def all_wait() -> bool:
        return (await pod.report()).waiting == 5

    await until(all_wait, "five that wait")
    pod.place("stable", engine)
    await are_inside(1, engine)
    for _ in range(5):
        engine.turns.release()
    assert [200] * 5 == await queue.statuses()
    assert names(range(5)) == engine.came
    assert (0, 5, 0) == _numbers((await pod.report()).tracks["stable"])
    assert 0 == (await pod.report()).waiting


async def test_nothing_is_held_while_an_engine_is_ready(pod, engines):
    """Though the other one fails, and is left out: the one that answers gets its requests."""
    dead, alive = await engines("stable"), await engines("stable")
    for engine in (dead, alive):
        pod.place("stable", engine)
    pod.order("v1", hold_seconds=60, stable=10_000)
    await pod.start()
    await dead.stop()

    assert {"stable"} == {await pod.router.ask() for _ in range(60)}
    assert await pod.router.counter("cluster.track-stable.outlier_detection.ejections_active")
    assert 0 == await pod.router.counter("cluster.hold.upstream_rq_total")


async def test_a_share_whose_canary_went_is_handed_on_like_stable(pod, engines):
    """And not one by one, as where there is no engine at all."""
    pod.per_engine = 4
    stable, canary = await engines("stable"), await engines("canary")
    pod.place("stable", stable)
    pod.place("canary", canary)
    pod.order("v1", hold_seconds=60, stable=0, canary=10_000)
    await pod.start()
    await pod.until_in_force("v1")
    pod.displace("canary", canary)

    async def by_stable() -> bool:
        return await pod.router.ask() == "stable"

    await until(by_stable, "an answer of stable")
    queue = Queue(pod.router)
    await queue.come(6)
    await are_inside(4, stable)
    for _ in range(6):
        stable.turns.release()
    assert [200] * 6 == await queue.statuses()


async def test_what_is_held_has_a_deadline(pod, engines):
    """Each request its own; then it is told when to come again."""
    pod.order("v1", hold_seconds=1, stable=10_000)
    await pod.start()
    await pod.until_in_force("v1")
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def ask() -> tuple[int, str | None, str]:
        async with pod.router.client.get(pod.router.url) as answer:
            error = (await answer.json())["error"]
            return answer.status, answer.headers.get("retry-after"), error["code"]

    answers = await asyncio.gather(*(ask() for _ in range(20)))
    assert {(503, "5", "no_engine")} == set(answers)
    assert 1 <= loop.time() - start < 5


async def test_who_hangs_up_is_not_held(pod, engines):
    engine = await engines("stable")
    pod.order("v1", hold_seconds=60, stable=10_000)
    await pod.start()
    await pod.until_in_force("v1")
    queue = Queue(pod.router)
    await queue.come(3)

    async def waiting(number: int) -> bool:
        return (await pod.report()).waiting == number

    await until(lambda: waiting(3), "three that wait")
    queue.asked.pop(0).cancel()
    await until(lambda: waiting(2), "two that wait")
    pod.place("stable", engine)
    for _ in range(2):
        engine.turns.release()
    assert [200] * 2 == await queue.statuses()
    assert names([1, 2]) == engine.came


async def test_a_new_agent_holds_by_the_order_from_before(pod, engines):
    """Also while nobody tells it which."""
    engine = await engines("stable")
    pod.order("v1", hold_seconds=60, stable=10_000)
    await pod.start()
    await pod.until_in_force("v1")
    pod.api.go_away()
    await pod.stop_agent()
    await pod.start_agent()
    queue = Queue(pod.router)
    await queue.come(3)

    pod.place("stable", engine)
    pod.api.come_back()
    for _ in range(3):
        engine.turns.release()
    assert [200] * 3 == await queue.statuses()
