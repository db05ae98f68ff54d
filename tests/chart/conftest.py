"""The helm binary as the chart's tests call it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.chart import CHART
from e2e.cluster.toolchain import binaries

NAMESPACE = "llmservice-system"
RELEASE = "llmservice"

Manifest = dict[str, Any]


class Helm:
    """`helm` with the repository's chart; raises `HelmError` with what helm said."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def __call__(self, *words: str) -> str:
        """Run helm; its standard output."""
        command = [str(self._program), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise HelmError(done.stderr)
        return done.stdout

    def template(self, *settings: str) -> list[Manifest]:
        """The manifests of a release with `--set` settings."""
        words = [f"--set={setting}" for setting in settings]
        text = self("template", RELEASE, str(CHART), f"--namespace={NAMESPACE}", *words)
        return [manifest for manifest in yaml.safe_load_all(text) if manifest]


class HelmError(Exception):
    """helm refused."""


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(binaries() / "helm")
