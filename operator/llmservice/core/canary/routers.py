"""What is particular to each kind of router: whom to ask, what counts as taken, what is made.

The embedded router is pods that say which traffic they have; a Gateway is an HTTPRoute, ours or a
user's, on whose status its gateways say what they have taken. A rollout sees one :class:`Router`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from llmservice.api import names
from llmservice.api.v1alpha1 import LLMServiceSpec
from llmservice.core.canary.look import (
    ROUTER_POLL_SECONDS,
    ask_routers,
    ready_routers,
    routers_behind,
)
from llmservice.core.canary.state import Rollout, seconds_since
from llmservice.core.config import Config
from llmservice.core.observed import ApplyErrorKind, ChildRef, Manifest, Observed
from llmservice.core.questions import Question, ReadRoute, RouteReading
from llmservice.core.resources.children import build_entry_service
from llmservice.core.resources.router import build_router
from llmservice.core.router.desired import TOTAL_WEIGHT, Traffic, format_traffic
from llmservice.core.router.gateway import (
    NEEDED_VERSION,
    ROUTE_KIND,
    Acknowledged,
    WeightPatch,
    build_route,
    plan_weights,
    read_acknowledgement,
)

ROUTE_POLL_SECONDS = 1.0
ROUTE_WATCH_SECONDS = 60.0
"""Nothing tells of an edit of the route, so it is read anew this often."""
ROUTE_STUCK_SECONDS = 10.0
"""Between looks at what only a person can mend."""
PROPAGATION_SECONDS = 5.0
"""A gateway may acknowledge a route before each of its proxies has it."""


class Router(Protocol):
    """What divides requests between revisions, and what is known of it."""

    @property
    def propagation_seconds(self) -> float:
        """How long requests may go the old way after all is acknowledged."""
        ...

    @property
    def poll_seconds(self) -> float:
        """Between looks while an acknowledgement is awaited."""
        ...

    @property
    def watch_seconds(self) -> float | None:
        """Between looks while none is; None when events tell of all changes."""
        ...

    @property
    def title(self) -> str:
        """Who gives traffic to revisions, in the plural."""
        ...

    def behind(self, since: datetime | None) -> str:
        """Why the traffic that is wanted is not in force; empty when it is.

        Args:
            since: older answers do not count.
        """
        ...

    def ask(self, since: datetime | None) -> tuple[Question, ...]:
        """What is to be asked (again) to know whether the traffic is in force."""
        ...

    def watch(self) -> tuple[Question, ...]:
        """What is to be asked now and then, as no event tells of it."""
        ...

    def entry(self) -> Manifest:
        """The Service that clients within the cluster call."""
        ...

    def children(self, config: Config) -> Iterator[Manifest]:
        """What the router is made of."""
        ...

    def keeps(self, ref: ChildRef) -> bool:
        """Whether a child may be part of it."""
        ...

    def patch(self) -> WeightPatch | None:
        """What is to be changed in somebody else's route."""
        ...


def router_for(
    observed: Observed, spec: LLMServiceSpec, rollout: Rollout, traffic: Traffic
) -> Router:
    """The router of a rollout, to which this traffic is to be told."""
    kind = _Gateway if rollout.router == "Gateway" else _Embedded
    return kind(observed, spec, rollout, traffic)


@dataclass(frozen=True, slots=True)
class _About:
    """What every router is made from."""

    observed: Observed
    spec: LLMServiceSpec
    rollout: Rollout
    traffic: Traffic


class _Embedded(_About):
    __slots__ = ()

    @property
    def propagation_seconds(self) -> float:
        return 0.0

    @property
    def poll_seconds(self) -> float:
        return ROUTER_POLL_SECONDS

    @property
    def watch_seconds(self) -> float | None:
        return None

    @property
    def title(self) -> str:
        return f"all {len(ready_routers(self.observed))} routers"

    def behind(self, since: datetime | None) -> str:
        return routers_behind(self.observed, self.traffic.version, since)

    def ask(self, since: datetime | None) -> tuple[Question, ...]:
        return ask_routers(self.observed, self.traffic.version, since)

    def watch(self) -> tuple[Question, ...]:
        return ()

    def entry(self) -> Manifest:
        return build_entry_service(self.observed.service, self.spec, routed=self.rollout.routed)

    def children(self, config: Config) -> Iterator[Manifest]:
        return build_router(
            self.observed.service,
            self.spec.traffic.router_replicas,
            format_traffic(self.traffic),
            config,
            drain_seconds=self.spec.engine.drain_timeout_seconds,
        )

    def keeps(self, ref: ChildRef) -> bool:
        return ref.name == names.router_name(self.observed.service.key.name)

    def patch(self) -> WeightPatch | None:
        return None


