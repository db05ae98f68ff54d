"""The operator as the benchmark runs it: a process of its own, with the chart's permissions.

Each instance has its own user, so that the audit log tells them apart; all users have exactly the
rules that the chart grants.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.processes import tail, wait_until
from llmservice.adapters import permissions
from tests.bench import audit, procfs

NAMESPACE = "llmservice-system"
_NAME = "llmservice"
_GROUP = f"system:serviceaccounts:{NAMESPACE}"
_START_SECONDS = 120
_STOP_SECONDS = 30


def user_of(instance: str) -> str:
    """The API user of an instance."""
    return f"system:serviceaccount:{NAMESPACE}:{instance}"


def install(cluster: ControlPlane) -> None:
    """The CRD, the operator's namespace, and the chart's rules for every instance."""
    compile_modules = [sys.executable, "-c", "import llmservice.handlers.operator"]
    subprocess.run(compile_modules, env=_environment(), check=True)
    crds = Path(__file__).parents[2] / "crds"
    cluster.kubectl("apply", "--server-side", "-f", str(crds))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    subject = {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": _GROUP}
    rules = permissions.roles()
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        *_grant("ClusterRole", None, rules["services"], subject),
        *_grant("Role", NAMESPACE, rules["leader"], subject),
    ]
    cluster.kubectl(
        "apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    )


def _grant(
    kind: str, namespace: str | None, rules: object, subject: dict[str, str]
) -> list[dict[str, object]]:
    metadata = {"name": _NAME, **({"namespace": namespace} if namespace else {})}
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{group}/v1", "kind": kind, "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": kind, "name": _NAME},
            "subjects": [subject],
        },
    ]


class Operator:
    """One running instance; a context manager that ends it.

    Args:
        cluster: where it works.
        instance: its name, which makes its user.
        profile: write what cProfile saw to this file when it ends (then its times mean nothing).
    """

    def __init__(
        self, cluster: ControlPlane, instance: str = "operator", *, profile: Path | None = None
    ) -> None:
        self._cluster = cluster
        self.user = user_of(instance)
        self.log = cluster.layout.work / f"{instance}.log"
        identity = cluster.kubeconfig_for(self.user, ["system:serviceaccounts", _GROUP])
        self._port = _free_port()
        module = ["-m", "llmservice"]
        if profile is not None:
            module = ["-m", "cProfile", "-o", str(profile), *module]
        self._command = [
            *(sys.executable, *module, "operator"),
            f"--kubeconfig={identity}",
            f"--lease-namespace={NAMESPACE}",
            f"--port={self._port}",
            "--no-engine-metrics",  # the addresses of faked nodes' pods lead nowhere
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                # The control plane's ProcessGroup, which ends when the benchmark is killed.
                process_group=os.getpgid(self._cluster.pid_of("etcd")),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process is None or self._process.poll() is not None

    def send_signal(self, number: signal.Signals) -> float:
        """Send a signal; returns when, by the audit log's clock."""
        assert self._process is not None
        moment = audit.now()
        self._process.send_signal(number)
        return moment

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait until it is gone; SIGKILL when it takes too long."""
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def wait_ready(self, words: str = "leading") -> None:
        """Until its readiness says ``words``."""
        self.wait_for(lambda: words in self._readiness(), f"the operator to be {words}")

    def wait_for(self, condition: object, what: str, seconds: float = _START_SECONDS) -> None:
        """Until ``condition()`` holds; fails with the log when the operator ends meanwhile."""
        assert callable(condition)
        wait_until(condition, what=what, seconds=seconds, still_alive=self._still_alive)

    def cpu_seconds(self) -> float:
        """CPU time it has spent."""
        return procfs.cpu_seconds(self.pid)

    def _readiness(self) -> str:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._port}/readyz", timeout=2
            ) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    def _still_alive(self) -> None:
        if self.ended:
            raise RuntimeError(f"the operator ended:\n{tail(self.log)}")


def _environment() -> dict[str, str]:
    """Compiled modules are kept, as in the image: compiling them takes a second and 10 MiB."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
