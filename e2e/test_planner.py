"""The planner's closed forms against the allocator of the real vLLM, in its own image."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from e2e.kubectl import JSON
from e2e.stage import Stage
from llmservice.core.planner.kv_cache import CacheSettings, Pool, build_pool
from llmservice.core.planner.model import Attention, Latent, LayerKind, Recurrent
from tests.shapes import shape_of_layers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CASES, SEED, GIB = 140, 20_260, 1 << 30
SCRIPT = Path(__file__).with_name("allocator.py")
STYLES = ("plain", "window", "wide window", "chunk", "mixed", "latent", "recurrent")


def test_allocator_agrees(stage: Stage) -> None:
    """Blocks and tokens of random models and settings, to the last one."""
    dice = random.Random(SEED)
    questions = [a_question(dice, STYLES[n % len(STYLES)]) for n in range(CASES)]
    pools = [build_pool(shape_of_layers(kinds), settings) for kinds, settings in questions]
    cases = [
        {**as_case(kinds, pool), "available": dice.randint(1, 80) * GIB}
        for (kinds, _), pool in zip(questions, pools, strict=True)
    ]

    answers = json.loads(stage.run_in_engine_image(SCRIPT, json.dumps(cases)).splitlines()[-1])

    for pool, case, answer in zip(pools, cases, answers, strict=True):
        capacity = pool.capacity(case["available"])
        assert [capacity.blocks, capacity.tokens] == answer, case


def as_case(kinds: list[LayerKind], pool: Pool) -> JSON:
    """The same for vLLM; blocks of a model with states as the planner raised them."""
    settings = pool.settings
    raised = {type(layers.kind): layers for layers, _ in pool.groups}
    described: list[dict[str, Any]] = []
    for kind in kinds:
        block, page = settings.block_size, 0
        if Recurrent in raised:
            block, page = raised[Attention].block, raised[Recurrent].page
        described.append({"layers": kind.layers, "block": block, "page": page, **as_kind(kind)})
    return {
        "kinds": described,
        "length": settings.max_length,
        "in_flight": settings.tokens_in_flight,
        "tensor": settings.tensor,
        "hybrid": settings.hybrid,
        "prefix_caching": settings.prefix_caching,
        "speculative_tokens": settings.speculative_tokens,
    }


def as_kind(kind: LayerKind) -> JSON:
    """What distinguishes one kind of layer from another."""
    match kind:
        case Latent():
            return {"kind": "latent", "width": kind.width, "block": 64}
        case Attention(window=None, chunk=None):
            return {"kind": "full", "heads": kind.kv_heads, "width": kind.key_width}
        case Attention():
            name = "window" if kind.window else "chunk"
            size = kind.window or kind.chunk
            return {"kind": name, "heads": kind.kv_heads, "width": kind.key_width, "window": size}
    return {"kind": "recurrent"}


def a_question(dice: random.Random, style: str) -> tuple[list[LayerKind], CacheSettings]:
    """A model with layers of one style, and what its allocator is told."""
    heads, width = dice.choice([1, 2, 4, 8, 16]), dice.choice([64, 128, 256])
    some = dice.randint(1, 60)
    kinds: list[LayerKind] = [Attention(dice.randint(1, 80), heads, width, width)]
    match style:
        case "window":
            kinds.append(Attention(some, heads, width, width, window=dice.choice([128, 4096])))
        case "wide window":
            kinds.append(Attention(some, 2 * heads, width, width, window=1024))
        case "chunk":
            kinds.append(Attention(some, heads, width, width, chunk=8192))
        case "mixed":
            kinds.append(Attention(some, 2 * heads, width, width))
        case "latent":
            kinds = [Latent(some, 576)]
        case "recurrent":
            kinds.append(Recurrent(some, 8192, 4, 32 * 128 * 128, 4, 0))
    settings = CacheSettings(
        max_length=dice.choice([512, 4096, 8191, 131_072, 262_144]),
        batched_tokens=dice.choice([2048, 8192]),
        tensor=dice.choice([1, 2, 4, 8]),
        batches_in_flight=dice.choice([1, 2]),
        prefix_caching=dice.random() < 0.5,
        speculative_tokens=dice.choice([0, 3]) if style == "recurrent" else 0,
        hybrid=style == "recurrent" or dice.random() < 0.8,
    )
    return kinds, settings
