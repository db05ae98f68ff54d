"""Typed knobs to ``vllm serve`` arguments, judged by the flag table of the engine's version.

One table, :data:`KNOBS`, says which flag each field of ``spec.engine`` becomes; whether a version
has the flag and which values it takes comes from :mod:`llmservice.core.flags`, which is generated
from vLLM's own wheels. A knob that the version lacks is refused here, before a pod spends minutes
on loading a model and dies of ``unrecognized arguments``.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmservice.api import names
from llmservice.api.rules import Violation
from llmservice.api.v1alpha1 import LLMServiceSpec, Parallelism
from llmservice.core import flags
from llmservice.core.extra_args import check_extra_args
from llmservice.core.planner.model import UnreadableConfigError
from llmservice.core.planner.outcome import Outcome
from llmservice.core.planning import plan_spec, running_spec
from llmservice.core.quantities import parse_bytes

MODELS_DIR = "/models"
"""Where a model volume is mounted in the engine container."""

# Probes would be nine tenths of the access log.
_QUIET_ENDPOINTS = "/health,/metrics"


@dataclass(frozen=True, slots=True)
class Knob:
    """One field of ``spec.engine`` (or of its ``parallelism``) and its flag."""

    field: str
    flag: str
    text: Callable[..., str] = str
    """How a value is written; a boolean becomes ``--flag`` or ``--no-flag`` instead."""

    @property
    def path(self) -> str:
        """The field as the user writes it."""
        head, *rest = self.field.split("_")
        return f"spec.engine.{head}{''.join(word.capitalize() for word in rest)}"


KNOBS: tuple[Knob, ...] = (
    Knob("dtype", "--dtype"),
    Knob("load_format", "--load-format"),
    Knob("quantization", "--quantization"),
    Knob("gpu_memory_utilization", "--gpu-memory-utilization"),
    Knob("kv_cache_memory_bytes", "--kv-cache-memory-bytes", lambda text: str(parse_bytes(text))),
    Knob("kv_cache_dtype", "--kv-cache-dtype"),
    Knob("kv_offloading_size", "--kv-offloading-size"),
    Knob("max_model_len", "--max-model-len"),
    Knob("max_num_seqs", "--max-num-seqs"),
    Knob("max_num_batched_tokens", "--max-num-batched-tokens"),
    Knob("max_num_queued_reqs", "--max-num-queued-reqs"),
    Knob("block_size", "--block-size"),
    Knob("prefix_caching", "--enable-prefix-caching"),
    Knob("chunked_prefill", "--enable-chunked-prefill"),
    Knob("enforce_eager", "--enforce-eager"),
    Knob("performance_mode", "--performance-mode"),
    Knob("scheduling_policy", "--scheduling-policy"),
    Knob("tool_call_parser", "--tool-call-parser"),
    Knob("reasoning_parser", "--reasoning-parser"),
)

_PARALLEL_FLAGS = {
    "tensor": "--tensor-parallel-size",
    "pipeline": "--pipeline-parallel-size",
    "data": "--data-parallel-size",
    "expert": "--enable-expert-parallel",
}

RESERVED_FLAGS: dict[str, str] = {
    **{knob.flag: knob.path for knob in KNOBS},
    **{flag: f"spec.engine.parallelism.{field}" for field, flag in _PARALLEL_FLAGS.items()},
    "--enable-auto-tool-choice": "spec.engine.toolCallParser",
    "--model": "spec.model.id",
    "--revision": "spec.model.revision",
    "--served-model-name": "spec.model.servedName",
    "--hf-token": "spec.model.source.hub.tokenSecretRef",
    "--host": "spec.service.port",
    "--port": "spec.service.port",
    "--shutdown-timeout": "spec.engine.drainTimeoutSeconds",
    "--disable-access-log-for-endpoints": "the operator sets it",
    "--config": "use the fields of spec.engine: what a file says cannot be checked",
    "--api-key": "spec.engine.env (VLLM_API_KEY with valueFrom.secretKeyRef)",
}
"""Canonical flag -> the field that owns it; ``extraArgs`` may not carry these."""


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What the engine container is started with."""

    arguments: tuple[str, ...]
    """After ``vllm serve``: the model, then flags."""
    version: str
    """vLLM minor version whose flag table was used."""
    spec: LLMServiceSpec
    """What runs: the user's spec with what the memory plan and the profile chose."""
    memory: Outcome
    """The memory plan."""
    note: str | None = None
    """Something the user should know, for instance that the version is newer than our tables."""


