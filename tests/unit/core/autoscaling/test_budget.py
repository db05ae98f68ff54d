"""Budgets of devices: who may have how many, how devices change hands, and what is said of it."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.autoscaling.budget import (
    Bound,
    Budget,
    Claim,
    bounds_within,
    claim_of,
    parse_budgets,
    share_a_budget,
)

GPU = "nvidia.com/gpu"


def budget(devices, name="team-a", **more):
    return Budget(name=name, devices=devices, **more)


def claim(service, replicas=0, **more):
    """A service that is autoscaled, 1 to 100, with pods of one device, and wants what it has."""
    given_ = {"labels": {}, "resource": GPU, "devices": 1, "least": 1, "most": 100}
    mine = {"pods": replicas, "wanted": replicas, "granted": replicas}
    return Claim(service, replicas=replicas, **(given_ | mine | more))


def fixed(service, replicas, **more):
    """A service without an autoscaler."""
    return claim(service, replicas, least=replicas, most=replicas, **more)


def bounds(claims, *budgets):
    """What each may have, by service."""
    return {
        each.service: bounds_within(
            each, [other for other in claims if other is not each], budgets
        ).replicas
        for each in claims
    }


# --- who gets what ------------------------------------------------------------------------------


def test_a_service_without_a_budget_has_its_own_bound():
    """Another namespace, label or resource."""
    budgets = (
        budget(1, namespaces=("b",)),
        budget(1, labels={"team": "x"}),
        budget(1, resource="amd.com/gpu"),
    )

    assert Bound(100, "") == bounds_within(claim("a/one", labels={"team": "y"}), [], budgets)


@pytest.mark.parametrize(
    "covering",
    [budget(4), budget(4, namespaces=("b", "a")), budget(4, labels={"team": "x"})],
)
def test_one_alone_may_have_all(covering):
    """Whatever it is found by."""
    one = claim("a/one", labels={"team": "x", "tier": "gold"})

    assert 4 == bounds_within(one, [], [covering]).replicas


def test_only_whole_replicas_count():
    """Of 15 devices, 4 each."""
    assert {"a/one": 3} == bounds([claim("a/one", devices=4)], budget(15))


def test_new_services_share_alike():
    """Minimums first, then as much room for each."""
    claims = [claim("a/one"), claim("a/two", least=3), claim("a/three", most=2)]

    assert {"a/one": 4, "a/two": 6, "a/three": 2} == bounds(claims, budget(12))


def test_minimums_come_before_what_higher_priorities_want():
    """The lowest priority has its minimum, if it is the last thing that fits."""
    claims = [claim("a/high", least=2, wanted=9, priority=9), claim("a/low", least=3)]

    assert {"a/high": 2, "a/low": 3} == bounds(claims, budget(5))


def test_minimums_that_do_not_fit_are_those_of_low_priorities():
    """By priority, then by name; said so."""
    claims = [claim("a/a", least=2), claim("a/b", least=2), claim("a/high", least=2, priority=1)]

    assert {"a/high": 2, "a/a": 1, "a/b": 0} == bounds(claims, budget(3))
    bound = bounds_within(claims[1], [claims[0], claims[2]], [budget(3)])
    assert (
        "minReplicas 2 does not fit: waits for 2 nvidia.com/gpu of budget team-a" in bound.message
    )


def test_a_small_minimum_fits_where_a_large_one_does_not():
    """Devices that nobody before it can use are there for it."""
    claims = [claim("a/large", devices=8, priority=1), claim("a/small", devices=1)]

    assert {"a/large": 0, "a/small": 5} == bounds(claims, budget(5))


def test_running_minimums_are_never_taken():
    """Neither for a higher priority, nor when the budget is lowered."""
    low, high = claim("a/low", 5, least=2), claim("a/high", least=4, priority=9)

    assert {"a/low": 2, "a/high": 0} == bounds([low, high], budget(1))


def test_fixed_services_use_what_they_use():
    """Others share the rest, if there is one."""
    one = claim("a/one")

    assert {"a/one": 2, "a/fixed": 6} == bounds([one, fixed("a/fixed", 6)], budget(8))
    assert {"a/one": 0, "a/fixed": 9} == bounds([one, fixed("a/fixed", 9)], budget(8))


def test_several_budgets_hold_together():
    """A replica needs its devices in each; what one budget denies is free for others in another."""
    claims = [claim("a/one", wanted=9), claim("a/two", wanted=9), claim("b/one", wanted=9)]
    team = budget(4, name="team-a", namespaces=("a",))

    assert {"a/one": 2, "a/two": 2, "b/one": 6} == bounds(claims, budget(10, name="all"), team)


def test_equals_have_equally_many_devices_not_replicas():
    """One with large replicas gets fewer."""
    claims = [claim("a/large", devices=4, wanted=9), claim("a/small", wanted=99)]

    assert {"a/large": 2, "a/small": 8} == bounds(claims, budget(16))


# --- how devices change hands -------------------------------------------------------------------


def test_nothing_changes_while_nobody_waits():
    """Scaling within the bounds is nobody else's business, however uneven they are."""
    claims = [claim("a/one", 1, granted=13), claim("a/two", 2, granted=2)]

    assert {"a/one": 13, "a/two": 2} == bounds(claims, budget(16))


