"""The plan itself: choose what was left open, judge what was written, and say why.

A verdict is careful in both directions. "Fits" means that it fits even if the overhead is at the
high end of its range; infeasible, that it does not fit even at the low end. Between them a plan is
marginal: nothing is blocked, and the plan says what would make it safe.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from llmservice.core.planner import rationale
from llmservice.core.planner.defaults import Defaults, engine_defaults, unloadable
from llmservice.core.planner.devices import Device
from llmservice.core.planner.kv_cache import (
    CacheSettings,
    Pool,
    UnknownCacheDtypeError,
    build_pool,
    bytes_per_token,
)
from llmservice.core.planner.model import Attention, LayerKind
from llmservice.core.planner.outcome import (
    Infeasible,
    Knobs,
    Memory,
    Outcome,
    Plan,
    Profile,
    Reason,
    Request,
    Unplanned,
    Verdict,
)
from llmservice.core.planner.overhead import Load, Range, overhead
from llmservice.core.planner.weights import (
    Ranks,
    UnknownQuantizationError,
    quantization_of,
    weights_of,
)

LATENCY_SEQUENCES = 64
"""Sequences of profile Latency."""
_MAX_TENSOR = 64
_USEFUL_LENGTH = 16_384
"""Devices are scarce: a request this long on fewer of them is better than the model's own."""
_LENGTH_STEP = 1024
_HIGH_SHARE = 0.95


