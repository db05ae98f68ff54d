"""The metrics server's life: what it needs before it serves, and what it looks after.

::

    probes -> the pods are known and have been asked -> each minute, and sooner after a failure:
        whom to believe, certificates, the registration with the API server
      -> SIGTERM: not ready, answer those who have not heard of it yet, close

Any replica answers; they share nothing but the certificates. The API server may be away: what was
read last holds until it can be read again.
"""

import asyncio
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from llmservice.adapters.api_registration import ApiRegistration, Outcome, Registration
from llmservice.adapters.clock import utc_now
from llmservice.adapters.front_proxy import FrontProxy, Trust
from llmservice.adapters.gauges import POD_SELECTOR, Gauges
from llmservice.adapters.http_server import HttpServer, TlsServer
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.ports import Cluster, ClusterError
from llmservice.adapters.reflector import Reflector
from llmservice.adapters.resources import POD
from llmservice.adapters.rest import RestCluster
from llmservice.adapters.serving_certificates import Certificates, CertificateStore
from llmservice.adapters.telemetry import exposition
from llmservice.handlers.logs import configure_logging
from llmservice.handlers.metrics_api import build_application

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 60.0
_RETRY_SECONDS = 5.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class MetricsServerConfig:
    """Settings of one metrics server."""

    namespace: str
    """Where it runs."""
    name: str
    """Of the Service that leads here, and of the Secret and the ClusterRole of the release."""
    namespaces: tuple[str, ...] = ()
    """Where to look for pods; empty means all namespaces."""
    port: int = 8443
    """Of the API, TLS; 0 takes any free one."""
    external_metrics: bool = True
    """Serve ``external.metrics.k8s.io`` where nobody else does."""
    probe_port: int = 8080
    """Of /healthz, /readyz and /metrics; 0 takes any free one."""
    drain_seconds: float = 5.0
    """How long requests may still come after the pod's end has begun."""
    credentials: Credentials = field(default_factory=Credentials)

    @property
    def hosts(self) -> tuple[str, ...]:
        """What clients call us by; the API server uses the first."""
        service = f"{self.name}.{self.namespace}.svc"
        return (service, f"{service}.cluster.local")


def main(config: MetricsServerConfig) -> int:
    """Run the metrics server until SIGTERM; returns the exit code."""
    configure_logging()
    return asyncio.run(_run(config))


async def _run(config: MetricsServerConfig) -> int:
    cluster = RestCluster(await Connection.open(config.credentials))
    try:
        server = MetricsServer(config, cluster)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        return await server.run()
    finally:
        await cluster.close()


