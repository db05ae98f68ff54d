"""What vLLM sets for knobs that nobody wrote, by version and device.

Source: vLLM 0.33 ``engine/arg_utils.py`` (EngineArgs.get_batch_defaults and what follows it),
``config/cache.py``, ``config/vllm.py`` (max_concurrent_batches).
"""

from dataclasses import dataclass

from llmservice.core.planner.devices import Device
from llmservice.core.planner.overhead import Version
from llmservice.core.planner.weights import Ranks

_GIB = 1 << 30
_WHOLE_SHARE_SINCE: Version = (0, 21)
"""Graphs are inside the budget since, so the default share went from 0.90 to 0.92."""
_ASYNC_SINCE: Version = (0, 19)
_CPU_BLOCK = 128
_WITHOUT_LOADER: dict[str, Version] = {"gguf": (0, 32), "bitsandbytes": (0, 32)}
"""Formats, and the first version read that has no loader for them any more."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """Values of unset knobs."""

    gpu_memory_utilization: float
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    batches_in_flight: int
    """Steps that run at once."""


def unloadable(quantization: str, version: Version) -> str | None:
    """Why an engine of this version cannot load such weights; None when it can."""
    for name, since in _WITHOUT_LOADER.items():
        if name in quantization and version >= since:
            return (
                f"vLLM {since[0]}.{since[1]} and later have no loader for {name} weights: use the"
                " model's own checkpoint, or one in FP8, AWQ or GPTQ"
            )
    return None


def engine_defaults(
    device: Device | None, ranks: Ranks, version: Version, *, throughput: bool = False
) -> Defaults:
    """What an engine of this version chooses on this device; ``device=None`` is a CPU.

    Args:
        device: where it runs.
        ranks: how it is spread; a CPU's batch grows with them.
        version: of vLLM.
        throughput: ``--performance-mode throughput``, which doubles the batch.
    """
    if device is None:
        tokens, sequences = 2048 * ranks.devices, 128 * ranks.devices
    elif device.memory >= 160 * _GIB:
        tokens, sequences = 16_384, 1024
    elif device.memory >= 70 * _GIB and "a100" not in device.name.lower():
        tokens, sequences = 8192, 1024
    else:
        tokens, sequences = 2048, 256
    factor = 2 if throughput else 1
    overlapping = version >= _ASYNC_SINCE and device is not None and ranks.pipeline == 1
    return Defaults(
        gpu_memory_utilization=0.92 if version >= _WHOLE_SHARE_SINCE else 0.90,
        max_num_seqs=sequences * factor,
        max_num_batched_tokens=tokens * factor,
        block_size=_CPU_BLOCK if device is None else 16,
        batches_in_flight=2 if overlapping else ranks.pipeline,
    )
