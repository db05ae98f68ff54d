"""How many tokens and requests a KV cache holds: vLLM's allocator as closed forms.

Source: vLLM 0.32 ``v1/kv_cache_interface.py`` (pages, blocks of one request) and
``v1/core/kv_cache_utils.py`` (groups, blocks of the pool, capacity). All layers share one pool of
blocks; layers whose cache grows alike are cut into groups of equally many layers, and a request
takes blocks for each group. The unit tests hold vectors from the real allocator.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from llmservice.core.planner.model import (
    Attention,
    Cross,
    Indexer,
    Latent,
    LayerKind,
    ModelShape,
    Recurrent,
)

_SPARSE_FP8_BYTES = 656
"""A token of sparse latent attention in ``fp8_ds_mla``: 512 fp8, 4 scales, 64 in 16 bits."""
_SPARSE_FP4_BYTES = 352
_SCALE_BYTES = 4
_LATENT_BLOCK = 64
_HYBRID_LATENT_BLOCK = 128


class UnknownCacheDtypeError(ValueError):
    """The bytes of this ``--kv-cache-dtype`` are not known here."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What the allocator is told, beside the model."""

    max_length: int
    """``--max-model-len``"""
    batched_tokens: int
    """``--max-num-batched-tokens``"""
    block_size: int = 16
    """Tokens of a block, before a hybrid model raises it."""
    dtype: str = "auto"
    """``--kv-cache-dtype``"""
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    """``--decode-context-parallel-size``"""
    batches_in_flight: int = 1
    """Steps that run at once: the pipeline's stages, or 2 with asynchronous scheduling."""
    prefix_caching: bool = True
    speculative_tokens: int = 0
    hybrid: bool = True
    """False for ``--disable-hybrid-kv-cache-manager``: windows are allocated like full layers."""

    @property
    def tokens_in_flight(self) -> int:
        """Tokens that are scheduled and hold blocks although they left their window."""
        return self.batches_in_flight * self.batched_tokens


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a pool holds."""

    blocks: int
    bytes_per_block: int
    blocks_per_request: int
    """Of one request of the greatest length."""
    tokens: int
    """``concurrency`` times the greatest length, as vLLM 0.21 and later report it."""

    @property
    def concurrency(self) -> float:
        """Requests of the greatest length that fit at once."""
        return self.blocks / self.blocks_per_request

    def times(self, pools: int) -> "Capacity":
        """Of so many pools: each data-parallel rank has its own."""
        return replace(self, blocks=self.blocks * pools, tokens=self.tokens * pools)


@dataclass(frozen=True, slots=True)
class _Layers:
    """Layers that are alike."""

    kind: LayerKind
    count: int
    block: int
    """Tokens of a block."""
    page: int
    """Bytes of one layer's part of a block."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Blocks of one shape, cut for a model."""

    bytes_per_block: int
    groups: tuple[tuple[_Layers, int], ...]
    """Layers that are alike, and into how many groups they are cut."""
    settings: CacheSettings

    def blocks_per_request(self, length: int | None = None) -> int:
        """Blocks that one request of ``length`` tokens takes, by default of the greatest."""
        settings = self.settings if length is None else replace(self.settings, max_length=length)
        return sum(number * _blocks(layers, settings) for layers, number in self.groups)

    def request_bytes(self, length: int | None = None) -> int:
        """Bytes per device that one request of ``length`` tokens takes."""
        return self.blocks_per_request(length) * self.bytes_per_block

    def capacity(self, available: int) -> Capacity:
        """What ``available`` bytes per device hold; negative counts as none."""
        blocks = max(0, available) // self.bytes_per_block
        per_request = self.blocks_per_request()
        tokens = blocks * self.settings.max_length // per_request
        return Capacity(blocks, self.bytes_per_block, per_request, tokens)

    def longest_request(self, available: int) -> int:
        """The greatest length of which one request fits into ``available`` bytes; 0 for none.

        As vLLM's own estimate in "estimated maximum model length is ...".
        """
        low, high = 0, self.settings.max_length
        while low < high:
            middle = (low + high + 1) // 2
            if self.request_bytes(middle) <= available:
                low = middle
            else:
                high = middle - 1
        return low


def bytes_per_token(shape: ModelShape, settings: CacheSettings) -> int:
    """Bytes per device that a token adds in layers whose cache grows without end."""
    return sum(
        kind.layers * _token_bytes(kind, shape, settings)
        for kind in _on_one_stage(shape.kinds, settings)
        if _grows(kind, settings)
    )


