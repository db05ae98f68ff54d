"""Why an engine pod does not serve: what Kubernetes and vLLM say, turned into cause and fix.

Decides which :class:`FailureReason` a container state, a log or a scheduler message amounts to, and
writes the two sentences an on-call engineer reads: what happened, and which field of the resource
to change. Called by :mod:`llmservice.core.health`. vLLM's exit codes say nothing (its API server
ends with 0 when the engine dies), so logs are matched against tables of its own messages: root
causes first, the earliest in the log wins, wrappers and symptoms only when no cause was found.
It refuses to know how states and logs are obtained, and what is done about a failure.

>>> diagnose_log("vllm: error: unrecognized arguments: --swap-space 4").reason
<FailureReason.InvalidEngineArgs: 'InvalidEngineArgs'>
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any

_MESSAGE_BYTES = 1024
_QUOTE_CHARACTERS = 400
# More than any tail that is asked for; keeps regular expressions cheap.
_LOG_CHARACTERS = 128 * 1024
# Once may be bad luck; a cause nobody knows that comes back is not going away.
_UNKNOWN_RESTARTS = 2


class FailureReason(StrEnum):
    """Reasons a pod of the newest revision does not serve, as they appear in conditions."""

    ImagePullFailed = "ImagePullFailed"  # the engine image cannot be pulled
    Unschedulable = "Unschedulable"  # no node can take the pod
    SecretMissing = "SecretMissing"  # a Secret, or its key, does not exist
    ContainerConfigInvalid = "ContainerConfigInvalid"  # the container cannot be created or run
    VolumeMountFailed = "VolumeMountFailed"  # a volume is missing or cannot be mounted
    OOMKilled = "OOMKilled"  # out of host memory
    CUDAOutOfMemory = "CUDAOutOfMemory"  # out of device memory while profiling or serving
    KVCacheTooSmall = "KVCacheTooSmall"  # not one request of maximum length fits the KV cache
    WeightsDoNotFit = "WeightsDoNotFit"  # the weights leave no memory for any KV cache
    GPUBusy = "GPUBusy"  # something else uses the memory of the same device
    InvalidEngineArgs = "InvalidEngineArgs"  # the command line was refused
    InvalidEngineConfig = "InvalidEngineConfig"  # the arguments contradict the model or each other
    ModelNotFound = "ModelNotFound"  # no such model, revision or path
    ModelAccessDenied = "ModelAccessDenied"  # the hub asks for another or any token
    ModelHubUnreachable = "ModelHubUnreachable"  # the hub did not answer
    MissingWeights = "MissingWeights"  # the model is there, its weight files are not or are broken
    DiskFull = "DiskFull"  # no space left where the model is stored
    NotEnoughGPUs = "NotEnoughGPUs"  # parallelism asks for more devices than the pod has
    NoAccelerator = "NoAccelerator"  # the engine sees no device it can use
    PortConflict = "PortConflict"  # the port is taken inside the pod
    EngineDied = "EngineDied"  # it served, or was about to, and ended
    StartupTimeout = "StartupTimeout"  # killed before it became ready
    CrashLoop = "CrashLoop"  # it ends again and again and nobody recognised why


@dataclass(frozen=True, slots=True)
class Failure:
    """One diagnosed failure."""

    reason: FailureReason
    message: str
    """What happened, one line, at most 1 KiB, no secrets."""
    fix: str
    """What to do, naming the field; one line, at most 1 KiB."""
    transient: bool
    """It may pass without anybody changing the resource."""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What the kubelet says about one container; the last end, if the container ever ended."""

    name: str
    ready: bool
    restart_count: int
    waiting_reason: str | None
    waiting_message: str | None
    terminated_reason: str | None
    exit_code: int | None
    terminated_message: str | None


@dataclass(frozen=True, slots=True)
class _Rule:
    """A pattern and what it means; texts are templates over the pattern's named groups."""

    reason: FailureReason
    pattern: re.Pattern[str]
    message: str
    fix: str
    transient: bool


@cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads(files("llmservice").joinpath("data", "failures.toml").read_text("utf-8"))


@cache
def _rules(name: str) -> tuple[_Rule, ...]:
    """One table of ``data/failures.toml``, in its order."""
    return tuple(
        _Rule(
            FailureReason(row["reason"]),
            re.compile(row["pattern"], re.MULTILINE),
            row["message"],
            row["fix"],
            row.get("transient", False),
        )
        for row in _table()[name]
    )


_IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_CONTAINER_REASONS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "ContainerCannotRun",
        "StartError",
        "PostStartHookError",
    }
)
_VOLUME_SCHEDULING = re.compile(
    r"persistentvolumeclaim \"(?P<claim>[^\"]+)\" (?:not found|is being deleted)"
    r"|unbound immediate PersistentVolumeClaims|volume node affinity conflict"
    r"|did(?:n't| not) find available persistent volumes|max volume count",
    re.IGNORECASE,
)


# --- diagnosis -----------------------------------------------------------------------------------


def diagnose_container(state: ContainerState, log: str | None) -> Failure | None:
    """Why a container does not serve; None while it serves or starts for the first time.

    Args:
        state: what the kubelet says about it.
        log: the last lines (200 at least) of the run that ended, if one did and they are known.

    """
    if state.ready:
        return None
    said = state.waiting_message or ""
    if state.waiting_reason in _IMAGE_REASONS:
        return _first("image", f"{said} {state.waiting_reason}", said or state.waiting_reason)
    if state.waiting_reason in _CONTAINER_REASONS:
        return _first("container", said, said or state.waiting_reason)
    if state.waiting_reason in ("ContainerCreating", "PodInitializing"):
        found = _first("container", said, said)
        return found if found and found.reason is FailureReason.VolumeMountFailed else None
    return _diagnose_end(state, log)


def _diagnose_end(state: ContainerState, log: str | None) -> Failure | None:
    """Why the last run ended; None when there was none."""
    if state.terminated_reason is None and not (log and state.restart_count):
        return None
    if state.terminated_reason == "OOMKilled":
        return _failure(
            FailureReason.OOMKilled,
            "the container was killed because it reached its memory limit (host memory, not the"
            " device's).",
            "Raise spec.engine.resources.limits.memory: loading buffers, multimodal caches,"
            " /dev/shm and spec.engine.kvOffloadingSize all count.",
        )
    last_words = state.terminated_message or ""
    if state.terminated_reason in _CONTAINER_REASONS:
        return _first("container", last_words, last_words or state.terminated_reason)
    if state.terminated_reason == "ContainerStatusUnknown":
        return _failure(
            FailureReason.EngineDied,
            "the node lost the container, most likely because it restarted.",
            "If it happens again, look at the node.",
            transient=True,
        )
    text = log or last_words
    return diagnose_log(text) or _unexplained(state, text)


def _unexplained(state: ContainerState, text: str) -> Failure:
    """An end that left no message this module knows."""
    code = state.exit_code
    served = _SERVED.search(text) is not None
    if code in _SIGNALS and text and not served:
        return _failure(
            FailureReason.StartupTimeout,
            f"the engine was still starting when it was killed (exit code {code}), most likely by"
            f" its startup probe{_last_error(text, ': its log says ')}.",
            "Raise spec.engine.startupTimeoutSeconds; to start faster, serve the model from a"
            " volume with spec.model.source.pvc.",
            transient=True,
        )
    if code in _SIGNALS and served:
        return _failure(
            FailureReason.EngineDied,
            f"the engine was killed while it served ({_SIGNALS[code]}, exit code {code}): by its"
            " liveness probe, or by the node.",
            "See the pod's events; if /health timed out, give the engine more CPU in"
            " spec.engine.resources, or less load.",
            transient=True,
        )
    if code == 0:
        return _failure(
            FailureReason.EngineDied,
            "the engine ended by itself with exit code 0, as it does when its core process dies.",
            "Read the log of the previous container; if it stops without an error, raise"
            " spec.engine.resources.limits.memory.",
            transient=True,
        )
    ended = f"ended with exit code {code}" if code is not None else "ended"
    silent = ", and its log names no error" if text else "; its log is not available"
    return _failure(
        FailureReason.CrashLoop,
        f"the engine {ended}{_last_error(text, ': ') or silent}",
        "Read the log of the previous container (kubectl logs --previous).",
        transient=state.restart_count <= _UNKNOWN_RESTARTS,
    )


