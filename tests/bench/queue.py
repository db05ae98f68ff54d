"""What the router's queue is good for and what it costs, one JSON line for each figure.

::

    python -m tests.bench.queue [--seconds 4]

A real Envoy on loopback with the operator's files. The scenario runs with the queue and without it
at the same time, on engines of its own each; the ways to an engine alternate, so that a busy
machine slows all alike: read the ratios, and the CPU time, which is exact. With the default it
ends within three minutes.
"""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from aiohttp import web

from e2e.cluster.processes import ProcessGroup
from llmservice.core.router.desired import Capacity, Endpoint, Track, Traffic, format_traffic
from tests.bench import procfs
from tests.bench.ways import (
    LOADS,
    Line,
    Stage,
    Way,
    compare,
    port_of,
    print_figures,
    start_engine,
    traffic_to,
)
from tests.router.agent_pod import RouterPod
from tests.router.conftest import Router, gated
from tests.router.engine import a_track, until

_MIB = 1 << 20
_UPLOAD = 100 * _MIB
"""Bytes a second, all clients together."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One engine is offered more than it carries; two more become ready."""

    rate: float = 24.0
    """Requests a second."""
    seconds: float = 40.0
    """Of requests."""
    newcomers_after: float = 20.0
    service_seconds: float = 0.1
    """Of each request; an engine runs one at a time."""
    patience_seconds: float = 15.0
    """Of each client."""
    per_engine: int = 2
    """Its one sequence and a small queue, where there is a bound."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    seconds: float = 4.0
    """Of load, for each way to an engine."""
    scenario: Scenario = field(default_factory=Scenario)
    wakes: int = 10
    """From no engine to one."""
    held: int = 50
    """Requests each time."""
    waiting: int = 1000
    """Requests whose memory is measured."""
    bodies: int = 60
    """Of 7 MiB each, at a limit of 160 MiB."""


# --- engines and clients --------------------------------------------------------------------------


class OneAtATime:
    """An engine with one sequence: the others wait inside, in order."""

    def __init__(self, seconds: float) -> None:
        self.inside = 0
        self.most_inside = 0
        self.began: list[tuple[int, float]] = []
        """Who, and when."""
        self.endpoint = Endpoint("127.0.0.1:1", ready=True)
        self._seconds = seconds
        self._sequence = asyncio.Lock()

    async def start(self) -> None:
        """Listen on a port of its own."""
        application = web.Application(client_max_size=16 * _MIB)
        application.router.add_route("*", "/{who}", self._answer)
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0.01
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self.endpoint = Endpoint(f"127.0.0.1:{self._runner.addresses[0][1]}", ready=True)

    async def stop(self) -> None:
        """Close everything."""
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.inside += 1
        self.most_inside = max(self.inside, self.most_inside)
        try:
            await request.read()
            async with self._sequence:
                self.began.append((int(request.match_info["who"]), time.perf_counter()))
                await asyncio.sleep(self._seconds)
        finally:
            self.inside -= 1
        return web.Response(text="done")


async def _engines(stack: AsyncExitStack, number: int, seconds: float) -> list[OneAtATime]:
    engines = [OneAtATime(seconds) for _ in range(number)]
    for engine in engines:
        await engine.start()
        stack.push_async_callback(engine.stop)
    return engines


@dataclass(slots=True)
class _Crowd:
    """Clients of some routers, each with one request."""

    urls: Sequence[str]
    patience_seconds: float
    came: dict[int, float] = field(default_factory=dict)
    waited: list[float] = field(default_factory=list)
    results: Counter[str] = field(default_factory=Counter)

    async def come(self, rate: float, seconds: float) -> None:
        """Let them come at even distances, and wait for the last."""
        limit = aiohttp.ClientTimeout(total=self.patience_seconds)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=limit) as client:
            start = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for who in range(int(rate * seconds)):
                    await asyncio.sleep(start + who / rate - time.perf_counter())
                    group.create_task(self._ask(client, who))

    async def _ask(self, client: aiohttp.ClientSession, who: int) -> None:
        self.came[who] = time.perf_counter()
        url = self.urls[who % len(self.urls)]
        try:
            async with client.get(f"{url}/{who}") as answer:
                await answer.read()
                self.results[str(answer.status)] += 1
                self.waited.append(time.perf_counter() - self.came[who])
        except TimeoutError:
            self.results["timed out"] += 1
        except aiohttp.ClientError as error:
            self.results[type(error).__name__] += 1


def overtaken(began: Sequence[tuple[int, float]], tolerance_seconds: float) -> int:
    """Requests that began after one that had come later.

    Args:
        began: who, numbered in the order of arrival, and when.
        tolerance_seconds: how much later does not count.
    """
    earliest, number = float("inf"), 0
    for _, moment in sorted(began, reverse=True):
        number += moment > earliest + tolerance_seconds
        earliest = min(earliest, moment)
    return number


# --- 1: newcomers ---------------------------------------------------------------------------------


async def _newcomers(plan: Plan, folder: Path) -> AsyncIterator[Line]:
    scenario = plan.scenario
    lines = await asyncio.gather(
        _run_scenario(scenario, folder / "with", scenario.per_engine),
        _run_scenario(scenario, folder / "without", None),
    )
    for line in lines:
        yield line


async def _run_scenario(scenario: Scenario, folder: Path, per_engine: int | None) -> Line:
    folder.mkdir(parents=True)
    async with AsyncExitStack() as stack:
        group = stack.enter_context(ProcessGroup(folder / "processes"))
        engines = await _engines(stack, 3, scenario.service_seconds)
        pod = RouterPod(folder, group, per_engine)
        for engine in engines:
            pod.place("stable", engine, ready=engine is engines[0])  # type: ignore[arg-type]
        track = Track("stable", 10_000, Capacity(4096, 4096), per_engine=per_engine)
        pod.order_text(format_traffic(Traffic("v1", "stable", (track,), max_waiting=4096)))
        await pod.start()
        stack.push_async_callback(pod.close)
        crowd = _Crowd([pod.router.url], scenario.patience_seconds)
        coming = asyncio.create_task(crowd.come(scenario.rate, scenario.seconds))
        await asyncio.sleep(scenario.newcomers_after)
        before = [engine.inside for engine in engines]
        waiting = (await pod.report()).waiting
        start = time.perf_counter()
        for engine in engines[1:]:
            pod.place("stable", engine)  # type: ignore[arg-type]
        even = await _until_even(engines, coming, start)
        await coming
    return {
        "figure": "one engine, two newcomers",
        "queue": per_engine is not None,
        "requests": len(crowd.came),
        "in_the_first_engine_at_their_readiness": before[0],
        "in_the_router": waiting,
        "seconds_to_even_load": None if even is None else round(even, 3),
        "answered": crowd.results["200"],
        "timed_out": crowd.results["timed out"],
        "other": crowd.results.total() - crowd.results["200"] - crowd.results["timed out"],
        "overtaken": overtaken(
            [each for engine in engines for each in engine.began],
            scenario.per_engine * scenario.service_seconds,
        ),
        "longest_wait_s": round(max(crowd.waited), 2),
        "work_of_each_engine": [len(engine.began) for engine in engines],
    }


async def _until_even(
    engines: Sequence[OneAtATime], coming: "asyncio.Task[None]", start: float
) -> float | None:
    """Until all work and none has more than one request more than another; None if never."""
    while not coming.done():
        inside = [engine.inside for engine in engines]
        if min(inside) > 0 and max(inside) - min(inside) <= 1:
            return time.perf_counter() - start
        await asyncio.sleep(0.001)  # they tell nobody
    return None


# --- 2: no engine at all --------------------------------------------------------------------------


async def _held(plan: Plan, folder: Path) -> AsyncIterator[Line]:
    """Requests that wait for the first engine, and go to it in order."""
    seconds = []
    async with AsyncExitStack() as stack:
        folder.mkdir(parents=True)
        group = stack.enter_context(ProcessGroup(folder / "processes"))
        (engine,) = await _engines(stack, 1, 0.0)
        pod = RouterPod(folder, group, per_engine=8)
        pod.order("v1", stable=10_000, hold_seconds=600)
        await pod.start()
        stack.push_async_callback(pod.close)
        crowd = _Crowd([pod.router.url], 60)
        for _ in range(plan.wakes):
            asked = asyncio.create_task(crowd.come(1000, plan.held / 1000))
            await until(_so_many_wait(pod, plan.held), "requests that are held")
            before, start = len(engine.began), time.perf_counter()
            pod.place("stable", engine)  # type: ignore[arg-type]
            await asked
            seconds.append(engine.began[before][1] - start)
            pod.displace("stable", engine)  # type: ignore[arg-type]
            await until(_has_left(pod), "an engine that left")
    yield {
        "figure": "held while there was no engine",
        "times": plan.wakes,
        "requests_each": plan.held,
        "answers": dict(crowd.results),
        "from_readiness_to_the_first_median_s": round(median(seconds), 3),
        "from_readiness_to_the_first_worst_s": round(max(seconds), 3),
    }


def _so_many_wait(pod: RouterPod, number: int) -> Callable[[], Any]:
    async def they_wait() -> bool:
        return (await pod.report()).waiting == number

    return they_wait


def _has_left(pod: RouterPod) -> Callable[[], Any]:
    async def has_left() -> bool:
        return (await pod.router.admin.engines())["track-stable"] == 0

    return has_left


# --- 3: two routers -------------------------------------------------------------------------------


async def _two_routers(plan: Plan, folder: Path) -> AsyncIterator[Line]:
    """Half as much again as two engines carry, by two routers that know nothing of each other."""
    async with AsyncExitStack() as stack:
        engines = await _engines(stack, 2, 0.02)
        track = replace(a_track("stable", 10_000, *(each.endpoint for each in engines)))
        traffic = gated(Traffic("v1", "stable", (track,), routers=2), 4)
        routers = []
        for name in ("one", "two"):
            group = stack.enter_context(ProcessGroup(folder / name / "processes"))
            routers.append(Router(folder / name, group))
            await routers[-1].start(traffic)
            stack.push_async_callback(routers[-1].close)
        crowd = _Crowd([router.url for router in routers], 60)
        await crowd.come(150, plan.seconds)
    yield {
        "figure": "two routers, two engines that may have four each",
        "answers": dict(crowd.results),
        "most_in_an_engine": [engine.most_inside for engine in engines],
        "work_of_each_engine": [len(engine.began) for engine in engines],
    }


# --- 4: without pressure --------------------------------------------------------------------------


async def _cost(plan: Plan, folder: Path) -> AsyncIterator[Line]:
    with ExitStack() as stack:
        engines = stack.enter_context(ProcessGroup(folder / "engines"))
        stable = await start_engine(engines, "stable")
        stage = Stage(folder, stack, engines, {"stable": stable})
        traffic = traffic_to(("stable", 10_000, stable))
        ways, routers = [Way("direct", stable.port)], []
        by_gate = gated(traffic, 1000)
        for name, each in (
            ("without gate", traffic),
            ("by the gate", by_gate),
            ("by the bypass", replace(by_gate, bypass=True)),
        ):
            room, group = stage.room(name.replace(" ", "-"))
            routers.append(Router(room, group))
            await routers[-1].start(each)
            ways.append(Way(name, port_of(routers[-1]), group.pid_of("envoy")))
        pids = [os.getpid(), engines.pid_of("stable")]
        for load in LOADS:
            lines = [line async for line in compare(load, ways, pids, plan.seconds)]
            for line in lines:
                yield line
            _, plain, *gates = lines
            for way, line in zip(ways[2:], gates, strict=True):
                yield _added(f"{load.name}: what is added {way.name}", plain, line)
        for router in routers:
            await router.close()


def _added(figure: str, plain: Line, gate: Line) -> Line:
    (cpu,) = (key for key in plain if key.startswith("envoy_cpu"))
    return {
        "figure": figure,
        "p50_ms": round(gate["p50_ms"] - plain["p50_ms"], 3),
        "p99_ms": round(gate["p99_ms"] - plain["p99_ms"], 3),
        "cpu_ratio": round(gate[cpu] / plain[cpu], 2) if plain[cpu] else None,
        cpu: round(gate[cpu] - plain[cpu], 4),
    }


# --- 5: memory ------------------------------------------------------------------------------------


async def _memory(plan: Plan, folder: Path) -> AsyncIterator[Line]:
    for name, number, size, limit in (
        ("small bodies", plan.waiting, 1024, 900),
        ("large bodies", plan.bodies, 7 * _MIB, 160),
    ):
        yield await _wait_with(folder / name.replace(" ", "-"), name, number, size, limit)


async def _wait_with(folder: Path, name: str, number: int, size: int, limit: int) -> Line:
    async with AsyncExitStack() as stack:
        (engine,) = await _engines(stack, 1, 3600)
        group = stack.enter_context(ProcessGroup(folder / "processes"))
        router = Router(folder, group, memory_bytes=limit * _MIB)
        track = a_track("stable", 10_000, engine.endpoint)
        await router.start(gated(Traffic("v1", "stable", (track,), max_waiting=4096), 1))
        stack.push_async_callback(router.close)
        idle = procfs.peak_rss_mib(group.pid_of("envoy"))
        body = b"x" * size
        client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        stack.push_async_callback(client.close)
        asked = []
        for who in range(number):
            asked.append(asyncio.create_task(_post(client, f"{router.url}/{who}", body)))
            await asyncio.sleep(size / _UPLOAD)
        await until(_all_wait_or_are_refused(router, asked), "requests that wait")
        gates = await router.admin.gates()
        line = {
            "figure": f"memory, {name} that wait",
            "requests": number,
            "body_bytes": size,
            "heap_limit_mib": limit,
            "waiting": gates["stable"].waiting,
            "refused": dict(Counter(str(task.result()) for task in asked if task.done())),
            "envoy_idle_rss_mib": round(idle, 1),
            "envoy_peak_rss_mib": round(procfs.peak_rss_mib(group.pid_of("envoy")), 1),
        }
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    return line


async def _post(client: aiohttp.ClientSession, url: str, body: bytes) -> int:
    async with client.post(url, data=body) as answer:
        return answer.status


def _all_wait_or_are_refused(
    router: Router, asked: Sequence["asyncio.Task[int]"]
) -> Callable[[], Any]:
    async def settled() -> bool:
        gates = await router.admin.gates()
        known = gates["stable"].waiting + gates["stable"].handed
        return known + sum(task.done() for task in asked) >= len(asked)

    return settled


# --- the command ----------------------------------------------------------------------------------


async def figures(plan: Plan) -> AsyncIterator[Line]:
    """All of them, one after the other."""
    with TemporaryDirectory() as folder:
        for part in (_newcomers, _held, _two_routers, _cost, _memory):
            async for line in part(plan, Path(folder) / part.__name__):
                yield line


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per figure."""
    return print_figures(__doc__, lambda seconds: figures(Plan(seconds)), Plan().seconds, arguments)


if __name__ == "__main__":
    sys.exit(main())
