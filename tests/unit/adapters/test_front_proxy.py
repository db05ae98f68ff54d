"""Whom the metrics server believes, what a path asks for, and how answers are kept."""

import json
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from llmservice.adapters.clock import utc_now
from llmservice.adapters.front_proxy import (
    CONFIG_NAME,
    CONFIG_NAMESPACE,
    FrontProxy,
    Reviews,
    Trust,
    User,
    identify,
    parse_trust,
    resource_attributes,
)
from llmservice.adapters.ports import NotFound, Unavailable
from llmservice.adapters.serving_certificates import issue
from tests.unit.adapters.fake_cluster import FakeCluster
from tests.unit.handlers.fake_time import in_fake_time

CONFIG = {
    "client-ca-file": "of clients, and no business of ours",
    "requestheader-client-ca-file": issue(("proxy",), utc_now()).bundle.decode(),
    "requestheader-allowed-names": '["front-proxy-client"]',
    "requestheader-username-headers": '["X-Remote-User","X-Also"]',
    "requestheader-group-headers": '["X-Remote-Group"]',
    "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
    "requestheader-uid-headers": '["X-Remote-Uid"]',
}
PROXY = {"subject": ((("organizationName", "x"),), (("commonName", "front-proxy-client"),))}
HPA = User("system:serviceaccount:kube-system:horizontal-pod-autoscaler", ("system:authenticated",))
POD_METRIC = (
    "/apis/custom.metrics.k8s.io/v1beta2/namespaces/team/pods/%2A/vllm:num_requests_waiting"
)


def trust(**changes: str) -> Trust:
    found = parse_trust({**CONFIG, **{f"requestheader-{k}": v for k, v in changes.items()}})
    assert found is not None
    return found


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


class AskedCluster(FakeCluster):
    """Answers reviews: who is in `allowed` may do everything."""

    def __init__(self, *allowed: str) -> None:
        super().__init__()
        self.allowed = allowed
        self.asked: list[Any] = []

    async def create(self, resource, namespace, manifest):
        await self._called("create", resource)
        assert namespace is None
        self.asked.append(manifest["spec"])
        return {**manifest, "status": {"allowed": manifest["spec"]["user"] in self.allowed}}


# --- whom to believe ------------------------------------------------------------------------------


def test_the_proxy_says_who_asks():
    """User, every group, and what else authenticators said, with keys unescaped."""
    told = headers(
        ("X-Remote-User", "jane"),
        ("X-Remote-Group", "a"),
        ("x-remote-group", "b"),
        ("X-Remote-Extra-Scopes", "s1"),
        ("X-Remote-Extra-Scopes", "s2"),
        ("X-Remote-Extra-Acme.com%2Fproject", "p"),
    )
    extra = (("acme.com/project", ("p",)), ("scopes", ("s1", "s2")))
    assert User("jane", ("a", "b"), extra) == identify(trust(), PROXY, told)


def test_the_first_header_that_names_somebody_counts():
    """The cluster says which headers; another one is nothing."""
    assert User("jane") == identify(trust(), PROXY, headers(("X-Also", "jane")))
    both = headers(("X-Also", "joe"), ("X-Remote-User", "jane"))
    assert User("jane") == identify(trust(), PROXY, both)
    assert identify(trust(), PROXY, headers(("X-Forwarded-User", "jane"))) is None
    assert identify(trust(), PROXY, headers(("X-Remote-User", ""))) is None


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        {},
        {"subject": ((("commonName", "somebody"),),)},
        {"subject": ((("organizationName", "front-proxy-client"),),)},
        {"subject": ((("commonName", "front-proxy-client"),), (("commonName", "x"),))},
    ],
    ids=["none", "empty", "other name", "no name", "two names"],
)
def test_headers_are_nothing_without_the_proxy_s_certificate(certificate):
    """Anybody can write headers."""
    told = headers(("X-Remote-User", "system:admin"), ("X-Remote-Group", "system:masters"))
    assert identify(trust(), certificate, told) is None


def test_without_a_list_of_names_the_authority_is_enough():
    """As Kubernetes defines it."""
    told = headers(("X-Remote-User", "jane"))
    anyone = {"subject": ((("commonName", "somebody"),),)}
    for names in ("[]", ""):
        assert User("jane") == identify(trust(**{"allowed-names": names}), anyone, told)
        assert identify(trust(**{"allowed-names": names}), None, told) is None


def test_a_cluster_without_a_front_proxy_is_told_apart_from_a_broken_one():
    """The one is a setting, the other must not loosen anything."""
    assert parse_trust({}) is None
    for words in ('"front-proxy-client"', "[1]", "nonsense", '{"a": 1}'):
        with pytest.raises(ValueError, match=r"."):
            parse_trust({**CONFIG, "requestheader-allowed-names": words})
    with pytest.raises(ValueError, match="PEM"):
        parse_trust({**CONFIG, "requestheader-client-ca-file": "nonsense"})


# --- what is asked --------------------------------------------------------------------------------

_CUSTOM = {"group": "custom.metrics.k8s.io", "version": "v1beta2"}


