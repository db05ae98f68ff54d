"""The children of a service besides the pod template: what else it takes to serve it.

Deterministic: equal inputs give equal bytes. Only fields that we own are sent, so nothing that
another controller or a person sets beside them is touched.
"""

from typing import Any

from llmservice.api import names
from llmservice.api.v1alpha1 import LLMServiceSpec
from llmservice.core.observed import Child, Manifest, ServiceObject
from llmservice.core.revisions import Revision

DEADLINE_MARGIN_SECONDS = 600
"""Scheduling and image pull, on top of the start-up budget, before a Deployment is late."""


def build_service_account(service: ServiceObject) -> Manifest:
    """The engine pods' identity: one that can do nothing."""
    name = names.service_account_name(service.key.name)
    return {
        **header(service, "v1", "ServiceAccount", name),
        "automountServiceAccountToken": False,
    }


def build_entry_service(
    service: ServiceObject, spec: LLMServiceSpec, *, routed: bool = False, revision: str = ""
) -> Manifest:
    """The Service that clients call: the routers, the pods of a revision, or every engine pod."""
    name = service.key.name
    if revision:
        selector = names.revision_selector(name, revision)
    else:
        selector = names.router_selector(name) if routed else names.engine_selector(name)
    port = {
        "name": names.ENGINE_PORT_NAME,
        "port": spec.service.port,
        "targetPort": names.ROUTER_PORT_NAME if routed else names.ENGINE_PORT_NAME,
        "protocol": "TCP",
    }
    return {
        **header(service, "v1", "Service", name),
        "spec": {
            "type": "ClusterIP",
            "selector": selector,
            "ports": [port],
        },
    }


def build_disruption_budget(service: ServiceObject) -> Manifest:
    """One pod at a time: a node drain must not stop every replica at once."""
    return {
        **header(service, "policy/v1", "PodDisruptionBudget", service.key.name),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.engine_selector(service.key.name)},
        },
    }


def build_controller_revision(service: ServiceObject, revision: Revision) -> Manifest:
    """The revision's memory: the exact pod template, and its number."""
    return {
        **revision_header(service, "apps/v1", "ControllerRevision", revision.hash),
        "revision": revision.number,
        "data": revision.data,
    }


def build_headless_service(service: ServiceObject, revision_hash: str) -> Manifest:
    """Names one revision's pods. Headless: a cluster IP costs the API server 65-90 ms."""
    port = {
        "name": names.ENGINE_PORT_NAME,
        "port": names.ENGINE_PORT,
        "targetPort": names.ENGINE_PORT_NAME,
        "protocol": "TCP",
    }
    return {
        **revision_header(service, "v1", "Service", revision_hash),
        "spec": {
            "clusterIP": "None",
            "selector": names.revision_selector(service.key.name, revision_hash),
            "ports": [port],
        },
    }


def build_deployment(
    service: ServiceObject, spec: LLMServiceSpec, revision: Revision, replicas: int | None
) -> Manifest:
    """One revision's pods; ``replicas`` is None where an autoscaler counts them."""
    return {
        **revision_header(service, "apps/v1", "Deployment", revision.hash),
        "spec": {
            **({} if replicas is None else {"replicas": replicas}),
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": spec.engine.startup_timeout_seconds
            + DEADLINE_MARGIN_SECONDS,
            "selector": {"matchLabels": names.revision_selector(service.key.name, revision.hash)},
            "template": revision.template,
        },
    }


def revision_header(
    service: ServiceObject, api_version: str, kind: str, revision_hash: str
) -> dict[str, Any]:
    """:func:`header` of a child that each revision has one of."""
    name = names.revision_name(service.key.name, revision_hash)
    found = header(service, api_version, kind, name)
    found["metadata"]["labels"][names.REVISION_LABEL] = revision_hash
    return found


def header(service: ServiceObject, api_version: str, kind: str, name: str) -> dict[str, Any]:
    """How each child's manifest begins: kind, name, labels, and that the service owns it."""
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": service.key.name,
        "uid": service.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": service.key.namespace,
            "labels": names.instance_labels(service.key.name),
            "ownerReferences": [owner],
        },
    }


def build_scale(live: Child, service: ServiceObject, replicas: int) -> Manifest:
    """The number of pods of a live Deployment, and nothing else of it.

    It holds for the version that was seen only: an autoscaler may be faster.
    """
    metadata = {
        "name": live.ref.name,
        "namespace": service.key.namespace,
        "resourceVersion": live.resource_version,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {"replicas": replicas},
    }
