"""Canary rollouts that take minutes, what makes one bad, and where one stands."""

import json
from collections.abc import Callable
from typing import Any

import yaml

from e2e.cluster.paths import REPOSITORY
from e2e.kubectl import JSON

EXAMPLES = REPOSITORY / "examples"
_SHORT = {"durationSeconds": 5, "windowSeconds": 5, "settleSeconds": 3, "bakeSeconds": 5}


def shortened(example: str) -> JSON:
    """``rollout`` and ``traffic`` of an example, made to end in minutes.

    Times are cut, and what makes them long: the sample, and how small a difference must be seen.
    Engines of a few milliseconds share two cores with everything else here, so only what is much
    slower counts.
    """
    spec = yaml.safe_load((EXAMPLES / example).read_text())["spec"]
    rollout = spec["rollout"] | {key: _SHORT[key] for key in _SHORT if key != "durationSeconds"}
    for step in rollout["steps"]:
        if "durationSeconds" in step:
            step["durationSeconds"] = _SHORT["durationSeconds"]
    for guardrail in rollout["guardrails"]:
        guardrail["minRequests"] = 20
        if guardrail["metric"] == "errors":
            guardrail["maxErrorRatePercent"] = 5
        elif "maxSeconds" in guardrail:
            guardrail["maxSeconds"] = 20
        elif "maxIncreasePercent" in guardrail:
            guardrail |= {"quantile": "p90", "maxIncreasePercent": 200}
    # Two limits on the same quantile of the same metric would be one limit twice.
    seen = {(each["metric"], each.get("quantile")): each for each in rollout["guardrails"]}
    return {
        "rollout": {**rollout, "guardrails": list(seen.values())},
        "traffic": spec.get("traffic"),
    }


WRONG_KNOB: dict[str, Any] = {"maxNumQueuedReqs": 1}
"""The engine turns away what it could keep waiting: errors for some, though it looks healthy."""
PROMPT = "How are you? " * 8


def rollout_of(service: JSON) -> JSON:
    """``status.rollout``, empty if there is none."""
    found: JSON = service.get("status", {}).get("rollout", {})
    return found


def state_of(service: JSON) -> JSON:
    """What the operator keeps of a rollout for itself."""
    state: JSON = json.loads(rollout_of(service).get("state", "{}"))
    return state


def is_routed(service: JSON) -> bool:
    """Whether clients come in by the routers, and no canary is under way."""
    rollout = rollout_of(service)
    return rollout.get("phase") == "Stable" and state_of(service).get("routed", False)


def is_aborted(service: JSON) -> bool:
    """Whether the newest revision was turned down."""
    return bool(rollout_of(service).get("phase") == "Aborted")


def is_paused(service: JSON) -> bool:
    """Whether a person has to say how to go on."""
    return bool(rollout_of(service).get("phase") == "Paused")


def judges_at(weight: int) -> Callable[[JSON], bool]:
    """Whether a canary is judged at this weight."""

    def judges(service: JSON) -> bool:
        rollout = rollout_of(service)
        return bool(rollout.get("phase") == "Judging" and rollout["weight"] == weight)

    return judges


def is_promoted(instead_of: str) -> Callable[[JSON], bool]:
    """Whether another revision than this one is stable, and the old one is gone."""

    def promoted(service: JSON) -> bool:
        rollout = rollout_of(service)
        return bool(rollout.get("phase") == "Stable" and state_of(service)["stable"] != instead_of)

    return promoted
