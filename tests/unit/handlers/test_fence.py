"""No write leaves once the lease could have ended."""

import asyncio

import pytest

from llmservice.adapters.ports import Fenced, Unavailable
from llmservice.adapters.resources import DEPLOYMENT, LLM_SERVICE, POD
from llmservice.handlers.fence import FencedCluster
from tests.unit.adapters.fake_cluster import FakeCluster
from tests.unit.handlers.fake_time import in_fake_time, now

MANIFEST = {"kind": "Deployment", "metadata": {"name": "d", "namespace": "team"}}


class Fence:
    def __init__(self, seconds_left=15.0):
        self.cluster = FakeCluster()
        self.counted = []
        self.fenced = FencedCluster(
            self.cluster, lambda: seconds_left, lambda *write: self.counted.append(write)
        )

    def writes(self):
        """Every way to write."""
        apply = {"field_manager": "m", "force": True}
        return [
            self.fenced.apply(DEPLOYMENT, "team", MANIFEST, **apply),
            self.fenced.apply(LLM_SERVICE, "team", MANIFEST, **apply, subresource="status"),
            self.fenced.merge(DEPLOYMENT, "team", MANIFEST, field_manager="m"),
            self.fenced.patch(DEPLOYMENT, "team", "d", [], field_manager="m"),
            self.fenced.create(DEPLOYMENT, "team", MANIFEST),
            self.fenced.replace(DEPLOYMENT, "team", MANIFEST),
            self.fenced.delete(DEPLOYMENT, "team", "d", uid="u"),
        ]


@in_fake_time
async def test_closed_fence_stops_every_write_and_no_read():
    """Nothing reaches the API server."""
    fence = Fence(seconds_left=0)
    for write in fence.writes():
        with pytest.raises(Fenced):
            await write

    assert {} == fence.cluster.calls
    assert [] == fence.counted

    fence.cluster.put(MANIFEST)
    await fence.fenced.get(DEPLOYMENT, "team", "d")
    await fence.fenced.list_page(DEPLOYMENT, None)
    await fence.fenced.pod_log("team", "p", container="c", previous=False, tail_lines=1)
    fence.fenced.watch(POD, None, resource_version="1")


@in_fake_time
async def test_open_fence_counts_what_it_lets_through():
    """By verb and kind, the status by itself."""
    fence = Fence()
    await asyncio.gather(*fence.writes(), return_exceptions=True)

    assert {
        ("apply", "Deployment"),
        ("apply", "LLMService/status"),
        ("merge", "Deployment"),
        ("patch", "Deployment"),
        ("create", "Deployment"),
        ("replace", "Deployment"),
        ("delete", "Deployment"),
    } == set(fence.counted)


@in_fake_time
async def test_write_is_cut_off_when_the_lease_would_end():
    """An answer that comes later is somebody else's business."""
    fence = Fence(seconds_left=6)
    fence.cluster.hangs = True
    started = now()
    with pytest.raises(Unavailable):
        await fence.fenced.create(DEPLOYMENT, "team", MANIFEST)

    assert 6 == pytest.approx(now() - started)
