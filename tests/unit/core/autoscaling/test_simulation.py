"""The fleet around a policy: cold starts, draining, deployments, queues, and the bill."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice.core.autoscaling.engine import EngineModel, Request
from llmservice.core.autoscaling.peers import POLICIES, fresh_policy
from llmservice.core.autoscaling.simulation import Queueing, Scenario, simulate

ENGINE = EngineModel(cold_start_seconds=100.0)
SCENARIO = Scenario(ENGINE)


class Plan:
    """A policy that knows beforehand: from which time on how many replicas."""

    interval = 10.0

    def __init__(self, *steps):
        self.steps, self.views = steps, []

    def decide(self, view):
        self.views.append(view)
        return [number for at, number in self.steps if at <= view.now][-1]

    def ready(self):
        """(time, serving pods), where it changes."""
        seen = [(view.now, len(view.serving)) for view in self.views]
        return seen[:1] + [after for before, after in pairwise(seen) if before[1] != after[1]]


def constant(rate, seconds, prompt=400, output=200):
    """Requests at equal distances."""
    return [Request(n / rate, prompt, output) for n in range(int(rate * seconds))]


def test_the_bill_of_one_replica():
    """It counts until the last request has ended."""
    result = simulate([Request(0.0, 10, 10), Request(3600.0, 10, 1)], Plan((0, 1)), SCENARIO)
    assert result.gpu_hours == pytest.approx(1.0, abs=0.001)
    assert (result.scale_changes, result.slo_miss_rate) == (0, 0.0)


def test_a_replica_is_paid_for_while_it_starts_and_serves_after():
    """Asked for at 10 s, ready at 110 s, paid from the beginning."""
    plan = Plan((0, 1), (10, 2))
    result = simulate([*constant(0.1, 1000), Request(1000.0, 1, 1)], plan, SCENARIO)
    assert plan.ready() == [(10.0, 1), (110.0, 2)]
    assert result.gpu_hours == pytest.approx((1000 + 990) / 3600, abs=0.01)
    assert result.scale_changes == 1


def test_a_removed_replica_finishes_what_it_has():
    """Nothing is lost or moved; it is paid for until it is empty."""
    plan = Plan((0, 1), (10, 2), (200, 1))
    requests = constant(2, 300, output=1000)
    result = simulate(requests, plan, SCENARIO)
    draining = [view.now for view in plan.views if any(pod.terminating for pod in view.pods)]
    assert min(draining) == 210.0
    assert max(draining) > 225.0
    last = plan.views[-1].now
    assert result.gpu_hours * 3600 > last + max(draining) - 10


def test_those_that_do_not_serve_yet_are_removed_first():
    """Three are asked for, and taken back before they are ready."""
    plan = Plan((0, 1), (10, 4), (50, 1))
    simulate(constant(1, 300), plan, SCENARIO)
    assert plan.ready() == [(10.0, 1)]
    assert all(len(view.pods) == 1 for view in plan.views if view.now > 60)


def test_a_deployment_replaces_one_at_a_time():
    """Never less than three serve, never more than four exist, and it ends with three new ones."""
    plan = Plan((0, 3))
    scenario = replace(SCENARIO, min_replicas=3, deploy_at=60.0)
    simulate(constant(1, 700), plan, scenario)
    assert {len(view.serving) for view in plan.views} == {3}
    assert {sum(not p.terminating for p in v.pods) for v in plan.views} == {3, 4}
    assert [pod.name for pod in plan.views[-1].serving] == ["pod-3", "pod-4", "pod-5"]


def test_states_of_a_starting_pod():
    """Pending, then loading without gauges, then ready with what the next scrape reads."""
    plan = Plan((0, 1), (10, 2))
    simulate(constant(1, 200), plan, replace(SCENARIO, scrape_seconds=15.0))
    second = {view.now: view.pods[1] for view in plan.views if len(view.pods) > 1}
    assert (second[40.0].pending, second[50.0].pending) == (True, False)
    assert (second[100.0].ready, second[100.0].sample) == (False, None)
    assert (second[110.0].ready, second[120.0].sample is None) == (True, False)


def test_a_blackout_makes_samples_absent_after_three_scrapes():
    """An old sample is no sample; afterwards they come back."""
    plan = Plan((0, 1))
    simulate(constant(1, 300), plan, replace(SCENARIO, blackout=(100.0, 200.0)))
    absent = [view.now for view in plan.views if view.pods[0].sample is None and view.now > 10]
    assert (min(absent), max(absent)) == (150.0, 200.0)


def test_what_waits_before_the_engines_goes_to_the_newcomer():
    """600 requests at once, and a second replica 110 s later: in an engine they stay behind."""
    requests = [Request(0.0, 400, 200) for _ in range(600)]
    done = {}
    for queueing in Queueing:
        plan = Plan((0, 1), (10, 2))
        simulate(requests, plan, replace(SCENARIO, queueing=queueing))
        done[queueing] = plan.views[-1].now
        if queueing is Queueing.DATA_PATH:
            assert plan.views[0].held > 500
    assert done[Queueing.DATA_PATH] < done[Queueing.ENGINE] - 15


def test_the_slow_replica_is_the_first():
    """And it makes everybody wait."""
    plain, slow = (
        simulate(constant(3, 300), Plan((0, 1)), replace(SCENARIO, slow_replica=factor))
        for factor in (1.0, 3.0)
    )
    assert slow.slo_miss_rate > plain.slo_miss_rate + 0.5


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_trace_gives_the_same_result(name):
    """To the last digit, and the requests are not changed."""
    requests = constant(5, 200)
    first, second = (simulate(requests, fresh_policy(name, SCENARIO), SCENARIO) for _ in range(2))
    assert first == second
    assert requests == constant(5, 200)


@pytest.mark.parametrize("queueing", Queueing)
@pytest.mark.parametrize("rate", [0.5, 3, 4, 4.5, 6, 12])
def test_constant_load_does_not_oscillate(rate, queueing):
    """Once it fits, our fleet stays as it is; a queue alone would saw."""
    scenario = replace(SCENARIO, queueing=queueing)
    requests = constant(rate, 2700)
    result = simulate(requests, fresh_policy("llmservice", scenario), scenario)
    late = {moment.replicas for moment in result.timeline if 1500 < moment.at < 2700}
    assert len(late) == 1


def test_a_queue_alone_saws_on_constant_load():
    """What the holding metric is for."""
    scenario = SCENARIO
    ours, queue = (
        simulate(constant(6, 2400), fresh_policy(name, scenario), scenario)
        for name in ("llmservice", "queue-only")
    )
    assert queue.scale_changes > 2 * ours.scale_changes
    assert queue.gpu_hours > 2 * ours.gpu_hours
    assert queue.slo_miss_rate > ours.slo_miss_rate


def test_a_blackout_at_peak_removes_nothing():
    """Load ends while nothing can be read: as many replicas as before, until something can."""
    scenario = replace(SCENARIO, blackout=(1200.0, 2400.0))
    requests = [*constant(8, 1200), Request(3600.0, 1, 1)]
    result = simulate(requests, fresh_policy("llmservice", scenario), scenario)
    dark = {moment.replicas for moment in result.timeline if 1260 < moment.at <= 2400}
    assert len(dark) == 1
    assert dark.pop() > result.timeline[-1].replicas


LOADS = st.lists(
    st.tuples(st.floats(0, 900), st.integers(1, 4000), st.integers(1, 1500)),
    min_size=1,
    max_size=60,
)


@settings(max_examples=20, deadline=None)
@given(LOADS, st.sampled_from(list(POLICIES)), st.sampled_from(Queueing), st.integers(1, 3))
def test_every_request_ends_inside_the_bounds(drawn, name, queueing, least):
    """Conservation, whatever comes: the simulation ends and nobody is left without a token."""
    requests = [Request(*each) for each in sorted(drawn)]
    scenario = Scenario(ENGINE, least, least + 2, queueing=queueing, deploy_at=300.0)
    result = simulate(requests, fresh_policy(name, scenario), scenario)
    assert 0 <= result.slo_miss_rate <= 1
    assert 0 < result.ttft_p95 < float("inf")
    assert all(least <= moment.replicas <= least + 2 for moment in result.timeline)
    assert result.gpu_hours * 3600 >= least * requests[-1].arrival
