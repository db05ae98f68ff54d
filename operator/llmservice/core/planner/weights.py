"""Bytes of weights on one device, matrix by matrix: what vLLM shards, what it replicates.

Tensor parallelism slices the matrices of attention and MLP, and the embeddings by vocabulary; it
replicates norms, routers, latent down-projections, and KV projections once the ranks outnumber the
KV heads (vLLM 0.32 ``model_executor/layers/linear.py``, ``vocab_parallel_embedding.py``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmservice.core.planner.catalog import KnownModel
from llmservice.core.planner.model import Attention, Cross, Latent, ModelShape, Recurrent

_SCALE_BYTES = 2
_WORD_BYTES = 4
_MAX_GROUP = 1024


@dataclass(frozen=True, slots=True)
class Ranks:
    """How one replica is spread."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.tensor * self.pipeline * self.data

    @property
    def expert_shards(self) -> int:
        """Parts that the experts are cut into."""
        return self.tensor * self.data if self.expert else self.tensor


@dataclass(frozen=True, slots=True)
class Quantization:
    """Bytes per weight, scales included."""

    name: str
    linear: float
    """Of the matrices inside layers."""
    expert: float
    """Of the matrices inside experts."""
    embedding: float
    """Of input and output embedding."""


class UnknownQuantizationError(ValueError):
    """The bytes of this quantization are not known here."""


def quantization_of(shape: ModelShape, method: str | None = None) -> Quantization:
    """How the checkpoint's weights are stored, or, with ``method``, how the engine is told to.

    Args:
        shape: the model, with its ``quantization_config``.
        method: ``--quantization``, or a word like ``awq``, ``fp8``, ``int4`` from a model's name;
            it counts only where the checkpoint has no configuration of its own.

    Raises:
        UnknownQuantizationError: nothing is known of the method.
    """
    plain = float(shape.dtype_bytes)
    config = shape.quantization
    name = str(config.get("quant_method") or config.get("quant_algo") or method or "").lower()
    name = name.replace("bnb", "bitsandbytes")
    if not name:
        return Quantization("none", plain, plain, plain)
    each = _bytes_per_weight(name.replace("_", "-"), config)
    # gpt-oss, and four-bit checkpoints of latent attention: attention stays as it was trained.
    latent = any(isinstance(kind, Latent) for kind in shape.kinds)
    linear = plain if "mxfp4" in name or ("fp4" in name and latent) else each
    return Quantization(name, linear, each, each if "gguf" in name else plain)


def _bytes_per_weight(name: str, config: Mapping[str, Any]) -> float:
    bits, group = _packing(config)
    fourths = bits or 4
    eighths = bits or 8
    algorithm = str(config.get("quant_algo", "")).lower()
    sizes: tuple[tuple[tuple[str, ...], float], ...] = (
        (("mxfp4",), 0.5 + 1 / 32),
        (("fp4",), 0.5 + 1 / 16),
        (("gguf",), 34 / 32),  # Q8_0
        (("bitsandbytes-8",), 1.0),
        (("bitsandbytes",), 0.5 + _WORD_BYTES / 64),
        (_GROUPED, fourths / 8 + (_SCALE_BYTES + fourths / 8) / (group or 128)),
        (_DESCRIBED, eighths / 8 + (_SCALE_BYTES / group if group else 0)),
        (("fp8", "int8", "w8a8"), 1.0),
    )
    for words, size in sizes:
        if any(word in name or word in algorithm for word in words):
            return size
    raise UnknownQuantizationError(f"the bytes of a weight quantized by {name} are not known")


_GROUPED = ("awq", "gptq", "int4", "w4a16", "auto-round", "autoround", "inc", "4bit")
"""Methods with one scale and one zero point per group."""
_DESCRIBED = ("compressed-tensors", "quark", "modelopt")
"""Containers whose configuration says how many bits."""


def _packing(config: Mapping[str, Any]) -> tuple[int, int]:
    """Bits and group size, wherever the format keeps them; 0 where it does not say."""
    groups = config.get("config_groups")
    if isinstance(groups, Mapping):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping):
                return _small(weights.get("num_bits")), _small(weights.get("group_size"))
    bits = config.get("bits") or config.get("w_bit")
    return _small(bits), _small(config.get("group_size") or config.get("q_group_size"))


def _small(value: object) -> int:
    return value if isinstance(value, int) and 0 < value <= _MAX_GROUP else 0


