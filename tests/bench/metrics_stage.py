"""The chart on a control plane, with a port of this machine where the metrics server's pods were.

The server itself runs as a process with the rights of its service account, so a test or a
benchmark says when it starts and ends; everything between it and an HPA is Kubernetes itself.
"""

import json
import socket
from pathlib import Path

import yaml

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.toolchain import binaries
from tests.chart.conftest import NAMESPACE, Helm

SERVER = "llmservice-metrics-server"
TEAM = "team"
"""Where the engines are."""


def create_namespaces(plane: ControlPlane) -> None:
    """The chart's and the engines'; once for a control plane."""
    for name in (NAMESPACE, TEAM):
        plane.kubectl("create", "namespace", name)


def install(plane: ControlPlane, port: int) -> None:
    """Apply the chart but for its pods; the server's Service leads to this port."""
    for manifest in Helm(binaries() / "helm").template():
        if manifest["kind"] in ("Deployment", "CustomResourceDefinition"):
            continue
        if (manifest["kind"], manifest["metadata"]["name"]) == ("Service", SERVER):
            del manifest["spec"]["selector"]
        plane.kubectl("apply", "-f", "-", input=json.dumps(manifest))
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": SERVER,
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": SERVER},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [_own_address()], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    }
    plane.kubectl("apply", "-f", "-", input=json.dumps(endpoints))


def write_kubeconfig(plane: ControlPlane, folder: Path) -> Path:
    """Credentials of the server's service account, which the chart has made."""
    token = plane.kubectl("create", "token", SERVER, f"-n={NAMESPACE}").strip()
    config = yaml.safe_load(plane.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config))
    return file


def _own_address() -> str:
    """One that is not loopback: an EndpointSlice may not name those."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect(("192.0.2.1", 9))  # sends nothing, but chooses an address of ours
        return str(asked.getsockname()[0])
