"""The engine pod: what makes it start, serve, stop and stay inside its bounds."""

import pytest

from llmservice.api.v1alpha1 import parse_spec
from llmservice.core.engine import EnginePlan, plan_engine
from llmservice.core.resources.pod import PRE_STOP_SECONDS, build_pod_template


def a_template(**changes):
    """The pod template of a small GPU service with some of its spec changed."""
    spec = parse_spec(
        {
            "model": {"id": "mistralai/Mistral-7B-Instruct-v0.2"},
            "accelerator": {"resource": "nvidia.com/gpu"},
            **changes,
        }
    )
    plan = plan_engine("mistral", spec)
    assert isinstance(plan, EnginePlan)
    return build_pod_template("mistral", "abc", spec, plan)


def engine(template):
    """The engine container."""
    return template["spec"]["containers"][0]


def environment(template):
    """The engine's environment by name."""
    return {variable["name"]: variable for variable in engine(template)["env"]}


def test_stop_outlasts_preparation_and_drain():
    """The grace period covers preStop, the drain and a margin, so nothing is killed early."""
    pod = a_template(engine={"drainTimeoutSeconds": 40})["spec"]

    assert pod["terminationGracePeriodSeconds"] > PRE_STOP_SECONDS + 40
    assert {"sleep": {"seconds": PRE_STOP_SECONDS}} == pod["containers"][0]["lifecycle"]["preStop"]
    assert "40" == argument(pod["containers"][0]["args"], "--shutdown-timeout")


def argument(arguments, flag):
    """Value after a flag."""
    return arguments[arguments.index(flag) + 1]


def test_startup_budget_is_kept_by_probe_and_engine():
    """The start-up probe and vLLM's own limit allow the same time."""
    template = a_template(engine={"startupTimeoutSeconds": 900})
    probe = engine(template)["startupProbe"]

    assert 900 == probe["periodSeconds"] * probe["failureThreshold"]
    assert "900" == environment(template)["VLLM_ENGINE_READY_TIMEOUT_S"]["value"]


def test_restricted_and_without_credentials():
    """The pod meets the restricted standard and holds no API token."""
    pod = a_template()["spec"]

    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert "RuntimeDefault" == pod["securityContext"]["seccompProfile"]["type"]
    assert {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    } == engine(a_template())["securityContext"]


def test_every_cache_is_writable():
    """With a read-only root, each cache variable points below a writable mount."""
    template = a_template()
    mounts = [m["mountPath"] for m in engine(template)["volumeMounts"] if not m.get("readOnly")]
    caches = [
        variable["value"]
        for name, variable in environment(template).items()
        if name == "HOME" or name.endswith(("_HOME", "_DIR", "_ROOT"))
    ]

    assert len(caches) >= 5
    assert all(any(cache.startswith(mount) for mount in mounts) for cache in caches)


def test_devices_follow_parallelism():
    """A replica asks for tensor x pipeline x data devices and tolerates their taint."""
    template = a_template(engine={"parallelism": {"tensor": 2, "pipeline": 2}})

    assert "4" == engine(template)["resources"]["limits"]["nvidia.com/gpu"]
    assert "nvidia.com/gpu" == template["spec"]["tolerations"][0]["key"]
    assert "2" == argument(engine(template)["args"], "--tensor-parallel-size")


def test_product_is_a_node_affinity():
    """A product binds the pod to nodes with that label of the device's vendor."""
    nvidia = a_template(accelerator={"product": "NVIDIA-A10G"})["spec"]["affinity"]
    amd = a_template(accelerator={"resource": "amd.com/gpu", "product": "MI300X"})["spec"]

    term = nvidia["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    expected = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-A10G"]}
    assert expected == term["nodeSelectorTerms"][0]["matchExpressions"][0]
    assert "amd.com/gpu.product-name" in str(amd["affinity"])


def test_cpu_asks_for_no_device():
    """`resource: cpu` neither requests nor tolerates anything special."""
    template = a_template(accelerator={"resource": "cpu"}, engine={"kvCacheMemoryBytes": "1Gi"})

    assert {} == engine(template)["resources"]
    assert "tolerations" not in template["spec"]
    assert "1073741824" == argument(engine(template)["args"], "--kv-cache-memory-bytes")


def test_token_is_a_reference():
    """The hub token reaches the engine by reference, never by value or argument."""
    source = {"hub": {"tokenSecretRef": {"name": "hf", "key": "token"}}}
    template = a_template(model={"id": "org/model", "source": source})

    expected = {"secretKeyRef": {"name": "hf", "key": "token"}}
    assert expected == environment(template)["HF_TOKEN"]["valueFrom"]
    assert "HF_HUB_OFFLINE" not in environment(template)


@pytest.mark.parametrize(
    ("path", "expected"), [(None, "/models"), ("llama/70b", "/models/llama/70b")]
)
def test_volume_is_read_only_and_offline(path, expected):
    """A model volume is mounted read-only, served from its folder, and the hub is not asked."""
    pvc = {"claimName": "models", **({"path": path} if path else {})}
    template = a_template(model={"id": "org/model", "source": {"pvc": pvc}})

    assert expected == engine(template)["args"][0]
    assert "1" == environment(template)["HF_HUB_OFFLINE"]["value"]
    mount = next(m for m in engine(template)["volumeMounts"] if m["name"] == "model")
    assert mount["readOnly"]


def test_users_environment_wins():
    """A variable that the user sets replaces ours instead of standing beside it."""
    template = a_template(engine={"env": [{"name": "HF_HOME", "value": "/mine"}]})
    values = [v for v in engine(template)["env"] if v["name"] == "HF_HOME"]

    assert [{"name": "HF_HOME", "value": "/mine"}] == values


def test_overlay_merges_by_key_and_keeps_our_labels():
    """podTemplate adds to lists by their keys; labels of ours cannot be taken."""
    overlay = {
        "metadata": {"labels": {"team": "search"}, "annotations": {"a": "b"}},
        "spec": {
            "priorityClassName": "high",
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "volumes": [{"name": "extra", "emptyDir": {}}],
            "containers": [
                {"name": "engine", "volumeMounts": [{"name": "extra", "mountPath": "/extra"}]},
                {"name": "sidecar", "image": "sidecar:1"},
            ],
            "securityContext": {"fsGroup": None},
        },
    }
    template = a_template(podTemplate=overlay)
    pod = template["spec"]

    assert "search" == template["metadata"]["labels"]["team"]
    assert "mistral" == template["metadata"]["labels"]["llmservice.dev/service"]
    assert ["nvidia.com/gpu", "spot"] == [t["key"] for t in pod["tolerations"]]
    assert {"cache", "tmp", "shm", "extra"} == {v["name"] for v in pod["volumes"]}
    assert ["engine", "sidecar"] == [c["name"] for c in pod["containers"]]
    assert "/extra" in {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert pod["containers"][0]["args"]
    assert "fsGroup" not in pod["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"]
