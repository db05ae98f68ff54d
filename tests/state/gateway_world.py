"""A world whose service is behind a Gateway: its HTTPRoute, ours or its owner's."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

from llmservice.core.decision import Apply, Decision
from llmservice.core.observed import ApplyError, ApplyErrorKind, Child, ChildRef, Manifest, Observed
from llmservice.core.questions import Question, ReadRoute, RouteReading
from tests.state.canary_world import CanaryWorld, canary_spec

GATEWAY = {"name": "public", "namespace": "gateways"}
TRAFFIC = {"router": "Gateway", "gatewayRef": GATEWAY}
OWN = ChildRef("HTTPRoute", "mistral")
OWNERS_RULES = (
    {
        "name": "docs",
        "matches": [{"path": {"type": "PathPrefix", "value": "/docs"}}],
        "backendRefs": [{"name": "docs", "port": 80, "weight": 3}],
    },
    {
        "name": "llmservice",
        "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
        "filters": [{"type": "RequestHeaderModifier"}],
        "backendRefs": [{"name": "mistral", "port": 80}],
    },
)


@dataclass
class GatewayWorld(CanaryWorld):
    """One service, and a gateway that takes what the route says as soon as it says it."""

    engines_count_failures: bool = True
    route: Manifest | None = None
    """The live one, ours or its owner's."""
    has_api: bool = True
    says_nothing: bool = False
    """The API server, when it is asked for the route."""
    refuses: str = ""
    """What the API server says to a route that is applied."""
    refuses_patches: str = ""
    acknowledges: bool = True
    """The gateway speaks of every generation; else what it said last stands there."""
    accepts: bool = True
    """What it says of it."""
    own: Child | None = None
    """Our live route, as a reading of it tells."""
    in_force: dict[str, int] = field(default_factory=dict)
    """Weight by Service, as the gateway shares requests."""
    errors: tuple[ApplyError, ...] = ()
    reads: int = 0
    """Of the route."""
    route_writes: int = 0

    @property
    def name(self) -> str:
        """Of the route."""
        return str(self.spec["traffic"].get("routeName", "mistral"))

    def observe(self) -> Observed:
        base = super().observe()
        return replace(base, apply_errors=(*base.apply_errors, *self.errors))

    def reconcile(self) -> Decision:
        decision = super().reconcile()
        if not any(apply.ref == OWN for apply in decision.apply):
            self.errors = ()
        if decision.patch_route is not None:
            self._patch(decision)
        self._run_gateway()
        return decision

    def restart_operator(self) -> None:
        """No watch tells a new leader of the route."""
        super().restart_operator()
        self.children.pop(OWN, None)

    def shares(self) -> dict[str, float]:
        return {
            name.removeprefix("mistral-"): float(weight)
            for name, weight in self.in_force.items()
            if name.startswith("mistral-")
        }

    def edit_route(self, rules: Any) -> None:
        """As its owner, or anybody with kubectl, does."""
        assert self.route is not None
        self.route["spec"]["rules"] = copy.deepcopy(list(rules))
        self.route["metadata"]["generation"] += 1
        if self.own is not None:  # fields are not ours any more
            self.own = replace(self.own, owned_fields='{"f:metadata":{}}')

    def rule(self) -> Manifest:
        """The one that is ours."""
        assert self.route is not None
        [found] = [each for each in self.route["spec"]["rules"] if each["name"] == "llmservice"]
        return dict(found)

    def weights(self) -> dict[str, int]:
        """What the live route says."""
        return {each["name"]: each["weight"] for each in self.rule()["backendRefs"]}

    # --- the components -----------------------------------------------------------------------

    def _apply(self, apply: Apply) -> None:
        if apply.ref != OWN:
            super()._apply(apply)
            return
        self.route_writes += 1
        problem = self.refuses if self.has_api else "the cluster does not know HTTPRoute"
        if problem:
            self.errors = (ApplyError(OWN, ApplyErrorKind.Invalid, problem),)
            return
        super()._apply(apply)
        before, self.own = self.route or {"metadata": {"generation": 0}}, self.children[OWN]
        self.route = copy.deepcopy(apply.manifest)
        self.route["metadata"]["generation"] = before["metadata"]["generation"] + 1
        self.route["status"] = before.get("status", {})

    def _delete(self, ref: ChildRef) -> None:
        super()._delete(ref)
        if ref == OWN:
            self.route = self.own = None

    def _patch(self, decision: Decision) -> None:
        assert decision.patch_route is not None
        self.route_writes += 1
        problem = self.refuses_patches if self.route is not None else ""
        if self.route is not None and not problem:
            test, add = decision.patch_route.operations
            number = int(test["path"].rpartition("/")[2])
            if self.route["spec"]["rules"][number : number + 1] == [test["value"]]:
                self.route["spec"]["rules"][number]["backendRefs"] = copy.deepcopy(add["value"])
                self.route["metadata"]["generation"] += 1
        reading = RouteReading(copy.deepcopy(self.route), problem)
        answer = self.answers[ReadRoute, self.name]
        self.answers[ReadRoute, self.name] = replace(answer, at=self.now, content=reading)

    def _run_gateway(self) -> None:
        if not self.acknowledges:
            return
        if self.route is None:
            self.in_force = {}
            return
        generation = self.route["metadata"]["generation"]
        conditions = [
            {"type": type_, "status": str(self.accepts), "observedGeneration": generation}
            for type_ in ("Accepted", "ResolvedRefs")
        ]
        parent = self.route["spec"]["parentRefs"][0]
        self.route["status"] = {"parents": [{"parentRef": parent, "conditions": conditions}]}
        if not self.accepts:
            return
        ours = [each for each in self.route["spec"]["rules"] if each.get("name") == "llmservice"]
        for rule in ours:
            self.in_force = {each["name"]: each.get("weight", 1) for each in rule["backendRefs"]}

    def _say(self, question: Question) -> Any:
        if not isinstance(question, ReadRoute):
            return super()._say(question)
        self.reads += 1
        if self.says_nothing:
            return None
        if not self.has_api:
            reading = RouteReading(None, "the cluster has no HTTPRoute: install Gateway API v1.4.0")
        else:
            assert self.name == question.name
            reading = RouteReading(copy.deepcopy(self.route))
        if reading.route is None:
            self.children.pop(OWN, None)
        elif self.own is not None:
            self.children[OWN] = self.own
        return reading


def a_world(route_name: str | None = None, **rollout: Any) -> GatewayWorld:
    """A service behind a Gateway, with or without a route of its user's."""
    named = {"routeName": route_name} if route_name else {}
    world = GatewayWorld(
        spec={**canary_spec(**rollout), "traffic": {**TRAFFIC, **named}}, reachable=True
    )
    if route_name:
        metadata = {"name": route_name, "namespace": "default", "generation": 1}
        world.route = {
            "metadata": metadata,
            "spec": {"parentRefs": [GATEWAY], "rules": copy.deepcopy(list(OWNERS_RULES))},
        }
    return world
