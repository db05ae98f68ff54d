"""What a service's own autoscaling policy looks at, and the HPA that it amounts to.

Two metrics of each pod, of which an HPA takes the greater proposal:

* :data:`LOAD_METRIC`, 1 where a replica carries what it should. It sizes the fleet before anybody
  waits, and holds it while nobody does: a queue is as empty at 5 % load as at 99 %, so a policy
  that sees nothing but a queue removes what it needs, and the queue comes back.
* :data:`WAITING_METRIC`: somebody waits. The load cannot say how many, for an engine that is full
  is just full; the queue makes a step of load cost one cold start, not several doublings.

The behavior follows from one measured number, the cold start: what was decided is on its way for
that long, and until then the same queue must not ask for it again. Called by the simulator and by
what renders an HPA.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from llmservice.core.autoscaling.hpa import (
    SYNC_SECONDS,
    HpaController,
    HpaSpec,
    Pod,
    PodsMetric,
    PolicyType,
    Readings,
    ScalingPolicy,
    ScalingRules,
)

NAME = "llmservice"
WAITING_METRIC = "vllm:num_requests_waiting"
LOAD_METRIC = "llmservice:load"
CONCURRENCY_LABEL = "concurrency"
"""In the selector of the load metric: requests that one replica should carry."""

_LONGEST_PERIOD, _LONGEST_WINDOW = 1800, 3600
"""What autoscaling/v2 takes; seconds."""
_SHORTEST_WINDOW = 300
"""Kubernetes' own: shorter cold starts are no reason to forget a load faster."""

CALIBRATED_SHARE = 0.7
"""Of an engine's sequences. What is over it is for the load that grows during a cold start."""
KV_SHARE = 0.5
"""Of the KV cache in use: sequences that run hold their prompts, but half of their answers only."""
DEAD_BAND = 0.25
"""Loads that much under 1 are 1 as well. With one replica less the batches of the others grow, each
request takes longer, and more are in flight than were moved: what led to a removal would lead back,
for ever. The band is in the metric because a tolerance of the HPA measures the mean only, and
servers before 1.35 have none to set."""
WAITING_SHARE = 0.5
"""Of the concurrency, waiting for each pod: gone in half the time that one request takes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The gauges of one engine, as scraped."""

    waiting: float
    """``vllm:num_requests_waiting``."""
    running: float
    """``vllm:num_requests_running``."""
    kv_usage: float
    """``vllm:kv_cache_usage_perc``, 0 to 1."""


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod of the service, as a policy sees it."""

    name: str
    ready: bool
    pending: bool = False
    terminating: bool = False
    sample: Sample | None = None
    """None: no engine yet, or the last scrape is too old to be believed."""


@dataclass(frozen=True, slots=True)
class View:
    """Everything that a policy decides from."""

    now: float
    replicas: int
    """What the scale subresource asks for."""
    pods: tuple[PodView, ...]
    held: int = 0
    """Requests that wait in the data path."""
    in_flight: int = 0
    """Requests that the data path has not answered yet, wherever they are."""

    @property
    def serving(self) -> list[PodView]:
        """Pods that take requests."""
        return [pod for pod in self.pods if pod.ready and not pod.terminating]

    @property
    def sampled(self) -> list[tuple[PodView, Sample]]:
        """Serving pods and their gauges, where these are known."""
        return [(pod, pod.sample) for pod in self.serving if pod.sample is not None]

    def waiting(self, sample: Sample) -> float:
        """Requests that wait for a sampled pod: in its engine, and its part of the data path's."""
        return sample.waiting + self.held / len(self.serving)


class Autoscaler(Protocol):
    """Anything that can sit in the autoscaler's seat of a simulation."""

    interval: float
    """Seconds between two decisions."""

    def decide(self, view: View) -> int:
        """How many replicas there should be."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How few and how many replicas there may be."""

    min_replicas: int
    max_replicas: int

    def clamp(self, replicas: float) -> int:
        """The nearest whole number inside, fractions rounded up."""
        return max(self.min_replicas, min(self.max_replicas, math.ceil(replicas)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of a service's engine."""

    max_num_seqs: int
    cold_start_seconds: float
    """From the decision to the first request served: schedule, pull, load, warm up."""
    share: float = CALIBRATED_SHARE
    """Of an engine's sequences that a replica should carry."""

    @property
    def concurrency(self) -> float:
        """Requests that one replica should carry."""
        return max(1.0, self.share * self.max_num_seqs)


def hpa_spec(bounds: Bounds, calibration: Calibration, *, waiting: float | None = None) -> HpaSpec:
    """The policy as an HPA.

    ``waiting`` is how many requests may wait for each replica, for who wants another number.

    Up: at most doubled, or four more, in one cold start. Down: what was not needed for two cold
    starts, and no faster than one cold start could bring it back.
    """
    cold_start = max(15, math.ceil(calibration.cold_start_seconds))
    period = min(_LONGEST_PERIOD, cold_start)
    scale_up = ScalingRules(
        (
            ScalingPolicy(PolicyType.Pods, 4, period),
            ScalingPolicy(PolicyType.Percent, 100, period),
        ),
        stabilization_window_seconds=0,
    )
    scale_down = ScalingRules(
        (
            ScalingPolicy(PolicyType.Pods, 1, period),
            ScalingPolicy(PolicyType.Percent, 50, period),
        ),
        stabilization_window_seconds=min(_LONGEST_WINDOW, max(_SHORTEST_WINDOW, 2 * cold_start)),
    )
    queue = waiting or max(1.0, WAITING_SHARE * calibration.concurrency)
    metrics = (
        PodsMetric(WAITING_METRIC, queue),
        PodsMetric(LOAD_METRIC, 1.0),
    )
    return HpaSpec(bounds.min_replicas, bounds.max_replicas, metrics, scale_up, scale_down)


def load(sample: Sample, concurrency: float) -> float:
    """What :data:`LOAD_METRIC` says of a pod: the fuller of its batch and its KV cache.

    Args:
        sample: the engine's gauges.
        concurrency: requests that one replica should carry.

    >>> [round(load(Sample(0, running, 0.0), 70.0), 2) for running in (21, 63, 70, 91)]
    [0.4, 1.0, 1.0, 1.3]
    """
    fuller = max(sample.running / concurrency, sample.kv_usage / KV_SHARE)
    return max(fuller, min(1.0, fuller / (1 - DEAD_BAND)))


class HpaAutoscaler:
    """A policy that an HPA carries out: its readings, and the HPA's algorithm over them."""

    interval = SYNC_SECONDS

    def __init__(self, spec: HpaSpec) -> None:
        self._controller = HpaController(spec)

    def decide(self, view: View) -> int:
        """One step of the HPA controller."""
        pods = [Pod(pod.name, pod.pending, pod.terminating) for pod in view.pods]
        return self._controller.step(view.now, view.replicas, pods, self.read(view))

    def read(self, view: View) -> Readings:
        """What the metrics APIs answer; the base serves the queue of each pod."""
        return {WAITING_METRIC: {pod.name: view.waiting(sample) for pod, sample in view.sampled}}


class LLMServicePolicy(HpaAutoscaler):
    """Ours."""

    def __init__(self, bounds: Bounds, calibration: Calibration) -> None:
        super().__init__(hpa_spec(bounds, calibration))
        self._calibration = calibration

    def read(self, view: View) -> Readings:
        """The queue, and the load."""
        concurrency = self._calibration.concurrency
        loads = {pod.name: load(sample, concurrency) for pod, sample in view.sampled}
        return {**super().read(view), LOAD_METRIC: loads}
