"""The HTTP servers of our processes: for probes and other programs, and over TLS."""

import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CLOSE_SECONDS = 5


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


class TlsServer:
    """Serves an application over TLS; how it does so can be exchanged meanwhile.

    Args:
        application: what to serve.
        port: on all addresses; 0 takes any free one (see :attr:`port`).
    """

    def __init__(self, application: web.Application, port: int) -> None:
        self.port = port
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=_CLOSE_SECONDS)
        self._socket: socket.socket | None = None
        self._site: web.SockSite | None = None

    async def use(self, context: ssl.SSLContext) -> None:
        """Listen, and make new connections with ``context`` from now on; those there are go on."""
        if self._socket is None:
            self._socket = _listen(self.port)
            await self._runner.setup()
            self.port = self._socket.getsockname()[1]
        former = self._site
        # Both sites listen on one socket for a moment, so that nobody is turned away.
        self._site = web.SockSite(self._runner, self._socket.dup(), ssl_context=context)
        await self._site.start()
        if former is not None:
            await former.stop()

    async def close(self) -> None:
        """Stop listening, let requests end."""
        await self._runner.cleanup()
        if self._socket is not None:
            self._socket.close()


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        address = ("::", port)
        return socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
