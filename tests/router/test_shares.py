"""Who answers: shares, chosen tracks, sessions, limits."""

import asyncio
from dataclasses import replace

import pytest

from llmservice.adapters.route_files import Acknowledged
from llmservice.core.router.desired import Affinity, Capacity, Endpoint, Limits, Traffic
from tests.router.engine import a_split, a_track, until
from tests.router.xxhash64 import xxhash64

REQUESTS = 300
USERS = [f"user-{number}" for number in range(100)]


async def test_requests_are_split_by_weight(router, engines):
    """Six standard deviations around 30 % of 300 requests: one run in 500 million may stray."""
    envoy = await router(a_split("v1", 3_000, await engines("stable"), await engines("canary")))

    answers = [await envoy.ask() for _ in range(REQUESTS)]

    deviation = (REQUESTS * 0.3 * 0.7) ** 0.5
    assert abs(answers.count("canary") - REQUESTS * 0.3) <= 6 * deviation


async def test_engines_that_start_do_not_shrink_a_share(router, engines):
    """One of four is ready: it gets the whole share, not what an average engine would."""
    stable, canary = await engines("stable"), await engines("canary")
    starting = [Endpoint(f"127.0.0.1:{port}", ready=False) for port in (2, 3, 4)]
    tracks = (a_track("stable", 0, stable), a_track("canary", 10_000, canary, *starting))
    envoy = await router(Traffic("v1", stable="stable", tracks=tracks))

    assert {"canary"} == {await envoy.ask() for _ in range(40)}


@pytest.mark.parametrize("per_engine", [None])
async def test_what_is_over_the_capacity_is_refused_at_once(router, engines):
    """One runs, one waits, and the third is told so instead of waiting without end."""
    stable = await engines("stable")
    small = replace(a_track("stable", 10_000, stable), capacity=Capacity(requests=1, queued=1))
    envoy = await router(Traffic("v1", stable="stable", tracks=(small,)))

    async def ask() -> int:
        async with envoy.client.get(f"{envoy.url}/prefill") as answer:
            return answer.status

    async def one_runs() -> bool:
        return stable.prefilling == 1

    running = asyncio.ensure_future(ask())
    await until(one_runs, "a running request")
    others = [asyncio.ensure_future(ask()) for _ in range(2)]
    (refused,), _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    assert 503 == refused.result()
    stable.go_on.set()

    assert [200, 200, 503] == sorted(await asyncio.gather(running, *others))


async def test_a_client_may_choose_its_track_where_that_is_allowed(router, engines):
    """A track without a weight can be tried, and engines never see the header."""
    stable, canary = await engines("stable"), await engines("canary")
    envoy = await router(replace(a_split("v1", 0, stable, canary), track_header=True))

    answers = {await envoy.ask(**{"x-llm-track": "canary"}) for _ in range(5)}

    assert {"canary"} == answers
    assert "stable" == await envoy.ask()
    assert "stable" == await envoy.ask(**{"x-llm-track": "no-such"})
    assert not {"x-llm-track"} & {key.lower() for seen in canary.headers for key in seen}


async def test_a_client_may_not_choose_its_track_otherwise(router, engines):
    """The header has no effect and goes no further."""
    stable = await engines("stable")
    envoy = await router(a_split("v1", 0, stable, await engines("canary")))

    answers = {await envoy.ask(**{"x-llm-track": "canary"}) for _ in range(5)}

    assert {"stable"} == answers
    assert not {"x-llm-track"} & {key.lower() for seen in stable.headers for key in seen}


async def test_a_client_cannot_steer_envoy(router, engines):
    """Time limits, retries and whatever else a client's x-envoy-* headers ask for are dropped."""
    stable = await engines("stable")
    envoy = await router(a_split("v1", 0, stable, await engines("canary")))
    orders = {"x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-max-retries": "9", "x-envoy-any": "1"}

    await envoy.ask(**orders)

    assert 0 == await envoy.counter("cluster.track-stable.internal.upstream_rq_200")
    assert not orders.keys() & {key.lower() for seen in stable.headers for key in seen}


async def test_a_session_never_returns_from_the_canary(router, engines):
    """As the weight rises, the canary's users only grow: those of before are among them."""
    stable, canary = await engines("stable"), await engines("canary")
    traffic = replace(a_split("v0", 0, stable, canary), affinity=Affinity(header="x-user"))
    envoy = await router(traffic)
    before: set[str] = set()

    for weight in (500, 2_000, 5_000):
        split = a_split(f"v{weight}", weight, stable, canary)
        assert Acknowledged(split.version) == await envoy.files.apply(
            replace(traffic, version=split.version, tracks=split.tracks)
        )
        on_canary = {user for user in USERS if await envoy.ask(**{"x-user": user}) == "canary"}

        assert before <= on_canary
        assert {user for user in USERS if xxhash64(user.encode()) % 10_000 < weight} == on_canary
        before = on_canary


async def test_a_session_can_be_named_by_a_cookie(router, engines):
    """The application's cookie decides, request after request."""
    traffic = a_split("v1", 5_000, await engines("stable"), await engines("canary"))
    envoy = await router(replace(traffic, affinity=Affinity(cookie="session")))

    for user in USERS[:10]:
        wanted = "canary" if xxhash64(user.encode()) % 10_000 < 5_000 else "stable"
        assert {wanted} == {await envoy.ask(Cookie=f"session={user}") for _ in range(3)}


async def test_without_its_header_a_request_goes_by_the_weights(router, engines):
    """Affinity asks nothing of clients that have no session."""
    traffic = a_split("v1", 5_000, await engines("stable"), await engines("canary"))
    envoy = await router(replace(traffic, affinity=Affinity(header="x-user")))

    assert {"stable", "canary"} == {await envoy.ask() for _ in range(40)}


async def test_a_body_over_the_limit_is_refused(router, engines):
    """413 from the router; up to the limit the engine answers."""
    traffic = a_split("v1", 0, await engines("stable"), await engines("canary"))
    envoy = await router(replace(traffic, limits=Limits(body_bytes=2_048)))

    statuses = []
    for size in (2_048, 2_049):
        async with envoy.client.post(envoy.url, data=b"x" * size) as answer:
            statuses.append(answer.status)

    assert [200, 413] == statuses
