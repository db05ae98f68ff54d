"""The benchmark of the way from a queue to a scale: a small run has both of its figures.

No times are asserted here; they belong to docs/performance.md.
"""

import pytest

from e2e.cluster.control_plane import ControlPlane
from tests.bench.reaction import Plan, measure

_EVERY_SECOND = ["--horizontal-pod-autoscaler-sync-period=1s"]


@pytest.mark.contract
async def test_a_small_run_has_its_figures() -> None:
    """Each jump is seen, and then answered with another size."""
    with ControlPlane(flags={"kube-controller-manager": _EVERY_SECOND}) as plane:
        figures = await measure(plane, Plan(jumps=2, period=1))

    seen, scaled = figures.lines()
    assert (2, 2) == (seen["jumps"], scaled["jumps"])
    for line in (seen, scaled):
        assert 0 < line["min_s"] <= line["median_s"] <= line["max_s"]
