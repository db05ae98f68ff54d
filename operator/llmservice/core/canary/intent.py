"""What a rollout wants: pods of each revision, and who gets which share of the traffic."""

from collections.abc import Mapping
from math import ceil

from llmservice.api.v1alpha1 import LLMServiceSpec, RolloutSpec, RolloutStep
from llmservice.core.canary.state import FULL, Outcome, Phase, Rollout


def as_canary(spec: LLMServiceSpec) -> LLMServiceSpec:
    """The spec as a router goes by it: every step has a weight.

    Without a canary strategy all traffic moves in one step: a router that is there for other
    reasons still moves it in the order that loses no request.
    """
    if spec.rollout.strategy == "Canary":
        if all(step.weight for step in spec.rollout.steps):
            return spec
        weighed = {"steps": tuple(_weighed(step, spec) for step in spec.rollout.steps)}
        return spec.model_copy(update={"rollout": spec.rollout.model_copy(update=weighed)})
    at_once = {"steps": (), "guardrails": (), "settle_seconds": 0, "bake_seconds": 0}
    return spec.model_copy(update={"rollout": spec.rollout.model_copy(update=at_once)})


def _weighed(step: RolloutStep, spec: LLMServiceSpec) -> RolloutStep:
    """A step of so many pods gets their share of all pods, so that all are equally busy."""
    if step.weight or not step.replicas:
        return step
    # Those that a canary of Replace has are missing on the other side.
    pods = spec.replicas + (0 if spec.rollout.capacity == "Replace" else step.replicas)
    share = round(FULL * step.replicas / max(1, pods))
    return step.model_copy(update={"weight": min(max(1, share), FULL - 1)})


def weight_of(step: RolloutStep) -> int:
    """Percent of the requests; every step of :func:`as_canary` has it."""
    return step.weight or 0


def next_weight(policy: RolloutSpec, weight: int) -> int:
    """The weight after this one; a list that was edited meanwhile never makes it jump back."""
    return min((w for step in policy.steps if (w := weight_of(step)) > weight), default=FULL)


def step_at(policy: RolloutSpec, weight: int) -> RolloutStep | None:
    """The step of this weight, if there (still) is one."""
    return next((step for step in policy.steps if step.weight == weight), None)


def step_number(policy: RolloutSpec, weight: int) -> int:
    """Which step a weight belongs to, from 1; 0 before the first."""
    return sum(weight_of(step) <= weight for step in policy.steps) + (weight >= FULL)


def canary_pods(rollout: Rollout, policy: RolloutSpec, wanted: int) -> int:
    """How many pods the canary needs for the weight that it is provisioned for."""
    weight = rollout.pods_for
    if not weight:
        return 0
    step = step_at(policy, weight)
    share = step.replicas if step and step.replicas else ceil(weight * wanted / FULL)
    most = wanted if rollout.capacity == "Surge" else max(1, wanted - 1)
    return max(1, min(share, most))


def surge_pods(rollout: Rollout, wanted: int) -> int:
    """How many pods more than wanted there are at most until the rollout's end."""
    if rollout.capacity == "Surge":
        return wanted
    return 1 if wanted == 1 else 0  # each revision has at least one


def pods_of(rollout: Rollout, policy: RolloutSpec, wanted: int) -> dict[str, int]:
    """Pods of each revision that has any.

    With ``Replace`` both revisions share the wanted number, each with at least one.
    """
    if wanted == 0:
        others = (rollout.canary, rollout.leaving)
        return {rollout.stable: 0} | {each: 0 for each in others if each}
    on_trial = canary_pods(rollout, policy, wanted)
    beside = wanted if rollout.capacity == "Surge" or not on_trial else max(1, wanted - on_trial)
    if rollout.canary is not None:
        return {rollout.stable: beside, rollout.canary: on_trial}
    if rollout.leaving is None:
        return {rollout.stable: wanted}
    if rollout.outcome is Outcome.Promoted:
        return {rollout.stable: on_trial, rollout.leaving: beside}
    return {rollout.stable: beside, rollout.leaving: on_trial}


def shares_of(rollout: Rollout, ready: Mapping[str, int]) -> dict[str, int]:
    """Percent of the traffic by revision; a share never goes to where nobody serves.

    A revision that lost its last ready pod loses its share at once, if another one has pods.
    """
    shares = {rollout.stable: FULL}
    if rollout.leaving is not None:
        alone = ready.get(rollout.leaving) and not ready.get(rollout.stable)
        kept = FULL if alone else 0
        shares = {rollout.stable: FULL - kept, rollout.leaving: kept}
    if rollout.canary is None or rollout.phase is Phase.Preflight:
        return shares
    weight = rollout.weight
    if not ready.get(rollout.canary):
        weight = 0
    elif not ready.get(rollout.stable):
        weight = FULL
    return shares | {rollout.stable: FULL - weight, rollout.canary: weight}
