"""Names the whole project agrees on: API group, labels, annotations, field managers, child names.

A label or annotation key, a field manager or a child's name is spelled here and nowhere else.
Child names are deterministic (never ``generateName``), so a late or repeated write finds the
same object.
"""

GROUP = "llmservice.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMService"
PLURAL = "llmservices"

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "llmservice"
SERVICE_LABEL = f"{GROUP}/service"
REVISION_LABEL = f"{GROUP}/revision"
COMPONENT_LABEL = "app.kubernetes.io/component"
ENGINE_COMPONENT = "engine"
ROUTER_COMPONENT = "router"

APPLIED_HASH_ANNOTATION = f"{GROUP}/applied-hash"
ROLLOUT_ACTION_ANNOTATION = f"{GROUP}/rollout-action"
"""What a person asks of a rollout, ``VERB`` or ``VERB/TOKEN``: each value is carried out once, so
a tool that applies it again and again does no harm."""

# One field manager per concern, so that a release of one never drops a field of the other.
CHILD_MANAGER = "llmservice"
STATUS_MANAGER = "llmservice-status"
TRAFFIC_MANAGER = "llmservice-traffic"
SCALE_MANAGER = "llmservice-scale"
"""Owns ``spec.replicas`` of a Deployment beside its autoscaler: a field that its last owner lets go
of falls back to 1."""

# A child's name is `<service>-<10 hash characters>`; Service names are DNS-1035 labels of 63.
REVISION_HASH_LENGTH = 10
MAX_SERVICE_NAME_LENGTH = 50
SERVICE_NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"

ENGINE_CONTAINER = "engine"
ENGINE_PORT = 8000
ENGINE_PORT_NAME = "http"

ROUTER_PORT = 8080
ROUTER_PORT_NAME = "router"
ROUTER_AGENT_PORT = 9902
ROUTER_ADMIN_PORT = 9901
"""Envoy's admin port, on the loopback interface of its pod only."""
TRAFFIC_KEY = "traffic.json"
"""Where the router's ConfigMap holds the traffic that is wanted."""


def revision_name(service: str, revision_hash: str) -> str:
    """Name of a revision's ControllerRevision, Deployment and headless Service."""
    return f"{service}-{revision_hash}"


def router_name(service: str) -> str:
    """Name of the router's Deployment, ConfigMap, ServiceAccount, Role and RoleBinding."""
    return f"{service}-router"


def router_selector(service: str) -> dict[str, str]:
    """Selector of a service's router pods."""
    return {SERVICE_LABEL: service, COMPONENT_LABEL: ROUTER_COMPONENT}


def service_account_name(service: str) -> str:
    """Name of the engine pods' ServiceAccount; suffixed, so that it cannot meet a user's own."""
    return f"{service}-engine"


def instance_labels(service: str) -> dict[str, str]:
    """Labels of every child; derived from the name only, so they can never change."""
    return {
        MANAGED_BY_LABEL: MANAGED_BY,
        "app.kubernetes.io/name": MANAGED_BY,
        "app.kubernetes.io/instance": service,
        SERVICE_LABEL: service,
    }


def engine_selector(service: str) -> dict[str, str]:
    """Selector of all engine pods of a service, whatever their revision."""
    return {SERVICE_LABEL: service, COMPONENT_LABEL: ENGINE_COMPONENT}


def revision_selector(service: str, revision_hash: str) -> dict[str, str]:
    """Selector of the engine pods of one revision."""
    return {**engine_selector(service), REVISION_LABEL: revision_hash}
