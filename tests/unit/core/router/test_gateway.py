"""Weights of an HTTPRoute: what is changed, what is left alone, and what counts as acknowledged."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.api.v1alpha1 import GatewayRef
from llmservice.core.observed import ServiceKey, ServiceObject
from llmservice.core.router.gateway import (
    Acknowledged,
    Refused,
    Waiting,
    WeightPatch,
    build_route,
    plan_weights,
    read_acknowledgement,
)

SERVICE = ServiceObject(ServiceKey("team", "mistral"), "uid", 1, {}, {})
SPLIT = {"mistral-old": 9_500, "mistral-new": 500}
WANTED = {"mistral-old": 9_000, "mistral-new": 1_000}
GATEWAY = {"name": "public", "namespace": "infra"}
OTHER_RULE = {
    "matches": [{"path": {"type": "PathPrefix", "value": "/docs"}}],
    "filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "docs"}}],
    "backendRefs": [{"name": "docs", "port": 80, "weight": 7}],
}


def a_backend(name: str, weight: int | None = 1, **more: Any) -> dict[str, Any]:
    weighted = {} if weight is None else {"weight": weight}
    return {"group": "", "kind": "Service", "name": name, "port": 8000, **weighted, **more}


def a_rule(*backends: dict[str, Any], name: str = "llmservice") -> dict[str, Any]:
    return {"name": name, "backendRefs": list(backends)}


SHARED = a_rule(*(a_backend(name, weight) for name, weight in SPLIT.items()))


def a_route(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "chat", "namespace": "team", "generation": 4},
        "spec": {"parentRefs": [GATEWAY], "rules": list(rules)},
        **more,
    }


def a_condition(type_: str, status: str = "True", generation: int = 4, **more: str) -> Any:
    texts = {"reason": type_, "message": f"{type_} is {status}", **more}
    return {"type": type_, "status": status, "observedGeneration": generation, **texts}


def said(*conditions: Any, parent: Any = GATEWAY) -> dict[str, Any]:
    return {"parentRef": parent, "controllerName": "c", "conditions": list(conditions)}


GOOD = (a_condition("Accepted"), a_condition("ResolvedRefs"))


def judged(*reports: Any, parents: tuple[Any, ...] = (GATEWAY,)) -> Any:
    route = a_route(SHARED, status={"parents": list(reports)})
    route["spec"]["parentRefs"] = list(parents)
    return read_acknowledgement(route, SPLIT)


def apply(patch: WeightPatch, route: dict[str, Any]) -> dict[str, Any]:
    """What the API server does, as far as these patches go."""
    patched = copy.deepcopy(route)
    for operation in patch.operations:
        *path, last = operation["path"].removeprefix("/").split("/")
        node: Any = patched
        for step in path:
            node = node[int(step) if isinstance(node, list) else step]
        where = int(last) if isinstance(node, list) else last
        if operation["op"] == "test":
            assert operation["value"] == node[where]
        else:
            node[where] = operation["value"]
    return patched


# --- a route of our own ---------------------------------------------------------------------------


def test_a_route_of_our_own_is_a_child_with_one_rule():
    """It goes with its service, and what it lists does not depend on an order."""
    ref = GatewayRef(name="public", namespace="infra", section_name="https")
    route = build_route(SERVICE, ref, SPLIT)

    assert route == build_route(SERVICE, ref, dict(reversed(SPLIT.items())))
    assert ("mistral", "team") == (route["metadata"]["name"], route["metadata"]["namespace"])
    assert "uid" == route["metadata"]["ownerReferences"][0]["uid"]
    [parent], [rule] = route["spec"]["parentRefs"], route["spec"]["rules"]
    assert ("public", "infra", "https") == (
        *(parent[key] for key in ("name", "namespace", "sectionName")),
    )
    assert SPLIT == {each["name"]: each["weight"] for each in rule["backendRefs"]}
    assert {8000} == {each["port"] for each in rule["backendRefs"]}


def test_what_the_reference_does_not_say_is_left_to_the_api_server():
    """A field that is absent is nobody's; an empty one would be ours."""
    [parent] = build_route(SERVICE, GatewayRef(name="public"), SPLIT)["spec"]["parentRefs"]

    assert {"group", "kind", "name"} == parent.keys()


def test_long_answers_are_not_cut():
    """Gateways have a limit of their own, often 15 seconds, unless the route says otherwise."""
    [rule] = build_route(SERVICE, GatewayRef(name="public"), SPLIT)["spec"]["rules"]

    assert {"request": "0s"} == rule["timeouts"]


