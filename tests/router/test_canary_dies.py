"""A canary that fails costs no request, and its failures are counted."""

import asyncio
import io
from dataclasses import replace

from llmservice.adapters.route_files import Acknowledged
from llmservice.core.router.desired import Affinity, Traffic
from tests.router.engine import a_split, a_track, until
from tests.router.xxhash64 import xxhash64

REQUESTS = 60
AT_ONCE = 10


async def _ask_many(envoy) -> list[str]:
    """Sixty requests, ten at a time; an exception for any that fails."""
    answers = []
    for _ in range(REQUESTS // AT_ONCE):
        answers += await asyncio.gather(*(envoy.ask() for _ in range(AT_ONCE)))
    return answers


async def _failures(envoy, track: str) -> int:
    """As the agent reports them."""
    tracks = await envoy.admin.tracks()
    return tracks[track].failed if track in tracks else 0


async def test_a_canary_that_is_gone_costs_no_request(router, engines):
    """Half of the traffic is its share when its port closes."""
    stable, canary = await engines("stable"), await engines("canary")
    traffic = a_split("v1", 5_000, stable, canary)
    envoy = await router(traffic)
    assert {"stable", "canary"} == set(await _ask_many(envoy))

    await canary.stop()

    assert {"stable"} == set(await _ask_many(envoy))
    assert await _failures(envoy, "canary") > 0
    assert await _failures(envoy, "stable") == 0


async def test_a_canary_that_answers_503_costs_no_request(router, engines):
    """Every refusal is counted as the canary's, and stable answers."""
    stable, canary = await engines("stable"), await engines("canary")
    canary.status = 503
    traffic = a_split("v1", 5_000, stable, canary)
    envoy = await router(traffic)

    assert {"stable"} == set(await _ask_many(envoy))
    assert len(canary.headers) == await _failures(envoy, "canary") > 0


async def test_other_errors_are_the_clients_to_see(router, engines):
    """A 500 may be the request's own fault: it is not tried on every engine in turn."""
    stable, canary = await engines("stable"), await engines("canary")
    canary.status = 500
    traffic = a_split("v1", 10_000, stable, canary)
    envoy = await router(traffic)

    async with envoy.client.get(envoy.url) as answer:
        assert answer.status == 500
    assert (1, 0) == (len(canary.headers), len(stable.headers))
    assert 1 == await _failures(envoy, "canary")


async def test_a_crash_in_the_prefill_costs_no_request(router, engines):
    """Before the first byte of an answer another engine can begin anew."""
    stable, canary = await engines("stable"), await engines("canary")
    stable.go_on.set()
    traffic = a_split("v1", 10_000, stable, canary)
    envoy = await router(traffic)
    url = f"{envoy.url}/prefill"
    asked = [asyncio.ensure_future(envoy.client.get(url)) for _ in range(AT_ONCE)]

    async def all_prefill() -> bool:
        return canary.prefilling == AT_ONCE

    await until(all_prefill, "prefills")
    await canary.stop()

    answers = await asyncio.gather(*asked)
    assert {200} == {answer.status for answer in answers}
    assert [{"track": "stable"}] * AT_ONCE == [await answer.json() for answer in answers]
    assert AT_ONCE == await _failures(envoy, "canary")


async def test_a_long_prompt_is_tried_again_too(router, engines):
    """Envoy's own buffers are smaller, and what does not fit is not tried again."""
    stable, canary = await engines("stable"), await engines("canary")
    canary.status = 503
    envoy = await router(a_split("v1", 10_000, stable, canary))

    async with envoy.client.post(envoy.url, data=io.BytesIO(b"x" * (7 << 20))) as answer:
        assert {"track": "stable"} == await answer.json()
    assert canary.headers


async def test_a_canary_without_engines_costs_no_request(router, engines):
    """Its endpoints are empty or not ready: a fact that must reach Envoy, weight or not."""
    stable, canary = await engines("stable"), await engines("canary")
    traffic = a_split("v1", 5_000, stable, canary)
    envoy = await router(traffic)
    not_ready = replace(canary.endpoint, ready=False)

    for version, left in (("v2", [not_ready]), ("v3", [])):
        tracks = (traffic.tracks[0], a_track("canary", 5_000, *left))
        changed = replace(traffic, version=version, tracks=tracks)
        assert Acknowledged(version) == await envoy.files.apply(changed)
        canary.headers.clear()

        assert {"stable"} == set(await _ask_many(envoy))
        assert not canary.headers


async def test_a_share_of_stable_never_falls_on_the_canary(router, engines):
    """Without a ready engine of stable its share gets 503, though the canary serves."""
    stable, canary = await engines("stable"), await engines("canary")
    down = replace(stable.endpoint, ready=False)
    tracks = (a_track("stable", 5_000, down), a_track("canary", 5_000, canary))
    traffic = Traffic("v1", stable="stable", tracks=tracks, affinity=Affinity(header="x-user"))
    envoy = await router(traffic)
    users = [f"user-{number}" for number in range(20)]
    of_stable = [user for user in users if xxhash64(user.encode()) % 10_000 >= 5_000]

    for user in of_stable:
        async with envoy.client.get(envoy.url, headers={"x-user": user}) as answer:
            assert answer.status == 503
    assert of_stable
    assert not canary.headers
