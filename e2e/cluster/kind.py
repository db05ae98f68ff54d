"""A cluster in Docker containers, by kind (https://kind.sigs.k8s.io), from `e2e/kind.yaml`.

For machines with a Docker engine. Where this package was written there is none: the commands are
kind's documented ones, and the images are those that the local cluster runs.
"""

import shutil
from pathlib import Path

from . import docker
from .images import recipe
from .paths import REPOSITORY, cache_root
from .processes import run
from .progress import ClusterError, say, step

_CONFIG = REPOSITORY / "e2e" / "kind.yaml"


class KindCluster:
    """One kind cluster; its kubeconfig is a file of its own, so yours stays as it is."""

    def __init__(self, name: str = "llmservice") -> None:
        self.name = name

    def up(self) -> None:
        """Create the cluster, or find it running."""
        if shutil.which("kind") is None:
            raise ClusterError("CLUSTER=kind needs the `kind` command on the PATH")
        if not docker.answers():
            raise ClusterError("CLUSTER=kind needs a Docker engine; `docker info` fails")
        if self.name in run(["kind", "get", "clusters"]).split():
            say(f"kind cluster {self.name} is running")
            run([*self._kind("export", "kubeconfig"), f"--kubeconfig={self.kubeconfig()}"])
            return
        with step(f"creating kind cluster {self.name}"):
            create = [*self._kind("create", "cluster"), f"--config={_CONFIG}", "--wait=120s"]
            run([*create, f"--kubeconfig={self.kubeconfig()}"])

    def down(self) -> None:
        """Delete the cluster."""
        run([*self._kind("delete", "cluster"), f"--kubeconfig={self.kubeconfig()}"])
        self.kubeconfig().unlink(missing_ok=True)

    def load(self, image: str) -> str:
        """Build an image of this repository, copy it to the nodes, return its tag."""
        built = docker.ensure(recipe(image))
        with step(f"loading {built.tag} into kind cluster {self.name}"):
            run([*self._kind("load", "docker-image"), built.tag])
        return built.tag

    def kubeconfig(self) -> Path:
        """Administrator credentials."""
        folder = cache_root() / "clusters" / f"kind-{self.name}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "kubeconfig"

    def status(self) -> str:
        """One line for people."""
        return f"kind cluster {self.name}, kubeconfig {self.kubeconfig()}"

    def _kind(self, *words: str) -> list[str]:
        return ["kind", *words, f"--name={self.name}"]
