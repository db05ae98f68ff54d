"""An LLMService's status in words: what is, what is wrong, what to do.

Pure text from the object as the API server returns it; :mod:`llmservice.cli.status` fetches and
prints. It judges nothing but when a service has settled, which follows kstatus: the operator has
seen the newest spec, and ``Ready`` is True with nothing under way, or ``Stalled`` is True.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from llmservice.core.canary.state import AT_REST, Hold, Phase

Service = Mapping[str, Any]

_INDENT = 11
# Conditions in the order in which they are read, with the words for True and for False.
_CONDITIONS = {
    "Ready": ("ready", "not ready"),
    "Available": ("answers requests", "answers no requests"),
    "Stalled": ("waits for a change by you", "not stalled"),
    "Reconciling": ("work is under way", "at rest"),
    "RolloutCapacity": ("rollout", "rollout"),
    "AutoscalingReady": ("autoscaler decides", "autoscaler does not decide"),
}
_HOLDS = {
    Hold.Inconclusive: "more requests of the canary; `llmservice promote {name}` does without",
    Hold.MetricsUnavailable: "metrics of the engines",
    Hold.NoTraffic: "requests, as nobody asks the canary",
    Hold.CapacityWait: "a free device",
    Hold.RouterNotReady: "the routers",
    Hold.StableNotReady: "a ready pod of the stable revision",
    Hold.GateWait: "a gate; `llmservice promote {name}` does without",
    Hold.RolloutQueue: "rollouts of other services",
}
_STAGES = ("schedule", "pull", "load")
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
    if _is_moving(service):
        rollout = status["rollout"]
        return f"{_headline(service)}: {rollout.get('message', '')}"
    shown = conditions(service)
    telling = shown.get("Stalled") or shown.get("Ready", {})
    return f"{name}: {phase}: {telling.get('message', '')}"


def news(service: Service) -> Sequence[str]:
    """What a new line is worth: the summary, without the numbers of a rollout's evidence."""
    if not is_current(service) or not _is_moving(service):
        return (summary(service),)
    rollout = service["status"]["rollout"]
    verdicts = [f"{check['verdict']} {check['check']}" for check in rollout.get("checks", ())]
    return (_headline(service), rollout.get("reason", ""), *verdicts)


def evidence(service: Service) -> Iterator[str]:
    """What the guardrails say of a rollout that is under way, and what it waits for."""
    if is_current(service) and _is_moving(service):
        yield from _check_lines(service)
        yield from _wait_lines(service)


def place(rollout: Mapping[str, Any]) -> str:
    """Where a rollout is, for instance ``step 2 of 3 (25% of the requests)``."""
    step, steps, weight = rollout.get("step", 0), rollout.get("steps", 0), rollout.get("weight", 0)
    where = f"step {step} of {steps}" if 0 < step <= steps else "the end" if step else "the start"
    return f"{where} ({weight}% of the requests)"


def describe(service: Service, now: datetime) -> Iterator[str]:
    """Everything a person wants to know about one service, a line at a time."""
    spec, status = service["spec"], service.get("status", {})
    yield summary(service)
    yield _row("model", spec["model"]["id"])
    if url := status.get("url"):
        yield _row("url", url)
    sized = status.get("autoscaling", {})
    wanted = sized.get("replicas", spec.get("replicas", 1))
    yield _row("replicas", f"{status.get('readyReplicas', 0)} of {wanted} ready")
    yield from _rows("scaling", _autoscaling_lines(sized, status.get("coldStart", {})))
    yield from _rows("state", _condition_lines(service, now))
    yield from _rows("rollout", _rollout_lines(service, now))
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


def _is_moving(service: Service) -> bool:
    """Whether a rollout is what matters: nothing worse is to be told."""
    phase = (service.get("status", {}).get("rollout") or {}).get("phase", Phase.Stable)
    shown = conditions(service)
    serves = shown.get("Ready", {}).get("status") == "True" and "Stalled" not in shown
    return phase not in AT_REST and serves


def _headline(service: Service) -> str:
    status = service["status"]
    rollout, phase = status["rollout"], status.get("phase", "Pending")
    return f"{service['metadata']['name']}: {phase}: {rollout['phase']}, {place(rollout)}"


def _rollout_lines(service: Service, now: datetime) -> Iterator[str]:
    rollout = service.get("status", {}).get("rollout") or {}
    if rollout.get("phase", Phase.Stable) == Phase.Stable:
        return
    why = [rollout.get("reason", ""), _age(rollout.get("since"), now)]
    message = rollout.get("message", "")
    yield f"{rollout['phase']}{_in_brackets([part for part in why if part])}: {message}"
    if canary := rollout.get("canaryRevision"):
        judged = rollout.get("canaryRequests")
        requests = "" if judged is None else f"; {judged} requests judged"
        yield f"{place(rollout)} for {canary}{requests}"
    yield from _check_lines(service)
    yield from _wait_lines(service)


def _check_lines(service: Service) -> Iterator[str]:
    for check in service["status"]["rollout"].get("checks", ()):
        label, message = check["check"], check["message"]
        said = message if message.startswith(label) else f"{label}: {message}"
        yield f"{check['verdict']}: {said}"


def _wait_lines(service: Service) -> Iterator[str]:
    """At most one: what must happen for it to go on."""
    name, rollout = service["metadata"]["name"], service["status"]["rollout"]
    if rollout["phase"] == Phase.Paused:
        yield (
            f"waits for you: `llmservice resume {name}` goes on, `llmservice abort {name}` takes"
            " the requests back"
        )
    elif rollout["phase"] == Phase.Aborted:
        yield f"waits for a change of the spec, or `llmservice retry {name}`"
    elif hold := _HOLDS.get(rollout.get("reason", "")):
        yield f"waits for {hold.format(name=name)}"


def _revision_lines(status: Mapping[str, Any]) -> Iterator[str]:
    rollout = status.get("rollout") or {}
    for revision in status.get("revisions", ()):
        roles = [
            role
            for role, found in (
                ("newest", status.get("updatedRevision")),
                ("stable", status.get("stableRevision")),
                ("canary", rollout.get("canaryRevision")),
            )
            if found == revision["hash"]
        ]
        counts = f"{revision['readyReplicas']} of {revision['replicas']} ready"
        yield f"{revision['number']}. {revision['hash']} {counts}{_in_brackets(roles)}"


def _autoscaling_lines(sized: Mapping[str, Any], cold: Mapping[str, Any]) -> Iterator[str]:
    if sized:
        kept = "" if "revision" in sized else "; kept while revisions change places"
        yield f"{sized['minReplicas']} to {sized['maxReplicas']} replicas{kept}"
        if said := sized.get("message"):
            yield said
    if cold:
        stages = ", ".join(f"{each} {cold[f'{each}Seconds']} s" for each in _STAGES)
        yield f"a new replica takes {cold['seconds']} s: {stages}"


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
