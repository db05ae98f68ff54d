"""While engines have room, requests bypass the gate; no limit is forgotten when that ends."""

import asyncio

import pytest

from e2e.cluster.processes import ProcessGroup
from llmservice.core.router import bypass
from llmservice.handlers import route_agent
from tests.router.agent_pod import RouterPod
from tests.router.engine import Stream, until
from tests.router.queue import Queue, are_inside, names

LIMIT = 64
"""Half of them end the bypass."""
STEP = LIMIT // 16


@pytest.fixture
def per_engine() -> None:
    """Each test says it itself."""


@pytest.fixture
async def pod(tmp_path, monkeypatch):
    """A pod whose agent looks often, and lets nobody bypass the gate yet."""
    monkeypatch.setattr(bypass, "CALM_SECONDS", 1e9)
    monkeypatch.setattr(route_agent, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(route_agent, "_NEXT_LOOK_SECONDS", 0.1)
    with ProcessGroup(tmp_path / "envoy") as group:
        pod = RouterPod(tmp_path, group, per_engine=LIMIT)
        yield pod
        await pod.close()


@pytest.fixture
def begin(pod, monkeypatch):
    """Let a bypass begin, and wait until Envoy leads a request around the gate."""

    async def begin() -> None:
        monkeypatch.setattr(bypass, "CALM_SECONDS", 0.2)
        await until(_is_bypassed(pod, expected=True), "a bypass")
        monkeypatch.setattr(bypass, "CALM_SECONDS", 1e9)

    return begin


async def until_over(pod: RouterPod) -> None:
    """Wait until Envoy leads a request to the gate."""
    await until(_is_bypassed(pod, expected=False), "an end of the bypass")


def _is_bypassed(pod: RouterPod, *, expected: bool):
    async def is_as_expected() -> bool:
        before = await passed(pod)
        await pod.router.ask()
        return (await passed(pod) == before) is expected

    return is_as_expected


async def passed(pod: RouterPod) -> int:
    """Requests that passed the gate so far."""
    return await pod.router.counter("cluster.gate-stable.upstream_rq_total")


async def bypassing(pod: RouterPod) -> int:
    """Requests that engines have and that did not pass the gate."""
    return (await pod.router.admin.gates())["stable"].bypassing


async def test_requests_bypass_the_gate(pod, engines, begin):
    """They reach the engine as from the gate, and are counted as from there."""
    engine = await engines("stable")
    pod.place("stable", engine)
    pod.order("v1", stable=10_000)
    await pod.start()
    assert "stable" == await pod.router.ask()
    assert 1 == await passed(pod)
    await begin()

    before, by_gate = (await pod.report()).tracks["stable"].requests, await passed(pod)
    for _ in range(10):
        assert "stable" == await pod.router.ask(**{"x-llm-gate": "track-stable"})
    assert by_gate == await passed(pod)
    assert before + 10 == (await pod.report()).tracks["stable"].requests
    first, *_, last = [sorted(key.lower() for key in seen) for seen in engine.headers]
    assert first == last
    assert "x-llm-gate" not in last


async def test_whoever_bypassed_the_gate_is_taken_off_its_limit(pod, engines, begin):
    """Also by an agent that begins anew; and the limit rises as they end, without a request."""
    engine = await engines("stable")
    pod.place("stable", engine)
    pod.order("v1", stable=10_000)
    await pod.start()
    await begin()
    queue = Queue(pod.router)
    await queue.come(80)
    assert await bypassing(pod) > LIMIT // 4

    async def is_full() -> bool:
        return LIMIT - STEP < len(engine.inside) == 80 - await queue.waiting()

    await until(is_full, "a full engine")
    inside = len(engine.inside)
    assert inside <= LIMIT
    await pod.stop_agent()
    await pod.start_agent()
    await pod.until_in_force("v1")
    assert inside == len(engine.inside)
    assert 80 - inside == await queue.waiting()

    for number in range(40):
        engine.turns.release()
        assert 200 == await queue.asked[number]
        assert len(engine.inside) <= LIMIT
    await are_inside(40, engine)
    for _ in range(40):
        engine.turns.release()
    assert [200] * 80 == await queue.statuses()
    assert names(range(inside)) == engine.came[:inside]


async def test_an_agent_that_knows_no_traffic_lets_nobody_bypass_the_gate(pod, engines, begin):
    """It cannot look, while the API server is away."""
    pod.place("stable", await engines("stable"))
    pod.order("v1", stable=10_000)
    await pod.start()
    await begin()
    pod.api.go_away()
    await pod.stop_agent()
    await pod.start_agent()
    await until_over(pod)
    pod.api.come_back()
    await pod.until_in_force("v1")


async def test_an_envoy_that_begins_anew_lets_nobody_bypass_the_gate(pod, engines, begin):
    """Many may come at once then."""
    pod.place("stable", await engines("stable"))
    pod.order("v1", stable=10_000)
    await pod.start()
    await begin()
    await pod.stop_envoy()

    async def is_over() -> bool:
        return not pod.agent._target.bypass

    await until(is_over, "an end of the bypass")
    await pod.start_envoy()
    assert "stable" == await pod.router.ask()
    assert 1 == await passed(pod)


async def test_a_bypass_ends_whatever_else_cannot_be_brought_about(
    pod, engines, begin, monkeypatch
):
    """Envoy takes a new engine only after a while; until then nothing is judged by its room."""
    pod.place("stable", await engines("stable"))
    pod.order("v1", stable=10_000)
    await pod.start()
    await begin()

    async def none() -> dict[str, int]:
        return {}

    with monkeypatch.context() as changed:
        changed.setattr(pod.agent._admin, "engines", none)
        pod.place("stable", await engines("stable"))
        await until_over(pod)
        assert "not in force yet" in (await pod.report()).problem
    await until(_is_bypassed(pod, expected=True), "a bypass again")


async def test_a_stream_outlives_what_becomes_of_a_bypass(pod, engines, begin):
    """Begun before it, during it, and before a rollout ended it."""
    stable, canary = await engines("stable"), await engines("canary")
    pod.place("stable", stable)
    pod.place("canary", canary)
    pod.order("v1", stable=10_000)
    await pod.start()
    early = await Stream.open(pod.router.client, pod.router.url)
    await begin()
    late = await Stream.open(pod.router.client, pod.router.url)
    assert 1 == await bypassing(pod)

    pod.order("v2", stable=5_000, canary=5_000)
    await pod.until_in_force("v2")
    by_gate = await passed(pod)
    assert {"stable", "canary"} == {await pod.router.ask() for _ in range(40)}
    assert await passed(pod) > by_gate
    stable.go_on.set()
    assert (await early.rest()).endswith("[DONE]\n\n")
    assert (await late.rest()).endswith("[DONE]\n\n")


@pytest.mark.parametrize("hold_seconds", [0, 60])
async def test_an_engine_that_dies_during_a_bypass_fails_no_request(
    pod, engines, begin, hold_seconds
):
    """The other one answers, and nothing is held meanwhile."""
    dead, alive = await engines("stable"), await engines("stable")
    for engine in (dead, alive):
        pod.place("stable", engine)
    pod.order("v1", stable=10_000, hold_seconds=hold_seconds)
    await pod.start()
    await begin()
    await dead.stop()
    by_gate = await passed(pod)
    assert {"stable"} == {await pod.router.ask() for _ in range(60)}
    assert by_gate == await passed(pod)
    assert 0 == await pod.router.counter("cluster.hold.upstream_rq_total")


async def test_requests_are_held_when_the_last_engine_goes_during_a_bypass(pod, engines, begin):
    """Whether they come before Envoy knows of it, and are answered as it ends, or after."""
    engine = await engines("stable")
    pod.place("stable", engine)
    pod.order("v1", stable=10_000, hold_seconds=60)
    await pod.start()
    await begin()
    pod.displace("stable", engine)
    asked: list[asyncio.Task[str]] = []

    async def some_wait() -> bool:
        asked.append(asyncio.create_task(pod.router.ask()))
        return (await pod.report()).waiting > 5

    await until(some_wait, "requests that wait")
    pod.place("stable", await engines("stable"))
    assert {"stable"} == set(await asyncio.gather(*asked))
