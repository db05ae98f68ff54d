"""The HPA algorithm against the cases of the Kubernetes source, and its laws.

Cases are those of k8s.io/kubernetes v1.37.1, ``pkg/controller/podautoscaler/horizontal_test.go``;
the test of that file is named where numbers are taken over.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.autoscaling.hpa import (
    DEFAULT_SCALE_DOWN,
    DEFAULT_SCALE_UP,
    ExternalMetric,
    HpaController,
    HpaSpec,
    Pod,
    PodsMetric,
    PolicyType,
    ScalingPolicy,
    ScalingRules,
    Select,
)

QPS = PodsMetric("qps", 10.0)
ONE = ExternalMetric("wanted", 1.0)


def rules(pods=0, percent=0, *, period=60, window=0, select=Select.Max, tolerance=0.1):
    """As ``generateScalingRules``: no policy for a zero."""
    given_policies = ((PolicyType.Pods, pods), (PolicyType.Percent, percent))
    policies = tuple(ScalingPolicy(t, value, period) for t, value in given_policies if value)
    return ScalingRules(policies, window, select, tolerance)


def external(wanted, current, *, at=(), up=DEFAULT_SCALE_UP, down=None, bounds=(1, 1000)):
    """A controller that was told other numbers at earlier times, then one step at 0."""
    down = down or rules(percent=100, period=15, window=0)
    controller = HpaController(HpaSpec(*bounds, (ONE,), up, down))
    controller._recommendations = [(when, number) for when, number in at] or [(-9999.0, current)]
    return controller.step(0.0, current, [Pod("a")], {"wanted": float(wanted)})


@pytest.mark.parametrize(
    ("current", "wanted", "up", "down", "bounds", "expected"),
    [
        # TestScalingWithRules
        (10, 50, rules(100), None, (1, 1000), 50),
        (10, 50, rules(30), None, (1, 1000), 40),
        (10, 50, rules(percent=200), None, (1, 1000), 30),
        (100, 2, None, rules(20, 1), (1, 1000), 80),
        (100, 2, None, rules(2, 1), (1, 1000), 98),
        (10, 0, None, rules(100), (1, 1000), 1),
        (10, 2, None, rules(percent=100), (5, 1000), 5),
        (10, 2, None, rules(5), (1, 1000), 5),
        (10, 5, None, rules(percent=50), (1, 1000), 5),
        # TestCalculateScaleUpLimitWithScalingRules, TestCalculateScaleDownLimitWithBehaviors
        (1, 9, rules(2, 50, select=Select.Min), None, (1, 1000), 2),
        (5, 1, None, rules(2, 50, select=Select.Min), (1, 1000), 3),
        # What the API says of Disabled.
        (3, 9, rules(2, select=Select.Disabled), None, (1, 1000), 3),
        (9, 3, None, rules(2, select=Select.Disabled), (1, 1000), 9),
        # Outside the bounds no metric is asked.
        (20, 15, None, None, (1, 10), 10),
        (1, 1, None, None, (4, 10), 4),
        # Zero is a pause.
        (0, 5, None, None, (1, 10), 0),
    ],
)
def test_scaling_policies(current, wanted, up, down, bounds, expected):
    """Each row: from ``current``, a metric asks for ``wanted``."""
    got = external(wanted, current, up=up or DEFAULT_SCALE_UP, down=down, bounds=bounds)
    assert got == expected


@pytest.mark.parametrize(
    ("events", "expected"),
    [([], 19), ([(-30.0, 3)], 16), ([(-30.0, 3), (-59.0, 2)], 14), ([(-60.0, 3)], 19)],
)
def test_what_was_added_in_the_period_counts(events, expected):
    """``getReplicasChangePerPeriod``: an event as old as the period is over."""
    controller = HpaController(HpaSpec(1, 1000, (ONE,), rules(9)))
    controller._recommendations, controller._added = [(-9999.0, 10)], events
    assert controller.step(0.0, 10, [Pod("a")], {"wanted": 500.0}) == expected


@pytest.mark.parametrize(
    ("told", "current", "wanted", "windows", "expected"),
    [
        # TestNormalizeDesiredReplicasWithBehavior: (seconds ago, recommendation)
        ([(-120, 4), (-60, 5)], 100, 3, (0, 180), 5),
        ([(-120, 4), (-60, 5)], 1, 7, (300, 0), 4),
        ([(-120, 1), (-60, 2)], 100, 3, (300, 0), 3),
        ([(-120, 4), (-60, 5)], 1, 3, (0, 300), 3),
        ([(-600, 10), (-60, 4), (-120, 5), (-540, 9)], 100, 3, (0, 180), 5),
        ([(-6000, 2), (-180, 3)], 2, 1, (300, 300), 2),
        ([(-6000, 2), (-180, 1)], 2, 3, (300, 300), 2),
    ],
)
def test_stabilization(told, current, wanted, windows, expected):
    """The lowest wish of the window for up, the highest of the window for down."""
    fast = {"percent": 100_000, "period": 15}
    up, down = (rules(window=window, **fast) for window in windows)
    down = rules(pods=1000, window=windows[1])
    assert external(wanted, current, at=told, up=up, down=down) == expected


@pytest.mark.parametrize(
    ("values", "pods", "expected"),
    [
        # TestScaleUpCM and its relatives: mean over target, rounded up
        ({"a": 20.0, "b": 10.0, "c": 30.0}, "abc", 6),
        ({"a": 10.9, "b": 10.9, "c": 10.9}, "abc", 3),
        ({"a": 5.0, "b": 5.0, "c": 5.0}, "abc", 2),
        # A pod without a sample carries nothing on the way up ...
        ({"a": 30.0, "b": 30.0}, "abc", 6),
        # ... and the target on the way down: (5 + 5 + 10) / 30
        ({"a": 5.0, "b": 5.0}, "abc", 2),
        # Diluted into the tolerance, or over to the other direction: nothing.
        ({"a": 16.0, "b": 16.0}, "abc", 3),
        ({"a": 13.0, "b": 13.0}, "abc", 3),
        # Pending pods (upper case here) dilute an increase and are left out of a decrease.
        ({"a": 30.0, "b": 30.0}, "abC", 6),
        ({"a": 16.0, "b": 16.0}, "abC", 3),
        ({"a": 2.0, "b": 2.0}, "abC", 1),
        # Nothing is known: nothing is done.
        ({}, "abc", 3),
    ],
)
def test_pods_metric(values, pods, expected):
    """Three replicas, target 10."""
    made = [Pod(name.lower(), pending=name.isupper()) for name in pods]
    controller = HpaController(HpaSpec(1, 100, (QPS,), rules(100), rules(100)))
    controller._recommendations = [(-9999.0, 3)]
    assert controller.step(0.0, 3, made, {"qps": values}) == expected


def test_a_terminating_pod_is_as_if_it_were_gone():
    """Neither its sample nor the lack of one counts."""
    pods = [Pod("a"), Pod("b"), Pod("c", terminating=True)]
    controller = HpaController(HpaSpec(1, 100, (QPS,)))
    assert controller.step(0.0, 2, pods, {"qps": {"a": 10.0, "b": 10.0, "c": 500.0}}) == 2


def test_tolerance_of_each_direction():
    """15 % over is inside one tolerance and outside the other."""
    for tolerance, expected in ((0.2, 10), (0.1, 12)):
        spec = HpaSpec(1, 100, (QPS,), rules(100, tolerance=tolerance))
        pods = [Pod(str(n)) for n in range(10)]
        values = {pod.name: 11.5 for pod in pods}
        assert HpaController(spec).step(0.0, 10, pods, {"qps": values}) == expected


@pytest.mark.parametrize(("known", "expected"), [(45.0, 5), (9.0, 3), (36.0, 4)])
def test_one_metric_unknown_scales_up_but_never_down(known, expected):
    """TestNoScaleDownOneMetricInvalid, TestScaleUpOneMetricEmpty."""
    spec = HpaSpec(1, 100, (QPS, ExternalMetric("gone", 1.0)), rules(100), rules(100))
    pods = [Pod(name) for name in "abc"]
    values = dict.fromkeys("abc", known / 3)
    assert HpaController(spec).step(0.0, 3, pods, {"qps": values}) == expected


def test_the_initial_size_is_remembered_for_the_window():
    """TestScaleDownStabilizeInitialSize: a fresh controller does not shrink at once."""
    controller = HpaController(HpaSpec(1, 100, (ONE,)))
    pods = [Pod("a")]
    sizes = [controller.step(at, 5, pods, {"wanted": 1.0}) for at in (0.0, 150.0, 299.0, 301.0)]
    assert sizes == [5, 5, 5, 1]


PODS = st.lists(st.tuples(st.booleans(), st.booleans(), st.none() | st.floats(0, 1e6)), max_size=8)
RULES = st.builds(
    rules,
    pods=st.integers(0, 5),
    percent=st.integers(0, 200),
    period=st.integers(1, 1800),
    window=st.integers(0, 3600),
    select=st.sampled_from(Select),
    tolerance=st.floats(0, 1),
)


def told(drawn):
    """Pods and readings from what was drawn for each."""
    pods = [Pod(str(n), pending=p, terminating=t) for n, (p, t, _) in enumerate(drawn)]
    return pods, {str(n): v for n, (_, _, v) in enumerate(drawn) if v is not None}


@given(st.lists(PODS, min_size=1, max_size=12), RULES, RULES, st.integers(1, 9), st.integers(0, 30))
def test_never_below_min_or_above_max(steps, up, down, low, more):
    """Whatever the pods and the metric do."""
    controller = HpaController(HpaSpec(low, low + more, (QPS,), up, down))
    replicas = low
    for number, drawn in enumerate(steps):
        pods, values = told(drawn)
        replicas = controller.step(15.0 * number, replicas, pods, {"qps": values})
        assert low <= replicas <= low + more


@given(st.lists(PODS, min_size=1, max_size=12), st.integers(1, 50))
def test_missing_metrics_never_scale_down(steps, replicas):
    """While one of two metrics is absent there is no way down."""
    spec = HpaSpec(1, 100, (QPS, ONE), DEFAULT_SCALE_UP, rules(100))
    controller = HpaController(spec)
    for number, drawn in enumerate(steps):
        pods, values = told(drawn)
        after = controller.step(15.0 * number, replicas, pods, {"qps": values})
        assert after >= replicas
        replicas = after


@given(PODS, st.integers(1, 50))
def test_same_input_same_output(drawn, replicas):
    """Two controllers that were told the same decide the same."""
    pods, values = told(drawn)
    spec = HpaSpec(1, 100, (QPS,), DEFAULT_SCALE_UP, DEFAULT_SCALE_DOWN)
    first, second = (
        HpaController(spec).step(0.0, replicas, pods, {"qps": values}) for _ in range(2)
    )
    assert first == second
