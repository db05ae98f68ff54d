"""A service from creation through edits, failures and repairs: decisions in sequence."""

import json
from dataclasses import replace

import pytest

from llmservice.api.v1alpha1 import EngineSpec
from llmservice.core.config import Config
from llmservice.core.failures import ContainerState
from llmservice.core.observed import ApplyError, ApplyErrorKind, ChildRef, CrashLog
from llmservice.core.reconcile import reconcile
from llmservice.core.resources import pod as pod_builder
from tests.state.world import World, a_spec


def kinds(decision):
    """Kinds applied, in order."""
    return [apply.ref.kind for apply in decision.apply]


def test_first_reconcile_writes_every_child_once():
    """Six children in the order pods need them, none forced, and one status."""
    decision = World().reconcile()

    assert [
        "ServiceAccount",
        "Service",
        "PodDisruptionBudget",
        "ControllerRevision",
        "Service",
        "Deployment",
    ] == kinds(decision)
    assert not any(apply.force for apply in decision.apply)
    assert decision.status is not None
    assert () == decision.events


def test_first_status_says_it_is_under_way():
    """kstatus: Reconciling is there before anybody could take the service for current."""
    world = World()
    world.reconcile()

    assert "True" == world.condition("Reconciling")["status"]
    assert "False" == world.condition("Ready")["status"]
    assert 1 == world.status["observedGeneration"]


def test_settled_service_needs_nothing():
    """A ready service costs no write, however often and late it is looked at."""
    world = World()
    world.settle()
    decisions = [world.reconcile() for _ in range(3)]

    assert all(not (d.apply or d.delete or d.status or d.events) for d in decisions)
    assert "True" == world.condition("Ready")["status"]
    assert world.condition("Reconciling") is None
    assert "Ready" == world.status["phase"]
    assert world.status["stableRevision"] == world.status["updatedRevision"]


def test_transition_time_moves_only_on_a_flip():
    """A message may change while the condition's time stays."""
    world = World(spec=a_spec(replicas=2))
    world.settle()
    before = world.condition("Ready")["lastTransitionTime"]
    world.edit(replicas=3)
    world.settle()

    assert before == world.condition("Ready")["lastTransitionTime"]


KNOB_EDITS = {
    "image": "vllm/vllm-openai:v0.32.0",
    "version": "0.33.0",
    "parallelism": {"tensor": 2},
    "dtype": "bfloat16",
    "loadFormat": "safetensors",
    "quantization": "fp8",
    "gpuMemoryUtilization": 0.8,
    "kvCacheMemoryBytes": "8Gi",
    "kvCacheDtype": "fp8",
    "kvOffloadingSize": 4.0,
    "maxModelLen": 4096,
    "maxNumSeqs": 65,
    "maxNumBatchedTokens": 8192,
    "maxNumQueuedReqs": 100,
    "blockSize": 32,
    "prefixCaching": False,
    "chunkedPrefill": True,
    "enforceEager": True,
    "performanceMode": "throughput",
    "schedulingPolicy": "priority",
    "toolCallParser": "hermes",
    "reasoningParser": "deepseek_r1",
    "extraArgs": ["--seed", "7"],
    "env": [{"name": "A", "value": "b"}],
    "resources": {"requests": {"cpu": "2"}},
    "startupTimeoutSeconds": 600,
    "drainTimeoutSeconds": 60,
    "imagePullPolicy": "Always",
    "profile": "Latency",
    "speculative": {"method": "ngram", "numSpeculativeTokens": 3},
}


@pytest.mark.parametrize("field", KNOB_EDITS)
def test_knob_edit_makes_a_revision(field):
    """Every engine field reaches the pods through a new revision, and the old one goes."""
    world = World()
    world.settle()
    old = world.revisions()
    world.edit_engine(**{field: KNOB_EDITS[field]})
    world.settle()

    assert 1 == len(world.revisions())
    assert old != world.revisions()
    assert "True" == world.condition("Ready")["status"]


def test_every_engine_field_is_in_the_table():
    """A field added to spec.engine cannot be forgotten above."""
    aliases = {info.alias for info in EngineSpec.model_fields.values()}

    assert aliases == {*KNOB_EDITS, "plan"}


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": 3},
        {"service": {"port": 8080}},
        {"rollout": {"capacity": "Surge"}},
        {"engine": {"image": "vllm/vllm-openai:v0.33.0", "maxNumSeqs": 64, "plan": "Advisory"}},
        {"engine": {"image": "vllm/vllm-openai:v0.33.0", "maxNumSeqs": 64, "extraArgs": []}},
        {"engine": {"image": "vllm/vllm-openai:v0.33.0", "maxNumSeqs": 64, "unknownYet": 1}},
    ],
)
def test_other_edits_make_no_revision(changes):
    """What does not change a pod restarts no pod."""
    world = World()
    world.settle()
    old = world.revisions()
    world.edit(**changes)
    world.settle()

    assert old == world.revisions()


