"""Worlds that check, after every decision, what holds of canary rollouts whatever happens.

One has routers of its own, the other one is behind a Gateway; both have gates, whose webhooks and
benches behave as they are told to.
"""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from llmservice.api import names
from llmservice.api.status import LLMServiceStatus
from llmservice.core.canary.state import AT_REST, Phase, dump_rollout, load_rollout
from llmservice.core.decision import Decision
from llmservice.core.failures import ContainerState
from llmservice.core.observed import ChildRef, JobFacts, Manifest
from llmservice.core.questions import CallGate, GateAnswer, Question, ReadRoute, RouteReading
from tests.state.gated_world import FIGURES, GatedWorld
from tests.state.gateway_world import OWN, OWNERS_RULES, GatewayWorld

GRANTS = ("PreflightPassed", "StepPassed", "PromotedByUser")
"""Reasons for which one more weight may be given."""
AT_EASE = {*AT_REST, "Paused"}
GATED = {"Shifting": "BeforeTraffic", "Promoting": "BeforePromotion"}
"""Phase that gates stand before, and which ones."""
_OUT_OF_RETRIES = JobFacts(failed="BackoffLimitExceeded: it failed")
ENDS = {
    "pass": (0, json.dumps(FIGURES), JobFacts(succeeded=True)),
    "miss": (0, json.dumps({**FIGURES, "output_throughput": 1.0}), JobFacts(succeeded=True)),
    "crash": (1, "OSError: no tokenizer", _OUT_OF_RETRIES),
    "vanish": (None, "", JobFacts(succeeded=True)),
}
"""How a bench may end: exit code (None: its pod is gone), last words, and what the Job says."""


