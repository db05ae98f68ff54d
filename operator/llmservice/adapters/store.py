"""What the cluster holds, in memory: every service with its children and pods, ready to decide on.

Filled by kopf (services), the reflectors (children, pods) and the answers to our own writes, so
that nothing waits for the watch to repeat them. Events may come late or twice: an older one never
replaces a newer one. Handlers read it as :class:`Observed`; it decides nothing.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from typing import Any, get_args

from llmservice.adapters import projection
from llmservice.adapters.claims import Claims
from llmservice.adapters.projection import Identity, StoredService
from llmservice.adapters.resources import LLM_SERVICE, OPTIONAL, POD
from llmservice.api import names
from llmservice.core.autoscaling.budget import Budget
from llmservice.core.canary.queue import Place, place_of
from llmservice.core.judge.scrapes import Baselines
from llmservice.core.observed import (
    ApplyError,
    Child,
    ChildRef,
    CrashLog,
    KVCacheSize,
    MetricsRead,
    Observed,
    PodFacts,
    ServiceKey,
    ServiceObject,
)
from llmservice.core.questions import Answer, NamedQuestion, Question, Topic, topic_of
from llmservice.core.resources.bench import BENCH_COMPONENT


class Change(IntEnum):
    """What an event meant for the service it belongs to; greater is more urgent."""

    Nothing = 0  # known already, or of no interest to a decision
    Facts = 1  # progress: replicas, readiness, pods
    Shape = 2  # the user or another writer changed what has to be there


@dataclass(frozen=True, slots=True)
class Touched:
    """A service that an event concerns."""

    key: ServiceKey
    change: Change


@dataclass(frozen=True, slots=True)
class _Pod:
    resource_version: str
    facts: PodFacts
    component: str


@dataclass(slots=True)
class _Entry:
    service: StoredService | None = None
    children: dict[ChildRef, Child] = field(default_factory=dict)
    pods: dict[str, _Pod] = field(default_factory=dict)
    """By name."""
    logs: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Pod uid -> restart count and compressed text."""
    reads: dict[str, MetricsRead] = field(default_factory=dict)
    """Pod uid -> what came of reading its metrics."""
    answers: dict[Topic, Answer] = field(default_factory=dict)
    """Topic of a question -> the last answer."""
    baselines: Mapping[str, Baselines] = field(default_factory=dict)
    errors: tuple[ApplyError, ...] = ()
    bereft: bool = False
    """Somebody deleted a child: perhaps the garbage collector, because the service is gone."""

    @property
    def empty(self) -> bool:
        return self.service is None and not self.children and not self.pods

    def pods_of(self, component: str) -> tuple[PodFacts, ...]:
        """Pods of the engines, of the routers or of benches."""
        return tuple(pod.facts for pod in self.pods.values() if pod.component == component)

    def has_pod(self, uid: str) -> bool:
        """Whether what is told of a pod is still of interest."""
        return any(pod.facts.uid == uid for pod in self.pods.values())

    def forget_pod(self, uid: str) -> None:
        """Drop what was read of a pod that is gone."""
        self.logs.pop(uid, None)
        self.reads.pop(uid, None)
        for kind in get_args(Question):
            self.answers.pop((kind, uid), None)

    def forget_service(self) -> None:
        """Drop all that is kept for the service's sake."""
        self.service, self.errors, self.baselines = None, (), {}
        self.logs.clear()
        self.reads.clear()
        self.answers.clear()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an object is kept."""

    kind: str
    namespace: str
    name: str


class Store:
    """All that is known of the cluster; for one event loop."""

    def __init__(self, budgets: Sequence[Budget] = ()) -> None:
        self.claims = Claims(budgets)
        self._entries: dict[ServiceKey, _Entry] = {}
        self._owners: dict[_Place, ServiceKey] = {}
        self._rollouts: dict[ServiceKey, Place] = {}
        """Those under way."""

    # --- reading ------------------------------------------------------------------------------

    def services(self) -> list[ServiceKey]:
        """All services that exist."""
        return [key for key, entry in self._entries.items() if entry.service is not None]

    def snapshot(self, key: ServiceKey, now: datetime) -> Observed | None:
        """Everything known of one service, or None if there is no such service."""
        entry = self._entries.get(key)
        if entry is None or entry.service is None:
            return None
        service = entry.service
        return Observed(
            service=ServiceObject(
                key=key,
                uid=service.uid,
                generation=service.generation,
                spec=json.loads(service.spec),
                status=json.loads(service.status),
                deleting=service.deleting,
                action=service.action,
            ),
            now=now,
            children={
                ref: replace(child, deleting=True) if _is_orphan(child, service.uid) else child
                for ref, child in entry.children.items()
            },
            pods=entry.pods_of(names.ENGINE_COMPONENT),
            routers=entry.pods_of(names.ROUTER_COMPONENT),
            bench_pods=entry.pods_of(BENCH_COMPONENT),
            crash_logs={
                uid: CrashLog(count, zlib.decompress(text).decode())
                for uid, (count, text) in entry.logs.items()
            },
            metrics_reads=dict(entry.reads),
            answers=dict(entry.answers),
            baselines=entry.baselines,
            apply_errors=entry.errors,
            other_rollouts=tuple(each for of, each in self._rollouts.items() if of != key),
            claim=self.claims.of(key),
            other_claims=self.claims.others(key),
        )

    def is_bereft(self, key: ServiceKey) -> bool:
        """Whether a child went away that we did not delete: is the service still there?"""
        entry = self._entries.get(key)
        return entry is not None and entry.bereft

    def confirm(self, key: ServiceKey) -> None:
        """The service is still there; what is missing may be made again."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.bereft = False

    # --- events -------------------------------------------------------------------------------

    def put(self, kind: str, live: Mapping[str, Any]) -> Iterable[Touched]:
        """Take in a live object of ``kind``; says which services it concerns."""
        if kind == LLM_SERVICE.kind:
            who = projection.identity(live)
            return self._put_service(ServiceKey(who.namespace, who.name), live)
        key = projection.service_key(live)
        return () if key is None else self._put_owned(key, kind, live)

    def put_child(self, key: ServiceKey, kind: str, live: Mapping[str, Any]) -> None:
        """Take in a child that is known to belong to ``key``, whatever its labels say."""
        self._put_owned(key, kind, live)

    def remove(self, kind: str, live: Mapping[str, Any]) -> Iterable[Touched]:
        """Take in that a live object is gone, unless a newer one took its name."""
        who = projection.identity(live)
        if kind == LLM_SERVICE.kind:
            key = ServiceKey(who.namespace, who.name)
            service = self._service(key)
            if service is None or _is_older(who.resource_version, service.resource_version):
                return ()
            return (Touched(key, Change.Shape), *self.forget(key))
        return self._remove_owned(_Place(kind, who.namespace, who.name), who.resource_version)

    def retain(
        self, kind: str, namespace: str | None, seen: Iterable[Identity], resource_version: str
    ) -> Iterable[Touched]:
        """Take in a whole list: what it does not hold, and is no newer than it, is gone.

        Args:
            kind: what was listed.
            namespace: where, None for everywhere.
            seen: what the list held.
            resource_version: version of the list.
        """
        listed = {(who.namespace, who.name) for who in seen}
        touched: list[Touched] = []
        for place in list(self._places(kind, namespace)):
            if (place.namespace, place.name) in listed:
                continue
            gone = {
                "metadata": {
                    "namespace": place.namespace,
                    "name": place.name,
                    "resourceVersion": resource_version,
                }
            }
            touched.extend(self.remove(kind, gone))
        return touched

    def forget(self, key: ServiceKey) -> Sequence[Touched]:
        """The service is gone; its children and pods stay until the garbage collector is done.

        Returns:
            Those that may get its devices.
        """
        freed = [Touched(each, Change.Facts) for each in self.claims.drop(key)]
        entry = self._entries.get(key)
        if entry is None:
            return freed
        entry.forget_service()
        self._rollouts.pop(key, None)
        for ref in [ref for ref in entry.children if ref.kind in OPTIONAL]:
            self.remove_child(key, ref)  # no watch will tell that it is gone
        self._drop_if_empty(key)
        return freed

    # --- what carrying out a decision taught us -----------------------------------------------

    def child(self, key: ServiceKey, ref: ChildRef) -> Child | None:
        """One live child."""
        entry = self._entries.get(key)
        return None if entry is None else entry.children.get(ref)

    def remove_child(self, key: ServiceKey, ref: ChildRef) -> None:
        """A child that we deleted."""
        entry = self._entries.get(key)
        if entry is not None and entry.children.pop(ref, None) is not None:
            self._owners.pop(_Place(ref.kind, key.namespace, ref.name), None)

    def set_apply_errors(self, key: ServiceKey, errors: tuple[ApplyError, ...]) -> bool:
        """What the last attempt met; True when it differs from the one before."""
        entry = self._entries.get(key)
        if entry is None or entry.errors == errors:
            return False
        entry.errors = errors
        return True

    def put_crash_log(self, key: ServiceKey, pod_uid: str, restart_count: int, text: str) -> None:
        """The log of a crash; an empty one says that there is none to be had."""
        entry = self._entries.get(key)
        if entry is not None and entry.has_pod(pod_uid):
            entry.logs[pod_uid] = (restart_count, zlib.compress(text.encode()))

    def put_metrics_read(
        self, key: ServiceKey, pod_uid: str, now: datetime, size: KVCacheSize | None
    ) -> None:
        """What came of one more try to read a pod's metrics."""
        entry = self._entries.get(key)
        if entry is not None and entry.has_pod(pod_uid):
            last = entry.reads.get(pod_uid)
            entry.reads[pod_uid] = MetricsRead(1 + (last.tries if last else 0), now, size)

    def put_answer(self, key: ServiceKey, question: Question, answer: Answer) -> None:
        """What came of a question; it takes the place of the answer before."""
        entry = self._entries.get(key)
        if entry is None or entry.service is None:
            return
        if isinstance(question, NamedQuestion) or entry.has_pod(question.pod_uid):
            entry.answers[topic_of(question)] = answer

    def put_baselines(self, key: ServiceKey, baselines: Mapping[str, Baselines]) -> None:
        """What the next look at counters is to be compared with."""
        entry = self._entries.get(key)
        if entry is not None and entry.service is not None:
            entry.baselines = baselines

    # --- inside -------------------------------------------------------------------------------

    def _service(self, key: ServiceKey) -> StoredService | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.service

    def _put_service(self, key: ServiceKey, live: Mapping[str, Any]) -> Iterable[Touched]:
        old = self._service(key)
        version = projection.identity(live).resource_version
        if old is not None and not _is_newer(version, old.resource_version):
            return ()
        new = projection.stored_service(live)
        self._entries.setdefault(key, _Entry()).service = new
        place = place_of(str(key), projection.mapping(live.get("status")))
        if place is None or new.deleting:
            self._rollouts.pop(key, None)
        else:
            self._rollouts[key] = place
        sharers = [Touched(each, Change.Facts) for each in self.claims.put(key, live)]
        if old is not None and _wishes(old) != _wishes(new):
            return (Touched(key, Change.Shape), *sharers)
        if old is None or replace(new, resource_version=old.resource_version) != old:
            return (Touched(key, Change.Facts), *sharers)
        return sharers

    def _put_owned(self, key: ServiceKey, kind: str, live: Mapping[str, Any]) -> Iterable[Touched]:
        who = projection.identity(live)
        place = _Place(kind, who.namespace, who.name)
        before = self._owners.get(place)
        moved: tuple[Touched, ...] = ()
        if before is not None and before != key:
            moved = tuple(self._remove_owned(place, who.resource_version))
        entry = self._entries.setdefault(key, _Entry())
        put = _put_pod if kind == POD.kind else _put_child
        change = put(entry, kind, who, live)
        self._owners[place] = key
        return (*moved, Touched(key, change)) if change else moved

    def _remove_owned(self, place: _Place, resource_version: str) -> Iterable[Touched]:
        key = self._owners.get(place)
        if key is None:
            return ()
        entry = self._entries[key]
        if place.kind == POD.kind:
            pod = entry.pods[place.name]
            if _is_older(resource_version, pod.resource_version):
                return ()
            del entry.pods[place.name]
            entry.forget_pod(pod.facts.uid)
        else:
            ref = ChildRef(place.kind, place.name)
            if _is_older(resource_version, entry.children[ref].resource_version):
                return ()
            gone = entry.children.pop(ref)
            entry.bereft = True
            # No watch tells of a ScaledObject: that its HPA goes is all that can be seen.
            makers = [r for r, c in entry.children.items() if c.uid == gone.controller_uid]
            for maker in makers:
                self.remove_child(key, maker)
        del self._owners[place]
        self._drop_if_empty(key)
        return (Touched(key, Change.Facts if place.kind == POD.kind else Change.Shape),)

    def _places(self, kind: str, namespace: str | None) -> Iterator[_Place]:
        if kind == LLM_SERVICE.kind:
            places = (_Place(kind, key.namespace, key.name) for key in self.services())
        else:
            places = (place for place in self._owners if place.kind == kind)
        return (place for place in places if namespace in (None, place.namespace))

    def _drop_if_empty(self, key: ServiceKey) -> None:
        if self._entries[key].empty:
            del self._entries[key]


