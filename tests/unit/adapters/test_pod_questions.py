"""Questions over HTTP, and what pods may answer instead."""

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from llmservice.adapters.pod_questions import Limits, PodQuestions
from llmservice.core.decision import MetricsRequest
from llmservice.core.observed import KVCacheSize
from llmservice.core.questions import ReadEngine, ReadRouter, WarmedUp, WarmUp
from llmservice.core.router.report import RouterReport, TrackReport, format_report

METRICS = (
    'vllm:num_requests_running{engine="0"} 2.0\n'
    'vllm:num_requests_waiting{engine="0"} 1.0\n'
    'vllm:request_success_total{finished_reason="stop"} 7.0\n'
    'vllm:cache_config_info{kv_cache_size_tokens="32768",kv_cache_max_concurrency="8.0"} 1.0\n'
)
REPORT = RouterReport("v1", {"abc": TrackReport(1, 20, 3)})
HOST = "127.0.0.1"
ENGINE = ReadEngine("pu", HOST)
ROUTER = ReadRouter("pu", HOST)
CAPACITY = MetricsRequest("p", "pu", HOST)
READS = [ENGINE, ROUTER, CAPACITY]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def a_pod(
    answer: Handler, host: str = HOST, limits: Limits | None = None
) -> AsyncIterator[PodQuestions]:
    """Who asks the one pod there is, which answers everything like this."""
    application = web.Application()
    application.router.add_route("*", "/elsewhere", tells)
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, 0).start()
    except OSError:
        await runner.cleanup()
        pytest.skip(f"no {host} on this machine")
    port = runner.addresses[0][1]
    limits = limits or Limits(read=0.3, warm_up=30.0)
    pods = PodQuestions(engine_port=port, agent_port=port, limits=limits)
    try:
        yield pods
    finally:
        await pods.close()
        await runner.cleanup()


async def tells(request: web.Request) -> web.StreamResponse:
    return web.Response(text=format_report(REPORT) if request.path == "/status" else METRICS)


async def fails(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text=METRICS)


async def leads_away(_: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("/elsewhere")


async def hangs(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def hangs_up(request: web.Request) -> web.StreamResponse:
    request.transport.close()
    return web.Response()


async def is_no_text(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff\xfe" + METRICS.encode())


async def is_garbage(_: web.Request) -> web.StreamResponse:
    return web.Response(text="vllm:num_requests_running{{{\nvllm:cache_config_info{{{")


async def is_packed(_: web.Request) -> web.StreamResponse:
    packed = gzip.compress(METRICS.encode())
    return web.Response(body=packed, headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_pods_are_read_by_either_kind_of_address(host):
    """Each question finds its page, at an IPv4 or IPv6 address."""
    async with a_pod(tells, host) as pods:
        reading = await pods.answer(ReadEngine("pu", host))
        assert (7, 2, 1) == (reading.counts.requests, reading.running, reading.waiting)
        assert REPORT == await pods.answer(ReadRouter("pu", host))
        assert KVCacheSize(32768, 8.0) == await pods.answer(MetricsRequest("p", "pu", host))


@pytest.mark.parametrize("question", READS)
@pytest.mark.parametrize(
    "answer", [fails, leads_away, hangs_up, is_no_text, is_garbage, is_packed, hangs]
)
async def test_another_answer_tells_nothing(question, answer):
    """And raises nothing, follows no redirect, unpacks nothing and ends in time."""
    loop = asyncio.get_running_loop()
    async with a_pod(answer) as pods:
        started = loop.time()
        assert await pods.answer(question) is None
        assert loop.time() - started < 5


@pytest.mark.parametrize("question", READS)
async def test_an_endless_answer_is_cut(question):
    """The reader hangs up at its limit; the writer is told by its broken connection."""
    sent = 0

    async def is_endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 256 << 20:
            await response.write(b"# a comment\n" * 4096)
            sent += 12 * 4096
        return response

    async with a_pod(is_endless, limits=Limits(read=30.0)) as pods:
        assert await pods.answer(question) is None
    assert sent < 64 << 20


@pytest.mark.parametrize("address", ["127.0.0.1", "example.org", ""])
async def test_nobody_at_the_address(address):
    """A closed port, and an address that is none."""
    pods = PodQuestions(engine_port=1, agent_port=1)
    assert await pods.answer(ReadEngine("pu", address)) is None
    assert await pods.answer(ReadRouter("pu", address)) is None
    assert (await pods.answer(a_warm_up(address=address))).problem
    await pods.close()


async def test_no_cookie_and_no_proxy(monkeypatch):
    """What one pod sets reaches no other, and the environment leads nowhere else."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    cookies = []

    async def bakes(request: web.Request) -> web.StreamResponse:
        cookies.append(dict(request.cookies))
        return web.Response(text=METRICS, headers={"Set-Cookie": "a=b"})

    async with a_pod(bakes) as pods:
        assert await pods.answer(ENGINE) is not None
        assert await pods.answer(ENGINE) is not None
    assert [{}, {}] == cookies


# --- warming up -----------------------------------------------------------------------------------


def a_warm_up(requests=3, address=HOST):
    return WarmUp("pu", address, "tiny", "Hello", requests)


async def test_warm_up_asks_one_after_the_other():
    """As often as wanted, and for a few tokens only."""
    asked, at_once = [], []

    async def completes(request: web.Request) -> web.StreamResponse:
        at_once.append(request)
        asked.append((request.method, request.path, await request.json()))
        await asyncio.sleep(0)
        assert at_once == [request]
        at_once.remove(request)
        return web.json_response({"choices": []}, status=201)

    async with a_pod(completes) as pods:
        assert WarmedUp() == await pods.answer(a_warm_up())
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 8}
    assert [("POST", "/v1/completions", body)] * 3 == asked


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_model_that_does_not_complete_is_no_problem(status, caplog):
    """It may chat or embed only; it is asked once, and a log line says so."""
    asked = 0

    async def refuses(_: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.Response(status=status, text="no completions here")

    caplog.set_level(logging.INFO)
    async with a_pod(refuses) as pods:
        assert WarmedUp() == await pods.answer(a_warm_up())
    assert 1 == asked
    assert f"HTTP {status}: no completions here" in caplog.text


async def test_engine_that_fails_is_a_problem():
    """Its own words are cut, and put on one line."""

    async def breaks(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503, text="dead\x00\n  engine " + "x" * 10_000)

    async with a_pod(breaks) as pods:
        problem = (await pods.answer(a_warm_up())).problem
    assert problem.startswith("HTTP 503: dead engine xxx")
    assert len(problem) < 300


@pytest.mark.parametrize("answer", [leads_away, hangs_up])
async def test_engine_that_does_not_answer_is_a_problem(answer):
    """A redirect is no answer either."""
    async with a_pod(answer) as pods:
        assert (await pods.answer(a_warm_up())).problem


async def test_warm_up_ends_in_time():
    """The limit is for all requests together."""
    async with a_pod(hangs, limits=Limits(warm_up=0.3)) as pods:
        assert WarmedUp("no answer within 0.3 s") == await pods.answer(a_warm_up())


async def test_warm_up_may_take_longer_than_a_read():
    """The first requests after a start are slow."""

    async def is_slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return web.Response()

    async with a_pod(is_slow, limits=Limits(read=0.01, warm_up=30.0)) as pods:
        assert WarmedUp() == await pods.answer(a_warm_up())