def test_our_own_route_can_be_acknowledged():
    """What is built is what is looked for."""
    route = build_route(SERVICE, GatewayRef(name="public"), SPLIT)
    route["metadata"]["generation"] = 4
    route["status"] = {"parents": [said(*GOOD, parent={"name": "public"})]}

    assert Acknowledged() == read_acknowledgement(route, SPLIT)


# --- a rule in somebody else's route --------------------------------------------------------------


def test_a_patch_names_the_rule_that_it_was_planned_for():
    """If it has moved or changed, the API server refuses all of it."""
    patch = plan_weights(a_route(OTHER_RULE, SHARED), WANTED)

    assert isinstance(patch, WeightPatch)
    assert ("chat", 4) == (patch.route, patch.generation)
    backends = [
        {"kind": "Service", "name": "mistral-new", "port": 8000, "weight": 1_000},
        {"kind": "Service", "name": "mistral-old", "port": 8000, "weight": 9_000},
    ]
    assert patch.operations == (
        {"op": "test", "path": "/spec/rules/1", "value": SHARED},
        {"op": "add", "path": "/spec/rules/1/backendRefs", "value": backends},
    )


@pytest.mark.parametrize(
    "backends",
    [
        [],
        [a_backend("mistral", None)],
        [a_backend("mistral-old", 9_000)],
        [a_backend("mistral-old", 9_000), a_backend("mistral-new", 1_000, namespace="other")],
        [a_backend("mistral-old", 9_000), a_backend("mistral-new", 1_000, kind="InferencePool")],
        [a_backend("mistral-old", 9_000), {**a_backend("mistral-new", 1_000), "port": 80}],
        [a_backend("mistral-old", 9_000), a_backend("mistral-new", 1_000, filters=[{"type": "x"}])],
        [*(a_backend(n, w) for n, w in WANTED.items()), a_backend("legacy", 0)],
    ],
)
def test_whatever_the_owner_lists_in_our_rule_is_replaced(backends):
    """He need not know our revisions, and nobody else takes a share of what is compared."""
    route = a_route(a_rule(*backends))
    patch = plan_weights(route, WANTED)
    assert isinstance(patch, WeightPatch)
    [rule] = apply(patch, route)["spec"]["rules"]

    assert WANTED == {each["name"]: each["weight"] for each in rule["backendRefs"]}


def test_a_rule_that_has_the_weights_is_left_alone():
    """In any order, with defaults spelled out or not."""
    spelled = [a_backend(name, weight, namespace="team") for name, weight in WANTED.items()]
    found = plan_weights(a_route(a_rule(*spelled)), WANTED)

    assert WeightPatch("chat", 4, ()) == found


rules = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["docs", "llm", "other"]),
        "filters": st.lists(st.fixed_dictionaries({"type": st.text(max_size=5)}), max_size=2),
        "backendRefs": st.lists(
            st.builds(a_backend, st.sampled_from([*SPLIT, "docs"]), st.integers(0, 9)), max_size=3
        ),
    },
)
weights = st.fixed_dictionaries({name: st.integers(0, 1_000_000) for name in SPLIT}).filter(
    lambda found: any(found.values())
)


@given(st.lists(rules, max_size=3), st.lists(rules, max_size=3), weights)
def test_nothing_but_our_backends_changes(before, after, wanted):
    """Whatever else is in the route, taking our backends out leaves it as it was."""
    ours = {"matches": [{"path": {}}], **a_rule(a_backend("mistral", 3)), "filters": [{}]}
    route = a_route(*before, ours, *after, status={"parents": []})
    patch = plan_weights(route, wanted)
    assert isinstance(patch, WeightPatch)
    patched = apply(patch, route)
    found = patched["spec"]["rules"][len(before)]["backendRefs"]

    assert wanted == {each["name"]: each["weight"] for each in found}
    assert WeightPatch("chat", 4, ()) == plan_weights(patched, wanted)
    for one in (route, patched):
        del one["spec"]["rules"][len(before)]["backendRefs"]
    assert route == patched


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ([OTHER_RULE], "HTTPRoute team/chat has no rules named llmservice"),
        ([], "has no rules named llmservice; name exactly one so (names of rules need Gateway API"),
        ([SHARED, SHARED], "has 2 rules named llmservice; name exactly one so"),
    ],
)
def test_a_route_that_does_not_fit_is_refused_with_what_to_do(rules, why):
    """Nothing is guessed; both reading and writing say the same."""
    refused = plan_weights(a_route(*rules), WANTED)

    assert isinstance(refused, Refused)
    assert why in refused.message
    assert refused == read_acknowledgement(a_route(*rules), WANTED)


# --- what gateways say ----------------------------------------------------------------------------


def test_both_conditions_of_this_generation_acknowledge():
    """The gateway has taken the route, and knows all its backends."""
    assert Acknowledged() == judged(said(*GOOD))