def test_room_to_grow_goes_to_who_waits():
    """First the other one's bound falls, then the own one rises."""
    one, two = claim("a/one", 1, granted=14), claim("a/two", 2, wanted=3)
    assert {"a/one": 7, "a/two": 2} == bounds([one, two], budget(16))

    one = replace(one, granted=7)
    assert {"a/one": 7, "a/two": 9} == bounds([one, two], budget(16))


def test_room_to_grow_knows_no_priority():
    """Whoever needs it first takes it; who is more important gets it back."""
    claims = [claim("a/high", priority=9), claim("a/low")]

    assert {"a/high": 4, "a/low": 4} == bounds(claims, budget(8))


def test_what_is_not_needed_any_more_is_not_taken():
    """The one that waited does so no longer, before the other one's HPA had looked."""
    claims = [claim("a/high", 4, priority=1), claim("a/low", 4, granted=3)]

    assert {"a/high": 4, "a/low": 4} == bounds(claims, budget(8))


def test_a_lower_priority_gives_back_one_replica_for_each_that_waits():
    """Its bound falls; the higher one rises when the pod that stops is gone."""
    high, low = claim("a/high", 4, wanted=5, priority=1), claim("a/low", 4, wanted=5)
    assert {"a/high": 4, "a/low": 3} == bounds([high, low], budget(8))

    stopping = replace(low, granted=3, replicas=3, wanted=4)
    assert {"a/high": 4, "a/low": 3} == bounds([high, stopping], budget(8))

    gone = replace(stopping, pods=3)
    assert {"a/high": 5, "a/low": 3} == bounds([high, gone], budget(8))


def test_nobody_gives_back_what_nobody_can_use():
    """All of the lower one's surplus would not be enough for one more large replica."""
    large = claim("a/large", 1, devices=8, wanted=2, priority=1)
    small = claim("a/small", 8)

    assert {"a/large": 1, "a/small": 8} == bounds([large, small], budget(16))


def test_of_equals_that_are_level_the_one_that_has_it_keeps_it():
    """Nothing is gained by changing hands."""
    claims = [claim("a/a", 7, wanted=8), claim("a/b", 8, wanted=9)]

    assert {"a/a": 7, "a/b": 8} == bounds(claims, budget(15))


def test_pods_that_a_rollout_adds_hold_devices_but_take_none():
    """Nobody rises into them, and nobody falls for them."""
    canary = claim("a/canary", 4, pods=6)
    waiting, content = claim("a/waiting", 2, wanted=3), claim("a/content", 4)

    assert {"a/canary": 4, "a/waiting": 2, "a/content": 4} == bounds(
        [canary, waiting, content], budget(12)
    )


def test_a_lower_bound_of_its_own_holds_at_once():
    """Though nobody waits."""
    assert {"a/one": 3} == bounds([claim("a/one", 5, most=3)], budget(8))


# --- whatever the services --------------------------------------------------------------------

PRIORITIES = st.integers(-2, 2)
SIZES = st.integers(1, 4)


