"""A service's router: pods of an Envoy and the agent that writes its files, and all they need.

The agent is a native sidecar, so it starts before Envoy and ends after it: Envoy never starts
without its files, and there is somebody who waits for the requests when a pod is stopped. New
traffic changes the ConfigMap only; another image or setting replaces the pods one by one, each of
which leaves the endpoints, finishes what it runs and then stops.

Deterministic: equal inputs give equal bytes.
"""

from collections.abc import Iterator
from typing import Any

from llmservice.api import names
from llmservice.core.config import Config
from llmservice.core.observed import Manifest, ServiceObject
from llmservice.core.resources.children import header
from llmservice.core.resources.pod import PRE_STOP_SECONDS, STOP_MARGIN_SECONDS, restricted
from llmservice.core.revisions import content_hash
from llmservice.core.router.envoy import BOOTSTRAP, READY_PATH

AGENT_CONTAINER = "route-agent"
ENVOY_CONTAINER = "envoy"
CONFIG_DIR = "/config"
AGENT_START_SECONDS = 60
"""The agent reads traffic and endpoints from the API server before it says that it is ready."""
ENVOY_THREADS = 1
"""Each thread would have a queue of its own, and not know what the others hand on."""

_TOKEN_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - where clients look
_TOKEN_SECONDS = 3607
"""Lifetime that the API server gives by itself; the kubelet renews the token long before."""


def build_router(
    service: ServiceObject, replicas: int, traffic: str, config: Config, *, drain_seconds: int
) -> Iterator[Manifest]:
    """All objects of a service's router, in the order in which they must be applied.

    Args:
        service: whose router it is.
        replicas: how many router pods.
        traffic: what they do, as `format_traffic` writes it; no endpoints.
        config: names the images.
        drain_seconds: how long requests may take to end when a pod is stopped.
    """
    name = names.router_name(service.key.name)
    yield {
        **_header(service, "v1", "ServiceAccount"),
        "automountServiceAccountToken": False,
    }
    yield {**_header(service, "rbac.authorization.k8s.io/v1", "Role"), "rules": _rules(name)}
    yield {
        **_header(service, "rbac.authorization.k8s.io/v1", "RoleBinding"),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "name": name, "namespace": service.key.namespace},
        ],
    }
    yield {**_header(service, "v1", "ConfigMap"), "data": {names.TRAFFIC_KEY: traffic}}
    if replicas > 1:
        # Of a single pod it would only delay a node drain; the pod finishes its requests anyway.
        yield _disruption_budget(service)
    yield _deployment(service, replicas, _pod_spec(service, drain_seconds, config))


def _header(service: ServiceObject, api_version: str, kind: str) -> dict[str, Any]:
    found = header(service, api_version, kind, names.router_name(service.key.name))
    found["metadata"]["labels"][names.COMPONENT_LABEL] = names.ROUTER_COMPONENT
    return found


def _rules(name: str) -> list[Manifest]:
    return [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [name],
            "verbs": ["get", "list", "watch"],
        },
        {
            # Slices have generated names, so these rights cannot be narrowed to ours.
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"],
        },
    ]


def _disruption_budget(service: ServiceObject) -> Manifest:
    return {
        **_header(service, "policy/v1", "PodDisruptionBudget"),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.router_selector(service.key.name)},
        },
    }


def _deployment(service: ServiceObject, replicas: int, pod: Manifest) -> Manifest:
    selector = {"matchLabels": names.router_selector(service.key.name)}
    labels = {
        **names.instance_labels(service.key.name),
        names.COMPONENT_LABEL: names.ROUTER_COMPONENT,
    }
    return {
        **_header(service, "apps/v1", "Deployment"),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            "minReadySeconds": 5,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "selector": selector,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _pod_spec(service: ServiceObject, drain_seconds: int, config: Config) -> Manifest:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": names.router_selector(service.key.name)},
        # Each ReplicaSet by itself, or the pods of an upgrade gather on one node.
        "matchLabelKeys": ["pod-template-hash"],
    }
    return {
        "serviceAccountName": names.router_name(service.key.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # New requests may arrive for a while after the stop began, and all get the full time.
        "terminationGracePeriodSeconds": PRE_STOP_SECONDS + drain_seconds + STOP_MARGIN_SECONDS,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [spread],
        "initContainers": [_agent(service, drain_seconds, config.operator_image)],
        "containers": [_envoy(service, config.router_image)],
        "volumes": [
            {"name": "config", "emptyDir": {"sizeLimit": "16Mi"}},
            {"name": "token", "projected": {"sources": _credentials()}},
        ],
    }


def _credentials() -> list[Manifest]:
    """What is mounted by default, but here into the agent only: Envoy meets the clients."""
    authority = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_SECONDS}},
        {"configMap": authority},
    ]


def _agent(service: ServiceObject, drain_seconds: int, image: str) -> Manifest:
    # No readiness probe: Envoy serves what it knows while the agent is away.
    ready = {"httpGet": {"path": "/ready", "port": names.ROUTER_AGENT_PORT}, "timeoutSeconds": 5}
    return {
        "name": AGENT_CONTAINER,
        "image": image,
        "restartPolicy": "Always",
        "args": [
            "route-agent",
            f"--service={service.key.name}",
            f"--namespace={service.key.namespace}",
            f"--folder={CONFIG_DIR}",
            f"--propagation-seconds={PRE_STOP_SECONDS}",
            f"--drain-path={_drain_path(service)}",
            f"--drain-seconds={drain_seconds}",
        ],
        "ports": [
            {"name": "agent", "containerPort": names.ROUTER_AGENT_PORT, "protocol": "TCP"},
        ],
        "startupProbe": {**ready, "periodSeconds": 1, "failureThreshold": AGENT_START_SECONDS},
        "livenessProbe": {**ready, "periodSeconds": 10, "failureThreshold": 6},
        "resources": {
            "requests": {"cpu": "20m", "memory": "128Mi"},
            "limits": {"memory": "256Mi"},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR},
            {"name": "token", "mountPath": _TOKEN_DIR, "readOnly": True},
        ],
        **restricted(),
    }


def _drain_path(service: ServiceObject) -> str:
    """Known to whoever may read the pod, and to nobody who merely reaches it by the network."""
    return f"/drain/{content_hash(service.uid)}"


def _envoy(service: ServiceObject, image: str) -> Manifest:
    return {
        "name": ENVOY_CONTAINER,
        "image": image,
        "args": [
            *("-c", f"{CONFIG_DIR}/{BOOTSTRAP}"),
            "--disable-hot-restart",  # it would want shared memory
            *("--log-level", "warning"),
            *("--concurrency", str(ENVOY_THREADS)),
        ],
        "ports": [
            {
                "name": names.ROUTER_PORT_NAME,
                "containerPort": names.ROUTER_PORT,
                "protocol": "TCP",
            },
        ],
        "readinessProbe": {
            "httpGet": {"path": READY_PATH, "port": names.ROUTER_PORT_NAME},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
        # The agent answers when no request is left; SIGTERM by itself would cut every stream.
        "lifecycle": {
            "preStop": {
                "httpGet": {"path": _drain_path(service), "port": names.ROUTER_AGENT_PORT},
            },
        },
        # Measured on Envoy 1.40: 65 MiB idle, and 45 KiB plus twice its body for each request
        # that waits for its answer. No CPU limit: what is throttled here delays every token.
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "1Gi"},
        },
        "volumeMounts": [{"name": "config", "mountPath": CONFIG_DIR, "readOnly": True}],
        **restricted(),
    }
