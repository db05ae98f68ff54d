"""The operator, a real API server, KEDA and Prometheus: who counts the pods, and when.

The operator has exactly the rights of its chart, and nothing but the pods is faked. The engines
that Prometheus scrapes are servers of this machine under the names of pods.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from itertools import groupby
from typing import Any

import pytest
import yaml

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.keda import Keda
from e2e.cluster.paths import REPOSITORY
from e2e.cluster.prometheus import Prometheus
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.resources import AUTOSCALER, DEPLOYMENT, SCALED_OBJECT
from llmservice.adapters.rest import RestCluster
from llmservice.api import names
from llmservice.cli.offline import render_document
from llmservice.core.autoscaling.policy import Sample
from llmservice.core.quantities import parse_quantity
from llmservice.core.resources.autoscaler import PAUSED_ANNOTATION
from tests.contract.conftest import Kube, condition, make_namespace
from tests.contract.test_autoscaler import owners
from tests.integrations.conftest import SERVICE, Manifest, start_operator
from tests.integrations.gauges import Gauges, serving_gauges

SPEC = {
    **yaml.safe_load((REPOSITORY / "examples" / "autoscaling-keda.yaml").read_text())["spec"],
    "podTemplate": {"annotations": {"fake.llmservice.dev/ready-after": "2s"}},
}
OLD, NEW = 16, 32
"""Sequences of the engines, by which revisions differ."""
BUSY = (Sample(0, 12, 0.2),)
"""Of 11.2 requests that an engine of the old revision should carry, or of 22.4."""
FULL = (Sample(0, 14, 0.2),)
HPA_CONTROLLER = "kube-controller-manager"
pytestmark = pytest.mark.timeout(240)
_SECONDS = 60


class Site:
    """A namespace with an operator, and a Prometheus that knows the engines of two revisions."""

    def __init__(self, kube: Kube, gauges: Gauges) -> None:
        self.kube = kube
        self._gauges = gauges
        self.revisions = {sequences: self._revision(sequences) for sequences in (OLD, NEW)}
        pods = [self._pod(sequences, number) for sequences in (OLD, NEW) for number in range(8)]
        self.prometheus = Prometheus(gauges.targets(kube.namespace, pods))

    @property
    def autoscaling(self) -> Manifest:
        """By KEDA, from two replicas to eight."""
        where = {"provider": "KEDA", "prometheusUrl": self.prometheus.url}
        return {**where, "minReplicas": 2, "maxReplicas": 8}

    def say(self, sequences: int, *samples: Sequence[Sample]) -> None:
        """Have one engine of a revision answer for each of these; the others say nothing."""
        for number in range(8):
            self._gauges.pods.pop(self._pod(sequences, number), None)
        for number, sample in enumerate(samples):
            self._gauges.pods[self._pod(sequences, number)] = sample

    async def create(self, **spec: Any) -> None:
        """A service like that of the example, until it serves."""
        await self.kube.create_service(**{**SPEC, "autoscaling": None, **spec})
        await self.kube.until_ready(seconds=_SECONDS)
        status = (await self.kube.service())["status"]
        assert self.revisions[OLD] == status["updatedRevision"]

    async def deployment(self, sequences: int = OLD) -> Manifest:
        """That of a revision."""
        name = f"{SERVICE}-{self.revisions[sequences]}"
        return await self.kube.cluster.get(DEPLOYMENT, self.kube.namespace, name)

    async def scaled_objects(self) -> dict[str, Manifest]:
        """By name."""
        found = await self.kube.list(SCALED_OBJECT)
        return {each["metadata"]["name"]: each for each in found}

    async def autoscalers(self) -> dict[str, Manifest]:
        """HPAs, by name."""
        return {each["metadata"]["name"]: each for each in await self.kube.list(AUTOSCALER)}

    async def until_replicas(self, wanted: int, sequences: int = OLD) -> None:
        """Wait until so many pods of a revision are asked for."""

        async def there() -> bool:
            found: int = (await self.deployment(sequences))["spec"]["replicas"]
            return found == wanted

        await self.kube.eventually(there, f"{wanted} replicas", _SECONDS)

    async def until_sized(self, status: str, reason: str) -> Manifest:
        """Wait for AutoscalingReady to say this."""
        seen: list[Manifest] = []

        async def said() -> Manifest | None:
            found = condition(await self.kube.service(), "AutoscalingReady")
            seen[:] = [found]
            return found if (found.get("status"), found.get("reason")) == (status, reason) else None

        try:
            found: Manifest = await self.kube.eventually(said, f"{status}, {reason}", _SECONDS)
        except AssertionError as error:
            live = [each.get("status") for each in (await self.scaled_objects()).values()]
            raise AssertionError(f"{error}; {seen}; ScaledObject: {live}") from error
        return found

    async def until_said(self, words: str) -> Manifest:
        """Wait for AutoscalingReady to say this."""

        async def said() -> Manifest | None:
            found = condition(await self.kube.service(), "AutoscalingReady")
            return found if words in found.get("message", "") else None

        found: Manifest = await self.kube.eventually(said, words, _SECONDS)
        return found

    async def until_kinds(self, scaled_objects: set[str], autoscalers: set[str]) -> None:
        """Wait until there are these and no others."""

        async def so() -> bool:
            found = (await self.scaled_objects()).keys(), (await self.autoscalers()).keys()
            return found == (scaled_objects, autoscalers)

        await self.kube.eventually(so, f"{scaled_objects}, {autoscalers}", _SECONDS)

    def _revision(self, sequences: int) -> str:
        """The hash that the operator will give it."""
        metadata = {"name": SERVICE, "namespace": self.kube.namespace}
        kinds = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata}
        engine = {**SPEC["engine"], "maxNumSeqs": sequences}
        manifests = render_document({**kinds, "spec": {**SPEC, "engine": engine}}, None)
        (found,) = (each for each in manifests if each["kind"] == DEPLOYMENT.kind)
        return str(found["metadata"]["labels"][names.REVISION_LABEL])

    def _pod(self, sequences: int, number: int) -> str:
        return f"{SERVICE}-{self.revisions[sequences]}-65d-{number}"


@pytest.fixture
async def site(plane: ControlPlane, keda: Keda, installed: None) -> AsyncIterator[Site]:
    """An operator at work in a namespace of the test's own."""
    del keda, installed
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    make_namespace(plane, namespace)
    admin = await Connection.open(Credentials(kubeconfig=plane.kubeconfig))
    with serving_gauges() as gauges:
        kube = Kube(plane, RestCluster(admin), namespace)
        site = Site(kube, gauges)
        with site.prometheus:
            operator, task = await start_operator(plane, namespace)
            yield site
            operator.stop()
            assert 0 == await task
        await kube.cluster.close()
    plane.api.call("DELETE", f"/api/v1/namespaces/{namespace}")