@st.composite
def any_claims(draw, devices=SIZES):
    """Up to five services in any state, also in such as should not be."""
    claims = []
    for number in range(draw(st.integers(1, 5))):
        least = draw(st.integers(1, 4))
        replicas, size = draw(st.integers(0, 8)), draw(devices)
        claims.append(
            claim(
                f"a/{number}",
                replicas,
                devices=size,
                pods=replicas + draw(st.integers(-2, 2)),
                least=least,
                most=least + draw(st.integers(0, 6)),
                wanted=replicas + draw(st.integers(0, 1)),
                granted=max(0, replicas + draw(st.integers(-1, 4))),
                priority=draw(PRIORITIES),
            )
            if draw(st.booleans())
            else fixed(f"a/{number}", replicas, devices=size)
        )
    return claims


@given(any_claims(), st.integers(0, 40))
def test_what_is_held_and_granted_stays_within_the_budget(claims, devices):
    """Or is no more than was held."""
    found = bounds(claims, budget(devices))
    after = sum(max(each.held, each.devices * found[each.service]) for each in claims)

    assert after <= max(devices, sum(each.held for each in claims))


@given(any_claims(), st.integers(0, 40), st.integers(0, 20))
def test_overlapping_budgets_are_each_kept(claims, devices, fewer):
    """That of the cluster, and that of some in it."""
    team = {each.service: int(each.service[-1]) % 2 == 0 for each in claims}
    claims = [replace(each, labels={"team": "x"} if team[each.service] else {}) for each in claims]
    part = budget(fewer, name="x", labels={"team": "x"})
    found = bounds(claims, budget(devices), part)
    for each, members in ((devices, claims), (fewer, [c for c in claims if team[c.service]])):
        after = sum(max(one.held, one.devices * found[one.service]) for one in members)

        assert after <= max(each, sum(one.held for one in members))


@given(any_claims(), st.integers(0, 40), st.randoms())
def test_the_order_of_the_others_does_not_matter(claims, devices, random):
    """All see the same line."""
    before = bounds(claims, budget(devices))
    random.shuffle(claims)

    assert before == bounds(claims, budget(devices))


@given(any_claims(devices=st.just(2)), st.integers(0, 40), st.integers(0, 20))
def test_more_devices_lower_nobody(claims, devices, more):
    """Where replicas are of one size: else a large one may fit at last, and small ones leave."""
    before, after = bounds(claims, budget(devices)), bounds(claims, budget(devices + more))

    assert all(before[service] <= after[service] for service in before)


@dataclass
class World:
    """Services with loads, their HPAs and pods that take their time to stop."""

    claims: list[Claim]
    devices: int
    loads: list[int]
    """Replicas that each one's HPA would have without bounds."""
    desired: list[int] = field(default_factory=list)

    def reconcile(self, number):
        """The operator grants a bound."""
        mine = self.claims[number]
        others = [each for each in self.claims if each is not mine]
        bound = bounds_within(mine, others, [budget(self.devices)])
        self.claims[number] = replace(mine, granted=bound.replicas)

    def scale(self, number):
        """An HPA does what it can, and says whether it would like more."""
        mine = self.claims[number]
        if mine.least == mine.most == mine.replicas:
            return
        size = min(max(self.loads[number], mine.least), mine.granted)
        wanted = size + (self.loads[number] > size)
        pods = max(mine.pods, size)
        self.claims[number] = replace(mine, replicas=size, wanted=wanted, pods=pods)

    def drain(self, number):
        """Pods that stop are gone."""
        mine = self.claims[number]
        self.claims[number] = replace(mine, pods=mine.replicas)

    @property
    def held(self):
        """Devices of all."""
        return sum(each.held for each in self.claims)

    def settle(self):
        """Let everything happen until nothing does."""
        for _ in range(200):
            before = list(self.claims)
            for number in range(len(self.claims)):
                for happens in (self.reconcile, self.scale, self.drain):
                    happens(number)
            if before == self.claims:
                return
        raise AssertionError(self.claims)


@st.composite
def worlds(draw):
    """Services at any point of their life."""
    claims = draw(any_claims())
    loads = [draw(st.integers(0, 12)) for _ in claims]
    return World(claims, draw(st.integers(0, 40)), loads)


