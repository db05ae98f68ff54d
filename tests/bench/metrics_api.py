"""What the metrics server costs with many pods, one JSON line for each figure.

::

    python -m tests.bench.metrics_api [--pods 1000] [--seconds 30] [--answers 500]

The scraper and the HTTP API run in a process of their own, with defaults; another process is all
the engines at once, and says what a vLLM does in as many bytes. Both are asked over loopback,
without TLS. Questions come one at a time while the scraping goes on. Wall times mean little on a
busy machine; CPU time does.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from llmservice.adapters.clock import utc_now
from llmservice.adapters.gauges import Gauges, Limits
from llmservice.api import names
from llmservice.core.autoscaling.policy import LOAD_METRIC, WAITING_METRIC
from llmservice.handlers.metrics_api import build_application
from tests.bench import procfs

Line = dict[str, Any]

_ROOT = Path(__file__).parents[2]
_HOST, _HANGING_HOST = "127.0.0.1", "127.0.0.2"
_SERVICE, _REVISION, _NAMESPACE = "chat", "0123456789", "team"
_PAUSE_SECONDS = 0.02
"""Between two questions: an HPA asks one in seconds, but a figure needs many."""
_PATIENCE_SECONDS = 120
_OTHER_HISTOGRAMS = 20
"""Beside those that are read: what vLLM 0.33 has of them, about."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    pods: int = 1000
    seconds: float = 30.0
    """Of scraping, before anything is asked."""
    answers: int = 500
    """To each question."""
    interval: float = Limits().interval


async def figures(plan: Plan) -> AsyncIterator[Line]:
    """All of them, one after the other."""
    async with _stage(plan) as (session, pid, engines):
        yield await _scraping(plan, session, pid, engines)
        for name, path in _questions().items():
            yield await _asking(plan, session, pid, name, path)
    async with _stage(plan, "half of them hang") as (session, pid, _):
        yield await _half(plan, session, pid)


@asynccontextmanager
async def _stage(plan: Plan, *half: str) -> AsyncIterator[tuple[aiohttp.ClientSession, int, int]]:
    """A client of the subject, the subject's process, and the port of the engines."""
    async with _process("engines") as (_, engines):
        arguments = (str(engines), str(plan.pods), str(plan.interval), *half)
        async with (
            _process("subject", *arguments) as (pid, port),
            aiohttp.ClientSession(f"http://{_HOST}:{port}") as session,
        ):
            yield session, pid, engines


def _questions() -> dict[str, str]:
    """What an HPA would ask, by a name."""
    selector = f"{names.SERVICE_LABEL}%3D{_SERVICE}%2C{names.REVISION_LABEL}%3D{_REVISION}"
    pods = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{_NAMESPACE}/pods/%2A"
    external = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{_NAMESPACE}"
    return {
        "waiting of all pods": f"{pods}/{WAITING_METRIC}?labelSelector={selector}",
        "load of all pods": f"{pods}/{LOAD_METRIC}?labelSelector={selector}"
        "&metricLabelSelector=concurrency%3D179",
        "sum of waiting": f"{external}/{WAITING_METRIC}?labelSelector=service%3D{_SERVICE}",
    }


# --- what is measured -----------------------------------------------------------------------------


async def _scraping(plan: Plan, session: aiohttp.ClientSession, pid: int, engines: int) -> Line:
    await _until_known(session, plan.pods)
    before, started, meter = await _metrics(session), time.monotonic(), procfs.Meter([pid])
    await asyncio.sleep(plan.seconds)  # what is measured is what it does by itself
    used, seconds, after = meter.read(), time.monotonic() - started, await _metrics(session)
    scrapes = after["scrape_seconds_count"] - before["scrape_seconds_count"]
    return {
        "figure": "scraping",
        "pods": plan.pods,
        "interval_s": plan.interval,
        "exposition_bytes": await _exposition_bytes(engines),
        "scrapes_per_second": round(scrapes / seconds, 1),
        "without_sample": after["pods_without_sample"],
        "cpu_cores": round(used.cpu_seconds / seconds, 3),
        "cpu_ms_per_scrape": round(1000 * used.cpu_seconds / scrapes, 3),
        "peak_rss_mib": round(procfs.peak_rss_mib(pid), 1),
        "cores_used_by_others": round(used.other_cores, 2),
    }


async def _until_known(session: aiohttp.ClientSession, pods: int) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            told = await _metrics(session)
            if told["pods"] - told["pods_without_sample"] >= pods:
                return
            await asyncio.sleep(0.1)


