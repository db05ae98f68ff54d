"""What engines say of their KV cache, and what they may answer instead."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from llmservice.adapters.engine_metrics import EngineMetrics, parse_size
from llmservice.core.observed import KVCacheSize


def series(engine="0", **labels):
    """The gauge of one engine as vLLM 0.32 writes it; a label of None is left out."""
    told = {
        "block_size": "128",
        "cache_dtype": "auto",
        "enable_prefix_caching": "True",
        "engine": engine,
        "kv_cache_max_concurrency": "8.0",
        "kv_cache_size_tokens": "32768",
        "mamba_block_size": "None",
        "num_gpu_blocks": "256",
        "num_gpu_blocks_override": "None",
        "user": '{"a": "b, c}"}\\n',
        **labels,
    }
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        for name, value in told.items()
        if value is not None
    }
    inside = ",".join(f'{name}="{value}"' for name, value in escaped.items())
    return f"vllm:cache_config_info{{{inside}}} 1.0\n"


def exposition(*lines):
    """An answer of ``/metrics`` around these lines."""
    return (
        "# HELP python_info Python platform information\n"
        "# TYPE python_info gauge\n"
        'python_info{implementation="CPython",version="3.12.11"} 1.0\n'
        "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
        "# TYPE vllm:num_requests_running gauge\n"
        'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0\n'
        "# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig\n"
        "# TYPE vllm:cache_config_info gauge\n" + "".join(lines) + "# TYPE http_requests counter\n"
        'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 3.0\n'
    )


def test_one_engine_tells():
    """Two labels among many, some of which hold quotes, braces and escapes."""
    assert KVCacheSize(32768, 8.0) == parse_size(exposition(series()))


def test_data_parallel_engines_add_up():
    """Each rank has a cache of its own."""
    second = series("1", kv_cache_size_tokens="30000", kv_cache_max_concurrency="7.25")
    assert KVCacheSize(62768, 15.25) == parse_size(exposition(series(), second))


def test_the_same_twice_counts_once():
    """A series per process of the API server is still one engine."""
    again = series(block_size="16")
    assert KVCacheSize(32768, 8.0) == parse_size(exposition(series(), again))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [series(kv_cache_size_tokens=None, kv_cache_max_concurrency=None)],
        [series(kv_cache_size_tokens=None)],
        [series(kv_cache_max_concurrency="None")],
        [series(kv_cache_size_tokens="many")],
        [series(kv_cache_size_tokens="0")],
        [series(kv_cache_size_tokens="-5")],
        [series(kv_cache_size_tokens="9" * 30)],
        [series(kv_cache_size_tokens="9" * 9000)],
        [series(kv_cache_max_concurrency="NaN")],
        [series(kv_cache_max_concurrency="inf")],
        [series(), series("1", kv_cache_size_tokens=None)],
        [series(), series(kv_cache_size_tokens="5")],
        ["vllm:cache_config_info 1.0\n"],
        ['vllm:cache_config_info_more{kv_cache_size_tokens="1",kv_cache_max_concurrency="1"} 1\n'],
    ],
)
def test_what_is_not_told_is_not_guessed(lines):
    """No series, labels of older versions, nonsense, one of two ranks, two words of one rank."""
    assert parse_size(exposition(*lines)) is None


@given(st.text(max_size=200), st.integers(0, 400))
def test_garbage_is_refused_or_ignored(garbage, cut):
    """Whatever stands in the line, only ValueError comes out."""
    line = series()
    try:
        size = parse_size(line[: cut % len(line)] + garbage)
    except ValueError:
        return
    assert size is None or size.tokens > 0


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def an_engine(answer: Answer, host: str = "127.0.0.1") -> AsyncIterator[EngineMetrics]:
    """A reader of the one engine there is, which answers like this."""
    application = web.Application()
    application.router.add_get("/metrics", answer)
    application.router.add_get("/elsewhere", tells)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, 0).start()
    except OSError:
        await runner.cleanup()
        pytest.skip(f"no {host} on this machine")
    metrics = EngineMetrics(port=runner.addresses[0][1], seconds=0.3)
    try:
        yield metrics
    finally:
        await metrics.close()
        await runner.cleanup()


async def tells(_: web.Request) -> web.StreamResponse:
    return web.Response(text=exposition(series()))


async def is_absent(_: web.Request) -> web.StreamResponse:
    return web.Response(status=404, text=exposition(series()))


async def leads_away(_: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("/elsewhere")


async def hangs(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def is_no_text(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff\xfe" + exposition(series()).encode())


async def is_garbage(_: web.Request) -> web.StreamResponse:
    return web.Response(text="vllm:cache_config_info{{{")


async def is_packed(_: web.Request) -> web.StreamResponse:
    packed = gzip.compress(exposition(series()).encode())
    return web.Response(body=packed, headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_engine_is_read_by_either_kind_of_address(host):
    """Pods have IPv4 or IPv6 addresses."""
    async with an_engine(tells, host) as metrics:
        assert KVCacheSize(32768, 8.0) == await metrics.read(host)


@pytest.mark.parametrize("answer", [is_absent, leads_away, is_no_text, is_garbage, is_packed])
async def test_another_answer_tells_nothing(answer):
    """And raises nothing, follows no redirect and unpacks nothing."""
    async with an_engine(answer) as metrics:
        assert await metrics.read("127.0.0.1") is None


async def test_a_hanging_engine_is_left():
    """Within the time limit of one read."""
    loop = asyncio.get_running_loop()
    async with an_engine(hangs) as metrics:
        started = loop.time()
        assert await metrics.read("127.0.0.1") is None
        assert loop.time() - started < 5


async def test_an_endless_answer_is_cut():
    """The reader hangs up after 2 MiB; the writer is told by its broken connection."""
    sent = 0

    async def is_endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 256 << 20:
            await response.write(b"# a comment\n" * 4096)
            sent += 12 * 4096
        return response

    async with an_engine(is_endless) as metrics:
        patient = EngineMetrics(port=metrics._port, seconds=30)
        assert await patient.read("127.0.0.1") is None
        await patient.close()
    assert sent < 64 << 20


async def test_nobody_at_the_address():
    """A closed port, and an address that is none."""
    metrics = EngineMetrics(port=1)
    assert await metrics.read("127.0.0.1") is None
    assert await metrics.read("example.org") is None
    await metrics.close()
