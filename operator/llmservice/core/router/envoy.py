"""Envoy's configuration as JSON files: bootstrap and listener once, the rest for each traffic.

JSON and not YAML: a service named ``n`` must not become false. Every rule below that is not
obvious was found by breaking it on Envoy 1.40; what it prevents stands beside it.

Two kinds of clusters: ``track-NAME`` has the engines of a revision, and ``share-NAME`` is what a
route sends a canary's share to: [that track, the stable one]. A request that the canary cannot
take is answered by stable, while the failure is counted (``core/router/agent.py``). The share of
stable itself never falls on a canary: it is sized for its own share and not yet trusted.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmservice.core.router.desired import Affinity, Endpoint, Limits, Track, Traffic

Json = dict[str, Any]

BOOTSTRAP, LISTENERS, CLUSTERS, ROUTES = "bootstrap.json", "lds.json", "cds.json", "rds.json"
ENDPOINTS = "eds-"
"""How the name of each track's file of engines begins."""
READY_PATH = "/router/ready"
"""Answers 200 until a drain begins."""
TRACK_HEADER = "x-llm-track"
STAT_PREFIX = "ingress"
METADATA = "llmservice"

_TYPE = "type.googleapis.com/envoy"
_HTTP = f"{_TYPE}.extensions.filters.http"
_BUFFER = "envoy.filters.http.buffer"


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """What is fixed for the life of a router's pod. Changing a listener would drain streams."""

    folder: str
    """Where the files lie, as Envoy sees it. One filesystem: a rename must be atomic."""
    port: int
    admin_port: int
    address: str = "0.0.0.0"  # noqa: S104 - a router's pod is reached from everywhere
    connections: int = 10_000
    """Open connections of clients; more are refused, so that they cannot take all memory."""


def endpoints_file(track: str) -> str:
    """The file with a track's engines: Envoy reads one cluster's endpoints from each file."""
    return f"{ENDPOINTS}{track}.json"


def track_cluster(track: str) -> str:
    """The cluster with the engines of a track."""
    return f"track-{track}"


def share_cluster(traffic: Traffic, track: str) -> str:
    """Where a route sends the share of a track."""
    return track_cluster(track) if track == traffic.stable else f"share-{track}"


def build_static_files(settings: RouterSettings) -> dict[str, str]:
    """The files that never change while a router runs."""
    return {
        BOOTSTRAP: _dump(_bootstrap(settings)),
        LISTENERS: _discovery([_listener(settings)], "Listener", "config.listener.v3"),
    }


def build_traffic_files(traffic: Traffic, folder: str) -> dict[str, str]:
    """The files of a traffic that was found valid; equal traffic gives equal bytes.

    Args:
        traffic: what is wanted.
        folder: where the files will lie, as Envoy sees it.
    """
    files = {
        endpoints_file(track.name): _discovery(
            [_assignment(track)], "ClusterLoadAssignment", "config.endpoint.v3"
        )
        for track in traffic.tracks
    }
    clusters = [_signed(cluster) for cluster in _clusters(traffic, folder)]
    files[CLUSTERS] = _discovery(clusters, "Cluster", "config.cluster.v3")
    files[ROUTES] = _discovery([_routes(traffic)], "RouteConfiguration", "config.route.v3")
    return files


def _dump(document: Json) -> str:
    return json.dumps(document, indent=1) + "\n"


def _discovery(resources: list[Json], kind: str, package: str) -> str:
    typed = [{"@type": f"{_TYPE}.{package}.{kind}", **resource} for resource in resources]
    return _dump({"resources": typed})


def _signed(cluster: Json) -> Json:
    # Read back to know whether Envoy uses this very definition. No version: that would make a
    # new cluster of every one with each change, and drop its connections.
    digest = hashlib.sha256(_dump(cluster).encode()).hexdigest()[:16]
    return cluster | {"metadata": {"filter_metadata": {METADATA: {"digest": digest}}}}


def own_metadata(resource: Json, key: str) -> str | None:
    """What was put into the metadata of a cluster or of routes, in a file or in Envoy's dump."""
    try:
        found = resource["metadata"]["filter_metadata"][METADATA][key]
    except (LookupError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _from_file(folder: str, name: str) -> Json:
    # Only a rename is noticed, a rewrite in place never; and a folder that a volume swaps as a
    # whole (a symlink of Kubernetes) only when the folder is watched and not the file.
    source = {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}
    return {"path_config_source": source, "resource_api_version": "V3"}


def _bootstrap(settings: RouterSettings) -> Json:
    limit = {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": f"{_TYPE}.extensions.resource_monitors.downstream_connections.v3"
            ".DownstreamConnectionsConfig",
            "max_active_downstream_connections": settings.connections,
        },
    }
    return {
        "node": {"id": "router", "cluster": "llmservice"},
        # The admin port can stop and read everything: only the pod itself reaches it.
        "admin": {"address": _socket("127.0.0.1", settings.admin_port)},
        "dynamic_resources": {
            "lds_config": _from_file(settings.folder, LISTENERS),
            "cds_config": _from_file(settings.folder, CLUSTERS),
        },
        "overload_manager": {"resource_monitors": [limit]},
    }


