"""Shares of traffic as weights of an HTTPRoute, and what its gateways say of them.

A service either gets an HTTPRoute of its own (:func:`build_route`), or has a rule in one that
somebody else owns (:func:`plan_weights`). In the latter only the ``backendRefs`` of the rule named
``llmservice`` are ours, all of them, so that its owner need not know our revisions. Server-side
apply cannot express that: the CRD declares ``spec.rules`` atomic, so applying one rule deletes all
others. A JSON patch leaves everything else as it is, and its ``test`` fails it when the rule has
moved or changed meanwhile. Since the list is atomic, the patch makes its sender the owner of all of
``spec.rules`` in ``managedFields``: an owner who applies his route again gets a conflict, or takes
our weights back if he forces it.

A gateway acknowledges a generation of the route (:func:`read_acknowledgement`), not that each of
its proxies has it: with Envoy Gateway 1.9 the first answers came up to 4 ms later. A Service
without ready engines fails its share with 503; nothing answers in its place, so a weight must not
rise before engines are ready. Filters belong on the rule: those on its backends go when these are
replaced, and with them Envoy Gateway fails requests for some milliseconds when a backend gets its
first share or loses its last.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmservice.api import names
from llmservice.api.v1alpha1 import GatewayRef
from llmservice.core.observed import Manifest, ServiceObject
from llmservice.core.resources.children import header

GATEWAY_GROUP = "gateway.networking.k8s.io"
ROUTE_API_VERSION = f"{GATEWAY_GROUP}/v1"
ROUTE_KIND = "HTTPRoute"
RULE = "llmservice"
"""Name of the rule whose weights are ours."""
NEEDED_VERSION = "v1.4.0"
"""The first release of Gateway API whose standard channel has names of rules."""

_NEEDED_CONDITIONS = {"Accepted": "True", "ResolvedRefs": "True"}
# Says that a rule was dropped, or that a route from before is in force; absent when all is well.
_PARTLY_INVALID = "PartiallyInvalid"

Operation = dict[str, Any]
"""One operation of a JSON patch (RFC 6902)."""


@dataclass(frozen=True, slots=True)
class WeightPatch:
    """What to send as ``application/json-patch+json``.

    The API server answers 422 when the ``test`` fails: read the route again, then plan anew.
    """

    route: str
    """Name of the HTTPRoute."""
    generation: int
    """What the operations were planned for."""
    operations: tuple[Operation, ...]
    """Nothing if there is nothing to change."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Somebody has to change something before traffic can be shared as wanted."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """The gateways have not spoken of this generation yet."""

    message: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Every gateway of the route has taken the weights."""


Acknowledgement = Acknowledged | Waiting | Refused


def build_route(
    service: ServiceObject, gateway: GatewayRef, weights: Mapping[str, int]
) -> Manifest:
    """An HTTPRoute that is ours: all requests of a Gateway, shared by weight.

    Args:
        service: whose route it is.
        gateway: where requests come in.
        weights: share of each headless Service, of any total.
    """
    parent = {
        "group": GATEWAY_GROUP,
        "kind": "Gateway",
        "name": gateway.name,
        **({"namespace": gateway.namespace} if gateway.namespace else {}),
        **({"sectionName": gateway.section_name} if gateway.section_name else {}),
    }
    # Generated text takes minutes: "0s" is no limit, absent would be the gateway's own.
    rule = {"name": RULE, "backendRefs": _backends(weights), "timeouts": {"request": "0s"}}
    return {
        **header(service, ROUTE_API_VERSION, ROUTE_KIND, service.key.name),
        "spec": {"parentRefs": [parent], "rules": [rule]},
    }


def _backends(weights: Mapping[str, int]) -> list[Manifest]:
    # A weight must not be left out, for that means 1.
    return [
        {"kind": "Service", "name": name, "port": names.ENGINE_PORT, "weight": weights[name]}
        for name in sorted(weights)
    ]


def plan_weights(route: Manifest, weights: Mapping[str, int]) -> WeightPatch | Refused:
    """The patch by which our rule shares its requests so, and with nobody else.

    Args:
        route: the live HTTPRoute.
        weights: share of each headless Service, of any total but 0: a rule that sends requests
            nowhere answers 500 to everything, and not every gateway says so.
    """
    rules = route["spec"].get("rules", [])
    indexes = [index for index, rule in enumerate(rules) if rule.get("name") == RULE]
    if len(indexes) != 1:
        # Names of rules should be unique, but the API server takes any; an old one drops them.
        message = f"has {len(indexes) or 'no'} rules named {RULE}; name exactly one so"
        needed = "" if indexes else f" (names of rules need Gateway API {NEEDED_VERSION} or newer)"
        return Refused("RuleNotFound", f"{_named(route)} {message}{needed}")
    rule, path = rules[indexes[0]], f"/spec/rules/{indexes[0]}"
    operations: tuple[Operation, ...] = (
        {"op": "test", "path": path, "value": rule},
        {"op": "add", "path": f"{path}/backendRefs", "value": _backends(weights)},
    )
    metadata = route["metadata"]
    has_them = _shares(rule.get("backendRefs"), metadata["namespace"]) == _shares(
        _backends(weights), metadata["namespace"]
    )
    return WeightPatch(metadata["name"], metadata["generation"], () if has_them else operations)


def _shares(backends: object, namespace: str) -> list[tuple[Any, ...]]:
    """What tells one list of backends from another, with the defaults spelled out."""
    return sorted(
        (
            str(backend.get("name")),
            backend.get("group", ""),
            backend.get("kind", "Service"),
            backend.get("namespace", namespace),
            backend.get("port", 0),
            backend.get("weight", 1),
            bool(backend.get("filters")),
        )
        for backend in _dicts(backends)
    )


def read_acknowledgement(route: Manifest, weights: Mapping[str, int]) -> Acknowledgement:
    """Whether every gateway that the route attaches to has taken these weights.

    It needs no memory of who wrote them and when: what counts is that the live route has them, and
    that what the gateways say is about the live route.

    Args:
        route: the live HTTPRoute, ours or another's.
        weights: share of each Service in our rule.
    """
    planned = plan_weights(route, weights)
    if isinstance(planned, Refused):
        return planned
    if planned.operations:
        return Waiting(f"{_named(route)} does not have the weights yet")
    parents = route["spec"].get("parentRefs", [])
    if not parents:
        return Refused("NoParent", f"{_named(route)} has no parentRefs, so no gateway serves it")
    return _worst(_judge_parent(parent, route) for parent in parents)


def _judge_parent(parent: Manifest, route: Manifest) -> Acknowledgement:
    namespace = route["metadata"]["namespace"]
    identity = _identity(parent, namespace)
    described = f"{identity[1]} {identity[2]}/{identity[3]}"
    said = [
        _judge_report(_dicts(entry.get("conditions")), route["metadata"]["generation"], described)
        for entry in _dicts(route.get("status", {}).get("parents"))
        if _identity(entry.get("parentRef", {}), namespace) == identity
    ]
    # A controller that has handed the gateway over to another leaves what it said last behind.
    current = [each for each in said if not isinstance(each, Waiting)]
    if not said:
        return Waiting(f"no controller has reported on {described}; does it exist?")
    return _worst(current or said)


def _judge_report(conditions: Iterable[Manifest], generation: int, parent: str) -> Acknowledgement:
    found = {condition.get("type"): condition for condition in conditions}
    expected = dict(_NEEDED_CONDITIONS)
    if _PARTLY_INVALID in found:
        expected[_PARTLY_INVALID] = "False"
    return _worst(
        _judge_condition(type_, found.get(type_, {}), status, generation, parent)
        for type_, status in expected.items()
    )


def _judge_condition(
    type_: str, condition: Manifest, expected: str, generation: int, parent: str
) -> Acknowledgement:
    # Newer than the route at hand is what a gateway says of an edit that we have not seen.
    if condition.get("observedGeneration") != generation:
        return Waiting(f"{parent} has not reported {type_} of generation {generation}")
    status = condition.get("status")
    if status == expected:
        return Acknowledged()
    if status not in ("True", "False"):
        return Waiting(f"{parent} does not know yet whether the route is {type_}")
    reason, message = condition.get("reason", type_), condition.get("message", "")
    return Refused(str(reason), f"{parent}: {message}")


def _worst(outcomes: Iterable[Acknowledgement]) -> Acknowledgement:
    order = (Acknowledged, Waiting, Refused)
    return max(outcomes, key=lambda outcome: order.index(type(outcome)))


def _identity(parent: Manifest, namespace: str) -> tuple[Any, ...]:
    """What tells one parent from another, with the defaults that may or may not be spelled out."""
    return (
        parent.get("group", GATEWAY_GROUP),
        parent.get("kind", "Gateway"),
        parent.get("namespace", namespace),
        parent.get("name"),
        parent.get("sectionName"),
        parent.get("port"),
    )


def _dicts(found: object) -> Iterator[Manifest]:
    """The objects of a list, if it is one: what others report may have any shape."""
    if isinstance(found, list):
        yield from (each for each in found if isinstance(each, dict))


def _named(route: Manifest) -> str:
    return f"HTTPRoute {route['metadata']['namespace']}/{route['metadata']['name']}"
