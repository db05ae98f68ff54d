"""kubectl and helm against one cluster, as a person at a terminal would call them.

The demo and the e2e tests use these commands and no client library, so that what they show and
prove is what a reader can type himself.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.local import LocalCluster
from e2e.cluster.progress import ClusterError
from e2e.cluster.provider import Cluster
from e2e.cluster.toolchain import binaries

JSON = dict[str, Any]

_LIMIT_SECONDS = 300
_SAID_CHARACTERS = 2000


@dataclass(frozen=True)
class Kubectl:
    """The two programs, the credentials, and the namespace that is meant when none is named."""

    kubectl: Path
    helm: Path
    kubeconfig: Path
    namespace: str = "default"

    def within(self, namespace: str) -> "Kubectl":
        """The same for another namespace."""
        return Kubectl(self.kubectl, self.helm, self.kubeconfig, namespace)

    def __call__(self, *words: str, text: str | None = None) -> str:
        """Run kubectl; its standard output, or `ClusterError` with what it said."""
        return _run([*self.words(), *words], text)

    def words(self) -> list[str]:
        """The start of every kubectl command line here."""
        return [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", f"-n={self.namespace}"]

    def call_helm(self, *words: str) -> str:
        """Run helm; its standard output, or `ClusterError` with what it said."""
        start = [str(self.helm), f"--kubeconfig={self.kubeconfig}", f"-n={self.namespace}"]
        return _run([*start, *words])

    def apply(self, manifest: JSON | str) -> None:
        """`kubectl apply` of one manifest, or of YAML text."""
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        self("apply", "-f", "-", text=text)

    def patch(self, resource: str, change: JSON) -> None:
        """`kubectl patch --type merge` of `kind/name`."""
        self("patch", resource, "--type=merge", f"--patch={json.dumps(change)}")

    def find(self, resource: str) -> JSON | None:
        """One object by `kind/name`, or None when there is none."""
        text = self("get", resource, "--ignore-not-found", "-o=json")
        found: JSON | None = json.loads(text) if text else None
        return found

    def get(self, resource: str) -> JSON:
        """One object by `kind/name`; `ClusterError` when there is none."""
        found: JSON = json.loads(self("get", resource, "-o=json"))
        return found

    def items(self, kinds: str, selector: str = "") -> list[JSON]:
        """All objects of some kinds (comma-separated) that match a label selector."""
        words = ["get", kinds, "-o=json", *([f"--selector={selector}"] if selector else [])]
        items: list[JSON] = json.loads(self(*words))["items"]
        return items


def connect(cluster: Cluster) -> Kubectl:
    """The programs for a running cluster: your own where there are, else those built here."""
    return Kubectl(
        kubectl=_program(cluster, "kubectl"),
        helm=_program(cluster, "helm"),
        kubeconfig=cluster.kubeconfig(),
    )


def _program(cluster: Cluster, name: str) -> Path:
    # The local cluster's own programs are there for certain, and of its version.
    found = None if isinstance(cluster, LocalCluster) else shutil.which(name)
    return Path(found) if found else binaries() / name


def _run(words: Sequence[str], text: str | None = None) -> str:
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired as late:
        raise ClusterError(f"`{' '.join(words)}` took over {_LIMIT_SECONDS} s") from late
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_SAID_CHARACTERS:]
        raise ClusterError(f"`{' '.join(words)}` ended with {done.returncode}: {said}")
    return done.stdout
