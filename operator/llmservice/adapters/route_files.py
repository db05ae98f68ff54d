"""Hands files to an Envoy in the same pod, and reads what it made of them.

Files are replaced by rename, the only change that Envoy notices. Nothing is remembered between
two calls: the folder says what was written, Envoy's admin port says what was taken. So a writer
may be killed at any point, and Envoy goes on serving what it knew.
"""

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from llmservice.core.router.agent import COUNTERS, GATES, Gate, count_tracks, read_gates
from llmservice.core.router.desired import Traffic, format_traffic, parse_traffic
from llmservice.core.router.envoy import (
    INGRESS,
    NUDGE_PATH,
    RUNTIME,
    STAT_PREFIX,
    RouterSettings,
    build_static_files,
    end_bypass,
    own_metadata,
)
from llmservice.core.router.order import Step, Until, plan_steps
from llmservice.core.router.report import TrackReport

_log = logging.getLogger(__name__)

_ORDER = "traffic.json"
"""What was ordered last, for a writer that comes back; Envoy does not know this file."""
_OK = 200
_POLL_SECONDS = 0.02
_GRACE_SECONDS = 0.25
"""Every rename makes Envoy read all files again, so what it refuses may still be an old one."""
_BODY_LIMIT = 8 << 20
_ROUTE_COUNTERS = (f"http.{STAT_PREFIX}.rds.",)
_CLUSTER_COUNTERS = ("cluster_manager.cds.", "cluster.")
_MEMBERS = "membership_total"
_ACTIVE_REQUESTS = f"http.{STAT_PREFIX}.downstream_rq_active"


class AdminUnavailable(Exception):  # noqa: N818 - it names a state, like the ones of the API
    """Envoy's admin port does not answer, or not with what it should."""


