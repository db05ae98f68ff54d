"""How programs are asked that somebody else wrote: engines' images, gates that users name.

Their answers may be anything. Whoever reads one bounds it in time and size; here is what is the
same for all: nothing is followed, remembered or unpacked, and what they say becomes one line.
"""

from collections.abc import Mapping

import aiohttp
from aiohttp.abc import AbstractResolver


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


def one_line(said: str) -> str:
    """Somebody else's words without line breaks and control characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in said).split())
