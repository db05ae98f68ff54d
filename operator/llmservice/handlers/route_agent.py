"""The agent beside Envoy in a router's pod: from a ConfigMap and EndpointSlices to files.

::

    install -> (nothing lies in the folder: wait for the API server -> first files) -> ready
      -> each change: choose what to follow, apply it, try again until Envoy has taken it
      -> SIGTERM

It starts before Envoy and ends after it. Envoy serves what it knows while the agent or the API
server is away, and a restarted agent goes on from the folder, which outlives both containers.
"""

import asyncio
import logging
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from aiohttp import web

from llmservice.adapters.clock import utc_now
from llmservice.adapters.endpoints import RouteSources
from llmservice.adapters.http_server import HttpServer
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.ports import Cluster
from llmservice.adapters.reflector import Reflector
from llmservice.adapters.resources import CONFIG_MAP, ENDPOINT_SLICE
from llmservice.adapters.rest import RestCluster
from llmservice.adapters.route_files import (
    Acknowledged,
    AdminUnavailable,
    EnvoyAdmin,
    Rejected,
    RouteFiles,
    Unconfirmed,
    drain,
)
from llmservice.api import names
from llmservice.core.router.agent import (
    choose_target,
    has_moved,
    join_endpoints,
    stuck_gates,
    version_of_order,
)
from llmservice.core.router.bypass import Bypass, look_around, with_bypass
from llmservice.core.router.clusters import HOLD_SOCKET
from llmservice.core.router.desired import Traffic
from llmservice.core.router.envoy import (
    NO_RETRY_HEADER,
    RETRY_AFTER_SECONDS,
    START_HEADER,
    RouterSettings,
)
from llmservice.core.router.pace import Pace, bound_waiting, look_again
from llmservice.core.router.report import RouterReport, TrackReport, format_report
from llmservice.handlers.logs import configure_logging

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 5.0
_PROBLEM_LIMIT = 1024
_LARGEST_NUDGE = 16
_NUDGE_PAUSE_SECONDS = 0.02
"""Envoy hands on three requests when one comes. More at once would not be spread well: it counts
what an engine has once it is connected to it."""
_LOOK_SECONDS = 1.0
_NEXT_LOOK_SECONDS = 0.25
"""While requests bypass a gate: what a rush can exceed its limit by comes in that time."""
_REPORT_SECONDS = 1.5
"""Less than the operator's patience: that Envoy is silent is an answer, too."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Settings of one agent."""

    service: str
    namespace: str
    folder: Path
    """Shared with Envoy, and as empty as the pod is new."""
    agent_port: int = names.ROUTER_AGENT_PORT
    """Of the agent itself; 0 takes any free one."""
    router_port: int = names.ROUTER_PORT
    admin_port: int = names.ROUTER_ADMIN_PORT
    drain_path: str = "/drain"
    """Where the agent is told that the pod stops; best one that nobody guesses."""
    drain_seconds: float = 300.0
    """How long requests may take to end once no new ones come."""
    propagation_seconds: float = 5.0
    """How long new requests may still come after the pod's end has begun."""
    credentials: Credentials = field(default_factory=Credentials)


def main(config: AgentConfig) -> int:
    """Run the agent until SIGTERM; returns the exit code."""
    configure_logging()
    return asyncio.run(_run(config))


async def _run(config: AgentConfig) -> int:
    cluster = RestCluster(await Connection.open(config.credentials))
    try:
        agent = RouteAgent(config, cluster)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, agent.stop)
        return await agent.run()
    finally:
        await cluster.close()


