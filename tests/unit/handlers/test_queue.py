"""The work queue: what client-go's promises, and lanes."""

import asyncio

import pytest

from llmservice.core.observed import ServiceKey
from llmservice.handlers.queue import Backoff, Lane, WorkQueue
from tests.unit.handlers.fake_time import in_fake_time, now

A, B, C = (ServiceKey("default", name) for name in "abc")


def a_queue(backoff=None):
    return WorkQueue(backoff, jitter=lambda: 1.0)


async def take(queue, worst=Lane.Background):
    async with asyncio.timeout(1):
        return await queue.get(worst)


async def is_idle(queue):
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    idle = not getting.done()
    getting.cancel()
    return idle


@in_fake_time
async def test_key_added_twice_is_done_once():
    """Edges are merged: the level is looked at once."""
    queue = a_queue()
    queue.add(A)
    queue.add(A)

    assert A == await take(queue)
    queue.done(A)

    assert await is_idle(queue)


@in_fake_time
async def test_key_added_while_in_hand_is_done_again_afterwards():
    """No two workers hold one key, and no edge is lost."""
    queue = a_queue()
    queue.add(A)
    await take(queue)
    queue.add(A)

    assert await is_idle(queue)

    queue.done(A)

    assert A == await take(queue)


@in_fake_time
async def test_keys_come_in_the_order_they_were_added():
    """Within a lane nobody overtakes."""
    queue = a_queue()
    for key in (C, A, B):
        queue.add(key)

    assert [C, A, B] == [await take(queue) for _ in range(3)]


@in_fake_time
async def test_urgent_key_overtakes_a_thousand():
    """A person's edit does not wait behind a bulk creation."""
    queue = a_queue()
    for number in range(1000):
        queue.add(ServiceKey("bulk", str(number)))
    queue.add(A, Lane.Urgent)

    assert A == await take(queue)


@in_fake_time
async def test_adding_more_urgently_moves_forward_and_never_back():
    """A waiting key keeps its best lane."""
    queue = a_queue()
    queue.add(A)
    queue.add(B)
    queue.add(B, Lane.Urgent)
    queue.add(B, Lane.Background)

    assert [B, A] == [await take(queue), await take(queue)]
    queue.done(B)
    assert await is_idle(queue)


@in_fake_time
async def test_lower_lanes_are_not_starved():
    """A steady stream of urgent keys leaves every eighth turn to the others."""
    queue = a_queue()
    queue.add(A, Lane.Background)
    taken = []
    for _ in range(8):
        queue.add(B, Lane.Urgent)
        key = await take(queue)
        taken.append(key)
        queue.done(key)

    assert A in taken


@in_fake_time
async def test_worker_for_urgent_keys_takes_nothing_else():
    """There is always a hand free for an edit."""
    queue = a_queue()
    waiting = asyncio.create_task(queue.get(Lane.Urgent))
    await asyncio.sleep(0)
    queue.add(A)
    await asyncio.sleep(0)

    assert not waiting.done()

    queue.add(B, Lane.Urgent)

    assert B == await waiting


@in_fake_time
async def test_delayed_key_comes_when_it_is_due():
    """Not before, and not much later."""
    queue = a_queue()
    started = now()
    queue.add_after(A, 30)

    assert A == await queue.get()
    assert 30 == pytest.approx(now() - started)


@in_fake_time
async def test_earlier_delay_wins():
    """A later wish does not put off an earlier one, and an earlier one replaces a later one."""
    queue = a_queue()
    started = now()
    queue.add_after(A, 30)
    queue.add_after(A, 60)
    queue.add_after(A, 10)

    assert A == await queue.get()
    assert 10 == pytest.approx(now() - started)
    queue.done(A)
    await asyncio.sleep(100)
    assert await is_idle(queue)


@in_fake_time
async def test_failures_back_off_to_five_minutes():
    """0.5 s, doubled each time, never more than 300 s."""
    queue = a_queue()
    pauses = [queue.retry(A) for _ in range(12)]

    assert [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] == pauses


@in_fake_time
async def test_success_resets_the_back_off():
    """The next failure starts small again."""
    queue = a_queue()
    for _ in range(5):
        queue.retry(A)
    queue.succeed(A)

    assert 0.5 == queue.retry(A)


@in_fake_time
async def test_retry_waits_as_long_as_the_server_asked():
    """Retry-After is a minimum."""
    queue = a_queue()

    assert 7 == queue.retry(A, at_least_seconds=7)


@in_fake_time
async def test_all_failures_together_are_limited():
    """A thousand failing services do not storm an API server that struggles."""
    queue = a_queue(Backoff(rate=10, burst=100))
    pauses = [queue.retry(ServiceKey("bulk", str(number))) for number in range(1000)]

    assert 0.5 == pauses[0]
    assert 90 == pytest.approx(pauses[-1])


@in_fake_time
async def test_forgotten_key_does_not_come_back():
    """What was planned for a deleted service is dropped."""
    queue = a_queue()
    queue.retry(A)
    queue.forget(A)
    await asyncio.sleep(10)

    assert await is_idle(queue)


@in_fake_time
async def test_closed_queue_lets_workers_go():
    """Waiting workers end, and nothing more is handed out."""
    queue = a_queue()
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.close()

    assert [None, None, None] == await asyncio.gather(*workers)
    queue.add(A)
    assert await queue.get() is None


@in_fake_time
async def test_depth_and_age_tell_how_far_behind_we_are():
    """Keys in hand do not count as waiting, keys not yet due neither."""
    queue = a_queue()
    queue.add(A)
    queue.add(B)
    queue.add_after(C, 60)
    await asyncio.sleep(5)
    await take(queue)

    assert 1 == len(queue)
    assert 5 == pytest.approx(queue.oldest_age_seconds())


@in_fake_time
async def test_many_workers_do_every_key_once():
    """A thousand keys, eight workers: all done, none twice at a time."""
    queue = a_queue()
    keys = [ServiceKey("bulk", str(number)) for number in range(1000)]
    done, in_hand = [], set()

    async def work():
        while (key := await queue.get()) is not None:
            assert key not in in_hand
            in_hand.add(key)
            await asyncio.sleep(0.01)
            in_hand.remove(key)
            done.append(key)
            queue.done(key)
            if len(done) == len(keys):
                queue.close()

    for key in keys:
        queue.add(key)
    await asyncio.gather(*(work() for _ in range(8)))

    assert sorted(keys, key=str) == sorted(done, key=str)
