"""The algorithm of the Kubernetes HorizontalPodAutoscaler (autoscaling/v2), as a value.

The simulator steps it every 15 s with what a metrics API would have answered. It covers what an LLM
service uses: metrics of type Pods and External with an ``AverageValue``, and ``behavior`` with
stabilization, scaling policies and tolerance. Resource metrics and scaling to zero are not here.
Source: k8s.io/kubernetes v1.37.1, ``pkg/controller/podautoscaler/replica_calculator.go`` and
``horizontal.go``; the function docstrings name the counterparts.

>>> spec = HpaSpec(1, 10, (PodsMetric("waiting", 5.0),))
>>> pods = (Pod("a"), Pod("b"))
>>> HpaController(spec).step(0.0, 2, pods, {"waiting": {"a": 12.0, "b": 8.0}})
4
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

SYNC_SECONDS = 15.0
"""``--horizontal-pod-autoscaler-sync-period``."""

_MILLI = 1000


class PolicyType(StrEnum):
    """What the value of a scaling policy counts."""

    Pods = "Pods"
    Percent = "Percent"


class Select(StrEnum):
    """Which of several scaling policies counts: that of the greater or of the smaller change."""

    Max = "Max"
    Min = "Min"
    Disabled = "Disabled"


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """So many pods, or so many percent, in a period (``HPAScalingPolicy``)."""

    type: PolicyType
    value: int
    period_seconds: int
    """Kubernetes takes 1 to 1800."""


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """One direction of ``behavior`` (``HPAScalingRules``)."""

    policies: tuple[ScalingPolicy, ...]
    stabilization_window_seconds: int
    """Kubernetes takes 0 to 3600."""
    select_policy: Select = Select.Max
    tolerance: float = 0.1
    """Relative distance from the target that changes nothing. In ``behavior`` since 1.35 (beta);
    before, one value for the whole cluster, 0.1 by default."""


DEFAULT_SCALE_UP = ScalingRules(
    (ScalingPolicy(PolicyType.Pods, 4, 15), ScalingPolicy(PolicyType.Percent, 100, 15)), 0
)
"""``pkg/apis/autoscaling/v2/defaults.go``."""
DEFAULT_SCALE_DOWN = ScalingRules((ScalingPolicy(PolicyType.Percent, 100, 15),), 300)
"""The same; the window is ``--horizontal-pod-autoscaler-downscale-stabilization``."""


@dataclass(frozen=True, slots=True)
class PodsMetric:
    """A metric of each pod, kept at a mean of ``average_value`` (type Pods)."""

    name: str
    average_value: float


@dataclass(frozen=True, slots=True)
class ExternalMetric:
    """One number of the service, ``average_value`` of it for each replica (type External)."""

    name: str
    average_value: float


@dataclass(frozen=True, slots=True)
class HpaSpec:
    """What is rendered as a HorizontalPodAutoscaler, but for its target and its names."""

    min_replicas: int
    max_replicas: int
    metrics: tuple[PodsMetric | ExternalMetric, ...]
    scale_up: ScalingRules = DEFAULT_SCALE_UP
    scale_down: ScalingRules = DEFAULT_SCALE_DOWN


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of the target, as far as the calculator looks at it."""

    name: str
    pending: bool = False
    """Not scheduled, or its images are pulled."""
    terminating: bool = False


Readings = Mapping[str, Mapping[str, float] | float]
"""Name of a metric -> value by pod (Pods) or value (External). What could not be read is absent."""


