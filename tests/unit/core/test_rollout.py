"""Replicas per revision while one replaces another: a simulated cluster, and its laws."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from llmservice.api.v1alpha1 import RolloutSpec
from llmservice.core.observed import DeploymentFacts
from llmservice.core.rollout import (
    SCHEDULING_GRACE,
    Capacity,
    NoRoom,
    RolloutInput,
    plan_rollout,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class FakeCluster:
    """Pods by revision on a cluster with a number of places; each step loads one pod."""

    places: int
    asked: dict[str, int]
    ready: dict[str, int]
    pending_since: datetime | None = None
    now: datetime = NOW
    log: list[dict[str, int]] = field(default_factory=list)

    def placed(self, revision):
        """Pods that found a place: those of the old revision came first."""
        free = self.places - sum(n for r, n in self.asked.items() if r != revision)
        return max(0, min(self.asked.get(revision, 0), free))

    def step(self, target, wanted, policy, replacing):
        """One reconcile, then one pod of the target becomes ready if it has a place."""
        loading = self.ready.get(target, 0) < self.placed(target)
        waiting = self.asked.get(target, 0) > self.placed(target) and not loading
        self.pending_since = (self.pending_since or self.now) if waiting else None
        no_room = NoRoom(self.pending_since, "no GPU", freeing_helps=True) if waiting else None
        plan = plan_rollout(
            RolloutInput(
                target=target,
                wanted=wanted,
                deployments={
                    r: DeploymentFacts(n, n, self.ready[r]) for r, n in self.asked.items()
                },
                policy=policy,
                no_room=no_room,
                now=self.now,
                replacing=replacing,
            )
        )
        if plan.replicas["old"] < self.asked["old"]:
            self.pending_since = None  # while a pod stops, nobody is without hope of a place
        self.asked |= plan.replicas
        self.ready = {r: min(self.ready.get(r, 0), n) for r, n in self.asked.items()}
        if self.ready[target] < self.placed(target):
            self.ready[target] += 1
        self.now += timedelta(seconds=20)
        return plan


@given(wanted=st.integers(0, 12), spare=st.integers(1, 12))
def test_surge_never_serves_with_less(wanted, spare):
    """With a spare place, at least the wanted number of pods is ready at every moment."""
    cluster = FakeCluster(wanted + spare, {"old": wanted}, {"old": wanted})
    for _ in range(40 * max(1, wanted)):
        plan = cluster.step("new", wanted, RolloutSpec(), replacing=False)

        assert Capacity.Surge is plan.capacity
        assert sum(cluster.ready.values()) >= wanted
        assert sum(cluster.asked.values()) <= wanted + max(1, wanted // 4)
        if plan.complete:
            break
    assert {"old": 0, "new": wanted} == cluster.asked


@given(wanted=st.integers(1, 12))
def test_full_cluster_still_finishes(wanted):
    """Without a spare place the rollout makes room, keeps most pods serving, and ends."""
    cluster = FakeCluster(wanted, {"old": wanted}, {"old": wanted})
    least = wanted
    plans = []
    replacing = False
    for _ in range(60 * wanted):
        plan = cluster.step("new", wanted, RolloutSpec(), replacing)
        plans.append(plan)
        replacing = plan.capacity is Capacity.Replace
        least = min(least, sum(cluster.ready.values()))
        if plan.complete:
            break

    assert {"old": 0, "new": wanted} == cluster.asked
    assert least >= wanted - max(1, wanted // 4)
    assert Capacity.Replace in {plan.capacity for plan in plans}


def _input(**changes):
    values = {
        "target": "new",
        "wanted": 2,
        "deployments": {"old": DeploymentFacts(2, 2, 2), "new": DeploymentFacts(1, 1, 0)},
        "policy": RolloutSpec(),
        "no_room": NoRoom(NOW, "0/1 nodes: Insufficient nvidia.com/gpu", freeing_helps=True),
        "now": NOW,
    }
    return RolloutInput(**{**values, **changes})


def test_autoscaler_gets_its_time():
    """Right after the scheduler's no, nothing is stopped, and we look again when the grace ends."""
    plan = plan_rollout(_input())

    assert {"old": 2, "new": 1} == plan.replicas
    assert NOW + SCHEDULING_GRACE == plan.check_again_at


