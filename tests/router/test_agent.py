"""The agent with a real Envoy: from ConfigMap and EndpointSlices to requests."""

import asyncio
import os
import signal
import time
from dataclasses import replace

import pytest

from e2e.cluster.processes import ProcessGroup
from tests.router.agent_pod import RouterPod
from tests.router.engine import Stream, until

CHANGES = 20


@pytest.fixture
async def pod(tmp_path, per_engine):
    """A pod whose containers the test starts."""
    with ProcessGroup(tmp_path / "envoy") as group:
        pod = RouterPod(tmp_path, group, per_engine)
        yield pod
        await pod.close()


@pytest.fixture
async def split(pod, engines):
    """A running pod with an engine each of stable and canary, and all the weight on stable."""
    pod.stable, pod.canary = await engines("stable"), await engines("canary")
    pod.place("stable", pod.stable)
    pod.place("canary", pod.canary)
    pod.order("v1", stable=10_000, canary=0)
    await pod.start()
    await pod.until_in_force("v1")
    return pod


async def _follows(pod, track: str) -> None:
    """Wait until requests are answered by the track."""

    async def answered() -> bool:
        return await pod.router.ask() == track

    await until(answered, f"an answer of {track}")


async def _lies_there(pod, version: str) -> None:
    """Wait until the files are those of the version, whether or not there is an Envoy."""
    routes = pod.router.folder / "rds.json"

    async def written() -> bool:
        return f'"{version}.' in routes.read_text()

    await until(written, f"files of {version}")


async def _is_refused(pod) -> bool:
    """Whether a request gets 503."""
    async with pod.router.client.get(pod.router.url) as answer:
        return answer.status == 503


# --- following ----------------------------------------------------------------------------------


async def test_envoy_can_start_once_the_first_order_is_written(pod, engines):
    """Not before: it would start with nothing, and the kubelet waits for the agent."""
    await pod.start_agent()
    assert not await pod.is_ready()
    assert (await pod.report()).version is None

    pod.place("stable", await engines("stable"))
    pod.order("v1", stable=10_000)
    await until(pod.is_ready, "a ready agent")
    await pod.start_envoy()

    assert "stable" == await pod.router.ask()
    await pod.until_in_force("v1")
    assert not pod.router.log()


async def test_a_router_is_there_before_its_first_engine(pod, engines):
    """Engines load for minutes; an agent that waited for them would be restarted meanwhile."""
    engine = await engines("stable")
    pod.place("stable", engine, ready=False)
    pod.order("v1", stable=10_000)
    await pod.start()
    assert await _is_refused(pod)
    await pod.until_in_force("v1")

    pod.place("stable", engine)

    async def served() -> bool:
        return not await _is_refused(pod)

    await until(served, "an answer")


async def test_an_order_is_in_force_within_moments(split, record_testsuite_property):
    """From the event to the first request on the other track; the version is told as ordered."""
    seconds = []
    for number in range(CHANGES):
        track = ("canary", "stable")[number % 2]
        start = time.monotonic()
        split.order(f"w{number}", **{"stable": 0, "canary": 0, track: 10_000})
        while await split.router.ask() != track:
            pass
        seconds.append(time.monotonic() - start)
        await split.until_in_force(f"w{number}")
    median, longest = sorted(seconds)[CHANGES // 2], max(seconds)
    print(f"order to first request: median {median * 1e3:.0f} ms, longest {longest * 1e3:.0f} ms")
    record_testsuite_property("agent_seconds_to_traffic", median)


async def test_an_engine_that_is_not_ready_gets_nothing(split, engines):
    """Of two engines one leaves, and comes back."""
    second = await engines("second")
    split.place("stable", second)
    await _follows(split, "second")

    split.place("stable", second, ready=False)
    await _gone_from_files(split, second)
    assert {"stable"} == {await split.router.ask() for _ in range(20)}

    split.place("stable", second)
    await _follows(split, "second")
    split.displace("stable", second)
    await _gone_from_files(split, second)
    assert {"stable"} == {await split.router.ask() for _ in range(20)}


async def _gone_from_files(pod, engine) -> None:
    """Wait until the agent has told Envoy, and Envoy the agent."""
    port = str(engine.endpoint.port)

    async def gone() -> bool:
        left = (pod.router.folder / "eds-stable.json").read_text()
        return port not in left and not (await pod.report()).problem

    await until(gone, "an engine to leave")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "v2"}'])
async def test_a_damaged_order_changes_nothing(split, text):
    """It is told, the old one stays in force, and engines are followed all the same."""
    split.order_text(text)
    report = await split.until_problem("traffic")
    assert "v1" == report.version
    assert "stable" == await split.router.ask()

    split.place("stable", split.canary)
    split.displace("stable", split.stable)
    await _follows(split, "canary")

    split.order("v3", stable=10_000)
    await split.until_in_force("v3")


async def test_a_share_waits_for_an_engine(split):
    """To nobody no weight is moved; the slice may come after the order."""
    split.displace("canary", split.canary)
    split.order("v2", stable=0, canary=10_000)
    report = await split.until_problem("canary has no ready engine")
    assert "v1" == report.version
    assert "stable" == await split.router.ask()

    split.place("canary", split.canary)
    await split.until_in_force("v2")
    assert "canary" == await split.router.ask()


