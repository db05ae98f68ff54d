"""A small HTTP server: what probes and other programs ask of a process of ours."""

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """Answers GET on a few paths.

    Args:
        handlers: by path.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        application = web.Application()
        for path, handler in handlers.items():
            application.router.add_get(path, handler)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        self.port = 0

    async def start(self, port: int) -> None:
        """Listen on all addresses; port 0 takes any free one (see :attr:`port`)."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host=None, port=port).start()
        # Each address family has a socket of its own; only they tell the port that 0 became.
        self.port = min(self._runner.addresses, key=len)[1]

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()