def _socket(address: str, port: int) -> Json:
    return {"socket_address": {"address": address, "port_value": port}}


def _listener(settings: RouterSettings) -> Json:
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": STAT_PREFIX,
        "rds": {
            "route_config_name": "routes",
            "config_source": _from_file(settings.folder, ROUTES),
        },
        # A prefill may be silent for minutes and a stream may last for hours.
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        # Slow headers are no prefill: they only hold a connection.
        "request_headers_timeout": "10s",
        "common_http_protocol_options": {"max_headers_count": 100},
        "max_request_headers_kb": 60,
        "use_remote_address": True,
        # Nobody is internal: a client in the cluster is a client, and x-envoy-* headers of an
        # internal one would set retries and time limits. An empty list would mean all private
        # addresses, so this is one that no client has.
        "internal_address_config": {
            "cidr_ranges": [{"address_prefix": "0.0.0.0", "prefix_len": 32}]  # noqa: S104
        },
        "early_header_mutation_extensions": [_without_envoy_headers()],
        "normalize_path": True,
        "merge_slashes": True,
        "http_filters": _filters(),
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": "ingress",
        "address": _socket(settings.address, settings.port),
        "filter_chains": [{"filters": [network]}],
    }


def _without_envoy_headers() -> Json:
    extension = f"{_TYPE}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    matched = {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-", "ignore_case": True}}}
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {"@type": extension, "mutations": [matched]},
    }


def _filters() -> list[Json]:
    ready = {"name": ":path", "string_match": {"exact": READY_PATH}}
    return [
        {
            # Fails once a drain began, so that no new connection is sent here.
            "name": "envoy.filters.http.health_check",
            "typed_config": {
                "@type": f"{_HTTP}.health_check.v3.HealthCheck",
                "pass_through_mode": False,
                "headers": [ready],
            },
        },
        {
            # Off here and on in the routes, so that a changed limit needs no new listener.
            "name": _BUFFER,
            "disabled": True,
            "typed_config": _buffer(Limits()),
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{_HTTP}.router.v3.Router"},
        },
    ]


def _buffer(limits: Limits) -> Json:
    return {"@type": f"{_HTTP}.buffer.v3.Buffer", "max_request_bytes": limits.body_bytes}


def _routes(traffic: Traffic) -> Json:
    host = {
        "name": "service",
        "domains": ["*"],
        "routes": [*_chosen_tracks(traffic), _split(traffic)],
        # A retry needs the whole request, and Envoy's own buffers are smaller than a long prompt.
        "typed_per_filter_config": {
            _BUFFER: {
                "@type": f"{_HTTP}.buffer.v3.BufferPerRoute",
                "buffer": {"max_request_bytes": traffic.limits.body_bytes},
            }
        },
    }
    return {
        "name": "routes",
        "virtual_hosts": [host],
        # Read back from /config_dump to know which version is in force. It is part of the
        # routes, because Envoy skips an update whose content is the same.
        "metadata": {"filter_metadata": {METADATA: {"version": traffic.version}}},
        "request_headers_to_remove": [TRACK_HEADER],
    }


def _chosen_tracks(traffic: Traffic) -> Iterator[Json]:
    """Routes for clients that name a track; it answers or fails by itself, so it can be tried."""
    if not traffic.track_header:
        return
    for track in traffic.tracks:
        header = {"name": TRACK_HEADER, "string_match": {"exact": track.name}}
        yield {
            "match": {"prefix": "/", "headers": [header]},
            "route": _action(traffic, {"cluster": track_cluster(track.name)}),
        }


def _split(traffic: Traffic) -> Json:
    # Envoy takes a session's hash modulo the total and walks the list. Stable is last: a rising
    # weight extends the canary's range at its end, and no session that is in it leaves it.
    shares = sorted(
        (track for track in traffic.tracks if track.weight),
        key=lambda track: track.name == traffic.stable,
    )
    clusters = [
        {"name": share_cluster(traffic, track.name), "weight": track.weight} for track in shares
    ]
    weighted: Json = {"clusters": clusters}
    if traffic.affinity is not None:
        weighted["use_hash_policy"] = True
    return {"match": {"prefix": "/"}, "route": _action(traffic, {"weighted_clusters": weighted})}


def _action(traffic: Traffic, target: Json) -> Json:
    action = {
        **target,
        "timeout": "0s",  # the default of 15 s would cut almost every answer
        "retry_policy": _retries(),
    }
    if traffic.affinity is not None:
        action["hash_policy"] = [_hash_policy(traffic.affinity)]
    return action