class EnvoyAdmin:
    """Envoy's admin port; make it within a running event loop.

    Args:
        port: on the loopback interface.
        seconds: limit of one question.
    """

    def __init__(self, port: int, *, seconds: float = 2.0) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=seconds), cookie_jar=aiohttp.DummyCookieJar()
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def acknowledged_version(self) -> str | None:
        """The version of the traffic in force; None before Envoy has any routes.

        Raises:
            AdminUnavailable: Envoy does not tell.
        """
        configs = await self._dump("dynamic_route_configs", mask="route_config.metadata")
        for config in configs:
            version = own_metadata(config.get("route_config", {}), "version")
            if version is not None:
                return version
        return None

    async def active_clusters(self) -> dict[str, str | None]:
        """The clusters that requests can be sent to: digests of their definitions by name."""
        configs = await self._dump("dynamic_active_clusters", mask="cluster.name,cluster.metadata")
        clusters = (config["cluster"] for config in configs)
        return {cluster["name"]: own_metadata(cluster, "digest") for cluster in clusters}

    async def engines(self) -> dict[str, int]:
        """How many are known, by cluster."""
        found = await self._stats(rf"^cluster\.[^.]+\.{_MEMBERS}$")
        return {name.split(".")[1]: number for name, number in found.items()}

    async def rejections(self) -> dict[str, int]:
        """How often each kind of file was refused or could not be read, by counter."""
        return await self._stats("update_(rejected|failure)$")

    async def active_requests(self) -> int:
        """Requests of clients that have not ended, probes among them."""
        stats = await self._stats(f"^{_ACTIVE_REQUESTS}$")
        return stats.get(_ACTIVE_REQUESTS, 0)

    async def tracks(self) -> dict[str, TrackReport]:
        """What each track did since Envoy started, by its name."""
        return count_tracks(await self._stats(COUNTERS))

    async def gates(self) -> dict[str, Gate]:
        """Who waits, by the track's name."""
        return read_gates(await self._stats(GATES))

    async def nudge(self, track: str, times: int) -> None:
        """Have a track's gate look at its limit anew.

        A request that arrives has that effect, so some do, and leave at once.
        """
        port = await self._port()
        for _ in range(times):
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"GET {NUDGE_PATH}{track} HTTP/1.1\r\nhost: router\r\n\r\n".encode())
                writer.close()
                await writer.wait_closed()

    async def _port(self) -> int:
        """Where clients come in."""
        text = await self._ask("GET", "/listeners", {"format": "json"})
        try:
            found = json.loads(text)["listener_statuses"]
            addresses = {each["name"]: each["local_address"] for each in found}
            return int(addresses[INGRESS]["socket_address"]["port_value"])
        except (ValueError, LookupError, TypeError) as error:
            raise AdminUnavailable(f"/listeners names no port: {error!r}") from error

    async def fail_health_checks(self) -> None:
        """Answer 503 to readiness probes from now on."""
        await self._ask("POST", "/healthcheck/fail", {})

    async def drain_listeners(self) -> None:
        """Ask clients to close their connections, and go on serving those that do not."""
        # Inbound: that behind the gates is open for as long as somebody waits there.
        options = {"graceful": "", "skip_exit": "", "inboundonly": ""}
        await self._ask("POST", "/drain_listeners", options)

    async def _dump(self, resource: str, *, mask: str) -> list[dict[str, Any]]:
        text = await self._ask("GET", "/config_dump", {"resource": resource, "mask": mask})
        try:
            configs: list[dict[str, Any]] = json.loads(text).get("configs", [])
        except ValueError as error:
            raise AdminUnavailable(f"/config_dump is no JSON: {error}") from error
        return configs

    async def _stats(self, pattern: str) -> dict[str, int]:
        text = await self._ask("GET", "/stats", {"filter": pattern, "format": "json"})
        try:
            found = json.loads(text)["stats"]
            numbers = ((stat.get("name"), stat.get("value")) for stat in found)
            return {name: value for name, value in numbers if name and isinstance(value, int)}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise AdminUnavailable(f"/stats are no JSON: {error}") from error

    async def _ask(self, method: str, path: str, query: Mapping[str, str]) -> bytes:
        try:
            async with self._session.request(method, self._url + path, params=query) as answer:
                body = await answer.content.read(_BODY_LIMIT)
                while more := await answer.content.read(_BODY_LIMIT):
                    body += more
                    if len(body) > _BODY_LIMIT:
                        raise AdminUnavailable(f"{path}: more than {_BODY_LIMIT} bytes")
        except (aiohttp.ClientError, OSError) as error:  # a time-out is an OSError
            raise AdminUnavailable(f"{path}: {error!r}"[:256]) from error
        if answer.status != _OK:
            raise AdminUnavailable(f"{path}: HTTP {answer.status}")
        return body


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Envoy routes by this version."""

    version: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Envoy refused a file and goes on with what it had."""

    version: str
    counters: tuple[str, ...]
    """Which of its counters rose."""


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """The files lie there, as far as written, and Envoy did not say that it took them."""

    version: str
    why: str


