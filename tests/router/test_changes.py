"""New versions: acknowledged or refused, without a cut stream or a lost request."""

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace

from llmservice.adapters.route_files import (
    Acknowledged,
    EnvoyAdmin,
    Rejected,
    RouteFiles,
    Unconfirmed,
)
from llmservice.core.router.desired import Capacity, Traffic
from llmservice.core.router.envoy import CLUSTERS, ROUTES, RUNTIME
from llmservice.core.router.order import plan_steps
from tests.router.conftest import gated
from tests.router.engine import Stream, a_split, a_track


@asynccontextmanager
async def steady_traffic(envoy):
    """One request after another during the block; an exception if one fails."""
    done = asyncio.Event()
    answers: list[str] = []

    async def ask() -> None:
        while not done.is_set():
            answers.append(await envoy.ask())
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        yield answers
        done.set()
    assert answers


async def test_streams_outlive_every_change(router, engines, record_testsuite_property):
    """Weights, capacities and endpoints change under eight streams; all read to their end."""
    stable, canary = await engines("stable"), await engines("canary")
    envoy = await router(a_split("v1", 5_000, stable, canary))
    streams = [await Stream.open(envoy.client, envoy.url) for _ in range(8)]

    async with steady_traffic(envoy):
        start = time.monotonic()
        assert Acknowledged("v2") == await envoy.files.apply(a_split("v2", 10_000, stable, canary))
        while await envoy.ask() != "canary":
            pass
        record_testsuite_property("router_seconds_to_traffic", time.monotonic() - start)
        for version, left in (("v2a", [replace(stable.endpoint, ready=False)]), ("v2b", [])):
            tracks = (a_track("stable", 0, *left), a_track("canary", 10_000, canary))
            without = Traffic(version, stable="stable", tracks=tracks)
            assert Acknowledged(version) == await envoy.files.apply(without)
        larger = tuple(
            replace(track, capacity=Capacity(requests=99, queued=9))
            for track in a_split("v3", 2_000, stable, canary).tracks
        )
        changed = Traffic("v3", stable="stable", tracks=larger)
        assert Acknowledged("v3") == await envoy.files.apply(changed)
        promoted = Traffic("v4", stable="canary", tracks=(a_track("canary", 10_000, canary),))
        assert Acknowledged("v4") == await envoy.files.apply(promoted)

    assert 8 == stable.streaming + canary.streaming
    stable.go_on.set()
    canary.go_on.set()
    assert all([(await stream.rest()).endswith("data: [DONE]\n\n") for stream in streams])


async def test_a_third_version_takes_over_without_a_lost_request(router, engines):
    """Clusters come before the routes that name them, and go after."""
    stable, second, third = [await engines(name) for name in ("stable", "second", "third")]
    engine_of = {"stable": stable, "second": second, "third": third}

    def traffic(version: str, main: str, **weights: int) -> Traffic:
        tracks = tuple(a_track(name, weights[name], engine_of[name]) for name in weights)
        return Traffic(version, stable=main, tracks=tracks)

    envoy = await router(traffic("v1", "stable", stable=5_000, second=5_000))
    async with steady_traffic(envoy) as answers:
        for next_one in (
            traffic("v2", "stable", stable=5_000, second=0, third=5_000),
            traffic("v3", "stable", stable=0, third=10_000),
            traffic("v4", "third", stable=0, third=10_000),
            traffic("v5", "third", third=10_000),
        ):
            assert Acknowledged(next_one.version) == await envoy.files.apply(next_one)
            answers.append(await envoy.ask())

    assert "third" == answers[-1]
    left = (await envoy.admin.active_clusters()).keys()
    assert {"track-third"} == left - {"gate-third"}
    assert ["eds-third.json"] == [file.name for file in envoy.folder.glob("eds-*")]


async def test_the_version_in_force_can_be_read(router, engines):
    """Envoy itself says by which version it routes."""
    stable, canary = await engines("stable"), await engines("canary")
    envoy = await router(a_split("v1", 500, stable, canary))
    assert "v1" == await envoy.admin.acknowledged_version()

    assert Acknowledged("v2") == await envoy.files.apply(a_split("v2", 500, stable, canary))
    assert "v2" == await envoy.admin.acknowledged_version()


async def test_a_refused_update_keeps_what_was(router, engines):
    """All weights zero got past every check: Envoy refuses, says so, and goes on; then recovers."""
    stable, canary = await engines("stable"), await engines("canary")
    good = a_split("v1", 0, stable, canary)
    envoy = await router(good)
    bad = replace(good, version="v2", tracks=tuple(replace(t, weight=0) for t in good.tracks))

    for _again in range(2):
        outcome = await envoy.files.apply(bad)
        assert Rejected("v2", ("http.ingress.rds.routes.update_rejected",)) == outcome
    assert "v1" == await envoy.admin.acknowledged_version()
    assert "stable" == await envoy.ask()

    assert Acknowledged("v3") == await envoy.files.apply(replace(good, version="v3"))