@lru_cache(maxsize=1024)
def plan(request: Request) -> Outcome:
    """Plan one replica."""
    try:
        return _Planner(request).outcome()
    except (UnknownCacheDtypeError, UnknownQuantizationError) as error:
        return Unplanned(str(error))


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One set of ranks and one greatest length."""

    ranks: Ranks
    knobs: Knobs
    settings: CacheSettings
    pool: Pool
    memory: Memory

    @property
    def verdict(self) -> Verdict | None:
        """None where it will not start."""
        need, given = self.pool.request_bytes(), self.memory.kv_cache
        if given.high < need or self.memory.spare.high < 0:
            return None
        safe = given.low >= need and self.memory.spare.low >= 0
        return Verdict.Fits if safe else Verdict.Marginal

    def length_that_fits(self) -> int:
        """The greatest length that is sure to fit, in whole steps; 0 for none."""
        return self._longest(self.memory.kv_cache.low) if self.memory.spare.low >= 0 else 0

    def length_that_may(self) -> int:
        """The greatest length that fits if the overhead is as expected, or lower; 0 for none."""
        if self.memory.spare.high < 0:
            return 0
        room = self.memory.kv_cache
        return self._longest(room.expected) or self._longest(room.high)

    def _longest(self, available: int) -> int:
        longest = self.pool.longest_request(available)
        return longest if longest < _LENGTH_STEP else longest // _LENGTH_STEP * _LENGTH_STEP


class _Planner:
    """One request, tried with different ranks and lengths."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.shape = request.model.shape
        self.quantization = quantization_of(
            self.shape, request.quantization or request.model.quantization
        )
        self.limit = request.max_model_len or self.shape.max_length

    # --- choosing -----------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        if refused := unloadable(self.quantization.name, self.request.version):
            return Infeasible(Reason.UnsupportedQuantization, refused)
        candidates = self.tensors()
        if isinstance(candidates, Infeasible):
            return candidates
        tried: list[_Attempt] = []
        for tensor in candidates:
            attempt = self.attempt(tensor, self.limit)
            if attempt.verdict is Verdict.Fits:
                return self.accept(attempt, Verdict.Fits)
            if self.request.max_model_len is None:
                length = attempt.length_that_fits()
                if length >= min(_USEFUL_LENGTH, self.limit):
                    return self.shorter(attempt, length)
            tried.append(attempt)
        return self.nearest(tried)

    def nearest(self, tried: list[_Attempt]) -> Outcome:
        """Nothing is sure to fit: take what may, else say what would."""
        for attempt in tried:
            if attempt.verdict is Verdict.Marginal:
                return self.accept(attempt, Verdict.Marginal)
        last = tried[-1]
        if self.request.max_model_len is None:
            if length := last.length_that_fits():
                return self.shorter(last, length)
            if (length := last.length_that_may()) >= _LENGTH_STEP:
                may = self.attempt(last.ranks.tensor, length)
                return self.accept(may, may.verdict or Verdict.Marginal)
        reason = Reason.KVCacheTooSmall
        if last.memory.kv_cache.high <= 0:
            reason = Reason.WeightsDoNotFit
        need = last.pool.request_bytes()
        text = rationale.refusal(self.request, reason, last.knobs, last.memory, need)
        advice = ", or ".join(self.remedies(last)) or "use larger or more devices"
        return Infeasible(reason, f"{text}: {advice}", last.memory)

    def tensors(self) -> list[int] | Infeasible:
        """Tensor parallel sizes to try, in order."""
        request, heads = self.request, self.shape.heads
        if self.shape.layers < request.pipeline:
            return Infeasible(
                Reason.InvalidParallelism,
                f"{request.pipeline} pipeline stages are more than the model's {self.shape.layers}"
                f" layers: set parallelism.pipeline to at most {self.shape.layers}",
            )
        tensor = request.tensor
        if tensor is None and request.devices is not None:
            tensor = max(1, request.devices // (request.pipeline * request.data))
        if tensor is None:
            alone = request.device is None or request.device.is_slice
            sizes = [1] if alone else [1 << n for n in range(_MAX_TENSOR.bit_length())]
            return [size for size in sizes if heads % size == 0]
        if heads % tensor:
            near = " or ".join(map(str, _nearest_divisors(heads, tensor)))
            return Infeasible(
                Reason.InvalidParallelism,
                f"tensor parallelism of {tensor} does not divide the model's {heads} attention"
                f" heads: set parallelism.tensor to {near}",
            )
        return [tensor]

    def remedies(self, attempt: _Attempt) -> Iterator[str]:
        """Single changes that make it fit, the smallest first."""
        request = self.request
        if length := attempt.length_that_fits():
            yield f"set maxModelLen to at most {length}"
        changes: list[tuple[str, dict[str, Any]]] = []
        if request.kv_cache_memory_bytes is None:
            changes.append(
                (
                    f"set gpuMemoryUtilization to {_HIGH_SHARE}",
                    {"gpu_memory_utilization": _HIGH_SHARE},
                )
            )
        if attempt.knobs.max_num_seqs > LATENCY_SEQUENCES:
            changes.append(
                (f"set maxNumSeqs to {LATENCY_SEQUENCES}", {"max_num_seqs": LATENCY_SEQUENCES})
            )
        if request.kv_cache_dtype == "auto" and request.device and request.device.fp8:
            changes.append(("set kvCacheDtype to fp8", {"kv_cache_dtype": "fp8"}))
        for text, change in changes:
            other = _Planner(replace(request, **change))
            if other.attempt(attempt.ranks.tensor, self.limit).verdict is Verdict.Fits:
                yield text
        if request.device is not None and (request.tensor or request.devices):
            wider = plan(replace(request, tensor=None, devices=None))
            if isinstance(wider, Plan) and wider.knobs.tensor > attempt.ranks.tensor:
                field = "parallelism.tensor" if request.tensor else "accelerator.count"
                others = 1 if request.tensor else request.pipeline * request.data
                yield f"set {field} to {wider.knobs.tensor * others}"

    # --- judging ------------------------------------------------------------------------------

    def attempt(self, tensor: int, length: int) -> _Attempt:
        request = self.request
        ranks = Ranks(tensor, request.pipeline, request.data, request.expert)
        throughput = request.profile is Profile.Throughput
        defaults = engine_defaults(request.device, ranks, request.version, throughput=throughput)
        knobs = self.knobs(ranks, length, defaults)
        settings = self.settings(knobs, defaults)
        pool = build_pool(self.shape, settings, self.draft_layers())
        return _Attempt(ranks, knobs, settings, pool, self.memory(ranks, knobs))

    def knobs(self, ranks: Ranks, length: int, defaults: Defaults) -> Knobs:
        """What vLLM makes of the request: tokens bound sequences, and the other way round."""
        request = self.request
        sequences = request.max_num_seqs
        if sequences is None and request.profile is Profile.Latency:
            sequences = min(LATENCY_SEQUENCES, defaults.max_num_seqs)
        sequences = sequences or defaults.max_num_seqs
        tokens = request.max_num_batched_tokens or min(
            max(defaults.max_num_batched_tokens, sequences), sequences * length
        )
        share = request.gpu_memory_utilization or defaults.gpu_memory_utilization
        return Knobs(
            tensor=ranks.tensor,
            pipeline=ranks.pipeline,
            data=ranks.data,
            max_model_len=length,
            max_num_seqs=min(sequences, tokens),
            max_num_batched_tokens=tokens,
            gpu_memory_utilization=share,
            kv_cache_dtype=request.kv_cache_dtype,
        )

    def settings(self, knobs: Knobs, defaults: Defaults) -> CacheSettings:
        request = self.request
        return CacheSettings(
            max_length=knobs.max_model_len,
            batched_tokens=knobs.max_num_batched_tokens,
            block_size=request.block_size or defaults.block_size,
            dtype=request.kv_cache_dtype,
            tensor=knobs.tensor,
            pipeline=knobs.pipeline,
            context=request.context,
            batches_in_flight=request.batches_in_flight or defaults.batches_in_flight,
            prefix_caching=request.prefix_caching,
            speculative_tokens=request.speculation.tokens if request.speculation else 0,
            hybrid=request.hybrid,
        )

    def memory(self, ranks: Ranks, knobs: Knobs) -> Memory:
        request, device = self.request, self.request.device
        weights = max(0, self.weights(ranks) - request.cpu_offload)
        load = Load(knobs.max_num_seqs, knobs.max_num_batched_tokens, request.enforce_eager)
        # A CPU's overhead is host memory, which Kubernetes bounds, not the engine.
        somewhere = device or Device("CPU", 0)
        beside = overhead(self.shape, somewhere, ranks, load, request.version)
        given, span = request.kv_cache_memory_bytes, beside.total
        if device is None:
            kv_cache, spare = Range.exactly(given or 0), Range.exactly(0)
            return Memory(None, None, weights, beside, kv_cache, spare)
        if given is not None:
            spare = span.left_of(device.memory - weights - given)
            return Memory(device.memory, None, weights, beside, Range.exactly(given), spare)
        budget = int(device.memory * knobs.gpu_memory_utilization)
        outside = device.memory - budget
        kv_cache = span.left_of(budget - weights)
        spare = Range(outside - beside.outside, outside, outside)
        return Memory(device.memory, budget, weights, beside, kv_cache, spare)

    def weights(self, ranks: Ranks) -> int:
        weights = weights_of(self.request.model, ranks, self.quantization)
        speculation = self.request.speculation
        if speculation is not None and speculation.draft is not None:
            weights += weights_of(speculation.draft, ranks)
        return weights

    def draft_layers(self) -> tuple[LayerKind, ...]:
        """Layers that a draft adds to the cache; a head has one like the target's."""
        speculation = self.request.speculation
        if speculation is None or "ngram" in speculation.method:
            return ()
        if speculation.draft is not None:
            return speculation.draft.shape.kinds
        full = next(
            (
                kind
                for kind in self.shape.kinds
                if not (isinstance(kind, Attention) and (kind.window or kind.chunk))
            ),
            self.shape.kinds[0],
        )
        layers = self.shape.draft_layers if speculation.method == "mtp" else 1
        return (replace(full, layers=max(1, layers)),)

    # --- accepting ----------------------------------------------------------------------------

    def shorter(self, attempt: _Attempt, length: int) -> Plan:
        """The same with a greatest length that is sure to fit."""
        return self.accept(self.attempt(attempt.ranks.tensor, length), Verdict.Fits)

    def accept(self, attempt: _Attempt, verdict: Verdict) -> Plan:
        capacity = attempt.pool.capacity(attempt.memory.kv_cache.expected).times(attempt.knobs.data)
        growth = bytes_per_token(self.shape, attempt.settings)
        knobs, memory = attempt.knobs, attempt.memory
        message = rationale.summary(self.request, knobs, memory, capacity)
        if verdict is Verdict.Marginal:
            need, safe = attempt.pool.request_bytes(), attempt.length_that_fits()
            message += rationale.warning(memory, need, safe)
        if knobs.max_model_len > self.shape.max_length:
            verdict, message = Verdict.Marginal, message + rationale.too_long(self.request)
        return Plan(
            verdict=verdict,
            knobs=knobs,
            memory=memory,
            bytes_per_token=growth,
            capacity=capacity,
            pool=attempt.pool,
            choices=rationale.choices(self.request, knobs, capacity, growth, self.quantization),
            message=message,
        )


def _nearest_divisors(number: int, to: int) -> list[int]:
    divisors = [size for size in range(1, number + 1) if number % size == 0]
    below = max(size for size in divisors if size <= to)
    return sorted({below, min((size for size in divisors if size > to), default=below)})
