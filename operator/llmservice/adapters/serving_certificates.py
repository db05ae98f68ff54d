"""The metrics server's certificates: from an authority of its own, in one Secret, renewed in time.

::

    nothing there, or unusable           -> a new authority and a certificate
    two thirds of the authority's life   -> a new authority; the former one stays in the bundle
      every APIService has the bundle    -> a certificate of the new authority
      an hour later                      -> the former authority leaves the bundle
    two thirds of the certificate's life -> a new certificate of the same authority

Replicas share the Secret. Whoever writes it first is right, the others read it again; each step
is small enough for those who have not read it yet to go on serving what everybody still trusts.
"""

import base64
import os
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from llmservice.adapters.ports import Cluster, Conflict, NotFound, Resource
from llmservice.api import names
from llmservice.core.observed import Manifest

SECRET = Resource("v1", "secrets", "Secret")

_AUTHORITY_LIFE = timedelta(days=365)
_SERVING_LIFE = timedelta(days=90)
_BACKDATED = timedelta(hours=1)
"""How much slower than ours another's clock may be."""
_OVERLAP = timedelta(hours=1)
"""How long a former authority is trusted after the last certificate of it was replaced: every
replica has read the Secret many times by then."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(compare=False)  # keys cannot be compared

    @property
    def is_matched(self) -> bool:
        """Whether the key is that of the certificate."""
        return self.certificate.public_key() == self.key.public_key()

    @property
    def certificate_pem(self) -> bytes:
        """The certificate alone."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


@dataclass(frozen=True, slots=True)
class Certificates:
    """What the Secret holds."""

    authority: Pair
    serving: Pair
    former: x509.Certificate | None = None
    """The authority before this one, while somebody may still need it."""

    @property
    def bundle(self) -> bytes:
        """The authorities by which clients are to verify us, PEM."""
        former = b""
        if self.former is not None:
            former = self.former.public_bytes(serialization.Encoding.PEM)
        return self.authority.certificate_pem + former

    @property
    def is_switched(self) -> bool:
        """Whether we serve a certificate of the newest authority."""
        return _is_issued_by(self.serving.certificate, self.authority.certificate)


def issue(hosts: Sequence[str], now: datetime) -> Certificates:
    """A new authority and a certificate for ``hosts``, of which the first is its name."""
    authority = _new_authority(hosts, now)
    return Certificates(authority, _new_serving(authority, hosts, now))


def is_usable(certificates: Certificates, hosts: Sequence[str], now: datetime) -> bool:
    """Whether a client that trusts the bundle accepts what we serve, for all ``hosts``."""
    serving = certificates.serving.certificate
    issuers = (certificates.authority.certificate, certificates.former)
    issuer = next((each for each in issuers if each and _is_issued_by(serving, each)), None)
    return (
        issuer is not None
        and now < min(serving.not_valid_after_utc, issuer.not_valid_after_utc)
        and now < certificates.authority.certificate.not_valid_after_utc
        and certificates.serving.is_matched
        and certificates.authority.is_matched
        and set(hosts) == set(_hosts_of(serving))
    )


def advance(
    certificates: Certificates, hosts: Sequence[str], now: datetime, *, trusted: bool
) -> Certificates:
    """The next step of a renewal, or the same object when it is time for none.

    Args:
        certificates: which are usable.
        hosts: names that we are called by.
        now: the time.
        trusted: whether every client has the bundle of ``certificates``.
    """
    authority, serving = certificates.authority, certificates.serving
    if certificates.former is None:
        if _is_due(authority.certificate, now):
            former = authority.certificate
            return Certificates(_new_authority(hosts, now), serving, former)
        if _is_due(serving.certificate, now):
            return replace(certificates, serving=_new_serving(authority, hosts, now))
    elif not certificates.is_switched:
        if trusted:
            return replace(certificates, serving=_new_serving(authority, hosts, now))
    elif now >= serving.certificate.not_valid_before_utc + _BACKDATED + _OVERLAP:
        return replace(certificates, former=None)
    return certificates


# --- the Secret -----------------------------------------------------------------------------------


