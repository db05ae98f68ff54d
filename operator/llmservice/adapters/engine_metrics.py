"""What an engine's ``/metrics`` say of its KV cache.

vLLM 0.32 and later put it into the labels of one gauge, one series for each data-parallel rank; an
older one, or one with ``--disable-log-stats``, does not tell. A pod runs the user's image, so its
answer may be anything: what makes no sense counts as nothing.
"""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from llmservice.core.observed import KVCacheSize

_METRIC = "vllm:cache_config_info"
_NUMBER_LIMIT = 1 << 40
"""No engine has a trillion tokens, and no sum of such numbers leaves the status's int64."""


def parse_size(exposition: str) -> KVCacheSize | None:
    """The KV cache of a replica; None when one of its engines does not tell, or two ways.

    Raises:
        ValueError: this is no exposition format.
    """
    # Parsing thousands of other series would hold up the event loop.
    lines = (line for line in exposition.split("\n") if line.startswith(_METRIC))
    sizes: dict[str, KVCacheSize] = {}
    for family in text_string_to_metric_families("\n".join(lines)):
        for sample in family.samples:
            size = _size(sample.labels) if sample.name == _METRIC else None
            if size is None or sizes.setdefault(sample.labels.get("engine", ""), size) != size:
                return None
    if not sizes:
        return None
    return KVCacheSize(
        sum(size.tokens for size in sizes.values()),
        sum(size.concurrency for size in sizes.values()),
    )


def _size(labels: Mapping[str, str]) -> KVCacheSize | None:
    try:
        tokens = int(labels["kv_cache_size_tokens"])
        concurrency = float(labels["kv_cache_max_concurrency"])
    except (KeyError, ValueError):
        return None
    possible = 0 < tokens < _NUMBER_LIMIT and 0 <= concurrency < _NUMBER_LIMIT  # NaN is neither
    return KVCacheSize(tokens, concurrency) if possible else None
