"""Addresses of a cluster and the cable between it and the host.

Every cluster on a machine has an index; all its addresses follow from it, so several clusters can
stand side by side. The cable is a pair of virtual interfaces; routes over it make service and pod
addresses reachable from the host as from another machine. All of it disappears with the
cluster's network namespace.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

from .processes import run

MAX_CLUSTERS = 16


@dataclass(frozen=True)
class Network:
    """The addresses of cluster number `index`, counted from 0; at most `MAX_CLUSTERS`."""

    index: int

    @property
    def node(self) -> str:
        """Address of the node, and of the API server and DNS on it."""
        return f"10.111.{self.index}.1"

    @property
    def host(self) -> str:
        """Address of the host as the node sees it."""
        return f"10.111.{self.index}.254"

    @property
    def pods(self) -> str:
        """Range of pod addresses."""
        return f"10.112.{self.index}.0/24"

    @property
    def services(self) -> str:
        """Range of service addresses: 4,094 of them."""
        return f"10.113.{16 * self.index}.0/20"

    @property
    def api_service(self) -> str:
        """Service address of the API server, the first of the range."""
        return f"10.113.{16 * self.index}.1"

    @property
    def interface(self) -> str:
        """The host's end of the cable."""
        return f"llmservice{self.index}"


def free_indexes() -> list[int]:
    """Numbers that no cluster on this machine has now, the lowest first."""
    taken = {name for _, name in socket.if_nameindex()}
    return [index for index in range(MAX_CLUSTERS) if Network(index).interface not in taken]


def connect(network: Network, pid: int) -> None:
    """Plug the network namespace of process `pid` in, as its `eth0`, and route to it."""
    peer = ["peer", "name", "eth0", "netns", str(pid)]
    run(["ip", "link", "add", network.interface, "type", "veth", *peer])
    run(["ip", "address", "add", f"{network.host}/24", "dev", network.interface])
    run(["ip", "link", "set", network.interface, "up"])
    for target in (network.services, network.pods):
        run(["ip", "route", "replace", target, "via", network.node])


def configure_inside(network: Network) -> None:
    """The node's end: run inside its network namespace after `connect`."""
    run(["ip", "link", "set", "lo", "up"])
    run(["ip", "address", "add", f"{network.node}/24", "dev", "eth0"])
    run(["ip", "link", "set", "eth0", "up"])
    # Without a default route kube-proxy and pods would refuse to send at all.
    run(["ip", "route", "add", "default", "via", network.host])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