def _put_child(entry: _Entry, kind: str, who: Identity, live: Mapping[str, Any]) -> Change:
    ref = ChildRef(kind, who.name)
    old = entry.children.get(ref)
    if old is not None and not _is_newer(who.resource_version, old.resource_version):
        return Change.Nothing
    entry.children[ref] = new = projection.child(kind, live)
    if old is None:
        return Change.Facts
    if replace(new, resource_version=old.resource_version) == old:
        return Change.Nothing
    same_shape = (new.uid, new.owned_fields, new.applied_hash, new.controller_uid) == (
        old.uid,
        old.owned_fields,
        old.applied_hash,
        old.controller_uid,
    )
    return Change.Facts if same_shape else Change.Shape


def _put_pod(entry: _Entry, _: str, who: Identity, live: Mapping[str, Any]) -> Change:
    old = entry.pods.get(who.name)
    if old is not None and not _is_newer(who.resource_version, old.resource_version):
        return Change.Nothing
    new = _Pod(who.resource_version, projection.pod(live), projection.component(live))
    entry.pods[who.name] = new
    if old is not None and old.facts.uid != new.facts.uid:
        entry.forget_pod(old.facts.uid)
    same = old is not None and (old.facts, old.component) == (new.facts, new.component)
    return Change.Nothing if same else Change.Facts


def _wishes(service: StoredService) -> tuple[object, ...]:
    """What a person changes."""
    return service.uid, service.generation, service.deleting, service.action


def _is_orphan(child: Child, service_uid: str) -> bool:
    """Whether the child belongs to a deleted service of the same name: it is being collected."""
    return child.controller_kind == names.KIND and child.controller_uid != service_uid


def _is_newer(version: str, than: str) -> bool:
    """Whether an event tells something new. Versions that are no numbers only tell same or not."""
    if version.isdigit() and than.isdigit():
        return int(version) > int(than)
    return version != than


def _is_older(version: str, than: str) -> bool:
    return version.isdigit() and than.isdigit() and int(version) < int(than)
