"""Which devices each service has and would like, for budgets that several services share.

What was decided for one service holds for the next decision at once: two workers never give the
same devices away. Without budgets nothing is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmservice.adapters.projection import mapping
from llmservice.core.autoscaling.budget import Budget, Claim, claim_of, share_a_budget
from llmservice.core.observed import ServiceKey


class Claims:
    """The claims of all services; for one event loop."""

    def __init__(self, budgets: Sequence[Budget] = ()) -> None:
        self._budgets = budgets
        self._claims: dict[ServiceKey, Claim] = {}
        self._reserved: dict[ServiceKey, int] = {}
        """Bounds that were decided and are not in a status yet."""

    def put(self, key: ServiceKey, live: Mapping[str, Any]) -> Iterator[ServiceKey]:
        """Take in a live service; yields those whose bounds may change with it."""
        if not self._budgets:
            return
        metadata = mapping(live.get("metadata"))
        labels = {str(name): str(value) for name, value in mapping(metadata.get("labels")).items()}
        gone = metadata.get("deletionTimestamp") is not None
        spec, status = mapping(live.get("spec")), mapping(live.get("status"))
        claim = None if gone else claim_of(str(key), labels, spec, status)
        before = self._claims.pop(key, None)
        if claim is not None:
            self._claims[key] = claim
        if claim != before:
            yield from self._sharers(key, before, claim)

    def drop(self, key: ServiceKey) -> Iterator[ServiceKey]:
        """A service is gone; yields those that may get its devices."""
        self._reserved.pop(key, None)
        yield from self._sharers(key, self._claims.pop(key, None))

    def reserve(self, key: ServiceKey, replicas: int) -> None:
        """A bound was decided, and is about to be written."""
        if key in self._claims:
            self._reserved[key] = max(replicas, self._reserved.get(key, 0))

    def settle(self, key: ServiceKey) -> None:
        """What was decided is written, or will not be."""
        self._reserved.pop(key, None)

    def of(self, key: ServiceKey) -> Claim | None:
        """The claim of one service; None without one."""
        claim = self._claims.get(key)
        reserved = self._reserved.get(key, 0)
        return claim and replace(claim, granted=max(claim.granted, reserved))

    def others(self, key: ServiceKey) -> tuple[Claim, ...]:
        """Those of all other services."""
        found = (self.of(other) for other in self._claims if other != key)
        return tuple(claim for claim in found if claim is not None)

    def _sharers(self, key: ServiceKey, *claims: Claim | None) -> Iterator[ServiceKey]:
        for other, claim in self._claims.items():
            if other != key and any(
                mine is not None and share_a_budget(mine, claim, self._budgets) for mine in claims
            ):
                yield other