def weights_of(model: KnownModel, ranks: Ranks, quantization: Quantization | None = None) -> int:
    """Bytes of a known model's weights on the fullest device.

    Args:
        model: with what is published of its parameters, or was measured of its weights.
        ranks: how it is spread.
        quantization: how it is stored, where that is not the model's own.

    Raises:
        UnknownQuantizationError: nothing is known of the model's own.
    """
    how = quantization or quantization_of(model.shape, model.quantization)
    weights = weights_per_device(model.shape, ranks, how, parameters=model.parameters)
    if model.weights is None:
        return weights
    # Measured on one device; the rest is proportion.
    whole = weights_per_device(model.shape, Ranks(), how, parameters=model.parameters)
    return weights * model.weights // max(1, whole)


def weights_per_device(
    shape: ModelShape,
    ranks: Ranks,
    quantization: Quantization,
    *,
    parameters: int | None = None,
) -> int:
    """Bytes on the fullest device.

    Args:
        shape: the model.
        ranks: how it is spread.
        quantization: how it is stored.
        parameters: all of the model's parameters where they are published; what the shape does
            not account for (a vision tower) is taken as unquantized and sliced.
    """
    plain = shape.dtype_bytes
    layers = (_attention(shape, ranks, quantization) + _mlp(shape, ranks, quantization)) / (
        ranks.pipeline
    )
    # The output embedding is on the last stage, the input embedding on the first.
    embeddings = 1 if shape.tied or ranks.pipeline > 1 else 2
    matrix = _padded(shape.vocabulary) * shape.hidden / ranks.tensor
    rest = 0.0
    if parameters is not None:
        rest = max(0, parameters - parameter_count(shape)) * plain / ranks.tensor
    return round(layers + embeddings * matrix * quantization.embedding + rest)


def parameter_count(shape: ModelShape) -> int:
    """Parameters that the shape accounts for: embeddings, attention, MLP, experts, norms."""
    one = Quantization("count", 1, 1, 1)
    matrices = _attention(shape, Ranks(), one, kept_twice=False) + _mlp(shape, Ranks(), one)
    embeddings = (1 if shape.tied else 2) * shape.vocabulary * shape.hidden
    return round(matrices + embeddings)


def _attention(
    shape: ModelShape, ranks: Ranks, quantization: Quantization, *, kept_twice: bool = True
) -> float:
    """All layers' projections, in bytes; ``kept_twice`` counts what latent attention unfolds."""
    total, hidden, tensor = 0.0, shape.hidden, ranks.tensor
    queries = shape.heads * shape.query_width
    for kind in shape.kinds:
        match kind:
            case Attention() | Cross():
                values = kind.value_width if isinstance(kind, Attention) else kind.key_width
                kv_heads = max(1, kind.kv_heads / tensor)
                gate = 2 if shape.gated_attention else 1
                inside = (gate * queries + shape.heads * values) / tensor
                each = hidden * (inside + kv_heads * (kind.key_width + values))
                total += kind.layers * each * quantization.linear
            case Latent():
                total += kind.layers * _latent(shape, kind, tensor) * quantization.linear
                if kept_twice:  # W_UK and W_UV stay beside kv_b_proj, in 16 bits
                    total += kind.layers * _unfolded(shape) / tensor * shape.dtype_bytes
            case Recurrent():
                total += kind.layers * hidden * kind.projections / tensor * quantization.linear
    return total


def _latent(shape: ModelShape, kind: Latent, tensor: int) -> float:
    queries = shape.heads * shape.query_width
    down = shape.hidden * kind.width
    if shape.query_rank:
        down += shape.hidden * shape.query_rank
        query_up = shape.query_rank * queries
    else:
        query_up = shape.hidden * queries
    out = shape.heads * shape.value_width * shape.hidden
    return down + (query_up + _unfolded(shape) + out) / tensor


def _unfolded(shape: ModelShape) -> int:
    return shape.latent_rank * shape.heads * (shape.nope_width + shape.value_width)


def _mlp(shape: ModelShape, ranks: Ranks, quantization: Quantization) -> float:
    matrices, experts = 3 if shape.gated else 2, shape.experts
    dense_layers = shape.layers - (experts.layers if experts else 0)
    dense = dense_layers * matrices * shape.hidden * shape.mlp_width / ranks.tensor
    total = dense * quantization.linear
    if experts:
        each = matrices * shape.hidden * experts.width * experts.count
        shared = matrices * shape.hidden * experts.shared_width / ranks.tensor
        router = shape.hidden * experts.count
        total += experts.layers * (
            each / ranks.expert_shards * quantization.expert
            + shared * quantization.linear
            + router * quantization.embedding
        )
    return total


def _padded(vocabulary: int) -> int:
    """To a multiple of 64 (vLLM ``vocab_parallel_embedding.py``)."""
    return -(-vocabulary // 64) * 64
