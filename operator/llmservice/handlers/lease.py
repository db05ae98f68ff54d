r"""Who leads: one instance at a time, by a Lease, and not a moment longer than it lasts.

::

    acquire --> hold (renew every 2 s) --> release on shutdown
                  |                  \--> LeaseLost: another instance holds it, the process ends
                  \--> the API server is away: the fence closes after 10 s, renewing goes on,
                       and opens again if nobody took the lease meanwhile

Times are the local monotonic clock's only: a holder counts from before it sent a renewal, a
follower from when it last saw the lease change, so skewed wall clocks do no harm (the protocol of
k8s.io/client-go/tools/leaderelection).
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from llmservice.adapters import projection
from llmservice.adapters.clock import micro_time, utc_now
from llmservice.adapters.ports import Cluster, ClusterError, Conflict, NotFound
from llmservice.adapters.resources import LEASE
from llmservice.core.observed import Manifest

_log = logging.getLogger(__name__)


class LeaseLost(Exception):  # noqa: N818 - an event of the protocol, not an error
    """Another instance holds the lease."""


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Which lease, who we are, and the protocol's times in seconds."""

    namespace: str
    name: str
    identity: str
    """Unique per process, so that a restarted one does not mistake its predecessor for itself."""
    duration_seconds: float = 15.0
    """A lease that was not renewed for this long may be taken."""
    renew_deadline_seconds: float = 10.0
    """A holder that could not renew for this long writes no more."""
    retry_seconds: float = 2.0


class LeaseElector:
    """Acquires, holds and releases one lease.

    Args:
        cluster: not fenced, as the lease is what the fence hangs on.
        settings: which lease, and its times.
        now: wall clock, for the times that people read in the lease.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: LeaseSettings,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._now = now
        self._lease: Manifest | None = None
        self._changed_at = 0.0
        self._renewed_at: float | None = None
        self.reachable: bool | None = None
        """Whether the last call about the lease was answered; None before the first."""

    @property
    def leading(self) -> bool:
        """Whether writes are allowed now."""
        if self._renewed_at is None:
            return False
        return _local_time() < self._renewed_at + self._settings.renew_deadline_seconds

    def seconds_left(self) -> float:
        """How long a write that starts now may take; 0 when none may start."""
        if self._renewed_at is None or not self.leading:
            return 0.0
        return self._renewed_at + self._settings.duration_seconds - _local_time()

    async def acquire(self) -> None:
        """Wait until the lease is ours."""
        while not await self._attempt(self._try_acquire):
            await self._pause()
        _log.info("leading as %s", self._settings.identity)

    async def hold(self) -> None:
        """Renew until another instance has the lease.

        Raises:
            LeaseLost: it does.
        """
        while True:
            await self._pause()
            await self._attempt(self._renew)

    async def release(self) -> None:
        """Give the lease back, so that the next instance need not wait for its end."""
        if self._lease is None or self._renewed_at is None:
            return
        self._renewed_at = None
        spec = {**self._lease.get("spec", {}), "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            async with asyncio.timeout(self._settings.renew_deadline_seconds / 2):
                await self._write({**self._lease, "spec": spec})
        except (ClusterError, TimeoutError) as error:
            _log.warning("the lease was not released: %s", error)

    async def _attempt(self, step: Callable[[], Awaitable[bool]]) -> bool:
        """One bounded try; True when the lease is ours after it."""
        started = _local_time()
        try:
            async with asyncio.timeout(self._settings.renew_deadline_seconds / 2):
                held = await step()
        except (ClusterError, TimeoutError) as error:
            if self.reachable is not False:
                _log.warning("lease %s: %s: %s", self._settings.name, type(error).__name__, error)
            self.reachable = False
            return False
        self.reachable = True
        if held:
            self._renewed_at = started
        return held

    async def _try_acquire(self) -> bool:
        try:
            self._saw(await self._cluster.get(LEASE, self._settings.namespace, self._settings.name))
        except NotFound:
            return await self._create()
        return await self._take() if self._is_free() else False

    async def _renew(self) -> bool:
        if self._lease is None:
            return await self._reread()
        try:
            await self._write({**self._lease, "spec": self._spec(taking_over=False)})
        except (Conflict, NotFound):
            return await self._reread()
        return True

    async def _reread(self) -> bool:
        """Somebody else wrote the lease: still ours, or lost?"""
        self._lease = None
        try:
            self._saw(await self._cluster.get(LEASE, self._settings.namespace, self._settings.name))
        except NotFound:
            return await self._create()
        if self._holder() != self._settings.identity:
            self._renewed_at = None
            raise LeaseLost(f"held by {self._holder() or 'nobody'}")
        return await self._take()

    async def _create(self) -> bool:
        lease = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._settings.name, "namespace": self._settings.namespace},
            "spec": self._spec(taking_over=True),
        }
        try:
            self._saw(await self._cluster.create(LEASE, self._settings.namespace, lease))
        except Conflict:
            return False
        return True

    async def _take(self) -> bool:
        mine = self._holder() == self._settings.identity
        try:
            await self._write({**(self._lease or {}), "spec": self._spec(taking_over=not mine)})
        except Conflict:
            return False
        return True

    async def _write(self, lease: Manifest) -> None:
        self._saw(await self._cluster.replace(LEASE, self._settings.namespace, lease))

    def _saw(self, lease: Manifest) -> None:
        if self._lease is None or _version(self._lease) != _version(lease):
            self._changed_at = _local_time()
        self._lease = lease

    def _holder(self) -> str:
        return projection.text(self._lease_spec().get("holderIdentity"))

    def _is_free(self) -> bool:
        if self._holder() in ("", self._settings.identity):
            return True
        duration = projection.number(
            self._lease_spec().get("leaseDurationSeconds"), int(self._settings.duration_seconds)
        )
        return _local_time() >= self._changed_at + duration

    def _spec(self, *, taking_over: bool) -> Manifest:
        old = self._lease_spec()
        now = micro_time(self._now())
        transitions = projection.number(old.get("leaseTransitions"))
        return {
            "holderIdentity": self._settings.identity,
            "leaseDurationSeconds": int(self._settings.duration_seconds),
            "acquireTime": now if taking_over else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": transitions + 1 if taking_over and old else transitions,
        }

    def _lease_spec(self) -> Manifest:
        return dict(projection.mapping((self._lease or {}).get("spec")))

    async def _pause(self) -> None:
        spread = random.uniform(1.0, 1.2)  # noqa: S311 - followers must not march in step
        await asyncio.sleep(self._settings.retry_seconds * spread)


def _version(lease: Manifest) -> str:
    return projection.identity(lease).resource_version


def _local_time() -> float:
    return asyncio.get_running_loop().time()
