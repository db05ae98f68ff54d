"""Runs inside the engine image: what vLLM's own allocator makes of layers and bytes.

``python allocator.py CASES`` prints ``[[blocks, tokens], ...]`` for a JSON list of cases, each
with ``kinds`` (layers, kind, block, heads, width, window, page), ``length``, ``in_flight``,
``tensor``, ``hybrid``, ``prefix_caching``, ``speculative_tokens`` and ``available`` bytes. The
settings that the allocator asks for are stood in for: whole ones would need a model and a device.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

_Case = dict[str, Any]
_LAYOUT = SimpleNamespace(
    is_block_outermost=False, is_block_compact=True, is_layer_compact=True, name="LBHNC"
)


def main() -> None:
    """Answer each case."""
    print(json.dumps([_allocate(case) for case in json.loads(sys.argv[1])]))


def _allocate(case: _Case) -> list[int]:
    config = _config(case)
    specs = {
        f"layers.{number}.{layer}": _spec(kind, case)
        for number, kind in enumerate(case["kinds"])
        for layer in range(kind["layers"])
    }
    groups = kv_cache_utils.get_kv_cache_groups(config, specs)
    per_block = kv_cache_utils._pool_bytes_per_block(config, groups)  # noqa: SLF001 - no other way
    blocks = case["available"] // per_block
    found = SimpleNamespace(kv_cache_groups=groups, num_blocks=blocks)
    concurrency = kv_cache_utils.get_max_concurrency_for_kv_cache_config(config, found)
    return [blocks, int(concurrency * case["length"])]


def _config(case: _Case) -> Any:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=not case["hybrid"]),
        model_config=SimpleNamespace(max_model_len=case["length"]),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1, tensor_parallel_size=case["tensor"]
        ),
        max_in_flight_tokens=case["in_flight"],
        cache_config=SimpleNamespace(
            mamba_cache_mode="align" if case["prefix_caching"] else "none",
            num_gpu_blocks_override=None,
            enable_prefix_caching=case["prefix_caching"],
            get_resolved_kv_cache_layout=lambda: _LAYOUT,
        ),
        speculative_config=None,
        kv_transfer_config=None,
    )


def _spec(kind: _Case, case: _Case) -> Any:
    block, dtype = kind["block"], torch.bfloat16
    match kind["kind"]:
        case "latent":
            return MLAAttentionSpec(
                block_size=block, num_kv_heads=1, head_size=kind["width"], dtype=dtype
            )
        case "recurrent":
            return MambaSpec(
                block_size=block,
                shapes=((1,),),
                dtypes=(torch.uint8,),
                page_size_padded=kind["page"],
                mamba_cache_mode="align" if case["prefix_caching"] else "none",
                num_speculative_blocks=case["speculative_tokens"],
            )
    heads = max(1, kind["heads"] // case["tensor"])
    common = {"block_size": block, "num_kv_heads": heads, "head_size": kind["width"]}
    match kind["kind"]:
        case "window":
            return SlidingWindowSpec(dtype=dtype, sliding_window=kind["window"], **common)
        case "chunk":
            return ChunkedLocalAttentionSpec(
                dtype=dtype, attention_chunk_size=kind["window"], **common
            )
    return FullAttentionSpec(dtype=dtype, **common)


if __name__ == "__main__":
    main()
