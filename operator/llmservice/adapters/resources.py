"""Where the kinds that the operator works with live in the API."""

from llmservice.adapters.ports import Resource
from llmservice.api import names
from llmservice.core.resources.autoscaler import (
    AUTOSCALER_KIND,
    SCALED_OBJECT_API_VERSION,
    SCALED_OBJECT_KIND,
)
from llmservice.core.router.gateway import ROUTE_API_VERSION, ROUTE_KIND

LLM_SERVICE = Resource(names.API_VERSION, names.PLURAL, names.KIND)

CONFIG_MAP = Resource("v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNT = Resource("v1", "serviceaccounts", "ServiceAccount")
SERVICE = Resource("v1", "services", "Service")
CONTROLLER_REVISION = Resource("apps/v1", "controllerrevisions", "ControllerRevision")
DEPLOYMENT = Resource("apps/v1", "deployments", "Deployment")
JOB = Resource("batch/v1", "jobs", "Job")
AUTOSCALER = Resource("autoscaling/v2", "horizontalpodautoscalers", AUTOSCALER_KIND)
POD_DISRUPTION_BUDGET = Resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget")

_RBAC = "rbac.authorization.k8s.io/v1"
ROLE = Resource(_RBAC, "roles", "Role")
ROLE_BINDING = Resource(_RBAC, "rolebindings", "RoleBinding")

POD = Resource("v1", "pods", "Pod")
LEASE = Resource("coordination.k8s.io/v1", "leases", "Lease")
ENDPOINT_SLICE = Resource("discovery.k8s.io/v1", "endpointslices", "EndpointSlice")
EVENT = Resource("events.k8s.io/v1", "events", "Event")

HTTP_ROUTE = Resource(ROUTE_API_VERSION, "httproutes", ROUTE_KIND)
SCALED_OBJECT = Resource(SCALED_OBJECT_API_VERSION, "scaledobjects", SCALED_OBJECT_KIND)

CHILDREN = {
    resource.kind: resource
    for resource in (
        SERVICE_ACCOUNT,
        SERVICE,
        CONTROLLER_REVISION,
        DEPLOYMENT,
        POD_DISRUPTION_BUDGET,
        CONFIG_MAP,
        ROLE,
        ROLE_BINDING,
        JOB,
        AUTOSCALER,
    )
}
"""Every kind of child that is watched, by kind."""
OPTIONAL = {resource.kind: resource for resource in (HTTP_ROUTE, SCALED_OBJECT)}
"""Kinds that a cluster may lack, by kind: they are read when there is need of them."""
WRITTEN = CHILDREN | OPTIONAL
"""All that a Decision may name."""
