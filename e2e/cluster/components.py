"""Command lines of the control plane's programs, and the credentials that they share.

`control_plane` runs them on loopback, `node` inside a node's namespaces; both differ only in a
`Layout`. Why each unusual flag is there is said beside it. Nothing here starts a process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .api import Api, kubeconfig
from .pki import CertificateAuthority, KeyPair, signing_key

DNS_DOMAIN = "cluster.local"
_AUDIT_POLICY = Path(__file__).parent / "audit-policy.yaml"


@dataclass(frozen=True)
class Layout:
    """Where one control plane lives: its programs, folder, addresses and ranges."""

    programs: Path
    work: Path
    address: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    service_range: str
    service_address: str
    """First address of `service_range`, under which pods reach the API server."""

    @property
    def server(self) -> str:
        """URL of the API server."""
        return f"https://{self.address}:{self.api_port}"

    @property
    def audit_log(self) -> Path:
        """JSON lines, one per finished request, level Metadata."""
        return self.work / "audit.jsonl"

    @property
    def admin_kubeconfig(self) -> Path:
        """Credentials that may do everything."""
        return self.work / "admin.kubeconfig"


class Credentials:
    """Every certificate of one control plane, and kubeconfigs for any identity."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        folder = layout.work / "pki"
        self.authority = CertificateAuthority(folder)
        # Aggregated API servers must be able to tell the front proxy from an ordinary client, so
        # its certificate comes from an authority of its own.
        self.front_authority = CertificateAuthority(folder, "front-proxy")
        self.front_proxy = self.front_authority.client("front-proxy-client")
        names = ["localhost", "127.0.0.1", layout.address, layout.service_address]
        names += ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        self.serving = self.authority.server("kube-apiserver", list(dict.fromkeys(names)))
        self.kubelet_client = self.authority.client("kube-apiserver", ["system:masters"])
        self.service_accounts = signing_key(folder, "service-accounts")
        self.admin = self.authority.client("admin", ["system:masters"])
        self._write(layout.admin_kubeconfig, self.admin, "admin")

    def api(self) -> Api:
        """The administrator's view of the API server."""
        return Api(self._layout.server, self.authority.pair.certificate, self.admin)

    def kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A new kubeconfig whose holder is `user` in `groups`."""
        identity = self.authority.client(user, groups)
        file = identity.certificate.with_suffix(".kubeconfig")
        return self._write(file, identity, user)

    def _write(self, file: Path, identity: KeyPair, user: str) -> Path:
        certificate = self.authority.pair.certificate
        file.write_text(kubeconfig(self._layout.server, certificate, identity, user))
        file.chmod(0o600)
        return file


def etcd(layout: Layout) -> list[str]:
    """The store. Durability is switched off: the cluster never outlives its process."""
    client = f"http://{layout.address}:{layout.etcd_port}"
    peer = f"http://{layout.address}:{layout.etcd_peer_port}"
    return [
        *(str(layout.programs / "etcd"), "--name=default"),
        f"--data-dir={layout.work / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--quota-backend-bytes=4294967296",
        "--log-level=warn",
    ]


def api_server(layout: Layout, credentials: Credentials) -> list[str]:
    """The API server: RBAC, service-account tokens, API aggregation, audit log."""
    authority = credentials.authority.pair.certificate
    return [
        str(layout.programs / "kube-apiserver"),
        f"--etcd-servers=http://{layout.address}:{layout.etcd_port}",
        f"--bind-address={layout.address}",
        f"--advertise-address={layout.address}",
        f"--secure-port={layout.api_port}",
        f"--service-cluster-ip-range={layout.service_range}",
        f"--client-ca-file={authority}",
        f"--tls-cert-file={credentials.serving.certificate}",
        f"--tls-private-key-file={credentials.serving.key}",
        f"--kubelet-client-certificate={credentials.kubelet_client.certificate}",
        f"--kubelet-client-key={credentials.kubelet_client.key}",
        f"--kubelet-certificate-authority={authority}",
        # Node names resolve nowhere.
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-account-issuer=https://kubernetes.default.svc.{DNS_DOMAIN}",
        f"--service-account-key-file={credentials.service_accounts.certificate}",
        f"--service-account-signing-key-file={credentials.service_accounts.key}",
        f"--requestheader-client-ca-file={credentials.front_authority.pair.certificate}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={credentials.front_proxy.certificate}",
        f"--proxy-client-key-file={credentials.front_proxy.key}",
        # No kube-proxy runs beside the API server on loopback; it must not need one.
        "--enable-aggregator-routing=true",
        f"--audit-policy-file={_AUDIT_POLICY}",
        f"--audit-log-path={layout.audit_log}",
        # Rotation would hide requests from whoever counts them.
        "--audit-log-maxsize=100000",
    ]


def controller_manager(layout: Layout, credentials: Credentials) -> list[str]:
    """Every stock controller, with client limits lifted: they, not we, would be the bottleneck."""
    return [
        str(layout.programs / "kube-controller-manager"),
        f"--kubeconfig={credentials.kubeconfig('system:kube-controller-manager')}",
        "--leader-elect=false",
        "--secure-port=0",
        # Each controller as its own service account: those, not one for all, are what RBAC allows.
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={credentials.service_accounts.key}",
        f"--root-ca-file={credentials.authority.pair.certificate}",
        "--kube-api-qps=2000",
        "--kube-api-burst=4000",
    ]


def scheduler(layout: Layout, credentials: Credentials) -> list[str]:
    """The stock scheduler, with client limits lifted."""
    return [
        str(layout.programs / "kube-scheduler"),
        f"--kubeconfig={credentials.kubeconfig('system:kube-scheduler')}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=2000",
        "--kube-api-burst=4000",
    ]
