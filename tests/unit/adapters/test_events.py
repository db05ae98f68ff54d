"""Events are written once, and nothing depends on them."""

import asyncio

from llmservice.adapters.events import REPEAT_SECONDS, EventRecorder
from llmservice.adapters.ports import Forbidden
from llmservice.core.decision import Event
from llmservice.core.observed import ServiceKey, ServiceObject
from tests.unit.adapters.fake_cluster import FakeCluster
from tests.unit.handlers.fake_time import in_fake_time

SERVICE = ServiceObject(ServiceKey("team", "mistral"), "s", 1, {}, {})
EVENT = Event("Warning", "OOMKilled", "Reconcile", "raise the limit")


def written(cluster):
    return [live for (kind, _, _), live in cluster.objects.items() if kind == "Event"]


@in_fake_time
async def test_event_is_about_the_service():
    """kubectl describe finds it by the uid."""
    cluster = FakeCluster()
    await EventRecorder(cluster, "pod-1").record(SERVICE, EVENT)
    (event,) = written(cluster)

    assert ("s", "mistral", "team") == tuple(
        event["regarding"][field] for field in ("uid", "name", "namespace")
    )
    assert ("Warning", "OOMKilled", "raise the limit") == tuple(
        event[field] for field in ("type", "reason", "note")
    )


@in_fake_time
async def test_same_words_are_not_repeated_within_six_minutes():
    """Other words are news."""
    cluster = FakeCluster()
    recorder = EventRecorder(cluster, "pod-1")
    for _ in range(5):
        await recorder.record(SERVICE, EVENT)
        await asyncio.sleep(60)

    assert 1 == len(written(cluster))

    await recorder.record(SERVICE, Event("Normal", "Recovered", "Reconcile", "serves"))
    await asyncio.sleep(REPEAT_SECONDS)
    await recorder.record(SERVICE, EVENT)

    assert 3 == len(written(cluster))


@in_fake_time
async def test_event_that_is_refused_is_dropped():
    """A missing right to write events stops nothing."""
    cluster = FakeCluster()
    cluster.failures["create", "Event"] = [Forbidden("no")]
    await EventRecorder(cluster, "pod-1").record(SERVICE, EVENT)

    assert [] == written(cluster)


@in_fake_time
async def test_long_words_are_cut_to_what_the_api_takes():
    """1 KiB of note, 128 characters of instance."""
    cluster = FakeCluster()
    event = Event("Normal", "X", "Y", "z" * 5000)
    await EventRecorder(cluster, "i" * 300).record(SERVICE, event)
    (written_event,) = written(cluster)

    assert 1024 == len(written_event["note"])
    assert 128 == len(written_event["reportingInstance"])


@in_fake_time
async def test_memory_of_what_was_said_is_bounded():
    """A thousand flapping services do not fill it."""
    recorder = EventRecorder(FakeCluster(), "pod-1")
    for number in range(5000):
        await recorder.record(SERVICE, Event("Normal", "X", "Y", str(number)))

    assert 4096 == len(recorder._said)
