"""Which revisions an autoscaler sizes, within which bounds, and what the service's size is.

::

    at rest                   the only revision: minReplicas to maxReplicas
    canary, up to half        stable, as if it had all of the traffic; the canary from the pods of
                              its step upwards
    canary, more than half    the canary from the pods of its step upwards; stable keeps its pods,
                              since its own load says nothing any more
    pods that replace others  nobody: the two share what was there when it began
    asleep, at zero           nobody: the routers have it wake up

The size of a service is what its autoscaler made of the revision that leads, and stays what it was
while none does. Everything else (steps, surges) counts from it, as it does from ``spec.replicas``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmservice.api.v1alpha1 import AutoscalingSpec
from llmservice.core.autoscaling.policy import Bounds
from llmservice.core.canary.state import AT_REST, FULL, Rollout
from llmservice.core.observed import AutoscalerFacts, DeploymentFacts, Observed
from llmservice.core.status import Reason

_HALF = FULL // 2
"""A stable revision that has less of the traffic is not sized by it: with every percent that it
loses, chance would be multiplied by more."""


_LIMITS = {
    "TooManyReplicas": "more replicas than maxReplicas are wanted: raise it if devices are free",
    "TooFewReplicas": "as few replicas as minReplicas allows",
}
_NO_METRICS = "FailedGetPodsMetric"
_FIXES = {
    _NO_METRICS: "nothing is scaled down until there are metrics again: are engine pods"
    " running, and does `kubectl get apiservice v1beta2.custom.metrics.k8s.io` say Available and"
    " name who is to serve them, this operator's metrics server or Prometheus Adapter?",
    "FailedGetExternalMetric": "nothing is scaled down until there are metrics again: does"
    " Prometheus answer at spec.autoscaling.prometheusUrl, and does it scrape the engine pods?",
    "ScaledObjectCheckFailed": "see the ScaledObject with kubectl describe scaledobject",
    "AmbiguousSelector": "another HorizontalPodAutoscaler counts the same pods: delete it",
    "ScalingDisabled": "the Deployment was set to zero pods by hand: set it to one",
}


@dataclass(frozen=True, slots=True)
class MetricsApi:
    """Who serves metrics of pods to the HPAs of the cluster."""

    api_service: str
    """Name of the APIService by which HPAs ask."""
    owner: str
    """To whom it leads, in words; empty where nobody has registered."""
    ours: bool = False
    """To a metrics server of this operator."""


@dataclass(frozen=True, slots=True)
class Autoscaled:
    """A revision whose pods an autoscaler counts."""

    bounds: Bounds
    share: float = 1.0
    """Of what a replica should carry: less where some traffic is elsewhere for now."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Who is sized by an autoscaler now."""

    revisions: Mapping[str, Autoscaled]
    lead: str | None
    """Revision whose number of pods is the service's size; None while the size stays."""


def current_size(
    wish: AutoscalingSpec,
    status: Mapping[str, object],
    deployments: Mapping[str, DeploymentFacts],
    stable: str | None,
) -> int:
    """How many replicas the service has.

    Args:
        wish: its bounds.
        status: ``status.autoscaling`` as written last; empty for a service that had none.
        deployments: those that are live, by revision.
        stable: revision that served last, if any did.
    """
    bounds = bounds_of(wish)
    lead = status.get("revision")
    led = deployments.get(lead) if isinstance(lead, str) else None
    if led is not None:
        return bounds.clamp(led.replicas)
    kept = status.get("replicas")
    if isinstance(kept, int):
        return kept if kept == wish.min_replicas else bounds.clamp(kept)
    # Autoscaling was just asked for: it goes on from what is there.
    found = deployments.get(stable) if stable else None
    return bounds.clamp(found.replicas if found else bounds.min_replicas)


def bounds_of(wish: AutoscalingSpec) -> Bounds:
    """Those of a service that does not sleep."""
    return Bounds(max(1, wish.min_replicas), wish.max_replicas)


def without_canary(wish: AutoscalingSpec, target: str, *, alone: bool) -> Scaling:
    """Who is sized where pods simply replace others.

    Args:
        wish: the bounds.
        target: the newest revision.
        alone: no other revision has pods.
    """
    if not alone:
        return Scaling({}, None)
    return Scaling({target: Autoscaled(bounds_of(wish))}, target)


def of_canary(wish: AutoscalingSpec, rollout: Rollout, pods: Mapping[str, int]) -> Scaling:
    """Who is sized during a canary rollout, and between two.

    Args:
        wish: the bounds.
        rollout: as it was read.
        pods: what it wants of each revision.
    """
    bounds = bounds_of(wish)
    if rollout.phase in AT_REST:
        return Scaling({rollout.stable: Autoscaled(bounds)}, rollout.stable)
    if rollout.capacity == "Replace":
        return Scaling({}, None)
    found: dict[str, Autoscaled] = {}
    elsewhere = rollout.weight if rollout.canary else 0
    leads = elsewhere <= _HALF
    if leads:
        found[rollout.stable] = Autoscaled(bounds, (FULL - elsewhere) / FULL)
    if rollout.canary is not None and rollout.weight:
        least = pods.get(rollout.canary, 0)
        found[rollout.canary] = Autoscaled(Bounds(least, max(least, bounds.max_replicas)))
    sized = {revision: each for revision, each in found.items() if pods.get(revision)}
    return Scaling(sized, rollout.stable if leads and rollout.stable in sized else None)


def misses_metrics(observed: Observed) -> bool:
    """Whether an HPA of the service lacks metrics that our metrics server is to serve."""
    wish = observed.service.spec.get("autoscaling") or {}
    return wish.get("provider", "Builtin") == "Builtin" and any(
        child.autoscaler is not None and _is_without_metrics(child.autoscaler)
        for child in observed.children.values()
    )


def autoscaler_condition(
    facts: AutoscalerFacts | None, api: MetricsApi | None = None
) -> tuple[str, str, str]:
    """Status, reason and message of ``AutoscalingReady`` for the revision that leads.

    Args:
        facts: what its HPA says.
        api: where our metrics server is to serve, and it is known who does.
    """
    if facts is None or facts.active is None:
        return "Unknown", "AutoscalerStarting", "the HorizontalPodAutoscaler has not decided yet"
    if facts.active:
        return "True", facts.limited or "Scaling", _LIMITS.get(facts.limited, "metrics are read")
    if api is not None and not api.ours and _is_without_metrics(facts):
        return "False", *_not_ours(api)
    fix = _FIXES.get(facts.reason, "see the HorizontalPodAutoscaler with kubectl describe hpa")
    return "False", facts.reason or "ScalingInactive", f"{facts.message[:2048]}; {fix}"


def _is_without_metrics(facts: AutoscalerFacts) -> bool:
    return facts.active is False and facts.reason == _NO_METRICS


def _not_ours(api: MetricsApi) -> tuple[str, str]:
    """Reason and message: the HPA tells what it missed, but not whom to ask about it."""
    if api.owner:
        return Reason.MetricsAPITaken, (
            f"APIService {api.api_service} belongs to {api.owner}, and this operator's metrics"
            " server takes nothing from others; nothing is scaled down until there are metrics:"
            " remove that adapter, or set spec.autoscaling.provider to PrometheusAdapter or KEDA"
        )
    return Reason.MetricsAPIMissing, (
        f"nobody has registered APIService {api.api_service}; nothing is scaled down until there"
        " are metrics: is this operator's metrics server installed, and are its pods ready?"
    )
