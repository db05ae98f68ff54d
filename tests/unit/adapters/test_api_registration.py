"""APIServices that are ours, that are somebody else's, and those that change hands."""

import base64

import pytest

from llmservice.adapters.api_registration import (
    VERSION_PRIORITIES,
    ApiRegistration,
    Outcome,
    Registration,
    read_metrics_api,
)
from llmservice.adapters.ports import Conflict, Forbidden, NotFound
from llmservice.core.autoscaling.scaling import MetricsApi
from tests.unit.adapters.fake_cluster import FakeCluster

CUSTOM, OLD, EXTERNAL = VERSION_PRIORITIES
OURS = Registration(Outcome.Ours)
KEDA = Registration(Outcome.Foreign, "belongs to Service keda/adapter")
OWNER = {"apiVersion": "v1", "kind": "ClusterRole", "name": "ms", "uid": "1"}


def a_registration(cluster):
    return ApiRegistration(cluster, "system", "ms")


def claim(cluster, name, service, priority=100):
    """Somebody else registers."""
    metadata = {"name": name, "namespace": None}
    spec = {"service": service, "versionPriority": priority}
    cluster.put({"kind": "APIService", "metadata": metadata, "spec": spec})


def live(cluster, name):
    return cluster.objects["APIService", None, name]


async def test_it_registers_wherever_nobody_has():
    """With the authorities, the owner, and the newer version preferred."""
    cluster = FakeCluster()
    found = await a_registration(cluster).register(b"PEM", OWNER)
    assert {CUSTOM: OURS, OLD: OURS, EXTERNAL: OURS} == found
    made = live(cluster, CUSTOM)
    assert {
        "group": "custom.metrics.k8s.io",
        "version": "v1beta2",
        "groupPriorityMinimum": 100,
        "versionPriority": 200,
        "service": {"namespace": "system", "name": "ms", "port": 443},
        "caBundle": base64.b64encode(b"PEM").decode(),
    } == made["spec"]
    assert [OWNER] == made["metadata"]["ownerReferences"]
    assert 100 == live(cluster, OLD)["spec"]["versionPriority"]


async def test_external_metrics_may_be_left_to_others():
    """Neither asked for nor written, so that who comes later finds the place free."""
    cluster = FakeCluster()
    registration = ApiRegistration(cluster, "system", "ms", external=False)
    assert {CUSTOM: OURS, OLD: OURS} == await registration.register(b"PEM", OWNER)
    assert ("APIService", None, EXTERNAL) not in cluster.objects


@pytest.mark.parametrize(
    ("service", "whose"),
    [
        ({"namespace": "keda", "name": "adapter", "port": 443}, "Service keda/adapter"),
        ({"namespace": "other", "name": "ms", "port": 443}, "Service other/ms"),
        (None, "the API server itself"),
    ],
)
async def test_what_belongs_to_another_is_not_written(service, whose):
    """Nor does it keep us from the rest."""
    cluster = FakeCluster()
    claim(cluster, EXTERNAL, service)
    before = live(cluster, EXTERNAL)
    found = await a_registration(cluster).register(b"PEM", OWNER)
    assert {CUSTOM: OURS, OLD: OURS} == {n: r for n, r in found.items() if n != EXTERNAL}
    assert Registration(Outcome.Foreign, f"belongs to {whose}") == found[EXTERNAL]
    assert before == live(cluster, EXTERNAL)


async def test_it_takes_what_becomes_free_and_lets_go_what_is_taken():
    """Each look starts from what is there."""
    cluster = FakeCluster()
    registration = a_registration(cluster)
    claim(cluster, CUSTOM, {"namespace": "keda", "name": "adapter"})
    assert KEDA == (await registration.register(b"PEM", OWNER))[CUSTOM]
    cluster.drop(live(cluster, CUSTOM))
    assert OURS == (await registration.register(b"PEM", OWNER))[CUSTOM]
    claim(cluster, CUSTOM, {"namespace": "keda", "name": "adapter"})
    applied = len(cluster.applied)
    assert KEDA == (await registration.register(b"PEM", OWNER))[CUSTOM]
    assert 2 == len(cluster.applied) - applied


