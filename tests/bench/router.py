"""``make bench-router``: what a service's router costs, one JSON line for each figure.

::

    python -m tests.bench.router [--seconds 4]

A real Envoy on loopback, with the operator's files and its number of threads; engines that answer
at once, in processes of their own. The ways to an engine alternate, so that a busy machine slows
the direct one as much: read the ratios, and the CPU time, which is exact. With the default it ends
within three minutes.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from aiohttp import web

from e2e.cluster.processes import ProcessGroup
from llmservice.adapters.ports import Resource
from llmservice.adapters.resources import CONFIG_MAP, ENDPOINT_SLICE
from llmservice.core.router.desired import (
    Affinity,
    Endpoint,
    Track,
    Traffic,
    format_traffic,
)
from llmservice.core.router.envoy import READY_PATH
from tests.bench import procfs
from tests.bench.loopback import Client, Failed
from tests.bench.ways import (
    LOADS,
    MANY,
    Line,
    Stage,
    Way,
    compare,
    port_of,
    print_figures,
    start_engine,
    traffic_to,
)
from tests.router.agent_pod import (
    NAMESPACE,
    SERVICE,
    FakeApi,
    RouterPod,
    a_config_map,
    a_slice,
    free_port,
)
from tests.router.conftest import Router
from tests.router.engine import until

_DOOMED = "doomed"
_ENGINES = ("stable", "canary", _DOOMED)
_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    seconds: float = 4.0
    """Of load, for each way to an engine."""
    changes: int = 50
    """Of weights, timed."""
    changes_under_load: int = 30
    stream_chunks: int = 30
    """Of the streams meanwhile, 100 ms apart."""
    open_streams: int = 1000


async def figures(plan: Plan) -> AsyncIterator[Line]:
    """All of them, one after the other."""
    with TemporaryDirectory() as folder, ProcessGroup(Path(folder) / "engines") as engines:
        where = {name: await start_engine(engines, name) for name in _ENGINES}
        for part in (_overhead, _changes, _failures, _memory):
            with ExitStack() as stack:
                stage = Stage(Path(folder) / part.__name__, stack, engines, where)
                async for line in part(plan, stage):
                    yield line


# --- 1: against the direct way --------------------------------------------------------------------


async def _overhead(plan: Plan, stage: Stage) -> AsyncIterator[Line]:
    stable, canary = stage.where["stable"], stage.where["canary"]
    split = traffic_to(("stable", 9_500, stable), ("canary", 500, canary))
    routed = {
        "one track": traffic_to(("stable", 10_000, stable)),
        "split 95/5": split,
        "split 95/5, affinity": replace(split, affinity=Affinity(header="x-user")),
    }
    routers = []
    ways = [Way("direct", stable.port)]
    for name, traffic in routed.items():
        folder, group = stage.room(name.replace("/", "-"))
        routers.append(Router(folder, group))
        await routers[-1].start(traffic)
        ways.append(Way(name, port_of(routers[-1]), group.pid_of("envoy")))
    pids = [os.getpid(), *map(stage.engines.pid_of, ("stable", "canary"))]
    for load in LOADS:
        async for line in compare(load, ways, pids, plan.seconds):
            yield line
    for router in routers:
        await router.close()


# --- 2: from an order to traffic ------------------------------------------------------------------


async def _changes(plan: Plan, stage: Stage) -> AsyncIterator[Line]:
    """All the weight goes from one track to the other, again and again."""
    pod = RouterPod(*stage.room("pod"))
    _place(pod, {name: stage.where[name] for name in ("stable", "canary")})
    _order([pod], "v0", canary=0)
    await pod.start()
    await pod.until_in_force("v0")
    arrived, told = [], []
    for number in range(plan.changes):
        start = time.perf_counter()
        _order([pod], f"v{number + 1}", canary=(10_000, 0)[number % 2])
        seconds = await asyncio.gather(
            _until_answered(pod, ("canary", "stable")[number % 2]),
            _until_told(pod, f"v{number + 1}"),
        )
        arrived.append(seconds[0] - start)
        told.append(seconds[1] - start)
    yield {
        "figure": "weight change",
        "changes": plan.changes,
        "to_first_answer_median_s": round(median(arrived), 4),
        "to_first_answer_worst_s": round(max(arrived), 4),
        "to_acknowledgement_median_s": round(median(told), 4),
        "to_acknowledgement_worst_s": round(max(told), 4),
    }
    await pod.close()


def _place(pod: RouterPod, engines: Mapping[str, Endpoint]) -> None:
    for track, endpoint in engines.items():
        pod.api.put(a_slice(track, endpoint))


def _order(pods: Sequence[RouterPod], version: str, canary: int) -> None:
    weights = (("stable", 10_000 - canary), ("canary", canary))
    tracks = tuple(Track(name, weight, MANY) for name, weight in weights)
    for pod in pods:
        pod.order_text(format_traffic(Traffic(version, "stable", tracks)))


async def _until_answered(pod: RouterPod, engine: str) -> float:
    """The moment of the first answer from there."""
    client = Client(partial(port_of, pod.router))
    while True:
        if (await client.ask("/answer/0")).engine == engine:
            client.close()
            return time.perf_counter()
        await asyncio.sleep(0.001)  # the agent runs in this very process


async def _until_told(pod: RouterPod, version: str) -> float:
    while True:
        report = await pod.report()
        if (report.version, report.problem) == (version, ""):
            return time.perf_counter()
        await asyncio.sleep(_POLL_SECONDS)


# --- 3: failed requests ---------------------------------------------------------------------------

_SHORT_WORKERS, _STREAM_WORKERS = 32, 32
_RENEW = 0.05
"""Chance that a client makes a new connection after a request."""
_UNNOTICED_SECONDS = 1.0
"""How long a dead engine stays in the EndpointSlices, and an agent away."""
_PROPAGATION_SECONDS = 0.5


@dataclass(slots=True)
class _Clients:
    """Clients of two routers behind a Service, and how they fared."""

    pods: list[RouterPod]
    """Where new connections go; those that there are stay."""
    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    """Answers that the killed engine had begun: nobody could have finished them."""
    done: bool = False

    async def run(self, kind: str, path: str) -> None:
        """Ask until told otherwise."""
        client = Client(lambda: port_of(random.choice(self.pods).router))
        while not self.done:
            try:
                await client.ask(path)
                self.answers[kind] += 1
            except Failed as failed:
                if failed.engine == _DOOMED:
                    self.cut += 1
                else:
                    self.failures[f"{kind}: {failed}"] += 1
            if random.random() < _RENEW:
                client.close()
            await asyncio.sleep(random.random() * 0.02)
        client.close()

    def line(self, during: str) -> Line:
        """How it went while something was done."""
        return {
            "figure": "failed requests",
            "during": during,
            "short_answers": self.answers["short"],
            "streams": self.answers["stream"],
            "failed": self.failures.total(),
            "why": dict(self.failures),
            "streams_cut_by_the_killed_engine": self.cut,
        }


async def _failures(plan: Plan, stage: Stage) -> AsyncIterator[Line]:
    pods = [await _start_pod(stage, name) for name in ("one", "two")]
    async with _under_load(plan, pods) as clients:
        await _change_weights(pods, plan.changes_under_load)
    yield clients.line(f"{plan.changes_under_load} weight changes")
    async with _under_load(plan, pods) as clients:
        await _kill(stage, pods)
    yield clients.line("the canary's only engine killed, at 50 %")
    for pod in pods:
        _place(pod, {"canary": stage.where["canary"]})
    async with _under_load(plan, pods) as clients:
        await _restart_agents(pods)
    yield clients.line("restarts of both agents")
    async with _under_load(plan, pods) as clients:
        await _restart_envoys(pods, clients)
    yield clients.line("drains and restarts of both Envoys")
    for pod in pods:
        await pod.close()


async def _start_pod(stage: Stage, name: str) -> RouterPod:
    pod = RouterPod(*stage.room(name))
    pod.config = replace(pod.config, propagation_seconds=_PROPAGATION_SECONDS)
    _place(pod, {"stable": stage.where["stable"], "canary": stage.where[_DOOMED]})
    _order([pod], "v0", canary=5_000)
    await pod.start()
    await pod.until_in_force("v0")
    return pod


@asynccontextmanager
async def _under_load(plan: Plan, pods: list[RouterPod]) -> AsyncIterator[_Clients]:
    clients = _Clients(list(pods))
    async with asyncio.TaskGroup() as group:
        for _ in range(_SHORT_WORKERS):
            group.create_task(clients.run("short", "/answer/20"))
        for _ in range(_STREAM_WORKERS):
            group.create_task(clients.run("stream", f"/stream/{plan.stream_chunks}/100"))
        await asyncio.sleep(1)  # of load without any event
        yield clients
        clients.done = True


async def _change_weights(pods: list[RouterPod], changes: int) -> None:
    for number in range(changes):
        # The last one is what the next figure begins with.
        weight = 5_000 if number == changes - 1 else random.randrange(10_001)
        _order(pods, f"w{number}", canary=weight)
        for pod in pods:
            await pod.until_in_force(f"w{number}")
        await asyncio.sleep(random.random() * 0.3)  # so that all of them outlast the streams


async def _kill(stage: Stage, pods: list[RouterPod]) -> None:
    stage.engines.stop(_DOOMED, signal.SIGKILL)
    await asyncio.sleep(_UNNOTICED_SECONDS)
    dead = a_slice("canary", stage.where[_DOOMED])["metadata"]["name"]
    for pod in pods:
        pod.api.drop("EndpointSlice", dead)
    await asyncio.sleep(_UNNOTICED_SECONDS)


async def _restart_agents(pods: list[RouterPod]) -> None:
    for pod in pods:
        version = (await pod.report()).version
        assert version is not None
        await pod.stop_agent()
        await asyncio.sleep(_UNNOTICED_SECONDS)
        await pod.start_agent()
        await pod.until_in_force(version)


async def _restart_envoys(pods: list[RouterPod], clients: _Clients) -> None:
    """As pods are replaced: new connections come for a while, then none, then Envoy ends."""
    for pod in pods:
        draining = asyncio.create_task(pod.get("/drain"))
        await asyncio.sleep(_PROPAGATION_SECONDS / 2)
        clients.pods.remove(pod)
        await draining
        await pod.stop_envoy()
        await pod.start_envoy()
        await until(partial(_is_ready, pod), "a ready Envoy")
        clients.pods.append(pod)


async def _is_ready(pod: RouterPod) -> bool:
    async with pod.router.client.get(pod.router.url + READY_PATH) as answer:
        return answer.status == 200


# --- 4: memory ------------------------------------------------------------------------------------


async def _memory(plan: Plan, stage: Stage) -> AsyncIterator[Line]:
    """The agent is the real command here, and the API server a stand-in."""
    stable = stage.where["stable"]
    folder, group = stage.room("pod")
    router = Router(folder, group)
    router.folder.mkdir()
    traffic = Traffic("v1", "stable", (Track("stable", 10_000, MANY),))
    async with _api_server(a_config_map(format_traffic(traffic)), a_slice("stable", stable)) as url:
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(_kubeconfig(url))
        await _start_agent(group, router.folder, kubeconfig)
        await router.start_envoy()
        idle = procfs.peak_rss_mib(group.pid_of("envoy"))
        await _open_streams(plan.open_streams, router)
        yield {
            "figure": "memory",
            "envoy_idle_rss_mib": round(idle, 1),
            "streams": plan.open_streams,
            "envoy_rss_mib": round(procfs.peak_rss_mib(group.pid_of("envoy")), 1),
            "agent_rss_mib": round(procfs.peak_rss_mib(group.pid_of("agent")), 1),
        }
        await router.close()
        group.stop("agent")


async def _open_streams(number: int, router: Router) -> None:
    """Open streams, wait until an engine answers all of them, and hang up."""

    async def all_open() -> bool:
        tracks = await router.admin.tracks()
        return number == tracks["stable"].active == await router.admin.active_requests()

    clients = [Client(partial(port_of, router)) for _ in range(number)]
    streams = [asyncio.create_task(client.ask("/stream/2/60000")) for client in clients]
    try:
        await until(all_open, "open streams")
    finally:
        for stream, client in zip(streams, clients, strict=True):
            stream.cancel()
            client.close()
        await asyncio.gather(*streams, return_exceptions=True)


async def _start_agent(group: ProcessGroup, folder: Path, kubeconfig: Path) -> None:
    port = free_port()
    options = {
        "service": SERVICE,
        "namespace": NAMESPACE,
        "folder": folder,
        "kubeconfig": kubeconfig,
        "agent-port": port,
        "router-port": 0,
        "admin-port": free_port(),
    }
    command = [sys.executable, "-m", "llmservice", "route-agent"]
    group.start("agent", [*command, *(f"--{name}={value}" for name, value in options.items())])

    async def is_ready() -> bool:
        group.fail_on_exit()
        with suppress(ConnectionError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /ready HTTP/1.0\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return b" 200 " in answer
        return False

    await until(is_ready, "a ready agent")


@asynccontextmanager
async def _api_server(*objects: Line) -> AsyncIterator[str]:
    """What answers an agent's lists; nothing ever changes. Its URL."""
    api = FakeApi()
    for each in objects:
        api.put(each)

    async def answer(resource: Resource, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            stream = web.StreamResponse()
            await stream.prepare(request)
            await asyncio.Event().wait()
        page = await api.list_page(resource, NAMESPACE)
        metadata = {"resourceVersion": page.resource_version}
        return web.json_response({"metadata": metadata, "items": page.items})

    application = web.Application()
    for resource, prefix in (
        (CONFIG_MAP, "/api/v1"),
        (ENDPOINT_SLICE, "/apis/discovery.k8s.io/v1"),
    ):
        path = f"{prefix}/namespaces/{NAMESPACE}/{resource.plural}"
        application.router.add_get(path, partial(answer, resource))
    runner = web.AppRunner(application, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def _kubeconfig(url: str) -> str:
    return json.dumps(
        {
            "clusters": [{"name": "bench", "cluster": {"server": url}}],
            "users": [{"name": "bench", "user": {"token": "none"}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "current-context": "bench",
        }
    )


# --- the command ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per figure."""
    return print_figures(__doc__, lambda seconds: figures(Plan(seconds)), Plan().seconds, arguments)


if __name__ == "__main__":
    sys.exit(main())
