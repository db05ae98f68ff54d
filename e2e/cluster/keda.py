"""A real KEDA, operator and metrics API, as plain processes beside a `ControlPlane`.

    with ControlPlane() as plane, Keda(plane):
        plane.kubectl("apply", "-f", "-", input=scaled_object)

The API server reaches KEDA's metrics API on this machine's own network address, since an
EndpointSlice refuses loopback. Certificates come from the control plane's authority, in place of
KEDA's own rotation. Building takes about a quarter of an hour on two cores; `build` keeps the
result in the cache folder, together with the CRDs of KEDA and of the Prometheus operator.
"""

import base64
import shutil
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from . import go_tools
from .api import JSON
from .control_plane import ControlPlane
from .pki import CertificateAuthority, KeyPair
from .processes import ProcessGroup, tail, wait_until
from .progress import ClusterError, say

_MODULE = Path(__file__).parent / "keda-operator"
_CRDS = (
    ("github.com/kedacore/keda/v2", "config/crd/bases/*.yaml"),
    (
        "github.com/prometheus-operator/prometheus-operator",
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
    ),
)
_NAMESPACE = "keda"
_SERVICE = "keda-metrics-apiserver"
_GROUP = "external.metrics.k8s.io"
_START_SECONDS = 60
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


def build() -> Path:
    """The folder with `operator`, `adapter` and `crds/`; built when it is not in the cache."""
    return go_tools.build(_MODULE, _CRDS, minutes=15)


class Keda:
    """KEDA's two programs; a context manager."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        programs = build()
        with ExitStack() as stack:
            self._folder = Path(tempfile.mkdtemp(prefix="llmservice-keda-"))
            self._group = stack.enter_context(ProcessGroup(self._folder))
            self._authority = CertificateAuthority(self._folder / "pki", "keda")
            self._install(programs)
            self._start(programs)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Namespaces cannot be deleted while an API of theirs answers nothing.
        self._plane.api.call(
            "DELETE", f"/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.{_GROUP}"
        )
        self._stack.close()

    def log(self) -> str:
        """The end of what the operator said."""
        return tail(self._group.log_of("operator"))

    def _install(self, programs: Path) -> None:
        """CRDs, a Service for the metrics API, and the HPA controller's right to ask it."""
        plane = self._plane
        plane.kubectl("apply", "--server-side", "-f", str(programs / "crds"))
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all")
        plane.api.create("/api/v1/namespaces", _object("v1", "Namespace", _NAMESPACE))
        rights = {"apiGroups": [_GROUP], "resources": ["*"], "verbs": ["get", "list"]}
        role = _object("rbac.authorization.k8s.io/v1", "ClusterRole", "keda-metrics-reader")
        plane.api.create(f"{_RBAC}/clusterroles", role | {"rules": [rights]})
        binding = role | {
            "kind": "ClusterRoleBinding",
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "keda-metrics-reader",
            },
            "subjects": [
                {
                    "kind": "ServiceAccount",
                    "name": "horizontal-pod-autoscaler",
                    "namespace": "kube-system",
                }
            ],
        }
        plane.api.create(f"{_RBAC}/clusterrolebindings", binding)

    def _start(self, programs: Path) -> None:
        address = _own_address()
        metrics, health, grpc, adapter_metrics, api = _free_ports(address, 5)
        names = [f"{_SERVICE}.{_NAMESPACE}.svc", "localhost", "127.0.0.1"]
        serving = self._authority.server(_SERVICE, names)
        environment = {
            "KUBECONFIG": str(self._plane.kubeconfig),
            "WATCH_NAMESPACE": "",
            "POD_NAMESPACE": _NAMESPACE,
            "KEDA_CLUSTER_OBJECT_NAMESPACE": _NAMESPACE,
        }
        operator = [
            str(programs / "operator"),
            f"--metrics-bind-address=127.0.0.1:{metrics}",
            f"--health-probe-bind-address=127.0.0.1:{health}",
            f"--metrics-service-bind-address=127.0.0.1:{grpc}",
            f"--cert-dir={self._certificates('operator', serving)}",
            "--enable-webhook-patching=false",
            "--enable-apiservice-patching=false",
        ]
        self._group.start("operator", operator, env=environment)
        kubeconfig = self._plane.kubeconfig
        adapter = [
            str(programs / "adapter"),
            f"--port={adapter_metrics}",
            f"--bind-address={address}",
            f"--secure-port={api}",
            f"--metrics-service-address=localhost:{grpc}",
            f"--cert-dir={self._certificates('adapter', self._authority.client('adapter'))}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--lister-kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
        ]
        self._group.start("adapter", adapter, env=environment)
        self._register(address, api)
        self._wait_for_metrics()

    def _certificates(self, name: str, pair: KeyPair) -> Path:
        """A folder as KEDA wants it."""
        folder = self._folder / f"certificates-{name}"
        folder.mkdir()
        shutil.copy(self._authority.pair.certificate, folder / "ca.crt")
        shutil.copy(pair.certificate, folder / "tls.crt")
        shutil.copy(pair.key, folder / "tls.key")
        return folder

    def _register(self, address: str, port: int) -> None:
        """Tell the API server where the metrics API is."""
        api, inside = self._plane.api, f"namespaces/{_NAMESPACE}"
        ports = [{"name": "https", "port": 443, "targetPort": port}]
        service = _object("v1", "Service", _SERVICE) | {"spec": {"ports": ports}}
        api.create(f"/api/v1/{inside}/services", service)
        endpoints = _object("discovery.k8s.io/v1", "EndpointSlice", _SERVICE)
        endpoints["metadata"]["labels"] = {"kubernetes.io/service-name": _SERVICE}
        endpoints |= {
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": port}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        }
        api.create(f"/apis/discovery.k8s.io/v1/{inside}/endpointslices", endpoints)
        registration = _object("apiregistration.k8s.io/v1", "APIService", f"v1beta1.{_GROUP}")
        authority = self._authority.pair.certificate.read_bytes()
        registration["spec"] = {
            "group": _GROUP,
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": {"name": _SERVICE, "namespace": _NAMESPACE},
            "caBundle": base64.b64encode(authority).decode(),
        }
        api.create("/apis/apiregistration.k8s.io/v1/apiservices", registration)

    def _wait_for_metrics(self) -> None:
        try:
            wait_until(
                lambda: self._plane.api.answers(f"/apis/{_GROUP}/v1beta1"),
                what="KEDA's metrics API to answer",
                seconds=_START_SECONDS,
                still_alive=self._group.fail_on_exit,
            )
        except ClusterError:
            say(self.log())  # the folder is about to go
            say(tail(self._group.log_of("adapter")))
            raise


def _object(api_version: str, kind: str, name: str) -> JSON:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}}


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent; 192.0.2.0/24 is reserved for documentation.
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def _free_ports(address: str, count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [int(each.getsockname()[1]) for each in sockets]


if __name__ == "__main__":
    print(build())
