"""What every e2e test is handed: the way to a cluster with the chart, and to its own services."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.processes import run, wait_until
from e2e.follow import condition, follow, is_settled
from e2e.kubectl import JSON, Kubectl
from e2e.traffic import Gate

Make = Callable[[JSON], str]
"""Applies an LLMService for the length of a test; its name."""

RESTRICTED: JSON = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 2000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What the tests' namespaces ask of a container."""
_SETTLE_SECONDS = 180
_DRAIN_SECONDS = 270


@dataclass(frozen=True)
class Stage:
    """What a test needs: the cluster, the way to its services, and the images on it."""

    kubectl: Kubectl
    """Set to the tests' namespace."""
    gate: Gate
    engine: str
    """Engine image, as the nodes know it."""
    operator: str
    """Operator image, as the nodes know it."""

    def url(self, service: str) -> str:
        """Base URL of a service in the tests' namespace."""
        return self.gate.url(self.kubectl.namespace, service)

    def settle(self, name: str, seconds: float = _SETTLE_SECONDS) -> JSON:
        """Wait until the newest spec of a service runs, and nothing else of it."""
        return follow(self.kubectl, name, is_settled, seconds=seconds)

    def run_in_engine_image(self, script: Path, *words: str) -> str:
        """What a script says to the engine image's own Python and vLLM, errors and all."""
        container: JSON = {
            "name": "python",
            "image": self.engine,
            "command": ["python3", "-c", script.read_text(), *words],
            "env": [
                {"name": "HOME", "value": "/tmp"},
                {"name": "VLLM_LOGGING_LEVEL", "value": "ERROR"},
            ],
            "securityContext": RESTRICTED,
        }
        name = f"script-{script.stem.replace('_', '-')}"
        spec = {"restartPolicy": "Never", "containers": [container]}
        self.kubectl.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        )
        try:
            done = "--for=jsonpath={.status.phase}=Succeeded"
            self.kubectl("wait", f"pod/{name}", done, "--timeout=120s")
            return self.kubectl("logs", name)
        finally:
            self.kubectl("delete", f"pod/{name}", "--grace-period=0", "--force")

    def llmservice(self, *words: str) -> str:
        """What the command line says, with the credentials of the tests and in their namespace."""
        where = (f"--namespace={self.kubectl.namespace}", f"--kubeconfig={self.kubectl.kubeconfig}")
        return run([sys.executable, "-m", "llmservice", *words, *where])

    def pods(self, name: str) -> list[JSON]:
        """The engine pods of a service that are not being stopped."""
        engines = f"llmservice.dev/service={name},app.kubernetes.io/component=engine"
        pods = self.kubectl.items("pods", engines)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def await_reason(self, name: str, kind: str, reason: str, seconds: float = 120) -> JSON:
        """Wait until a service has a condition of this type with this reason; the condition."""
        found: JSON = {}

        def has_reason(service: JSON) -> bool:
            found.update(condition(service, kind) or {})
            return found.get("reason") == reason

        follow(self.kubectl, name, has_reason, seconds=seconds, may_stall=True)
        return found

    def await_drain(self, name: str) -> None:
        """Wait until the last pod of an old revision is gone."""
        revision = self.kubectl.get(f"llmservice/{name}")["status"]["stableRevision"]
        engines = f"llmservice.dev/service={name},app.kubernetes.io/component=engine"
        old = f"{engines},llmservice.dev/revision!={revision}"
        wait_until(
            lambda: not self.kubectl.items("pods", old),
            what=f"the end of the old pods of {name}",
            seconds=_DRAIN_SECONDS,
        )

    def remove(self, name: str) -> None:
        """Delete a service and end its pods now; a graceful stop takes longer than most tests."""
        self.kubectl("delete", f"llmservice/{name}", "--ignore-not-found")
        pods = ("pods", f"--selector=llmservice.dev/service={name}")
        self.kubectl("delete", *pods, "--force", "--grace-period=0")

    def revisions(self, name: str) -> set[str]:
        """Hashes of all revisions of a service that are remembered."""
        found = self.kubectl.items("controllerrevisions", f"llmservice.dev/service={name}")
        return {each["metadata"]["labels"]["llmservice.dev/revision"] for each in found}
