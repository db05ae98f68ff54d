"""An engine as Envoy sees it, and the traffic to it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

import aiohttp
from aiohttp import web

from llmservice.core.router.desired import Capacity, Endpoint, Track, Traffic

CAPACITY = Capacity(requests=64, queued=64)


class Engine:
    """Says its track; streams and prefills go on until the test says so."""

    def __init__(self, track: str) -> None:
        self.track = track
        self.status = 200
        self.headers: list[dict[str, str]] = []
        self.go_on = asyncio.Event()
        self.streaming = 0
        self.prefilling = 0
        self.turns = asyncio.Semaphore(0)
        self.inside: list[str] = []
        self.came: list[str] = []
        self.endpoint = Endpoint("127.0.0.1:1", ready=True)

    async def start(self) -> None:
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/", self._answer)
        app.router.add_get("/stream", self._stream)
        app.router.add_get("/prefill", self._prefill)
        app.router.add_route("*", "/turn/{who}", self._turn)
        self._runner = web.AppRunner(
            app,
            shutdown_timeout=0.01,  # 0 would be forever
            handler_cancellation=True,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.endpoint = Endpoint(f"127.0.0.1:{self._runner.addresses[0][1]}", ready=True)

    async def stop(self) -> None:
        """Close the port and every connection."""
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        await request.read()
        return web.json_response({"track": self.track}, status=self.status)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(f"data: {self.track}\n\n".encode())
        self.streaming += 1
        await self.go_on.wait()
        for number in range(5):
            await answer.write(f"data: {number}\n\n".encode())
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _prefill(self, request: web.Request) -> web.Response:
        """Silent until told; a stop of the engine meanwhile is a crash during the prefill."""
        self.prefilling += 1
        await self.go_on.wait()
        return await self._answer(request)

    async def _turn(self, request: web.Request) -> web.Response:
        """Answer one request for each turn that the test gives."""
        who = request.match_info["who"]
        self.came.append(who)
        self.inside.append(who)
        try:
            async with asyncio.timeout(20):
                await self.turns.acquire()
        finally:
            self.inside.remove(who)
        return await self._answer(request)


class Stream:
    """A client that reads a stream to its end, whatever happens around it."""

    @classmethod
    async def open(cls, client: aiohttp.ClientSession, url: str) -> Self:
        stream = cls()
        stream._answer = await client.get(f"{url}/stream")
        assert stream._answer.status == 200
        stream.track = (await stream._answer.content.readline()).decode().split()[1]
        return stream

    async def rest(self) -> str:
        """All that follows; an exception if the stream is cut."""
        return (await self._answer.content.read()).decode()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(10):
        while True:
            try:
                if await condition():
                    return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.02)
    raise AssertionError(what)


def a_track(name: str, weight: int, *engines: Engine | Endpoint) -> Track:
    endpoints = tuple(one if isinstance(one, Endpoint) else one.endpoint for one in engines)
    return Track(name, weight, CAPACITY, endpoints)


def a_split(version: str, canary_weight: int, stable: Engine, canary: Engine) -> Traffic:
    return Traffic(
        version,
        stable="stable",
        tracks=(
            a_track("stable", 10_000 - canary_weight, stable),
            a_track("canary", canary_weight, canary),
        ),
    )
