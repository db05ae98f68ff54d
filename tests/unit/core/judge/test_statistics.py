"""The formulas against numbers worked out by hand, or by simulation."""

import math
import random

import pytest

from llmservice.core.judge.statistics import RatioTest, dispersion, wilson_bounds

TEST = RatioTest.with_risks(tolerated=1.25, detected=2, alpha=0.05, power=0.9)


def test_bounds_are_walds():
    """ln(0.9/0.05) and ln(0.1/0.95)."""
    assert (pytest.approx(2.890, abs=0.001), pytest.approx(-2.251, abs=0.001)) == (
        TEST.abort_at,
        TEST.promote_at,
    )


def test_evidence_of_one_bad_request():
    """With equal exposure: at a ratio of 2 it is the canary's by 2/3, at 1.25 by 5/9."""
    even = 100.0

    assert TEST.evidence((even, 1), (even, 0)) == pytest.approx(math.log(2 / 3 / (5 / 9)))
    assert TEST.evidence((even, 0), (even, 1)) == pytest.approx(math.log(1 / 3 / (4 / 9)))


@pytest.mark.parametrize(("canary", "stable"), [((0, 0), (50, 5)), ((50, 50), (0, 0))])
def test_one_track_alone_is_no_evidence(canary, stable):
    """A ratio needs both."""
    assert 0 == TEST.evidence(canary, stable)


def test_good_requests_alone_are_no_evidence():
    """How many requests there are says nothing about who has the bad ones."""
    assert 0 == TEST.evidence((500, 0), (5000, 0))


@pytest.mark.parametrize(("limit", "requests"), [(0.02, 133), (0.01, 268)])
def test_wilson_bound_without_a_bad_request(limit, requests):
    """z^2 / (n + z^2) is under the limit from so many requests on."""
    assert wilson_bounds(0, requests, 1.645)[1] <= limit < wilson_bounds(0, requests - 1, 1.645)[1]


def test_wilson_bounds_of_a_known_case():
    """15 of 148 at 1.96: 0.062 to 0.161 (Wilson 1927's interval by hand)."""
    low, high = wilson_bounds(15, 148, 1.96)

    assert (0.062, 0.160) == (pytest.approx(low, abs=0.001), pytest.approx(high, abs=0.001))


def test_wilson_knows_nothing_without_requests():
    """Anything is possible."""
    assert (0.0, 1.0) == wilson_bounds(0, 0, 1.645)


def test_dispersion_of_independent_requests_is_near_one():
    """Pearson's chi-squared over its degrees of freedom."""
    rng = random.Random(3)
    bad = [sum(rng.random() < 0.1 for _ in range(50)) for _ in range(400)]

    found = dispersion(400, 400 * 50, sum(bad), sum(x * x / 50 for x in bad))

    assert found == pytest.approx(1, abs=0.2)


def test_dispersion_sees_bursts_and_is_bounded():
    """All bad requests in one window of ten."""
    assert 10 == dispersion(10, 1000, 100, 100 * 100 / 100)


@pytest.mark.parametrize(
    "sums", [(4, 400, 40, 16.0), (9, 900, 0, 0.0), (9, 900, 900, 900.0), (0, 0, 0, 0.0)]
)
def test_dispersion_unknown_is_one(sums):
    """Too few windows, or nothing that could scatter."""
    assert 1 == dispersion(*sums)


def test_slack_keeps_identical_versions_half_a_step_away():
    """In logarithms; where they are further away, there is none."""
    step = math.log(2 / 1.25)

    assert math.log(1.25 * TEST.slack(1.2) / 1.2) == pytest.approx(step / 2)
    assert 1 == TEST.slack(0.5)
