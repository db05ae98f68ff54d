"""The little of the Kubernetes API that bringing a cluster up needs, on the standard library.

`Api` reads, creates and patches JSON by path. It is for this package alone: tests and the product
have a real client.
"""

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from .pki import KeyPair

JSON = dict[str, Any]

_TIMEOUT_SECONDS = 30
_PROBE_SECONDS = 2
"""Whoever asks whether the server answers asks again; a lost packet must not hold him up."""


@dataclass(frozen=True)
class RefusedError(Exception):
    """The API server answered with an error status."""

    status: int
    message: str

    def __str__(self) -> str:
        """The HTTP status and the server's own words."""
        return f"HTTP {self.status}: {self.message}"


@dataclass(frozen=True)
class Api:
    """One identity at one API server. Every call opens its own connection."""

    server: str
    authority: Path
    identity: KeyPair

    def get(self, path: str) -> JSON:
        """Read one object or list; `RefusedError` for an error status."""
        return cast("JSON", json.loads(self.call("GET", path)))

    def create(self, path: str, body: JSON) -> None:
        """POST one object to the collection at `path`; an object that exists already is left."""
        try:
            self.call("POST", path, body)
        except RefusedError as refused:
            if refused.status != http.client.CONFLICT:
                raise

    def merge(self, path: str, body: JSON) -> None:
        """Merge-patch the object at `path`."""
        self.call("PATCH", path, body, {"Content-Type": "application/merge-patch+json"})

    def answers(self, path: str) -> bool:
        """Whether a GET succeeds now; a connection that fails is a no."""
        try:
            self.call("GET", path, timeout_seconds=_PROBE_SECONDS)
        except (OSError, http.client.HTTPException, RefusedError):
            return False
        return True

    def call(
        self,
        verb: str,
        path: str,
        body: JSON | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> bytes:
        """One request; the raw answer, or `RefusedError`."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(self.identity.certificate, self.identity.key)
        connection = http.client.HTTPSConnection(
            urlsplit(self.server).netloc, context=context, timeout=timeout_seconds
        )
        try:
            connection.request(
                verb,
                path,
                body=None if body is None else json.dumps(body),
                headers={"Content-Type": "application/json", **(headers or {})},
            )
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= http.client.BAD_REQUEST:
            raise RefusedError(response.status, answer.decode(errors="replace")[:500])
        return answer


def kubeconfig(server: str, authority: Path, identity: KeyPair, user: str) -> str:
    """The text of a kubeconfig that refers to the certificate files by path (JSON is YAML)."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "default",
            "clusters": [
                {
                    "name": "default",
                    "cluster": {"server": server, "certificate-authority": str(authority)},
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate": str(identity.certificate),
                        "client-key": str(identity.key),
                    },
                }
            ],
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": user}}],
        },
        indent=1,
    )