def diagnose_log(log: str) -> Failure | None:
    """The root cause an engine's log names, or None when it names none that is known."""
    text = "\n".join(_error_lines(log))
    return _earliest("causes", text) or _earliest("symptoms", text)


def diagnose_scheduling(reason: str, message: str) -> Failure:
    """What the scheduler misses.

    Args:
        reason: reason of the pod's ``PodScheduled`` condition.
        message: its message, for instance
            ``0/3 nodes are available: 3 Insufficient nvidia.com/gpu.``

    """
    if reason == "SchedulingGated":
        return _failure(
            FailureReason.Unschedulable,
            "the pod is held back by a scheduling gate.",
            "Wait for the controller that owns the gate (a quota or queue system).",
            transient=True,
        )
    if volume := _VOLUME_SCHEDULING.search(message):
        claim = volume["claim"]
        what = f"the volume claim {claim} does not exist" if claim else _quoted(message)
        return _failure(
            FailureReason.VolumeMountFailed,
            f"no node can take the pod: {what}.",
            "Create the claim, or correct spec.model.source.pvc.claimName or spec.podTemplate.",
            transient=not claim,
        )
    nodes = re.match(r"0/(\d+) nodes are available", message)
    causes = list(_scheduling_causes(message)) if nodes else []
    said = "; ".join(f"{count} of {nodes[1]}: {what}" for count, what, _ in causes if nodes)
    fixes = list(dict.fromkeys(fix for _, _, fix in causes)) or ["see the events of the pod"]
    return _failure(
        FailureReason.Unschedulable,
        f"no node can take the pod ({said or _quoted(message) or 'the scheduler gives no cause'}).",
        f"{'' if len(fixes) == 1 else 'one of: '}{'; '.join(fixes)}.",
        transient=True,
    )


def _scheduling_causes(message: str) -> Iterator[tuple[str, str, str]]:
    """Nodes, what they lack and what to do, as counted by the scheduler."""
    # The rest is about preemption, which pods of equal priority cannot use.
    counted = re.split(r"\.? (?:no new claims|preemption:)", message.partition(": ")[2])[0]
    for count, cause in re.findall(r"(\d+) (.+?)(?:, (?=\d)|\.?$)", counted):
        for row in _table()["scheduling"]:
            if found := re.search(row["pattern"], cause):
                resource = found.groupdict().get("resource") or ""
                yield count, row["meaning"].format(resource=resource), row["fix"]
                break
        else:
            yield count, cause, "see the events of the pod"


# --- reading logs --------------------------------------------------------------------------------

