"""An engine as a queue: order, bounds and speed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.autoscaling.engine import Engine, EngineModel, Request

SMALL = EngineModel(max_num_seqs=2, tokens_per_second=100.0, kv_tokens=1000)


def serve(requests, model=SMALL, slowness=1.0, check=None):
    """Run an engine alone until it is empty; returns when."""
    engine, now, queue = Engine("a", model, slowness), 0.0, list(requests)
    ended = 0
    while queue or engine.outstanding:
        due = engine.next_event() if engine.outstanding else math.inf
        if queue and queue[0].arrival <= due:
            now = queue[0].arrival
            engine.add(queue.pop(0), now)
        else:
            now = due
            engine.advance(now)
            if check:
                check(engine)
            ended += engine.run(now)
    assert ended == len(requests)
    assert engine.kv_usage == pytest.approx(0, abs=1e-6)
    return now


def test_one_request_alone():
    """Its prompt, then a token per iteration of a batch of one."""
    request = Request(0.0, 100, 11)
    end = serve([request])
    # An iteration: 2 sequences / 100 tokens/s = 20 ms full; 60 % of it plus half of the rest.
    assert end - request.first_token == pytest.approx(10 * 0.016)
    assert 0 < request.first_token < 0.1


def test_a_full_batch_generates_what_was_said():
    """Two sequences at 100 tokens/s together."""
    first, second = Request(0.0, 1, 400), Request(0.0, 1, 400)
    assert serve([first, second]) == pytest.approx(8.0, rel=0.01)


def test_the_third_waits_for_a_place():
    """FIFO: it begins when the first ends, and nobody overtakes."""
    requests = [Request(0.0, 10, n) for n in (100, 300, 50, 2)]
    seen = []
    serve(requests, check=lambda engine: seen.append((engine.running, engine.waiting)))
    assert max(running for running, _ in seen) == 2
    assert max(waiting for _, waiting in seen) == 2
    assert sorted(requests, key=lambda r: r.first_token) == requests


def test_what_does_not_fit_into_the_cache_keeps_others_waiting():
    """A place is free beside a sequence of 900 tokens, but no room for one of 200."""
    large, small = Request(0.0, 500, 400), Request(0.0, 100, 100)
    peaks = []
    end = serve([large, small], check=lambda e: peaks.append((e.running, e.kv_usage)))
    assert {running for running, _ in peaks} == {1}
    assert 0.89 < max(usage for _, usage in peaks) < 0.91
    assert small.first_token > 400 * 0.016
    assert end > small.first_token


def test_a_slow_engine_takes_as_many_times_longer():
    """Slowness is for everything."""
    fast, slow = (serve([Request(0.0, 100, 50)], slowness=factor) for factor in (1.0, 3.0))
    assert slow == pytest.approx(3 * fast)


def test_prompts_slow_down_who_decodes():
    """A chunk of a prompt is part of the iteration."""
    alone = serve([Request(0.0, 1, 100)])
    assert serve([Request(0.0, 1, 100), Request(0.1, 700, 1)]) > alone + 0.1


def test_time_passes_even_where_floats_are_coarse():
    """A month in, at a million tokens a second: it still ends."""
    model = EngineModel(max_num_seqs=1, tokens_per_second=1e6, kv_tokens=10**6)
    engine = Engine("a", model, 1.0)
    engine._token = 2.7e12
    engine.add(Request(2.7e6, 1, 1000), 2.7e6)
    steps = 0
    while engine.outstanding:
        engine.run(engine.next_event())
        steps += 1
    assert steps < 100


REQUESTS = st.lists(
    st.tuples(st.floats(0, 20), st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=12
)


@given(REQUESTS)
def test_everything_ends_in_order_within_the_bounds(drawn):
    """Conservation: each request gets its first token after it came, and the engine empties."""
    requests = [Request(*each) for each in sorted(drawn)]

    def within(engine):
        assert engine.running <= SMALL.max_num_seqs
        assert 0 <= engine.kv_usage <= 1

    serve(requests, check=within)
    assert all(request.ttft > 0 for request in requests)
    firsts = [request.first_token for request in requests]
    assert firsts == sorted(firsts)
