"""What an engine's ``/metrics`` say of its KV cache.

vLLM 0.32 and later put it into the labels of one gauge, one series for each data-parallel rank; an
older one, or one with ``--disable-log-stats``, does not tell. A pod runs the user's image, so its
answer may be anything: it is bounded in time and size, and what makes no sense counts as nothing.
"""

import logging
from collections.abc import Mapping
from ipaddress import ip_address

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from llmservice.api import names
from llmservice.core.observed import KVCacheSize

_log = logging.getLogger(__name__)

_METRIC = "vllm:cache_config_info"
_OK = 200
_SECONDS = 2.0
_BODY_LIMIT = 2 << 20
_NUMBER_LIMIT = 1 << 40
"""No engine has a trillion tokens, and no sum of such numbers leaves the status's int64."""


class EngineMetrics:
    """Reads engines by HTTP; make it within a running event loop.

    Args:
        port: where engines listen.
        seconds: limit of one read.
    """

    def __init__(self, *, port: int = names.ENGINE_PORT, seconds: float = _SECONDS) -> None:
        self._port = port
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=seconds),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,  # a small answer must not become a large one
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def read(self, address: str) -> KVCacheSize | None:
        """What the engine at an IP address says; None when it does not."""
        try:
            size = parse_size(await self._get(address))
        except (aiohttp.ClientError, OSError, ValueError) as error:  # a time-out is an OSError
            _log.info("no metrics of the engine at %s: %s", address, repr(error)[:256])
            return None
        if size is None:
            _log.info("the metrics of the engine at %s do not tell of its KV cache", address)
        return size

    async def _get(self, address: str) -> str:
        host = str(ip_address(address))
        url = URL.build(scheme="http", host=host, port=self._port, path="/metrics")
        async with self._session.get(url, allow_redirects=False) as answer:
            if answer.status != _OK:
                raise ValueError(f"HTTP {answer.status}")
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > _BODY_LIMIT:
                    raise ValueError(f"more than {_BODY_LIMIT} bytes")
            return body.decode()


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
