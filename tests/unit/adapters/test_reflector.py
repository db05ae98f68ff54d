"""The reflector: whatever happens to the watch, the store ends equal to the cluster."""

import asyncio

from llmservice.adapters.ports import Forbidden, Unavailable, WatchEvent
from llmservice.adapters.reflector import Reflector
from llmservice.adapters.resources import DEPLOYMENT
from llmservice.adapters.store import Change, Store, Touched
from llmservice.core.observed import ServiceKey
from tests.unit.adapters.fake_cluster import FakeCluster, gone
from tests.unit.handlers.fake_time import in_fake_time, now

KEY = ServiceKey("team", "mistral")


def a_child(name="mistral-a", **status):
    return {
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": "team",
            "ownerReferences": [
                {"kind": "LLMService", "name": "mistral", "uid": "s", "controller": True}
            ],
        },
        "status": status,
    }


class Running:
    """A reflector at work on a fake cluster."""

    def __init__(self, cluster, namespace=None):
        self.cluster = cluster
        self.store = Store()
        self.touched: list[Touched] = []
        self.reflector = Reflector(
            cluster, DEPLOYMENT, namespace, sink=self.store, touched=self.touched.append
        )

    async def __aenter__(self):
        self.task = asyncio.create_task(self.reflector.run())
        await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_):
        assert not self.task.done()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def names(self):
        return {place.name for place in self.store._owners}


@in_fake_time
async def test_list_in_chunks_then_watch():
    """All pages are read before it counts as synced; events follow."""
    cluster = FakeCluster()
    cluster.page_size = 2
    for number in range(5):
        cluster.put(a_child(f"mistral-{number}"))
    async with Running(cluster) as running:
        assert running.reflector.synced.is_set()
        assert 5 == len(running.names())
        assert 3 == cluster.calls["list", "Deployment"]

        cluster.put(a_child("mistral-5"))
        cluster.drop(a_child("mistral-0"))
        await asyncio.sleep(0.01)

        assert {f"mistral-{number}" for number in range(1, 6)} == running.names()


@in_fake_time
async def test_expired_watch_lists_again_and_reports_what_is_gone():
    """A deletion during the gap makes no event; the list's difference does."""
    cluster = FakeCluster()
    cluster.put(a_child("mistral-a"))
    cluster.put(a_child("mistral-b"))
    async with Running(cluster) as running:
        running.touched.clear()
        cluster.drop(a_child("mistral-a"), silent=True)
        cluster.put(a_child("mistral-c"), silent=True)
        cluster.send(gone())
        await asyncio.sleep(1)

        assert {"mistral-b", "mistral-c"} == running.names()
        assert {Touched(KEY, Change.Shape), Touched(KEY, Change.Facts)} == set(running.touched)
        assert 2 == cluster.calls["list", "Deployment"]


@in_fake_time
async def test_watch_that_ends_goes_on_from_where_it_was():
    """No new list for a renewal, nor for a broken connection."""
    cluster = FakeCluster()
    async with Running(cluster) as running:
        for end in (None, Unavailable("connection reset")):
            cluster.send(end)
            await asyncio.sleep(2)
        cluster.put(a_child())
        await asyncio.sleep(0.01)

        assert {"mistral-a"} == running.names()
        assert 1 == cluster.calls["list", "Deployment"]
        assert 3 == cluster.calls["watch", "Deployment"]


@in_fake_time
async def test_watch_that_ends_at_once_does_not_spin():
    """A broken proxy gets ten requests a second at most."""
    cluster = FakeCluster()
    async with Running(cluster):
        for _ in range(100):
            cluster.send(None)
            await asyncio.sleep(0.1)

        assert cluster.calls["watch", "Deployment"] <= 101


@in_fake_time
async def test_bookmarks_keep_the_version_young_and_the_watch_alive():
    """They carry no object of ours."""
    cluster = FakeCluster()
    async with Running(cluster) as running:
        running.touched.clear()
        await asyncio.sleep(60)
        cluster.send(WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "777"}}))
        await asyncio.sleep(1)

        assert "777" == running.reflector._version
        assert 1 >= now() - running.reflector.last_event
        assert [] == running.touched


@in_fake_time
async def test_api_server_that_is_away_is_asked_ever_less_often():
    """Half a second at first, ten seconds at most; it recovers by itself."""
    cluster = FakeCluster()
    cluster.away = Unavailable("connection refused")
    async with Running(cluster) as running:
        await asyncio.sleep(120)

        assert not running.reflector.synced.is_set()
        assert 12 <= cluster.calls["list", "Deployment"] <= 30

        cluster.away = None
        await asyncio.wait_for(running.reflector.synced.wait(), 11)


@in_fake_time
async def test_missing_right_is_no_reason_to_end():
    """It is said in the log, and tried again: a Role can be mended."""
    cluster = FakeCluster()
    cluster.failures["list", "Deployment"] = [Forbidden("no")] * 3
    async with Running(cluster) as running:
        await asyncio.wait_for(running.reflector.synced.wait(), 30)


@in_fake_time
async def test_token_that_expires_between_pages_starts_the_list_anew():
    """A list that took too long is no error."""
    cluster = FakeCluster()
    cluster.page_size = 1
    cluster.put(a_child("mistral-a"))
    cluster.put(a_child("mistral-b"))
    cluster.failures["list", "Deployment"] = []
    running = Running(cluster)
    list_page = cluster.list_page

    async def expire_once(*args, **kwargs):
        if kwargs["continue_token"] and not cluster.calls["expired", ""]:
            cluster.calls["expired", ""] += 1
            raise gone()
        return await list_page(*args, **kwargs)

    cluster.list_page = expire_once
    async with running:
        assert running.reflector.synced.is_set()
        assert {"mistral-a", "mistral-b"} == running.names()
