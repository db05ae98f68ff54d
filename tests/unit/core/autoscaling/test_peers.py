"""Other policies: the arithmetic of their sources, and that all of them keep the bounds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice.core.autoscaling.peers import POLICIES, fresh_policy
from llmservice.core.autoscaling.policy import NAME, PodView, Sample, View
from llmservice.core.autoscaling.simulation import Scenario

SCENARIO = Scenario(min_replicas=1, max_replicas=16)


def decide(name, samples, times=(15.0,), replicas=None, in_flight=0):
    """What a policy says at the last of some times, seeing the same all the while."""
    policy = fresh_policy(name, SCENARIO)
    pods = tuple(
        PodView(f"p{n}", ready=s is not None, sample=s and Sample(*s))
        for n, s in enumerate(samples)
    )
    wanted = None
    for now in times:
        wanted = policy.decide(View(now, replicas or len(pods), pods, in_flight=in_flight))
    return wanted


def test_ours_is_first():
    """The order of tables and of JSON lines."""
    assert next(iter(POLICIES)) == NAME == "llmservice"


@pytest.mark.parametrize("name", ["queue-only", "keda"])
def test_a_queue_of_twenty_five_is_five_replicas(name):
    """Target 5; and an empty queue is the minimum, once the window is over."""
    assert decide(name, [(25, 48, 0.9)]) == 5
    idle = [15.0 * n for n in range(30)]
    assert decide(name, [(0, 40, 0.8)] * 4, idle[:15]) == 4
    assert decide(name, [(0, 40, 0.8)] * 4, idle) == 1


@pytest.mark.parametrize(
    ("samples", "replicas", "expected"),
    [
        ([(0, 20, 0.75)], 1, 2),  # 0.05 to spare
        ([(3, 20, 0.1)], 1, 2),  # a queue of 2 to spare
        ([(0, 20, 0.75), None], 2, 2),  # one is on its way
        ([(0, 20, 0.4), (0, 20, 0.4)], 2, 2),  # 0.8 on one would be too much
        ([(0, 20, 0.3), (0, 20, 0.3)], 2, 1),
        ([(0, 20, 0.1)], 1, 1),
        ([(9, 48, 0.9)] * 3, 3, 4),  # all saturated
    ],
)
def test_wva(samples, replicas, expected):
    """docs/saturation-analyzer.md, thresholds 0.80 and 5, spare 0.1 and 3."""
    times = [15.0 * n for n in range(1, 40)]
    assert decide("kserve-wva", samples, times, replicas) == expected


def test_kubeai_averages_ten_minutes_that_begin_with_zeros():
    """60 requests over a target of 33.6: as two replicas only after 34 of 60 intervals."""
    assert decide("kubeai", [(0, 0, 0)], [10.0 * n for n in range(33)], in_flight=60) == 1
    assert decide("kubeai", [(0, 0, 0)], [10.0 * n for n in range(34)], in_flight=60) == 2


def test_kubeai_goes_down_at_the_fourth_wish():
    """Three intervals of 10 s are its default delay of 30 s."""
    times = [10.0 * n for n in range(4)]
    assert decide("kubeai", [(0, 0, 0)] * 5, times[:3]) == 5
    assert decide("kubeai", [(0, 0, 0)] * 5, times) == 1


@pytest.mark.parametrize(
    ("samples", "replicas", "expected"),
    [
        ([(0, 0, 0.54)] * 2, 2, 2),  # inside the tolerance
        ([(0, 0, 0.75)] * 2, 2, 3),
        ([(0, 0, 1.0)] * 2, 2, 4),
        ([(0, 0, 1.0), None], 2, 2),  # a starting one halves it
        ([(0, 0, 0.1)] * 4, 4, 2),  # no less than half
    ],
)
def test_apa(samples, replicas, expected):
    """Target 0.5, tolerance 0.1, rates 2; down after 300 s."""
    times = [10.0 * n for n in range(40)]
    assert decide("aibrix-apa", samples, times, replicas) == expected


def test_kpa_panics_at_twice_the_load():
    """Full caches on one replica: two at once, though the 180 s before were quiet."""
    policy = fresh_policy("aibrix-kpa", SCENARIO)

    def at(now, usage):
        pods = (PodView("a", ready=True, sample=Sample(0, 0, usage)),)
        return policy.decide(View(now, 1, pods))

    quiet = {at(10.0 * n, 0.1) for n in range(12)}
    busy = [at(120.0 + 10.0 * n, 1.0) for n in range(6)]
    assert quiet == {1}
    assert busy[-1] == 2


VIEWS = st.lists(
    st.tuples(
        st.booleans(),
        st.none() | st.builds(Sample, st.integers(0, 999), st.integers(0, 48), st.floats(0, 1)),
    ),
    min_size=1,
    max_size=16,
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=30)
@given(views=st.lists(VIEWS, max_size=8), in_flight=st.integers(0, 9999))
def test_bounds(name, views, in_flight):
    """From a number inside the bounds no policy leaves them."""
    policy, replicas = fresh_policy(name, SCENARIO), 1
    for n, drawn in enumerate(views):
        pods = tuple(PodView(f"p{k}", ready=r, sample=s) for k, (r, s) in enumerate(drawn))
        view = View(60.0 * n, replicas, pods, held=in_flight // 2, in_flight=in_flight)
        replicas = policy.decide(view)
        assert 1 <= replicas <= 16
