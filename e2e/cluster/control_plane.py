"""A real Kubernetes control plane with faked nodes, as plain processes on loopback.

Contract tests and the operator benchmark run against it: real API server, validation, admission,
RBAC, garbage collection, Deployments, scheduler and HPA; only the kubelets are faked, by kwok.
It needs no root, is up in about five seconds, and ends with whoever started it.

    with ControlPlane(nodes=2, gpus=8) as cluster:
        cluster.kubectl("apply", "-f", "-", input=manifest)
        run_operator(cluster.kubeconfig_for("operator", ["llmservice"]))

Faked pods become Ready at once; annotations make them fail or wait (see `kwok.yaml`).
"""

import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from . import components, prerequisites
from .api import JSON, Api
from .components import Credentials, Layout
from .gpus import gpu_capacity, gpu_labels
from .processes import ProcessGroup, run, wait_until
from .toolchain import binaries

_KWOK_CONFIG = Path(__file__).parent / "kwok.yaml"
_START_SECONDS = 60
"""Far more than the four seconds it takes, for a machine that is busy with other things."""

# Faked pods call nobody, and the Service `kubernetes` may not lead to loopback; 192.0.2.0/24 is
# reserved for documentation.
_UNREACHABLE_FROM_PODS = ["--endpoint-reconciler-type=none", "--advertise-address=192.0.2.1"]


class ControlPlane:
    """etcd, API server, controller-manager, scheduler and `nodes` faked nodes; a context manager.

    Args:
        nodes: how many faked nodes to start with, named `node-0`, `node-1`, ...
        gpus: `nvidia.com/gpu` on each of them.
        flags: extra flags by program, for example
            `{"kube-controller-manager": ["--horizontal-pod-autoscaler-sync-period=2s"]}`;
            they come last, so they win.
    """

    def __init__(
        self, *, nodes: int = 1, gpus: int = 8, flags: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._first_nodes = (nodes, gpus)
        self._flags = flags or {}
        self._added = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        prerequisites.install(prerequisites.CONTROL_PLANE_COMMANDS)
        programs = binaries()
        work = Path(tempfile.mkdtemp(prefix="llmservice-control-plane-"))
        api_port, etcd_port, etcd_peer_port = _free_ports(3)
        self.layout = Layout(
            programs=programs,
            work=work,
            address="127.0.0.1",
            api_port=api_port,
            etcd_port=etcd_port,
            etcd_peer_port=etcd_peer_port,
            service_range="10.96.0.0/16",
            service_address="10.96.0.1",
        )
        with ExitStack() as stack:
            self._group = stack.enter_context(ProcessGroup(work))
            self._credentials = Credentials(self.layout)
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def kubeconfig(self) -> Path:
        """Administrator credentials."""
        return self.layout.admin_kubeconfig

    @property
    def audit_log(self) -> Path:
        """One JSON object per finished request (`audit.k8s.io/v1` Event, level Metadata)."""
        return self.layout.audit_log

    @property
    def api(self) -> Api:
        """A minimal client with administrator rights."""
        return self._credentials.api()

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Credentials of another identity, known to RBAC as `user` in `groups`.

        A service account is `system:serviceaccount:NAMESPACE:NAME` in the groups
        `system:serviceaccounts` and `system:serviceaccounts:NAMESPACE`.
        """
        return self._credentials.kubeconfig(user, groups)

    def kubectl(self, *words: str, input: str | None = None) -> str:  # noqa: A002 (subprocess's word)
        """Run kubectl as administrator; its standard output, `ClusterError` when it fails."""
        return run(self._kubectl(words), text=input)

    def add_nodes(
        self, count: int, gpus: int = 8, labels: Mapping[str, str] | None = None
    ) -> list[str]:
        """Create faked nodes and wait until they are Ready; returns their names."""
        names = [f"node-{self._added + index}" for index in range(count)]
        self._added += count
        for name in names:
            self.api.create("/api/v1/nodes", _node(name, gpus, labels or {}))
        waiting = set(names)

        def ready() -> bool:
            waiting.difference_update(_ready_nodes(self.api.get("/api/v1/nodes")))
            return not waiting

        self._wait(ready, f"{count} faked nodes to be Ready")
        return names

    def stop_apiserver(self) -> None:
        """Kill the API server; its data stays. Clients see broken, then refused connections."""
        self._group.stop("kube-apiserver", signal.SIGKILL)

    def start_apiserver(self) -> None:
        """Bring the API server back on the same port and wait until it is ready."""
        command = components.api_server(self.layout, self._credentials) + _UNREACHABLE_FROM_PODS
        self._run("kube-apiserver", command)
        self._wait(lambda: self.api.answers("/readyz"), "the API server to be ready")

    def pid_of(self, program: str) -> int:
        """Process id of `etcd`, `kube-apiserver`, ... for measurements."""
        return self._group.pid_of(program)

    def log_of(self, program: str) -> Path:
        """Log file of `etcd`, `kube-apiserver`, ..."""
        return self._group.log_of(program)

    def _start(self) -> None:
        self._run("etcd", components.etcd(self.layout))
        self.start_apiserver()
        manager = components.controller_manager(self.layout, self._credentials)
        self._run("kube-controller-manager", manager)
        self._run("kube-scheduler", components.scheduler(self.layout, self._credentials))
        self._run("kwok", self._kwok())
        # Pods can be created from the moment their default service account exists.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait(lambda: self.api.answers(account), "the controllers to work")
        self.add_nodes(*self._first_nodes)

    def _run(self, program: str, command: Sequence[str]) -> None:
        self._group.start(program, [*command, *self._flags.get(program, ())])

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(
            condition, what=what, seconds=_START_SECONDS, still_alive=self._group.fail_on_exit
        )

    def _kwok(self) -> list[str]:
        identity = self._credentials.kubeconfig("kwok", ["system:masters"])
        return [
            str(self.layout.programs / "kwok"),
            f"--kubeconfig={identity}",
            f"--config={_KWOK_CONFIG}",
            "--server-address=",
        ]

    def _kubectl(self, words: Sequence[str]) -> list[str]:
        return [
            str(self.layout.programs / "kubectl"),
            f"--kubeconfig={self.kubeconfig}",
            f"--cache-dir={self.layout.work / 'kubectl'}",
            *words,
        ]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _node(name: str, gpus: int, labels: Mapping[str, str]) -> JSON:
    room = {"cpu": "128", "memory": "1Ti", "pods": "1000", **gpu_capacity(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                **gpu_labels(gpus),
                **labels,
            },
        },
        "status": {"capacity": room, "allocatable": room},
    }


def _ready_nodes(nodes: JSON) -> set[str]:
    """Names of nodes that pods can be scheduled on: Ready, and the controllers have noticed."""
    return {node["metadata"]["name"] for node in nodes["items"] if _is_ready(node)}


def _is_ready(node: JSON) -> bool:
    tainted = {taint["key"] for taint in node["spec"].get("taints", [])}
    return "node.kubernetes.io/not-ready" not in tainted and any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in node["status"].get("conditions", [])
    )
