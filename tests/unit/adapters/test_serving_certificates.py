"""The metrics server's certificates through all renewals; no test waits for a clock."""

import asyncio
import base64
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from llmservice.adapters.ports import Conflict, Unavailable
from llmservice.adapters.serving_certificates import (
    SECRET,
    CertificateStore,
    advance,
    is_usable,
    issue,
    tls_context,
)
from tests.unit.adapters.fake_cluster import FakeCluster

HOSTS = (
    "llmservice-metrics-server.system.svc",
    "llmservice-metrics-server.system.svc.cluster.local",
)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
OWNER = {"apiVersion": "v1", "kind": "Owner", "name": "owner", "uid": "1"}
PLACE = ("Secret", "system", "name")


def accept(bundle, certificate, now, host=HOSTS[0]):
    """Verify as a client does that trusts the bundle; raises unless it accepts."""
    store = Store(x509.load_pem_x509_certificates(bundle))
    verifier = PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(host))
    verifier.verify(certificate, [])


def a_store(cluster, hosts=HOSTS):
    return CertificateStore(cluster, "system", "name", hosts)


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_that_trusts_the_bundle_accepts_both_names(host):
    """An independent verifier, with the rules of the web, has nothing to complain about."""
    issued = issue(HOSTS, NOW)
    accept(issued.bundle, issued.serving.certificate, NOW, host)
    accept(issued.bundle, issued.serving.certificate, NOW - HOUR, host)  # a slow clock
    assert is_usable(issued, HOSTS, NOW)


def test_a_client_refuses_another_name_another_authority_and_another_time():
    """The oracle of these tests can say no."""
    issued, other = issue(HOSTS, NOW), issue(HOSTS, NOW)
    for bundle, now, host in (
        (issued.bundle, NOW, "kubernetes.default.svc"),
        (other.bundle, NOW, HOSTS[0]),
        (issued.bundle, NOW + 91 * DAY, HOSTS[0]),
    ):
        with pytest.raises(VerificationError):
            accept(bundle, issued.serving.certificate, now, host)


