"""Leaders die, hang, and come back: one at a time writes, and the next one finishes the work."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from llmservice.adapters.ports import Conflict
from llmservice.adapters.resources import CHILDREN, LEASE
from tests.bench.audit import BACKGROUND, Category, count
from tests.contract.conftest import CLUSTER_WIDE_USER, PLAIN_KINDS

LEASE_NAME = "llmservice-operator"
MANY = 20


async def holder(kube):
    lease = await kube.get(LEASE, LEASE_NAME)
    return lease and lease["spec"].get("holderIdentity")


async def until_led_by(kube, identity, seconds=40):
    async def led():
        return await holder(kube) == identity

    await kube.eventually(led, f"{identity} to lead", seconds)


async def exit_code(process, seconds=30):
    return await asyncio.to_thread(process.process.wait, seconds)


async def create_many(kube):
    for number in range(MANY):
        await kube.create_service(f"mistral-{number}")


async def until_some_children_exist(kube, some):
    async def exist():
        return len(await kube.list(CHILDREN["Deployment"])) >= some

    await kube.eventually(exist, f"{some} Deployments", 30)


async def all_complete(kube):
    """All serve, and each has every kind of child once per revision."""
    for number in range(MANY):
        await kube.until_ready(f"mistral-{number}", seconds=60)
    for number in range(MANY):
        kinds = [name.split("/")[0] for name in await kube.children(f"mistral-{number}")]
        assert sorted([*PLAIN_KINDS, "Service"]) == sorted(kinds)


async def test_leader_killed_in_the_middle_of_its_work(kube, spawn_operator):
    """The next one converges; nothing is doubled or lost."""
    first = spawn_operator(identity="first")
    await until_led_by(kube, "first")
    await create_many(kube)
    await until_some_children_exist(kube, 3)
    first.process.kill()
    spawn_operator(identity="second")
    await until_led_by(kube, "second")

    await all_complete(kube)


async def test_leader_told_to_stop_hands_over_at_once(kube, spawn_operator):
    """It finishes its writes, gives the lease back and ends with 0; the heir waits no 15 s."""
    first = spawn_operator(identity="first")
    await until_led_by(kube, "first")
    second = spawn_operator(identity="second")
    await create_many(kube)
    await until_some_children_exist(kube, 3)
    first.process.send_signal(signal.SIGTERM)
    follower = kube.follow()

    assert 0 == await exit_code(first, 15), first.log.read_text()
    await until_led_by(kube, "second", seconds=8)
    await all_complete(kube)
    assert [] == [request for request in follower.poll() if request.failed]

    second.process.send_signal(signal.SIGTERM)
    assert 0 == await exit_code(second, 15), second.log.read_text()
    assert "" == await holder(kube)


async def test_instance_that_waits_can_be_stopped(kube, spawn_operator, start_operator):
    """Standing by is no reason to hang on."""
    await start_operator(identity="leader")
    waiting = spawn_operator(identity="waiting")

    async def listens():
        lines = Path(f"/proc/{waiting.process.pid}/status").read_text().splitlines()
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
        return caught >> (signal.SIGTERM - 1) & 1

    await kube.eventually(listens, "it to listen to signals", 30)
    waiting.process.send_signal(signal.SIGTERM)

    assert 0 == await exit_code(waiting, 15), waiting.log.read_text()
    assert "leader" == await holder(kube)


async def test_frozen_leader_writes_nothing_when_it_wakes(
    kube, spawn_operator, start_operator, cluster_wide_kubeconfig
):
    """Its lease ran out while it slept; it finds out before it writes, and ends."""
    frozen = spawn_operator(identity="frozen", kubeconfig=cluster_wide_kubeconfig)
    await until_led_by(kube, "frozen")
    await kube.ready_service()
    os.kill(frozen.process.pid, signal.SIGSTOP)
    await start_operator(identity="heir")
    await kube.edit_service(engine={"maxNumSeqs": 128})
    await kube.until_ready()
    follower = kube.follow(CLUSTER_WIDE_USER)
    os.kill(frozen.process.pid, signal.SIGCONT)

    assert 1 == await exit_code(frozen), frozen.log.read_text()
    writes = [
        request
        for request in follower.poll()
        if request.category in (Category.Child, Category.Status, Category.Event)
    ]
    assert [] == writes
    assert "heir" == await holder(kube)


async def test_lost_lease_stops_all_writes(kube, start_operator):
    """Somebody else holds it: the operator ends, and edits are his business."""
    running = await start_operator(identity="loser")
    await kube.ready_service()

    async def stolen():
        lease = await kube.get(LEASE, LEASE_NAME)
        lease["spec"]["holderIdentity"] = "thief"
        try:
            await kube.cluster.replace(LEASE, kube.namespace, lease)
        except Conflict:
            return False
        return True

    await kube.eventually(stolen, "the lease to be taken")
    async with asyncio.timeout(10):
        assert 1 == await running.task
    follower = kube.follow()
    await kube.edit_service(engine={"maxNumSeqs": 128})
    await asyncio.sleep(2)

    # The end of its watches is noted late; requests of its own would be of the other kinds.
    assert set(count(follower.poll())) <= {Category.Watch}
    assert "thief" == await holder(kube)


async def test_two_that_believe_to_lead_converge(kube, start_operator):
    """The same snapshot gives the same decision, so they do not fight."""
    follower = kube.follow()
    await start_operator(identity="one", lease_name="one")
    await start_operator(identity="two", lease_name="two")
    await kube.ready_service()
    await kube.edit_service(engine={"maxNumSeqs": 128}, replicas=2)
    await kube.until_ready()
    await kube.until_quiet(follower)
    follower = kube.follow()
    await asyncio.sleep(5)  # silence is only seen over time

    counted = count(follower.poll())
    assert {} == {each: n for each, n in counted.items() if each not in BACKGROUND}


async def test_second_instance_stands_by_and_asks_for_nothing_but_the_lease(kube, start_operator):
    """A follower costs the API server one read every two seconds."""
    await start_operator(identity="leader")
    second = await start_operator(identity="second", wait=False)

    async def stands_by():
        port = second.operator.health.port
        return port and await second.ask("/readyz") == (200, "standing by\n")

    await kube.eventually(stands_by, "the second one to stand by")
    assert not second.operator.synced.is_set()
    assert 0 == second.operator.telemetry.registry.get_sample_value("llmservice_leader")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_is_ours_although_kopf_took_it(kube, spawn_operator, number):
    """Both signals end it in good order, kopf included."""
    operator = spawn_operator(identity="only")
    await until_led_by(kube, "only")
    await kube.ready_service()
    operator.process.send_signal(number)

    assert 0 == await exit_code(operator, 15), operator.log.read_text()
    assert "" == await holder(kube)
