"""The first process of a cluster's namespaces: starts every component, then waits.

`local` runs `python3 -m e2e.cluster.node` under `unshare` and writes one line of JSON to it when
the network cable is plugged in. This is process 1 of a PID namespace: when it ends, for whatever
reason, the kernel ends everything else and takes mounts, interfaces and rules away. It ends when a
component does (half a cluster confuses more than none), and, when the cluster is tied to a test
run, when that run closes the pipe on standard input.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from . import components
from .api import JSON
from .buildah import PAUSE_TAG
from .components import DNS_DOMAIN, Credentials, Layout
from .network import Network, configure_inside
from .processes import run, wait_until

_START_SECONDS = 120
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


@dataclass(frozen=True)
class NodeSpec:
    """Everything about one node that is not the same for all."""

    name: str
    index: int
    programs: Path
    work: Path
    """Emptied before each start."""
    images: Path
    """containerd's root. It stays, because importing a large image takes a minute."""
    cgroup: str
    """Parent of the pods' control groups, with a leading slash."""

    def to_json(self) -> JSON:
        """The form in which it is kept and handed over."""
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, fields: JSON) -> Self:
        """What `to_json` gave."""
        paths = {key: Path(fields[key]) for key in ("programs", "work", "images")}
        return cls(**{**fields, **paths})

    @property
    def network(self) -> Network:
        """The node's addresses."""
        return Network(self.index)

    @property
    def layout(self) -> Layout:
        """The control plane on this node."""
        network = self.network
        return Layout(
            programs=self.programs,
            work=self.work,
            address=network.node,
            api_port=6443,
            etcd_port=2379,
            etcd_peer_port=2380,
            service_range=network.services,
            service_address=network.api_service,
        )


class Node:
    """Configuration files and processes of one node; lives inside its namespaces."""

    def __init__(self, spec: NodeSpec) -> None:
        self._spec = spec
        self._layout = spec.layout
        self._credentials = Credentials(spec.layout)
        # The objects are kept: a forgotten Popen is collected by the next one, unseen by `os.wait`.
        self._running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}

    def run(self) -> str:
        """Start everything; return the name of the first component that ends."""
        self._start("etcd", components.etcd(self._layout))
        self._start("containerd", self._containerd())
        self._start("kube-apiserver", components.api_server(self._layout, self._credentials))
        api = self._credentials.api()
        wait_until(lambda: api.answers("/readyz"), what="the API server", seconds=_START_SECONDS)
        wait_until(
            Path(CONTAINERD_SOCKET).exists, what="containerd's socket", seconds=_START_SECONDS
        )
        manager = components.controller_manager(self._layout, self._credentials)
        self._start("kube-controller-manager", manager)
        self._start("kube-scheduler", components.scheduler(self._layout, self._credentials))
        self._start("kubelet", self._kubelet())
        self._start("kube-proxy", self._kube_proxy())
        self._start("coredns", self._coredns())
        return self._first_to_end()

    def _first_to_end(self) -> str:
        # Process 1 also inherits every orphan of the namespace; those are collected and forgotten.
        while True:
            pid, _ = os.wait()
            if pid in self._running:
                return self._running[pid][0]

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self._spec.work / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._running[process.pid] = (name, process)

    def _program(self, name: str) -> str:
        return str(self._spec.programs / name)

    def _file(self, name: str, content: str | JSON) -> Path:
        file = self._spec.work / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        return file

    def _containerd(self) -> list[str]:
        self._file("cni/10-pods.conflist", _pod_network(self._spec))
        config = self._file(
            "containerd.toml",
            _CONTAINERD.format(
                root=self._spec.images,
                socket=CONTAINERD_SOCKET,
                pause=PAUSE_TAG,
                programs=self._spec.programs,
                cni=self._spec.work / "cni",
                restrict_oom=str(not _may_lower_oom_score()).lower(),
            ),
        )
        return [self._program("containerd"), "--config", str(config)]

    def _kubelet(self) -> list[str]:
        spec, credentials = self._spec, self._credentials
        serving = credentials.authority.server("kubelet", [spec.name, spec.network.node])
        config: JSON = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(credentials.authority.pair.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": spec.cgroup,
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDNS": [spec.network.node],
            "clusterDomain": DNS_DOMAIN,
            # Pods reach nothing outside the machine, so nothing outside resolves.
            "resolvConf": "",
            "podLogsDir": str(spec.work / "pod-logs"),
            # Nobody pulls images again here: none may be collected, and a full disk must not evict.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
            "serializeImagePulls": False,
        }
        return [
            self._program("kubelet"),
            f"--config={self._file('kubelet.json', config)}",
            f"--kubeconfig={credentials.kubeconfig(f'system:node:{spec.name}', ['system:nodes'])}",
            f"--root-dir={spec.work / 'kubelet'}",
            f"--node-ip={spec.network.node}",
            f"--hostname-override={spec.name}",
        ]

    def _kube_proxy(self) -> list[str]:
        return [
            self._program("kube-proxy"),
            f"--kubeconfig={self._credentials.kubeconfig('system:kube-proxy')}",
            "--proxy-mode=nftables",
            # The limits of connection tracking belong to the host.
            "--conntrack-max-per-core=0",
            f"--cluster-cidr={self._spec.network.pods}",
            f"--hostname-override={self._spec.name}",
        ]

    def _coredns(self) -> list[str]:
        identity = self._credentials.kubeconfig("coredns", ["system:masters"])
        address = self._spec.network.node
        corefile = self._file("Corefile", _COREFILE.format(address=address, kubeconfig=identity))
        return [self._program("coredns"), "-conf", str(corefile)]


_CONTAINERD = """\
version = 3
root = "{root}"
state = "/run/containerd"
[grpc]
address = "{socket}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = {restrict_oom}
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{programs}"]
conf_dir = "{cni}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{pause}"
[plugins.'io.containerd.nri.v1.nri']
disable = true
"""

_COREFILE = """\
.:53 {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
    }}
}}
"""


def _pod_network(spec: NodeSpec) -> JSON:
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni",
                    "ranges": [[{"subnet": spec.network.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _may_lower_oom_score() -> bool:
    """Whether runc can give a sandbox a negative OOM score; without CAP_SYS_RESOURCE it fails."""
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    try:
        own.write_text("-998")
        own.write_text(before)
    except OSError:
        return False
    return True


def _isolate(spec: NodeSpec) -> None:
    """Mounts and names that only this node sees."""
    for folder in ("/run", "/var/log"):
        run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder])
    Path("/run/netns").mkdir()
    socket.sethostname(spec.name)
    # The shim and the network plugins are found by name.
    os.environ["PATH"] = f"{spec.programs}:{os.environ['PATH']}:/usr/sbin:/sbin"


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """Wait for the order on standard input, start the node, stay until something ends."""
    order = json.loads(sys.stdin.readline())
    spec = NodeSpec.from_json(order["spec"])
    _isolate(spec)
    configure_inside(spec.network)
    if order["tied"]:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    ended = Node(spec).run()
    (spec.work / "ended").write_text(ended)


if __name__ == "__main__":
    main()
