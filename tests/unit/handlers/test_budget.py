"""A fight over a field is slowed down; ordinary work is not."""

import pytest

from llmservice.core.observed import ServiceKey
from llmservice.handlers.budget import WriteBudget

KEY = ServiceKey("team", "mistral")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_burst_is_free_then_one_write_every_two_seconds():
    """Sixty writes at once are a large rollout; the sixty-first is a fight."""
    clock = Clock()
    budget = WriteBudget(clock)
    for _ in range(60):
        assert 0 == budget.seconds_to_wait(KEY)
        budget.spend(KEY, 1)
    budget.spend(KEY, 1)

    assert 2 == pytest.approx(budget.seconds_to_wait(KEY))

    clock.now += 2
    assert 0 == budget.seconds_to_wait(KEY)


def test_services_do_not_pay_for_each_other():
    """A fight over one leaves the others alone."""
    budget = WriteBudget(Clock())
    budget.spend(KEY, 1000)

    assert 0 == budget.seconds_to_wait(ServiceKey("team", "other"))


def test_quiet_services_take_no_memory():
    """What was paid back is forgotten."""
    clock = Clock()
    budget = WriteBudget(clock)
    budget.spend(KEY, 10)
    clock.now += 100
    budget.seconds_to_wait(KEY)

    assert {} == budget._spent