async def _half(plan: Plan, session: aiohttp.ClientSession, pid: int) -> Line:
    """Connections to every other pod are taken, and nothing is ever said."""
    await _until_known(session, plan.pods // 2)
    meter, started, ages = procfs.Meter([pid]), time.monotonic(), []
    while (seconds := time.monotonic() - started) < plan.seconds:
        async with session.get(URL(_questions()["waiting of all pods"], encoded=True)) as answer:
            items = (await answer.json())["items"]
        times = [datetime.fromisoformat(item["timestamp"]) for item in items]
        ages.append((utc_now() - min(times)).total_seconds())
        await asyncio.sleep(1)
    used = meter.read()
    return {
        "figure": "half of the pods hang",
        "pods": plan.pods,
        "interval_s": plan.interval,
        "items": len(items),
        "oldest_sample_s": round(max(ages), 1),
        "oldest_sample_at_the_end_s": round(ages[-1], 1),
        "cpu_cores": round(used.cpu_seconds / seconds, 3),
        "peak_rss_mib": round(procfs.peak_rss_mib(pid), 1),
        "cores_used_by_others": round(used.other_cores, 2),
    }


async def _asking(
    plan: Plan, session: aiohttp.ClientSession, pid: int, name: str, path: str
) -> Line:
    seconds, size, before = [], 0, await _metrics(session)
    meter = procfs.Meter([pid])
    for _ in range(plan.answers):
        await asyncio.sleep(_PAUSE_SECONDS)
        started = time.perf_counter()
        async with session.get(URL(path, encoded=True)) as answer:
            body = await answer.read()
        seconds.append(time.perf_counter() - started)
        assert answer.status == 200, body
        size = len(body)
    used, after = meter.read(), await _metrics(session)
    return {
        "figure": "answer",
        "question": name,
        "items": len(json.loads(body)["items"]),
        "bytes": size,
        "answers": plan.answers,
        **{f"p{share}_ms": _quantile_ms(seconds, share) for share in (50, 99)},
        "worst_ms": _quantile_ms(seconds, 100),
        "cpu_ms_with_scraping": round(1000 * used.cpu_seconds / plan.answers, 3),
        "scrapes_meanwhile": after["scrape_seconds_count"] - before["scrape_seconds_count"],
        "peak_rss_mib": round(procfs.peak_rss_mib(pid), 1),
        "cores_used_by_others": round(used.other_cores, 2),
    }


def _quantile_ms(seconds: list[float], share: int) -> float:
    at = min(len(seconds) - 1, len(seconds) * share // 100)
    return round(1000 * sorted(seconds)[at], 2)


async def _metrics(session: aiohttp.ClientSession) -> dict[str, int]:
    """Of the scraper itself, added up over labels."""
    found: dict[str, int] = {}
    async with session.get("/metrics") as answer:
        for family in text_string_to_metric_families(await answer.text()):
            for sample in family.samples:
                name = sample.name.removeprefix("llmservice_metrics_")
                found[name] = found.get(name, 0) + int(sample.value)
    return found


async def _exposition_bytes(port: int) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://{_HOST}:{port}/") as answer:
        return len(await answer.read())


@asynccontextmanager
async def _process(*role: str) -> AsyncIterator[tuple[int, int]]:
    """This module in another role: its process, and the port that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.metrics_api", *role),
        stdout=asyncio.subprocess.PIPE,
        cwd=_ROOT,
    )
    assert process.stdout is not None
    try:
        yield process.pid, int(await process.stdout.readline())
    finally:
        process.kill()
        await process.communicate()


# --- the other processes --------------------------------------------------------------------------


async def _be_engines() -> None:
    """All engines: whoever asks is told the same."""
    from tests.unit.adapters.test_engine_counts import Engine  # prometheus_client is what vLLM has

    body = Engine(others=_OTHER_HISTOGRAMS, name="meta-llama/Llama-3.1-8B-Instruct").says().encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % len(body)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + body)
            await writer.drain()
        except (EOFError, ConnectionError):
            pass
        writer.close()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, _HOST, 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    async with await asyncio.start_server(hang, _HANGING_HOST, port, backlog=1024):
        print(port, flush=True)
        await server.serve_forever()


async def _be_subject(engine_port: int, pods: int, interval: float, hosts: Sequence[str]) -> None:
    """The scraper and the API, over as many pods as if a reflector had brought them.

    The pods are at the hosts in turns.
    """
    registry = CollectorRegistry()
    gauges = Gauges(registry, limits=Limits(interval=interval), engine_port=engine_port)
    for number in range(pods):
        host = hosts[number % len(hosts)]
        gauges.put("Pod", _pod(f"{_SERVICE}-{_REVISION}-6c9f7d8b5-{number:05}", host))
    gauges.retain("Pod", "nowhere", (), "1")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry))

    application = build_application(gauges, _let_pass, utc_now)
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, _HOST, 0).start()
    print(runner.addresses[0][1], flush=True)
    await gauges.run()


async def _let_pass(_: web.Request) -> web.Response | None:
    return None


def _pod(name: str, host: str) -> dict[str, Any]:
    labels = {
        **names.instance_labels(_SERVICE),
        **names.revision_selector(_SERVICE, _REVISION),
        "pod-template-hash": "6c9f7d8b5",
    }
    return {
        "metadata": {"namespace": _NAMESPACE, "name": name, "uid": name, "labels": labels},
        "status": {
            "phase": "Running",
            "podIP": host,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


async def _print(plan: Plan) -> None:
    async for line in figures(plan):
        print(json.dumps(line), flush=True)


def main(arguments: Sequence[str]) -> int:
    """Print the figures, or be one of the processes that they are about."""
    if arguments[:1] == ["engines"]:
        asyncio.run(_be_engines())
    elif arguments[:1] == ["subject"]:
        port, pods, interval, *half = arguments[1:]
        hosts = (_HOST, _HANGING_HOST) if half else (_HOST,)
        asyncio.run(_be_subject(int(port), int(pods), float(interval), hosts))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of scraping")
    parser.add_argument("--answers", type=int, default=500, help="to each question")
    parsed = parser.parse_args(arguments)
    asyncio.run(_print(Plan(parsed.pods, parsed.seconds, parsed.answers)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
