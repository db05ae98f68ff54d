"""Our policy: what it serves to the HPA, what the HPA is, and what follows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.autoscaling.hpa import PodsMetric
from llmservice.core.autoscaling.policy import (
    LOAD_METRIC,
    WAITING_METRIC,
    Bounds,
    Calibration,
    LLMServicePolicy,
    PodView,
    Sample,
    View,
    hpa_spec,
    load,
)

BOUNDS = Bounds(1, 16)
ENGINE = Calibration(max_num_seqs=50, cold_start_seconds=180.0)


def a_pod(name, waiting=0, running=0, kv_usage=0.0, **state):
    return PodView(name, **{"ready": True, "sample": Sample(waiting, running, kv_usage), **state})


def a_view(*pods, replicas=None, now=0.0, held=0):
    return View(now, replicas or len(pods), pods, held=held)


@pytest.mark.parametrize(
    ("running", "kv_usage", "expected"),
    [
        (35, 0.0, 1.0),
        (0, 0.5, 1.0),
        (49, 0.5, 1.4),
        (15, 0.9, 1.8),
        (27, 0.0, 1.0),  # in the dead band
        (0, 0.38, 1.0),
        (21, 0.0, 0.8),  # 0.6, under it
        (0, 0.0, 0.0),
    ],
)
def test_load_is_the_fuller_of_batch_and_cache(running, kv_usage, expected):
    """35 of 50 sequences, or half of the cache, are 1; so is a quarter less."""
    assert load(Sample(0, running, kv_usage), ENGINE.concurrency) == pytest.approx(expected)


def test_what_waits_in_the_data_path_is_shared_among_ready_pods():
    """A pod that is removed or starts has no part of it."""
    view = a_view(
        a_pod("a", waiting=2), a_pod("b"), a_pod("c", terminating=True),
        PodView("d", ready=False), held=10,
    )  # fmt: skip
    assert LLMServicePolicy(BOUNDS, ENGINE).read(view)[WAITING_METRIC] == {"a": 7.0, "b": 5.0}


def test_a_pod_without_a_sample_has_no_reading():
    """Absent is not zero."""
    readings = LLMServicePolicy(BOUNDS, ENGINE).read(a_view(PodView("a", ready=True)))
    assert readings == {WAITING_METRIC: {}, LOAD_METRIC: {}}


@given(st.floats(1, 1e5), st.integers(1, 4096))
def test_the_hpa_is_one_that_kubernetes_takes(cold_start, sequences):
    """Limits of autoscaling/v2 (validation.go): periods, windows, targets."""
    spec = hpa_spec(BOUNDS, Calibration(sequences, cold_start))
    for rules in (spec.scale_up, spec.scale_down):
        assert 0 <= rules.stabilization_window_seconds <= 3600
        assert all(0 < policy.period_seconds <= 1800 for policy in rules.policies)
        assert all(policy.value > 0 for policy in rules.policies)
    assert all(isinstance(m, PodsMetric) and m.average_value > 0 for m in spec.metrics)


def test_the_window_follows_the_cold_start():
    """Two cold starts, and never less than Kubernetes' default."""
    windows = [
        hpa_spec(BOUNDS, Calibration(48, seconds)).scale_down.stabilization_window_seconds
        for seconds in (20, 180, 600, 5000)
    ]
    assert windows == [300, 360, 1200, 3600]


def test_an_empty_queue_holds_what_is_loaded():
    """Where a queue alone would go to the minimum: nobody waits, and three are busy."""
    policy, pods = LLMServicePolicy(BOUNDS, ENGINE), [a_pod(name, running=28) for name in "abc"]
    sizes = {policy.decide(a_view(*pods, now=15.0 * n)) for n in range(100)}
    assert sizes == {3}


def test_a_queue_asks_once_per_cold_start():
    """The same long queue: four more at once, and no others until these could serve."""
    policy, replicas, sizes = LLMServicePolicy(BOUNDS, ENGINE), 1, []
    for n in range(14):
        starting = [PodView(f"s{k}", ready=False, pending=True) for k in range(replicas - 1)]
        view = a_view(a_pod("a", 500, 48), *starting, replicas=replicas, now=15.0 * n)
        replicas = policy.decide(view)
        sizes.append(replicas)
    assert sizes == [5] * 12 + [10] * 2


@pytest.mark.parametrize("replicas", [1, 2, 7, 16])
def test_without_samples_nothing_is_removed(replicas):
    """However long it lasts."""
    policy = LLMServicePolicy(BOUNDS, ENGINE)
    pods = tuple(PodView(str(n), ready=True) for n in range(replicas))
    for n in range(60):
        assert policy.decide(View(15.0 * n, replicas, pods)) == replicas
