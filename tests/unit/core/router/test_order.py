"""The order of files: whatever is on disk, no request meets a route to nowhere."""

from dataclasses import replace

import pytest
from hypothesis import given

from llmservice.core.router.desired import Capacity, Traffic
from llmservice.core.router.envoy import CLUSTERS, ROUTES, RUNTIME, build_traffic_files
from llmservice.core.router.order import Step, Until, cluster_digests, plan_steps
from tests.unit.core.router.test_desired import READY, SPLIT, a_track, traffics

FOLDER = "/routes"
ALONE = Traffic("v0", "stable", (a_track("stable", 10_000, READY),))
BOTH = {"track-stable", "track-canary", "share-canary"}


def files(traffic: Traffic) -> dict[str, str]:
    return build_traffic_files(traffic, FOLDER)


def carry_out(steps: tuple[Step, ...], on_disk: dict[str, str]) -> dict[str, str]:
    disk = dict(on_disk)
    for step in steps:
        disk |= step.files
        for name in step.removed:
            del disk[name]
    return disk


def test_clusters_come_before_routes_that_add_one():
    """First engines and clusters, then routes; nothing is left to do after."""
    first, second, last = plan_steps(SPLIT, FOLDER, files(ALONE))

    assert ["eds-canary.json", CLUSTERS] == list(first.files)
    assert (Until.Clusters, BOTH) == (first.until, first.clusters.keys())
    assert ([RUNTIME, ROUTES], Until.Version) == (list(second.files), second.until)
    assert ([CLUSTERS], ()) == (list(last.files), last.removed)


def test_routes_come_before_clusters_that_go():
    """The old clusters stay until the routes have left them; their engines' file goes last."""
    first, _, last = plan_steps(ALONE, FOLDER, files(SPLIT))

    assert first.clusters.keys() == BOTH
    assert first.clusters == cluster_digests(first.files[CLUSTERS])
    assert {"track-stable"} == last.clusters.keys()
    assert last.clusters == cluster_digests(last.files[CLUSTERS])
    assert ("eds-canary.json",) == last.removed


def test_a_track_that_loses_its_weight_keeps_its_engines_until_then():
    """Requests still arrive by the old routes."""
    tracks = (a_track("stable", 10_000, READY), a_track("canary", 0))
    served = (a_track("stable", 9_500, READY), a_track("canary", 500, READY))
    before = files(replace(SPLIT, tracks=served))
    first, _, last = plan_steps(replace(SPLIT, tracks=tracks), FOLDER, before)

    assert "eds-canary.json" not in first.files
    assert "eds-canary.json" in last.files


def test_stable_is_never_held_back():
    """It answers for the canary, even without a weight of its own."""
    tracks = (a_track("stable", 0, READY), a_track("canary", 10_000, READY))
    before = files(replace(SPLIT, tracks=(a_track("stable", 0), tracks[1])))
    first, _, _ = plan_steps(replace(SPLIT, tracks=tracks), FOLDER, before)

    assert "eds-stable.json" in first.files


@given(traffics, traffics)
def test_all_ways_end_at_the_wanted_files(before, after):
    """From any traffic, and from any point where a writer was killed."""
    on_disk = files(before)
    steps = plan_steps(after, FOLDER, on_disk)

    for killed_after in range(len(steps) + 1):
        stopped = carry_out(steps[:killed_after], on_disk)
        assert files(after) == carry_out(plan_steps(after, FOLDER, stopped), stopped)


@given(traffics)
def test_only_unread_files_are_planned_again(traffic):
    """The same traffic asks only whether Envoy has taken clusters and routes."""
    steps = plan_steps(traffic, FOLDER, files(traffic))

    assert [{CLUSTERS}, {RUNTIME, ROUTES}, {CLUSTERS}] == [set(step.files) for step in steps]
    assert all(files(traffic)[name] == step.files[name] for step in steps for name in step.files)


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", "{}", '{"resources": [{}]}', '{"resources": [{"name": []}]}', "null"]
)
def test_damaged_clusters_on_disk_are_replaced(damaged):
    """Nothing can be kept of them."""
    first, *_ = plan_steps(SPLIT, FOLDER, files(SPLIT) | {CLUSTERS: damaged})

    assert files(SPLIT)[CLUSTERS] == first.files[CLUSTERS]


def test_a_strangers_cluster_on_disk_is_kept_until_the_routes_changed():
    """It has no digest of ours, and whatever it says must not stop the writer."""
    for odd in ('{"name": "x", "metadata": []}', '{"name": "x", "metadata": null}'):
        on_disk = files(SPLIT) | {CLUSTERS: f'{{"resources": [{odd}]}}'}
        first, _, last = plan_steps(SPLIT, FOLDER, on_disk)

        assert first.clusters["x"] is None
        assert "x" not in last.clusters


def test_a_changed_cluster_has_another_digest():
    """Its name alone would not tell whether Envoy took the change."""
    larger = replace(ALONE.tracks[0], capacity=Capacity(requests=512, queued=64))
    (one, *_), (other, *_) = (
        plan_steps(traffic, FOLDER, {}) for traffic in (ALONE, replace(ALONE, tracks=(larger,)))
    )

    assert one.clusters.keys() == other.clusters.keys()
    assert one.clusters != other.clusters
