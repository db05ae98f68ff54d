"""What the benchmarks of the router have in common: ways to an engine, and what each costs.

A real Envoy on loopback, with the operator's files and its number of threads; engines that answer
at once, in processes of their own. The ways alternate, so that a busy machine slows all alike.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from e2e.cluster.processes import ProcessGroup
from llmservice.core.resources.router import ENVOY_THREADS
from llmservice.core.router.desired import Capacity, Endpoint, Track, Traffic
from tests.bench import procfs
from tests.bench.loopback import Client, Failed
from tests.router.conftest import Router
from tests.router.engine import until

Line = dict[str, Any]

MANY = Capacity(requests=4096, queued=4096)
"""Of the tracks: none of the figures is about refusals."""
_ROOT = Path(__file__).parents[2]


class _Processes(ProcessGroup):
    """An Envoy with as many threads as in a router's pod; the tests' own have one."""

    def start(
        self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> None:
        words = list(command)
        if "--concurrency" in words:
            words[words.index("--concurrency") + 1] = str(ENVOY_THREADS)
        super().start(name, words, env)


async def start_engine(engines: ProcessGroup, name: str) -> Endpoint:
    """An engine that answers at once, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.loopback", name]
    engines.start(name, command, {"PYTHONPATH": str(_ROOT)})
    log = engines.log_of(name)

    async def listens() -> bool:
        return log.read_text().endswith("\n")

    await until(listens, "a listening engine")
    return Endpoint(f"127.0.0.1:{int(log.read_text())}", ready=True)


@dataclass(frozen=True, slots=True)
class Stage:
    """The engines of all figures, and the routers of one, which end with it."""

    folder: Path
    stack: ExitStack
    engines: ProcessGroup
    where: Mapping[str, Endpoint]

    def room(self, name: str) -> tuple[Path, ProcessGroup]:
        """A folder for a router, and a group for its processes."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        return folder, self.stack.enter_context(_Processes(folder / "processes"))


def port_of(router: Router) -> int:
    """Where clients of a router go."""
    return int(router.url.rpartition(":")[2])


# --- ways -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Way:
    """One way to an engine, and what went over it."""

    name: str
    port: int
    pid: int | None = None
    """Of its Envoy."""
    seconds: list[float] = field(default_factory=list)
    """Of each answer."""
    failed: int = 0
    busy_seconds: float = 0.0

    def cpu_seconds(self) -> float:
        """Of its Envoy, until now."""
        return procfs.cpu_seconds(self.pid) if self.pid else 0.0

    async def ask(self, client: Client, path: str) -> None:
        """Send one request, and note how it went."""
        try:
            self.seconds.append((await client.ask(path)).seconds)
        except Failed:
            self.failed += 1


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, by how many at a time."""

    name: str
    path: str
    workers: int
    in_turns: bool = False
    """All workers take the same way for a moment, so that it has a rate; else each takes one way
    after the other."""
    chunks: int = 0


LOADS = (
    Load("short answers, one at a time", "/answer/0", 1),
    Load("short answers, 16 at a time", "/answer/0", 16, in_turns=True),
    Load("streams of 100 chunks 10 ms apart, 32 at a time", "/stream/100/10", 32, chunks=100),
)
_REQUESTS_IN_A_TURN = 10


def traffic_to(*tracks: tuple[str, int, Endpoint]) -> Traffic:
    """Tracks by name, weight and their one engine; one is ``stable``."""
    made = (Track(name, weight, MANY, (endpoint,)) for name, weight, endpoint in tracks)
    return Traffic("v1", stable="stable", tracks=tuple(made))


async def compare(
    load: Load, among: Sequence[Way], pids: Sequence[int], seconds: float
) -> AsyncIterator[Line]:
    """One line for each way, under the same load.

    Args:
        load: what is asked of each.
        among: the ways; the first is the direct one.
        pids: of who is at work beside the Envoys, so that what is left are strangers.
        seconds: of load, for each way.
    """
    ways = [Way(way.name, way.port, way.pid) for way in among]
    clients = [[Client(partial(int, way.port)) for way in ways] for _ in range(load.workers)]
    for each in clients:
        for client in each:
            await client.ask("/answer/0")  # connects
    before = [way.cpu_seconds() for way in ways]
    meter = procfs.Meter([*pids, *(way.pid for way in ways if way.pid)])
    await (_take_turns if load.in_turns else _mix)(load, ways, clients, seconds * len(ways))
    others = round(meter.read().other_cores, 2)
    for way, spent in zip(ways, before, strict=True):
        line = _describe(load, way, ways[0]) | _cpu(load, way, way.cpu_seconds() - spent)
        yield line | {"cores_used_by_others": others}
    for each in clients:
        for client in each:
            client.close()


async def _take_turns(
    load: Load, ways: list[Way], clients: list[list[Client]], seconds: float
) -> None:
    async def work(way: Way, client: Client) -> None:
        for _ in range(_REQUESTS_IN_A_TURN):
            await way.ask(client, load.path)

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for number, way in enumerate(ways):
            start = time.perf_counter()
            await asyncio.gather(*(work(way, each[number]) for each in clients))
            way.busy_seconds += time.perf_counter() - start


async def _mix(load: Load, ways: list[Way], clients: list[list[Client]], seconds: float) -> None:
    async def work(number: int, mine: list[Client]) -> None:
        await asyncio.sleep(number / load.workers)  # so that they do not ask all at once
        while time.perf_counter() < end:
            for turn in range(len(ways)):
                way = (number + turn) % len(ways)
                await ways[way].ask(mine[way], load.path)

    end = time.perf_counter() + seconds
    await asyncio.gather(*(work(*each) for each in enumerate(clients)))


def _describe(load: Load, way: Way, direct: Way) -> Line:
    line: Line = {
        "figure": load.name,
        "way": way.name,
        "answers": len(way.seconds),
        "failed": way.failed,
    }
    if load.in_turns:
        rate, plain = (len(each.seconds) / each.busy_seconds for each in (way, direct))
        line |= {"per_second": round(rate, 1), "rate_to_direct": round(rate / plain, 3)}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        here, there = (_quantile(each.seconds, share) for each in (way, direct))
        line |= {f"{name}_ms": _ms(here), f"added_{name}_ms": _ms(here - there)}
    return line


def _cpu(load: Load, way: Way, seconds: float) -> Line:
    if way.pid is None:
        return {}
    what, number = ("chunks", load.chunks) if load.chunks else ("requests", 1)
    per_thousand = 1000 * seconds / (len(way.seconds) * number)
    return {f"envoy_cpu_seconds_per_1000_{what}": round(per_thousand, 4)}


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


# --- the command ----------------------------------------------------------------------------------


def print_figures(
    description: str,
    figures: Callable[[float], AsyncIterator[Line]],
    seconds: float,
    arguments: Sequence[str] | None,
) -> int:
    """Print a line per figure; the exit code.

    Args:
        description: of the benchmark.
        figures: its lines, given the seconds of load for each way.
        seconds: the default.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    words = f"of load for each way to an engine (default {seconds:g})"
    parser.add_argument("--seconds", type=float, default=seconds, help=words)
    asyncio.run(_print(figures(parser.parse_args(arguments).seconds)))
    return 0


async def _print(lines: AsyncIterator[Line]) -> None:
    async for line in lines:
        print(json.dumps(line), flush=True)
