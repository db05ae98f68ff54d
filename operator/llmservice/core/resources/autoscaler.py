"""What sizes a revision: the policy in the words of autoscaling/v2, or of KEDA.

::

    Builtin            an HPA; this operator's metrics server serves its two metrics of each pod
    PrometheusAdapter  the same HPA; Prometheus Adapter serves them, by the rules that we ship
    KEDA               a ScaledObject, of which KEDA makes an HPA on the sums over all pods

The load metric's parameter, what a replica should carry, travels in the metric's selector or in
the query, so that who serves the metric has to know nothing of services.

A ScaledObject is not watched, for a cluster may lack the kind. The HPA that KEDA makes of it bears
its labels, so that one is: it says how scaling goes, and that there is a ScaledObject to delete.
While nobody is to count a revision's pods its HPA goes, and its ScaledObject is paused: KEDA takes
its own HPA away then, and leaves the pods.
"""

import math
from collections.abc import Container, Mapping
from typing import Any

from llmservice.api import names
from llmservice.api.v1alpha1 import AutoscalingSpec
from llmservice.core.autoscaling.cold_start import DEFAULT_SECONDS
from llmservice.core.autoscaling.hpa import ExternalMetric, HpaSpec, PodsMetric, ScalingRules
from llmservice.core.autoscaling.policy import (
    CONCURRENCY_LABEL,
    DEAD_BAND,
    KV_SHARE,
    LOAD_METRIC,
    Bounds,
    Calibration,
    hpa_spec,
)
from llmservice.core.autoscaling.scaling import Autoscaled, bounds_of
from llmservice.core.decision import Delete
from llmservice.core.observed import Child, ChildRef, Manifest, ServiceObject
from llmservice.core.resources.children import revision_header
from llmservice.core.revisions import Revision

AUTOSCALER_KIND = "HorizontalPodAutoscaler"
SCALED_OBJECT_API_VERSION = "keda.sh/v1alpha1"
SCALED_OBJECT_KIND = "ScaledObject"
PAUSED_ANNOTATION = "autoscaling.keda.sh/paused"
DEFAULT_SEQUENCES = 256
"""Of an engine that nobody knows more about."""
_COLD_START_STEP = 30
"""Seconds. Each pod takes a little more or less; the autoscaler is not edited for that."""
_KEDA_PREFIX = "keda-hpa-"
"""KEDA puts it before a ScaledObject's name to name its HPA."""
_FAILURES = 3
"""Answers that Prometheus may owe in a row before KEDA says that the number of pods stays."""


def build_autoscaler(
    service: ServiceObject,
    wish: AutoscalingSpec,
    revision: Revision,
    autoscaled: Autoscaled | None,
    cold_start_seconds: float | None,
    *,
    tolerances: bool = False,
) -> Manifest:
    """What sizes one revision: an HPA, or a ScaledObject for provider KEDA.

    Args:
        service: whose it is.
        wish: provider, targets and cold start, as the user wants them.
        revision: its Deployment is the target.
        autoscaled: bounds, and the share of the traffic that it is sized for; None for a
            ScaledObject that is to be paused.
        cold_start_seconds: as measured; None if nobody knows.
        tolerances: the cluster lets an HPA have its own.
    """
    is_paused, autoscaled = autoscaled is None, autoscaled or _any_size(wish)
    calibration = _calibrate(service, wish, revision, autoscaled, cold_start_seconds)
    waiting = wish.waiting_per_replica
    policy = hpa_spec(
        autoscaled.bounds,
        calibration,
        waiting=None if waiting is None else max(1.0, waiting * autoscaled.share),
    )
    name = names.revision_name(service.key.name, revision.hash)
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    if wish.provider == "KEDA":
        api_version, kind = SCALED_OBJECT_API_VERSION, SCALED_OBJECT_KIND
        pods = f'namespace="{service.key.namespace}",pod=~"{name}-.+"'
        spec = _scaled_object(policy, calibration, wish.prometheus_url or "", pods)
    else:
        api_version, kind = "autoscaling/v2", AUTOSCALER_KIND
        spec = _hpa(policy, calibration, tolerances=tolerances)
    header = revision_header(service, api_version, kind, revision.hash)
    if is_paused:
        header["metadata"]["annotations"] = {PAUSED_ANNOTATION: "true"}
    return {**header, "spec": {"scaleTargetRef": target, **spec}}


def autoscaler_ref(wish: AutoscalingSpec, service: ServiceObject, revision_hash: str) -> ChildRef:
    """What :func:`build_autoscaler` makes for a revision."""
    kind = SCALED_OBJECT_KIND if wish.provider == "KEDA" else AUTOSCALER_KIND
    return ChildRef(kind, names.revision_name(service.key.name, revision_hash))


def hpa_ref(wish: AutoscalingSpec, service: str, revision_hash: str) -> ChildRef:
    """The HPA that sizes a revision, whoever made it."""
    name = names.revision_name(service, revision_hash)
    return ChildRef(AUTOSCALER_KIND, f"{_KEDA_PREFIX}{name}" if wish.provider == "KEDA" else name)


