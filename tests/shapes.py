"""A model that consists of its layers' caches: for what depends on nothing else of it."""

from collections.abc import Iterable

from llmservice.core.planner.model import LayerKind, ModelShape


def shape_of_layers(kinds: Iterable[LayerKind]) -> ModelShape:
    """Sixteen bits, and some value for everything that a cache does not depend on."""
    layers = tuple(kinds)
    return ModelShape(
        kinds=layers,
        hidden=4096,
        heads=32,
        layers=sum(kind.layers for kind in layers),
        mlp_width=14336,
        vocabulary=128256,
        max_length=131072,
        dtype_bytes=2,
        tied=False,
        experts=None,
        quantization={},
        multimodal=False,
    )