class RouteFiles:
    """The files of one Envoy. Only one writer at a time, and it calls :meth:`apply` in turn.

    Args:
        folder: where the files lie, for us and for Envoy.
        admin: the Envoy that reads them.
        seconds: how long Envoy may take for a step; it needs some tens of milliseconds.
    """

    def __init__(self, folder: Path, admin: EnvoyAdmin, *, seconds: float = 5.0) -> None:
        self._folder = folder
        self._admin = admin
        self._seconds = seconds

    def install(self, settings: RouterSettings) -> None:
        """Write what Envoy is started with; the first traffic must follow before it starts."""
        self._replace(build_static_files(settings))

    def remember(self, order: Traffic) -> None:
        """Keep the order that Envoy follows, for :meth:`recall`."""
        self._replace({_ORDER: format_traffic(order)})

    def recall(self) -> Traffic | None:
        """The order that was remembered last, by whichever writer; None if there is none."""
        text = self._read().get(_ORDER)
        order = None if text is None else parse_traffic(text)
        return order if isinstance(order, Traffic) else None

    def end_bypass(self) -> None:
        """Have requests pass the gate, without a word from Envoy or about anything else."""
        text = self._read().get(RUNTIME)
        if text is not None:
            self._replace({RUNTIME: end_bypass(text)})

    async def apply(self, traffic: Traffic) -> Acknowledged | Rejected | Unconfirmed:
        """Bring Envoy to this traffic, or say why it is not there; call again to try again.

        A version names one content: the same version with another one would pass as taken.
        While Envoy is away, everything is written: it reads whole files when it starts.
        """
        if not traffic.bypass:  # what else is to change may take long, or be refused
            self.end_bypass()
        steps = plan_steps(traffic, str(self._folder), self._read())
        away = ""
        for step in steps:
            try:
                before = await self._admin.rejections()
                taken = await self._is_taken(step, traffic.version)
            except AdminUnavailable as error:
                before, taken, away = {}, False, str(error)
            self._replace(step.files, again=not taken)
            if not away:
                problem = await self._wait(step, traffic.version, before)
                if problem is not None:
                    return problem
            self._remove(step.removed)
        return Unconfirmed(traffic.version, away) if away else Acknowledged(traffic.version)

    async def _wait(
        self, step: Step, version: str, before: Mapping[str, int]
    ) -> Rejected | Unconfirmed | None:
        try:
            async with asyncio.timeout(self._seconds):
                while not await self._has_effect(step, version):
                    rose = await self._rejected_since(before, step)
                    await asyncio.sleep(_GRACE_SECONDS if rose else _POLL_SECONDS)
                    if rose and not await self._is_taken(step, version):
                        _log.error("Envoy refused version %s: %s", version, ", ".join(rose))
                        return Rejected(version, rose)
        except TimeoutError:
            return Unconfirmed(version, f"not taken within {self._seconds:g} s")
        except AdminUnavailable as error:
            return Unconfirmed(version, str(error))
        return None

    async def _rejected_since(self, before: Mapping[str, int], step: Step) -> tuple[str, ...]:
        watched = _ROUTE_COUNTERS if step.until is Until.Version else _CLUSTER_COUNTERS
        now = await self._admin.rejections()
        rose = (name for name in now if now[name] > before.get(name, 0))
        return tuple(sorted(name for name in rose if name.startswith(watched)))

    async def _is_taken(self, step: Step, version: str) -> bool:
        if step.until is Until.Version:
            return await self._admin.acknowledged_version() == version
        return await self._admin.active_clusters() == step.clusters

    async def _has_effect(self, step: Step, version: str) -> bool:
        """Whether the next step may begin."""
        if not await self._is_taken(step, version):
            return False
        found = await self._admin.engines() if step.engines else {}
        return all(found.get(name) == number for name, number in step.engines.items())

    def _read(self) -> dict[str, str]:
        return {
            file.name: file.read_text(errors="replace")
            for file in self._folder.glob("[!.]*.json")
            if file.is_file()
        }

    def _replace(self, files: Mapping[str, str], *, again: bool = False) -> None:
        on_disk = {} if again else self._read()
        for name, text in files.items():
            if on_disk.get(name) == text:
                continue
            file, fresh = self._folder / name, self._folder / f".{name}"
            fresh.write_text(text)
            os.replace(fresh, file)  # noqa: PTH105 - the call that is atomic, by its own name

    def _remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)


async def drain(admin: EnvoyAdmin, *, at_least_seconds: float, at_most_seconds: float) -> int:
    """Let requests end before Envoy is stopped; SIGTERM alone would cut every stream.

    Args:
        admin: the Envoy that is about to be stopped.
        at_least_seconds: how long others may still send new requests, because they do not know
            yet that this router is not ready.
        at_most_seconds: when to give up.

    Returns:
        How many requests are left, to be cut: 0 unless the time was up.

    Raises:
        AdminUnavailable: Envoy does not answer, so there is nothing to wait for.
    """
    clock = asyncio.get_running_loop().time
    start = clock()
    await admin.fail_health_checks()
    await admin.drain_listeners()
    await asyncio.sleep(min(at_least_seconds, at_most_seconds))
    # Envoy tells nobody when a request ends.
    while active := await admin.active_requests():
        if clock() - start >= at_most_seconds:
            break
        await asyncio.sleep(_POLL_SECONDS)
    return active
