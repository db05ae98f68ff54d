"""What a pod's own times say of the next one."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from llmservice.core.autoscaling.cold_start import cold_start_status, measure
from llmservice.core.failures import ContainerState
from llmservice.core.observed import PodFacts

START = datetime(2026, 1, 1, tzinfo=UTC)


def a_pod(name="a", seconds=(2, 12, 112), created=0, **changes):
    """A pod that became ready after so many seconds, by stage."""
    born = START + timedelta(seconds=created)
    scheduled, started, ready = (born + timedelta(seconds=each) for each in seconds)
    pod = PodFacts(
        name=name,
        uid=name,
        revision="r1",
        ready=True,
        created=born,
        container=ContainerState("engine", True, 0, None, None, None, None, None),
        scheduled_at=scheduled,
        started_at=started,
        ready_since=ready,
    )
    return replace(pod, **changes)


def test_stages_add_up():
    found = measure(a_pod())
    assert (2, 10, 100, 112) == (found.schedule, found.pull, found.load, found.total)


@pytest.mark.parametrize(
    "changes",
    [
        {"ready": False},
        {"scheduled_at": None},
        {"started_at": None},
        {"container": None},
        {"container": ContainerState("engine", True, 2, None, None, "Error", 1, None)},
    ],
    ids=["not ready", "no node known", "not started", "no container", "crashed before"],
)
def test_what_is_no_first_start_counts_nothing(changes):
    """A crash loop would make every later scale-up wait for it."""
    assert measure(a_pod(**changes)) is None
    assert cold_start_status({}, [a_pod(**changes)], "r1") is None


def test_each_new_pod_counts_half():
    """And each counts once, however often it is looked at."""
    first = cold_start_status({}, [a_pod()], "r1")
    pods = [a_pod(), a_pod("b", (2, 32, 312), created=600)]
    second = cold_start_status(first, pods, "r1")

    assert (2, 20, 190, 212) == tuple(
        second[each] for each in ("scheduleSeconds", "pullSeconds", "loadSeconds", "seconds")
    )
    assert second == cold_start_status(second, pods, "r1")


def test_another_revision_begins_anew():
    """Another model loads in another time; until it told, the old one's is better than nothing."""
    first = cold_start_status({}, [a_pod()], "r1")
    assert first == cold_start_status(first, [a_pod()], "r2")
    other = a_pod("b", (1, 2, 1002), revision="r2")
    assert 1002 == cold_start_status(first, [a_pod(), other], "r2")["seconds"]


def test_pod_that_becomes_ready_again_is_no_new_one():
    """It was not ready for a moment, hours after its start; or the newest pod is gone."""
    pods = [a_pod(), a_pod("b", created=600)]
    first = cold_start_status({}, pods, "r1")
    again = replace(pods[1], ready_since=START + timedelta(hours=6))

    assert first == cold_start_status(first, [pods[0], again], "r1")
    assert first == cold_start_status(
        first, [replace(pods[0], ready_since=again.ready_since)], "r1"
    )


def test_clock_skew_makes_no_negative_stage():
    """Node and API server note times by their own clocks."""
    assert 0 == measure(a_pod(seconds=(2, 1, 112))).pull
