"""Who asks the metrics server, and whether he may.

The API server asks on behalf of others. It shows its front-proxy certificate and names the asker in
headers, which anybody could write: they count only on a connection whose certificate is of the
authority, and bears one of the names, that the cluster publishes in a ConfigMap. The certificate's
chain is verified with the handshake; its name, and whether that authority is still the one, with
each request. What the asker may read, the API server is asked in turn, about the exact path; that
answer is kept for seconds. Whatever cannot be decided is refused.
"""

import asyncio
import json
import logging
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from aiohttp import web
from cryptography import x509
from multidict import CIMultiDictProxy

from llmservice.adapters.ports import Cluster, ClusterError, Resource
from llmservice.adapters.resources import CONFIG_MAP
from llmservice.adapters.serving_certificates import Pair, tls_context
from llmservice.core.metrics_api import status_document

SUBJECT_ACCESS_REVIEW = Resource(
    "authorization.k8s.io/v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
)
CONFIG_NAMESPACE = "kube-system"
CONFIG_NAME = "extension-apiserver-authentication"

_REVIEW_SECONDS = 10.0
_REVIEWS_KEPT = 4096
_DISCOVERY_SEGMENTS = 3

_log = logging.getLogger(__name__)

Certificate = Mapping[str, Any]
"""A verified certificate as :meth:`ssl.SSLSocket.getpeercert` tells it."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe what he says about others, and where he says it."""

    authorities: str
    """PEM."""
    names: tuple[str, ...]
    """Common names of certificates; any when empty."""
    user_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class User:
    """Who asks."""

    name: str
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


def parse_trust(data: Mapping[str, str]) -> Trust | None:
    """What the cluster's ConfigMap says; None when it has no front proxy.

    Raises:
        ValueError: it is not as Kubernetes writes it.
    """
    authorities = data.get("requestheader-client-ca-file", "").strip()
    if not authorities:
        return None
    x509.load_pem_x509_certificates(authorities.encode())
    return Trust(
        authorities,
        _words(data, "requestheader-allowed-names"),
        _words(data, "requestheader-username-headers"),
        _words(data, "requestheader-group-headers"),
        _words(data, "requestheader-extra-headers-prefix"),
    )