def test_what_is_served_is_trusted_through_all_renewals():
    """Two replicas that read the Secret at different times, and a client with the last bundle."""

    async def live() -> None:
        cluster, now, serials, authorities = FakeCluster(), NOW, set(), set()
        replicas = [a_store(cluster), a_store(cluster)]
        served = [await replica.current(now, OWNER) for replica in replicas]
        for _ in range(400 * 24 // 13):
            now += 13 * HOUR
            for number, replica in enumerate(replicas):
                served[number] = await replica.current(now, OWNER)
                published = served[number].bundle
                await replica.advance(now, OWNER, trusted=True)
                for each in served:
                    accept(published, each.serving.certificate, now)
            serials.add(served[0].serving.certificate.serial_number)
            authorities.add(published)
        assert len(serials) > 400 / 90
        assert 3 == len(authorities)  # one, both, the other

    asyncio.run(live())


def test_a_new_authority_serves_only_once_it_is_trusted():
    """Its first certificate waits for the registration; the former authority stays for an hour."""
    old = issue(HOSTS, NOW)
    now = NOW + 250 * DAY
    old = advance(old, HOSTS, NOW + 200 * DAY, trusted=True)  # a certificate that lives until then

    both = advance(old, HOSTS, now, trusted=False)
    assert both.serving == old.serving
    assert 2 == len(x509.load_pem_x509_certificates(both.bundle))
    assert both is advance(both, HOSTS, now + DAY, trusted=False)

    switched = advance(both, HOSTS, now + DAY, trusted=True)
    assert switched.bundle == both.bundle
    accept(old.bundle, old.serving.certificate, now + DAY)
    accept(switched.authority.certificate_pem, switched.serving.certificate, now + DAY)
    assert switched is advance(switched, HOSTS, now + DAY + HOUR / 2, trusted=True)

    alone = advance(switched, HOSTS, now + DAY + HOUR, trusted=True)
    assert alone.bundle == alone.authority.certificate_pem
    assert alone.serving == switched.serving


def test_a_certificate_is_renewed_at_two_thirds_of_its_life():
    """Not before, and by the same authority."""
    issued = issue(HOSTS, NOW)
    assert issued is advance(issued, HOSTS, NOW + 59 * DAY, trusted=True)
    renewed = advance(issued, HOSTS, NOW + 61 * DAY, trusted=False)
    assert renewed.bundle == issued.bundle
    accept(issued.bundle, renewed.serving.certificate, NOW + 140 * DAY)


@pytest.mark.parametrize("age", [91 * DAY, 366 * DAY], ids=["certificate", "authority"])
async def test_an_expired_secret_is_replaced_at_once(age):
    """After a long sleep of the cluster nothing of it is of use, and nothing waits."""
    cluster = FakeCluster()
    old = await a_store(cluster).current(NOW, OWNER)

    new = await a_store(cluster).current(NOW + age, OWNER)
    accept(new.bundle, new.serving.certificate, NOW + age)
    assert new.bundle != old.bundle
    assert new == await a_store(cluster).current(NOW + age, OWNER)


@pytest.mark.parametrize("key", ["ca.crt", "ca.key", "tls.crt", "tls.key", "former-ca.crt"])
@pytest.mark.parametrize("text", [b"nonsense", issue(HOSTS, NOW).authority.key_pem])
async def test_a_secret_that_somebody_broke_is_replaced(key, text):
    """Any field, by anything."""
    cluster = FakeCluster()
    await a_store(cluster).current(NOW, OWNER)
    cluster.objects[PLACE]["data"][key] = base64.b64encode(text).decode()
    found = await a_store(cluster).current(NOW, OWNER)
    accept(found.bundle, found.serving.certificate, NOW)
    renewed = advance(found, HOSTS, NOW + 61 * DAY, trusted=True)
    accept(found.bundle, renewed.serving.certificate, NOW + 61 * DAY)


async def test_a_secret_for_another_name_is_replaced():
    """A release that moved is not reached under its old name."""
    cluster = FakeCluster()
    await a_store(cluster).current(NOW, OWNER)
    found = await a_store(cluster, hosts=("other.system.svc",)).current(NOW, OWNER)
    accept(found.bundle, found.serving.certificate, NOW, "other.system.svc")


async def test_replicas_that_start_together_share_what_the_first_wrote():
    """Both see no Secret; the one that comes second reads it."""
    cluster = FakeCluster()
    stores = [a_store(cluster) for _ in range(3)]
    found = await asyncio.gather(*(store.current(NOW, OWNER) for store in stores))
    assert 3 == cluster.calls["create", "Secret"]
    assert found[0] == found[1] == found[2]
    assert [OWNER] == cluster.objects[PLACE]["metadata"]["ownerReferences"]


async def test_replicas_that_renew_together_share_what_the_first_wrote():
    """The second one's version is out of date, so its write is refused and forgotten."""
    cluster, now = FakeCluster(), NOW + 61 * DAY
    stores = [a_store(cluster) for _ in range(2)]
    for store in stores:
        await store.current(NOW, OWNER)
    await asyncio.gather(*(store.advance(now, OWNER, trusted=True) for store in stores))
    assert 2 == cluster.calls["replace", "Secret"]
    found = [await store.current(now, OWNER) for store in stores]
    assert found[0] == found[1]
    accept(found[0].bundle, found[0].serving.certificate, NOW + 140 * DAY)


async def test_a_deleted_secret_is_written_again_as_it_was():
    """Clients trust what is served; to throw it away would turn them off."""
    cluster = FakeCluster()
    store = a_store(cluster)
    issued = await store.current(NOW, OWNER)
    cluster.drop(cluster.objects[PLACE])
    assert issued == await store.current(NOW, OWNER)
    assert PLACE in cluster.objects


async def test_what_cannot_be_read_or_written_is_said():
    """The caller serves on with what it has."""
    cluster = FakeCluster()
    store = a_store(cluster)
    await store.current(NOW, OWNER)
    cluster.failures["get", SECRET.kind] = [Unavailable("away")]
    with pytest.raises(Unavailable):
        await store.current(NOW, OWNER)
    cluster.drop(cluster.objects[PLACE])
    cluster.failures["create", SECRET.kind] = [Conflict("and it is gone again")]
    with pytest.raises(Conflict):
        await store.current(NOW, OWNER)


async def test_a_store_that_has_read_nothing_renews_nothing():
    """There is nothing to go on from."""
    cluster = FakeCluster()
    await a_store(cluster).advance(NOW, OWNER, trusted=True)
    assert not cluster.objects


def test_tls_refuses_authorities_that_are_none():
    """A broken ConfigMap must not become a server that trusts nobody, or everybody."""
    with pytest.raises(ssl.SSLError):
        tls_context(issue(HOSTS, NOW).serving, "nonsense")
