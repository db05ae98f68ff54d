"""What is read of an engine's exposition, over versions and ranks, and what is refused."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llmservice.adapters.engine_counts import parse_gauges, parse_reading
from llmservice.core.autoscaling.policy import Sample
from llmservice.core.judge import counts
from llmservice.core.judge.counts import VLLM_ITL_EDGES, VLLM_LATENCY_EDGES, VLLM_TTFT_EDGES, Tokens

LABELS = ("model_name", "engine")
REASONS = ("stop", "length", "abort", "error", "repetition")
NOTHING = counts.Counts(
    *(0, 0, counts.Histogram.of(VLLM_TTFT_EDGES), counts.Histogram.of(VLLM_LATENCY_EDGES)),
    counts.Histogram.of(VLLM_ITL_EDGES),
)
NEWER, OLDER = "vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"
TOKENS = (1, 10, 100, 1000)
ODD_NAME = 'org/model "big", {le="0.1"} \\ \n'


class Engine:
    """The metrics of a vLLM, made with the library that vLLM makes them with."""

    def __init__(self, ranks=1, ttft_edges=VLLM_TTFT_EDGES, others=0, name=ODD_NAME, itl=(NEWER,)):
        self.registry = CollectorRegistry()
        self.ranks = [(name, str(rank)) for rank in range(ranks)]
        self.running = self.make(Gauge, "vllm:num_requests_running")
        self.waiting = self.make(Gauge, "vllm:num_requests_waiting")
        self.kv_usage = self.make(Gauge, "vllm:kv_cache_usage_perc")
        by_reason = self.make(Gauge, "vllm:num_requests_waiting_by_reason", "reason")
        self.ended = self.make(Counter, "vllm:request_success", "finished_reason")
        self.ttft = self.make(Histogram, "vllm:time_to_first_token_seconds", buckets=ttft_edges)
        self.latency = self.make(
            Histogram, "vllm:e2e_request_latency_seconds", buckets=VLLM_LATENCY_EDGES
        )
        self.itl = [self.make(Histogram, name, buckets=VLLM_ITL_EDGES) for name in itl]
        self.prompts = self.make(Histogram, "vllm:request_prompt_tokens", buckets=TOKENS)
        self.answers = self.make(Histogram, "vllm:request_generation_tokens", buckets=TOKENS)
        self.queries = self.make(Counter, "vllm:prefix_cache_queries")
        self.hits = self.make(Counter, "vllm:prefix_cache_hits")
        other = [
            self.make(Histogram, f"vllm:other_{n}_seconds", buckets=VLLM_LATENCY_EDGES)
            for n in range(others)
        ]
        for rank in self.ranks:
            gauges = (self.running, self.waiting, self.kv_usage)
            tokens = (*self.itl, self.prompts, self.answers, self.queries, self.hits)
            for metric in (*gauges, self.ttft, self.latency, *tokens, *other):
                metric.labels(*rank)
            by_reason.labels(*rank, "capacity").set(77)
            for reason in REASONS:
                self.ended.labels(*rank, reason)

    def make(self, kind, name, *labels, **options):
        return kind(name, "Told.", (*LABELS, *labels), registry=self.registry, **options)

    def end(self, reason="stop", seconds=0.0, rank=0, times=1):
        for _ in range(times):
            self.ended.labels(*self.ranks[rank], reason).inc()
            self.ttft.labels(*self.ranks[rank]).observe(seconds / 2)
            self.latency.labels(*self.ranks[rank]).observe(seconds)

    def stream(self, prompt, times, hits=0, rank=0):
        """Tokens of one request."""
        labels = self.ranks[rank]
        for metric in self.itl:
            for seconds in times:
                metric.labels(*labels).observe(seconds)
        self.prompts.labels(*labels).observe(prompt)
        self.answers.labels(*labels).observe(len(times) + 1)
        self.queries.labels(*labels).inc(prompt)
        self.hits.labels(*labels).inc(hits)

    def says(self):
        return generate_latest(self.registry).decode()


def test_idle_engine_has_counted_nothing():
    """All its series are there, and zero."""
    reading = parse_reading(Engine().says())

    assert NOTHING == reading.counts
    assert 0 == reading.in_flight


def test_requests_are_counted_by_how_they_ended():
    """Who hung up is in no count; what the engine calls an error is in both."""
    engine = Engine()
    for times, reason in enumerate(REASONS, start=1):
        engine.end(reason, times=times)
    reading = parse_reading(engine.says())

    assert 1 + 2 + 4 + 5 == reading.counts.requests
    assert 4 == reading.counts.failed
    assert reading.counts.is_valid


def test_times_are_in_their_buckets():
    """The exposition adds buckets up; here each holds its own, what is over the last edge too."""
    engine, times = Engine(), (0.2, 1.0, 1.7, 9.0, 9000.0)
    for seconds in times:
        engine.end(seconds=seconds)
    read = parse_reading(engine.says()).counts

    assert counts.Histogram.of(VLLM_LATENCY_EDGES, times) == read.latency
    assert counts.Histogram.of(VLLM_TTFT_EDGES, [t / 2 for t in times]) == read.ttft


def test_ranks_add_up():
    """A replica is all its data-parallel engines."""
    engine = Engine(ranks=3)
    for rank in range(3):
        engine.end(seconds=1.7, rank=rank)
        engine.running.labels(*engine.ranks[rank]).set(10 + rank)
        engine.waiting.labels(*engine.ranks[rank]).set(rank)
    reading = parse_reading(engine.says())

    assert 3 == reading.counts.requests
    assert counts.Histogram.of(VLLM_LATENCY_EDGES, [1.7] * 3) == reading.counts.latency
    assert (33, 3, 36) == (reading.running, reading.waiting, reading.in_flight)


@pytest.mark.parametrize("names", [(NEWER,), (OLDER,), (NEWER, OLDER)])
def test_times_between_tokens_have_two_names(names):
    """An engine that writes both counts each of them once."""
    engine = Engine(itl=names)
    engine.stream(700, [0.02, 0.03])
    engine.stream(200, [0.09])

    read = parse_reading(engine.says()).counts.itl
    assert counts.Histogram.of(VLLM_ITL_EDGES, [0.02, 0.03, 0.09]) == read


def test_engine_that_does_not_publish_them():
    """Unknown is not zero; the others are read all the same."""
    engine = Engine(itl=())
    engine.end(seconds=1.0)
    read = parse_reading(engine.says()).counts

    assert (None, 1) == (read.itl, read.requests)


def test_tokens_are_those_of_all_ranks():
    """How many requests ended, what they were made of, and what the cache knew of them."""
    engine = Engine(ranks=2)
    engine.stream(700, [0.02] * 9, hits=512)
    engine.stream(300, [0.02] * 19, rank=1)
    said = engine.says()

    bare = said.replace("queries_total", "queries").replace("hits_total", "hits")
    for text in (said, bare):
        tokens = parse_reading(text).counts.tokens
        assert (2, 1000, 30, 1000, 512) == tokens.numbers[:5]
        # By the upper edges of buckets, for each rank by itself.
        assert (2 * 1000**2, 10**2 + 100**2) == tokens.numbers[5:]


def test_tokens_of_an_older_engine_are_not_known():
    """It knows nothing of a prefix cache, or of tokens by request."""
    words = ("prefix_cache", "request_prompt", "request_generation")
    lines = Engine().says().split("\n")
    said = "\n".join(line for line in lines if not any(word in line for word in words))

    assert Tokens() == parse_reading(said).counts.tokens


def test_edges_are_the_engines_own():
    """Users may choose them."""
    engine = Engine(ttft_edges=(0.5, 1.5, math.inf))
    engine.end(seconds=2.0)

    assert counts.Histogram((0.5, 1.5), (0, 1, 0)) == parse_reading(engine.says()).counts.ttft


def test_counter_without_suffix():
    """Written by a library that adds none."""
    engine = Engine()
    engine.end()
    engine.end("error")
    read = parse_reading(engine.says().replace("request_success_total", "request_success")).counts

    assert (2, 1) == (read.requests, read.failed)


def test_series_may_be_missing_before_the_first_request():
    """An older engine only describes its metrics until then."""
    engine = Engine()
    described = [line for line in engine.says().split("\n") if line.startswith("#")]
    reading = parse_reading("\n".join(described))

    assert NOTHING == reading.counts
    assert 0 == reading.in_flight


@pytest.mark.parametrize(
    "said", ["", "# a comment\n", 'http_requests_total{handler="/v1/completions"} 3.0\n']
)
def test_engine_that_keeps_its_numbers_to_itself_tells_nothing(said):
    """Zeros would say that nothing is in flight."""
    assert parse_reading(said) is None


def replaced(pattern, by):
    """What an engine says after a request, with one piece replaced."""
    engine = Engine(name="tiny")
    engine.end(seconds=1.7)
    said = engine.says()
    assert pattern in said
    return said.replace(pattern, by)


RANK = 'engine="0",model_name="tiny"'


@pytest.mark.parametrize(
    ("pattern", "by"),
    [
        ('reason="stop",model_name="tiny"} 1.0', 'reason="stop",model_name="tiny"} NaN'),
        ('reason="stop",model_name="tiny"} 1.0', 'reason="stop",model_name="tiny"} -1.0'),
        ('reason="stop",model_name="tiny"} 1.0', 'reason="stop",model_name="tiny"} +Inf'),
        (f"running{{{RANK}}} 0.0", f"running{{{RANK}}} NaN"),
        (f"running{{{RANK}}} 0.0", f"running{{{RANK}}} -1.0"),
        (f"waiting{{{RANK}}} 0.0", f"waiting{{{RANK}}} 1e300"),
        (f"prompt_tokens_sum{{{RANK}}} 0.0", f"prompt_tokens_sum{{{RANK}}} NaN"),
        (f"cache_hits_total{{{RANK}}} 0.0", f"cache_hits_total{{{RANK}}} -1.0"),
        ('le="0.025"', 'le="NaN"'),
        ('le="2.0"', 'le="NaN"'),
        ('le="0.3"', 'le="-Inf"'),
        ('le="+Inf"', 'le="1e9"'),
        ('le="+Inf",model_name="tiny"} 1.0', 'le="+Inf",model_name="tiny"} 0.0'),
    ],
)
def test_numbers_that_cannot_be_are_refused(pattern, by):
    """No number, negative, endless, buckets that are missing or fall."""
    assert parse_reading(replaced(pattern, by)) is None


def test_ranks_with_other_edges_do_not_add_up():
    """A bucket that one of them lacks would be a fall of the sum."""
    said = Engine(ranks=2, ttft_edges=(0.5, 1.0), name="tiny").says()
    assert parse_reading(said.replace('engine="1",le="0.5"', 'engine="1",le="0.4"')) is None


@pytest.mark.parametrize(
    "line",
    [
        "vllm:num_requests_running",
        "vllm:num_requests_running ",
        "vllm:num_requests_running many",
        'vllm:num_requests_running{engine="0" 1.0',
        'vllm:num_requests_running{engine="0} 1.0',
        "vllm:num_requests_running{engine} 1.0",
        "vllm:num_requests_running{} ",
    ],
)
def test_broken_lines_are_no_exposition(line):
    """What is cut or malformed raises ValueError, nothing else."""
    with pytest.raises(ValueError):  # noqa: PT011 - which words float() finds is not ours
        parse_reading(line)


@pytest.mark.parametrize(
    "line",
    [
        "vllm:num_requests_running 3",
        "vllm:num_requests_running{} 3.0 1700000000000",
        'vllm:num_requests_running{ engine = "0" , a="\\"}" , } 3.0\r',
        "vllm:num_requests_running{}\t3",
    ],
)
def test_lines_may_be_written_otherwise(line):
    """No labels, a time stamp, blanks, escapes."""
    assert 3 == parse_reading(line).running


@given(st.text(max_size=200), st.integers(0, 5000))
def test_garbage_is_refused_or_ignored(garbage, cut):
    """Wherever it starts, only ValueError comes out, and no counts that cannot be."""
    said = Engine().says()
    try:
        reading = parse_reading(said[: cut % len(said)] + garbage)
    except ValueError:
        return
    assert reading is None or reading.counts.is_valid


@pytest.mark.parametrize(
    "line",
    [
        "vllm:num_requests_running{" + "a" * (2 << 20),
        "vllm:num_requests_running{" + 'a="",' * (400 << 10),
        'vllm:num_requests_running{a="' + "\\\\" * (1 << 20),
        "vllm:num_requests_running " + " " * (2 << 20),
        "vllm:num_requests_running{" + "} " * (1 << 20),
    ],
    ids=["name", "labels", "escapes", "blanks", "braces"],
)
def test_huge_lines_cost_time_in_proportion(line):
    """No length makes the search go back and forth: seconds would mean a square of it."""
    started = time.process_time()
    with pytest.raises(ValueError):  # noqa: PT011
        parse_reading(line)
    assert time.process_time() - started < 5


def test_large_exposition_is_read_quickly():
    """A megabyte of 16 ranks; the limit is many times what it takes, for slow machines."""
    said = Engine(ranks=16, others=22).says()
    assert len(said) > 1 << 20

    started = time.process_time()
    assert parse_reading(said) is not None
    assert time.process_time() - started < 0.5


# --- gauges ---------------------------------------------------------------------------------------


def test_gauges_of_a_replica():
    """Requests of all ranks; the KV cache that is fullest."""
    engine = Engine(ranks=3)
    for rank in range(3):
        engine.waiting.labels(*engine.ranks[rank]).set(rank)
        engine.running.labels(*engine.ranks[rank]).set(10 + rank)
        engine.kv_usage.labels(*engine.ranks[rank]).set(rank / 10)

    assert Sample(3, 33, 0.2) == parse_gauges(engine.says())
    assert Sample(0, 0, 0) == parse_gauges(Engine().says())


@pytest.mark.parametrize(
    "name", ["num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"]
)
def test_gauges_of_which_one_is_missing(name):
    """What is not told is not zero, also where the metric is described."""
    lines = Engine().says().split("\n")
    silent = [line for line in lines if not line.startswith(f"vllm:{name}{{")]
    assert len(silent) < len(lines)

    assert parse_gauges("\n".join(silent)) is None
    assert parse_gauges("") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_requests_waiting", value) for value in ("NaN", "-1.0", "+Inf", "-Inf", "1e300")),
        *(("num_requests_running", value) for value in ("NaN", "-1.0", "+Inf")),
        *(("kv_cache_usage_perc", value) for value in ("NaN", "-0.1", "+Inf", "1.1", "37.5")),
    ],
)
def test_gauges_that_cannot_be_are_refused(name, value):
    """Also if another rank's would make up for it."""
    engine = Engine(ranks=2, name="tiny")
    engine.running.labels(*engine.ranks[1]).set(50)
    engine.waiting.labels(*engine.ranks[1]).set(50)
    said = engine.says()
    line = f'vllm:{name}{{engine="0",model_name="tiny"}} '
    assert line + "0.0" in said

    assert parse_gauges(said.replace(line + "0.0", line + value)) is None


@given(st.text(max_size=200), st.integers(0, 5000))
def test_garbage_has_no_gauges(garbage, cut):
    """Only ValueError comes out, and no gauges that cannot be."""
    said = Engine().says()
    try:
        sample = parse_gauges(said[: cut % len(said)] + garbage)
    except ValueError:
        return
    assert sample is None or (sample.waiting >= 0 and sample.running >= 0 and sample.kv_usage <= 1)