class RouteAgent:
    """One agent; make it within a running event loop, run it once.

    Args:
        config: its settings.
        cluster: the API server.
    """

    def __init__(self, config: AgentConfig, cluster: Cluster) -> None:
        self.server = AgentServer(self, config.drain_path)
        self.ready = False
        """Whether Envoy can start: all its files lie in the folder."""
        self._config = config
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._holder = Holder()
        self._seen: Mapping[str, TrackReport] = {}
        self._busy_at = asyncio.get_running_loop().time()
        self._admin = EnvoyAdmin(config.admin_port)
        self._files = RouteFiles(config.folder, self._admin)
        self._sources = RouteSources(config.service, self._changed.set)
        self._reflectors = _reflectors(config, cluster, self._sources)
        self._before: Traffic | None = None
        """The order that Envoy follows."""
        self._target: Traffic | None = None
        """What Envoy is to follow now, with its engines."""
        self._followed: Traffic | None = None
        """Of that, what Envoy has taken."""
        self._paces: Mapping[str, Pace] = {}
        self._bypass = Bypass()
        self._refusal = "the API server has not said yet which traffic is wanted"
        self._outcome = "Envoy has not been told anything yet"

    def stop(self) -> None:
        """Have :meth:`run` end."""
        self._stopping.set()

    async def run(self) -> int:
        """Work until stopped; returns the exit code."""
        config = self._config
        self._files.install(
            RouterSettings(str(config.folder), config.router_port, config.admin_port)
        )
        self._files.end_bypass()  # nobody has looked for a while
        self._before = self._files.recall()
        self.ready = self._before is not None
        if self._before is not None:
            self._holder.follow(self._before)
        await self._holder.start(config.folder / HOLD_SOCKET)
        await self.server.start(config.agent_port)
        stopped = asyncio.create_task(self._stopping.wait())
        work = [reflector.run() for reflector in self._reflectors]
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(each) for each in work]
        own = (self._follow(), self._wake(), self._watch_gates())
        tasks += [*(asyncio.create_task(each) for each in own), stopped]
        try:
            # None of them ends by itself, unless it is broken.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            self._files.end_bypass()
            await self.server.close()
            await self._holder.close()
            await self._admin.close()
        for error in ended:
            if isinstance(error, Exception):
                _log.error("the agent broke: %r", error, exc_info=error)
        return 0 if stopped in done else 1

    # --- following ------------------------------------------------------------------------------

    async def _follow(self) -> None:
        for reflector in self._reflectors:
            # Without its engines an order would send requests to nobody.
            await reflector.synced.wait()
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._changed.clear()
            if await self._bring_about():
                pause = _FIRST_PAUSE_SECONDS
                await self._changed.wait()
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), pause)
                pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)

    async def _bring_about(self) -> bool:
        """Bring Envoy to what is to be followed now; False to try again."""
        endpoints = self._sources.endpoints
        chosen = choose_target(self._sources.ordered, self._before, endpoints)
        self._report_refusal(chosen.problem)
        if chosen.order is None:
            return True
        wanted = join_endpoints(chosen.order, endpoints)
        if self._target is None:  # Envoy may have been at work for long, with another agent
            await self._look(wanted)
        self._target = self._bounded(wanted)
        if not self._target.is_serving:
            self._holder.follow(self._target)
        try:
            return self._took(chosen.order, await self._files.apply(self._target))
        except OSError as error:
            self._report_outcome(f"cannot write Envoy's files: {error}")
            return False

    def _took(self, order: Traffic, outcome: Acknowledged | Rejected | Unconfirmed) -> bool:
        """Whether Envoy follows the order now."""
        first = not self.ready
        taken = isinstance(outcome, Acknowledged)
        if taken and self._target is not None:
            self._followed = self._target
            self._holder.follow(self._target)
            self._taken.set()
        if taken or (first and isinstance(outcome, Unconfirmed)):
            self._files.remember(order)
            self._before = order
            self.ready = True
        match outcome:
            case Acknowledged(version):
                self._report_outcome(f"Envoy follows {version}", level=logging.INFO)
            case Rejected(version, counters):
                self._report_outcome(f"Envoy refused {version}: {', '.join(counters)}")
            case Unconfirmed(version, why):
                # It is expected at first: Envoy starts once its files are there.
                level = logging.INFO if first else logging.WARNING
                self._report_outcome(f"Envoy has not taken {version}: {why}", level=level)
        return taken

    async def _wake(self) -> None:
        """Let requests go that wait although engines came."""
        while True:
            await self._taken.wait()
            self._taken.clear()
            with suppress(AdminUnavailable):
                # Nothing announces that Envoy handed them on.
                while await self._nudge():  # noqa: ASYNC110
                    await asyncio.sleep(_NUDGE_PAUSE_SECONDS)

    async def _nudge(self) -> bool:
        """Whether there was anybody to let go."""
        if self._followed is None:
            return False
        stuck = stuck_gates(await self._admin.gates(), self._followed)
        for track, more in stuck.items():
            await self._admin.nudge(track, min(_LARGEST_NUDGE, ceil(more / _LARGEST_NUDGE)))
        return bool(stuck)

    async def _watch_gates(self) -> None:
        """Let requests bypass them while there is room, and let none wait for too long."""
        while True:
            await asyncio.sleep(_NEXT_LOOK_SECONDS if self._bypass.is_moving else _LOOK_SECONDS)
            if self._target is None:
                continue
            await self._look(self._target)
            if has_moved(self._target, self._bounded(self._target)):
                self._changed.set()

    async def _look(self, traffic: Traffic) -> None:
        try:
            gates = await self._admin.gates() if traffic.is_gated else {}
        except AdminUnavailable:
            self._bypass = replace(self._bypass, on=False, calm_since=None)
            return
        now = asyncio.get_running_loop().time()
        self._bypass = look_around(self._bypass, gates, traffic, now)
        self._paces = look_again(self._paces, gates, traffic, now)

    def _bounded(self, traffic: Traffic) -> Traffic:
        found = self._bypass
        if self._followed is None or self._followed.version != traffic.version:
            # Looks tell of what Envoy follows, and the end of a bypass must wait for nothing.
            found = replace(found, on=False)
        return bound_waiting(with_bypass(traffic, found), self._paces)

    def _report_refusal(self, problem: str) -> None:
        if problem and problem != self._refusal:
            _log.warning("the newest traffic is not followed: %s", problem)
        self._refusal = problem

    def _report_outcome(self, outcome: str, *, level: int = logging.WARNING) -> None:
        if outcome != self._outcome:
            _log.log(level, "%s", outcome)
        self._outcome = outcome

    # --- answering ------------------------------------------------------------------------------

    async def report(self) -> RouterReport:
        """What Envoy does now."""
        try:
            async with asyncio.timeout(_REPORT_SECONDS):
                version = await self._admin.acknowledged_version()
                tracks = await self._admin.tracks()
                gates = await self._admin.gates()
        except (AdminUnavailable, TimeoutError) as error:
            why = str(error) or f"nothing within {_REPORT_SECONDS:g} s"
            return RouterReport(
                None,
                waiting=self._holder.waiting,
                problem=f"Envoy does not answer: {why}"[:_PROBLEM_LIMIT],
            )
        problem = self._refusal
        if not problem and (self._target is None or version != self._target.version):
            problem = f"not in force yet; {self._outcome}"
        waiting = self._holder.waiting + sum(gate.waiting for gate in gates.values())
        return RouterReport(
            version_of_order(version),
            tracks,
            waiting=waiting,
            idle_seconds=self._idle_seconds(tracks, waiting),
            problem=problem[:_PROBLEM_LIMIT],
        )

    def _idle_seconds(self, tracks: Mapping[str, TrackReport], waiting: int) -> int:
        """Since nothing was seen to be done; what began and ended between two looks has counted."""
        now = asyncio.get_running_loop().time()
        is_busy = waiting or any(track.active for track in tracks.values())
        if is_busy or tracks != self._seen:
            self._seen, self._busy_at = tracks, now
        return int(now - self._busy_at)

    async def drain(self) -> str:
        """Return once nothing is in flight or the time is up; says which."""
        propagation = self._config.propagation_seconds
        try:
            left = await drain(
                self._admin,
                at_least_seconds=propagation,
                at_most_seconds=propagation + self._config.drain_seconds,
            )
        except AdminUnavailable as error:
            return f"nothing to wait for: {error}"
        return f"{left} requests are left"


