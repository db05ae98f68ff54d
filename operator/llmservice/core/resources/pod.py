"""The engine pod's template: everything a revision freezes.

Restricted pod security, no API token, caches on emptyDir, probes with a start-up budget, and a
stop that cuts no stream: the pod leaves the endpoints while ``preStop`` waits, then vLLM finishes
what it runs within ``--shutdown-timeout`` (measured on vLLM 0.32: without it a stream hangs or is
truncated, and ``/health`` stays 200, so readiness alone would not take the pod out).
"""

from typing import Any

from llmservice.api import names
from llmservice.api.v1alpha1 import CPU_RESOURCE, LLMServiceSpec
from llmservice.core.engine import MODELS_DIR, EnginePlan, device_count
from llmservice.core.observed import Manifest
from llmservice.core.resources.overlay import merge

CACHE_DIR = "/cache"
PRE_STOP_SECONDS = 15
"""Longer than endpoints take to reach every proxy."""
STOP_MARGIN_SECONDS = 15
PROBE_PERIOD_SECONDS = 3
USER_ID = 2000
"""vLLM images run as root by default; any user works once HOME and the caches are writable."""

_PRODUCT_LABELS = {
    "nvidia.com": "nvidia.com/gpu.product",
    "amd.com": "amd.com/gpu.product-name",
}


def build_pod_template(
    service: str, revision_hash: str, spec: LLMServiceSpec, plan: EnginePlan
) -> Manifest:
    """Pod template of one revision, the user's overlay merged in."""
    labels = {
        **names.instance_labels(service),
        names.COMPONENT_LABEL: names.ENGINE_COMPONENT,
        names.REVISION_LABEL: revision_hash,
    }
    template: Manifest = {"metadata": {"labels": labels}, "spec": _pod_spec(service, spec, plan)}
    if spec.pod_template is None:
        return template
    overlay = spec.pod_template.model_dump(by_alias=True, exclude_none=True)
    merged: Manifest = merge(template, overlay)
    merged["metadata"]["labels"] = {**merged["metadata"]["labels"], **labels}
    return merged


def _pod_spec(service: str, spec: LLMServiceSpec, plan: EnginePlan) -> Manifest:
    grace = PRE_STOP_SECONDS + spec.engine.drain_timeout_seconds + STOP_MARGIN_SECONDS
    pod: Manifest = {
        "serviceAccountName": names.service_account_name(service),
        "automountServiceAccountToken": False,
        # A Service called `vllm` would inject VLLM_PORT=tcp://..., which vLLM refuses.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_engine_container(spec, plan)],
        "volumes": _volumes(spec),
    }
    accelerator = spec.accelerator
    if accelerator.resource != CPU_RESOURCE:
        toleration = {"key": accelerator.resource, "operator": "Exists", "effect": "NoSchedule"}
        pod["tolerations"] = [toleration]
    if accelerator.product:
        pod["affinity"] = {
            "nodeAffinity": _product_affinity(accelerator.resource, accelerator.product)
        }
    return pod


def _product_affinity(resource: str, product: str) -> Manifest:
    vendor = resource.partition("/")[0]
    label = _PRODUCT_LABELS.get(vendor, f"{vendor}/gpu.product")
    term = {"matchExpressions": [{"key": label, "operator": "In", "values": [product]}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}


def _engine_container(spec: LLMServiceSpec, plan: EnginePlan) -> Manifest:
    health = {"path": "/health", "port": names.ENGINE_PORT_NAME}
    startup_failures = -(-spec.engine.startup_timeout_seconds // PROBE_PERIOD_SECONDS)
    container: Manifest = {
        "name": names.ENGINE_CONTAINER,
        "image": spec.engine.image,
        "args": list(plan.arguments),
        "env": _environment(spec),
        "ports": [
            {
                "name": names.ENGINE_PORT_NAME,
                "containerPort": names.ENGINE_PORT,
                "protocol": "TCP",
            }
        ],
        # vLLM listens only once the model is loaded and warm, so 200 here means ready.
        "startupProbe": {
            "httpGet": health,
            "periodSeconds": PROBE_PERIOD_SECONDS,
            "timeoutSeconds": 3,
            "failureThreshold": startup_failures,
        },
        "readinessProbe": {
            "httpGet": health,
            "periodSeconds": 5,
            "timeoutSeconds": 3,
            "failureThreshold": 3,
        },
        # Slow to act: a busy event loop is normal, and a restart costs a model load.
        "livenessProbe": {
            "httpGet": health,
            "periodSeconds": 10,
            "timeoutSeconds": 10,
            "failureThreshold": 6,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        "resources": _resources(spec),
        "volumeMounts": _mounts(spec),
        **restricted(),
    }
    if spec.engine.image_pull_policy:
        container["imagePullPolicy"] = spec.engine.image_pull_policy
    return container


def restricted() -> Manifest:
    """What each container of ours is denied, and that its last words become its status."""
    return {
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }


def _environment(spec: LLMServiceSpec) -> list[Manifest]:
    """The caches and the user first; what the user sets wins."""
    variables: dict[str, Any] = {
        "HOME": CACHE_DIR,
        "USER": "vllm",  # getpass.getuser() fails for a uid without a name
        "XDG_CACHE_HOME": CACHE_DIR,
        "HF_HOME": f"{CACHE_DIR}/huggingface",
        "VLLM_CACHE_ROOT": f"{CACHE_DIR}/vllm",
        "TRITON_CACHE_DIR": f"{CACHE_DIR}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{CACHE_DIR}/inductor",
        # vLLM's own limit of 600 s would end slow loads before the start-up probe does.
        "VLLM_ENGINE_READY_TIMEOUT_S": str(spec.engine.startup_timeout_seconds),
    }
    if not _downloads(spec):
        variables["HF_HUB_OFFLINE"] = "1"
    environment = {name: {"name": name, "value": value} for name, value in variables.items()}
    source = spec.model.source
    if source and source.hub and source.hub.token_secret_ref:
        reference = source.hub.token_secret_ref.model_dump()
        environment["HF_TOKEN"] = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}}
    for variable in spec.engine.env:
        environment[variable.name] = variable.model_dump(by_alias=True, exclude_none=True)
    return list(environment.values())


def _downloads(spec: LLMServiceSpec) -> bool:
    source = spec.model.source
    return not spec.model.id.startswith("/") and not (source and source.pvc)


def _resources(spec: LLMServiceSpec) -> Manifest:
    given = spec.engine.resources
    requests = dict((given and given.requests) or {})
    limits = dict((given and given.limits) or {})
    if spec.accelerator.resource != CPU_RESOURCE:
        limits[spec.accelerator.resource] = str(device_count(spec))
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _volumes(spec: LLMServiceSpec) -> list[Manifest]:
    shm_gib = min(16, 2 * device_count(spec))
    volumes: list[Manifest] = [
        {"name": "cache", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        # The default of 64 MiB breaks tensor parallelism; it counts as memory only when used.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}},
    ]
    source = spec.model.source
    if source and source.pvc:
        claim = {"claimName": source.pvc.claim_name, "readOnly": True}
        volumes.append({"name": "model", "persistentVolumeClaim": claim})
    return volumes


def _mounts(spec: LLMServiceSpec) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": "cache", "mountPath": CACHE_DIR},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    if spec.model.source and spec.model.source.pvc:
        mounts.append({"name": "model", "mountPath": MODELS_DIR, "readOnly": True})
    return mounts
