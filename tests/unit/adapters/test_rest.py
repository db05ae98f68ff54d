"""The thin client against a server on loopback that answers what it is told."""

import json
import ssl

import pytest
from aiohttp import web

from llmservice.adapters import ports
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.resources import DEPLOYMENT, LLM_SERVICE, POD, SERVICE
from llmservice.adapters.rest import RestCluster


class Server:
    """Answers every request with :attr:`answer` and keeps what it was asked."""

    def __init__(self):
        self.requests = []
        self.tokens = []
        self.answer = lambda _: web.json_response({})

    async def handle(self, request):
        self.requests.append((request.method, request.path_qs, await request.text()))
        self.tokens.append(request.headers.get("Authorization"))
        self.headers = request.headers
        answer = self.answer(request)
        return answer if isinstance(answer, web.StreamResponse) else await answer


@pytest.fixture
async def server():
    server = Server()
    application = web.Application(client_max_size=10**7)
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


def a_kubeconfig(path, server, token="first"):
    path.write_text(
        json.dumps(
            {
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": server.url}}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            }
        )
    )
    return path


@pytest.fixture
async def cluster(server, tmp_path):
    kubeconfig = a_kubeconfig(tmp_path / "config", server)
    cluster = RestCluster(
        await Connection.open(Credentials(kubeconfig=kubeconfig)), request_seconds=2
    )
    yield cluster
    await cluster.close()


def status(code, message="as the server says", **headers):
    body = {"kind": "Status", "message": message, "code": code}
    return web.json_response(body, status=code, headers=headers)


async def test_apply_is_a_server_side_apply(server, cluster):
    """The verb, the path, the manager, the content type."""
    manifest = {"metadata": {"name": "d"}, "spec": {}}
    await cluster.apply(DEPLOYMENT, "team", manifest, field_manager="llmservice", force=True)

    method, path, body = server.requests[0]
    assert "PATCH" == method
    assert "/apis/apps/v1/namespaces/team/deployments/d?fieldManager=llmservice&force=true" == path
    assert manifest == json.loads(body)
    assert "application/apply-patch+yaml" == server.headers["Content-Type"]


async def test_patch_is_a_json_patch(server, cluster):
    """A list of operations, under the name of who sets the fields."""
    operations = [{"op": "test", "path": "/spec/replicas", "value": 1}]
    await cluster.patch(DEPLOYMENT, "team", "d", operations, field_manager="llmservice-traffic")

    method, path, body = server.requests[0]
    assert "PATCH" == method
    assert "/apis/apps/v1/namespaces/team/deployments/d?fieldManager=llmservice-traffic" == path
    assert operations == json.loads(body)
    assert "application/json-patch+json" == server.headers["Content-Type"]


async def test_paths_of_core_groups_and_subresources(server, cluster):
    """The core group has a path of its own; a list may span all namespaces."""
    await cluster.get(SERVICE, "team", "s")
    await cluster.list_page(LLM_SERVICE, None, label_selector="a=b", limit=7)
    await cluster.apply(
        LLM_SERVICE,
        "team",
        {"metadata": {"name": "m"}},
        field_manager="m",
        force=False,
        subresource="status",
    )

    assert [
        "/api/v1/namespaces/team/services/s",
        "/apis/llmservice.dev/v1alpha1/llmservices?limit=7&labelSelector=a%3Db",
        (
            "/apis/llmservice.dev/v1alpha1/namespaces/team/llmservices/m/status"
            "?fieldManager=m&force=false"
        ),
    ] == [path for _, path, _ in server.requests]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (400, ports.Invalid),
        (401, ports.Unavailable),
        (403, ports.Forbidden),
        (404, ports.NotFound),
        (409, ports.Conflict),
        (410, ports.Gone),
        (422, ports.Invalid),
        (429, ports.TooManyRequests),
        (500, ports.Unavailable),
        (503, ports.Unavailable),
    ],
)
async def test_error_statuses_become_our_errors(server, cluster, code, expected):
    """With the API server's own words."""
    server.answer = lambda _: status(code)

    with pytest.raises(expected, match="as the server says"):
        await cluster.get(POD, "team", "p")


async def test_retry_after_is_kept(server, cluster):
    """The queue waits that long at least."""
    server.answer = lambda _: status(429, **{"Retry-After": "17"})

    with pytest.raises(ports.TooManyRequests) as caught:
        await cluster.get(POD, "team", "p")
    assert 17 == caught.value.retry_after_seconds


async def test_unknown_field_in_an_apply_is_no_outage(server, cluster):
    """The API server answers it with 500; trying again cannot help."""
    said = "failed to create typed patch object (/d): .spec.foo: field not declared in schema"
    server.answer = lambda _: status(500, said)

    with pytest.raises(ports.Invalid, match=r"\.spec\.foo"):
        await cluster.get(POD, "team", "p")


async def test_long_words_are_cut_and_foreign_pages_left_out(server, cluster):
    """A proxy's page may hold anything."""
    server.answer = lambda _: status(422, "x" * 5000)
    with pytest.raises(ports.Invalid) as caught:
        await cluster.get(POD, "team", "p")
    assert 1024 == len(str(caught.value))

    server.answer = lambda _: web.Response(status=502, text="<html>token=secret</html>")
    with pytest.raises(ports.Unavailable) as caught:
        await cluster.get(POD, "team", "p")
    assert "HTTP 502" == str(caught.value)


