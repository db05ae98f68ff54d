"""What engines say of their KV cache."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.adapters.engine_metrics import parse_size
from llmservice.core.observed import KVCacheSize


def series(engine="0", **labels):
    """The gauge of one engine as vLLM 0.32 writes it; a label of None is left out."""
    told = {
        "block_size": "128",
        "cache_dtype": "auto",
        "enable_prefix_caching": "True",
        "engine": engine,
        "kv_cache_max_concurrency": "8.0",
        "kv_cache_size_tokens": "32768",
        "mamba_block_size": "None",
        "num_gpu_blocks": "256",
        "num_gpu_blocks_override": "None",
        "user": '{"a": "b, c}"}\\n',
        **labels,
    }
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        for name, value in told.items()
        if value is not None
    }
    inside = ",".join(f'{name}="{value}"' for name, value in escaped.items())
    return f"vllm:cache_config_info{{{inside}}} 1.0\n"


def exposition(*lines):
    """An answer of ``/metrics`` around these lines."""
    return (
        "# HELP python_info Python platform information\n"
        "# TYPE python_info gauge\n"
        'python_info{implementation="CPython",version="3.12.11"} 1.0\n'
        "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
        "# TYPE vllm:num_requests_running gauge\n"
        'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0\n'
        "# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig\n"
        "# TYPE vllm:cache_config_info gauge\n" + "".join(lines) + "# TYPE http_requests counter\n"
        'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 3.0\n'
    )


def test_one_engine_tells():
    """Two labels among many, some of which hold quotes, braces and escapes."""
    assert KVCacheSize(32768, 8.0) == parse_size(exposition(series()))


def test_data_parallel_engines_add_up():
    """Each rank has a cache of its own."""
    second = series("1", kv_cache_size_tokens="30000", kv_cache_max_concurrency="7.25")
    assert KVCacheSize(62768, 15.25) == parse_size(exposition(series(), second))


def test_the_same_twice_counts_once():
    """A series per process of the API server is still one engine."""
    again = series(block_size="16")
    assert KVCacheSize(32768, 8.0) == parse_size(exposition(series(), again))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [series(kv_cache_size_tokens=None, kv_cache_max_concurrency=None)],
        [series(kv_cache_size_tokens=None)],
        [series(kv_cache_max_concurrency="None")],
        [series(kv_cache_size_tokens="many")],
        [series(kv_cache_size_tokens="0")],
        [series(kv_cache_size_tokens="-5")],
        [series(kv_cache_size_tokens="9" * 30)],
        [series(kv_cache_size_tokens="9" * 9000)],
        [series(kv_cache_max_concurrency="NaN")],
        [series(kv_cache_max_concurrency="inf")],
        [series(), series("1", kv_cache_size_tokens=None)],
        [series(), series(kv_cache_size_tokens="5")],
        ["vllm:cache_config_info 1.0\n"],
        ['vllm:cache_config_info_more{kv_cache_size_tokens="1",kv_cache_max_concurrency="1"} 1\n'],
    ],
)
def test_what_is_not_told_is_not_guessed(lines):
    """No series, labels of older versions, nonsense, one of two ranks, two words of one rank."""
    assert parse_size(exposition(*lines)) is None


@given(st.text(max_size=200), st.integers(0, 400))
def test_garbage_is_refused_or_ignored(garbage, cut):
    """Whatever stands in the line, only ValueError comes out."""
    line = series()
    try:
        size = parse_size(line[: cut % len(line)] + garbage)
    except ValueError:
        return
    assert size is None or size.tokens > 0
