"""From a spec to a memory plan, and back: what the planner chose, written into the spec that runs.

:mod:`llmservice.core.planner` knows models, devices and vLLM; this module knows which field of the
resource is which of its questions. Called by :mod:`llmservice.core.engine`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmservice.api.v1alpha1 import CPU_RESOURCE, EngineSpec, LLMServiceSpec, Parallelism
from llmservice.core.extra_args import flag_values
from llmservice.core.flags import flag_table, version_order
from llmservice.core.planner.catalog import KnownModel, find_model, model_from_config
from llmservice.core.planner.devices import Device, find_device
from llmservice.core.planner.model import MAX_VALUE
from llmservice.core.planner.outcome import (
    Infeasible,
    Outcome,
    Plan,
    Profile,
    Request,
    Speculation,
    Unplanned,
    Verdict,
)
from llmservice.core.planner.plan import LATENCY_SEQUENCES, plan
from llmservice.core.planner.rationale import gib
from llmservice.core.planner.weights import Ranks, UnknownQuantizationError, weights_of
from llmservice.core.quantities import parse_bytes

_GIB = 1 << 30
_VISIBLE_SHARE = 0.98
"""Of what nvidia-smi reports, torch sees so much: 22.07 of 22.49 GiB on an A10G."""
_PERFORMANCE_MODES = {"Throughput": "throughput", "Latency": "interactivity"}


def plan_spec(spec: LLMServiceSpec, minor: str) -> Outcome:
    """The memory plan of one replica.

    Raises:
        UnreadableConfigError: ``spec.model.architecture`` does not describe a model.
    """
    request = plan_request(spec, minor)
    return request if isinstance(request, Unplanned) else plan(request)


def plan_request(spec: LLMServiceSpec, minor: str) -> Request | Unplanned:
    """The planner's question that a spec asks.

    Raises:
        UnreadableConfigError: ``spec.model.architecture`` does not describe a model.
    """
    model = find_spec_model(spec)
    if model is None:
        return Unplanned(
            f"the catalog has no {spec.model.id}: write the facts of its config.json into"
            " spec.model.architecture, and it is planned"
        )
    device = find_spec_device(spec)
    if device is None and spec.accelerator.resource != CPU_RESOURCE:
        return _without_device(model)
    engine, ranks = spec.engine, spec.engine.parallelism or Parallelism()
    extra = flag_values(engine.extra_args, minor)
    major_minor = version_order(minor)
    request = Request(
        model=model,
        device=device,
        version=(major_minor[0], major_minor[1]),
        tensor=ranks.tensor,
        pipeline=ranks.pipeline,
        data=ranks.data,
        expert=ranks.expert,
        devices=spec.accelerator.count,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_dtype=engine.kv_cache_dtype or "auto",
        block_size=engine.block_size,
        quantization=engine.quantization,
        prefix_caching=engine.prefix_caching is not False,
        enforce_eager=bool(engine.enforce_eager),
        profile=_profile(engine),
        speculation=_speculation(spec, extra),
        context=_whole(extra.get("--decode-context-parallel-size"), 1),
        hybrid=extra.get("--disable-hybrid-kv-cache-manager") != "true",
        cpu_offload=_whole(extra.get("--cpu-offload-gb"), 0) * _GIB,
    )
    if engine.kv_cache_memory_bytes is not None:
        given = parse_bytes(engine.kv_cache_memory_bytes)
        request = replace(request, kv_cache_memory_bytes=given)
    if extra.get("--async-scheduling") == "false":
        request = replace(request, batches_in_flight=ranks.pipeline)
    return request


def find_spec_model(spec: LLMServiceSpec) -> KnownModel | None:
    """The model of the spec: its own words first, then the catalog."""
    if spec.model.architecture is not None:
        return model_from_config(spec.model.id, spec.model.architecture)
    return find_model(spec.model.id)


def find_spec_device(spec: LLMServiceSpec) -> Device | None:
    """The device of the spec, or None for a CPU and for one that is not known."""
    accelerator = spec.accelerator
    if accelerator.resource == CPU_RESOURCE:
        return None
    known = find_device(accelerator.product) if accelerator.product else None
    if accelerator.memory is None:
        return known
    memory = int(parse_bytes(accelerator.memory) * _VISIBLE_SHARE)
    if known is not None:
        # A slice has less than its product; more is what the data sheet says, not what there is.
        return replace(known, memory=min(memory, known.memory))
    return Device(accelerator.product or f"{gib(memory)} device", min(memory, MAX_VALUE))


def running_spec(spec: LLMServiceSpec, outcome: Outcome, minor: str) -> LLMServiceSpec:
    """The spec with what the planner and the profile chose for fields that the user left out."""
    ranks, engine = spec.engine.parallelism or Parallelism(), spec.engine
    others = ranks.pipeline * ranks.data
    tensor = ranks.tensor or max(1, (spec.accelerator.count or 1) // others)
    changes: dict[str, Any] = {}
    if isinstance(outcome, Plan):
        tensor = outcome.knobs.tensor
        if engine.max_model_len is None and any(
            choice.knob == "maxModelLen" and choice.chosen for choice in outcome.choices
        ):
            changes["max_model_len"] = outcome.knobs.max_model_len
    if engine.profile == "Latency" and engine.max_num_seqs is None:
        changes["max_num_seqs"] = min(
            LATENCY_SEQUENCES, engine.max_num_batched_tokens or LATENCY_SEQUENCES
        )
    mode = _PERFORMANCE_MODES.get(engine.profile)
    if mode and engine.performance_mode is None and "--performance-mode" in flag_table(minor):
        changes["performance_mode"] = mode
    changes["parallelism"] = ranks.model_copy(update={"tensor": tensor})
    return spec.model_copy(update={"engine": engine.model_copy(update=changes)})


def plan_status(outcome: Outcome) -> dict[str, Any]:
    """``status.plan``."""
    match outcome:
        case Infeasible():
            return {"outcome": "InfeasiblePlan", "message": outcome.message}
        case Unplanned():
            return {"outcome": "PlanUnknown", "message": outcome.message}
    return {
        "outcome": "Fits" if outcome.verdict is Verdict.Fits else "Marginal",
        "message": outcome.message,
        "tensor": outcome.knobs.tensor,
        "maxModelLen": outcome.knobs.max_model_len,
        "maxNumSeqs": outcome.knobs.max_num_seqs,
        "weightsPerDevice": gib(outcome.memory.weights),
        "kvCachePerDevice": gib(outcome.memory.kv_cache.expected),
        "kvCacheTokens": outcome.capacity.tokens,
        "maxConcurrency": f"{outcome.capacity.concurrency:.2f}",
    }


def _without_device(model: KnownModel) -> Unplanned:
    try:
        weights = weights_of(model, Ranks())
    except UnknownQuantizationError as error:
        return Unplanned(str(error))
    return Unplanned(
        f"{model.id} has {gib(weights)} of weights; whether they fit is not known without the"
        " device: set spec.accelerator.product to a known one, or spec.accelerator.memory"
    )


def _profile(engine: EngineSpec) -> Profile:
    """The profile whose defaults apply: a mode that is written outranks that of the profile."""
    profile = Profile(engine.profile)
    if profile is Profile.Latency or engine.performance_mode is None:
        return profile
    doubles = engine.performance_mode == _PERFORMANCE_MODES["Throughput"]
    return Profile.Throughput if doubles else Profile.Balanced


def _speculation(spec: LLMServiceSpec, extra: Mapping[str, str]) -> Speculation | None:
    speculative = spec.engine.speculative
    if speculative is not None:
        draft = find_model(speculative.model) if speculative.model else None
        return Speculation(speculative.method, speculative.num_speculative_tokens, draft)
    try:
        config = json.loads(extra.get("--speculative-config", "null"))
        return Speculation(
            str(config["method"]),
            int(config["num_speculative_tokens"]),
            find_model(str(config.get("model", "/"))),
        )
    except (ValueError, TypeError, KeyError):
        return None


def _whole(text: str | None, default: int) -> int:
    try:
        return min(MAX_VALUE, max(default, int(float(text)))) if text else default
    except (ValueError, OverflowError):
        return default