EVENTS = st.lists(st.tuples(st.sampled_from(["reconcile", "scale", "drain"]), st.integers(0, 4)))


@given(worlds(), EVENTS)
def test_whatever_happens_in_whatever_order_holds_no_more(world, events):
    """Over the budget only what was held when all began."""
    for happens, number in events:
        before = world.held
        getattr(world, happens)(number % len(world.claims))

        assert world.held <= max(before, world.devices)


@given(worlds(), EVENTS)
def test_it_comes_to_rest(world, events):
    """And then whoever waits does so for minimums and for those that are no less important."""
    for happens, number in events:
        getattr(world, happens)(number % len(world.claims))
    world.settle()

    for mine in world.claims:
        if mine.replicas < mine.need:
            least = [
                each.devices * min(each.replicas, each.least)
                if each.priority < mine.priority or mine.replicas < mine.least
                else each.devices * each.replicas
                for each in world.claims
                if each is not mine
            ]
            free = world.devices - sum(least) - mine.devices * mine.replicas
            assert free < mine.devices


@given(worlds(), EVENTS)
def test_at_rest_only_minimums_are_over_the_budget(world, events):
    """A budget that was lowered is kept as soon as that can be."""
    for happens, number in events:
        getattr(world, happens)(number % len(world.claims))
    world.settle()

    least = sum(each.devices * min(each.replicas, each.least) for each in world.claims)
    assert world.held <= max(world.devices, least)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(2, 30))
def test_at_rest_equals_differ_by_one_at_most(starts, devices):
    """All would like more, wherever they come from."""
    claims = [claim(f"a/{number}", size, least=1) for number, size in enumerate(starts)]
    world = World(claims, max(devices, len(claims)), [50] * len(claims))
    world.settle()

    sizes = [each.replicas for each in world.claims]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == world.devices


# --- words --------------------------------------------------------------------------------------


def test_it_says_who_holds_what_it_waits_for():
    """The greatest first."""
    waiting = claim("a/me", 1, devices=2, wanted=2)
    others = [fixed("b/other", 2), fixed("a/big", 12)]

    assert Bound(
        1,
        "waits for 2 nvidia.com/gpu of budget team-a: a/big holds 12, b/other 2, of 16",
    ) == bounds_within(waiting, others, [budget(16)])


def test_it_names_a_few():
    """And counts the rest."""
    others = [fixed(f"a/{number}", 1 + number) for number in range(6)]
    bound = bounds_within(claim("a/me"), others, [budget(21)])

    assert "a/5 holds 6, a/4 5, a/3 4, 3 others 6, of 21" in bound.message


def test_it_names_the_budget_that_is_used_up():
    """Not the one with room."""
    waiting, other = claim("a/me", 1, wanted=2), fixed("b/other", 2)
    team = budget(1, namespaces=("a",))
    bound = bounds_within(waiting, [other], [budget(16, name="all"), team])

    assert "waits for 1 nvidia.com/gpu of budget team-a: others hold none, of 1" == bound.message


def test_who_gives_way_is_told_to_whom():
    """Also before the other one has anything."""
    giving, urgent = claim("a/me", 2, wanted=2), claim("a/urgent")
    bound = bounds_within(giving, [urgent], [budget(2)])

    assert Bound(1, "waits for 1 nvidia.com/gpu of budget team-a: a/urgent gets 1, of 2") == bound


def test_who_has_what_it_needs_waits_for_nobody():
    """Though it might have no more."""
    assert Bound(2, "") == bounds_within(claim("a/me", 2), [fixed("a/f", 2)], [budget(4)])


# --- what is read -------------------------------------------------------------------------------


def spec(**more):
    return {"model": {"id": "m"}, "accelerator": {"resource": GPU}, **more}


def test_the_claim_of_a_new_service():
    """It has nothing yet."""
    wish = spec(autoscaling={"minReplicas": 2, "maxReplicas": 5, "priority": -3})

    assert Claim("a/b", {}, GPU, 1, 0, 0, 2, 5, 1, 0, -3) == claim_of("a/b", {}, wish, {})