def test_quantity_spelled_otherwise_is_no_change():
    """0.5 and 500m are one quantity: no write, no new revision."""
    engine = {"image": "vllm/vllm-openai:v0.33.0", "resources": {"requests": {"cpu": "500m"}}}
    world = World(spec=a_spec(engine=engine))
    world.settle()
    world.edit_engine(resources={"requests": {"cpu": "0.5"}})
    decisions = world.settle()

    assert [] == [apply for decision in decisions for apply in decision.apply]


def test_newer_operator_restarts_no_pod(monkeypatch):
    """An operator that renders pods otherwise keeps the stored template."""
    world = World()
    world.settle()
    monkeypatch.setattr(pod_builder, "PRE_STOP_SECONDS", 30)
    decision = world.reconcile()

    assert () == decision.apply


def test_edit_keeps_the_old_pods_until_the_new_ones_serve():
    """At every moment of a rollout with room, as many pods serve as are wanted."""
    world = World(spec=a_spec(replicas=2))
    world.settle()
    world.edit_engine(maxNumSeqs=32)
    for _ in range(20):
        world.reconcile()

        assert sum(pod.ready for pod in world.pods.values()) >= 2
        world.load_pods()
    assert 1 == len(world.revisions())


def test_full_cluster_replaces_and_says_why():
    """Without room the old pod makes place, and the condition quotes the scheduler."""
    world = World(room=1)
    world.settle()
    world.edit_engine(maxNumSeqs=32)
    seen = [d.status for d in world.settle() if d.status]
    capacities = [
        c for status in seen for c in status["conditions"] if c["type"] == "RolloutCapacity"
    ]

    assert 1 == len(world.revisions())
    assert "True" == world.condition("Ready")["status"]
    assert any("Insufficient nvidia.com/gpu" in c["message"] for c in capacities)
    assert "Replace" in {c["reason"] for c in capacities}


def test_different_place_is_never_made_by_stopping():
    """A new revision that asks for another GPU type waits; the serving pod stays."""
    world = World(room=1)
    world.settle()
    serving = set(world.pods)
    world.edit(accelerator={"product": "NVIDIA-H100"})
    world.settle()

    assert serving <= set(world.pods)
    assert "Unschedulable" == world.condition("Ready")["reason"]
    assert "True" == world.condition("Available")["status"]


def test_revert_mid_rollout_goes_back_at_once():
    """Reverting the edit drops the new revision's pods and keeps the old template."""
    world = World()
    world.settle()
    old = world.revisions()
    engine = world.spec["engine"]
    world.edit_engine(maxNumSeqs=32)
    world.reconcile()
    world.edit(engine=engine)
    world.settle()

    assert old == world.revisions()
    assert 3 == max(c.revision.number for c in world.children.values() if c.revision)


def test_history_is_bounded():
    """Old ControllerRevisions beyond the limit are deleted, the newest are kept."""
    world = World()
    world.settle()
    for value in range(100, 115):
        world.edit_engine(maxNumSeqs=value)
        world.settle()
    numbers = sorted(c.revision.number for c in world.children.values() if c.revision)

    assert list(range(6, 17)) == numbers


def test_deleted_child_comes_back():
    """Whatever child is deleted, the next look applies it, and only it."""
    world = World()
    world.settle()
    for ref in list(world.children):
        if ref.kind in {"Deployment", "ControllerRevision"}:
            continue
        del world.children[ref]

        assert [ref] == [apply.ref for apply in world.reconcile().apply]


def test_hand_edited_field_is_put_back():
    """A field that left our ownership is applied again, by force."""
    world = World()
    world.settle()
    ref = ChildRef("Service", "mistral")
    taken = world.children[ref].owned_fields.replace('"f:selector":', '"f:other":')
    world.children[ref] = replace(world.children[ref], owned_fields=taken)
    decision = world.reconcile()

    assert [(ref, True)] == [(apply.ref, apply.force) for apply in decision.apply]


def test_another_controllers_child_is_not_touched():
    """A child that someone else controls is reported and left alone."""
    world = World()
    world.settle()
    ref = ChildRef("PodDisruptionBudget", "mistral")
    world.children[ref] = replace(
        world.children[ref], controller_uid="someone-else", applied_hash="x"
    )
    decision = world.reconcile()

    assert () == decision.apply
    assert "ChildConflict" == world.condition("Ready")["reason"]
    assert "PodDisruptionBudget/mistral" in world.condition("Ready")["message"]