async def test_refused_clusters_hold_back_the_routes(router, engines):
    """Routes to clusters that Envoy did not take would answer 503 to their share."""
    stable, canary = await engines("stable"), await engines("canary")
    alone = Traffic("v1", stable="stable", tracks=(a_track("stable", 10_000, stable),))
    envoy = await router(alone)
    broken = replace(a_track("canary", 5_000, canary), capacity=Capacity(-1, 1))
    bad = replace(alone, version="v2", tracks=(a_track("stable", 5_000, stable), broken))

    for _again in range(2):
        outcome = await envoy.files.apply(bad)
        assert isinstance(outcome, Rejected)
        assert any(name.startswith("cluster_manager.cds.") for name in outcome.counters)
        assert {"stable"} == {await envoy.ask() for _ in range(20)}


async def test_a_refused_change_of_a_cluster_is_noticed(router, engines):
    """It is there by name, with its old capacity; to call that taken would be wrong."""
    stable, canary = await engines("stable"), await engines("canary")
    good = a_split("v1", 500, stable, canary)
    envoy = await router(good)
    broken = tuple(replace(track, capacity=Capacity(-1, 1)) for track in good.tracks)

    outcome = await envoy.files.apply(replace(good, version="v2", tracks=broken))

    assert isinstance(outcome, Rejected)
    assert "v1" == await envoy.admin.acknowledged_version()


async def test_a_damaged_file_is_mended(router, engines):
    """Half a file, by whoever's hand, changes nothing in Envoy and goes with the next version."""
    stable, canary = await engines("stable"), await engines("canary")
    envoy = await router(a_split("v1", 0, stable, canary))
    for name in (ROUTES, CLUSTERS):
        damaged = envoy.folder / "damaged"
        damaged.write_text('{"resources": [{')
        damaged.rename(envoy.folder / name)

    assert "stable" == await envoy.ask()
    assert Acknowledged("v2") == await envoy.files.apply(a_split("v2", 10_000, stable, canary))
    assert "canary" == await envoy.ask()


async def test_a_new_writer_takes_over_where_the_last_one_stopped(router, engines):
    """Killed after any step, the next writer ends at the same files, and no request is lost."""
    stable, canary = await engines("stable"), await engines("canary")
    alone = Traffic("v1", stable="stable", tracks=(a_track("stable", 10_000, stable),))
    split = a_split("v2", 10_000, stable, canary)
    envoy = await router(alone)
    async with steady_traffic(envoy):
        steps = plan_steps(split, str(envoy.folder), envoy.files._read())
        envoy.files._replace(steps[0].files)

        successor = RouteFiles(envoy.folder, envoy.admin)
        assert Acknowledged("v2") == await successor.apply(split)
    assert "canary" == await envoy.ask()


async def test_a_writer_that_comes_back_writes_nothing(router, engines, per_engine):
    """What Envoy has taken is left alone."""
    stable, canary = await engines("stable"), await engines("canary")
    traffic = gated(a_split("v1", 500, stable, canary), per_engine)
    envoy = await router(traffic)

    def inodes() -> dict[str, int]:
        return {file.name: file.stat().st_ino for file in envoy.folder.iterdir()}

    before = inodes()
    assert Acknowledged("v1") == await RouteFiles(envoy.folder, envoy.admin).apply(traffic)
    assert before == inodes()


async def test_only_what_changed_is_written(router, engines):
    """New endpoints of one track leave the files of the other and the clusters alone."""
    stable, canary = await engines("stable"), await engines("canary")
    traffic = a_split("v1", 500, stable, canary)
    envoy = await router(traffic)

    def inodes() -> set[tuple[str, int]]:
        return {(file.name, file.stat().st_ino) for file in envoy.folder.iterdir()}

    before = inodes()
    more = a_track("canary", 500, canary, await engines("canary"))
    await envoy.files.apply(replace(traffic, version="v2", tracks=(traffic.tracks[0], more)))

    assert {"eds-canary.json", RUNTIME, ROUTES} == {name for name, _ in inodes() - before}


async def test_envoy_comes_back_with_what_was_last_known(router, engines):
    """A restart needs neither writer nor operator."""
    stable, canary = await engines("stable"), await engines("canary")
    envoy = await router(a_split("v1", 0, stable, canary))
    await envoy.files.apply(a_split("v2", 10_000, stable, canary))

    await envoy.stop_envoy()
    await envoy.start_envoy()

    assert "v2" == await envoy.admin.acknowledged_version()
    assert "canary" == await envoy.ask()


async def test_what_is_written_while_envoy_is_away_is_not_called_taken(router, engines):
    """The files wait for Envoy, and the writer says that nobody confirmed them."""
    stable, canary = await engines("stable"), await engines("canary")
    envoy = await router(a_split("v1", 0, stable, canary))
    await envoy.stop_envoy()
    away = EnvoyAdmin(envoy.admin_port)

    outcome = await RouteFiles(envoy.folder, away).apply(a_split("v2", 10_000, stable, canary))
    await away.close()
    await envoy.start_envoy()

    assert isinstance(outcome, Unconfirmed)
    assert "canary" == await envoy.ask()
