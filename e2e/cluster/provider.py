"""Which cluster a demo or a test run gets, by the environment variable CLUSTER.

`local` is this machine's own (default for root on Linux), `kind` needs a Docker engine (default
where one answers), `current` is what kubectl points at and has to be asked for by name.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from . import docker
from .current import CurrentCluster
from .kind import KindCluster
from .local import LocalCluster
from .progress import ClusterError


class Cluster(Protocol):
    """A cluster that the chart can be installed on."""

    def up(self) -> None:
        """Make it run; returns when its nodes are Ready. A running one is reused."""

    def down(self) -> None:
        """End it and leave nothing; nothing to do when it is not running."""

    def load(self, image: str) -> str:
        """Make image `operator` or `vllm-cpu` of this tree runnable there; its tag there."""

    def kubeconfig(self) -> Path:
        """Administrator credentials."""

    def status(self) -> str:
        """What is running and how to reach it, for people."""


def choose(name: str = "llmservice", environ: Mapping[str, str] = os.environ) -> Cluster:
    """The cluster that `CLUSTER` names, or the best that this machine can do."""
    match environ.get("CLUSTER") or ("kind" if docker.answers() else "local"):
        case "local":
            return LocalCluster(name)
        case "kind":
            return KindCluster(name)
        case "current":
            return CurrentCluster()
        case other:
            raise ClusterError(f"CLUSTER={other} is not one of local, kind, current")