async def test_a_track_may_lose_its_last_engine(split):
    """That is a fact and no order: stable answers in its place."""
    split.order("v2", stable=0, canary=10_000)
    await split.until_in_force("v2")

    split.displace("canary", split.canary)
    await _follows(split, "stable")
    await split.until_in_force("v2")


async def test_a_deleted_config_map_changes_nothing(split):
    split.api.drop("ConfigMap", "mistral-router")
    assert "v1" == (await split.until_problem("no ConfigMap")).version
    assert "stable" == await split.router.ask()


# --- outages ------------------------------------------------------------------------------------


async def test_requests_do_not_need_the_api_server(split):
    """While it is away all goes on, and what changed meanwhile arrives when it is back."""
    split.api.go_away()
    split.order("v2", stable=0, canary=10_000)
    assert {"stable"} == {await split.router.ask() for _ in range(20)}
    assert "v1" == (await split.report()).version

    split.api.come_back()
    await split.until_in_force("v2")
    assert "canary" == await split.router.ask()


async def test_what_an_expired_watch_missed_is_found(split):
    """Changed, and deleted."""
    split.api.expire()
    split.displace("canary", split.canary)
    split.order("v2", stable=10_000)
    await split.until_in_force("v2")
    split.api.expire()
    split.api.drop("ConfigMap", "mistral-router")
    await split.until_problem("no ConfigMap")


async def test_envoy_comes_back_alone(split):
    """With the last order, which is told again as soon as Envoy tells it."""
    split.order("v2", stable=0, canary=10_000)
    await split.until_in_force("v2")
    await split.stop_envoy()
    report = await split.report()
    assert (None, {}) == (report.version, report.tracks)
    assert "Envoy does not answer" in report.problem

    await split.start_envoy()
    assert "canary" == await split.router.ask()
    await split.until_in_force("v2")


async def test_an_envoy_that_hangs_is_told_of_and_catches_up(split):
    """The answer comes before the operator gives up."""
    envoy = split.router._group.pid_of("envoy")
    os.kill(envoy, signal.SIGSTOP)
    split.order("v2", stable=0, canary=10_000)
    report = await split.report()
    os.kill(envoy, signal.SIGCONT)

    assert report.version is None
    assert "Envoy does not answer: nothing within 1.5 s" == report.problem
    await split.until_in_force("v2")
    assert "canary" == await split.router.ask()


async def test_an_order_that_comes_while_envoy_is_away_is_taken_later(split):
    await split.stop_envoy()
    split.order("v2", stable=0, canary=10_000)
    await _lies_there(split, "v2")
    await split.start_envoy()
    await split.until_in_force("v2")
    assert "canary" == await split.router.ask()


async def test_an_order_that_envoy_never_took_is_judged_again(split):
    """Its canary dies before Envoy is back: the share was never in force, so it is not raised."""
    await split.stop_envoy()
    split.order("v2", stable=0, canary=10_000)
    await _lies_there(split, "v2")
    split.displace("canary", split.canary)
    await _lies_there(split, "v1")
    await split.start_envoy()
    assert "v1" == (await split.until_problem("canary has no ready engine")).version
    assert "stable" == await split.router.ask()


async def test_an_order_that_cannot_be_written_is_tried_again(split):
    """A full disk for instance; here a folder is in the way."""
    obstacle = split.router.folder / ".rds.json"
    obstacle.mkdir()
    split.order("v2", stable=0, canary=10_000)
    report = await split.until_problem("cannot write Envoy's files")
    assert "v1" == report.version
    assert "stable" == await split.router.ask()

    obstacle.rmdir()
    await split.until_in_force("v2")
    assert "canary" == await split.router.ask()


async def test_an_agent_that_comes_back_needs_no_api_server(split):
    """The folder tells what is in force; without it the pod would have to wait."""
    split.api.go_away()
    assert 0 == await split.stop_agent()
    await split.start_agent()

    assert await split.is_ready()
    assert "v1" == (await split.until_problem("API server")).version
    assert "stable" == await split.router.ask()

    split.displace("canary", split.canary)
    split.order("v2", stable=0, canary=10_000)
    split.api.come_back()
    assert "v1" == (await split.until_problem("canary has no ready engine")).version


async def test_it_tells_since_when_it_is_idle(split):
    """A request between two looks counts, though it is over; one that runs counts all the time."""
    await split.report()
    split.agent._busy_at -= 100
    assert (await split.report()).idle_seconds >= 100

    await split.router.ask()
    assert 0 == (await split.report()).idle_seconds

    stream = await Stream.open(split.router.client, split.router.url)
    split.agent._busy_at -= 100
    assert 0 == (await split.report()).idle_seconds
    split.stable.go_on.set()
    await stream.rest()


# --- draining -----------------------------------------------------------------------------------


