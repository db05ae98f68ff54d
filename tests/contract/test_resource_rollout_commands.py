"""The verbs of a rollout against a real API server, with the rights of whoever may edit."""

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e.chart import CHART
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.processes import run, wait_until
from e2e.cluster.toolchain import binaries
from llmservice.api import names
from llmservice.cli import main

PATH = "/apis/llmservice.dev/v1alpha1/namespaces/{}/llmservices"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
RIGHTS = {"view": "get", "edit": "patch"}
REJECTED = {
    "hash": "ccc",
    "reason": "GuardrailBroken",
    "message": "p95 ttft is 60% worse",
    "time": "2026-01-30T08:00:00Z",
}
ROLLOUT = {
    "phase": "Judging",
    "canaryRevision": "bbb",
    "step": 2,
    "steps": 3,
    "weight": 25,
    "capacity": "Surge",
    "since": "2026-01-31T08:00:00Z",
    "stepSince": "2026-01-31T08:00:00Z",
    "reason": "Inconclusive",
    "message": "12 of 50 requests",
    "canaryRequests": 12,
    "checks": [{"check": "errors at most 5%", "verdict": "inconclusive", "message": "0 of 12"}],
    "rejected": [REJECTED],
    "state": '{"judge": {"tallies": {"errors at most 5%": {"canaryRequests": 12.0}}}}',
}