@pytest.mark.parametrize(
    ("path", "expected"),
    {
        POD_METRIC: {
            **_CUSTOM,
            "namespace": "team",
            "resource": "pods",
            "name": "*",
            "subresource": "vllm:num_requests_waiting",
            "verb": "get",
        },
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/team/llmservice:load": {
            "group": "external.metrics.k8s.io",
            "version": "v1beta1",
            "namespace": "team",
            "resource": "llmservice:load",
            "verb": "list",
        },
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/team/metrics/m": {
            **_CUSTOM,
            "namespace": "team",
            "resource": "metrics",
            "name": "m",
            "verb": "get",
        },
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/team": {
            **_CUSTOM,
            "namespace": "team",
            "resource": "namespaces",
            "name": "team",
            "verb": "get",
        },
        "/apis/custom.metrics.k8s.io/v1beta2/nodes/n/m": {
            **_CUSTOM,
            "resource": "nodes",
            "name": "n",
            "subresource": "m",
            "verb": "get",
        },
        "/": None,
        "/apis": None,
        "/apis/custom.metrics.k8s.io/": None,
        "/apis/custom.metrics.k8s.io/v1beta2": None,
        "/openapi/v2": None,
    }.items(),
)
def test_a_path_is_read_as_the_api_server_reads_it(path, expected):
    """Roles are written for its reading."""
    assert expected == resource_attributes("GET", path)


def test_another_method_is_another_verb():
    """Who may get may not delete, should there ever be something to delete."""
    found = resource_attributes("DELETE", POD_METRIC)
    assert found is not None
    assert "delete" == found["verb"]


@pytest.mark.parametrize(
    "path",
    [
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/mine%2Fpods%2Fp/pods/p/m",
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces//pods/p/m",
        "/apis/custom.metrics.k8s.io%2Fv1beta2/namespaces/team",
    ],
)
def test_a_path_that_two_readers_could_understand_differently_is_refused(path):
    """Else one thing would be allowed, and another be answered."""
    with pytest.raises(ValueError, match="ambiguous"):
        resource_attributes("GET", path)


# --- whether it is allowed ------------------------------------------------------------------------


@in_fake_time
async def test_the_api_server_is_asked_once_in_ten_seconds():
    """About each user and question by itself; yes and no alike."""
    import asyncio

    cluster = AskedCluster(HPA.name)
    reviews = Reviews(cluster)
    attributes = resource_attributes("GET", POD_METRIC) or {}
    jane = User("jane", ("g",), (("k", ("v",)),))
    for _ in range(3):
        assert await reviews.allow(HPA, attributes)
        assert not await reviews.allow(jane, attributes)
    assert [HPA.name, "jane"] == [spec["user"] for spec in cluster.asked]
    assert {
        "user": "jane",
        "groups": ["g"],
        "extra": {"k": ["v"]},
        "resourceAttributes": attributes,
    } == cluster.asked[1]

    assert await reviews.allow(HPA, {**attributes, "namespace": "other"})
    assert 3 == len(cluster.asked)

    cluster.allowed = ("jane",)
    await asyncio.sleep(9)
    assert not await reviews.allow(jane, attributes)
    await asyncio.sleep(2)
    assert await reviews.allow(jane, attributes)
    assert not await reviews.allow(HPA, attributes)


@in_fake_time
async def test_no_answer_is_neither_yes_nor_remembered():
    """The caller refuses; the next request asks again."""
    cluster = AskedCluster(HPA.name)
    reviews = Reviews(cluster)
    cluster.failures["create", "SubjectAccessReview"] = [Unavailable("away")]
    with pytest.raises(Unavailable):
        await reviews.allow(HPA, {})
    assert await reviews.allow(HPA, {})


@in_fake_time
async def test_an_answer_without_a_verdict_is_a_no():
    """Whatever a proxy in between may make of it."""
    cluster = FakeCluster()
    review = Reviews(cluster)
    cluster.create = _nothing  # type: ignore[method-assign]
    assert not await review.allow(HPA, {})


async def _nothing(*_: Any) -> dict[str, Any]:
    return {"status": {"allowed": "true"}}


@in_fake_time
async def test_what_is_kept_is_bounded():
    """One user may ask about any number of names."""
    reviews = Reviews(AskedCluster("jane"))
    for number in range(5000):
        await reviews.allow(User("jane"), {"name": str(number)})
    assert 4096 == len(reviews._known)


# --- the cluster's ConfigMap ----------------------------------------------------------------------


def a_config_map(**changes: str) -> dict[str, Any]:
    metadata = {"namespace": CONFIG_NAMESPACE, "name": CONFIG_NAME}
    return {"kind": "ConfigMap", "metadata": metadata, "data": {**CONFIG, **changes}}


async def test_what_was_known_holds_until_something_else_can_be_read():
    """An API server that is away, or a slip of somebody's pen, changes nothing."""
    cluster = FakeCluster()
    proxy = FrontProxy(cluster)
    with pytest.raises(NotFound):
        await proxy.refresh()
    assert proxy.trust is None

    cluster.put(a_config_map())
    known = await proxy.refresh()
    assert known == trust()
    cluster.put(a_config_map(**{"requestheader-allowed-names": "["}))
    with pytest.raises(json.JSONDecodeError):
        await proxy.refresh()
    assert proxy.trust is known

    cluster.put(a_config_map(**{"requestheader-client-ca-file": ""}))
    assert await proxy.refresh() is None
    assert proxy.trust is None
