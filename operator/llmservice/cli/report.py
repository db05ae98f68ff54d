"""An LLMService's status in words: what is, what is wrong, what to do.

Pure text from the object as the API server returns it; :mod:`llmservice.cli.status` fetches and
prints. It judges nothing but when a service has settled, which follows kstatus: the operator has
seen the newest spec, and ``Ready`` is True with nothing under way, or ``Stalled`` is True.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

Service = Mapping[str, Any]

_INDENT = 11
# Conditions in the order in which they are read, with the words for True and for False.
_CONDITIONS = {
    "Ready": ("ready", "not ready"),
    "Available": ("answers requests", "answers no requests"),
    "Stalled": ("waits for a change by you", "not stalled"),
    "Reconciling": ("work is under way", "at rest"),
    "RolloutCapacity": ("rollout", "rollout"),
}
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


class Verdict(StrEnum):
    """Where a service stands, for an exit code."""

    Ready = "Ready"  # the newest spec serves with all its replicas
    Stalled = "Stalled"  # nothing but a change by a person helps
    Progressing = "Progressing"  # wait


def verdict(service: Service) -> Verdict:
    """Whether a service has settled."""
    if not is_current(service):
        return Verdict.Progressing
    true = {name for name, c in conditions(service).items() if c.get("status") == "True"}
    if "Stalled" in true:
        return Verdict.Stalled
    return Verdict.Ready if "Ready" in true and "Reconciling" not in true else Verdict.Progressing


def is_current(service: Service) -> bool:
    """Whether the operator has seen the newest spec."""
    observed = service.get("status", {}).get("observedGeneration")
    return bool(observed == service["metadata"].get("generation"))


def conditions(service: Service) -> dict[str, Mapping[str, Any]]:
    """Conditions by type."""
    return {c["type"]: c for c in service.get("status", {}).get("conditions", ())}


def summary(service: Service) -> str:
    """One line that changes when something worth telling changes.

    >>> summary({"metadata": {"name": "tiny", "generation": 1}})
    'tiny: Pending: no operator has looked at it yet'
    """
    name, status = service["metadata"]["name"], service.get("status", {})
    phase = status.get("phase", "Pending")
    if not status:
        return f"{name}: {phase}: no operator has looked at it yet"
    if not is_current(service):
        return f"{name}: {phase}: the operator has not looked at the newest spec yet"
    shown = conditions(service)
    telling = shown.get("Stalled") or shown.get("Ready", {})
    return f"{name}: {phase}: {telling.get('message', '')}"


def describe(service: Service, now: datetime) -> Iterator[str]:
    """Everything a person wants to know about one service, a line at a time."""
    spec, status = service["spec"], service.get("status", {})
    yield summary(service)
    yield _row("model", spec["model"]["id"])
    if url := status.get("url"):
        yield _row("url", url)
    wanted = spec.get("replicas", 1)
    yield _row("replicas", f"{status.get('readyReplicas', 0)} of {wanted} ready")
    yield from _rows("state", _condition_lines(service, now))
    yield from _rows("revisions", _revision_lines(status))
    yield from _rows("kv cache", _cache_lines(status.get("plan", {}), status.get("capacity", {})))
    yield from _rows("engine", _engine_lines(status.get("engine", {})))


def as_json(service: Service) -> dict[str, Any]:
    """The same for programs: verdict and status."""
    metadata = service["metadata"]
    return {
        "name": metadata["name"],
        "namespace": metadata.get("namespace"),
        "verdict": verdict(service),
        "current": is_current(service),
        "status": service.get("status", {}),
    }


def _condition_lines(service: Service, now: datetime) -> Iterator[str]:
    shown = conditions(service)
    for name in [*_CONDITIONS, *(other for other in shown if other not in _CONDITIONS)]:
        if condition := shown.get(name):
            yield _condition_line(name, condition, now)


def _condition_line(name: str, condition: Mapping[str, Any], now: datetime) -> str:
    if_true, if_false = _CONDITIONS.get(name, (name, f"not {name}"))
    words = if_true if condition.get("status") == "True" else if_false
    reason, since = condition.get("reason", ""), _age(condition.get("lastTransitionTime"), now)
    message = condition.get("message", "")
    return f"{words} ({', '.join(part for part in (reason, since) if part)}): {message}"


def _revision_lines(status: Mapping[str, Any]) -> Iterator[str]:
    for revision in status.get("revisions", ()):
        roles = [
            role
            for role, field in (("newest", "updatedRevision"), ("stable", "stableRevision"))
            if status.get(field) == revision["hash"]
        ]
        counts = f"{revision['readyReplicas']} of {revision['replicas']} ready"
        yield f"{revision['number']}. {revision['hash']} {counts}{_in_brackets(roles)}"


def _cache_lines(plan: Mapping[str, Any], capacity: Mapping[str, Any]) -> Iterator[str]:
    """At most one: what the engine has against what was planned, or the plan until it told."""
    if capacity:
        yield f"{_holds(capacity)}{_against_plan(plan, capacity)}"
    elif "kvCacheTokens" in plan:
        yield f"planned: {_holds(plan)}"


def _holds(cache: Mapping[str, Any]) -> str:
    tokens, requests = cache["kvCacheTokens"], cache["maxConcurrency"]
    return f"{tokens} tokens, or {requests} requests of the greatest length"


def _against_plan(plan: Mapping[str, Any], capacity: Mapping[str, Any]) -> str:
    off = capacity.get("deviationPercent")
    if off is None or "kvCacheTokens" not in plan:
        return ""
    if off == 0:
        return "; as planned"
    return f"; {abs(off)}% {'more' if off > 0 else 'less'} than planned: {plan['kvCacheTokens']}"


def _engine_lines(engine: Mapping[str, Any]) -> Iterator[str]:
    if not engine:
        return
    yield f"vLLM {engine['version']} ({engine['image']})"
    line = ""
    for argument in engine["arguments"]:
        if line and (argument.startswith("-") or not line.startswith("-")):
            yield line
            line = argument
        else:
            line = f"{line} {argument}".lstrip()
    yield line


def _in_brackets(words: list[str]) -> str:
    return f" ({', '.join(words)})" if words else ""


def _rows(head: str, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield _row(head, line)
        head = ""


def _row(head: str, text: str) -> str:
    return f"  {head:<{_INDENT}}{text}"


def _age(since: str | None, now: datetime) -> str:
    """Time since an RFC 3339 moment in its largest unit, for instance ``for 5m``."""
    if not since:
        return ""
    passed = max(timedelta(), now - datetime.fromisoformat(since))
    seconds = int(passed.total_seconds())
    unit, length = next((u for u in _UNITS if seconds >= u[1]), _UNITS[-1])
    return f"for {seconds // length}{unit}"