async def test_ours_gets_the_newest_authorities_by_force():
    """Somebody who edited them by hand owns the field otherwise."""
    cluster = FakeCluster()
    registration = a_registration(cluster)
    await registration.register(b"PEM", OWNER)
    await registration.register(b"NEW", OWNER)
    assert base64.b64encode(b"NEW").decode() == live(cluster, CUSTOM)["spec"]["caBundle"]


async def test_it_is_not_taken_from_one_who_takes_it_at_the_same_moment():
    """Between our look and our write the object changed: the write is refused."""
    cluster = FakeCluster()
    registration = a_registration(cluster)
    await registration.register(b"PEM", OWNER)
    get = cluster.get

    async def get_and_lose(resource, namespace, name):
        found = await get(resource, namespace, name)
        claim(cluster, name, {"namespace": "keda", "name": "adapter"})
        return found

    cluster.get = get_and_lose
    found = await registration.register(b"PEM", OWNER)
    assert {Outcome.Failed} == {each.outcome for each in found.values()}
    assert "adapter" == live(cluster, CUSTOM)["spec"]["service"]["name"]


async def test_one_failure_does_not_keep_it_from_the_others():
    """It is told, and tried again."""
    cluster = FakeCluster()
    cluster.failures["apply", "APIService"] = [Conflict("field owned by another")]
    found = await a_registration(cluster).register(b"PEM", OWNER)
    assert Registration(Outcome.Failed, "Conflict: field owned by another") == found[CUSTOM]
    assert [OURS, OURS] == [found[OLD], found[EXTERNAL]]


async def test_the_owner_is_the_release_s_cluster_role():
    """By uid: a later one of the same name is another."""
    cluster = FakeCluster()
    with pytest.raises(NotFound):
        await a_registration(cluster).owner()
    metadata = {"name": "ms", "namespace": None, "uid": "u-1"}
    cluster.put({"kind": "ClusterRole", "metadata": metadata})
    assert {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "name": "ms",
        "uid": "u-1",
    } == await a_registration(cluster).owner()


ADAPTER = {"namespace": "monitoring", "name": "prometheus-adapter"}
ADAPTERS = "Service monitoring/prometheus-adapter"


async def test_hpas_ask_nobody_where_nobody_has_registered():
    """What is missing is named by the version that we would register."""
    assert MetricsApi(CUSTOM, "") == await read_metrics_api(FakeCluster())


async def test_hpas_ask_by_the_preferred_version():
    """Ours beside an adapter that knows the older one only; or one that comes before us."""
    cluster = FakeCluster()
    claim(cluster, OLD, ADAPTER)
    assert MetricsApi(OLD, ADAPTERS) == await read_metrics_api(cluster)
    await a_registration(cluster).register(b"PEM", OWNER)
    assert MetricsApi(CUSTOM, "Service system/ms", ours=True) == await read_metrics_api(cluster)
    claim(cluster, OLD, ADAPTER, priority=300)
    assert MetricsApi(OLD, ADAPTERS) == await read_metrics_api(cluster)


async def test_who_takes_over_ours_is_its_owner_though_our_labels_stay():
    """As with `kubectl apply` of an adapter's APIService over ours."""
    cluster = FakeCluster()
    await a_registration(cluster).register(b"PEM", OWNER)
    live(cluster, CUSTOM)["spec"]["service"] = ADAPTER
    assert MetricsApi(CUSTOM, ADAPTERS) == await read_metrics_api(cluster)


async def test_who_may_not_look_says_nothing():
    """Where the chart made no right to it."""
    cluster = FakeCluster()
    cluster.failures["get", "APIService"] = [Forbidden("apiservices")]
    assert await read_metrics_api(cluster) is None
