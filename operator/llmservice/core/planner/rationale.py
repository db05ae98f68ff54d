"""The sentences of a plan: numbers first, then what follows from them."""

from llmservice.core.planner.kv_cache import Capacity
from llmservice.core.planner.outcome import Choice, Knobs, Memory, Profile, Reason, Request
from llmservice.core.planner.weights import Quantization

_GIB = 1 << 30
_COMFORTABLE = 1.5
"""Requests of the greatest length below which a single long one makes all others wait."""
_WRITTEN = "written in the spec"
_DEFAULT = "vLLM's default for this device"


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / _GIB:.1f} GiB"


def where(request: Request, knobs: Knobs) -> str:
    """The devices of one replica."""
    name = request.device.name if request.device else "CPU"
    return f"{knobs.devices} x {name}"


def summary(request: Request, knobs: Knobs, memory: Memory, capacity: Capacity) -> str:
    """One line of a plan."""
    return (
        f"{where(request, knobs)}: {gib(memory.weights)} of weights and"
        f" {gib(max(0, memory.kv_cache.expected))} of KV cache on each, {capacity.tokens:,} tokens,"
        f" {capacity.concurrency:.1f} requests of {knobs.max_model_len:,}"
    )


def warning(memory: Memory, need: int, safe: int) -> str:
    """What makes a plan marginal, and the way out."""
    if memory.kv_cache.low >= need:
        return (
            f"; it may not start: {gib(-memory.spare.low)} too little may be left of the device:"
            " lower gpuMemoryUtilization, or kvCacheMemoryBytes"
        )
    text = (
        f"; it may not start: the KV cache may be as small as {gib(max(0, memory.kv_cache.low))},"
        f" and one request of the greatest length takes {gib(need)}"
    )
    return f"{text}; maxModelLen {safe} is sure to fit" if safe else text


def too_long(request: Request) -> str:
    """Why a length over the model's own is not promised (vLLM 0.33 ``config/model.py``)."""
    return (
        f"; vLLM refuses a maxModelLen over the model's own {request.model.shape.max_length:,}"
        " unless VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 is set in its environment"
    )


def refusal(request: Request, reason: Reason, knobs: Knobs, memory: Memory, need: int) -> str:
    """What does not fit, with the numbers."""
    place = where(request, knobs)
    if reason is Reason.WeightsDoNotFit:
        share = memory.total if memory.budget is None else memory.budget
        return (
            f"{request.model.id} does not fit {place}: each device would hold"
            f" {gib(memory.weights)} of weights and at least {gib(memory.overhead.total.low)}"
            f" beside them, and the engine's share is {gib(share or 0)}"
        )
    return (
        f"not one request of {knobs.max_model_len:,} tokens fits {place}: it takes {gib(need)} of"
        f" KV cache on each device, and {gib(memory.weights)} of weights leave at most"
        f" {gib(memory.kv_cache.high)}"
    )


def choices(
    request: Request,
    knobs: Knobs,
    capacity: Capacity,
    growth: int,
    quantization: Quantization,
) -> tuple[Choice, ...]:
    """Every knob that memory depends on, and why it has its value."""
    found = [_tensor(request, knobs), _length(request, knobs, capacity)]
    if request.kv_cache_memory_bytes is None:
        why = _WRITTEN if request.gpu_memory_utilization else "vLLM's default for this version"
        found.append(Choice("gpuMemoryUtilization", f"{knobs.gpu_memory_utilization:g}", why))
    found.append(_sequences(request, knobs, capacity))
    doubled = f"profile Throughput doubles {_DEFAULT}"
    why = doubled if request.profile is Profile.Throughput else _DEFAULT
    why = _WRITTEN if request.max_num_batched_tokens else why
    found.append(Choice("maxNumBatchedTokens", str(knobs.max_num_batched_tokens), why))
    per_token = f"{growth:,} bytes per token and device"
    found.append(Choice("kvCacheDtype", knobs.kv_cache_dtype, per_token))
    if quantization.name != "none":
        per_weight = f"{quantization.expert:.2f} bytes per weight"
        found.append(Choice("quantization", quantization.name, per_weight))
    return tuple(found)


def _tensor(request: Request, knobs: Knobs) -> Choice:
    name, value = "parallelism.tensor", str(knobs.tensor)
    if request.tensor:
        return Choice(name, value, _WRITTEN)
    if request.devices:
        return Choice(name, value, "as accelerator.count gives", chosen=True)
    if knobs.tensor == 1:
        return Choice(name, value, "the model fits one device", chosen=True)
    return Choice(
        name,
        value,
        f"the smallest that fits and divides the {request.model.shape.heads} attention heads",
        chosen=True,
    )


def _length(request: Request, knobs: Knobs, capacity: Capacity) -> Choice:
    own = request.model.shape.max_length
    chosen = request.max_model_len is None and knobs.max_model_len < own
    why = _WRITTEN if request.max_model_len else "the model's own"
    if chosen:
        why = f"the longest that is sure to fit; the model's own is {own:,}"
    if capacity.concurrency < _COMFORTABLE:
        why += f"; only {capacity.concurrency:.1f} fit at once, so a long one makes others wait"
    return Choice("maxModelLen", str(knobs.max_model_len), why, chosen=chosen)


def _sequences(request: Request, knobs: Knobs, capacity: Capacity) -> Choice:
    each = f"{capacity.tokens // max(1, knobs.max_num_seqs):,} tokens of KV cache each when all run"
    name, value = "maxNumSeqs", str(knobs.max_num_seqs)
    if request.max_num_seqs:
        return Choice(name, value, f"{_WRITTEN}; {each}")
    match request.profile:
        case Profile.Latency:
            why = "profile Latency: fewer share a step, the rest waits"
            return Choice(name, value, f"{why}; {each}", chosen=True)
        case Profile.Throughput:
            return Choice(name, value, f"profile Throughput doubles {_DEFAULT}; {each}")
    return Choice(name, value, f"{_DEFAULT}; {each}")
