"""A world of one service in memory: decisions are carried out, pods load when told.

It stands in for the API server only where a test is about decisions in sequence; what the API
server itself does with our objects is tested against a real one in ``tests/contract``.
"""

import copy
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from llmservice.api import names
from llmservice.core.autoscaling.budget import Claim, claim_of
from llmservice.core.config import Config
from llmservice.core.decision import Apply, Decision, MetricsRequest
from llmservice.core.failures import ContainerState
from llmservice.core.observed import (
    AutoscalerFacts,
    Child,
    ChildRef,
    CrashLog,
    DeploymentFacts,
    KVCacheSize,
    Manifest,
    MetricsRead,
    Observed,
    PodFacts,
    RevisionFacts,
    ServiceKey,
    ServiceObject,
)
from llmservice.core.reconcile import reconcile
from llmservice.core.resources.autoscaler import AUTOSCALER_KIND
from llmservice.core.revisions import pack_data

UID = "5f0c4a4e-0000-4000-8000-000000000001"
START = datetime(2026, 1, 1, tzinfo=UTC)


def a_spec(**changes: Any) -> dict[str, Any]:
    """A valid spec; keyword arguments replace its top-level fields."""
    spec: dict[str, Any] = {
        "model": {"id": "mistralai/Mistral-7B-Instruct-v0.2"},
        "engine": {"image": "vllm/vllm-openai:v0.33.0", "maxNumSeqs": 64},
        "accelerator": {"product": "NVIDIA-A10G"},
        "replicas": 1,
    }
    return {**copy.deepcopy(spec), **changes}


def starting() -> ContainerState:
    """An engine container that loads its model."""
    return ContainerState("engine", False, 0, None, None, None, None, None)


def owned(manifest: Any) -> Any:
    """A ``fieldsV1`` tree by which the whole manifest is ours; lists count as atomic."""
    identity = ("apiVersion", "kind")
    named = {k: v for k, v in manifest["metadata"].items() if k not in ("name", "namespace")}
    return _owned({k: v for k, v in manifest.items() if k not in identity} | {"metadata": named})


def _owned(value: Any) -> Any:
    return {f"f:{k}": _owned(v) for k, v in value.items()} if isinstance(value, dict) else {}