class MetricsServer:
    """One replica; make it within a running event loop, run it once.

    Args:
        config: its settings.
        cluster: the API server.
    """

    def __init__(self, config: MetricsServerConfig, cluster: Cluster) -> None:
        self._config = config
        self._stopping = asyncio.Event()
        self._telemetry = _Telemetry()
        self._gauges = Gauges(self._telemetry.registry)
        self._reflectors = [
            Reflector(
                cluster,
                POD,
                namespace,
                sink=self._gauges,
                touched=lambda _: None,
                label_selector=POD_SELECTOR,
            )
            for namespace in config.namespaces or (None,)
        ]
        self._proxy = FrontProxy(cluster)
        self._store = CertificateStore(cluster, config.namespace, config.name, config.hosts)
        self._registration = ApiRegistration(
            cluster, config.namespace, config.name, external=config.external_metrics
        )
        application = build_application(self._gauges, self._proxy.authorize, utc_now)
        self.api = TlsServer(application, config.port)
        self.probes = HttpServer(
            {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._telemetry.answer}
        )
        self._serving: tuple[Certificates, Trust] | None = None
        self._registered: Mapping[str, Registration] = {}
        self._problem = "not looked at the cluster yet"

    def stop(self) -> None:
        """Have :meth:`run` end."""
        self._stopping.set()

    async def run(self) -> int:
        """Work until stopped; returns the exit code."""
        await self.probes.start(self._config.probe_port)
        stopped = asyncio.create_task(self._stopped())
        work = [reflector.run() for reflector in self._reflectors]
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(each) for each in work]
        tasks += [asyncio.create_task(each) for each in (self._gauges.run(), self._look_after())]
        try:
            # None of them ends by itself, unless it is broken.
            done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, stopped):
                task.cancel()
            ended = await asyncio.gather(*tasks, stopped, return_exceptions=True)
            await self.api.close()
            await self._gauges.close()
            await self.probes.close()
        for error in ended:
            if isinstance(error, Exception):
                _log.error("the metrics server broke: %r", error, exc_info=error)
        return 0 if stopped in done else 1

    async def _stopped(self) -> None:
        await self._stopping.wait()
        await asyncio.sleep(self._config.drain_seconds)

    # --- looking after ----------------------------------------------------------------------------

    async def _look_after(self) -> None:
        for reflector in self._reflectors:
            await reflector.synced.wait()
        # Nobody is to be led to one that knows nothing.
        while self._gauges.problems():  # noqa: ASYNC110 - they tell nobody when they are ready
            await asyncio.sleep(_POLL_SECONDS)
        while True:
            try:
                await self.look(utc_now())
            except (ClusterError, ValueError, OSError) as error:
                self._report_problem(f"{type(error).__name__}: {error}"[:1024])
            await asyncio.sleep(_RETRY_SECONDS if self._problem else _LOOK_SECONDS)

    async def look(self, now: datetime) -> None:
        """Bring certificates, trust and registration up to date.

        Raises:
            ClusterError: the API server does not answer, refuses, or lacks what the chart makes.
            ValueError: the cluster's front proxy makes no sense; what is served stays as it is.
            OSError: TLS cannot be served like this.
        """
        trust = await self._proxy.refresh()
        if trust is None:
            raise ValueError("the cluster has no front proxy, so nobody could ask")
        owner = await self._registration.owner()
        certificates = await self._store.current(now, owner)
        await self._serve(certificates, trust)
        self._report_registration(await self._registration.register(certificates.bundle, owner))
        outcomes = [each.outcome for each in self._registered.values()]
        await self._store.advance(now, owner, trusted=Outcome.Failed not in outcomes)

    async def _serve(self, certificates: Certificates, trust: Trust) -> None:
        if self._serving == (certificates, trust):
            return
        await self.api.use(self._proxy.context(certificates.serving, trust))
        self._serving = (certificates, trust)
        end = certificates.serving.certificate.not_valid_after_utc
        _log.info("serving on port %s with a certificate valid until %s", self.api.port, end)

    def _report_problem(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.warning("%s", problem)
        self._problem = problem

    def _report_registration(self, registered: Mapping[str, Registration]) -> None:
        for name, registration in registered.items():
            if registration != self._registered.get(name):
                ours = registration.outcome is Outcome.Ours
                level = logging.INFO if ours else logging.WARNING
                _log.log(level, "APIService %s: %s", name, registration.why or "ours")
            if registration.outcome is not Outcome.Failed:
                self._telemetry.report(name, ours=registration.outcome is Outcome.Ours)
        self._registered = registered
        failed = [each.why for each in registered.values() if each.outcome is Outcome.Failed]
        self._report_problem("; ".join(failed))

    # --- probes -----------------------------------------------------------------------------------

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        missing = list(self._gauges.problems())
        if self._stopping.is_set():
            missing.append("shutting down")
        if self._serving is None:
            missing.append("not serving yet")
        lines = missing or ["serving"]
        lines += [self._problem] if self._problem else []
        lines += [f"{name}: {r.why or 'ours'}" for name, r in self._registered.items()]
        return web.Response(status=503 if missing else 200, text="\n".join(lines) + "\n")


class _Telemetry:
    """What the metrics server says about itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._owned = Gauge(
            "llmservice_metrics_api_owned",
            "1 where the metrics API of the cluster is served by us, 0 where by somebody else",
            ["group_version"],
            registry=self.registry,
        )

    def report(self, api_service: str, *, ours: bool) -> None:
        version, _, group = api_service.partition(".")
        self._owned.labels(f"{group}/{version}").set(float(ours))

    async def answer(self, _: web.Request) -> web.Response:
        return exposition(self.registry)