@pytest.fixture(scope="module")
def editors(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with what the chart adds to Kubernetes' own roles ``view`` and ``edit``."""
    template = ["template", "llmservice", str(CHART), "--show-only=templates/user-roles.yaml"]
    control_plane.kubectl("apply", "-f", "-", input=run([str(binaries() / "helm"), *template]))
    return control_plane


@pytest.fixture
def bound(editors: ControlPlane, namespace: str) -> Callable[[str], Path]:
    """Credentials of a new user who has a cluster role in the test's namespace."""

    def bind(role: str) -> Path:
        user = f"{role}-{uuid.uuid4().hex[:6]}"
        words = ["create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}"]
        editors.kubectl(*words, f"--namespace={namespace}")
        asked = {"namespace": namespace, "group": names.GROUP, "resource": names.PLURAL}
        spec = {"user": user, "resourceAttributes": {**asked, "verb": RIGHTS[role]}}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
        wait_until(
            # A controller adds our rules to the role, and the API server hears of it a bit later.
            lambda: _is_allowed(editors, {**review, "spec": spec}),
            what=f"the rights of {user}",
            seconds=30,
        )
        return editors.kubeconfig_for(user)

    return bind


def _is_allowed(plane: ControlPlane, review: dict[str, Any]) -> bool:
    answer = json.loads(plane.api.call("POST", REVIEWS, review))
    return bool(answer["status"]["allowed"])


class _Service:
    """One service in the middle of a rollout; the test plays the operator."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._path = PATH.format(namespace)
        manifest = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "qwen", "annotations": {"team": "a"}},
            "spec": {
                "model": {"id": "Qwen/Qwen3-8B"},
                "accelerator": {},
                "rollout": {"strategy": "Canary"},
            },
        }
        plane.api.create(self._path, manifest)

    @property
    def live(self) -> dict[str, Any]:
        found: dict[str, Any] = self._plane.api.get(f"{self._path}/qwen")
        return found

    def report(self, **rollout: Any) -> None:
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "RollingOut",
            "message": "2 of 2 replicas are ready",
            "lastTransitionTime": "2026-01-31T08:00:00Z",
            "observedGeneration": 1,
        }
        status = {
            "observedGeneration": 1,
            "phase": "RollingOut",
            "stableRevision": "aaa",
            "updatedRevision": "bbb",
            "conditions": [ready],
            "rollout": {**ROLLOUT, **rollout},
        }
        self._plane.api.merge(f"{self._path}/qwen/status", {"status": status})


@pytest.fixture
def service(control_plane: ControlPlane, namespace: str) -> _Service:
    return _Service(control_plane, namespace)


@pytest.fixture
def command(bound: Callable[[str], Path], namespace: str) -> Callable[..., int]:
    """Runs a command as a user who may edit, in the test's namespace."""
    kubeconfig = str(bound("edit"))
    return lambda *words: main([*words, "-n", namespace, "--kubeconfig", kubeconfig])


def _without_marks(service: dict[str, Any]) -> dict[str, Any]:
    """An object without what every write changes, and without the annotation."""
    metadata = {**service["metadata"], "annotations": {**service["metadata"]["annotations"]}}
    for mark in ("resourceVersion", "managedFields"):
        metadata.pop(mark)
    metadata["annotations"].pop(names.ROLLOUT_ACTION_ANNOTATION, None)
    return {**service, "metadata": metadata}


@pytest.mark.parametrize(
    ("words", "phase", "value"),
    [
        (["pause"], "Judging", "pause"),
        (["resume"], "Paused", "resume"),
        (["promote"], "Judging", "promote"),
        (["promote", "--full"], "Warming", "promote-full"),
        (["abort"], "Judging", "abort"),
        (["retry"], "Aborted", "retry"),
    ],
)
def test_a_verb_writes_its_annotation_and_nothing_else(
    service: _Service,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    phase: str,
    value: str,
) -> None:
    """Spec, status, labels and other annotations stay; the sentence names the service."""
    service.report(phase=phase, rejected=[{**REJECTED, "hash": "bbb"}])
    before = service.live

    assert command(*words, "qwen") == 0

    after = service.live
    said = after["metadata"]["annotations"][names.ROLLOUT_ACTION_ANNOTATION]
    assert re.fullmatch(rf"{value}/[0-9a-f]{{8}}", said)
    assert _without_marks(after) == _without_marks(before)
    (ours,) = [m for m in after["metadata"]["managedFields"] if m["manager"] == "llmservice-cli"]
    owned = {"f:metadata": {"f:annotations": {f"f:{names.ROLLOUT_ACTION_ANNOTATION}": {}}}}
    assert ours["fieldsV1"] == owned
    assert capsys.readouterr().out.startswith("qwen: ")


def test_each_time_is_another_word(
    service: _Service, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """To pause again after a resume must be heard, though the word is the same."""
    service.report()
    assert command("pause", "qwen") == 0
    first = service.live["metadata"]["annotations"][names.ROLLOUT_ACTION_ANNOTATION]
    service.report(handledAction=first)
    assert command("pause", "qwen") == 0

    assert first != service.live["metadata"]["annotations"][names.ROLLOUT_ACTION_ANNOTATION]
    assert "instead of" not in capsys.readouterr().out


def test_a_refused_verb_writes_nothing(
    service: _Service, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and a sentence, and the object is as it was."""
    before = service.live

    assert command("abort", "qwen") == 1
    assert capsys.readouterr().err == "qwen: no rollout is under way\n"
    assert service.live == before


def test_a_service_that_is_not_there_ends_with_one(
    command: Callable[..., int], namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verbs make no object of a misspelt name."""
    for word in ("pause", "history"):
        assert command(word, "nope") == 1
        assert capsys.readouterr().err == f"no LLMService nope in namespace {namespace}\n"


def test_who_may_only_look_cannot_decide(
    service: _Service,
    bound: Callable[[str], Path],
    namespace: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The role ``view`` reads the rollout; the API server says who may not do what."""
    service.report()
    flags = ["-n", namespace, "--kubeconfig", str(bound("view"))]

    assert main(["abort", "qwen", *flags]) == 3
    assert "forbidden" in capsys.readouterr().err
    assert names.ROLLOUT_ACTION_ANNOTATION not in service.live["metadata"]["annotations"]
    assert main(["history", "qwen", *flags]) == 0


def test_status_shows_the_rollout(
    service: _Service, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As the API server gives it back: no field of the status was dropped on the way."""
    service.report()
    assert service.live["status"]["rollout"] == ROLLOUT
    command("status", "qwen")

    printed = capsys.readouterr().out
    assert "Judging, step 2 of 3 (25% of the requests): 12 of 50 requests" in printed
    assert "inconclusive: errors at most 5%: 0 of 12" in printed


def test_history_joins_revisions_and_status(
    control_plane: ControlPlane,
    service: _Service,
    command: Callable[..., int],
    namespace: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Number, hash, image and state of those of this service only."""
    service.report()
    for owner, number, hash_ in (("qwen", 1, "aaa"), ("qwen", 3, "bbb"), ("other", 2, "ddd")):
        labels = {**names.instance_labels(owner), names.REVISION_LABEL: hash_}
        containers = [{"name": names.ENGINE_CONTAINER, "image": f"vllm:{number}"}]
        revision = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {"name": f"{owner}-{hash_}", "labels": labels},
            "revision": number,
            "data": {"template": {"spec": {"containers": containers}}},
        }
        path = f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions"
        control_plane.api.create(path, revision)

    assert command("history", "qwen", "-o", "json") == 0

    told = json.loads(capsys.readouterr().out)
    assert [(3, "bbb", "vllm:3", "canary"), (1, "aaa", "vllm:1", "stable")] == [
        (each["number"], each["hash"], each["image"], each["state"]) for each in told[:2]
    ]
    assert [(None, "ccc", "rejected", "GuardrailBroken")] == [
        (each["number"], each["hash"], each["state"], each["reason"]) for each in told[2:]
    ]