class Holder:
    """Keeps requests while no engine is ready: the first in line, the others wait in Envoy.

    An engine is there: the connection is closed, and Envoy tries the request again, with the
    engine. The time is up: 503. So nothing passes through this process but what it answers itself.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._seconds = 0.0
        self._serving = asyncio.Event()
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._hold)
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=1, handler_cancellation=True
        )

    async def start(self, socket: Path) -> None:
        """Listen there, for Envoy's user too."""
        _make_way(socket)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(socket)).start()
        _open_to_all(socket)

    async def close(self) -> None:
        """Let go of all."""
        await self._runner.cleanup()

    def follow(self, traffic: Traffic) -> None:
        """Let requests go as soon as this traffic, which Envoy has, is served."""
        self._seconds = traffic.hold_seconds
        if traffic.is_serving:
            self._serving.set()
        else:
            self._serving.clear()

    async def _hold(self, request: web.Request) -> web.Response:
        self.waiting += 1
        try:
            # The clock of Envoy, which is this machine's.
            since = float(request.headers.get(START_HEADER, "0"))
            left = since + self._seconds - utc_now().timestamp()
            async with asyncio.timeout(left):
                await self._serving.wait()
        except (TimeoutError, ValueError):
            return _no_engine()
        finally:
            self.waiting -= 1
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # to nobody


def _make_way(socket: Path) -> None:
    socket.unlink(missing_ok=True)  # of an agent before this one


def _open_to_all(socket: Path) -> None:
    socket.chmod(0o666)  # Envoy is another user


def _no_engine() -> web.Response:
    message = "No engine of this model became ready in time. Try again later."
    error = {"message": message, "type": "service_unavailable", "param": None, "code": "no_engine"}
    headers = {
        "Retry-After": str(RETRY_AFTER_SECONDS),
        NO_RETRY_HEADER: "true",
    }
    return web.json_response({"error": error}, status=503, headers=headers)


class AgentServer(HttpServer):
    """What kubelet and operator ask an agent: ``/ready``, ``/status`` and to drain."""

    def __init__(self, agent: RouteAgent, drain_path: str) -> None:
        self._agent = agent
        super().__init__({"/ready": self._ready, "/status": self._status, drain_path: self._drain})

    async def _ready(self, _: web.Request) -> web.Response:
        if self._agent.ready:
            return web.Response(text="ok\n")
        return web.Response(status=503, text="Envoy has no files yet\n")

    async def _status(self, _: web.Request) -> web.Response:
        report = await self._agent.report()
        return web.Response(text=format_report(report), content_type="application/json")

    async def _drain(self, _: web.Request) -> web.Response:
        # Always 200: whatever is left, the pod may end.
        return web.Response(text=f"{await self._agent.drain()}\n")


def _reflectors(config: AgentConfig, cluster: Cluster, sources: RouteSources) -> list[Reflector]:
    selections = (
        # The pod has rights to this one only, and a label would not tell the API server which.
        (CONFIG_MAP, {"field_selector": f"metadata.name={names.router_name(config.service)}"}),
        # Slices carry the labels of their Services, so this is all tracks.
        (ENDPOINT_SLICE, {"label_selector": f"{names.SERVICE_LABEL}={config.service}"}),
    )
    return [
        Reflector(
            cluster, resource, config.namespace, sink=sources, touched=lambda _: None, **selection
        )
        for resource, selection in selections
    ]
