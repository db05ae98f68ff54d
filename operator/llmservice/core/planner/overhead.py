"""What an engine's memory goes to beside weights and KV cache, as a range.

vLLM measures it when it starts: the peak of a dry run, what lies outside of torch, and, since 0.21,
an estimate of its CUDA graphs (``v1/worker/gpu_worker.py``, determine_available_memory). The dry
run peaks either in the forward pass over ``max_num_batched_tokens`` tokens or in the sampler, which
sorts ``max_num_seqs`` rows of the whole vocabulary; on big devices the sampler wins.
"""

from dataclasses import dataclass

from llmservice.core.planner.devices import Device
from llmservice.core.planner.model import ModelShape
from llmservice.core.planner.weights import Ranks

_GIB = 1 << 30
_MIB = 1 << 20

Version = tuple[int, int]
"""Major and minor version of vLLM."""

_FLASHINFER_SAMPLER_SINCE: Version = (0, 17)
_GRAPHS_COUNTED_SINCE: Version = (0, 21)
_SORTING_SAMPLER_BYTES = 39
"""Per sequence and vocabulary entry: logits in 16 and 32 bits, sorted values, 64-bit indices,
probabilities, their sums and masks (``v1/sample/ops/topk_topp_sampler.py``, forward_native)."""
_REJECTION_SAMPLER_BYTES = 15
"""The same without the sort: logits in 16 and 32 bits, a copy, probabilities (forward_cuda)."""
_GRAPH_BYTES_PER_LAYER = 16 * _MIB
_MULTIMODAL_BYTES = 2 * _GIB
_EXPERT_WORKSPACE_BYTES = _GIB // 2
_MANY_RANKS = 8
"""From here on communication buffers were seen to take up to 2.1 GiB."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes between ``low`` and ``high``, most likely ``expected``."""

    low: int
    expected: int
    high: int

    @classmethod
    def exactly(cls, size: int) -> "Range":
        """No doubt about it."""
        return cls(size, size, size)

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def left_of(self, size: int) -> "Range":
        """What it leaves of ``size`` bytes."""
        return Range(size - self.high, size - self.expected, size - self.low)


@dataclass(frozen=True, slots=True)
class Overhead:
    """Bytes of one device."""

    activations: Range
    """Peak of the dry run."""
    graphs: Range
    """CUDA graphs, as far as they are taken from the engine's share."""
    other: Range
    """Driver context and communication buffers."""
    outside: int
    """What must stay free beside the engine's share: margin, and what is not counted inside."""

    @property
    def total(self) -> Range:
        """All of it."""
        return self.activations + self.graphs + self.other


@dataclass(frozen=True, slots=True)
class Load:
    """The knobs that the overhead depends on."""

    max_num_seqs: int
    batched_tokens: int
    eager: bool = False


def overhead(
    shape: ModelShape, device: Device, ranks: Ranks, load: Load, version: Version
) -> Overhead:
    """Estimate the overhead of an engine of this version on this device."""
    return Overhead(
        activations=_activations(shape, device, ranks, load, version),
        graphs=_graphs(shape, ranks, load, version),
        other=_other(device, ranks),
        outside=_outside(shape, device, ranks, load, version),
    )


def sampler_bytes(shape: ModelShape, device: Device, sequences: int, version: Version) -> int:
    """Peak of the sampler's dry run."""
    capability = device.compute_capability
    sorts = version < _FLASHINFER_SAMPLER_SINCE or (capability is not None and capability < (7, 5))
    each = _SORTING_SAMPLER_BYTES if sorts else _REJECTION_SAMPLER_BYTES
    return each * sequences * shape.vocabulary


def forward_bytes(shape: ModelShape, ranks: Ranks, tokens: int) -> int:
    """Peak of one layer over ``tokens`` tokens, with the residual stream beside it.

    A dense MLP holds gate and up next to their product: 110,592 bytes per token for Llama-3.1-8B,
    and engines without chunked prefill grew by 109,800 between 20,000 and 29,000 tokens. Fused
    experts hold two workspaces of a hidden vector per token and chosen expert, however they are
    sliced (vLLM ``model_executor/layers/fused_moe``): 163,840 bytes for Qwen3-235B, and 162,905
    were measured between 8,192 and 65,536 tokens.
    """
    if experts := shape.experts:
        sliced = 2 * experts.width // (1 if ranks.expert else ranks.tensor)
        wide = 2 * experts.per_token * max(shape.hidden, sliced) + 4 * shape.hidden
    else:
        matrices = 3 if shape.gated else 2
        wide = matrices * shape.mlp_width // ranks.tensor + 3 * shape.hidden
    return tokens * shape.dtype_bytes * wide


def _activations(
    shape: ModelShape, device: Device, ranks: Ranks, load: Load, version: Version
) -> Range:
    forward = forward_bytes(shape, ranks, load.batched_tokens)
    low = max(forward, sampler_bytes(shape, device, load.max_num_seqs, version))
    expected = high = low
    if shape.experts:
        expected, high = low + _EXPERT_WORKSPACE_BYTES, low + 6 * _EXPERT_WORKSPACE_BYTES
    if shape.multimodal:
        expected = max(expected, _MULTIMODAL_BYTES)
        high = expected + _MULTIMODAL_BYTES
    return Range(int(0.9 * low), expected, int(1.15 * high) + _GIB // 4)


def _graphs(shape: ModelShape, ranks: Ranks, load: Load, version: Version) -> Range:
    counted = version >= _GRAPHS_COUNTED_SINCE
    return _graph_bytes(shape, ranks, load) if counted else Range.exactly(0)


def _graph_bytes(shape: ModelShape, ranks: Ranks, load: Load) -> Range:
    if load.eager:
        return Range.exactly(0)
    expected = shape.layers // ranks.pipeline * _GRAPH_BYTES_PER_LAYER
    return Range(expected // 4, expected, 2 * expected)


def _other(device: Device, ranks: Ranks) -> Range:
    host = device.memory // 10 if device.unified else 0
    if ranks.devices == 1:
        return Range(_GIB // 50, _GIB // 8, _GIB // 2 + host)
    high = 1.2 if ranks.tensor < _MANY_RANKS else 2.1
    return Range(_GIB // 4, int(0.6 * _GIB), int(high * _GIB) + host)


def _outside(shape: ModelShape, device: Device, ranks: Ranks, load: Load, version: Version) -> int:
    margin = max(_GIB // 2, device.memory * 3 // 100)
    if version >= _GRAPHS_COUNTED_SINCE:
        return margin
    # Graphs were not counted, and the warm-up of the sampler sorted what its dry run had not.
    counted = sampler_bytes(shape, device, load.max_num_seqs, version)
    sorting = sampler_bytes(shape, device, load.max_num_seqs, (0, 0))
    return margin + _graph_bytes(shape, ranks, load).high + sorting - counted
