"""The policies of others, in the same seat as ours and with the same samples.

Numbers are the documented defaults, except where one must fit the engine: KubeAI's target is given
our calibrated concurrency (its default of 100 would never scale a smaller engine). Each class names
its source. What is left out: several variants of one model at different cost (WVA), and windows
with buckets, which are plain means here.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from llmservice.core.autoscaling import policy
from llmservice.core.autoscaling.hpa import ExternalMetric, HpaSpec, PodsMetric, Readings
from llmservice.core.autoscaling.policy import (
    WAITING_METRIC,
    Autoscaler,
    Bounds,
    Calibration,
    HpaAutoscaler,
    LLMServicePolicy,
    Sample,
    View,
)
from llmservice.core.autoscaling.simulation import Scenario


class QueueOnly(HpaAutoscaler):
    """An HPA on the queue of each pod and nothing else, target 5, default behavior.

    The recipe of most guides, Google's for GKE among them (cloud.google.com, inference,
    autoscaling: queue size, 3 to 5 to begin with).
    """

    def __init__(self, bounds: Bounds, _: Calibration) -> None:
        metrics = (PodsMetric(WAITING_METRIC, 5.0),)
        super().__init__(HpaSpec(bounds.min_replicas, bounds.max_replicas, metrics))


class Keda(HpaAutoscaler):
    """KEDA on the sum of all queues, threshold 5, through the HPA that it makes.

    Source: vllm-project/production-stack:helm/values.yaml (prometheus trigger, 15 s).
    """

    def __init__(self, bounds: Bounds, _: Calibration) -> None:
        metrics = (ExternalMetric(WAITING_METRIC, 5.0),)
        super().__init__(HpaSpec(bounds.min_replicas, bounds.max_replicas, metrics))

    def read(self, view: View) -> Readings:
        """The sum over pods; absent without a single sample."""
        if not view.sampled:
            return {}
        return {WAITING_METRIC: float(sum(view.waiting(sample) for _, sample in view.sampled))}


class Wva(HpaAutoscaler):
    """KServe and llm-d: the workload variant autoscaler, one replica up or down at a time.

    It looks once a minute at the peaks of the last minute and publishes a number of replicas that
    an HPA follows. Source: llm-d/llm-d-workload-variant-autoscaler:docs/saturation-analyzer.md;
    kserve/kserve:pkg/apis/serving/v1alpha2/llm_inference_service_types.go (``scaling.wva``).
    """

    _METRIC = "wva_desired_replicas"
    _PERIOD = 60.0
    _KV, _QUEUE = 0.80, 5.0
    _SPARE_KV, _SPARE_QUEUE = 0.1, 3.0

    def __init__(self, bounds: Bounds, _: Calibration) -> None:
        metrics = (ExternalMetric(self._METRIC, 1.0),)
        super().__init__(HpaSpec(bounds.min_replicas, bounds.max_replicas, metrics))
        self._peaks: dict[str, tuple[float, float]] = {}
        self._next, self._desired = self._PERIOD, float(bounds.min_replicas)

    def read(self, view: View) -> Readings:
        """What the saturation analyzer last published."""
        for pod, sample in view.sampled:
            kv, queue = self._peaks.get(pod.name, (0.0, 0.0))
            waiting = view.waiting(sample)
            self._peaks[pod.name] = max(kv, sample.kv_usage), max(queue, waiting)
        if view.now >= self._next:
            if self._peaks:
                self._desired = self._analyze(view)
            self._next, self._peaks = view.now + self._PERIOD, {}
        return {self._METRIC: self._desired}

    def _analyze(self, view: View) -> float:
        ready = len(view.serving)
        free = [p for p in self._peaks.values() if p[0] < self._KV and p[1] < self._QUEUE]
        if self._is_short(free, len(free)):
            pending = max(0, view.replicas - ready)
            return float(view.replicas if pending else ready + 1)
        if len(free) > 1 and not self._is_short(free, len(free) - 1):
            return float(ready - 1)
        return float(ready)

    def _is_short(self, free: list[tuple[float, float]], replicas: int) -> bool:
        """Whether the load of some replicas would leave too little to spare on so many."""
        if replicas == 0:
            return True
        kv = sum(kv for kv, _ in free) / replicas
        queue = sum(queue for _, queue in free) / replicas
        return self._KV - kv < self._SPARE_KV or self._QUEUE - queue < self._SPARE_QUEUE


class KubeAI:
    """Requests at the proxy, mean of ten minutes, over a target for each replica.

    Source: substratusai/kubeai:internal/modelautoscaler/autoscaler.go and
    internal/modelscaler/scaler.go; charts/kubeai/values.yaml (10 s, 10 min); scaleDownDelaySeconds
    is 30. The mean begins with zeros, as there.
    """

    interval = 10.0
    _WINDOW, _DELAY = 60, 3

    def __init__(self, bounds: Bounds, calibration: Calibration) -> None:
        self._bounds, self._target = bounds, calibration.concurrency
        self._history = [0.0] * self._WINDOW
        self._downs = 0

    def decide(self, view: View) -> int:
        """Up at once, down after so many decisions for down in a row."""
        self._history = [*self._history[1:], float(view.in_flight)]
        wanted = self._bounds.clamp(_mean(self._history) / self._target)
        if wanted >= view.replicas:
            self._downs = 0
            return wanted
        self._downs += 1
        return wanted if self._downs > self._DELAY else view.replicas


class _AIBrix:
    """What AIBrix's own two strategies share: KV cache at 50 %, at most doubling, and a delay.

    Source: vllm-project/aibrix:pkg/controller/podautoscaler/{autoscaler,context/context}.go
    (rates 2, tolerances 0.1, 300 s between a wish to go down and going down);
    docs/source/features/autoscaling/metric-based-autoscaling.rst (target).
    """

    interval = 10.0
    _TARGET, _RATE, _TOLERANCE = 0.5, 2.0, 0.1
    _DOWN_DELAY = 300.0

    def __init__(self, bounds: Bounds, _: Calibration) -> None:
        self._bounds = bounds
        self._wishes: list[tuple[float, int]] = []

    def decide(self, view: View) -> int:
        """Up at once; down to the highest wish of the delay."""
        samples = [sample for _, sample in view.sampled]
        if not samples:
            return view.replicas
        wish = self._bounds.clamp(self._wish(view, samples))
        self._wishes = [w for w in self._wishes if w[0] > view.now - self._DOWN_DELAY]
        self._wishes.append((view.now, wish))
        if wish >= view.replicas:
            return wish
        return min(view.replicas, max(wish for _, wish in self._wishes))

    def _wish(self, view: View, samples: list[Sample]) -> float:
        raise NotImplementedError

    def _within_rates(self, wish: float, ready: int) -> float:
        highest, lowest = math.ceil(self._RATE * ready), math.floor(ready / self._RATE)
        return min(max(wish, lowest), highest)


class AIBrixApa(_AIBrix):
    """The current mean over the target, outside a tolerance (algorithm/apa.go)."""

    def _wish(self, view: View, samples: list[Sample]) -> float:
        use = _mean([sample.kv_usage for sample in samples]) / self._TARGET
        pending = max(0, view.replicas - len(samples))
        # applyPendingReplicaGuard: who does not report yet damps either direction.
        if use > 1:
            use *= len(samples) / view.replicas
        else:
            use = (use * len(samples) + pending) / view.replicas
        if abs(use - 1) <= self._TOLERANCE or (use < 1 and pending):
            return view.replicas
        return self._within_rates(math.ceil(view.replicas * use), view.replicas)


class AIBrixKpa(_AIBrix):
    """Knative's: a mean of 180 s, and one of 60 s that rules while it asks for twice what is there.

    Source: algorithm/kpa.go; windows ``DefaultStableWindowDuration`` and
    ``DefaultPanicWindowDuration``.
    """

    _STABLE, _PANIC = 180.0, 60.0
    _PANIC_THRESHOLD = 2.0

    def __init__(self, bounds: Bounds, calibration: Calibration) -> None:
        super().__init__(bounds, calibration)
        self._totals: list[tuple[float, float]] = []
        self._panic_until, self._panic_pods = -1.0, 0.0

    def _wish(self, view: View, samples: list[Sample]) -> float:
        total = sum(sample.kv_usage for sample in samples)
        self._totals = [t for t in self._totals if t[0] > view.now - self._STABLE]
        self._totals.append((view.now, total))
        stable = self._desired(view.now - self._STABLE)
        panic = self._desired(view.now - self._PANIC)
        ready = len(samples)
        if panic / max(1, ready) >= self._PANIC_THRESHOLD:
            self._panic_until = view.now + self._STABLE
        wish = self._within_rates(stable, ready)
        if view.now > self._panic_until:
            self._panic_pods = 0
            return wish
        # While panicking there is no way down.
        self._panic_pods = max(self._panic_pods, wish, self._within_rates(panic, ready))
        return self._panic_pods

    def _desired(self, since: float) -> float:
        return math.ceil(_mean([t for at, t in self._totals if at > since]) / self._TARGET)


POLICIES: Mapping[str, Callable[[Bounds, Calibration], Autoscaler]] = {
    policy.NAME: LLMServicePolicy,
    "queue-only": QueueOnly,
    "keda": Keda,
    "kserve-wva": Wva,
    "kubeai": KubeAI,
    "aibrix-kpa": AIBrixKpa,
    "aibrix-apa": AIBrixApa,
}
"""Everything that can be simulated, ours first."""


def fresh_policy(name: str, scenario: Scenario) -> Autoscaler:
    """One of :data:`POLICIES`, remembering nothing, that knows the engine of a scenario."""
    engine = scenario.engine
    return POLICIES[name](
        Bounds(scenario.min_replicas, scenario.max_replicas),
        Calibration(engine.max_num_seqs, engine.cold_start_seconds),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
