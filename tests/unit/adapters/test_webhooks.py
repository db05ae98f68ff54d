"""Gates over HTTP: what they are told, what they may answer, and where none may be."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiohttp import web

from llmservice.adapters.webhooks import ForbiddenAddressError, Webhooks, check_address
from llmservice.core.questions import CallGate, GateAnswer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Desk:
    """Who asks the one gate there is."""

    webhooks: Webhooks
    port: int

    async def call(self, host: str = "127.0.0.1", seconds: float = 5.0) -> GateAnswer:
        url = f"http://{host}:{self.port}/canary?team=search"
        return await self.webhooks.call(CallGate("gate", url, seconds, "abc", '{"weight": 0}'))


@asynccontextmanager
async def a_gate(
    answer: Handler, check: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Desk]:
    application = web.Application()
    application.router.add_route("*", "/elsewhere", agrees)
    application.router.add_route("*", "/canary", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    webhooks = Webhooks(check)
    try:
        yield Desk(webhooks, runner.addresses[0][1])
    finally:
        await webhooks.close()
        await runner.cleanup()


async def agrees(_: web.Request) -> web.StreamResponse:
    return web.Response(text="fine\n with   us")


def says(status: int, text: str = "because") -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    return handler


async def hangs(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def goes_on_forever(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(status=403)
    await answer.prepare(request)
    while True:
        await answer.write(b"no " * 1000)


async def hangs_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def leads_away(_: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("/elsewhere")


async def test_gate_is_told_by_a_post():
    """JSON, at the whole address; its words come back on one line."""
    told = []

    async def listens(request: web.Request) -> web.StreamResponse:
        told.append((request.method, request.path_qs, request.content_type, await request.text()))
        return await agrees(request)

    async with a_gate(listens) as desk:
        assert GateAnswer("abc", 200, "fine with us") == await desk.call()
    assert [("POST", "/canary?team=search", "application/json", '{"weight": 0}')] == told
    assert {"weight": 0} == json.loads(told[0][3])


@pytest.mark.parametrize("status", [204, 400, 403, 429, 500, 503])
async def test_what_it_says_is_passed_on(status):
    """Whatever it means."""
    async with a_gate(says(status, "" if status == 204 else "because")) as desk:
        answer = await desk.call()

    assert (status, "" if status == 204 else "because") == (answer.status, answer.said)


async def test_redirect_is_not_followed():
    """It may lead to where nobody may call."""
    async with a_gate(leads_away) as desk:
        assert 307 == (await desk.call()).status


async def test_proxy_of_the_environment_is_not_asked(monkeypatch):
    """It may reach what we may not."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with a_gate(agrees) as desk:
        assert 200 == (await desk.call()).status


async def test_long_answer_is_cut():
    """Also one without an end."""
    async with a_gate(goes_on_forever) as desk:
        answer = await desk.call()

    assert 403 == answer.status
    assert 500 <= len(answer.said) <= 512


async def test_silence_is_no_answer():
    """As many seconds as the gate has, and no longer."""
    async with a_gate(hangs) as desk:
        assert GateAnswer("abc", None, "no answer within 0.2 s") == await desk.call(seconds=0.2)


async def test_gate_that_is_not_there_is_no_answer():
    """The words say what went wrong."""
    async with a_gate(hangs_up) as desk:
        assert (await desk.call()).status is None
    answer = await _call("http://127.0.0.1:1/")
    assert answer.status is None
    assert "127.0.0.1" in answer.said
    assert (await _call("http://[::1/")).status is None
    assert (await _call("http://nobody:99999/")).status is None
    assert (await _call("http://nobody.invalid/")).status is None


async def _call(url: str, check: Callable[[str], None] = lambda _: None) -> GateAnswer:
    webhooks = Webhooks(check)
    try:
        return await webhooks.call(CallGate("gate", url, 5.0, "abc", "{}"))
    finally:
        await webhooks.close()


@pytest.mark.parametrize(
    ("host", "why"),
    [
        *((host, "which no gate may have") for host in ("127.0.0.1", "0.0.0.0", "localhost")),
        *((host, "does not appear to be") for host in ("127.1", "2130706433")),
    ],
)
async def test_node_of_the_operator_is_not_called(host, why):
    """By whatever name or number; the gate there hears nothing."""
    heard = []

    async def listens(request: web.Request) -> web.StreamResponse:
        heard.append(request)
        return await agrees(request)

    async with a_gate(listens, check_address) as desk:
        answer = await desk.call(host)

    assert answer.status is None
    assert why in answer.said
    assert [] == heard


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"),
        *("169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254"),
        *("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "224.0.0.1", "ff02::1"),
    ],
)
def test_where_no_gate_may_be(address):
    """Loopback, link-local, metadata services, everybody."""
    with pytest.raises(ForbiddenAddressError):
        check_address(address)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "100.64.0.1", "8.8.8.8", "fd00::1"])
def test_where_a_gate_may_be(address):
    """Pods, Services, and the world outside."""
    check_address(address)
