"""What a router's agent reads of the cluster: the ConfigMap of its traffic, and EndpointSlices.

Filled by reflectors. Objects are reduced when they arrive; what cannot be read is left out.
"""

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from llmservice.adapters.projection import Identity, identity, mapping, mappings, number, text
from llmservice.adapters.resources import CONFIG_MAP
from llmservice.adapters.store import Touched
from llmservice.api import names
from llmservice.core.router.agent import Endpoints
from llmservice.core.router.desired import Endpoint, RefusedTraffic, Traffic, parse_traffic

_SERVICE_NAME_LABEL = "kubernetes.io/service-name"

_Slice = tuple[str, tuple[str, ...]]
"""Name of the Service, and addresses of the engines that are ready."""


class RouteSources:
    """Sink of two reflectors: one ConfigMap, and the EndpointSlices of one service.

    Args:
        service: name of the LLMService.
        changed: called when anything is new.
    """

    def __init__(self, service: str, changed: Callable[[], None]) -> None:
        self._service = service
        self._changed = changed
        self._orders: dict[str, Traffic | RefusedTraffic] = {}
        self._slices: dict[str, _Slice] = {}

    @property
    def ordered(self) -> Traffic | RefusedTraffic | None:
        """What the ConfigMap says; None if there is none."""
        return self._orders.get(names.router_name(self._service))

    @property
    def endpoints(self) -> Endpoints:
        """The ready engines of each track."""
        found: dict[str, set[str]] = {}
        for service, addresses in self._slices.values():
            # While the slices are rearranged, an address may be in two of them.
            found.setdefault(service, set()).update(addresses)
        prefix = names.revision_name(self._service, "")
        return {
            service.removeprefix(prefix): tuple(
                Endpoint(address, ready=True) for address in sorted(found[service])
            )
            for service in found
            if service.startswith(prefix)
        }

    def put(self, kind: str, live: Mapping[str, Any]) -> Iterable[Touched]:
        """Take in one live object."""
        name = identity(live).name
        if kind == CONFIG_MAP.kind:
            self._orders[name] = parse_traffic(
                text(mapping(live.get("data")).get(names.TRAFFIC_KEY))
            )
        else:
            self._slices[name] = _read_slice(live)
        self._changed()
        return ()

    def remove(self, kind: str, live: Mapping[str, Any]) -> Iterable[Touched]:
        """Take in that one is gone."""
        self._of(kind).pop(identity(live).name, None)
        self._changed()
        return ()

    def retain(
        self,
        kind: str,
        namespace: str | None,  # noqa: ARG002 - there is one only
        seen: Iterable[Identity],
        resource_version: str,  # noqa: ARG002 - a list is as new as what came before it
    ) -> Iterable[Touched]:
        """Take in that a list held only ``seen``."""
        objects = self._of(kind)
        for name in objects.keys() - {each.name for each in seen}:
            del objects[name]
        self._changed()
        return ()

    def _of(self, kind: str) -> dict[str, Any]:
        return self._orders if kind == CONFIG_MAP.kind else self._slices


def _read_slice(live: Mapping[str, Any]) -> _Slice:
    labels = mapping(mapping(live.get("metadata")).get("labels"))
    ports = [
        number(port.get("port"))
        for port in mappings(live.get("ports"))
        if port.get("name") == names.ENGINE_PORT_NAME
    ]
    addresses = [
        address
        for endpoint in mappings(live.get("endpoints"))
        # Unknown counts as ready; a pod that ends is not, even if it still serves.
        if mapping(endpoint.get("conditions")).get("ready") is not False
        for port in ports
        if (address := _address(endpoint, port)) is not None
    ]
    return text(labels.get(_SERVICE_NAME_LABEL)), tuple(addresses)


def _address(endpoint: Mapping[str, Any], port: int) -> str | None:
    """``IP:port`` of the first address; the others, if any, are of the same pod."""
    try:
        host = ip_address(text(endpoint["addresses"][0]))
    except (LookupError, TypeError, ValueError):
        return None
    if not 0 < port < 1 << 16:
        return None
    return f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"  # noqa: PLR2004