async def test_unreachable_server_and_nonsense_are_unavailable(server, cluster):
    """Neither is a reason to crash."""
    server.answer = lambda _: web.Response(text="{")
    with pytest.raises(ports.Unavailable):
        await cluster.get(POD, "team", "p")

    cluster._server = "http://127.0.0.1:1"
    with pytest.raises(ports.Unavailable):
        await cluster.get(POD, "team", "p")


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ((1, 37), {"major": "1", "minor": "37", "gitVersion": "v1.37.1"}),
        ((1, 35), {"major": "1", "minor": "35+"}),
    ],
)
async def test_version_of_the_server(server, cluster, expected, answer):
    """Providers add signs to it."""
    server.answer = lambda _: web.json_response(answer)
    assert expected == await cluster.server_version()
    assert ("GET", "/version", "") == server.requests[-1]


@pytest.mark.parametrize("answer", [{}, {"major": "1", "minor": ""}, ["1", "37"]])
async def test_server_that_does_not_say_its_version(server, cluster, answer):
    """Callers have one kind of error to think of."""
    server.answer = lambda _: web.json_response(answer)
    with pytest.raises(ports.Unavailable):
        await cluster.server_version()


async def test_delete_of_what_is_gone_is_done(server, cluster):
    """And names the uid it means."""
    server.answer = lambda _: status(404)
    await cluster.delete(SERVICE, "team", "s", uid="u1")

    assert "u1" == json.loads(server.requests[0][2])["preconditions"]["uid"]


def stream(*chunks):
    async def answer(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        return response

    return answer


async def watched(cluster):
    return [
        event
        async for event in cluster.watch(POD, None, label_selector="a=b", resource_version="5")
    ]


async def test_watch_reads_lines_however_they_are_cut(server, cluster):
    """Lines of any length, across chunks, several in one."""
    big = "x" * 3_000_000
    lines = b"".join(
        json.dumps({"type": kind, "object": {"name": name}}).encode() + b"\n"
        for kind, name in (("ADDED", "a"), ("MODIFIED", big), ("BOOKMARK", "c"))
    )
    server.answer = stream(lines[:10], lines[10:100], lines[100:])
    events = await watched(cluster)

    assert ["ADDED", "MODIFIED", "BOOKMARK"] == [event.type for event in events]
    assert big == events[1].object["name"]
    _, path, _ = server.requests[0]
    assert "watch=true&allowWatchBookmarks=true&resourceVersion=5" in path
    assert "labelSelector=a%3Db" in path


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"kind": "Status", "code": 410, "message": "too old"}, ports.Gone),
        ({"kind": "Status", "code": 500, "message": "etcd"}, ports.Unavailable),
        ({}, ports.Unavailable),
    ],
)
async def test_error_on_a_watch_is_raised(server, cluster, error, expected):
    """An expired version differs from trouble."""
    server.answer = stream(json.dumps({"type": "ERROR", "object": error}).encode() + b"\n")

    with pytest.raises(expected):
        await watched(cluster)


@pytest.mark.parametrize("line", [b"nonsense\n", b"{}\n", b"[]\n", b'{"type": "ADDED"}\n'])
async def test_nonsense_on_a_watch_is_unavailable(server, cluster, line):
    """The reflector tries again."""
    server.answer = stream(line)

    with pytest.raises(ports.Unavailable):
        await watched(cluster)


async def test_pod_log_keeps_the_end(server, cluster):
    """64 KiB of it; the cause stands there."""
    server.answer = stream(b"begin" + b"x" * 100_000, b"\xff the cause")
    text = await cluster.pod_log("team", "p", container="engine", previous=True, tail_lines=400)

    assert text.endswith(" the cause")
    assert "begin" not in text
    assert len(text) <= 64 * 1024
    assert (
        "/api/v1/namespaces/team/pods/p/log?container=engine&previous=true&tailLines=400"
        == server.requests[0][1]
    )


async def test_refused_token_is_read_anew_once(server, tmp_path):
    """A rotated token costs one request."""
    kubeconfig = a_kubeconfig(tmp_path / "config", server)
    cluster = RestCluster(await Connection.open(Credentials(kubeconfig=kubeconfig)))
    a_kubeconfig(kubeconfig, server, token="second")
    server.answer = lambda request: (
        web.json_response({"ok": True})
        if request.headers["Authorization"] == "Bearer second"
        else status(401)
    )

    assert {"ok": True} == await cluster.get(POD, "team", "p")
    assert ["Bearer first", "Bearer second"] == server.tokens

    await cluster.get(POD, "team", "p")
    assert 3 == len(server.tokens)
    await cluster.close()


async def test_token_that_stays_refused_is_reported(server, cluster):
    """Not tried over and over."""
    server.answer = lambda _: status(401)

    for _ in range(3):
        with pytest.raises(ports.Unavailable):
            await cluster.get(POD, "team", "p")
    assert 3 == len(server.tokens)


async def test_service_account_is_used_inside_a_pod(server, monkeypatch, tmp_path):
    """Host, CA and token come from where the kubelet puts them."""
    from kubernetes.aio.config import incluster_config

    (tmp_path / "token").write_text("of-the-pod\n")
    (tmp_path / "ca.crt").write_text(ssl.DER_cert_to_PEM_cert(b"not a certificate"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))

    assert Credentials().in_cluster
    assert not Credentials(context="kind-kind").in_cluster
    with pytest.raises(ports.Unavailable, match="no usable service account: ") as raised:
        await Connection.open(Credentials())
    assert isinstance(raised.value.__cause__, ssl.SSLError)  # it is that CA file that it reads