def _words(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    words = json.loads(data.get(key) or "[]")
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ValueError(f"{key} is no list of words")
    return tuple(words)


def identify(
    trust: Trust, certificate: Certificate | None, headers: CIMultiDictProxy[str]
) -> User | None:
    """Who asks, or None when nobody that we believe says it.

    Args:
        trust: whom we believe.
        certificate: the client's, verified against ``trust.authorities``; None when it showed none.
        headers: of the request.
    """
    if not certificate:
        return None
    if trust.names and _common_name(certificate) not in trust.names:
        return None
    name = next(filter(None, (headers.get(header) for header in trust.user_headers)), None)
    if not name:
        return None
    groups = (group for header in trust.group_headers for group in headers.getall(header, ()))
    return User(name, tuple(groups), _extra(trust.extra_prefixes, headers))


def _common_name(certificate: Certificate) -> str | None:
    subject = certificate.get("subject", ())
    found = [value for part in subject for key, value in part if key == "commonName"]
    return found[0] if len(found) == 1 else None


def _extra(
    prefixes: Sequence[str], headers: CIMultiDictProxy[str]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found: dict[str, list[str]] = {}
    for header, value in headers.items():
        lower = header.lower()
        prefix = next((each for each in prefixes if lower.startswith(each.lower())), None)
        if prefix is not None:
            found.setdefault(unquote(lower[len(prefix) :]), []).append(value)
    return tuple((key, tuple(values)) for key, values in sorted(found.items()))


def resource_attributes(method: str, path: str) -> dict[str, str] | None:
    """What a request is about, as the API server's authorizer reads a path.

    ``/apis/GROUP/VERSION/namespaces/NAMESPACE/pods/NAME/METRIC`` is ``get`` of the subresource
    METRIC; without a name it is ``list``. None for what is about no resource: which APIs there are.

    Args:
        method: HTTP's.
        path: as sent, percent signs and all.

    Raises:
        ValueError: two readers could understand the path differently.
    """
    segments = [unquote(segment) for segment in path.strip("/").split("/")]
    if any(not segment or "/" in segment for segment in segments[1:]):
        raise ValueError(f"ambiguous path {path[:200]!r}")
    if len(segments) <= _DISCOVERY_SEGMENTS:
        return None
    _, group, version, *rest = segments
    attributes = {"group": group, "version": version}
    if rest[0] == "namespaces" and len(rest) > 1:
        attributes["namespace"] = rest[1]
        rest = rest[2:] or rest
    verb = {"GET": "get", "HEAD": "get"}.get(method, method.lower())
    if verb == "get" and len(rest) == 1:
        verb = "list"
    fields = zip(("resource", "name", "subresource"), rest, strict=False)
    return {**attributes, "verb": verb, **dict(fields)}


class Reviews:
    """What users may do, as the API server says.

    Args:
        cluster: the API server.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: dict[Any, tuple[float, bool]] = {}
        """Until when (the event loop's clock), and whether it is allowed; the oldest first."""

    async def allow(self, user: User, attributes: Mapping[str, str]) -> bool:
        """Whether ``user`` may do it; an answer is up to ten seconds old.

        Raises:
            ClusterError: the API server does not say.
        """
        question = (user, tuple(sorted(attributes.items())))
        now = asyncio.get_running_loop().time()
        until, allowed = self._known.get(question, (now, False))
        if now < until:
            return allowed
        allowed = await self._ask(user, attributes)
        self._known.pop(question, None)
        self._known[question] = (now + _REVIEW_SECONDS, allowed)
        if len(self._known) > _REVIEWS_KEPT:
            del self._known[next(iter(self._known))]
        return allowed

    async def _ask(self, user: User, attributes: Mapping[str, str]) -> bool:
        spec = {
            "user": user.name,
            "groups": list(user.groups),
            "extra": {key: list(values) for key, values in user.extra},
            "resourceAttributes": dict(attributes),
        }
        resource = SUBJECT_ACCESS_REVIEW
        review = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {}}
        answer = await self._cluster.create(resource, None, {**review, "spec": spec})
        return (answer.get("status") or {}).get("allowed") is True


class FrontProxy:
    """Decides about requests; it refuses all until :meth:`refresh` has found whom to believe.

    Args:
        cluster: the API server.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.trust: Trust | None = None
        self._cluster = cluster
        self._reviews = Reviews(cluster)
        self._authorities: WeakKeyDictionary[ssl.SSLContext, str] = WeakKeyDictionary()
        """By which the certificates of a context's connections were verified."""

    async def refresh(self) -> Trust | None:
        """Read again whom to believe; None when the cluster has no front proxy.

        Raises:
            ClusterError: it cannot be read; what was known holds.
            ValueError: it makes no sense; what was known holds.
        """
        live = await self._cluster.get(CONFIG_MAP, CONFIG_NAMESPACE, CONFIG_NAME)
        self.trust = parse_trust(live.get("data") or {})
        return self.trust

    def context(self, serving: Pair, trust: Trust) -> ssl.SSLContext:
        """TLS for connections on which ``trust`` may speak."""
        context = tls_context(serving, trust.authorities)
        self._authorities[context] = trust.authorities
        return context

    async def authorize(self, request: web.Request) -> web.Response | None:
        """The refusal of a request, or None when it is to be answered."""
        user = self._identify(request)
        if user is None:
            refusal = _refusal(401, "the API server's front proxy did not say who asks")
            refusal.force_close()  # another connection may be verified by other authorities
            return refusal
        try:
            attributes = resource_attributes(request.method, request.rel_url.raw_path)
            if attributes is None or await self._reviews.allow(user, attributes):
                return None
        except ValueError as error:
            return _refusal(400, str(error))
        except ClusterError as error:
            _log.warning("cannot tell whether %s may ask: %s", user.name, error)
            return _refusal(500, "cannot tell whether this is allowed")
        what = f"{attributes['verb']} {request.path}"
        return _refusal(403, f"user {user.name!r} may not {what}"[:1024])

    def _identify(self, request: web.Request) -> User | None:
        transport, trust = request.transport, self.trust
        if transport is None or trust is None:
            return None
        verified_by = self._authorities.get(transport.get_extra_info("sslcontext"))
        if verified_by != trust.authorities:
            return None
        return identify(trust, transport.get_extra_info("peercert"), request.headers)


def _refusal(code: int, message: str) -> web.Response:
    return web.json_response(status_document(code, message), status=code)
