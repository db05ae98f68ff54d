"""How to reach the API server and prove who we are: configuration, TLS, tokens, proxies.

The only importer of the ``kubernetes`` package, which carries the fragile part (kubeconfig
merging, exec plugins, OIDC, service account tokens). What is sent over the sessions made here is
:mod:`llmservice.adapters.rest`'s business; kopf is handed a session of its own, so there is one
way to authenticate.
"""

import asyncio
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from yarl import URL

from llmservice.adapters.ports import Unavailable

_UNAUTHORIZED = 401
_RELOAD_PAUSE_SECONDS = 5.0
_CONNECT_SECONDS = 5.0
_KEEPALIVE_SECONDS = 60.0
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT_NAMESPACE = "default"


class CredentialsError(Unavailable):
    """There is no usable kubeconfig or service account; the message says why, in one line."""


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

    def __init__(self, credentials: Credentials, configuration: Any, namespace: str) -> None:
        self.namespace = namespace
        """Where kubectl would look if told no namespace: the context's or the pod's own."""
        self._credentials = credentials
        self._configuration = configuration
        self._tls = _tls_context(configuration)
        self._proxy = URL(configuration.proxy) if configuration.proxy else None
        self._reloading = asyncio.Lock()
        self._reloaded_at = 0.0

    @classmethod
    async def open(cls, credentials: Credentials) -> "Connection":
        """Read the configuration.

        Raises:
            CredentialsError: there is none, or it is broken.
        """
        with _credentials_errors(credentials):
            return cls(credentials, *await _load(credentials))

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
            proxy=self._proxy,
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
        authorization = await self._authorization()
        if authorization is not None:
            request.headers["Authorization"] = authorization
        return authorization

    async def _authorization(self) -> str | None:
        with _credentials_errors(self._credentials):  # it reads the service account's token anew
            token = await self._configuration.get_api_key_with_prefix(
                "BearerToken", "authorization"
            )
        return None if token is None else str(token).strip()

    async def _reload(self, *, stale: str) -> None:
        """Read the configuration again, which runs an exec plugin anew; not in quick succession."""
        async with self._reloading:
            current = await self._authorization()
            now = asyncio.get_running_loop().time()
            if current != stale or now - self._reloaded_at < _RELOAD_PAUSE_SECONDS:
                return
            self._reloaded_at = now
            with _credentials_errors(self._credentials):
                self._configuration, _ = await _load(self._credentials)


async def _load(credentials: Credentials) -> tuple[Any, str]:
    """The configuration, and the namespace meant by those who name none."""
    configuration = Configuration()
    if credentials.in_cluster:
        load_incluster_config(client_configuration=configuration)
        namespace = _pod_namespace()
    else:
        loader = await load_kube_config(
            config_file=_existing(_kubeconfig_of(credentials)),
            context=credentials.context,
            client_configuration=configuration,
            persist_config=False,
        )
        namespace = loader.current_context["context"].get("namespace")
    return configuration, str(namespace or _DEFAULT_NAMESPACE)


def _pod_namespace() -> str:
    with suppress(FileNotFoundError):
        return _POD_NAMESPACE.read_text(encoding="utf-8").strip()
    return ""


def _kubeconfig_of(credentials: Credentials) -> str:
    """One path, or several as in ``KUBECONFIG``."""
    return str(credentials.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config")


def _existing(paths: str) -> str:
    """The paths, of which the library would only log that none is there."""
    if not any(Path(path).expanduser().exists() for path in paths.split(os.pathsep) if path):
        raise ConfigException(f"{paths} does not exist")
    return paths


@contextmanager
def _credentials_errors(credentials: Credentials) -> Iterator[None]:
    """Turns whatever a broken configuration makes the library raise into CredentialsError."""
    try:
        yield
    except Exception as error:
        what = "service account" if credentials.in_cluster else "kubeconfig"
        raise CredentialsError(f"no usable {what}: {_reason(credentials, error)}") from error


def _reason(credentials: Credentials, error: Exception) -> str:
    if not isinstance(error, ConfigException | yaml.YAMLError | OSError):
        # It tripped over a value of the wrong type, and its words are about its own code.
        where = "the pod's" if credentials.in_cluster else _kubeconfig_of(credentials)
        return f"{where} is malformed"
    line = " ".join(str(error).split()).removeprefix("Invalid kube-config file. ")
    return line.partition("/{")[0]  # then it quotes the entry, with its token


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
