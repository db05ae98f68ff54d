"""The benchmark of the router: a small run has all its figures, and its clients notice failures.

No times are asserted here; they belong to docs/performance.md and a quiet machine.
"""

import asyncio
from contextlib import asynccontextmanager
from functools import partial

import pytest

from tests.bench.loopback import Client, Failed
from tests.bench.router import Plan, figures

SMALL = Plan(seconds=0.1, changes=2, changes_under_load=2, stream_chunks=3, open_streams=20)
WAYS = ("direct", "one track", "split 95/5", "split 95/5, affinity")
LATENCY = {"answers", "failed", "p50_ms", "added_p50_ms", "p99_ms", "added_p99_ms"}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nx-engine: stable\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"a\r\ndata: {}\n\n\r\n"


@pytest.mark.contract  # twenty seconds, most of them spent waiting for processes
async def test_a_small_run_has_all_figures():
    """And no request fails, whatever is done to the router."""
    lines = [line async for line in figures(SMALL)]

    against_direct, others = lines[: 3 * len(WAYS)], lines[3 * len(WAYS) :]
    assert [*WAYS] * 3 == [line["way"] for line in against_direct]
    assert all(line.keys() >= LATENCY for line in against_direct)
    for number, unit in enumerate(("requests", "requests", "chunks")):
        _, *routed = against_direct[number * len(WAYS) :][: len(WAYS)]
        assert all(line[f"envoy_cpu_seconds_per_1000_{unit}"] >= 0 for line in routed)
    assert 1.0 == against_direct[len(WAYS)]["rate_to_direct"]
    assert ["weight change"] + ["failed requests"] * 4 + ["memory"] == [
        line["figure"] for line in others
    ]
    change, *under_load, memory = others
    assert change.keys() > {"to_first_answer_worst_s", "to_acknowledgement_worst_s"}
    assert all(line["short_answers"] and line["streams"] for line in under_load)
    # An answer that the killed engine had begun may end before its first line is read.
    others = [line for line in lines if "killed" not in line.get("during", "")]
    assert not [line for line in others if line.get("failed")]
    assert 0 < memory["envoy_idle_rss_mib"] < memory["envoy_rss_mib"]
    assert 0 < memory["agent_rss_mib"]


@asynccontextmanager
async def server(*answers: bytes):
    """Gives each connection's one request the next answer and hangs up; a client of it."""
    left = list(answers)

    async def answer(reader, writer):
        await reader.readuntil(b"}]}")
        writer.write(left.pop(0))
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = Client(partial(int, listening.sockets[0].getsockname()[1]))
    yield client
    client.close()
    listening.close()
    await listening.wait_closed()


@pytest.mark.parametrize(
    ("answer", "engine"),
    [
        (b"", ""),
        (b"HTTP/1.1 200 OK\r\nx-engine: stable\r\ncontent-length: 40\r\n\r\n{", "stable"),
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nnone", ""),
        (STREAM_HEAD, "stable"),
        (STREAM_HEAD + EVENT * 2, "stable"),
    ],
    ids=["nothing", "half an answer", "503", "no event", "half a stream"],
)
async def test_what_is_not_answered_in_full_has_failed(answer, engine):
    """It says who had begun to, and the next request is sent over a new connection."""
    async with server(answer, STREAM_HEAD + EVENT + b"0\r\n\r\n") as client:
        with pytest.raises(Failed) as failed:
            await client.ask("/")
        assert engine == failed.value.engine

        assert "stable" == (await client.ask("/")).engine


async def test_a_closed_port_has_failed():
    """Nobody is asked instead."""
    async with server() as client:
        pass
    with pytest.raises(Failed, match="ConnectionRefusedError"):
        await client.ask("/")
