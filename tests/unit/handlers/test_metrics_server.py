"""A metrics server on loopback, with real TLS: whom it answers, and what it does about changes.

The API server is played; with a real one it is tested in `tests/contract`.
"""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from llmservice.adapters.clock import utc_now
from llmservice.adapters.front_proxy import CONFIG_NAME, CONFIG_NAMESPACE
from llmservice.adapters.gauges import Gauges
from llmservice.adapters.ports import Unavailable
from llmservice.adapters.serving_certificates import Pair, _name, _new_authority
from llmservice.handlers.metrics_server import MetricsServer, MetricsServerConfig
from tests.unit.adapters.fake_cluster import FakeCluster

CONFIG = MetricsServerConfig("system", "ms", port=0, probe_port=0, drain_seconds=0)
METRIC = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/team/pods/%2A/vllm:num_requests_waiting"
DISCOVERY = "/apis/custom.metrics.k8s.io/v1beta2"
HPA = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
DAY = timedelta(days=1)
CUSTOM = "v1beta2.custom.metrics.k8s.io"


class PlayedCluster(FakeCluster):
    """A cluster with a front proxy, where only the HPA controller may read metrics."""

    async def create(self, resource, namespace, manifest):
        if resource.kind != "SubjectAccessReview":
            return await super().create(resource, namespace, manifest)
        await self._called("create", resource)
        return {"status": {"allowed": manifest["spec"]["user"] == HPA}}


class Authority:
    """A front proxy's, or somebody else's."""

    def __init__(self, folder: Path, age: timedelta = DAY) -> None:
        self._folder = folder
        self._pair = _new_authority(("proxy-ca",), utc_now() - age)

    @property
    def pem(self) -> str:
        return self._pair.certificate_pem.decode()

    def client(self, name: str, server_bundle: bytes) -> ssl.SSLContext:
        """TLS of a client with a certificate, that trusts a bundle."""
        context = ssl.create_default_context(cadata=server_bundle.decode())
        key, now = ec.generate_private_key(ec.SECP256R1()), utc_now()
        builder = x509.CertificateBuilder().subject_name(_name(name))
        builder = builder.issuer_name(self._pair.certificate.subject).public_key(key.public_key())
        builder = builder.not_valid_before(now - DAY).not_valid_after(now + DAY)
        builder = builder.serial_number(x509.random_serial_number())
        pair = Pair(builder.sign(self._pair.key, hashes.SHA256()), key)
        file = self._folder / f"{name}.pem"
        file.write_bytes(pair.key_pem + pair.certificate_pem)
        context.load_cert_chain(file)
        return context