@contextlib.asynccontextmanager
async def versions(site: Site) -> AsyncIterator[list[Manifest]]:
    """Every version of every Deployment of the namespace, from those that are there."""
    cluster, namespace = site.kube.cluster, site.kube.namespace
    page = await cluster.list_page(DEPLOYMENT, namespace)
    seen = list(page.items)

    async def follow() -> None:
        events = cluster.watch(
            DEPLOYMENT, namespace, label_selector="", resource_version=page.resource_version
        )
        async for event in events:
            if event.type != "BOOKMARK":
                seen.append(event.object)  # noqa: PERF401 - each as it comes

    task = asyncio.create_task(follow())
    yield seen
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def sizes(seen: Sequence[Manifest], revision: str) -> list[int]:
    """Numbers of pods that a revision was asked for, one after the other."""
    mine = (each for each in seen if each["metadata"]["labels"][names.REVISION_LABEL] == revision)
    return [size for size, _ in groupby(int(each["spec"]["replicas"]) for each in mine)]


async def test_size_is_handed_over_and_back(site):
    """Each number was wanted by who owned it then; nobody ever let go before another one held."""
    site.say(OLD, BUSY, BUSY, BUSY)
    await site.create(replicas=4)
    async with versions(site) as seen:
        await site.kube.edit_service(autoscaling=site.autoscaling)
        await site.until_sized("True", "Scaling")
        site.say(OLD, FULL, FULL, FULL, FULL)
        await site.until_replicas(5)
        assert {HPA_CONTROLLER} == owners(await site.deployment())
        await site.kube.edit_service(autoscaling=None, replicas=3)
        await site.until_kinds(set(), set())
        await site.until_replicas(3)

    counted = sizes(seen, site.revisions[OLD])
    assert [4, 5] == counted[:2], counted
    assert {5, 3} == set(counted[1:]), counted
    assert all(owners(each) for each in seen)
    assert {names.CHILD_MANAGER} == owners(await site.deployment())


async def test_what_keda_wrote_is_kept(site):
    """The operator neither owns the size nor has another opinion; it tells it."""
    site.say(OLD, FULL, FULL, FULL, FULL)
    await site.create(autoscaling=site.autoscaling)
    await site.until_replicas(5)
    await site.kube.until_ready(seconds=_SECONDS)
    await site.until_sized("True", "Scaling")
    await site.kube.until_quiet(site.kube.follow())

    assert {HPA_CONTROLLER} == owners(await site.deployment())
    assert 5 == (await site.deployment())["spec"]["replicas"]
    status = (await site.kube.service())["status"]["autoscaling"]
    assert (5, site.revisions[OLD]) == (status["replicas"], status["revision"])
    name = f"{SERVICE}-{site.revisions[OLD]}"
    await site.until_kinds({name}, {f"keda-hpa-{name}"})