def test_refused_child_stalls_with_the_servers_words():
    """What the API server refuses is in the status, word for word."""
    observed = replace(
        World().observe(),
        apply_errors=(
            ApplyError(ChildRef("Deployment", "x"), ApplyErrorKind.Invalid, "spec.y: bad"),
        ),
    )
    decision = reconcile(observed, Config())
    conditions = {c["type"]: c for c in decision.status["conditions"]}

    assert "ChildRefused" == conditions["Stalled"]["reason"]
    assert "Deployment/x: spec.y: bad" in conditions["Ready"]["message"]
    assert ["Warning"] == [event.type for event in decision.events]


def test_invalid_edit_keeps_what_serves():
    """A spec that cannot run is refused in words; the running pods are left alone."""
    world = World()
    world.settle()
    children = dict(world.children)
    world.edit_engine(extraArgs=["--swap-space", "4"])
    decision = world.reconcile()

    assert children == world.children
    assert "InvalidSpec" == world.condition("Stalled")["reason"]
    assert "spec.engine.extraArgs[0]" in world.condition("Ready")["message"]
    assert "True" == world.condition("Available")["status"]
    assert ["InvalidSpec"] == [event.reason for event in decision.events]
    assert world.reconcile().status is None


def test_mended_spec_recovers():
    """After the fix the service is ready again, and says so once."""
    world = World()
    world.settle()
    world.edit_engine(extraArgs=["--swap-space", "4"])
    world.settle()
    world.edit_engine(extraArgs=[])
    events = [event.reason for decision in world.settle() for event in decision.events]

    assert ["Recovered"] == events
    assert world.condition("Stalled") is None


def test_scaled_to_zero_is_ready_by_intent():
    """spec.replicas 0 is no failure."""
    world = World(spec=a_spec(replicas=0))
    world.settle()

    assert "ScaledToZero" == world.condition("Ready")["reason"]
    assert "True" == world.condition("Ready")["status"]
    assert "Idle" == world.status["phase"]


def crash(world, log, restarts=1):
    """Every pod's engine ended with a log."""
    for name, pod in world.pods.items():
        state = ContainerState(
            "engine", False, restarts, "CrashLoopBackOff", "back-off", "Error", 1, ""
        )
        world.pods[name] = replace(pod, ready=False, container=state)
    requests = world.reconcile().read_logs
    for request in requests:
        world.crash_logs[request.pod_uid] = CrashLog(request.restart_count, log)
    world.reconcile()
    return requests


KV_LOG = """\
ValueError: To serve at least one request with the model's max seq len (32768), (4.00 GiB KV cache \
is needed, which is larger than the available KV cache memory (1.50 GiB). Based on the available \
memory, the estimated maximum model length is 12288. Try increasing `gpu_memory_utilization`.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_crash_is_explained_from_the_engines_log():
    """The log is asked for once per crash; the reason is the cause, not the wrapper."""
    world = World()
    world.reconcile()
    world.reconcile()
    requests = crash(world, KV_LOG)

    assert 1 == len(requests)
    assert "KVCacheTooSmall" == world.condition("Ready")["reason"]
    assert "12288" in world.condition("Ready")["message"]
    assert "True" == world.condition("Stalled")["status"]
    assert () == world.reconcile().read_logs


def test_failing_edit_is_not_ready_though_the_old_pods_serve():
    """Ready never hides that the newest spec cannot run."""
    world = World()
    world.settle()
    world.edit_engine(maxModelLen=32768)
    world.reconcile()
    new = {n: p for n, p in world.pods.items() if not p.ready}
    serving = {n: p for n, p in world.pods.items() if p.ready}
    world.pods = new
    crash(world, KV_LOG)
    world.pods |= serving
    world.reconcile()

    assert "False" == world.condition("Ready")["status"]
    assert "True" == world.condition("Available")["status"]
    assert "Degraded" == world.status["phase"]


def test_a_revision_numbered_by_hand_gets_its_number_back():
    """The status knows it; nothing else counts revisions."""
    world = World()
    world.settle()
    (ref,) = (ref for ref in world.children if ref.kind == "ControllerRevision")
    child = world.children[ref]
    fields = json.loads(child.owned_fields)
    del fields["f:revision"]
    world.children[ref] = replace(
        child, revision=replace(child.revision, number=99), owned_fields=json.dumps(fields)
    )
    (apply,) = world.reconcile().apply

    assert (ref, 1) == (apply.ref, apply.manifest["revision"])
