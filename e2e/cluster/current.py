"""The cluster that kubectl points at. It is somebody's: nothing is created or deleted here.

Images have to reach its nodes, so they are pushed to `IMAGE_REGISTRY`, a registry that you may
push to and the nodes may pull from.
"""

import os
from pathlib import Path

from . import buildah, docker
from .images import PREFIX, recipe
from .processes import run
from .progress import ClusterError, say, step
from .toolchain import program


class CurrentCluster:
    """Whatever `KUBECONFIG`, or `~/.kube/config`, selects."""

    def up(self) -> None:
        """Check that the cluster answers."""
        kubectl = program("kubectl")
        context = run([kubectl, "config", "current-context"]).strip()
        run([kubectl, "version", "--request-timeout=10s"])
        say(f"using the cluster of kubectl's context {context}")

    def down(self) -> None:
        """Leave the cluster alone."""

    def load(self, image: str) -> str:
        """Build an image of this repository, push it, return the tag that nodes can pull."""
        registry = os.environ.get("IMAGE_REGISTRY", "").rstrip("/")
        if not registry:
            raise ClusterError(
                "CLUSTER=current needs IMAGE_REGISTRY, for example"
                " IMAGE_REGISTRY=registry.example.com/team: a registry that you may push to and"
                " that the cluster's nodes may pull from"
            )
        with_docker = docker.answers()
        wanted = recipe(image)
        tag = (docker.ensure(wanted) if with_docker else buildah.ensure(wanted)).tag
        target = registry + tag.removeprefix(PREFIX)
        with step(f"pushing {target}"):
            (docker.push if with_docker else buildah.push)(tag, target)
        return target

    def kubeconfig(self) -> Path:
        """The file that kubectl reads."""
        return Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")

    def status(self) -> str:
        """One line for people."""
        return f"the cluster of kubectl's current context, kubeconfig {self.kubeconfig()}"