def build_pool(shape: ModelShape, settings: CacheSettings, extra: Sequence[LayerKind] = ()) -> Pool:
    """Cut the cache of a model, with ``extra`` layers of a draft, into blocks.

    Raises:
        UnknownCacheDtypeError: the KV cache's dtype has no known size.
    """
    kinds = _merged([*_on_one_stage(shape.kinds, settings), *extra])
    layers = [_with_pages(kind, shape, settings) for kind in kinds]
    if any(isinstance(each.kind, Recurrent) for each in layers):
        layers = _fit_states(layers, settings)
    if len({_alike(each.kind, settings) for each in layers}) == 1:
        return Pool(sum(each.count * each.page for each in layers), ((layers[0], 1),), settings)
    layers = _one_page(layers)
    size = _group_size([each.count for each in layers])
    groups = tuple((each, -(-each.count // size)) for each in layers)
    return Pool(size * layers[0].page, groups, settings)


# --- layers -------------------------------------------------------------------------------------


def _merged(kinds: Iterable[LayerKind]) -> list[LayerKind]:
    """A draft's layers join the target's that are alike."""
    merged: dict[LayerKind, int] = {}
    for kind in kinds:
        alike = replace(kind, layers=0)
        merged[alike] = merged.get(alike, 0) + kind.layers
    return [replace(kind, layers=layers) for kind, layers in merged.items()]


def _on_one_stage(kinds: Iterable[LayerKind], settings: CacheSettings) -> list[LayerKind]:
    """The fullest pipeline stage, where each kind is spread evenly."""
    return [replace(kind, layers=-(-kind.layers // settings.pipeline)) for kind in kinds]


def _with_pages(kind: LayerKind, shape: ModelShape, settings: CacheSettings) -> _Layers:
    if isinstance(kind, Recurrent):
        page = _state_bytes(kind, shape, settings)
        return _Layers(kind, kind.layers, settings.block_size, page)
    block = settings.block_size
    if isinstance(kind, Latent | Indexer):
        block = max(block, _LATENT_BLOCK)
    return _Layers(kind, kind.layers, block, block * _token_bytes(kind, shape, settings))


def _token_bytes(kind: LayerKind, shape: ModelShape, settings: CacheSettings) -> int:
    """Bytes of one token in one layer on one device."""
    match kind:
        case Attention():
            heads = max(1, kind.kv_heads // settings.tensor)
            widths = (kind.key_width, kind.value_width)
            return heads * sum(_head_bytes(width, shape, settings.dtype) for width in widths)
        case Cross():
            heads = max(1, kind.kv_heads // settings.tensor)
            return heads * 2 * _head_bytes(kind.key_width, shape, settings.dtype)
        case Latent():
            return _latent_bytes(kind, shape, settings.dtype)
        case Indexer():
            return kind.bytes_per_token
        case Recurrent():
            return 0


def _head_bytes(width: int, shape: ModelShape, dtype: str) -> int:
    """Of one key or value vector, its scales included."""
    match dtype:
        case "auto":
            return width * shape.dtype_bytes
        case "float16" | "bfloat16":
            return width * 2
        case "int8_per_token_head" | "fp8_per_token_head":
            return width + _SCALE_BYTES
        case "int4_per_token_head":
            return width // 2 + _SCALE_BYTES
        case "nvfp4":
            return width // 2 + width // 16
    if dtype.startswith("fp8"):
        return width
    raise UnknownCacheDtypeError(f"the bytes of KV cache dtype {dtype} are not known")


def _latent_bytes(kind: Latent, shape: ModelShape, dtype: str) -> int:
    sparse = any(isinstance(each, Indexer) for each in shape.kinds)
    if dtype == "fp8_ds_mla" or (sparse and dtype.startswith("fp8")):
        return _SPARSE_FP8_BYTES
    if dtype == "nvfp4_ds_mla":
        return _SPARSE_FP4_BYTES
    return _head_bytes(kind.width, shape, dtype)


def _state_bytes(kind: Recurrent, shape: ModelShape, settings: CacheSettings) -> int:
    steps = kind.conv_kernel - 1 + settings.speculative_tokens
    convolution = steps * (kind.conv_width // settings.tensor) * shape.dtype_bytes
    return convolution + kind.state_elements // settings.tensor * kind.state_bytes


# --- groups -------------------------------------------------------------------------------------


def _fit_states(layers: list[_Layers], settings: CacheSettings) -> list[_Layers]:
    """Blocks of attention as large as a state, and states padded to a block.

    vLLM 0.32 ``platforms/interface.py``: "Setting attention block size to N tokens".
    """
    state = max(each.page for each in layers if isinstance(each.kind, Recurrent))
    attention = [each for each in layers if not isinstance(each.kind, Recurrent)]
    if not attention:
        return layers
    token = max(each.page // each.block for each in attention)
    latent = any(isinstance(each.kind, Latent) for each in attention)
    step = max(settings.block_size, _HYBRID_LATENT_BLOCK if latent else 0)
    block = max(step * -(-state // (step * token)), step)
    return [
        replace(each, page=block * token)
        if isinstance(each.kind, Recurrent)
        else replace(each, block=block, page=block * (each.page // each.block))
        for each in layers
    ]


def _alike(kind: LayerKind, settings: CacheSettings) -> object:
    """Layers of which one table of blocks serves all."""
    if not isinstance(kind, Attention):
        return "all" if isinstance(kind, Latent | Indexer) else type(kind)
    if not settings.hybrid:
        return "all"
    return (kind.window, kind.chunk) if kind.window or kind.chunk else "all"


def _grows(kind: LayerKind, settings: CacheSettings) -> bool:
    return _alike(kind, settings) == "all"


def _one_page(layers: list[_Layers]) -> list[_Layers]:
    """Equal pages: smaller ones take more tokens, and are padded where that does not come out."""
    page = max(each.page for each in layers)
    return [
        replace(each, page=page)
        if isinstance(each.kind, Recurrent)
        else replace(each, page=page, block=each.block * (page // each.page))
        for each in layers
    ]


def _group_size(counts: list[int]) -> int:
    smallest, largest = min(counts), max(counts)
    return largest if largest < 1.5 * smallest else smallest


def _blocks(layers: _Layers, settings: CacheSettings) -> int:
    """Blocks of one group that one request of the greatest length takes."""
    kind, length = layers.kind, settings.max_length
    if isinstance(kind, Recurrent):
        return (2 if settings.prefix_caching else 1) + settings.speculative_tokens
    if isinstance(kind, Cross):
        return -(-kind.encoder_tokens // layers.block)
    if isinstance(kind, Attention) and settings.hybrid:
        if kind.window:
            held = min(kind.window - 1 + settings.tokens_in_flight, length)
            return -(-held // layers.block) + 1
        if kind.chunk:
            return -(-min(kind.chunk + settings.tokens_in_flight, length) // layers.block)
    return -(-length // (layers.block * settings.context))