@pytest.mark.parametrize(
    ("conditions", "why"),
    [
        ([], "Gateway infra/public has not reported Accepted of generation 4"),
        ([a_condition("Accepted")], "has not reported ResolvedRefs of generation 4"),
        ([GOOD[0], a_condition("ResolvedRefs", generation=3)], "ResolvedRefs of generation 4"),
        ([GOOD[0], a_condition("ResolvedRefs", "False", 3)], "ResolvedRefs of generation 4"),
        ([GOOD[0], a_condition("ResolvedRefs", generation=5)], "ResolvedRefs of generation 4"),
        ([GOOD[1], a_condition("Accepted", "Unknown")], "does not know yet whether"),
        ([GOOD[1], {"type": "Accepted", "status": "True"}], "has not reported Accepted"),
        ([GOOD[1], {"type": "Accepted"}, "Accepted", None], "has not reported Accepted"),
    ],
)
def test_what_is_missing_or_about_another_generation_is_waited_for(conditions, why):
    """Yesterday's yes and yesterday's no say nothing of these weights."""
    outcome = judged(said(*conditions))

    assert isinstance(outcome, Waiting)
    assert why in outcome.message


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"status": {}},
        {"status": {"parents": None}},
        {"status": {"parents": ["?"]}},
        {"status": {"parents": [{}]}},
        {"status": {"parents": [said(*GOOD, parent={"name": "public"})]}},
        {"status": {"parents": [said(*GOOD, parent={**GATEWAY, "sectionName": "https"})]}},
        {"status": {"parents": [said(*GOOD, parent={**GATEWAY, "kind": "Service"})]}},
        {"status": {"parents": [said(*GOOD, parent={**GATEWAY, "port": 443})]}},
        {"status": {"parents": [{"parentRef": GATEWAY}]}},
    ],
)
def test_silence_and_nonsense_are_waited_for(status):
    """Whatever a status holds, only a report on our gateway counts."""
    assert isinstance(read_acknowledgement(a_route(SHARED, **status), SPLIT), Waiting)


def test_defaults_may_be_spelled_out():
    """Controllers copy the reference with or without what it leaves out."""
    full = {"group": "gateway.networking.k8s.io", "kind": "Gateway", **GATEWAY}
    here = {"name": "public"}

    assert Acknowledged() == judged(said(*GOOD, parent=full))
    assert Acknowledged() == judged(
        said(*GOOD, parent={**here, "namespace": "team"}), parents=(here,)
    )


def test_a_refusal_keeps_the_words_of_the_gateway():
    """They say what is wrong better than we could."""
    no = a_condition("ResolvedRefs", "False", reason="BackendNotFound", message="no such Service")

    assert Refused("BackendNotFound", "Gateway infra/public: no such Service") == judged(
        said(GOOD[0], no)
    )


def test_a_route_of_which_a_part_was_dropped_is_refused():
    """Accepted stays True, though the rule that counts may be the one that is missing."""
    dropped = a_condition("PartiallyInvalid", reason="UnsupportedValue", message="Dropped Rule 1")

    assert Refused("UnsupportedValue", "Gateway infra/public: Dropped Rule 1") == judged(
        said(*GOOD, dropped)
    )
    assert Acknowledged() == judged(said(*GOOD, a_condition("PartiallyInvalid", "False")))


def test_every_gateway_of_the_route_must_acknowledge():
    """Clients come in by all of them."""
    second = {**GATEWAY, "name": "internal"}
    both = (GATEWAY, second)

    assert isinstance(judged(said(*GOOD), parents=both), Waiting)
    assert Acknowledged() == judged(said(*GOOD), said(*GOOD, parent=second), parents=both)
    no = a_condition("Accepted", "False", reason="NotAllowedByListeners")
    assert isinstance(judged(said(no, parent=second), parents=both), Refused)


def test_a_controller_that_left_does_not_hold_the_route():
    """Its last words are about an older generation; another controller speaks of this one."""
    left = said(a_condition("Accepted", "False", 2), a_condition("ResolvedRefs", "False", 2))

    assert Acknowledged() == judged(left, said(*GOOD))
    assert isinstance(judged(left), Waiting)


def test_a_route_without_the_weights_is_not_acknowledged():
    """A status that is up to date may be about what was before our write, or after another's."""
    route = a_route(SHARED, status={"parents": [said(*GOOD)]})
    outcome = read_acknowledgement(route, WANTED)

    assert isinstance(outcome, Waiting)
    assert "does not have the weights yet" in outcome.message


def test_a_route_without_parents_is_refused():
    """No gateway will ever report on it."""
    outcome = judged(parents=())

    assert isinstance(outcome, Refused)
    assert "no parentRefs" in outcome.message
