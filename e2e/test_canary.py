"""Canaries of real engines behind real routers, under load: promoted, turned down, crashed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e import chart
from e2e.canaries import (
    PROMPT,
    WRONG_KNOB,
    is_aborted,
    is_paused,
    is_promoted,
    is_routed,
    judges_at,
    rollout_of,
    shortened,
)
from e2e.cluster.processes import wait_until
from e2e.follow import condition, follow, is_settled
from e2e.services import tiny_service, with_spec
from e2e.stage import Make, Stage
from e2e.traffic import Load
from llmservice.api import names
from llmservice.core.resources.router import AGENT_CONTAINER, CONFIG_DIR
from llmservice.core.router.envoy import RUNTIME

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

_NAME = "careful"
_KILL_ENGINE = """
import os, pathlib, signal
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    words = (folder / "cmdline").read_bytes().split(b"\\0")
    if b"serve" in words or words[0].startswith(b"VLLM"):
        os.kill(int(folder.name), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def _careful(stage: Stage) -> Iterator[str]:
    # So many sequences that requests may bypass the gates of its routers.
    service = tiny_service(_NAME, stage.engine, drainTimeoutSeconds=60, maxNumSeqs=96)
    service = with_spec(service, **shortened("canary-fast.yaml"))
    stage.kubectl.apply(service)
    yield _NAME
    stage.remove(_NAME)


@pytest.fixture
def careful(stage: Stage, _careful: str) -> str:
    """A service that rolls out by canaries and serves through its routers."""
    follow(stage.kubectl, _careful, is_routed, seconds=180, may_stall=True)
    return _careful


def test_a_good_canary_is_promoted_without_a_failed_request(stage: Stage, careful: str) -> None:
    """Judged step by step and promoted, while the operator is killed and the routers replaced.

    Requests bypass the gates of the routers before and after, and pass them meanwhile.
    """
    old = stage.kubectl.get(f"llmservice/{careful}")["status"]["stableRevision"]
    system = stage.kubectl.within(chart.NAMESPACE)
    with _load(stage, careful) as short, _load(stage, careful, long=True) as long:
        wait_until(lambda: _bypassed(stage, careful) == {True}, what="a bypass", seconds=60)
        _edit(stage, maxNumSeqs=80)
        follow(stage.kubectl, careful, judges_at(10), seconds=300)
        assert _bypassed(stage, careful) == {False}
        operators = "--selector=app.kubernetes.io/name=llmservice-operator"
        system("delete", "pods", operators, "--force", "--grace-period=0")
        stage.kubectl("rollout", "restart", f"deployment/{careful}-router")
        service = follow(stage.kubectl, careful, is_promoted(old), seconds=900)
        wait_until(lambda: _bypassed(stage, careful) == {True}, what="a bypass", seconds=120)
    assert short.failures + long.failures == []
    assert long.answers
    assert service["status"]["stableRevision"] == service["status"]["updatedRevision"]
    stage.await_drain(careful)


def _bypassed(stage: Stage, name: str) -> set[bool]:
    """Whether requests bypass the gates, by what the routers' pods have told their Envoys."""
    selector = f"{names.SERVICE_LABEL}={name},{names.COMPONENT_LABEL}={names.ROUTER_COMPONENT}"
    read = (f"-c={AGENT_CONTAINER}", "--", "cat", f"{CONFIG_DIR}/{RUNTIME}")
    pods = [pod["metadata"] for pod in stage.kubectl.items("pods", selector)]
    stay = [pod["name"] for pod in pods if "deletionTimestamp" not in pod]
    return {'"router.bypass": 100' in stage.kubectl("exec", pod, *read) for pod in stay}


def test_a_failing_canary_is_turned_down_without_a_failed_request(
    stage: Stage, careful: str
) -> None:
    """What it turns away stable answers; the guardrail is named, and nothing tries it again."""
    # A canary that is hardly asked turns hardly anybody away.
    half = {"rollout": {"steps": [{"weight": 50}]}}
    stage.kubectl.patch(f"llmservice/{careful}", {"spec": half})
    with _load(stage, careful) as short, _load(stage, careful, long=True) as long:
        before = stage.kubectl.get(f"llmservice/{careful}")["spec"]["engine"]
        _edit(stage, **WRONG_KNOB)
        service = follow(stage.kubectl, careful, is_aborted, seconds=600, may_stall=True)
    assert short.failures + long.failures == []
    # A request that fails is none that was fast, so either guardrail may be the first to know.
    assert rollout_of(service)["reason"] == "GuardrailBroken"
    assert any(" at most " in each["message"] for each in rollout_of(service)["checks"])
    stalled = condition(service, "Stalled")
    assert stalled is not None
    assert stalled["reason"] == "RolloutAborted"
    assert service["status"]["stableRevision"] != service["status"]["updatedRevision"]

    _edit(stage, **{knob: before.get(knob) for knob in WRONG_KNOB})
    service = follow(stage.kubectl, careful, is_routed, seconds=120, may_stall=True)
    assert condition(service, "Stalled") is None


def test_a_canary_that_dies_at_half_of_the_traffic_costs_no_request(
    stage: Stage, careful: str
) -> None:
    """Its requests are answered by stable at once, its share goes, and its revision is rejected.

    Streams are not among them: what a dead engine has begun, nobody can go on with.
    """
    stage.kubectl.patch(f"llmservice/{careful}", {"spec": shortened("canary-72h.yaml")})
    with _load(stage, careful) as short:
        # What runs as process 1 of its own namespace cannot be killed from within.
        shared = {"spec": {"shareProcessNamespace": True}}
        change = {"spec": {"engine": {"maxNumSeqs": 20}, "podTemplate": shared}}
        stage.kubectl.patch(f"llmservice/{careful}", change)
        service = follow(stage.kubectl, careful, judges_at(50), seconds=700)
        canary = rollout_of(service)["canaryRevision"]
        (pod,) = [p for p in stage.pods(careful) if canary in p["metadata"]["name"]]
        name = pod["metadata"]["name"]
        stage.kubectl("exec", name, "-c=engine", "--", "python3", "-c", _KILL_ENGINE)
        service = follow(stage.kubectl, careful, is_aborted, seconds=120, may_stall=True)
    assert short.failures == []
    assert rollout_of(service)["reason"] == "CanaryFailed"
    assert [canary] == [each["hash"] for each in rollout_of(service)["rejected"]][:1]


def test_without_a_spare_device_a_canary_replaces(
    stage: Stage, devices: Callable[[int], str], make: Make
) -> None:
    """Two devices for both revisions, one pod of each; a person lets the step pass.

    Scaled down afterwards, it loses no request either.
    """
    device = devices(2)
    service = tiny_service("tight", stage.engine, drainTimeoutSeconds=60)
    spec = shortened("canary-no-spare-gpu.yaml")
    name = make(with_spec(service, replicas=2, accelerator={"resource": device}, **spec))
    before = follow(stage.kubectl, name, is_routed, seconds=240)["status"]["stableRevision"]
    with _load(stage, name) as short, _load(stage, name, long=True) as long:
        stage.kubectl.patch(f"llmservice/{name}", {"spec": {"engine": {"maxNumSeqs": 8}}})
        service = follow(stage.kubectl, name, is_paused, seconds=600)
        pods = [pod["metadata"]["labels"]["llmservice.dev/revision"] for pod in stage.pods(name)]
        assert sorted(pods) == sorted([before, service["status"]["updatedRevision"]])
        stage.llmservice("resume", name)
        service = follow(stage.kubectl, name, is_promoted(before), seconds=600)
        follow(stage.kubectl, name, is_settled, seconds=120)
        fewer = {"replicas": 1, "rollout": {"capacity": "Auto"}}
        stage.kubectl.patch(f"llmservice/{name}", {"spec": fewer})
        wait_until(lambda: len(stage.pods(name)) == 1, what="a pod to stop", seconds=60)
    assert short.failures + long.failures == []


def _load(stage: Stage, name: str, *, long: bool = False) -> Load:
    if long:
        return Load(stage.url(name), name, clients=1, tokens=800, limit_seconds=1200)
    return Load(stage.url(name), name, clients=4, tokens=4, prompt=PROMPT, limit_seconds=1200)


def _edit(stage: Stage, **engine: Any) -> None:
    stage.kubectl.patch(f"llmservice/{_NAME}", {"spec": {"engine": engine}})
