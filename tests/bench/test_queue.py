"""The benchmark of the queue: a small scenario has its figures, and its arithmetic is right.

No times are asserted here; they belong to docs/performance.md and a quiet machine.
"""

import asyncio
from itertools import pairwise

import aiohttp
import pytest

from tests.bench.queue import OneAtATime, Plan, Scenario, _added, _held, _newcomers, overtaken

SMALL = Plan(
    scenario=Scenario(rate=20, seconds=1, newcomers_after=0.5, service_seconds=0.05),
    wakes=1,
    held=5,
)


@pytest.mark.contract  # three seconds of processes that start and stop
async def test_a_small_scenario_has_its_figures_with_the_queue_and_without_it(tmp_path):
    """Every request ends somehow, and the newcomers get work."""
    lines = [line async for line in _newcomers(SMALL, tmp_path)]

    assert [True, False] == [line["queue"] for line in lines]
    for line in lines:
        ends = line["answered"], line["timed_out"], line["other"]
        assert (20, 20) == (line["requests"], sum(ends))
        assert 20 == sum(line["work_of_each_engine"])
        assert all(line["work_of_each_engine"])
    bounded, unbounded = lines
    assert bounded["in_the_first_engine_at_their_readiness"] <= SMALL.scenario.per_engine
    assert 0 == unbounded["in_the_router"]


@pytest.mark.contract  # two seconds of processes that start and stop
async def test_requests_that_are_held_are_all_answered(tmp_path):
    """By the first engine that becomes ready."""
    (line,) = [line async for line in _held(SMALL, tmp_path / "held")]

    assert {"200": 5} == line["answers"]
    assert 0 < line["from_readiness_to_the_first_median_s"]


async def test_an_engine_of_one_sequence_runs_one_request_at_a_time():
    """The others wait inside, and are counted there."""
    engine = OneAtATime(0.01)
    await engine.start()
    async with aiohttp.ClientSession() as client, asyncio.TaskGroup() as group:
        for who in range(3):
            group.create_task(client.get(f"http://{engine.endpoint.address}/{who}"))
    await engine.stop()

    moments = [moment for _, moment in engine.began]
    assert {0, 1, 2} == {who for who, _ in engine.began}
    assert all(later - one >= 0.009 for one, later in pairwise(moments))
    assert (3, 0) == (engine.most_inside, engine.inside)


@pytest.mark.parametrize(
    ("began", "number"),
    [
        ([], 0),
        ([(0, 1.0), (1, 2.0), (2, 3.0)], 0),
        ([(1, 2.0), (0, 2.4)], 0),
        ([(1, 2.0), (0, 2.6)], 1),
        ([(0, 3.0), (1, 3.0), (2, 1.0)], 2),
        ([(0, 1.0), (1, 3.0), (2, 1.1)], 1),
    ],
    ids=["nobody", "in order", "hardly later", "one", "two by the same", "not the first"],
)
def test_who_began_after_a_later_comer_was_overtaken(began, number):
    """Once each, in whatever order engines tell it, and not for less than the tolerance."""
    assert number == overtaken(began, 0.5)
    assert number == overtaken(began[::-1], 0.5)


@pytest.mark.parametrize(("cpu", "ratio"), [(2.0, 1.5), (0.0, None)], ids=["some", "unmeasured"])
def test_what_the_gate_adds_is_a_difference_and_a_ratio(cpu, ratio):
    """No ratio to nothing."""
    key = "envoy_cpu_seconds_per_1000_requests"
    plain = {"p50_ms": 1.0, "p99_ms": 2.0, key: cpu}
    by_the_gate = {"p50_ms": 1.25, "p99_ms": 1.5, key: cpu * 1.5}

    line = _added("short", plain, by_the_gate)

    assert (0.25, -0.5, ratio) == (line["p50_ms"], line["p99_ms"], line["cpu_ratio"])
    assert cpu * 0.5 == line[key]
