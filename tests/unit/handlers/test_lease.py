"""Leader election: at most one writes, whatever the API server does."""

import asyncio
import random

import pytest

from llmservice.adapters.ports import Unavailable
from llmservice.handlers.lease import LeaseElector, LeaseLost, LeaseSettings
from tests.unit.adapters.fake_cluster import FakeCluster
from tests.unit.handlers.fake_time import in_fake_time, now

PLACE = ("Lease", "system", "operator")


def an_elector(cluster, identity="one"):
    return LeaseElector(cluster, LeaseSettings("system", "operator", identity))


def holder(cluster):
    return cluster.objects[PLACE]["spec"]["holderIdentity"]


async def leading(cluster, identity="one"):
    elector = an_elector(cluster, identity)
    await elector.acquire()
    return elector, asyncio.create_task(elector.hold())


async def stop(*tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@in_fake_time
async def test_first_instance_creates_the_lease_and_leads():
    """An empty cluster needs no preparation."""
    cluster = FakeCluster()
    elector = an_elector(cluster)

    assert not elector.leading
    await elector.acquire()

    assert elector.leading
    assert "one" == holder(cluster)
    assert 15 == cluster.objects[PLACE]["spec"]["leaseDurationSeconds"]


@in_fake_time
async def test_second_instance_waits_while_the_lease_is_renewed():
    """However long the first one leads."""
    cluster = FakeCluster()
    first, renewing = await leading(cluster)
    waiting = asyncio.create_task(an_elector(cluster, "two").acquire())
    await asyncio.sleep(600)

    assert first.leading
    assert not waiting.done()
    await stop(waiting, renewing)


@in_fake_time
async def test_released_lease_is_taken_within_one_retry():
    """A rolling update of the operator leaves a gap of seconds."""
    cluster = FakeCluster()
    first, renewing = await leading(cluster)
    waiting = asyncio.create_task(an_elector(cluster, "two").acquire())
    await asyncio.sleep(5)
    await stop(renewing)
    await first.release()
    released = now()
    await waiting

    assert not first.leading
    assert "two" == holder(cluster)
    assert now() - released < 2.5
    assert 1 == cluster.objects[PLACE]["spec"]["leaseTransitions"]


@in_fake_time
async def test_lease_of_a_dead_leader_is_taken_after_its_duration():
    """No sooner than 15 s after the follower last saw it change."""
    cluster = FakeCluster()
    _, renewing = await leading(cluster)
    await stop(renewing)
    died = now()
    await an_elector(cluster, "two").acquire()

    assert 15 <= now() - died < 18


@in_fake_time
async def test_follower_ignores_the_times_written_in_the_lease():
    """A clock that is an hour off neither steals nor starves."""
    cluster = FakeCluster()
    _, renewing = await leading(cluster)
    cluster.objects[PLACE]["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    waiting = asyncio.create_task(an_elector(cluster, "two").acquire())
    await asyncio.sleep(120)

    assert not waiting.done()
    await stop(waiting, renewing)


@in_fake_time
async def test_writes_stop_before_another_can_lead():
    """While the API server is away: no write after 10 s, the lease ends at 15 s."""
    cluster = FakeCluster()
    elector, renewing = await leading(cluster)
    cluster.away = Unavailable("connection refused")
    renewed = now()
    while elector.leading:
        assert elector.seconds_left() > 0
        await asyncio.sleep(0.1)

    assert 8 <= now() - renewed <= 10.2
    assert 0 == elector.seconds_left()
    assert not renewing.done()
    await stop(renewing)


@in_fake_time
async def test_answer_that_never_comes_does_not_outlive_the_lease():
    """A black hole is no reason to go on leading, nor to hang."""
    cluster = FakeCluster()
    elector, renewing = await leading(cluster)
    cluster.hangs = True
    await asyncio.sleep(12)

    assert not elector.leading

    cluster.hangs = False
    await asyncio.sleep(8)

    assert elector.leading
    await stop(renewing)


@in_fake_time
async def test_leading_goes_on_when_nobody_took_over_meanwhile():
    """An API server that restarts costs no restart of ours."""
    cluster = FakeCluster()
    elector, renewing = await leading(cluster)
    cluster.away = Unavailable("connection refused")
    await asyncio.sleep(60)
    cluster.away = None
    await asyncio.sleep(5)

    assert elector.leading
    assert not renewing.done()
    await stop(renewing)


@in_fake_time
async def test_holder_ends_when_another_took_the_lease():
    """The loser learns it from the API server and says so."""
    cluster = FakeCluster()
    elector, renewing = await leading(cluster)
    lease = cluster.objects[PLACE]
    lease["spec"]["holderIdentity"] = "two"
    lease["metadata"]["resourceVersion"] = "999"

    with pytest.raises(LeaseLost, match="two"):
        await renewing
    assert not elector.leading
    assert 0 == elector.seconds_left()


@in_fake_time
async def test_lost_lease_is_not_released():
    """It is somebody else's by now."""
    cluster = FakeCluster()
    elector, renewing = await leading(cluster)
    cluster.objects[PLACE]["spec"]["holderIdentity"] = "two"
    cluster.objects[PLACE]["metadata"]["resourceVersion"] = "999"
    await asyncio.wait([renewing])
    await elector.release()

    assert "two" == holder(cluster)
    assert isinstance(renewing.exception(), LeaseLost)


@in_fake_time
async def test_deleted_lease_is_made_again():
    """Somebody who tidies up does no harm."""
    cluster = FakeCluster()
    elector, renewing = await leading(cluster)
    del cluster.objects[PLACE]
    await asyncio.sleep(5)

    assert elector.leading
    assert "one" == holder(cluster)
    await stop(renewing)


@in_fake_time
async def test_odd_lease_is_taken_over():
    """A lease without a spec belongs to nobody."""
    cluster = FakeCluster()
    cluster.put(
        {"kind": "Lease", "metadata": {"name": "operator", "namespace": "system"}}, silent=True
    )
    await an_elector(cluster).acquire()

    assert "one" == holder(cluster)


@pytest.mark.parametrize("seed", range(20))
def test_never_two_leaders(seed):
    """Whoever dies, hangs or returns: no instant at which two may write."""

    @in_fake_time
    async def scenario():
        chance = random.Random(seed)
        cluster = FakeCluster()
        electors = [an_elector(cluster, name) for name in ("one", "two", "three")]

        async def live(elector):
            while True:
                try:
                    await elector.acquire()
                    await elector.hold()
                except LeaseLost:
                    continue

        tasks = [asyncio.create_task(live(elector)) for elector in electors]
        led = set()
        for _ in range(3000):
            await asyncio.sleep(0.1)
            writers = [elector for elector in electors if elector.leading]
            led.update(writers)
            assert len(writers) <= 1
            if chance.random() < 0.02:
                cluster.away = Unavailable("away") if cluster.away is None else None
            if chance.random() < 0.01:
                victim = chance.randrange(3)
                await stop(tasks[victim])
                tasks[victim] = asyncio.create_task(live(electors[victim]))
        assert led
        await stop(*tasks)

    scenario()