async def test_rollout_counts_pods_itself(site):
    """Whatever KEDA would have made of the load meanwhile; the new revision goes on from there."""
    site.say(OLD, FULL, FULL)
    await site.create(autoscaling=site.autoscaling)
    await site.until_replicas(3)
    await site.until_sized("True", "Scaling")
    await site.kube.until_ready(seconds=_SECONDS)
    site.say(NEW, BUSY, BUSY, BUSY, BUSY)
    async with versions(site) as seen:
        await site.kube.edit_service(engine={"maxNumSeqs": NEW})
        await site.until_sized("True", "SizeKept")
        await site.kube.eventually(lambda: are_paused(site), "KEDA to pause", _SECONDS)
        site.say(OLD, FULL, FULL, FULL, FULL, FULL, FULL)
        await site.until_replicas(3, NEW)
        await site.until_sized("True", "Scaling")

    assert [3, 2, 1, 0] == sizes(seen, site.revisions[OLD])
    assert [1, 2, 3] == sizes(seen, site.revisions[NEW])
    (after,) = (await site.scaled_objects()).values()
    assert PAUSED_ANNOTATION not in after["metadata"]["annotations"]
    name = f"{SERVICE}-{site.revisions[NEW]}"
    await site.until_kinds({name}, {f"keda-hpa-{name}"})


async def are_paused(site):
    """Whether KEDA counts neither of two revisions, by our word."""
    found = (await site.scaled_objects()).values()
    asked = [each["metadata"]["annotations"].get(PAUSED_ANNOTATION) for each in found]
    said = [
        condition["status"]
        for each in found
        for condition in each.get("status", {}).get("conditions", ())
        if condition["type"] == "Paused"
    ]
    return (asked, said) == (["true"] * 2, ["True"] * 2) and not await site.autoscalers()


async def test_prometheus_that_is_away_is_named(site):
    """With what to look at; all pods stay, and KEDA goes on when it is back."""
    site.say(OLD, BUSY, BUSY, BUSY)
    await site.create(autoscaling=site.autoscaling)
    await site.until_replicas(4)
    await site.until_sized("True", "Scaling")
    async with versions(site) as seen:
        site.prometheus.stop()
        found = await site.until_sized("False", "FailedGetExternalMetric")
        assert "does Prometheus answer at spec.autoscaling.prometheusUrl" in found["message"]
        await site.kube.eventually(lambda: falls_back(site), "KEDA to fall back", _SECONDS)
        found = await site.until_said("KEDA holds the pods, without an answer for s0-prometheus")
        assert ("False", "FailedGetExternalMetric") == (found["status"], found["reason"])
        assert "does Prometheus answer at spec.autoscaling.prometheusUrl" in found["message"]
    assert [4] == sizes(seen, site.revisions[OLD])

    site.say(OLD, FULL, FULL, FULL, FULL)
    site.prometheus.start()
    await site.until_replicas(5)
    await site.until_sized("True", "Scaling")


async def falls_back(site):
    """Whether KEDA answers with the current size, as nobody answers it."""
    (live,) = (await site.scaled_objects()).values()
    said = {each["type"]: each["status"] for each in live["status"]["conditions"]}
    (hpa,) = (await site.autoscalers()).values()
    found = [each.get("external") for each in hpa["status"].get("currentMetrics") or []]
    averages = [parse_quantity(each["current"]["averageValue"]) for each in found if each]
    return said["Fallback"] == "True" and averages == [Decimal("5.6"), Decimal(1)]


async def test_from_keda_to_the_builtin_provider(site):
    """Its objects go, ours comes; the size stays, though nobody serves our metrics here."""
    site.say(OLD, BUSY, BUSY, BUSY)
    await site.create(autoscaling=site.autoscaling)
    await site.until_replicas(4)
    await site.until_sized("True", "Scaling")
    name = f"{SERVICE}-{site.revisions[OLD]}"
    async with versions(site) as seen:
        builtin = {**site.autoscaling, "provider": "Builtin", "prometheusUrl": None}
        await site.kube.edit_service(autoscaling=builtin)
        await site.until_kinds(set(), {name})
        await site.until_sized("False", "FailedGetPodsMetric")
        await site.kube.until_quiet(site.kube.follow())
    assert [4] == sizes(seen, site.revisions[OLD])
    assert all(owners(each) for each in seen)

    async with versions(site) as seen:
        await site.kube.edit_service(autoscaling=site.autoscaling)
        await site.until_kinds({name}, {f"keda-hpa-{name}"})
        await site.until_sized("True", "Scaling")
    assert [4] == sizes(seen, site.revisions[OLD])
