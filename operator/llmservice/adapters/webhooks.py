"""Asks the programs that users name as gates, by a POST.

The address is that of a user, who may run pods in that namespace anyway; but the operator stands
elsewhere. What only its own node would answer (loopback, link-local, metadata services) is not
called, whatever name leads there. An answer may be anything: it is bounded in time and size, and no
redirect and no proxy is followed.
"""

import asyncio
import socket
from collections.abc import Callable
from errno import EACCES
from ipaddress import IPv6Address, ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.helpers import is_ip_address
from yarl import URL

from llmservice.adapters.strangers import one_line, open_session
from llmservice.core.questions import CallGate, GateAnswer

_WORDS_LIMIT = 512
"""Characters of an answer that get into a status."""
_METADATA = frozenset(map(ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
"""Of AWS by IPv6, Alibaba and Azure; those of others are link-local."""


class ForbiddenAddressError(OSError):
    """An address that is not called for users."""


def check_address(address: str) -> None:
    """Refuse an IP address that leads to the operator's own node.

    Raises:
        ForbiddenAddressError: loopback, link-local or metadata.
    """
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or found
    local = found.is_loopback or found.is_link_local or found.is_unspecified
    if local or found.is_multicast or found in _METADATA:
        raise ForbiddenAddressError(
            EACCES, f"{found} is a loopback, link-local or metadata address, which no gate may have"
        )


class Webhooks:
    """Calls gates; make it within a running event loop.

    Args:
        check: raises OSError for an IP address that is not called.
    """

    def __init__(self, check: Callable[[str], None] = check_address) -> None:
        self._check = check
        # Each connection is made anew, so that its address is looked up, and checked, each time.
        self._session = open_session(
            resolver=_Resolver(check), headers={"User-Agent": "llmservice"}
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def call(self, question: CallGate) -> GateAnswer:
        """What the gate says, or why it cannot be reached."""
        try:
            async with asyncio.timeout(question.timeout_seconds):
                status, said = await self._post(question)
        except TimeoutError:
            status, said = None, f"no answer within {question.timeout_seconds:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            status, said = None, str(error) or repr(error)
        return GateAnswer(question.trial, status, one_line(said))

    async def _post(self, question: CallGate) -> tuple[int | None, str]:
        url = URL(question.url)
        if url.host and is_ip_address(url.host):  # so aiohttp asks no resolver
            self._check(url.host)
        json = {"Content-Type": "application/json"}
        async with self._session.post(
            url, data=question.body.encode(), headers=json, allow_redirects=False
        ) as answer:
            body = b""
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) >= _WORDS_LIMIT:
                    break
            return answer.status, body[:_WORDS_LIMIT].decode(errors="replace")


class _Resolver(AbstractResolver):
    """The system's resolver, which tells no address that is not to be called."""

    def __init__(self, check: Callable[[str], None]) -> None:
        self._check = check
        self._system = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._system.resolve(host, port, family)
        for each in found:
            self._check(each["host"])
        return found

    async def close(self) -> None:
        await self._system.close()
