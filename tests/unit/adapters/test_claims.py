"""What the decisions for one service know of the devices of the others."""

from llmservice.adapters.claims import Claims
from llmservice.adapters.resources import LLM_SERVICE
from llmservice.adapters.store import Change, Store, Touched
from llmservice.core.autoscaling.budget import Budget, bounds_within
from llmservice.core.observed import ServiceKey

BUDGETS = (Budget(name="team", namespaces=("team",), devices=8),)
BIG, SMALL, ELSEWHERE = (
    ServiceKey("team", "big"),
    ServiceKey("team", "small"),
    ServiceKey("other", "big"),
)


def a_service(key, version=1, *, size=1, most=8, **autoscaling):
    """A live LLMService with an autoscaler."""
    return {
        "metadata": {
            "namespace": key.namespace,
            "name": key.name,
            "uid": str(key),
            "resourceVersion": str(version),
            "generation": 1,
        },
        "spec": {
            "model": {"id": "org/model"},
            "accelerator": {"count": 1},
            "autoscaling": {"maxReplicas": most, **autoscaling},
        },
        "status": {
            "replicas": size,
            "autoscaling": {"replicas": size, "minReplicas": 1, "maxReplicas": size},
        },
    }


def bound(claims, key):
    """How many replicas a service may have now."""
    return bounds_within(claims.of(key), claims.others(key), BUDGETS).replicas


def test_without_budgets_nothing_is_kept():
    claims = Claims()
    assert [] == list(claims.put(BIG, a_service(BIG)))
    assert claims.of(BIG) is None
    assert () == claims.others(BIG)


def test_a_decision_counts_before_it_is_written():
    """Two workers decide one after the other; the second one knows what the first gave away."""
    claims = Claims(BUDGETS)
    for key in (BIG, SMALL):
        list(claims.put(key, a_service(key)))
    first = a_service(BIG) | {}
    first["status"]["autoscaling"]["wantedReplicas"] = 6
    list(claims.put(BIG, first))
    granted = bound(claims, BIG)
    assert granted >= 6
    claims.reserve(BIG, granted)
    second = a_service(SMALL)
    second["status"]["autoscaling"]["wantedReplicas"] = 6
    list(claims.put(SMALL, second))

    assert bound(claims, SMALL) <= 8 - granted + 1
    assert granted == claims.of(BIG).granted
    claims.settle(BIG)
    assert 1 == claims.of(BIG).granted


def test_who_shares_a_budget_is_looked_at_again():
    """Not those elsewhere, and not for a change that says nothing of devices."""
    store = Store(BUDGETS)
    for key in (BIG, SMALL, ELSEWHERE):
        store.put(LLM_SERVICE.kind, a_service(key))
    touched = store.put(LLM_SERVICE.kind, a_service(BIG, 2, size=3))
    assert Touched(SMALL, Change.Facts) in touched
    assert ELSEWHERE not in {each.key for each in touched}

    assert {BIG} >= {each.key for each in store.put(LLM_SERVICE.kind, a_service(BIG, 3, size=3))}
    gone = store.remove(LLM_SERVICE.kind, a_service(BIG, 4))
    assert Touched(SMALL, Change.Facts) in gone


def test_a_forgotten_service_gives_its_devices_back():
    """Also when its deletion is met by a write, before any event tells of it."""
    store = Store(BUDGETS)
    for key in (BIG, SMALL):
        store.put(LLM_SERVICE.kind, a_service(key))

    assert (Touched(SMALL, Change.Facts),) == tuple(store.forget(BIG))
    assert store.claims.of(BIG) is None


def test_a_service_that_goes_away_claims_nothing():
    claims = Claims(BUDGETS)
    list(claims.put(BIG, a_service(BIG)))
    leaving = a_service(BIG)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    list(claims.put(BIG, leaving))

    assert claims.of(BIG) is None