async def test_a_drain_lasts_as_long_as_the_streams(split):
    stream = await Stream.open(split.router.client, split.router.url)
    draining = asyncio.ensure_future(split.get("/drain"))

    async def not_ready() -> bool:
        async with split.router.client.get(f"{split.router.url}/router/ready") as answer:
            return answer.status == 503

    await until(not_ready, "a drain")
    assert not draining.done()
    split.stable.go_on.set()
    assert (await stream.rest()).endswith("data: [DONE]\n\n")
    assert (200, "0 requests are left\n") == await draining


async def test_a_drain_without_envoy_is_over_at_once(split):
    await split.stop_envoy()
    status, text = await split.get("/drain")
    assert status == 200
    assert "nothing to wait for" in text


async def test_a_drain_gives_up_in_time(split):
    """New requests may come at first, and the last of them gets the full time."""
    split.agent._config = replace(split.config, propagation_seconds=0.2, drain_seconds=0.3)
    stream = await Stream.open(split.router.client, split.router.url)
    start = time.monotonic()
    assert (200, "1 requests are left\n") == await split.get("/drain")
    assert time.monotonic() - start >= 0.5
    split.stable.go_on.set()
    await stream.rest()


# --- counting -----------------------------------------------------------------------------------


@pytest.fixture
async def on_canary(split):
    """All the weight is on the canary."""
    split.order("v2", stable=0, canary=10_000)
    await split.until_in_force("v2")
    return split


async def _counted(pod) -> dict[str, tuple[int, int, int]]:
    """Active, requests and failed of each track, once nothing is in flight."""

    async def idle() -> bool:
        return await pod.router.admin.active_requests() == 0

    await until(idle, "the end of all requests")
    tracks = (await pod.report()).tracks
    return {name: (each.active, each.requests, each.failed) for name, each in tracks.items()}


async def test_requests_are_counted_where_they_were_sent(on_canary):
    for _ in range(3):
        await on_canary.router.ask()
    on_canary.canary.status = 500
    async with on_canary.router.client.get(on_canary.router.url) as answer:
        assert answer.status == 500
    assert {"stable": (0, 0, 0), "canary": (0, 4, 1)} == await _counted(on_canary)


async def test_a_503_that_stable_answered_is_counted_once(on_canary):
    on_canary.canary.status = 503
    assert ["stable"] * 3 == [await on_canary.router.ask() for _ in range(3)]
    assert {"stable": (0, 0, 0), "canary": (0, 3, 3)} == await _counted(on_canary)


async def test_a_closed_port_is_counted_once(on_canary):
    await on_canary.canary.stop()
    assert ["stable"] * 3 == [await on_canary.router.ask() for _ in range(3)]
    assert {"stable": (0, 0, 0), "canary": (0, 3, 3)} == await _counted(on_canary)


async def test_a_crash_before_the_first_byte_is_counted_once(on_canary):
    on_canary.stable.go_on.set()
    asked = asyncio.ensure_future(on_canary.router.client.get(f"{on_canary.router.url}/prefill"))

    async def prefills() -> bool:
        return on_canary.canary.prefilling == 1

    await until(prefills, "a prefill")
    await on_canary.canary.stop()
    assert 200 == (await asked).status
    assert {"stable": (0, 0, 0), "canary": (0, 1, 1)} == await _counted(on_canary)


async def test_a_stream_that_breaks_off_is_counted_once(on_canary):
    streams = [await Stream.open(on_canary.router.client, on_canary.router.url) for _ in range(2)]
    tracks = (await on_canary.report()).tracks
    assert (2, 2, 0) == (
        tracks["canary"].active,
        tracks["canary"].requests,
        tracks["canary"].failed,
    )

    await on_canary.canary.stop()
    for stream in streams:
        with pytest.raises(Exception, match="not completed"):
            await stream.rest()
        stream._answer.close()
    assert {"stable": (0, 0, 0), "canary": (0, 2, 2)} == await _counted(on_canary)


async def test_a_client_that_hangs_up_is_no_failure(on_canary):
    """Neither in a stream nor while it waits for one."""
    stream = await Stream.open(on_canary.router.client, on_canary.router.url)
    stream._answer.close()
    waiting = asyncio.ensure_future(on_canary.router.client.get(f"{on_canary.router.url}/prefill"))

    async def prefills() -> bool:
        return on_canary.canary.prefilling == 1

    await until(prefills, "a prefill")
    waiting.cancel()
    assert {"stable": (0, 0, 0), "canary": (0, 1, 0)} == await _counted(on_canary)


async def test_a_request_that_nobody_takes_counts_with_every_attempt(split):
    """Three that found no engine, and the 503 of the client."""
    await split.stable.stop()
    assert await _is_refused(split)
    assert {"stable": (0, 1, 4), "canary": (0, 0, 0)} == await _counted(split)


async def test_a_canary_that_becomes_stable_counts_anew(on_canary):
    """What its share's cluster counted goes with that."""
    for _ in range(3):
        await on_canary.router.ask()
    assert {"stable": (0, 0, 0), "canary": (0, 3, 0)} == await _counted(on_canary)

    on_canary.order("v3", "canary", canary=10_000)
    await on_canary.until_in_force("v3")
    for _ in range(2):
        await on_canary.router.ask()
    assert {"canary": (0, 2, 0)} == await _counted(on_canary)