class CertificateStore:
    """The Secret that replicas share.

    Args:
        cluster: the API server.
        namespace: where the Secret is.
        name: of the Secret.
        hosts: names that the certificate is for.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str, hosts: Sequence[str]) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._hosts = hosts
        self._version: str | None = None
        """Of what was read last; None when there was nothing."""
        self._held: Certificates | None = None

    async def current(self, now: datetime, owner: Manifest) -> Certificates:
        """What all replicas serve now; issued and stored if there is nothing usable.

        A Secret that somebody deletes is written again as it was.

        Args:
            now: the time.
            owner: owner reference of a Secret that is made.

        Raises:
            ClusterError: it can be neither read nor written.
        """
        found = await self._read()
        if found is None or not is_usable(found, self._hosts, now):
            found = self._held if found is None else None
            if found is None or not is_usable(found, self._hosts, now):
                found = issue(self._hosts, now)
            found = await self._write(found, owner)
        self._held = found
        return found

    async def advance(self, now: datetime, owner: Manifest, *, trusted: bool) -> None:
        """Store the next step of a renewal, if it is time for one; for the next look.

        Args:
            now: the time.
            owner: owner reference of the Secret.
            trusted: whether every client has the bundle that :meth:`current` returned.

        Raises:
            ClusterError: it cannot be written.
        """
        if self._held is None:
            return
        following = advance(self._held, self._hosts, now, trusted=trusted)
        if following is not self._held:
            await self._write(following, owner)

    async def _read(self) -> Certificates | None:
        self._version = None
        try:
            live = await self._cluster.get(SECRET, self._namespace, self._name)
        except NotFound:
            return None
        self._version = live["metadata"]["resourceVersion"]
        return _parse(live.get("data") or {})

    async def _write(self, certificates: Certificates, owner: Manifest) -> Certificates:
        """Store; returns what is stored then, which another replica may have written."""
        metadata: Manifest = {
            "name": self._name,
            "namespace": self._namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
            "ownerReferences": [owner],
        }
        manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque"}
        manifest["data"] = _format(certificates)
        try:
            if self._version is None:
                stored = await self._cluster.create(SECRET, self._namespace, manifest)
            else:
                metadata["resourceVersion"] = self._version
                stored = await self._cluster.replace(SECRET, self._namespace, manifest)
        except Conflict:
            written = await self._read()
            if written is None:
                raise
            return written
        self._version = stored["metadata"]["resourceVersion"]
        return certificates


_KEYS = ("ca.crt", "ca.key", "tls.crt", "tls.key")
_FORMER = "former-ca.crt"


def _format(certificates: Certificates) -> dict[str, str]:
    pairs = (certificates.authority, certificates.serving)
    texts = [text for pair in pairs for text in (pair.certificate_pem, pair.key_pem)]
    data = dict(zip(_KEYS, texts, strict=True))
    if certificates.former is not None:
        data[_FORMER] = certificates.former.public_bytes(serialization.Encoding.PEM)
    return {key: base64.b64encode(text).decode() for key, text in data.items()}


def _parse(data: Mapping[str, str]) -> Certificates | None:
    """None for what is not as we write it: it is then written anew."""
    try:
        texts = {key: base64.b64decode(text) for key, text in data.items()}
        former = texts.get(_FORMER)
        return Certificates(
            Pair(x509.load_pem_x509_certificate(texts["ca.crt"]), _key(texts["ca.key"])),
            Pair(x509.load_pem_x509_certificate(texts["tls.crt"]), _key(texts["tls.key"])),
            x509.load_pem_x509_certificate(former) if former else None,
        )
    except (KeyError, ValueError, TypeError):
        return None


def _key(text: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(text, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not a key of ours")
    return key


# --- X.509 ----------------------------------------------------------------------------------------


def _new_authority(hosts: Sequence[str], now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # Two authorities of one name would make verifiers guess.
    subject = _name(f"{hosts[0].partition('.')[0][:40]}-ca-{serial % 2**32:08x}")
    builder = _builder(subject, subject, key, now, now + _AUTHORITY_LIFE).serial_number(serial)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def _new_serving(authority: Pair, hosts: Sequence[str], now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    end = min(now + _SERVING_LIFE, issuer.not_valid_after_utc)
    builder = _builder(_name(hosts[0].partition(".")[0]), issuer.subject, key, now, end)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
    )
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False
    )
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
        critical=False,
    )
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(public).not_valid_before(now - _BACKDATED).not_valid_after(end)
    return builder.add_extension(identifier, critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    with suppress(ValueError, TypeError, InvalidSignature):
        certificate.verify_directly_issued_by(issuer)
        return True
    return False


def _is_due(certificate: x509.Certificate, now: datetime) -> bool:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= start + (end - start) * 2 / 3


def _hosts_of(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.DNSName)


# --- TLS ------------------------------------------------------------------------------------------


def tls_context(serving: Pair, client_authorities: str) -> ssl.SSLContext:
    """Serves ``serving``; what a client shows must be a certificate of ``client_authorities``.

    A client that shows none is let in: whether it may ask anything is decided with the request.

    Args:
        serving: what we show.
        client_authorities: PEM, one or several.

    Raises:
        ssl.SSLError: ``client_authorities`` are no certificates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    # As Go does: an intermediate authority that is listed is trusted without its root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=client_authorities)
    # The library reads keys from files only; this one is in memory, and nobody else's.
    file = os.memfd_create("serving")
    try:
        os.write(file, serving.key_pem + serving.certificate_pem)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context