@dataclass
class Served:
    """A server under test, and how to ask it."""

    cluster: PlayedCluster
    server: MetricsServer
    proxy: Authority
    session: aiohttp.ClientSession
    connections: list[Any]
    """An entry for each that the session made."""

    async def look(self, now: datetime | None = None) -> None:
        await self.server.look(now or utc_now())

    def publish(self, authority: Authority, names: str = '["front-proxy-client"]') -> None:
        """Write the ConfigMap as Kubernetes does."""
        data = {
            "requestheader-client-ca-file": authority.pem,
            "requestheader-allowed-names": names,
            "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        }
        metadata = {"namespace": CONFIG_NAMESPACE, "name": CONFIG_NAME}
        self.cluster.put({"kind": "ConfigMap", "metadata": metadata, "data": data})

    @property
    def bundle(self) -> bytes:
        assert self.server._serving is not None
        return self.server._serving[0].bundle

    async def ask(
        self, path: str = METRIC, *, user: str = HPA, tls: ssl.SSLContext | None = None
    ) -> tuple[int, Any]:
        """As the API server does, unless told otherwise."""
        tls = tls or self.proxy.client("front-proxy-client", self.bundle)
        async with self.session.get(
            f"https://127.0.0.1:{self.server.api.port}{path}",
            headers={"X-Remote-User": user, "X-Remote-Group": "system:authenticated"},
            ssl=tls,
            server_hostname=CONFIG.hosts[0],
        ) as answer:
            return answer.status, await answer.json()

    async def probe(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.server.probes.port}{path}"
        async with self.session.get(url) as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def served(tmp_path, monkeypatch):
    monkeypatch.setattr(Gauges, "problems", lambda _: ())
    cluster, proxy, connections = PlayedCluster(), Authority(tmp_path), []
    tracing = aiohttp.TraceConfig()

    async def note(*_: Any) -> None:
        connections.append(None)

    tracing.on_connection_create_end.append(note)
    metadata = {"name": "ms", "namespace": None, "uid": "u-1"}
    cluster.put({"kind": "ClusterRole", "metadata": metadata})
    server = MetricsServer(CONFIG, cluster)
    async with aiohttp.ClientSession(trace_configs=[tracing]) as session:
        served = Served(cluster, server, proxy, session, connections)
        served.publish(proxy)
        yield served
    await server.api.close()
    await server._gauges.close()


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 - there is nothing to be told by
            await asyncio.sleep(0.01)


async def test_the_api_server_is_answered(served):
    """It verifies us by the bundle that we registered, we it by the front proxy's authority."""
    await served.look()
    registered = served.cluster.objects["APIService", None, CUSTOM]["spec"]
    assert registered["service"] == {"namespace": "system", "name": "ms", "port": 443}
    status, answer = await served.ask()
    assert (200, []) == (status, answer["items"])
    assert 200 == (await served.ask(DISCOVERY))[0]


@pytest.mark.parametrize("path", [METRIC, DISCOVERY, "/apis", "/healthz"])
async def test_who_is_not_the_front_proxy_is_not_believed(served, tmp_path, path):
    """Without a certificate, with another name, or with another authority's certificate."""
    await served.look()
    bare = ssl.create_default_context(cadata=served.bundle.decode())
    other = served.proxy.client("somebody", served.bundle)
    for tls in (bare, other):
        status, answer = await served.ask(path, tls=tls)
        assert (401, "Status", 401) == (status, answer["kind"], answer["code"])
    forged = Authority(tmp_path).client("front-proxy-client", served.bundle)
    with pytest.raises((aiohttp.ClientError, OSError)):
        await served.ask(path, tls=forged)
    assert not served.cluster.calls["create", "SubjectAccessReview"]


async def test_who_may_not_read_is_refused_and_may_still_see_which_apis_there_are(served):
    """As on every API server."""
    await served.look()
    status, answer = await served.ask(user="jane")
    assert (403, "Forbidden") == (status, answer["reason"])
    assert "jane" in answer["message"]
    assert 200 == (await served.ask(DISCOVERY, user="jane"))[0]


async def test_without_a_verdict_nobody_passes(served):
    """An API server that is away does not open the door."""
    await served.look()
    served.cluster.failures["create", "SubjectAccessReview"] = [Unavailable("away")]
    status, answer = await served.ask()
    assert (500, "InternalError") == (status, answer["reason"])
    assert 200 == (await served.ask())[0]


async def test_a_path_with_two_meanings_is_refused(served):
    """What was allowed and what is answered are the same."""
    await served.look()
    status, _ = await served.ask(METRIC.replace("team", "team%2Fpods"))
    assert 400 == status


async def test_a_renewed_certificate_is_served_and_no_connection_is_lost(served):
    """Connections go on as they were made; new ones see the new certificate."""
    now = utc_now()
    await served.look(now - 61 * DAY)
    tls = served.proxy.client("front-proxy-client", served.bundle)
    old = served.server._serving[0]
    assert 200 == (await served.ask(tls=tls))[0]

    await served.look(now)  # writes the renewed one
    await served.look(now)  # serves it
    assert 200 == (await served.ask(tls=tls))[0]
    assert 1 == len(served.connections)
    assert old.serving != served.server._serving[0].serving

    seen = await _certificate_seen(served, tls)
    assert served.server._serving[0].serving.certificate == seen


async def _certificate_seen(served: Served, tls: ssl.SSLContext) -> x509.Certificate:
    _, writer = await asyncio.open_connection(
        "127.0.0.1", served.server.api.port, ssl=tls, server_hostname=CONFIG.hosts[0]
    )
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return x509.load_der_x509_certificate(shown)


async def test_a_new_front_proxy_ends_the_trust_in_the_former_one(served, tmp_path):
    """Also on the connections that it has open: they are of no use any more, and closed."""
    await served.look()
    former = served.proxy.client("front-proxy-client", served.bundle)
    assert 200 == (await served.ask(tls=former))[0]
    served.proxy = Authority(tmp_path)
    served.publish(served.proxy)
    await served.look()
    assert 401 == (await served.ask(tls=former))[0]
    assert 1 == len(served.connections)
    with pytest.raises((aiohttp.ClientError, OSError)):
        await served.ask(tls=former)
    assert 200 == (await served.ask())[0]


async def test_an_expired_front_proxy_is_not_believed(served, tmp_path):
    """An authority's end is the end of its certificates, whatever they say."""
    served.proxy = Authority(tmp_path, age=366 * DAY)
    served.publish(served.proxy)
    await served.look()
    with pytest.raises((aiohttp.ClientError, OSError)):
        await served.ask()


async def test_a_name_that_is_allowed_no_longer_is_refused_at_once(served):
    """The connection may stay, its requests are judged anew."""
    await served.look()
    tls = served.proxy.client("front-proxy-client", served.bundle)
    assert 200 == (await served.ask(tls=tls))[0]
    served.publish(served.proxy, names='["another"]')
    await served.look()
    assert 401 == (await served.ask(tls=tls))[0]


async def test_a_cluster_without_a_front_proxy_is_not_served(served):
    """There would be nobody to believe; and nothing is registered that cannot be asked."""
    metadata = {"namespace": CONFIG_NAMESPACE, "name": CONFIG_NAME}
    served.cluster.put({"kind": "ConfigMap", "metadata": metadata, "data": {}})
    with pytest.raises(ValueError, match="no front proxy"):
        await served.look()
    assert not served.cluster.applied
    assert 0 == served.server.api.port


async def test_broken_authorities_are_not_served(served):
    """What is served stays as it is."""
    await served.look()
    served.publish(served.proxy)
    config = served.cluster.objects["ConfigMap", CONFIG_NAMESPACE, CONFIG_NAME]
    config["data"]["requestheader-client-ca-file"] = "nonsense"
    with pytest.raises(ValueError, match="PEM"):
        await served.look()
    assert 200 == (await served.ask())[0]


async def test_the_authority_is_renewed_and_every_step_is_trusted(served):
    """A year of looks at the right times; a client has no more than what is registered."""
    now = utc_now()
    await served.look(now - 250 * DAY)
    first = served.bundle
    for age in (190, 130, 70):  # certificates are renewed as they would have been
        await served.look(now - age * DAY)
    for hours in range(4):
        await served.look(now + timedelta(hours=hours))
        assert 200 == (await served.ask())[0]
        spec = served.cluster.objects["APIService", None, CUSTOM]["spec"]
        assert served.bundle == base64.b64decode(spec["caBundle"])
    assert first not in served.bundle


async def test_its_life_from_start_to_stop(served):
    """Ready once it serves, with words about each registration; not ready when it ends."""
    other = {"spec": {"service": {"namespace": "keda", "name": "adapter"}}}
    metadata = {"name": "v1beta1.external.metrics.k8s.io", "namespace": None}
    served.cluster.put({"kind": "APIService", "metadata": metadata, **other})
    running = asyncio.create_task(served.server.run())
    await until(lambda: served.server._registered)
    status, text = await served.probe("/readyz")
    assert 200 == status
    assert text.splitlines() == [
        "serving",
        "v1beta2.custom.metrics.k8s.io: ours",
        "v1beta1.custom.metrics.k8s.io: ours",
        "v1beta1.external.metrics.k8s.io: belongs to Service keda/adapter",
    ]
    assert (200, "ok\n") == await served.probe("/healthz")
    _, metrics = await served.probe("/metrics")
    owned = 'llmservice_metrics_api_owned{group_version="%s"} %s'
    assert owned % ("custom.metrics.k8s.io/v1beta2", "1.0") in metrics
    assert owned % ("external.metrics.k8s.io/v1beta1", "0.0") in metrics

    served.server.stop()
    async with asyncio.timeout(10):
        assert 0 == await running
    with pytest.raises(aiohttp.ClientError):
        await served.ask()


async def test_it_says_what_it_waits_for(served):
    """An unready replica gets no requests; kubectl describe shows why."""
    served.cluster.away = Unavailable("away")
    running = asyncio.create_task(served.server.run())
    await until(lambda: served.server.probes.port)
    status, text = await served.probe("/readyz")
    assert 503 == status
    assert "not serving yet" in text
    served.server.stop()
    async with asyncio.timeout(10):
        assert 0 == await running
