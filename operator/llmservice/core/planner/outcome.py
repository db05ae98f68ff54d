"""What a plan is asked and what it answers."""

from dataclasses import dataclass
from enum import StrEnum

from llmservice.core.planner.catalog import KnownModel
from llmservice.core.planner.devices import Device
from llmservice.core.planner.kv_cache import Capacity, Pool
from llmservice.core.planner.overhead import Overhead, Range, Version


class Profile(StrEnum):
    """What the unset knobs are tuned for."""

    Throughput = "Throughput"
    Balanced = "Balanced"
    Latency = "Latency"


class Verdict(StrEnum):
    """Whether the engine will start."""

    Fits = "Fits"
    Marginal = "Marginal"


class Reason(StrEnum):
    """Why it will not."""

    WeightsDoNotFit = "WeightsDoNotFit"
    KVCacheTooSmall = "KVCacheTooSmall"
    InvalidParallelism = "InvalidParallelism"
    UnsupportedQuantization = "UnsupportedQuantization"


@dataclass(frozen=True, slots=True)
class Speculation:
    """A draft that proposes tokens."""

    method: str
    tokens: int
    draft: KnownModel | None = None
    """The draft model, where it is one and known."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a plan is asked for; None for what the planner, or vLLM, may choose."""

    model: KnownModel
    device: Device | None
    """None for a CPU."""
    version: Version
    tensor: int | None = None
    pipeline: int = 1
    data: int = 1
    expert: bool = False
    devices: int | None = None
    """Devices of one replica, where they are given."""
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    block_size: int | None = None
    quantization: str | None = None
    prefix_caching: bool = True
    enforce_eager: bool = False
    profile: Profile = Profile.Balanced
    speculation: Speculation | None = None
    context: int = 1
    """``--decode-context-parallel-size``"""
    hybrid: bool = True
    """False for ``--disable-hybrid-kv-cache-manager``."""
    cpu_offload: int = 0
    """Bytes of weights kept in host memory, per device."""
    batches_in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class Knobs:
    """What will run, whoever chose it."""

    tensor: int
    pipeline: int
    data: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    kv_cache_dtype: str

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device."""

    total: int | None
    """None on a CPU."""
    budget: int | None
    """The engine's share; None where the KV cache's bytes are given."""
    weights: int
    overhead: Overhead
    kv_cache: Range
    """``low`` where the overhead is high."""
    spare: Range
    """What is left of the device, less what should be; below 0 the engine may run out of memory."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One knob and why it has its value."""

    knob: str
    value: str
    why: str
    chosen: bool = False
    """The planner chose it; False for the user's word, and for vLLM's own default."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An engine that starts, or may."""

    verdict: Verdict
    knobs: Knobs
    memory: Memory
    bytes_per_token: int
    """Of the KV cache, per device, in layers that keep every token."""
    capacity: Capacity
    """Of the replica, at the expected overhead."""
    pool: Pool
    choices: tuple[Choice, ...]
    message: str


@dataclass(frozen=True, slots=True)
class Infeasible:
    """An engine that would load its weights and die."""

    reason: Reason
    message: str
    """What does not fit, with the numbers, and the nearest changes that do."""
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class Unplanned:
    """Not enough is known to judge; nothing is blocked."""

    message: str


Outcome = Plan | Infeasible | Unplanned
