"""The resource in a real API server: subresources, columns, explanations, immutability."""

import json
from typing import Any

import pytest

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.progress import ClusterError

_SPEC = {"model": {"id": "Qwen/Qwen3-8B"}, "accelerator": {"resource": "nvidia.com/gpu"}}


class _Service:
    """One LLMService and what kubectl does to it."""

    def __init__(self, plane: ControlPlane, namespace: str, **spec: Any) -> None:
        self._plane = plane
        self._namespace = namespace
        manifest = {
            "apiVersion": "llmservice.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": "qwen"},
            "spec": {**_SPEC, **spec},
        }
        self.kubectl("create", "-f", "-", text=json.dumps(manifest))

    def kubectl(self, *words: str, text: str | None = None) -> str:
        return self._plane.kubectl(*words, f"--namespace={self._namespace}", input=text)

    def live(self, subresource: str = "") -> dict[str, Any]:
        words = [f"--subresource={subresource}"] if subresource else []
        found: dict[str, Any] = json.loads(self.kubectl("get", "llm", "qwen", "-o", "json", *words))
        return found

    def patch(self, subresource: str = "", **body: Any) -> None:
        words = [f"--subresource={subresource}"] if subresource else []
        self.kubectl("patch", "llm", "qwen", "--type=merge", "-p", json.dumps(body), *words)


@pytest.fixture
def service(control_plane: ControlPlane, namespace: str) -> _Service:
    return _Service(control_plane, namespace)


# --- immutability -------------------------------------------------------------------------------


def test_the_served_name_cannot_change(control_plane: ControlPlane, namespace: str) -> None:
    """Clients send it; the refusal names the field and says what to do instead."""
    service = _Service(control_plane, namespace, model={"id": "a/b", "servedName": "chat"})

    with pytest.raises(ClusterError, match=r"spec.model.servedName.* cannot change.* create a sec"):
        service.patch(spec={"model": {"servedName": "chat-2"}})
    with pytest.raises(ClusterError, match="cannot change"):
        service.patch(spec={"model": {"servedName": None}})


def test_the_default_served_name_cannot_change(service: _Service) -> None:
    """Left out, it is the resource's name, and that is what clients send."""
    with pytest.raises(ClusterError, match="cannot change"):
        service.patch(spec={"model": {"servedName": "chat"}})

    service.patch(spec={"model": {"servedName": "qwen"}})
    service.patch(spec={"model": {"id": "Qwen/Qwen3-14B"}})
    assert service.live()["spec"]["model"]["id"] == "Qwen/Qwen3-14B"


def test_an_invalid_update_is_refused(service: _Service) -> None:
    """Rules hold for updates as for creation, and the stored object stays as it was."""
    before = service.live()

    with pytest.raises(ClusterError, match=r"accelerator\.count must equal"):
        service.patch(spec={"accelerator": {"count": 8}, "engine": {"parallelism": {"tensor": 4}}})

    assert service.live() == before


# --- subresources -------------------------------------------------------------------------------


def test_status_and_spec_do_not_touch_each_other(service: _Service) -> None:
    """A status written with the spec is dropped, and a spec with the status; generations agree."""
    service.patch(status={"phase": "Ready"}, spec={"replicas": 2})
    live = service.live()
    assert "status" not in live
    assert (live["spec"]["replicas"], live["metadata"]["generation"]) == (2, 2)

    service.patch("status", status={"phase": "Ready"}, spec={"replicas": 3})
    live = service.live()
    assert live["status"] == {"phase": "Ready"}
    assert (live["spec"]["replicas"], live["metadata"]["generation"]) == (2, 2)


def test_a_status_is_bounded_too(service: _Service) -> None:
    """The operator cannot write what the schema does not allow."""
    with pytest.raises(ClusterError, match=r"status.conditions\[0\].status: Unsupported value"):
        service.patch(
            "status",
            status={
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "Maybe",
                        "reason": "A",
                        "message": "",
                        "lastTransitionTime": "2026-01-31T08:00:00Z",
                        "observedGeneration": 1,
                    }
                ]
            },
        )