def unwanted_autoscalers(
    service: ServiceObject, wanted: Container[ChildRef], children: Mapping[ChildRef, Child]
) -> list[Delete]:
    """Deletes what sizes pods that nobody, or somebody else, counts now.

    Args:
        service: whose they are; what others made stays.
        wanted: every autoscaler that :func:`build_autoscaler` makes now.
        children: all that are live.
    """
    found: dict[ChildRef, str] = {}
    for ref, child in sorted(children.items()):
        if ref.kind not in (AUTOSCALER_KIND, SCALED_OBJECT_KIND) or child.deleting:
            continue
        if child.controller_uid == service.uid:
            found[ref] = child.uid
        elif child.controller_kind == SCALED_OBJECT_KIND and child.controller_uid is not None:
            if child.applied_hash is None:
                continue  # KEDA passes annotations on as well: this one is not of our making
            maker = ref.name.removeprefix(_KEDA_PREFIX)
            found[ChildRef(SCALED_OBJECT_KIND, maker)] = child.controller_uid
    return [Delete(ref, uid) for ref, uid in found.items() if ref not in wanted]


def load_query(pods: str, concurrency: str) -> str:
    """PromQL of :func:`llmservice.core.autoscaling.policy.load` for each pod.

    Args:
        pods: label matchers, without braces.
        concurrency: requests that one replica should carry.
    """
    batch = f"sum by (pod) (vllm:num_requests_running{{{pods}}}) / {concurrency}"
    cache = f"max by (pod) (vllm:kv_cache_usage_perc{{{pods}}}) / {KV_SHARE}"
    fuller = f"({batch} >= {cache} or {cache})"
    # Of the two addends one is constant on either side of 1: the same as the greater of f and
    # min(1, f / 0.75), which PromQL could say only by repeating f twice more.
    return f"clamp_max({fuller} / {1 - DEAD_BAND}, 1) + clamp_min({fuller} - 1, 0)"


def _any_size(wish: AutoscalingSpec) -> Autoscaled:
    """Of a ScaledObject that is paused: what KEDA takes, also where no replica fits a budget."""
    least = bounds_of(wish).min_replicas
    return Autoscaled(Bounds(least, max(least, wish.max_replicas)))


def _hpa(policy: HpaSpec, calibration: Calibration, *, tolerances: bool) -> dict[str, Any]:
    return {
        "minReplicas": policy.min_replicas,
        "maxReplicas": policy.max_replicas,
        "metrics": [_metric(each, calibration) for each in policy.metrics],
        "behavior": _behavior(policy, tolerances=tolerances),
    }


def _scaled_object(
    policy: HpaSpec, calibration: Calibration, prometheus_url: str, pods: str
) -> dict[str, Any]:
    """The policy for KEDA, whose metrics are sums over all pods that have any.

    No answer is no zero: KEDA then keeps the number of pods, as an HPA does that misses a metric.
    """
    triggers = []
    for metric in policy.metrics:
        is_load = metric.name == LOAD_METRIC
        each = load_query(pods, f"{calibration.concurrency:g}") if is_load else metric.name
        metadata = {
            "serverAddress": prometheus_url.rstrip("/"),
            "query": f"sum({each})" if is_load else f"sum({each}{{{pods}}})",
            "threshold": f"{metric.average_value:g}",
            "ignoreNullValues": "false",
        }
        name = "load" if is_load else "waiting"
        triggers.append({"type": "prometheus", "name": name, "metadata": metadata})
    return {
        "minReplicaCount": policy.min_replicas,
        "maxReplicaCount": policy.max_replicas,
        "fallback": {
            "failureThreshold": _FAILURES,
            "replicas": policy.min_replicas,  # at least 1: to KEDA, 0 is no fallback at all
            "behavior": "currentReplicasIfHigher",
        },
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(policy)}},
        "triggers": triggers,
    }


def _calibrate(
    service: ServiceObject,
    wish: AutoscalingSpec,
    revision: Revision,
    autoscaled: Autoscaled,
    cold_start_seconds: float | None,
) -> Calibration:
    planned = service.status.get("plan", {}).get("maxNumSeqs")
    cold_start = wish.cold_start_seconds or cold_start_seconds or DEFAULT_SECONDS
    return Calibration(
        max_num_seqs=revision.sequences or planned or DEFAULT_SEQUENCES,
        cold_start_seconds=_COLD_START_STEP * math.ceil(cold_start / _COLD_START_STEP),
        share=wish.load_target * autoscaled.share,
    )


def _metric(metric: PodsMetric | ExternalMetric, calibration: Calibration) -> dict[str, Any]:
    identifier: dict[str, Any] = {"name": metric.name}
    if metric.name == LOAD_METRIC:
        parameter = {CONCURRENCY_LABEL: f"{calibration.concurrency:.10g}"}
        identifier["selector"] = {"matchLabels": parameter}
    target = {"type": "AverageValue", "averageValue": _quantity(metric.average_value)}
    return {"type": "Pods", "pods": {"metric": identifier, "target": target}}


def _behavior(policy: HpaSpec, *, tolerances: bool = False) -> dict[str, Any]:
    directions = {"scaleUp": policy.scale_up, "scaleDown": policy.scale_down}
    return {name: _rules(each, tolerances=tolerances) for name, each in directions.items()}


def _rules(rules: ScalingRules, *, tolerances: bool) -> dict[str, Any]:
    # What the policy was simulated with, whatever the cluster's own default was set to. It is that
    # of Kubernetes: 0.2 on the way up doubles the misses of slow traces, 0 costs up to 9 % more
    # GPU-hours; on the way down the dead band of the load metric leaves it little to do.
    return {
        **({"tolerance": _quantity(rules.tolerance)} if tolerances else {}),
        "stabilizationWindowSeconds": rules.stabilization_window_seconds,
        "selectPolicy": str(rules.select_policy),
        "policies": [
            {"type": str(each.type), "value": each.value, "periodSeconds": each.period_seconds}
            for each in rules.policies
        ],
    }


def _quantity(value: float) -> str:
    """As the API server would write it."""
    milli = round(1000 * value)
    return f"{milli}m" if milli % 1000 else str(milli // 1000)