@dataclass
class World:
    """One LLMService, its children and its pods."""

    spec: dict[str, Any] = field(default_factory=a_spec)
    generation: int = 1
    status: dict[str, Any] = field(default_factory=dict)
    children: dict[ChildRef, Child] = field(default_factory=dict)
    manifests: dict[ChildRef, Manifest] = field(default_factory=dict)
    pods: dict[str, PodFacts] = field(default_factory=dict)
    crash_logs: dict[str, CrashLog] = field(default_factory=dict)
    config: Config = field(default_factory=Config)
    reachable: bool = False
    """Pods have an address, so engines can be asked for their metrics."""
    engine_says: KVCacheSize | None = None
    """What an engine answers."""
    asked: list[str] = field(default_factory=list)
    """Pods that were asked, in order."""
    metrics_reads: dict[str, MetricsRead] = field(default_factory=dict)
    now: datetime = START
    room: int = 100
    version: int = 0
    autoscaler_wants: dict[str, int] = field(default_factory=dict)
    """Revision -> replicas that its HPA would like; by default it changes nothing."""
    other_claims: tuple[Claim, ...] = ()
    """Of other services on the same devices."""
    replica_owners: dict[ChildRef, set[str]] = field(default_factory=dict)
    """Deployment -> field managers of ``spec.replicas``."""

    def edit(self, **changes: Any) -> None:
        """Change the spec as a user would."""
        self.spec = {**self.spec, **changes}
        self.generation += 1

    def edit_engine(self, **changes: Any) -> None:
        """Change fields of spec.engine."""
        self.edit(engine={**self.spec["engine"], **changes})

    def observe(self) -> Observed:
        """The snapshot the operator would decide on."""
        key = ServiceKey("default", "mistral")
        service = ServiceObject(key, UID, self.generation, self.spec, self.status)
        budgets = self.config.budgets
        return Observed(
            service,
            self.now,
            dict(self.children),
            tuple(self.pods.values()),
            dict(self.crash_logs),
            {uid: read for uid, read in self.metrics_reads.items() if uid in self.pods},
            claim=claim_of(str(key), {}, self.spec, self.status) if budgets else None,
            other_claims=self.other_claims,
        )

    def reconcile(self) -> Decision:
        """Decide once and carry it out."""
        decision = reconcile(self.observe(), self.config)
        for apply in decision.apply:
            self._apply(apply)
        for delete in decision.delete:
            self._delete(delete.ref)
        if decision.read_metrics is not None:
            self._ask(decision.read_metrics)
        if decision.status is not None:
            self._put_status(decision.status)
        self._run_controllers()
        return decision

    def settle(self, *, load: bool = True) -> list[Decision]:
        """Reconcile, and let pods become ready, until nothing changes."""
        decisions = []
        for _ in range(60):
            decision = self.reconcile()
            decisions.append(decision)
            loaded = self.load_pods() if load else False
            planned = decision.requeue_after_seconds
            asked = decision.read_metrics is not None
            written = decision.apply or decision.delete or decision.status
            if not (written or loaded or planned or asked):
                return decisions
            self.now += timedelta(seconds=10)
        raise AssertionError("did not settle")

    def load_pods(self) -> bool:
        """Every scheduled pod becomes ready; says whether one did."""
        changed = False
        for name, pod in self.pods.items():
            if pod.scheduled and not pod.ready:
                ready = ContainerState("engine", True, 0, None, None, None, None, None)
                self.pods[name] = replace(pod, ready=True, silent=False, container=ready)
                changed = True
        self._run_controllers()
        return changed

    def condition(self, type_: str) -> dict[str, Any] | None:
        """A condition of the status."""
        return next((c for c in self.status.get("conditions", ()) if c["type"] == type_), None)

    def revisions(self) -> set[str]:
        """Hashes that have a Deployment."""
        return {
            ref.name.removeprefix("mistral-") for ref in self.children if ref.kind == "Deployment"
        }

    def _ask(self, request: MetricsRequest) -> None:
        self.asked.append(request.pod)
        last = self.metrics_reads.get(request.pod_uid)
        tries = last.tries if last else 0
        self.metrics_reads[request.pod_uid] = MetricsRead(tries + 1, self.now, self.engine_says)

    def _put_status(self, status: Any) -> None:
        self.status = json.loads(json.dumps(status))

    def _delete(self, ref: ChildRef) -> None:
        del self.children[ref], self.manifests[ref]

    def _apply(self, apply: Apply) -> None:
        manifest = apply.manifest
        self.version += 1
        if apply.manager == names.SCALE_MANAGER:
            seen = manifest["metadata"]["resourceVersion"]
            assert seen == self.children[apply.ref].resource_version
            self._set_replicas(apply.ref, manifest["spec"]["replicas"], names.SCALE_MANAGER)
            return
        child = Child(
            ref=apply.ref,
            uid=f"uid-{apply.ref}",
            resource_version=str(self.version),
            applied_hash=manifest["metadata"]["annotations"][names.APPLIED_HASH_ANNOTATION],
            owned_fields=json.dumps(owned(manifest), sort_keys=True),
            controller_uid=UID,
        )
        if apply.ref.kind == "ControllerRevision":
            data = pack_data(manifest["data"])
            child = replace(child, revision=RevisionFacts(manifest["revision"], data))
        if apply.ref.kind == AUTOSCALER_KIND:
            child = replace(child, autoscaler=AutoscalerFacts(active=True))
        if apply.ref.kind == "Deployment":
            live = self.children.get(apply.ref)
            facts = (live and live.deployment) or DeploymentFacts(1, 0, 0)
            child = replace(child, deployment=facts)
        self.children[apply.ref] = child
        self.manifests[apply.ref] = manifest
        if apply.ref.kind == "Deployment":
            self._own_replicas(apply.ref, manifest["spec"].get("replicas"))

    def _own_replicas(self, ref: ChildRef, replicas: int | None) -> None:
        """What an apply of a whole Deployment makes of its number of pods."""
        owners = self.replica_owners.setdefault(ref, set())
        if replicas is not None:
            self._set_replicas(ref, replicas, names.CHILD_MANAGER)
        elif owners == {names.CHILD_MANAGER}:
            self._set_replicas(ref, 1, "")  # its last owner lets go of it: the default comes back
        owners -= {"", names.CHILD_MANAGER} if replicas is None else set()

    def _set_replicas(self, ref: ChildRef, replicas: int, manager: str) -> None:
        """Some manager writes; the others keep the field only if it says the same."""
        child = self.children[ref]
        assert child.deployment is not None
        owners = self.replica_owners.setdefault(ref, set())
        if child.deployment.replicas != replicas:
            owners.clear()
            if manager != names.CHILD_MANAGER:
                fields = json.loads(child.owned_fields)
                fields["f:spec"].pop("f:replicas", None)
                child = replace(child, owned_fields=json.dumps(fields, sort_keys=True))
        owners.add(manager)
        self.version += 1
        facts = replace(child.deployment, replicas=replicas)
        version = str(self.version)
        self.children[ref] = replace(child, deployment=facts, resource_version=version)

    def _run_autoscalers(self) -> None:
        for ref, manifest in list(self.manifests.items()):
            if ref.kind != AUTOSCALER_KIND:
                continue
            target = ChildRef("Deployment", ref.name)
            facts = self.children[target].deployment
            if facts is None or facts.replicas == 0:
                continue
            wanted = self.autoscaler_wants.get(ref.name.removeprefix("mistral-"), facts.replicas)
            spec = manifest["spec"]
            wanted = max(spec["minReplicas"], min(spec["maxReplicas"], wanted))
            if wanted != facts.replicas:
                self._set_replicas(target, wanted, "kube-controller-manager")

    def _run_controllers(self) -> None:
        """Deployments get their pods; the scheduler places as many as there is room for."""
        self._run_autoscalers()
        for ref, child in list(self.children.items()):
            if child.deployment is None:
                continue
            revision = ref.name.removeprefix("mistral-")
            self._scale(revision, child.deployment.replicas)
        live = {ref.name for ref in self.children if ref.kind == "Deployment"}
        self.pods = {n: p for n, p in self.pods.items() if f"mistral-{p.revision}" in live}
        for name, pod in self.pods.items():
            placed = sum(p.scheduled for p in self.pods.values())
            if not pod.scheduled and placed < self.room:
                self.pods[name] = replace(pod, scheduled=True, container=starting())
        for ref, child in self.children.items():
            if child.deployment is not None:
                mine = [p for p in self.pods.values() if f"mistral-{p.revision}" == ref.name]
                facts = replace(
                    child.deployment,
                    current_replicas=len(mine),
                    ready_replicas=sum(p.ready for p in mine),
                )
                self.children[ref] = replace(child, deployment=facts)

    def _scale(self, revision: str, wanted: int) -> None:
        mine = [n for n, p in self.pods.items() if p.revision == revision]
        for name in sorted(mine, key=lambda n: self.pods[n].ready)[: max(0, len(mine) - wanted)]:
            del self.pods[name]
        for _ in range(wanted - len(mine)):
            self.version += 1
            name = f"mistral-{revision}-{self.version}"
            self.pods[name] = PodFacts(
                name=name,
                uid=name,
                revision=revision,
                ready=False,
                created=self.now,
                scheduled=False,
                scheduling_message="0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
                address=f"10.0.0.{self.version % 250}" if self.reachable else "",
            )