@dataclass(slots=True)
class HpaController:
    """One HPA and what its controller remembers between two steps."""

    spec: HpaSpec
    _recommendations: list[tuple[float, int]] = field(default_factory=list)
    _added: list[tuple[float, int]] = field(default_factory=list)
    _removed: list[tuple[float, int]] = field(default_factory=list)

    def step(self, now: float, current: int, pods: Sequence[Pod], readings: Readings) -> int:
        """The new number of replicas (``reconcileAutoscaler``); ``current`` if nothing changes.

        Zero replicas stay: a target at zero with ``min_replicas`` over zero is paused.
        """
        if not self._recommendations:  # recordInitialRecommendation
            self._recommendations.append((now, current))
        wanted = self._wanted(now, current, pods, readings)
        if wanted != current:
            events = self._added if wanted > current else self._removed
            events.append((now, abs(wanted - current)))
        return wanted

    def _wanted(self, now: float, current: int, pods: Sequence[Pod], readings: Readings) -> int:
        if current == 0:
            return 0
        if current > self.spec.max_replicas:
            return self.spec.max_replicas
        if current < self.spec.min_replicas:
            return self.spec.min_replicas
        proposed = self._propose(current, pods, readings)
        if proposed is None:
            return current
        return self._limit(now, current, self._stabilize(now, current, proposed))

    def _propose(self, current: int, pods: Sequence[Pod], readings: Readings) -> int | None:
        """The greatest proposal (``computeReplicasForMetrics``); None is no decision.

        While a metric cannot be read, the others may scale up and nothing may scale down.
        """
        proposals = [self._proposal(m, current, pods, readings) for m in self.spec.metrics]
        known = [proposal for proposal in proposals if proposal is not None]
        greatest = max(known, default=None)
        if greatest is None or (len(known) < len(proposals) and greatest < current):
            return None
        return greatest

    def _proposal(
        self,
        metric: PodsMetric | ExternalMetric,
        current: int,
        pods: Sequence[Pod],
        readings: Readings,
    ) -> int | None:
        reading, target = readings.get(metric.name), _milli(metric.average_value)
        if isinstance(metric, PodsMetric):
            values = reading if isinstance(reading, Mapping) else {}
            return self._of_pods(target, current, pods, values)
        return self._of_total(target, current, reading) if isinstance(reading, float) else None

    def _of_total(self, target: int, current: int, value: float) -> int:
        """``GetExternalPerPodMetricReplicas``: no pod is looked at."""
        total = _milli(value)
        if self._is_tolerated(total / (target * current)):
            return current
        return math.ceil(total / target)

    def _of_pods(
        self, target: int, current: int, pods: Sequence[Pod], readings: Mapping[str, float]
    ) -> int | None:
        """``calcPlainMetricReplicas``: pods without a sample never make a change greater."""
        live = [pod for pod in pods if not pod.terminating]
        pending = [pod.name for pod in live if pod.pending]
        running = [pod.name for pod in live if not pod.pending]
        values = {name: _milli(readings[name]) for name in running if name in readings}
        missing = [name for name in running if name not in values]
        if not values:
            return None
        ratio = _ratio(values, target)
        dilute = bool(pending) and ratio > 1
        if not dilute and not missing:
            return current if self._is_tolerated(ratio) else math.ceil(ratio * len(values))
        if ratio != 1:
            values |= dict.fromkeys(missing, target if ratio < 1 else 0)
        if dilute:
            values |= dict.fromkeys(pending, 0)
        diluted = _ratio(values, target)
        turned = (ratio < 1 < diluted) or (diluted < 1 < ratio)
        if turned or self._is_tolerated(diluted):
            return current
        wanted = math.ceil(diluted * len(values))
        backwards = wanted > current if diluted < 1 else wanted < current
        return current if backwards else wanted

    def _is_tolerated(self, ratio: float) -> bool:
        down, up = self.spec.scale_down.tolerance, self.spec.scale_up.tolerance
        return 1 - down <= ratio <= 1 + up

    def _stabilize(self, now: float, current: int, proposed: int) -> int:
        """``stabilizeRecommendationWithBehaviors``: inside the windows' lowest and highest."""
        up = now - self.spec.scale_up.stabilization_window_seconds
        down = now - self.spec.scale_down.stabilization_window_seconds
        lowest = min([proposed, *(r for at, r in self._recommendations if at > up)])
        highest = max([proposed, *(r for at, r in self._recommendations if at > down)])
        self._recommendations.append((now, proposed))
        oldest = min(up, down)
        self._recommendations = [r for r in self._recommendations if r[0] >= oldest]
        return min(max(current, lowest), highest)

    def _limit(self, now: float, current: int, wanted: int) -> int:
        """``convertDesiredReplicasWithBehaviorRate``: scaling policies, then min and max."""
        if wanted > current:
            allowed = self._allowed(now, current, self.spec.scale_up, 1)
            return min(wanted, self.spec.max_replicas, max(allowed, current))
        if wanted < current:
            allowed = self._allowed(now, current, self.spec.scale_down, -1)
            return max(wanted, self.spec.min_replicas, min(allowed, current))
        return current

    def _allowed(self, now: float, current: int, rules: ScalingRules, sign: int) -> int:
        """``calculateScaleUpLimitWithScalingRules`` and its counterpart for down."""
        if rules.select_policy is Select.Disabled or not rules.policies:
            return current
        limits = []
        for policy in rules.policies:
            since = now - policy.period_seconds
            start = current - _change(self._added, since) + _change(self._removed, since)
            if policy.type is PolicyType.Pods:
                limits.append(start + sign * policy.value)
            else:
                limit = start * (1 + sign * policy.value / 100)
                limits.append(math.ceil(limit) if sign > 0 else int(limit))
        # The greater change is the higher limit on the way up, the lower one on the way down.
        return max(limits) if (rules.select_policy is Select.Max) == (sign > 0) else min(limits)


def _milli(value: float) -> int:
    """As the metrics APIs carry it; a total over pods is an integer as well."""
    return round(value * _MILLI)


def _ratio(values: Mapping[str, int], target: int) -> float:
    """``GetMetricUsageRatio``, whose mean is an integer division of thousandths."""
    return (sum(values.values()) // len(values)) / target


def _change(events: Sequence[tuple[float, int]], since: float) -> int:
    return sum(change for at, change in events if at > since)
