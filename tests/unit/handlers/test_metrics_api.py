"""The metrics APIs over HTTP, as the API server passes questions on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiohttp import ClientSession, web
from yarl import URL

from llmservice.core.autoscaling.policy import Sample
from llmservice.core.metrics_api import Engine, View
from llmservice.handlers.metrics_api import build_application, status_response

MOMENT = datetime(2026, 1, 31, 8, 0, 0, tzinfo=UTC)
CUSTOM = "/apis/custom.metrics.k8s.io"
EXTERNAL = "/apis/external.metrics.k8s.io"
WAITING = "vllm:num_requests_waiting"
PODS = f"{CUSTOM}/v1beta2/namespaces/team/pods"


class Source:
    """One engine in one namespace."""

    def view(self, namespace):
        engine = Engine("chat", "abc", {"app": "chat"}, ready=True, sample=Sample(3, 35, 0.1))
        return View({"chat-1": engine} if namespace == "team" else {}, (), 0.0, 30.0)


class Guard:
    """Who may ask."""

    def __init__(self):
        self.asked = []
        self.refusal = None

    async def __call__(self, request):
        self.asked.append((request.method, request.path))
        return self.refusal


@asynccontextmanager
async def serving(guard=None) -> AsyncIterator[str]:
    application = build_application(Source(), guard or Guard(), lambda: MOMENT)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def ask(path, method="GET", guard=None):
    """Status and document; the path as it is written, escapes and all."""
    async with (
        serving(guard) as base,
        ClientSession() as session,
        session.request(method, URL(base + path, encoded=True)) as answer,
    ):
        assert "application/json" == answer.content_type
        return answer.status, None if method == "HEAD" else await answer.json()


@pytest.mark.parametrize("star", ["*", "%2A", "%2a", "chat-1"])
@pytest.mark.parametrize("metric", [WAITING, "vllm%3Anum_requests_waiting"])
@pytest.mark.parametrize("version", ["v1beta1", "v1beta2"])
async def test_waiting_of_pods(star, metric, version):
    """Escaped or not, as the HPA and kubectl ask."""
    path = f"{CUSTOM}/{version}/namespaces/team/pods/{star}/{metric}"
    status, document = await ask(f"{path}?labelSelector=app%3Dchat&metricLabelSelector=")

    assert 200 == status
    assert ("MetricValueList", f"custom.metrics.k8s.io/{version}") == (
        document["kind"],
        document["apiVersion"],
    )
    (item,) = document["items"]
    assert ("chat-1", "3") == (item["describedObject"]["name"], item["value"])
    assert WAITING == (item["metricName"] if version == "v1beta1" else item["metric"]["name"])


async def test_load_of_pods():
    """Its parameter is in the query."""
    status, document = await ask(f"{PODS}/%2A/llmservice:load?metricLabelSelector=concurrency%3D70")
    assert (200, "667m") == (status, document["items"][0]["value"])


@pytest.mark.parametrize("query", ["labelSelector=app+in+(x)", "labelSelector=%21app"])
async def test_no_pod_is_chosen(query):
    """An empty list, of which the HPA makes an error."""
    status, document = await ask(f"{PODS}/*/{WAITING}?{query}")
    assert (200, []) == (status, document["items"])


async def test_external_metrics():
    """By the labels of a service."""
    path = f"{EXTERNAL}/v1beta1/namespaces/team"
    status, document = await ask(f"{path}/{WAITING}?labelSelector=service%3Dchat%2Crevision%3Dabc")
    assert (200, "3") == (status, document["items"][0]["value"])

    status, document = await ask(
        f"{path}/llmservice:load?labelSelector=service%3Dx,concurrency%3D9"
    )
    assert (200, []) == (status, document["items"])


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/apis", "APIGroupList"),
        (CUSTOM, "APIGroup"),
        (EXTERNAL, "APIGroup"),
        (f"{CUSTOM}/v1beta1", "APIResourceList"),
        (f"{CUSTOM}/v1beta2", "APIResourceList"),
        (f"{EXTERNAL}/v1beta1", "APIResourceList"),
    ],
)
async def test_discovery(path, kind):
    """What the API server and its clients look for."""
    status, document = await ask(path)
    assert (200, kind) == (status, document["kind"])


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/apis/", "/apis/apps", "/apis/apps/v1", "/openapi/v2", f"{CUSTOM}/v1"),
        *(f"{PODS}/*/unknown", f"{PODS}/gone/{WAITING}", f"{PODS}/*/", f"{PODS}/*"),
        f"{CUSTOM}/v1/namespaces/team/pods/*/{WAITING}",
        f"{CUSTOM}/v1beta2/namespaces/team/services/chat/{WAITING}",
        f"{CUSTOM}/v1beta2/namespaces/team/metrics/{WAITING}",
        f"{CUSTOM}/v1beta2/nodes/*/{WAITING}",
        f"{PODS}/*/vllm%2Fnum",
        f"{EXTERNAL}/v1beta1/namespaces/team/unknown",
        f"{EXTERNAL}/v1beta2/namespaces/team/{WAITING}",
    ],
)
async def test_what_is_not_there(path):
    """404, as a Status."""
    status, document = await ask(path)
    assert (404, "Status", "NotFound", 404) == (
        status,
        document["kind"],
        document["reason"],
        document["code"],
    )


@pytest.mark.parametrize(
    "path",
    [
        f"{PODS}/*/{WAITING}?labelSelector=a%3D%3D%3Db",
        f"{PODS}/*/{WAITING}?metricLabelSelector=model%3Dx",
        f"{PODS}/*/llmservice:load",
        f"{PODS}/*/llmservice:load?metricLabelSelector=concurrency%3D0",
        f"{EXTERNAL}/v1beta1/namespaces/team/{WAITING}?labelSelector=,",
        f"{EXTERNAL}/v1beta1/namespaces/team/llmservice:load?labelSelector=service%3Dchat",
    ],
)
async def test_bad_questions(path):
    """400, as a Status that says why."""
    status, document = await ask(path)
    assert (400, "BadRequest", 400) == (status, document["reason"], document["code"])
    assert document["message"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/apis", f"{CUSTOM}/v1beta2", f"{PODS}/*/{WAITING}"])
async def test_other_verbs(method, path):
    """405: nothing here can be changed."""
    status, document = await ask(path, method)
    assert 405 == status
    assert method == "HEAD" or "MethodNotAllowed" == document["reason"]


@pytest.mark.parametrize(
    "path", ["/apis", f"{CUSTOM}/v1beta2", f"{PODS}/*/{WAITING}", f"{PODS}/*/unknown", "/nowhere"]
)
async def test_who_may_not_ask_is_told_nothing(path):
    """Whatever the path, and whether it exists."""
    guard = Guard()
    guard.refusal = status_response(403, "not you")
    status, document = await ask(path, guard=guard)

    assert (403, "not you", "Forbidden") == (status, document["message"], document["reason"])
    assert [("GET", path)] == guard.asked