def test_scale_reads_and_writes_replicas(service: _Service) -> None:
    """What an HPA needs: spec.replicas, the pods there are, and how to find them."""
    service.patch("status", status={"replicas": 1, "selector": "llmservice.dev/service=qwen"})

    service.kubectl("scale", "llm/qwen", "--current-replicas=1", "--replicas=4")

    scale = service.live("scale")
    assert scale["spec"] == {"replicas": 4}
    assert scale["status"] == {"replicas": 1, "selector": "llmservice.dev/service=qwen"}
    assert service.live()["spec"] == {**_SPEC, "replicas": 4}


def test_scale_keeps_within_bounds(service: _Service) -> None:
    """The bound of spec.replicas holds whichever way it is written."""
    with pytest.raises(ClusterError, match="less than or equal to 1000"):
        service.kubectl("scale", "llm/qwen", "--replicas=1001")


def test_an_autoscaler_can_target_the_service(service: _Service) -> None:
    """kubectl autoscale accepts the kind."""
    said = service.kubectl("autoscale", "llm/qwen", "--max=3", "--dry-run=server")

    assert "autoscaled" in said


# --- what people see ----------------------------------------------------------------------------


def test_columns(service: _Service) -> None:
    """``kubectl get llm`` shows what matters, ``-o wide`` the rest."""
    service.patch(
        "status",
        status={
            "phase": "Ready",
            "readyReplicas": 1,
            "stableRevision": "0123456789",
            "url": "http://qwen.team.svc",
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "Serving",
                    "message": "1 of 1 replicas are ready",
                    "lastTransitionTime": "2026-01-31T08:00:00Z",
                    "observedGeneration": 1,
                }
            ],
        },
    )

    head, row = service.kubectl("get", "llm").splitlines()
    assert head.split() == ["NAME", "MODEL", "READY", "REPLICAS", "PHASE", "WEIGHT", "AGE"]
    assert row.split()[:5] == ["qwen", "Qwen/Qwen3-8B", "True", "1", "Ready"]
    wide = service.kubectl("get", "llmservices", "-o", "wide").splitlines()[0].split()
    assert wide[7:] == ["REASON", "IMAGE", "REVISION", "URL"]


def test_nothing_is_written_into_a_spec_but_replicas(service: _Service) -> None:
    """Defaults other than the one the scale subresource needs would show as drift."""
    assert service.live()["spec"] == {**_SPEC, "replicas": 1}


def test_every_field_is_explained(control_plane: ControlPlane) -> None:
    """``kubectl explain`` knows every level down to the last, with our words."""
    tree = control_plane.kubectl("explain", "llmservice", "--recursive")
    assert "kvCacheMemoryBytes" in tree

    said = control_plane.kubectl("explain", "llmservice.spec.engine.gpuMemoryUtilization")
    assert "Share of the accelerator's memory for vLLM" in said
    said = control_plane.kubectl("explain", "llmservice.spec.engine.env.valueFrom.secretKeyRef.key")
    assert "Key in its data." in said


def test_applying_the_crd_warns_of_nothing(control_plane: ControlPlane) -> None:
    """No unknown format, no unbounded cost, no conflict with another CRD."""
    live = json.loads(
        control_plane.kubectl("get", "crd", "llmservices.llmservice.dev", "-o", "json")
    )

    conditions = {c["type"]: c["status"] for c in live["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_two_writers_own_parts_of_a_keyed_list(service: _Service) -> None:
    """Server-side apply merges env by name: each manager keeps its own variable."""
    for manager in ("team", "platform"):
        manifest = {
            "apiVersion": "llmservice.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": "qwen"},
            "spec": {"engine": {"env": [{"name": manager.upper(), "value": "1"}]}},
        }
        service.kubectl(
            "apply",
            "--server-side",
            f"--field-manager={manager}",
            "-f",
            "-",
            text=json.dumps(manifest),
        )

    env = service.live()["spec"]["engine"]["env"]
    assert sorted(variable["name"] for variable in env) == ["PLATFORM", "TEAM"]
