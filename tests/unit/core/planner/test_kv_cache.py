"""The allocator's closed forms against vLLM's own numbers."""

import pytest

from llmservice.core.planner.kv_cache import (
    CacheSettings,
    UnknownCacheDtypeError,
    build_pool,
    bytes_per_token,
)
from llmservice.core.planner.model import Attention, Latent, Recurrent, read_model
from tests.shapes import shape_of_layers

GIB = 1 << 30
LLAMA = [Attention(32, 8, 128, 128)]
GEMMA = [Attention(10, 16, 128, 128), Attention(52, 16, 128, 128, window=1024)]
GPT_OSS = [Attention(18, 8, 64, 64), Attention(18, 8, 64, 64, window=128)]


def gated_delta_net(layers, value_heads):
    return Recurrent(
        layers,
        conv_width=2 * 16 * 128 + value_heads * 128,
        conv_kernel=4,
        state_elements=value_heads * 128 * 128,
        state_bytes=4,
        projections=0,
    )


ALLOCATOR = [
    # What vLLM 0.32's allocator answers for these layers, bytes and settings.
    ("uniform", LLAMA, 50 * GIB, {}, 25600, 409600),
    ("odd length", LLAMA, 50 * GIB, {"max_length": 8191}, 25600, 409550),
    ("sharded", [Attention(80, 8, 128, 128)], 30 * GIB, {"tensor": 4}, 24576, 393216),
    ("windows", GEMMA, 20 * GIB, {}, 16384, 184270),
    ("windows of 128", GPT_OSS, 10 * GIB, {}, 18204, 273847),
    ("latent", [Latent(61, 576)], 20 * GIB, {"block_size": 64}, 4774, 305536),
]


@pytest.mark.parametrize(
    ("kinds", "available", "settings", "blocks", "tokens"),
    [case[1:] for case in ALLOCATOR],
    ids=[case[0] for case in ALLOCATOR],
)
def test_allocates_as_vllm(kinds, available, settings, blocks, tokens):
    """Blocks and tokens are those of the real allocator."""
    told = {"max_length": 131072, "batched_tokens": 8192, **settings}
    capacity = build_pool(shape_of_layers(kinds), CacheSettings(**told)).capacity(available)

    assert (blocks, tokens) == (capacity.blocks, capacity.tokens)


LOGGED = [
    # Real starts: 27B with 16 full and 48 recurrent layers on an A100, fp8 cache (two of them),
    # and the same with a 3 token draft head on two RTX 5090 with prefix caching off.
    (20.76, 48, {"max_length": 16384}, 417310),
    (42.9, 48, {"max_length": 16384}, 863533),
    (
        14.68,
        48,
        {"max_length": 262144, "tensor": 2, "speculative_tokens": 3, "prefix_caching": False},
        841541,
    ),
]


@pytest.mark.parametrize(("gib", "value_heads", "settings", "tokens"), LOGGED)
def test_recurrent_layers_as_logged(gib, value_heads, settings, tokens):
    """States and attention share blocks, which are raised to hold a state."""
    drafts = 1 if "speculative_tokens" in settings else 0
    kinds = [Attention(16 + drafts, 4, 256, 256), gated_delta_net(48, value_heads)]
    told = CacheSettings(batched_tokens=2048, dtype="fp8", **settings)

    assert tokens == build_pool(shape_of_layers(kinds), told).capacity(int(gib * GIB)).tokens


def test_asynchronous_scheduling_costs_windows():
    """Two batches in flight hold twice the tokens beyond the window."""
    one = CacheSettings(max_length=131072, batched_tokens=8192)
    two = CacheSettings(max_length=131072, batched_tokens=8192, batches_in_flight=2)

    assert 1.41 == round(build_pool(shape_of_layers(GEMMA), one).capacity(20 * GIB).concurrency, 2)
    assert 1.11 == round(build_pool(shape_of_layers(GEMMA), two).capacity(20 * GIB).concurrency, 2)


def test_without_the_hybrid_manager_windows_cost_like_full_layers():
    """One group of all layers."""
    told = CacheSettings(max_length=131072, batched_tokens=8192, hybrid=False)
    capacity = build_pool(shape_of_layers(GEMMA), told).capacity(20 * GIB)

    assert 20 * GIB // (62 * 16 * 16 * 256 * 2) == capacity.blocks


BYTES_PER_TOKEN = [
    ("meta-llama/Llama-3.1-8B-Instruct", {}, 131072),
    ("meta-llama/Llama-3.3-70B-Instruct", {}, 327680),
    ("meta-llama/Llama-3.3-70B-Instruct", {"dtype": "fp8"}, 163840),
    ("meta-llama/Llama-3.3-70B-Instruct", {"tensor": 16}, 40960),
    ("Qwen/Qwen2.5-7B-Instruct", {}, 57344),
    ("Qwen/Qwen3-30B-A3B-Instruct-2507", {}, 98304),
    ("microsoft/phi-4", {}, 204800),
    ("meta-llama/Llama-2-7b-hf", {}, 524288),
    ("deepseek-ai/DeepSeek-R1", {"tensor": 8}, 70272),
    ("openai/gpt-oss-20b", {}, 24576),
    ("Qwen/Qwen3.5-9B", {}, 32768),
]


@pytest.mark.parametrize(("model", "settings", "size"), BYTES_PER_TOKEN)
def test_bytes_per_token(model, settings, size, shape_of):
    """What engines log, divided by tensor ranks as long as there are KV heads."""
    told = CacheSettings(max_length=4096, batched_tokens=2048, **settings)

    assert size == bytes_per_token(shape_of(model), told)


def test_longest_request_is_the_edge():
    """One token more does not fit, one less does."""
    pool = build_pool(shape_of_layers(LLAMA), CacheSettings(max_length=131072, batched_tokens=2048))
    longest = pool.longest_request(GIB)

    assert pool.request_bytes(longest) <= GIB < pool.request_bytes(longest + 1)


def test_no_memory_is_no_request():
    """Less than nothing holds nothing."""
    pool = build_pool(shape_of_layers(LLAMA), CacheSettings(max_length=4096, batched_tokens=2048))

    assert 0 == pool.longest_request(-1) == pool.capacity(-1).tokens


def test_unknown_dtype_is_said():
    """No guess about bytes."""
    told = CacheSettings(max_length=4096, batched_tokens=2048, dtype="turboquant_3bit_nc")

    with pytest.raises(UnknownCacheDtypeError, match="turboquant_3bit_nc"):
        build_pool(shape_of_layers(LLAMA), told)


def test_shared_layers_have_no_cache():
    """Layers that share another's keys and values allocate nothing."""
    config = {
        "hidden_size": 2048,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "num_kv_shared_layers": 10,
    }
    told = CacheSettings(max_length=4096, batched_tokens=2048)

    assert 20 * 2 * 2 * 256 * 2 == bytes_per_token(read_model(config), told)
