"""So many rollouts at a time: several services with canaries share one operator."""

from dataclasses import dataclass, field, replace

import pytest

from llmservice.adapters.store import Store
from llmservice.core.config import Config
from llmservice.core.observed import ServiceKey
from tests.state.canary_world import CanaryWorld, canary_spec

QUICK = {"steps": [{"weight": 50}], "windowSeconds": 10, "settleSeconds": 1, "bakeSeconds": 5}
RUNNING = {"Stable", "Aborted", "Preflight"}


@dataclass
class Member(CanaryWorld):
    """One of the services that a store knows."""

    store: Store = field(default_factory=Store)
    namespace: str = "a"

    def observe(self):
        """With what the store knows of the others."""
        base = super().observe()
        key = ServiceKey(self.namespace, "mistral")
        known = self.store.snapshot(key, self.now)
        others = known.other_rollouts if known else ()
        return replace(base, service=replace(base.service, key=key), other_rollouts=others)

    def reconcile(self):
        """Decide, and let the store know the status."""
        decision = super().reconcile()
        self.tell()
        return decision

    def tell(self, **metadata):
        """What a watch tells of the service."""
        self.version += 1
        name = {"namespace": self.namespace, "name": "mistral", "uid": "u"}
        version = {"resourceVersion": str(self.version), "generation": self.generation}
        live = {"metadata": {**name, **version, **metadata}, "status": self.status}
        self.store.put("LLMService", live)


def fleet(limit=0, count=3, devices=0, **rollout):
    """Services that serve; all of them were edited in the same moment."""
    store = Store()
    members = [
        Member(
            spec=canary_spec(replicas=2, **{**QUICK, **rollout}),
            reachable=True,
            config=Config(max_concurrent_rollouts=limit, max_rollout_devices=devices),
            store=store,
            namespace=namespace,
        )
        for namespace in "abc"[:count]
    ]
    for member in members:
        member.run(lambda w: w.rollout.get("state", {}).get("routed", False))
    start = max(member.now for member in members)
    for member in members:
        member.now = start
        member.edit_engine(maxNumSeqs=32)
    return members


def run(members, until, seconds=3600):
    """Let time pass for all of them, second by second; gives the most that ran at once."""
    most = 0
    for _ in range(seconds):
        for member in members:
            member.reconcile()
            member.load_pods()
        most = max(most, sum(member.rollout["phase"] not in RUNNING for member in members))
        if until(members):
            return most
        for member in members:
            member.pass_time(1.0)
    raise AssertionError([member.rollout for member in members])


def all_promoted(members):
    return all(m.stable == m.newest and m.rollout["phase"] == "Stable" for m in members)


def test_one_at_a_time():
    """Edited together, rolled out one after the other, and each of them in the end."""
    members = fleet(limit=1)
    assert 1 == run(members, all_promoted)


def test_two_at_a_time():
    """The limit is used up, and kept."""
    members = fleet(limit=2)
    assert 2 == run(members, all_promoted)


def test_no_limit():
    """By default all go at once."""
    members = fleet(limit=0)
    assert 3 == run(members, all_promoted)


def test_the_one_that_waits_says_for_whom_and_needs_no_pods():
    """The status names the service that comes first."""
    first, second = members = fleet(limit=1, count=2)
    run(members, lambda _: first.rollout["phase"] == "Judging")

    assert "Preflight" == second.rollout["phase"]
    assert "RolloutQueue" == second.rollout["reason"]
    assert "others come first: a/mistral" in second.rollout["message"]
    assert {second.stable: 2} == second.pods_by_revision()


def test_a_service_that_goes_makes_way():
    """Deleted in the middle of its rollout, it is waited for no longer."""
    first, second = members = fleet(limit=1, count=2)
    run(members, lambda _: first.rollout["phase"] == "Judging")
    first.tell(deletionTimestamp="2026-01-01T00:00:00Z")

    run([second], all_promoted)


def test_a_forgotten_service_makes_way():
    """As the store forgets it."""
    first, second = members = fleet(limit=1, count=2)
    run(members, lambda _: first.rollout["phase"] == "Judging")
    first.store.forget(ServiceKey("a", "mistral"))

    run([second], all_promoted)


def test_what_failed_makes_way():
    """An aborted rollout is over."""
    first, second = members = fleet(limit=1, count=2)
    run(members, lambda _: first.rollout["phase"] == "Judging")
    first.action = "abort/1"

    run(members, lambda _: second.rollout["phase"] == "Judging")
    assert "Aborted" == first.rollout["phase"]


def test_waiting_long_is_no_reason_to_skip_the_trial():
    """A stable pod that blinks when its turn comes is not a stable revision that is down."""
    first, second = members = fleet(limit=1, count=2)
    run(members, lambda _: first.rollout["phase"] == "Judging")
    for name, pod in second.pods.items():
        second.pods[name] = replace(pod, ready=False)
    first.action = "abort/1"
    run([first], lambda _: first.rollout["phase"] == "Aborted")
    second.reconcile()
    second.reconcile()

    assert "StableNotReady" == second.rollout["reason"]
    run([second], all_promoted)
    assert "Judging" in second.phases


@pytest.mark.parametrize(("devices", "most"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3)])
def test_so_many_accelerators_at_a_time(devices, most):
    """A rollout of two replicas takes two, also one that is larger than the limit."""
    members = fleet(devices=devices)
    assert most == run(members, all_promoted)


def test_replace_takes_no_accelerator():
    """What makes room for itself takes none away."""
    members = fleet(devices=1, capacity="Replace")
    for member in members:
        member.room = 2
    assert 3 == run(members, all_promoted)


def test_what_a_rollout_holds_is_by_its_replicas_and_devices():
    """Known from the first look on, so that others count with it; gone when it is at rest."""
    (world,) = fleet(count=1)
    world.edit(replicas=3, accelerator={**world.spec["accelerator"], "count": 4})
    seen = {}

    def watch(members):
        seen.setdefault(world.rollout["phase"], world.rollout["state"]["devices"])
        return "Draining" in seen and all_promoted(members)

    run([world], watch)
    seen["Stable"] = world.rollout["state"]["devices"]
    assert {"Stable": 0, **dict.fromkeys(seen.keys() - {"Stable"}, 12)} == seen
    assert {"Preflight", "Judging", "Draining"} <= seen.keys()


def test_the_limit_says_what_is_taken():
    """And by whom."""
    first, second = members = fleet(count=2, devices=3)
    run(members, lambda _: first.rollout["phase"] == "Judging")

    assert "RolloutQueue" == second.rollout["reason"]
    waits = "it takes 2 accelerators, 2 of 3 are taken, and others come first: a/mistral"
    assert waits in second.rollout["message"]


@pytest.mark.parametrize(
    ("spec", "held"),
    [
        ({"replicas": 3}, 3),
        ({"replicas": 3, "rollout": {"capacity": "Auto"}}, 3),
        ({"replicas": 3, "rollout": {"capacity": "Replace"}}, 0),
        ({"replicas": 3, "accelerator": {"resource": "cpu"}}, 0),
    ],
)
def test_what_a_rollout_holds(spec, held):
    """The most that it will have at once beside its replicas, from its first look on."""
    (world,) = fleet(count=1)
    rollout = {**world.spec["rollout"], **spec.pop("rollout", {})}
    world.edit(**spec, rollout=rollout)
    world.edit_engine(kvCacheMemoryBytes="4Gi")
    world.run_to("Preflight")

    assert held == world.rollout["state"]["devices"]