def test_old_pod_makes_room_after_the_grace():
    """When the grace is over this is said, with the scheduler's reason, and then done."""
    said = plan_rollout(_input(now=NOW + SCHEDULING_GRACE))
    done = plan_rollout(_input(now=NOW + SCHEDULING_GRACE, replacing=True))

    assert {"old": 2, "new": 1} == said.replicas
    assert Capacity.Replace is said.capacity
    assert "Insufficient nvidia.com/gpu" in said.why
    assert {"old": 1, "new": 1} == done.replicas


def test_nothing_stops_when_it_would_not_help():
    """A new pod that no old pod's place would fit never costs a serving pod."""
    room = NoRoom(NOW, "0/1 nodes: node(s) didn't match affinity", freeing_helps=False)
    plan = plan_rollout(_input(no_room=room, now=NOW + timedelta(days=1)))

    assert {"old": 2, "new": 1} == plan.replicas


def test_surge_waits_for_room_when_told():
    """`capacity: Surge` waits for ever rather than stopping a serving pod."""
    plan = plan_rollout(_input(policy=RolloutSpec(capacity="Surge"), now=NOW + timedelta(days=1)))

    assert {"old": 2, "new": 1} == plan.replicas


def test_replace_needs_no_proof():
    """`capacity: Replace` stops an old pod before a new one exists."""
    deployments = {"old": DeploymentFacts(2, 2, 2)}
    plan = plan_rollout(
        _input(
            policy=RolloutSpec(capacity="Replace"),
            deployments=deployments,
            no_room=None,
            replacing=True,
        )
    )

    assert {"old": 1, "new": 0} == plan.replicas


def test_recreate_starts_after_all_old_pods_are_gone():
    """`strategy: Recreate` never has both revisions at once."""
    policy = RolloutSpec(strategy="Recreate")
    stopping = {"old": DeploymentFacts(0, 1, 0)}

    assert {"old": 0, "new": 0} == plan_rollout(_input(policy=policy, no_room=None)).replicas
    assert {"old": 0, "new": 0} == plan_rollout(
        _input(policy=policy, deployments=stopping, no_room=None)
    ).replicas
    gone = {"old": DeploymentFacts(0, 0, 0)}
    assert {"old": 0, "new": 2} == plan_rollout(
        _input(policy=policy, deployments=gone, no_room=None)
    ).replicas


def test_pods_that_never_served_go_first():
    """A second edit during a failing rollout drops the failing pods, not the serving ones."""
    deployments = {
        "stable": DeploymentFacts(2, 2, 2),
        "broken": DeploymentFacts(1, 1, 0),
        "new": DeploymentFacts(0, 0, 0),
    }
    plan = plan_rollout(_input(deployments=deployments, no_room=None))

    assert {"stable": 2, "broken": 0, "new": 0} == plan.replicas


def test_failing_revision_leaves_the_stable_one_alone():
    """New pods that never become ready stop the rollout with every old pod serving."""
    deployments = {"old": DeploymentFacts(2, 2, 2), "new": DeploymentFacts(1, 1, 0)}
    plan = plan_rollout(_input(deployments=deployments, no_room=None))

    assert {"old": 2, "new": 1} == plan.replicas


def test_scale_change_needs_no_rollout():
    """Without another revision the target just gets what is wanted."""
    deployments = {"new": DeploymentFacts(1, 1, 1)}
    plan = plan_rollout(_input(deployments=deployments, no_room=None, wanted=5))

    assert {"new": 5} == plan.replicas
    assert not plan.complete
