"""What the operator's process is told when it starts."""

import os
import socket
import uuid
from dataclasses import dataclass, field

from llmservice.adapters.kube import Credentials
from llmservice.core.config import Config


def _unique_identity() -> str:
    """Host (the pod's name) and a random part, so that a restart is another instance."""
    return f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """Settings of one operator process."""

    namespaces: tuple[str, ...] = ()
    """Where to look for services; empty means all namespaces."""
    lease_namespace: str = field(default_factory=lambda: os.environ.get("POD_NAMESPACE", "default"))
    """Namespace of the leader election lease: the one the operator runs in."""
    lease_name: str = "llmservice-operator"
    """Instances that serve the same namespaces share one; others must not."""
    identity: str = field(default_factory=_unique_identity)
    """Who holds the lease and reports events."""
    metrics_port: int = 8080
    """Port of /metrics, /healthz and /readyz; 0 takes any free one."""
    credentials: Credentials = field(default_factory=Credentials)
    """How to reach the API server."""
    workers: int = 8
    """Services brought up to date at a time; two more take only what a person waits for."""
    resync_seconds: float = 600.0
    """How often every service is looked at although nothing happened, give or take a fifth."""
    shutdown_seconds: float = 10.0
    """How long work under way may take to finish after SIGTERM."""
    core: Config = field(default_factory=Config)
    """Settings that decisions depend on."""
