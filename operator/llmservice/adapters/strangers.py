"""How programs are asked that somebody else wrote: engines' images, gates that users name.

Their answers may be anything. Whoever reads one bounds it in time and size; here is what is the
same for all: nothing is followed, remembered or unpacked, and what they say becomes one line.
Pods are asked alike for rollouts and for HPAs: that stands here, too.
"""

from collections.abc import Mapping
from ipaddress import ip_address

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from llmservice.core.router.report import RouterReport, parse_report

WORDS_LIMIT = 256
"""Characters of a pod's own words that get into a log or a status."""

_OK = 200
_METRICS_LIMIT = 2 << 20
_REPORT_LIMIT = 64 << 10


def open_session(
    *, resolver: AbstractResolver | None = None, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientSession:
    """A client without cookies, proxies and limits of its own; make it within an event loop.

    Args:
        resolver: looks names up, anew for each connection.
        headers: of every request.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=resolver, use_dns_cache=False, limit=0, force_close=True
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(),  # each question has its own
        headers={"Accept-Encoding": "identity", **(headers or {})},
        auto_decompress=False,  # a small answer must not become a large one
    )


def pod_url(address: str, port: int, path: str) -> URL:
    """Of a pod; raises ValueError for what is no IP address."""
    return URL.build(scheme="http", host=str(ip_address(address)), port=port, path=path)


async def fetch(session: aiohttp.ClientSession, url: URL, limit: int) -> bytes:
    """The whole answer to a GET.

    Raises:
        ValueError: another status than 200, or more than ``limit`` bytes.
        aiohttp.ClientError: no answer.
    """
    async with session.get(url, allow_redirects=False) as answer:
        if answer.status != _OK:
            raise ValueError(f"HTTP {answer.status}")
        return await read_body(answer, limit)


async def fetch_metrics(session: aiohttp.ClientSession, address: str, port: int) -> str:
    """What an engine's ``/metrics`` say; raises what :func:`fetch` does."""
    return (await fetch(session, pod_url(address, port, "/metrics"), _METRICS_LIMIT)).decode()


async def fetch_report(
    session: aiohttp.ClientSession, address: str, port: int
) -> RouterReport | None:
    """What a router's agent says, None if that makes no sense; raises what :func:`fetch` does."""
    return parse_report(await fetch(session, pod_url(address, port, "/status"), _REPORT_LIMIT))


async def read_body(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """The rest of an answer; raises ValueError when it is longer than ``limit`` bytes."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise ValueError(f"more than {limit} bytes")
    return bytes(body)


def why_silent(error: Exception) -> str:
    """Why a pod gave no answer, short and on one line."""
    return one_line((str(error) or repr(error))[:WORDS_LIMIT])


def one_line(said: str) -> str:
    """Somebody else's words without line breaks and control characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in said).split())