def test_the_claim_of_an_autoscaled_service():
    """Its status tells what it has and wants."""
    wish = spec(autoscaling={"maxReplicas": 9})
    told = {
        "replicas": 3,
        "terminatingReplicas": 2,
        "revisions": [{"replicas": 3}, {"replicas": 1}],
        "autoscaling": {"replicas": 3, "maxReplicas": 4, "wantedReplicas": 5},
    }
    labels = {"team": "x"}

    assert Claim("a/b", labels, GPU, 1, 3, 5, 1, 9, 5, 4) == claim_of("a/b", labels, wish, told)


def test_the_claim_of_a_fixed_service():
    """What it asks for, and the pods that there are."""
    told = {"replicas": 1, "revisions": [{"replicas": 2}, {"replicas": 2}]}

    assert Claim("a/b", {}, GPU, 1, 3, 4, 3, 3, 3, 3) == claim_of("a/b", {}, spec(replicas=3), told)


def test_a_service_that_was_fixed_starts_with_its_pods():
    """Its status says nothing of an autoscaler yet."""
    found = claim_of("a/b", {}, spec(autoscaling={"maxReplicas": 9}), {"replicas": 4})

    assert found is not None
    assert (4, 4, 4) == (found.replicas, found.granted, found.wanted)


@pytest.mark.parametrize(
    ("more", "status", "devices"),
    [
        ({"accelerator": {"resource": GPU, "count": 8}}, {}, 8),
        ({"engine": {"parallelism": {"tensor": 2, "pipeline": 3, "data": 2}}}, {}, 12),
        ({"engine": {"parallelism": {"pipeline": 2}}}, {"plan": {"tensor": 4}}, 8),
        ({}, {"plan": {"tensor": 4}}, 4),
        ({}, {"plan": {"outcome": "PlanUnknown"}}, 1),
    ],
)
def test_devices_of_a_replica(more, status, devices):
    """As given, or as the memory plan chose."""
    found = claim_of("a/b", {}, spec(**more), status)

    assert found is not None
    assert devices == found.devices


def test_what_cannot_be_read_claims_nothing():
    """And raises nothing."""
    assert claim_of("a/b", {}, {"replicas": "many"}, {"replicas": None}) is None


def test_who_shares_a_budget():
    """The same one, not only one each."""
    budgets = [budget(1, namespaces=("a", "b")), budget(1, name="c", namespaces=("c",))]

    assert share_a_budget(claim("a/x"), claim("b/y"), budgets)
    assert not share_a_budget(claim("a/x"), claim("c/y"), budgets)


def test_budgets_are_read():
    """With all that they may say, and with as little as they may."""
    text = """[
      {"name": "team-a", "namespaces": ["a", "b"], "labels": {"example.com/team": "a"},
       "resource": "amd.com/gpu", "devices": 16},
      {"name": "all", "devices": 0}
    ]"""
    team = budget(
        16, namespaces=("a", "b"), labels={"example.com/team": "a"}, resource="amd.com/gpu"
    )

    assert (team, budget(0, name="all")) == parse_budgets(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{", "gpuBudgets: Invalid JSON"),
        ("{}", "gpuBudgets: "),
        ('[{"devices": 1}]', "gpuBudgets[0].name: "),
        ('[{"name": "a", "devices": 1}, {"name": "b"}]', "gpuBudgets[1].devices: "),
        ('[{"name": "a", "devices": -1}]', "gpuBudgets[0].devices: "),
        ('[{"name": "a", "devices": "1"}]', "gpuBudgets[0].devices: "),
        ('[{"name": "a b", "devices": 1}]', "gpuBudgets[0].name: "),
        ('[{"name": "a", "devices": 1, "namespace": "b"}]', "gpuBudgets[0].namespace: "),
        ('[{"name": "a", "devices": 1, "namespaces": ["B"]}]', "gpuBudgets[0].namespaces[0]: "),
        ('[{"name": "a", "devices": 1, "labels": {"x": true}}]', "gpuBudgets[0].labels.x: "),
        ('[{"name": "a", "devices": 1}, {"name": "a", "devices": 2}]', "name 'a' is given twice"),
    ],
)
def test_a_budget_that_is_wrong_is_named(text, names):
    """With its field."""
    with pytest.raises(ValueError, match="gpuBudgets") as error:
        parse_budgets(text)
    assert names in str(error.value)