def _retries() -> Json:
    return {
        # Only while no byte of the answer has been sent: "reset" ends there. It includes an
        # engine that dies during a prefill. A 500 may be the request's own fault: not retried.
        "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
        "retriable_status_codes": [503],
        # A request that kills engines must not kill many.
        "num_retries": 2,
        # Without it a retry stays in the canary's cluster, and its share fails.
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {
                "@type": f"{_TYPE}.extensions.retry.priority.previous_priorities.v3"
                ".PreviousPrioritiesConfig",
                "update_frequency": 1,
            },
        },
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": f"{_TYPE}.extensions.retry.host.previous_hosts.v3"
                    ".PreviousHostsPredicate"
                },
            }
        ],
        "host_selection_retry_max_attempts": 5,
    }


def _hash_policy(affinity: Affinity) -> Json:
    # No time to live for the cookie: Envoy would set one after it chose a track at random.
    if affinity.cookie is not None:
        return {"cookie": {"name": affinity.cookie}}
    return {"header": {"header_name": affinity.header}}


def _clusters(traffic: Traffic, folder: str) -> Iterator[Json]:
    for track in traffic.tracks:
        yield _engines(traffic, track, folder)
    stable = track_cluster(traffic.stable)
    for track in traffic.tracks:
        if track.name != traffic.stable:
            yield _fallback(track, stable)


def _engines(traffic: Traffic, track: Track, folder: str) -> Json:
    name = track_cluster(track.name)
    cluster: Json = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _from_file(folder, endpoints_file(track.name))},
        "connect_timeout": "1s",
        "lb_policy": "MAGLEV" if traffic.affinity else "LEAST_REQUEST",
        "common_lb_config": {
            # Otherwise requests go to unhealthy engines once half of them are.
            "healthy_panic_threshold": {"value": 0},
        },
        # Otherwise an engine that left the endpoints is served as long as it looks healthy.
        "ignore_health_on_host_removal": True,
        "circuit_breakers": _breakers(track, retry_share=20.0, least_retries=3),
        "outlier_detection": _ejection(is_stable=track.name == traffic.stable),
        "typed_extension_protocol_options": _upstream_http(),
        # A node that vanished closes nothing, and no timeout would end its streams.
        "upstream_connection_options": {
            "tcp_keepalive": {
                "keepalive_time": 60,
                "keepalive_interval": 10,
                "keepalive_probes": 3,
            }
        },
    }
    if traffic.affinity:
        # A popular session spills over to other engines instead of queueing at one.
        cluster["common_lb_config"]["consistent_hashing_lb_config"] = {"hash_balance_factor": 125}
    return cluster


def _fallback(track: Track, stable: str) -> Json:
    return {
        "name": f"share-{track.name}",
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {
                "@type": f"{_TYPE}.extensions.clusters.aggregate.v3.ClusterConfig",
                "clusters": [track_cluster(track.name), stable],
            },
        },
        # All that a canary holds may have to be moved at once when it dies; requests are counted
        # in the clusters below this one, so only the least number has an effect here.
        "circuit_breakers": _breakers(
            track,
            retry_share=100.0,
            least_retries=track.capacity.requests + track.capacity.queued,
        ),
    }


def _breakers(track: Track, *, retry_share: float, least_retries: int) -> Json:
    # The defaults (1024 of each) are met by a few engines with long streams.
    capacity = track.capacity
    budget = {
        "budget_percent": {"value": retry_share},
        "min_retry_concurrency": least_retries,
    }
    limits = {
        "max_connections": capacity.requests,
        # Each of Envoy's threads may open one connection more, and a request that gets one but is
        # over this number is refused, though it could wait.
        "max_requests": capacity.requests + capacity.queued,
        "max_pending_requests": capacity.queued,
        "retry_budget": budget,
    }
    return {"thresholds": [limits]}


def _ejection(*, is_stable: bool) -> Json:
    return {
        # Gateway errors and failed connections only: 500s in a row may come from one client.
        "consecutive_gateway_failure": 5,
        "enforcing_consecutive_gateway_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_success_rate": 0,
        "interval": "1s",
        "base_ejection_time": "10s",
        # Of a canary all may go, as stable stands behind it; behind stable is nobody.
        "max_ejection_percent": 50 if is_stable else 100,
    }


def _upstream_http() -> Json:
    options = f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": options,
            # vLLM closes a connection that idles for 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE).
            "common_http_protocol_options": {"idle_timeout": "4s"},
            "explicit_http_config": {"http_protocol_options": {}},
        }
    }


def _assignment(track: Track) -> Json:
    # An engine that is not ready is left out and not marked as unhealthy: an aggregate cluster
    # would send a part of the share to stable, as large as the part of engines that still start.
    ready = [{"endpoint": _address(endpoint)} for endpoint in track.endpoints if endpoint.ready]
    return {"cluster_name": track_cluster(track.name), "endpoints": [{"lb_endpoints": ready}]}


def _address(endpoint: Endpoint) -> Json:
    return {"address": _socket(endpoint.host, endpoint.port)}