@dataclass(frozen=True, slots=True)
class InvalidEngine:
    """The engine cannot be started like this; every problem at once."""

    violations: tuple[Violation, ...]


def device_count(spec: LLMServiceSpec) -> int:
    """Devices of one replica of a spec that runs."""
    ranks = spec.engine.parallelism or Parallelism()
    return spec.accelerator.count or (ranks.tensor or 1) * ranks.pipeline * ranks.data


def model_path(spec: LLMServiceSpec) -> str:
    """What ``vllm serve`` is given as the model: a hub id or a path in the container."""
    source = spec.model.source
    if source is None or source.pvc is None:
        return spec.model.id
    return f"{MODELS_DIR}/{source.pvc.path}" if source.pvc.path else MODELS_DIR


def served_name(service: str, spec: LLMServiceSpec) -> str:
    """The public model name, the same across revisions."""
    return spec.model.served_name or service


def plan_engine(service: str, spec: LLMServiceSpec) -> EnginePlan | InvalidEngine:
    """The arguments of ``vllm serve`` for this spec, or all that is wrong with it."""
    version = flags.resolve_version(spec.engine.version, spec.engine.image)
    if isinstance(version, flags.UnsupportedVersion):
        return InvalidEngine((Violation(flags.VERSION_FIELD, version.message),))
    table = flags.flag_table(version.minor)
    violations = [
        *_unavailable_knobs(spec, table, version.minor),
        *(
            Violation(problem.field, problem.message)
            for problem in check_extra_args(spec.engine.extra_args, version.minor, _reserved(spec))
        ),
    ]
    if violations:
        return InvalidEngine(tuple(violations))
    try:
        memory = plan_spec(spec, version.minor)
    except UnreadableConfigError as error:
        return InvalidEngine((Violation("spec.model.architecture", str(error)),))
    runs = running_spec(spec, memory, version.minor)
    arguments = tuple(_arguments(service, runs))
    return EnginePlan(arguments, version.minor, runs, memory, version.note)


def _reserved(spec: LLMServiceSpec) -> dict[str, str]:
    if spec.engine.speculative is None:
        return RESERVED_FLAGS
    return {**RESERVED_FLAGS, "--speculative-config": "spec.engine.speculative"}


def _unavailable_knobs(
    spec: LLMServiceSpec, table: flags.FlagTable, minor: str
) -> Iterator[Violation]:
    for knob in KNOBS:
        value = getattr(spec.engine, knob.field)
        if value is None:
            continue
        flag = table.get(knob.flag)
        if flag is None:
            yield Violation(
                knob.path,
                f"vLLM {minor} has no {knob.flag}: remove the field, or use an image of a version"
                f" that has it ({', '.join(flags.versions_with(knob.flag)) or 'none supported'})",
            )
        elif flag.choices and isinstance(value, str) and value not in flag.choices:
            yield Violation(
                knob.path,
                f"{value!r} is not known to vLLM {minor}: choose one of {', '.join(flag.choices)}",
            )


def _arguments(service: str, spec: LLMServiceSpec) -> Iterator[str]:
    yield model_path(spec)
    yield from ("--served-model-name", served_name(service, spec))
    yield from ("--port", str(names.ENGINE_PORT))
    if spec.model.revision:
        yield from ("--revision", spec.model.revision)
    ranks = spec.engine.parallelism or Parallelism()
    for field in ("tensor", "pipeline", "data"):
        if (getattr(ranks, field) or 1) > 1:
            yield from (_PARALLEL_FLAGS[field], str(getattr(ranks, field)))
    if ranks.expert:
        yield _PARALLEL_FLAGS["expert"]
    for knob in KNOBS:
        yield from _knob_arguments(knob, getattr(spec.engine, knob.field))
    if spec.engine.speculative is not None:
        config = spec.engine.speculative.model_dump(exclude_none=True)
        yield from ("--speculative-config", json.dumps(config, separators=(",", ":")))
    # Without it vLLM cuts running streams, or hangs on them, when it is told to stop.
    yield from ("--shutdown-timeout", str(spec.engine.drain_timeout_seconds))
    yield from ("--disable-access-log-for-endpoints", _QUIET_ENDPOINTS)
    yield from spec.engine.extra_args


def _knob_arguments(knob: Knob, value: object) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, bool):
        yield knob.flag if value else f"--no-{knob.flag.removeprefix('--')}"
        return
    if knob.field == "tool_call_parser":
        yield "--enable-auto-tool-choice"
    yield from (knob.flag, knob.text(value))
