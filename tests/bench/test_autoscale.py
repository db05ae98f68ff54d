"""The benchmark of the policies: its traces and its rule. The figures belong to the docs."""

import pytest

from tests.bench.autoscale import TRACES, Figures, requests, shortfalls


def figures(**others):
    """Hours and misses (percent) by policy."""
    return {
        name.replace("_", "-"): Figures(hours, misses / 100, 0, 0)
        for name, (hours, misses) in others.items()
    }


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        (figures(llmservice=(5, 1), keda=(9, 3)), []),
        (figures(llmservice=(5, 1), keda=(4, 3)), []),
        (figures(llmservice=(5, 1), keda=(5, 1)), []),
        (figures(llmservice=(5, 1), keda=(4, 1.4)), ["keda needs 20% less for 1.40% misses"]),
        (figures(llmservice=(5, 3), keda=(9, 1)), ["2.000 points more misses than keda"]),
    ],
)
def test_the_rule(policies, expected):
    """No more misses than the best, no more hours than whoever comes within half a point."""
    assert shortfalls(policies) == expected


def test_a_trace_is_made_from_its_seed():
    """The same twice, another with another seed."""
    trace = TRACES["flash crowd"]
    assert requests(trace, 1) == requests(trace, 1) != requests(trace, 2)


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_follows_its_rate(name):
    """In order, and about as many as the rate says."""
    trace = TRACES[name]
    made = requests(trace, 1)
    assert made == sorted(made, key=lambda request: request.arrival)
    wanted = sum(trace.rate(second / 60) for second in range(int(trace.minutes * 60)))
    assert len(made) == pytest.approx(wanted, rel=0.05)


def test_there_are_traces_of_each_kind():
    """What the comparison claims to cover."""
    assert len(TRACES) >= 8
    assert {"step", "sine", "bursts", "overnight idle", "flash crowd"} <= set(TRACES)
    assert {"heavy-tailed lengths", "one slow replica", "deploy during peak"} <= set(TRACES)
