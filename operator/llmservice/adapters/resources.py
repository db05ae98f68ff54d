"""Where the kinds that the operator works with live in the API."""

from llmservice.adapters.ports import Resource
from llmservice.api import names

LLM_SERVICE = Resource(names.API_VERSION, names.PLURAL, names.KIND)

SERVICE_ACCOUNT = Resource("v1", "serviceaccounts", "ServiceAccount")
SERVICE = Resource("v1", "services", "Service")
CONTROLLER_REVISION = Resource("apps/v1", "controllerrevisions", "ControllerRevision")
DEPLOYMENT = Resource("apps/v1", "deployments", "Deployment")
POD_DISRUPTION_BUDGET = Resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget")

POD = Resource("v1", "pods", "Pod")
LEASE = Resource("coordination.k8s.io/v1", "leases", "Lease")
EVENT = Resource("events.k8s.io/v1", "events", "Event")

CHILDREN = {
    resource.kind: resource
    for resource in (
        SERVICE_ACCOUNT,
        SERVICE,
        CONTROLLER_REVISION,
        DEPLOYMENT,
        POD_DISRUPTION_BUDGET,
    )
}
"""Every kind of child, by kind: what is watched, and all that a Decision may name."""
