"""``llmservice status``: how services are, once or until they settle.

Exit codes: 0 every service asked for is ready; 1 one is not, is stalled, or is not there; 3 the
cluster cannot be reached or refuses us. On a terminal the phase is colored and a clock runs
while it waits; anywhere else the output is plain lines, one per change.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from llmservice.adapters.clock import utc_now
from llmservice.adapters.kube import Connection
from llmservice.adapters.ports import Cluster, ClusterError, Gone, NotFound, Unavailable
from llmservice.adapters.resources import LLM_SERVICE
from llmservice.adapters.rest import RestCluster
from llmservice.api import names
from llmservice.cli import color
from llmservice.cli.options import credentials
from llmservice.cli.report import (
    Service,
    Verdict,
    as_json,
    describe,
    evidence,
    news,
    summary,
    verdict,
)

EXIT_READY = 0
EXIT_NOT_READY = 1
EXIT_INTERRUPTED = 130

_RECONNECT_SECONDS = 1.0
_RECONNECT_ATTEMPTS = 30
_COLORS = {Verdict.Ready: "32", Verdict.Stalled: "31", Verdict.Progressing: "33"}


def run(arguments: argparse.Namespace) -> int:
    """Print the status that was asked for and return the exit code.

    Raises:
        ClusterError: the cluster cannot be reached or refuses us; the message says why.
    """
    try:
        return asyncio.run(_run(arguments))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


async def _run(arguments: argparse.Namespace) -> int:
    async with connected(arguments) as (cluster, namespace):
        question = _Question(cluster, namespace, arguments.name)
        if arguments.watch:
            return await _Watch(question, as_lines=arguments.output == "text").until_settled()
        services, _ = await question.listed()
        return _show(services, question, arguments.output)


@asynccontextmanager
async def connected(arguments: argparse.Namespace) -> AsyncIterator[tuple[Cluster, str]]:
    """The cluster and the namespace that a command's arguments mean.

    Raises:
        ClusterError: no kubeconfig is usable.
    """
    connection = await Connection.open(credentials(arguments))
    cluster = RestCluster(connection)
    try:
        yield cluster, arguments.namespace or connection.namespace
    finally:
        await cluster.close()


class _Question:
    """Which services are meant, and how to find them."""

    def __init__(self, cluster: Cluster, namespace: str, name: str | None) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = name

    async def listed(self) -> tuple[list[Service], str]:
        """The services asked for, and the version from which to watch for changes."""
        found: list[Service] = []
        token: str | None = None
        while True:
            try:
                page = await self.cluster.list_page(
                    LLM_SERVICE, self.namespace, continue_token=token
                )
            except NotFound as error:
                raise ClusterError(
                    f"the cluster has no {names.KIND}: install the CustomResourceDefinition"
                ) from error
            found += [item for item in page.items if self.is_about(item)]
            token = page.continue_token
            if token is None:
                return found, page.resource_version

    def is_about(self, service: Service) -> bool:
        """Whether the service is one of those asked for."""
        return self.name in (None, service["metadata"]["name"])

    @property
    def nothing(self) -> str:
        """What to say when there is none."""
        what = f" {self.name}" if self.name else ""
        return f"no {names.KIND}{what} in namespace {self.namespace}"


class _Watch:
    """Follow services until each is ready or one is stalled; a line per change."""

    def __init__(self, question: _Question, *, as_lines: bool) -> None:
        self._question = question
        self._as_lines = as_lines
        self._live: dict[str, Service] = {}
        self._said: dict[str, Sequence[str]] = {}
        self._waiting_since = utc_now()

    async def until_settled(self) -> int:
        """The exit code, once there is nothing left to wait for."""
        clock = asyncio.create_task(self._tick()) if sys.stderr.isatty() else None
        try:
            return await self._follow()
        finally:
            if clock is not None:
                clock.cancel()
                with suppress(asyncio.CancelledError):
                    await clock
                print("\r\033[K", end="", file=sys.stderr, flush=True)

    async def _follow(self) -> int:
        services, version = await self._question.listed()
        attempts = 0
        while True:
            try:
                if (code := self._take(services)) is not None:
                    return code
                if (code := await self._events(version)) is not None:
                    return code
                attempts = 0
            except (Gone, Unavailable) as error:
                attempts += 1
                if attempts > _RECONNECT_ATTEMPTS:
                    raise
                self._note(f"the cluster does not answer, asking again: {error}")
                await asyncio.sleep(_RECONNECT_SECONDS)
            with suppress(Unavailable):
                services, version = await self._question.listed()

    async def _events(self, version: str) -> int | None:
        stream = self._question.cluster.watch(
            LLM_SERVICE, self._question.namespace, resource_version=version
        )
        async for event in stream:
            if event.type == "BOOKMARK" or not self._question.is_about(event.object):
                continue
            if event.type == "DELETED":
                self._note(f"{event.object['metadata']['name']}: deleted")
                return EXIT_NOT_READY
            if (code := self._take([event.object])) is not None:
                return code
        return None

    def _take(self, services: Iterable[Service]) -> int | None:
        """Note the newest state of services; the exit code if that settles it."""
        for service in services:
            name = service["metadata"]["name"]
            self._live[name] = service
            if self._said.get(name) != news(service):
                self._said[name] = news(service)
                self._say(service)
        if not self._live:
            self._note(self._question.nothing)
            return EXIT_NOT_READY
        verdicts = {verdict(service) for service in self._live.values()}
        if Verdict.Stalled in verdicts:
            return EXIT_NOT_READY
        return EXIT_READY if verdicts == {Verdict.Ready} else None

    def _say(self, service: Service) -> None:
        if self._as_lines:
            moment = utc_now().astimezone().strftime("%H:%M:%S")
            _print(f"{moment} {_colored(summary(service), service)}")
            for line in evidence(service):
                _print(f"{'':<{len(moment)}} {line}")
        else:
            _print(json.dumps(as_json(service)))

    def _note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    async def _tick(self) -> None:
        """How long we have been waiting, so that silence does not look like a hang."""
        while True:
            seconds = int((utc_now() - self._waiting_since).total_seconds())
            print(f"\r\033[Kwaiting, {seconds} s", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(1)


def _show(services: list[Service], question: _Question, output: str) -> int:
    if output == "json":
        items: list[Any] = [as_json(service) for service in services]
        _print(json.dumps(items if question.name is None else next(iter(items), None), indent=2))
    if not services:
        print(question.nothing, file=sys.stderr)
        return EXIT_NOT_READY
    if output == "text":
        for service in services:
            head, *rest = describe(service, utc_now())
            _print("\n".join([_colored(head, service), *(rest if question.name else ())]))
    ready = all(verdict(service) is Verdict.Ready for service in services)
    return EXIT_READY if ready else EXIT_NOT_READY


def _colored(text: str, service: Service) -> str:
    return color.paint(text, _COLORS[verdict(service)]) if color.is_wanted() else text


def _print(text: str) -> None:
    if sys.stdout.isatty():
        text = f"\r\033[K{text}"  # over the clock
    print(text, flush=True)
