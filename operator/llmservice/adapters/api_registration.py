"""Registers the metrics server with the API server, and never takes what is another's.

There is one APIService per group and version in a cluster. One that leads to somebody else's
Service is left as it is, and looked at again: it is ours when it becomes free. Ours belong to a
cluster-scoped object of the release, so that they go with it: an APIService that leads nowhere
keeps every namespace of the cluster from being deleted.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from llmservice.adapters.ports import Cluster, ClusterError, NotFound, Resource
from llmservice.api import names
from llmservice.core.autoscaling.scaling import MetricsApi
from llmservice.core.metrics_api import CUSTOM_GROUP, EXTERNAL_GROUP
from llmservice.core.observed import Manifest

API_SERVICE = Resource("apiregistration.k8s.io/v1", "apiservices", "APIService", namespaced=False)
CLUSTER_ROLE = Resource(
    "rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", namespaced=False
)

FIELD_MANAGER = "llmservice-metrics-server"

VERSION_PRIORITIES = {
    f"v1beta2.{CUSTOM_GROUP}": 200,
    f"v1beta1.{CUSTOM_GROUP}": 100,
    f"v1beta1.{EXTERNAL_GROUP}": 100,
}
"""Name of each APIService; among versions of a group, the higher is preferred."""

CUSTOM_API_SERVICES = tuple(
    name for name in VERSION_PRIORITIES if name.endswith(f".{CUSTOM_GROUP}")
)
"""Those by which HPAs ask for metrics of pods."""

_GROUP_PRIORITY = 100
_PORT = 443


class Outcome(StrEnum):
    """What became of a registration."""

    Ours = "Ours"
    Foreign = "Foreign"
    """Somebody else serves this group and version."""
    Failed = "Failed"
    """The API server did not say, or refused."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What became of the registration under one group and version."""

    outcome: Outcome
    why: str = ""
    """In words; empty when it is ours."""


class ApiRegistration:
    """The APIServices of one metrics server.

    Args:
        cluster: the API server.
        namespace: of the Service by which the API server reaches us.
        name: of that Service, and of the ClusterRole to which the APIServices belong.
        external: register for external metrics, too, where nobody else has.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, name: str, *, external: bool = True
    ) -> None:
        self._cluster = cluster
        self._name = name
        self._wanted = tuple(VERSION_PRIORITIES) if external else CUSTOM_API_SERVICES
        self._service = {"namespace": namespace, "name": name, "port": _PORT}

    async def owner(self) -> Manifest:
        """Owner reference for what we make.

        Raises:
            ClusterError: the release has no such object, or it cannot be read.
        """
        live = await self._cluster.get(CLUSTER_ROLE, None, self._name)
        return {
            "apiVersion": CLUSTER_ROLE.api_version,
            "kind": CLUSTER_ROLE.kind,
            "name": self._name,
            "uid": live["metadata"]["uid"],
        }

    async def register(self, bundle: bytes, owner: Manifest) -> dict[str, Registration]:
        """Register under each group and version that is free or ours.

        Args:
            bundle: authorities by which the API server is to verify us, PEM.
            owner: what the registration goes with.

        Returns:
            By name of the APIService, what came of it: those that are ours have the bundle.
        """
        found = {}
        for name in self._wanted:
            try:
                found[name] = await self._register(self._manifest(name, bundle, owner))
            except ClusterError as error:
                found[name] = Registration(Outcome.Failed, f"{type(error).__name__}: {error}")
        return found

    async def _register(self, manifest: Manifest) -> Registration:
        name = manifest["metadata"]["name"]
        try:
            live = await self._cluster.get(API_SERVICE, None, name)
        except NotFound:
            # Not by force: who is faster with this name keeps it.
            await self._apply(manifest, force=False)
            return Registration(Outcome.Ours)
        service = live["spec"].get("service")
        if not self._is_ours(service):
            return Registration(Outcome.Foreign, f"belongs to {_describe(service)}")
        # Only as it was seen: somebody may be about to take it.
        manifest["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
        await self._apply(manifest, force=True)
        return Registration(Outcome.Ours)

    async def _apply(self, manifest: Manifest, *, force: bool) -> None:
        await self._cluster.apply(
            API_SERVICE, None, manifest, field_manager=FIELD_MANAGER, force=force
        )

    def _is_ours(self, service: Mapping[str, Any] | None) -> bool:
        keys = ("namespace", "name")
        return service is not None and all(service.get(key) == self._service[key] for key in keys)

    def _manifest(self, name: str, bundle: bytes, owner: Manifest) -> Manifest:
        version, _, group = name.partition(".")
        return {
            "apiVersion": API_SERVICE.api_version,
            "kind": API_SERVICE.kind,
            "metadata": {
                "name": name,
                "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
                "ownerReferences": [owner],
            },
            "spec": {
                "group": group,
                "version": version,
                "groupPriorityMinimum": _GROUP_PRIORITY,
                "versionPriority": VERSION_PRIORITIES[name],
                "service": self._service,
                "caBundle": base64.b64encode(bundle).decode(),
            },
        }


async def read_metrics_api(cluster: Cluster) -> MetricsApi | None:
    """Who serves metrics of pods to HPAs; None if the API server does not say."""
    found = []
    for name in CUSTOM_API_SERVICES:
        try:
            found.append(await cluster.get(API_SERVICE, None, name))
        except NotFound:
            continue
        except ClusterError:
            return None
    if not found:
        return MetricsApi(CUSTOM_API_SERVICES[0], "")
    # HPAs ask by the version that the API server prefers.
    live = max(found, key=lambda each: each["spec"]["versionPriority"])
    service = live["spec"].get("service")
    return MetricsApi(live["metadata"]["name"], _describe(service), ours=_is_a_release_s(live))


def _is_a_release_s(live: Manifest) -> bool:
    """Whether it leads to the metrics server of a release, whose Service and ClusterRole it names.

    One that another has taken over may still have our labels and owner.
    """
    service = live["spec"].get("service") or {}
    owners = live["metadata"].get("ownerReferences", ())
    return any(
        (owner["kind"], owner["name"]) == (CLUSTER_ROLE.kind, service.get("name"))
        for owner in owners
    )


def _describe(service: Mapping[str, Any] | None) -> str:
    if service is None:
        return "the API server itself"
    return f"Service {service.get('namespace')}/{service.get('name')}"
