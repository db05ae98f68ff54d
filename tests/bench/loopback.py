"""Both ends of the router's benchmark: an engine that answers at once, and a client.

An engine is a process of its own (``python -m tests.bench.loopback NAME``), so that it takes no
time from who measures. Neither knows more of HTTP than the other needs.
"""

import asyncio
import json
import random
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

_PATIENCE_SECONDS = 30


# --- engines --------------------------------------------------------------------------------------

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_ENGINE = re.compile(rb"x-engine: ([a-z]+)")
_PROMPT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 200}]}).encode()
_HEAD = b"HTTP/1.1 200 OK\r\nx-engine: %b\r\ncontent-type: %b\r\n%b\r\n\r\n"


async def serve(name: str) -> None:
    """Be an engine: print the port, then answer ``/answer/MS`` and ``/stream/CHUNKS/MS``."""
    server = await asyncio.start_server(partial(_converse, name), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _converse(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    text = json.dumps({"choices": [{"text": "x" * 120}]}).encode()
    who = name.encode()
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while not writer.is_closing():
            head = await reader.readuntil(b"\r\n\r\n")
            found = _LENGTH.search(head)
            assert found is not None
            await reader.readexactly(int(found[1]))
            what, *numbers = head.split(b" ", 2)[1].strip(b"/").split(b"/")
            if what == b"answer":
                await asyncio.sleep(int(numbers[0]) / 1000)
                length = b"content-length: %d" % len(text)
                writer.write(_HEAD % (who, b"application/json", length) + text)
            else:
                kind = _HEAD % (who, b"text/event-stream", b"transfer-encoding: chunked")
                await _stream(writer, kind, text, int(numbers[0]), int(numbers[1]) / 1000)
    writer.close()


async def _stream(
    writer: asyncio.StreamWriter, head: bytes, text: bytes, chunks: int, pause: float
) -> None:
    event = b"data: %b\n\n" % text
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    writer.write(head + chunk)
    for _ in range(chunks - 1):
        await asyncio.sleep(pause)
        if writer.is_closing():
            return
        writer.write(chunk)
    writer.write(b"0\r\n\r\n")


# --- clients --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """One request that was answered in full."""

    engine: str
    seconds: float
    """To the first event of a stream, or to the end of a short answer."""


class Failed(Exception):  # noqa: N818 - it names a state
    """A request without a whole answer.

    Args:
        why: in a few words.
        engine: the one that had begun to answer, if any had.
    """

    def __init__(self, why: str, engine: str = "") -> None:
        super().__init__(why)
        self.engine = engine


class Client:
    """One connection, kept until the other side wants no more of it; then a new one.

    Args:
        pick: the port that a new connection goes to.
    """

    def __init__(self, pick: Callable[[], int]) -> None:
        self._pick = pick
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str) -> Answer:
        """Send one request and read its answer to the end.

        Raises:
            Failed: there is none, not all of it, or another status than 200.
        """
        user = random.getrandbits(32)
        request = (
            f"POST {path} HTTP/1.1\r\nhost: bench\r\nx-user: {user:08x}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(_PROMPT)}\r\n\r\n"
        )
        start, engine = time.perf_counter(), ""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                reader, writer = await self._connected()
                writer.write(request.encode() + _PROMPT)
                head = await reader.readuntil(b"\r\n\r\n")
                engine = _engine_of(head)
                length = _LENGTH.search(head)
                await (reader.readexactly(int(length[1])) if length else reader.readuntil(b"\n\n"))
                first = time.perf_counter()
                if not length:
                    await reader.readuntil(b"\r\n0\r\n\r\n")
        except (OSError, EOFError) as error:  # a time-out is an OSError
            self.close()
            why = repr(error) if isinstance(error, OSError) else "it broke off"
            raise Failed(why, engine) from error
        if b"connection: close" in head:
            self.close()
        return Answer(engine, first - start)

    def close(self) -> None:
        """Have the next request make a new connection."""
        if self._open is not None:
            self._open[1].close()
        self._open = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # As clients do, it is not sent on a connection that is known to be closed.
        if self._open and (self._open[0].at_eof() or self._open[0].exception()):
            self.close()
        if self._open is None:
            self._open = await asyncio.open_connection("127.0.0.1", self._pick(), limit=1 << 20)
        return self._open


def _engine_of(head: bytes) -> str:
    found = _ENGINE.search(head)
    if found is None or not head.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(head.split(b"\r\n", 1)[0])
    return found[1].decode()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
