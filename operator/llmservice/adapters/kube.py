"""How to reach the API server and prove who we are: configuration, TLS, tokens, proxies.

The only importer of the ``kubernetes`` package, which carries the fragile part (kubeconfig
merging, exec plugins, OIDC, service account tokens). What is sent over the sessions made here is
:mod:`llmservice.adapters.rest`'s business; kopf is handed a session of its own, so there is one
way to authenticate.
"""

import asyncio
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

_UNAUTHORIZED = 401
_RELOAD_PAUSE_SECONDS = 5.0
_CONNECT_SECONDS = 5.0
_KEEPALIVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the configuration comes from.

    Without ``kubeconfig`` and ``context``, the service account of the pod we run in is used if
    there is one, else the default kubeconfig.
    """

    kubeconfig: Path | None = None
    context: str | None = None

    @property
    def in_cluster(self) -> bool:
        """Whether the pod's service account is used."""
        return (
            self.kubeconfig is None
            and self.context is None
            and "KUBERNETES_SERVICE_HOST" in os.environ
        )


class Connection:
    """One identity at one API server. Make it with :meth:`open`.

    Client certificates and the CA are read once, at the start; bearer tokens are refreshed.
    """

    def __init__(self, credentials: Credentials, configuration: Any) -> None:
        self._credentials = credentials
        self._configuration = configuration
        self._tls = _tls_context(configuration)
        self._reloading = asyncio.Lock()
        self._reloaded_at = 0.0

    @classmethod
    async def open(cls, credentials: Credentials) -> "Connection":
        """Read the configuration.

        Raises:
            kubernetes.aio.config.ConfigException: there is none, or it is broken.
        """
        return cls(credentials, await _load(credentials))

    @property
    def server(self) -> str:
        """Base URL of the API server, without a slash at the end."""
        return str(self._configuration.host).rstrip("/")

    def session(self, limit: int = 0) -> aiohttp.ClientSession:
        """A session that authenticates every request; the caller closes it.

        Args:
            limit: connections it may hold at a time, 0 for any number.
        """
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=limit,
                ssl=self._tls,
                keepalive_timeout=_KEEPALIVE_SECONDS,
            ),
            headers={
                "User-Agent": "llmservice-operator",
                # aiohttp unpacks in threads, which costs more than a cluster's network does.
                "Accept-Encoding": "identity",
            },
            timeout=aiohttp.ClientTimeout(total=30, sock_connect=_CONNECT_SECONDS),
            middlewares=(self._authenticate,),
            proxy=self._configuration.proxy,
        )

    async def _authenticate(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self._configuration.tls_server_name:
            request.server_hostname = self._configuration.tls_server_name
        authorization = await self._authorize(request)
        response = await send(request)
        if response.status != _UNAUTHORIZED or authorization is None:
            return response
        await self._reload(stale=authorization)
        if await self._authorize(request) == authorization:
            return response
        response.release()
        return await send(request)

    async def _authorize(self, request: aiohttp.ClientRequest) -> str | None:
        token = await self._configuration.get_api_key_with_prefix("BearerToken", "authorization")
        if token is None:
            return None
        request.headers["Authorization"] = authorization = str(token).strip()
        return authorization

    async def _reload(self, *, stale: str) -> None:
        """Read the configuration again, which runs an exec plugin anew; not in quick succession."""
        async with self._reloading:
            current = await self._configuration.get_api_key_with_prefix("BearerToken")
            now = asyncio.get_running_loop().time()
            if str(current).strip() != stale or now - self._reloaded_at < _RELOAD_PAUSE_SECONDS:
                return
            self._reloaded_at = now
            self._configuration = await _load(self._credentials)


async def _load(credentials: Credentials) -> Any:
    configuration = Configuration()
    if credentials.in_cluster:
        load_incluster_config(client_configuration=configuration)
    else:
        await load_kube_config(
            config_file=None if credentials.kubeconfig is None else str(credentials.kubeconfig),
            context=credentials.context,
            client_configuration=configuration,
            persist_config=False,
        )
    return configuration


def _tls_context(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data
    )
    # Cluster CAs made by older tools lack key usages that Python 3.13 insists on; Go does not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