# (EngineCore pid=32201) ERROR 11-21 12:39:40 [core.py:1510] text
_PREFIX = re.compile(
    r"^(?:\([^()\n]{0,80}pid=\d+[^()\n]{0,80}\) ?)?"
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d"
    r" \[[^\]\n]+\] ?)?"
)
_CALM = frozenset(("DEBUG", "INFO", "WARNING"))
# Those of uvicorn ("INFO:     Shutting down") and of glog ("W1121 12:39:31 ...") are calm as well.
_FRAME = re.compile(r'  File "|    ')
_OTHER_CALM = re.compile(r"(?:INFO|WARNING|DEBUG): {2,}|\[?[IW]\d{4} \d\d:")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning)\b.*")
_WRAPPER = re.compile(r"Engine core initialization failed|See root cause above|Warning")
# Only an engine that became ready writes these.
_SERVED = re.compile(r"Application startup complete|Avg prompt throughput|HTTP/1\.1\" \d{3}")
_SIGNALS: Mapping[int | None, str] = {137: "SIGKILL", 143: "SIGTERM"}
_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_***"),
    (re.compile(r"\bsk-[\w-]{8,}"), "sk-***"),
    (re.compile(r"(?i)\bbearer\s+[\w.~+/=-]+"), "Bearer ***"),
    (re.compile(r"(?i)(--(?:api|hf)[-_](?:key|token)[ =])\S+"), r"\1***"),
    (re.compile(r"://[^/\s:@]+:[^/\s@]+@"), "://***@"),
    (
        re.compile(
            r"(?i)((?:api[-_]?key|token|password|secret)s?['\"]?\s*[=:]\s*\[?['\"]?)[^\s'\",\]]+"
        ),
        r"\1***",
    ),
)


def _error_lines(log: str) -> Iterator[str]:
    """Lines that may tell a cause: prefixes taken off, calm levels left out."""
    for line in log[-_LOG_CHARACTERS:].splitlines():
        prefix = _PREFIX.match(line)
        if prefix is not None and prefix["level"] in _CALM:
            # Some warn of errors that did not happen ("... errors like `OSError: ...`").
            continue
        text = line[prefix.end() :] if prefix is not None else line
        # Frames of a traceback quote source code, which names errors that did not happen either.
        if not _OTHER_CALM.match(text) and not _FRAME.match(text):
            yield text


def last_meaningful_line(log: str) -> str:
    """The line of a log that says most about its end: the first exception, or the last words."""
    lines = [line.strip() for line in _error_lines(log) if line.strip()]
    exceptions = (line for line in lines if _EXCEPTION.match(line) and not _WRAPPER.search(line))
    return _quoted(next(exceptions, lines[-1] if lines else ""))


def _last_error(log: str, lead: str) -> str:
    line = last_meaningful_line(log)
    return f"{lead}{line}" if line else ""


def _earliest(table: str, text: str) -> Failure | None:
    """Of the rules that match, the one whose text comes first; of two, the first in the table."""
    found = [(match, rule) for rule in _rules(table) if (match := rule.pattern.search(text))]
    if not found:
        return None
    match, rule = min(found, key=lambda pair: pair[0].start())
    return _filled(rule, match, match[0])


def _first(table: str, text: str, said: str) -> Failure | None:
    """The first rule of the table that matches; ``said`` is quoted where it asks for it."""
    for rule in _rules(table):
        if match := rule.pattern.search(text):
            return _filled(rule, match, said)
    return None


def _filled(rule: _Rule, match: re.Match[str], said: str) -> Failure:
    groups = {name: _quoted(value or "") for name, value in match.groupdict().items()}
    values = {"said": _quoted(said), **groups}
    return _failure(
        rule.reason,
        rule.message.format_map(values),
        rule.fix.format_map(values),
        transient=rule.transient,
    )


def _failure(reason: FailureReason, message: str, fix: str, *, transient: bool = False) -> Failure:
    return Failure(reason, _bounded(message), _bounded(fix), transient)


def _quoted(text: str) -> str:
    """Foreign text on one line, without secrets, short enough to be read."""
    clean = redacted(" ".join(text[: 4 * _QUOTE_CHARACTERS].split()))
    return clean if len(clean) <= _QUOTE_CHARACTERS else f"{clean[:_QUOTE_CHARACTERS]}..."


def _bounded(text: str) -> str:
    clean = redacted(" ".join(text.split())).encode()[:_MESSAGE_BYTES]
    sentence = clean.decode(errors="ignore")
    return sentence if sentence.startswith("vLLM") else sentence[:1].upper() + sentence[1:]


def redacted(text: str) -> str:
    """Text without tokens, keys and passwords."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