class _Gateway(_About):
    __slots__ = ()

    @property
    def propagation_seconds(self) -> float:
        return PROPAGATION_SECONDS

    @property
    def poll_seconds(self) -> float:
        """Rarer, the longer it takes: most of what takes long waits for a person."""
        if self._refusal() or self._reading() is None or self._misses_its_route():
            return ROUTE_STUCK_SECONDS
        waited = seconds_since(self.rollout.since, self.observed.now)
        return min(max(ROUTE_POLL_SECONDS, waited / 10), ROUTE_STUCK_SECONDS)

    @property
    def watch_seconds(self) -> float | None:
        return ROUTE_WATCH_SECONDS

    @property
    def title(self) -> str:
        return "the gateways of the route"

    def behind(self, since: datetime | None) -> str:
        answer = self.observed.answers.get((ReadRoute, self._name))
        if answer is None or (since is not None and answer.at < since):
            return f"{self._described} was not read yet"
        reading = self._reading()
        if reading is None:
            return f"{self._described} cannot be read: the API server does not answer"
        if refusal := self._refusal():
            return refusal
        if reading.route is None:
            missing = "does not exist: create it, or have one made by removing traffic.routeName"
            return f"{self._described} {missing if self._is_foreign else 'is not there yet'}"
        outcome = read_acknowledgement(reading.route, self._weights())
        return "" if isinstance(outcome, Acknowledged) else outcome.message

    def ask(self, since: datetime | None) -> tuple[Question, ...]:
        return self._ask_every(self.poll_seconds) if self.behind(since) else self.watch()

    def watch(self) -> tuple[Question, ...]:
        return self._ask_every(ROUTE_WATCH_SECONDS)

    def entry(self) -> Manifest:
        """Stable pods only: these clients do not come in by the Gateway, so none has a weight."""
        service = self.observed.service
        return build_entry_service(service, self.spec, revision=self.rollout.stable)

    def children(self, config: Config) -> Iterator[Manifest]:
        """A route of our own, once it is known whether routes can be written."""
        del config
        reading, gateway = self._reading(), self.spec.traffic.gateway_ref
        if self._is_foreign or gateway is None or reading is None or reading.problem:
            return
        yield build_route(self.observed.service, gateway, self._weights())

    def keeps(self, ref: ChildRef) -> bool:
        return ref == ChildRef(ROUTE_KIND, self._name)

    def patch(self) -> WeightPatch | None:
        reading = self._reading()
        if not self._is_foreign or reading is None or reading.route is None or reading.problem:
            return None
        planned = plan_weights(reading.route, self._weights())
        return planned if isinstance(planned, WeightPatch) and planned.operations else None

    @property
    def _is_foreign(self) -> bool:
        return self.spec.traffic.route_name is not None

    @property
    def _name(self) -> str:
        return self.spec.traffic.route_name or self.observed.service.key.name

    @property
    def _described(self) -> str:
        return f"{ROUTE_KIND} {self.observed.service.key.namespace}/{self._name}"

    def _weights(self) -> dict[str, int]:
        """Percent by headless Service."""
        service = self.observed.service.key.name
        return {
            names.revision_name(service, track.name): track.weight * 100 // TOTAL_WEIGHT
            for track in self.traffic.tracks
        }

    def _reading(self) -> RouteReading | None:
        answer = self.observed.answers.get((ReadRoute, self._name))
        content = None if answer is None else answer.content
        return content if isinstance(content, RouteReading) else None

    def _refusal(self) -> str:
        """Why the route is not written, which only a person can mend."""
        if not self._is_foreign and self.spec.traffic.gateway_ref is None:
            return "this rollout began with router Gateway: set traffic.gatewayRef until it ends"
        for error in self.observed.apply_errors:
            if error.ref == ChildRef(ROUTE_KIND, self._name):
                needs = f" (Gateway API {NEEDED_VERSION} or newer is needed)"
                invalid = error.kind is ApplyErrorKind.Invalid
                return f"{error.ref}: {error.message}{needs if invalid else ''}"
        reading = self._reading()
        return reading.problem if reading else ""

    def _misses_its_route(self) -> bool:
        reading = self._reading()
        return self._is_foreign and reading is not None and reading.route is None

    def _ask_every(self, seconds: float) -> tuple[Question, ...]:
        answer = self.observed.answers.get((ReadRoute, self._name))
        if answer is not None and self.observed.now - answer.at < timedelta(seconds=seconds):
            return ()
        return (ReadRoute(self.observed.service.key.namespace, self._name),)
