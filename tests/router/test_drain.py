"""The end of a router: streams first."""

import asyncio

import pytest

from llmservice.adapters.route_files import AdminUnavailable, EnvoyAdmin, drain
from llmservice.core.router.envoy import READY_PATH
from tests.router.engine import Stream, a_split, until


async def test_streams_end_before_envoy_does(router, engines):
    """Readiness goes first, then the drain waits for every stream."""
    stable = await engines("stable")
    envoy = await router(a_split("v1", 0, stable, await engines("canary")))
    streams = [await Stream.open(envoy.client, envoy.url) for _ in range(4)]
    async with envoy.client.get(envoy.url + READY_PATH) as answer:
        assert answer.status == 200

    draining = asyncio.ensure_future(drain(envoy.admin, at_least_seconds=0, at_most_seconds=20))

    async def not_ready() -> bool:
        async with envoy.client.get(envoy.url + READY_PATH) as answer:
            return answer.status == 503

    await until(not_ready, "a failing readiness probe")
    assert "stable" == await envoy.ask()
    assert not draining.done()
    stable.go_on.set()
    assert 0 == await draining

    envoy._group.stop("envoy")
    assert all([(await stream.rest()).endswith("data: [DONE]\n\n") for stream in streams])


async def test_a_drain_gives_up_in_time(router, engines):
    """What is left after the deadline is counted."""
    stable = await engines("stable")
    envoy = await router(a_split("v1", 0, stable, await engines("canary")))
    streams = [await Stream.open(envoy.client, envoy.url) for _ in range(3)]

    assert 3 == await drain(envoy.admin, at_least_seconds=0, at_most_seconds=0.1)

    stable.go_on.set()
    for stream in streams:
        await stream.rest()


async def test_there_is_nothing_to_drain_without_envoy():
    """The caller is told, and can end the pod."""
    admin = EnvoyAdmin(1)
    with pytest.raises(AdminUnavailable):
        await drain(admin, at_least_seconds=0, at_most_seconds=1)
    await admin.close()
