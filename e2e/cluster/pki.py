"""A throw-away certificate authority for one cluster, by the openssl command.

Whoever starts an API server makes one; clients get certificates from it. Keys are P-256: making
one takes milliseconds. Nothing here outlives the cluster's working folder.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .processes import run

_DAYS = "3650"


@dataclass(frozen=True)
class KeyPair:
    """Files that hold one certificate and its private key, both PEM."""

    certificate: Path
    key: Path


class CertificateAuthority:
    """Signs server and client certificates into one folder."""

    def __init__(self, folder: Path, name: str = "cluster") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._serial = 1
        self._lock = threading.Lock()
        self.pair = KeyPair(folder / f"{name}-ca.crt", folder / f"{name}-ca.key")
        extensions = [
            "basicConstraints=critical,CA:TRUE",
            "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
        ]
        _issue(self.pair, f"/CN={name}-ca", extensions)

    def server(self, name: str, addresses: Sequence[str]) -> KeyPair:
        """A serving certificate for `addresses`, each an IP or a DNS name."""
        names = ",".join(
            f"IP:{address}" if _is_ip(address) else f"DNS:{address}" for address in addresses
        )
        return self._sign(name, f"/CN={name}", "serverAuth", f"subjectAltName={names}")

    def client(self, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """A client certificate that the API server reads as `user` in `groups`."""
        subject = "".join(f"/O={_escape(group)}" for group in groups) + f"/CN={_escape(user)}"
        file = "".join(letter if letter.isalnum() else "-" for letter in user)
        return self._sign(f"client-{file}", subject, "clientAuth")

    def _sign(self, name: str, subject: str, usage: str, *extensions: str) -> KeyPair:
        pair = KeyPair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        with self._lock:
            self._serial += 1
            serial = self._serial
        usages = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"]
        signer: list[str | Path] = [
            "-CA",
            self.pair.certificate,
            "-CAkey",
            self.pair.key,
            "-set_serial",
            str(serial),
        ]
        _issue(pair, subject, [*usages, f"extendedKeyUsage={usage}", *extensions], signer)
        return pair


def signing_key(folder: Path, name: str) -> KeyPair:
    """A bare key and its public half, with which service-account tokens are signed and checked."""
    pair = KeyPair(folder / f"{name}.pub", folder / f"{name}.key")
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", pair.key])
    run(["openssl", "ec", "-in", pair.key, "-pubout", "-out", pair.certificate])
    return pair


def _issue(
    pair: KeyPair, subject: str, extensions: Sequence[str], signer: Sequence[str | Path] = ()
) -> None:
    """Make a key and its certificate, signed by itself unless `signer` says by whom."""
    added = [word for text in extensions for word in ("-addext", text)]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files: list[str | Path] = ["-keyout", pair.key, "-out", pair.certificate]
    run(
        [
            "openssl",
            "req",
            "-x509",
            *curve,
            *files,
            "-days",
            _DAYS,
            "-subj",
            subject,
            *signer,
            *added,
        ]
    )


def _is_ip(address: str) -> bool:
    return all(part.isdigit() for part in address.split("."))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("/", "\\/")