@dataclass
class LawfulWorld(GatedWorld):
    """With routers of the service's own."""

    loads: bool = True
    """Pods become ready."""
    gate_takes: float = 0.0
    """Seconds until a webhook answers."""
    calls_open: list[tuple[datetime, CallGate]] = field(default_factory=list)
    bench_does: str = "pass"
    """One of ``ENDS``; anything else for a bench that does not end."""
    passed: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    """Gate -> revision that it let pass last, and when it said so or its Job was made."""
    granted: int = 0
    """How often the weight may still rise."""
    accepted: dict[str, Any] = field(default_factory=dict)
    """The newest spec that was not refused."""

    def reconcile(self) -> Decision:
        before, told = self.rollout, self.status
        ready = {pod.revision for pod in self.pods.values() if pod.ready}
        alive = self.dies_after
        earlier = copy.copy(self)
        earlier.pods, earlier.heard = dict(self.pods), dict(self.heard)
        earlier.manifests, earlier.answers = dict(self.manifests), dict(self.answers)
        decision = super().reconcile()
        if self.status is not told:
            self.check_status()
        if not any(c["reason"] == "InvalidSpec" for c in self.status["conditions"]):
            self.accepted = self.spec
        after = self.rollout
        if before.get("phase") not in (None, after.get("phase")):
            self.check_gates(before, after)
            self.check_pauses(before, after)
            self.check_retries(before, after)
            if self.accepted["replicas"]:
                self.check_steps(earlier, before, after)
        if "state" in before and (alive is None or self.writes < alive):
            self.check_shares(decision, ready)
            self.check_pods(before["state"])
        self.check_weights(before, after)
        return decision

    # --- laws ---------------------------------------------------------------------------------

    def check_status(self) -> None:
        """The API server takes it, and the next operator reads just what this one wrote."""
        parsed = LLMServiceStatus.model_validate_json(json.dumps(self.status), strict=True)
        assert self.status == parsed.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if self.rollout:
            kept = self.status["rollout"]["state"]
            rollout = load_rollout(kept)
            assert rollout is not None
            assert kept == dump_rollout(rollout)

    def check_shares(self, decision: Decision, ready: set[str]) -> None:
        """No traffic for a revision without a ready pod while another one has some."""
        staying = {revision for revision in ready if self.wanted_pods().get(revision)}
        for shares, whole in self.told(decision):
            assert sum(shares.values()) == whole
            loaded = {revision for revision, share in shares.items() if share}
            assert not staying or loaded <= ready, (shares, ready)

    def told(self, decision: Decision) -> Iterator[tuple[dict[str, int], int]]:
        """What routers are told: shares by revision, and their total."""
        del decision
        told = self.manifests[ChildRef("ConfigMap", names.router_name("mistral"))]["data"]
        tracks = json.loads(told[names.TRAFFIC_KEY])["tracks"]
        yield {track["name"]: track["weight"] for track in tracks}, 10_000

    def wanted_pods(self) -> dict[str, int]:
        """By revision, as its Deployment says."""
        return {
            ref.name.removeprefix("mistral-"): manifest["spec"]["replicas"]
            for ref, manifest in self.manifests.items()
            if ref.kind == "Deployment" and ref.name != names.router_name("mistral")
        }

    def check_pods(self, told: dict[str, Any]) -> None:
        """Never more than the service may have, none for what was turned down."""
        wanted, pods = self.accepted["replicas"], self.wanted_pods()
        assert max(pods.values()) <= wanted
        most = max(2, wanted) if told.get("capacity") == "Replace" else 2 * wanted
        assert sum(pods.values()) <= most, pods
        ending = {told.get("canary"), told.get("leaving")}
        for each in told.get("rejected", ()):
            assert not pods.get(each["hash"]) or each["hash"] in ending
        assert wanted == 0 or pods[told["stable"]] > 0 or told["phase"] == "Draining"

    def check_gates(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Nobody gets past a gate that has not let pass just this canary, on this trial."""
        when = GATED.get(after["phase"])
        by_word = after["reason"] in ("PromotedByUser", "NothingRuns") or after["state"]["ungated"]
        met_clients = when == "BeforeTraffic" and before["weight"]
        if when is None or by_word or met_clients:
            return
        for gate in self.accepted["rollout"].get("gates", ()):
            if gate.get("when", "BeforeTraffic") == when:
                revision, at = self.passed[gate["name"]]
                assert before["canaryRevision"] == revision
                assert datetime.fromisoformat(before["state"]["began"]) <= at

    def check_pauses(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """A person is a gate as well: without a word no pause is passed by, or left."""
        if after["phase"] not in ("Preflight", "Provisioning"):
            return
        if before["phase"] == "Paused":
            assert after["reason"] in ("Resumed", "PromotedByUser")
        if after["reason"] == "StepPassed":
            steps = self.accepted["rollout"]["steps"]
            assert not any(s.get("pause") for s in steps if s["weight"] == before["weight"])

    def check_retries(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """What was turned down is tried again if a person says so, and never served by itself."""
        rejected = {each["hash"] for each in before["state"].get("rejected", ())}
        if after["phase"] == "Preflight" and after["reason"] != "RetriedByUser":
            assert after["canaryRevision"] not in rejected
        if after["phase"] == "Promoting":
            assert after["state"]["stable"] not in rejected

    def check_steps(
        self, earlier: "LawfulWorld", before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        """Pods before traffic; and no step on before the routers have the one before."""
        phase = after["phase"]
        if phase == "Warming":
            canary = after["canaryRevision"]
            # Fewer may be needed since the replicas were edited just now, or the room.
            needed = min(earlier.wanted_pods()[canary], self.wanted_pods()[canary])
            if after["state"]["capacity"] == "Replace":
                needed = min(needed, max(1, self.accepted["replicas"] - 1))
            ready = sum(pod.ready and pod.revision == canary for pod in earlier.pods.values())
            assert ready >= needed >= 1
        if phase in ("Settling", "Draining"):
            earlier.check_routers(before)

    def check_routers(self, before: dict[str, Any]) -> None:
        """All have taken what they were told."""
        del before
        if self.routers:
            told = self.manifests[ChildRef("ConfigMap", names.router_name("mistral"))]["data"]
            assert {told[names.TRAFFIC_KEY]} == {self.heard.get(name) for name in self.routers}

    def check_weights(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """The weight rises by a passed step or by somebody's word, and by nothing else."""
        if before == after or not after:
            return
        if after["phase"] in ("Preflight", *AT_REST):
            self.granted = 0
        moved = before.get("phase") != after["phase"] or before.get("since") != after["since"]
        if before.get("phase") == after["phase"] and "hold" in before["state"]:
            moved = False  # it goes on waiting, from now on
        if after["reason"] == "PodsTakenAway" and moved:
            # What it had, or was about to get, it may get again.
            assert after["weight"] == 0
            assert after["state"]["to"] == before["state"]["to"]
            self.granted = max(1, self.granted)
        if moved and after["reason"] in GRANTS and after["phase"] in ("Provisioning", "Paused"):
            self.granted += 1
            passed = after["reason"] == "StepPassed"
            assert not passed or after["state"]["verdict"] == "promote"
        same = before.get("canaryRevision") == after.get("canaryRevision")
        if same and after["weight"] > before.get("weight", 0):
            assert "Shifting" == after["phase"]
            assert self.granted > 0
            self.granted = 0

    # --- what happens -------------------------------------------------------------------------

    def live(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + timedelta(seconds=seconds)
        while self.now < end:
            self.tick()

    def tick(self) -> None:
        """One decision, and the time until the next one."""
        decision = self.reconcile()
        moved = self.load_pods() if self.loads else False
        moved = self.run_benches() or moved
        moved = moved or bool(decision.apply or decision.delete or decision.status)
        pause = decision.requeue_after_seconds
        if decision.ask or (pause is None and moved):
            pause = 1.0
        self.pass_time(60.0 if pause is None else min(max(pause, 0.2), 60.0))

    def pass_time(self, seconds: float) -> None:
        super().pass_time(seconds)
        due = [call for at, call in self.calls_open if at <= self.now]
        self.calls_open = [(at, call) for at, call in self.calls_open if at > self.now]
        for call in due:
            self._answer(call)

    def run_benches(self) -> bool:
        """They end as they are told to; says whether one did."""
        code, words, job = ENDS.get(self.bench_does, (None, "", None))
        running = [r for r, c in self.children.items() if c.job is not None and not c.job.ended]
        if job is None:
            return False
        for ref in running:
            self.children[ref] = replace(self.children[ref], job=job)
            pod = self.benches.pop(ref.name)
            if code is not None:
                ended = ContainerState("bench", False, 0, None, None, "Ended", code, words)
                self.benches[ref.name] = replace(pod, container=ended, running=False)
            if self.bench_does == "pass":
                [revision] = re.findall(r"//mistral-(\w+)\.", json.dumps(self.manifests[ref]))
                gate = ref.name.removeprefix("mistral-bench-").rpartition("-")[0]
                self.passed[gate] = (revision, pod.created)
        return bool(running)

    def crash(self, revision: str) -> None:
        """All its pods died, and load anew."""
        died = ContainerState("engine", False, 1, None, None, "Error", 1, None)
        for name, pod in self.pods.items():
            if pod.revision == revision:
                self.pods[name] = replace(pod, ready=False, container=died)
        self._run_controllers()

    def heal(self) -> None:
        """Everything outside works from now on, and the spec is valid."""
        self.dies_after, self.room, self.loads = None, 100, True
        self.deaf.clear()
        self.behaviours = {
            revision: replace(how, silent=False, cold="", fails_every=0, in_flight=0)
            for revision, how in self.behaviours.items()
        }
        self.requests_per_second = 20.0
        self.says, self.gate_takes, self.bench_does = 200, 0.0, "pass"
        self.edit(rollout={**self.spec["rollout"], "capacity": "Surge"})
        self.edit_engine(extraArgs=[])

    def check_peace(self) -> None:
        """What is left once it is in peace."""
        phase, wanted = self.rollout["phase"], self.spec["replicas"]
        if phase in AT_REST:
            assert self.pods_by_revision() == ({self.stable: wanted} if wanted else {})
            assert (self.stable == self.newest) == (phase == Phase.Stable)

    def restart_operator(self) -> None:
        super().restart_operator()
        self.calls_open.clear()

    def _hear(self, question: Question) -> None:
        if not isinstance(question, CallGate):
            super()._hear(question)
        elif not self.gate_takes:
            self._answer(question)
        elif all(question.name != call.name for _, call in self.calls_open):
            self.calls_open.append((self.now + timedelta(seconds=self.gate_takes), question))

    def _answer(self, call: CallGate) -> None:
        super()._hear(call)
        said = self.answers[CallGate, call.name].content
        if isinstance(said, GateAnswer) and said.status == 200:
            self.passed[call.name] = (said.trial.split()[0], self.now)

    def _say(self, question: Question) -> Any:
        said = super()._say(question)
        if isinstance(said, GateAnswer) and self.says == "lost":
            return None
        if isinstance(said, GateAnswer) and self.says == "stale":
            return replace(said, trial="another", status=200)
        return said


@dataclass
class LawfulGatewayWorld(LawfulWorld, GatewayWorld):
    """Behind a Gateway, by an HTTPRoute of the service's own or of its owner's."""

    rules: Any = OWNERS_RULES
    """Of the owner's route, as he wrote them last."""

    def told(self, decision: Decision) -> Iterator[tuple[dict[str, int], int]]:
        """Only what is written now: the live route may be as somebody else wants it."""
        if decision.patch_route is not None:
            yield _shares(decision.patch_route.operations[1]["value"]), 100
        for apply in decision.apply:
            if apply.ref == OWN:
                yield _shares(apply.manifest["spec"]["rules"][0]["backendRefs"]), 100

    def check_routers(self, before: dict[str, Any]) -> None:
        """The route was seen, with the weights, and accepted as it is."""
        reading = self.answers[ReadRoute, self.name].content
        assert isinstance(reading, RouteReading)
        assert reading.route is not None
        generation = reading.route["metadata"]["generation"]
        for condition in reading.route["status"]["parents"][0]["conditions"]:
            assert (generation, "True") == (condition["observedGeneration"], condition["status"])
        [rule] = (r for r in reading.route["spec"]["rules"] if r.get("name") == "llmservice")
        shares, state = _shares(rule["backendRefs"]), before["state"]
        assert sum(shares.values()) == 100
        ready = {pod.revision for pod in self.pods.values() if pod.ready}
        if state["stable"] in ready:
            other = state.get("canary") or state["leaving"]
            assert before["weight"] * (before["phase"] == "Shifting") == shares.get(other, 0)

    def heal(self) -> None:
        super().heal()
        self.says_nothing, self.refuses, self.refuses_patches = False, "", ""
        self.has_api = self.acknowledges = self.accepts = True
        if self.own is None:
            self.owner_writes(OWNERS_RULES)

    def owner_writes(self, rules: Any) -> None:
        """He applies his route, anew if it is gone; of ours, somebody edits it."""
        if self.name == "mistral" and self.route is None:
            return
        self.rules = rules
        if self.route is None:
            metadata = {"name": self.name, "namespace": "default", "generation": 1}
            parents = [self.spec["traffic"]["gatewayRef"]]
            self.route = {"metadata": metadata, "spec": {"parentRefs": parents}}
        self.edit_route(rules)

    def check_peace(self) -> None:
        """All requests go to stable, and what is foreign in a route is as its owner wrote it."""
        super().check_peace()
        self.live(130)
        if self.rollout["phase"] in AT_REST:
            assert {f"mistral-{self.stable}": 100} == self.weights()
        if self.name != "mistral":
            assert self.route is not None
            assert _foreign(self.rules) == _foreign(self.route["spec"]["rules"])


def _shares(backends: list[Manifest]) -> dict[str, int]:
    return {each["name"].removeprefix("mistral-"): each["weight"] for each in backends}


def _foreign(rules: Any) -> list[Manifest]:
    """All of them, but for the backends of ours."""
    ours = "llmservice"
    return [{**rule, "backendRefs": []} if rule.get("name") == ours else rule for rule in rules]
