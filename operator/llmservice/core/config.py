"""What the operator's process is told once and decisions depend on."""

from dataclasses import dataclass

from llmservice.core.autoscaling.budget import Budget


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of the operator that are the same for all services."""

    operator_image: str = "localhost/llmservice/operator:0.1.0"
    """Runs in routers' pods too, as the agent that writes Envoy's files."""
    router_image: str = "localhost/llmservice/router:0.1.0"
    """Envoy."""
    revision_history_limit: int = 10
    """Old ControllerRevisions kept per service, so that a revert finds its exact pod template."""
    engine_metrics: bool = True
    """Ask engines what their KV cache holds; the operator must reach pods by their address."""
    max_concurrent_rollouts: int = 0
    """Canary rollouts under way at a time, over all services; 0 for any number."""
    max_rollout_devices: int = 0
    """Accelerators that these may hold beside those of the replicas; 0 for any number."""
    budgets: tuple[Budget, ...] = ()
    """Devices that several services share."""
