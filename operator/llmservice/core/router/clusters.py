"""Envoy's clusters: the engines of each track, who answers in their place, and their queues.

A part of :mod:`llmservice.core.router.envoy`, which says how they are used.
"""

from collections.abc import Iterator
from typing import Any

from llmservice.core.router.desired import Endpoint, Track, Traffic, handed_limit, waiting_limit

Json = dict[str, Any]

BYPASS = "router.bypass"
"""Runtime key: the percentage of requests that bypass the gate, all or none."""
ENDPOINTS = "eds-"
"""How the name of each track's file of engines begins."""
ENGINES = "engines"
"""The listener behind the gates."""
HOLD_SOCKET = "hold.sock"
"""In the folder: where the agent holds requests."""
TYPE = "type.googleapis.com/envoy"

_HOLD = "hold"
_ALL_IF_ANY = 1_000_000
_NO_LIMITS = dict.fromkeys(
    ("max_connections", "max_requests", "max_pending_requests"), (1 << 32) - 1
)


def endpoints_file(track: str) -> str:
    """The file with a track's engines: Envoy reads one cluster's endpoints from each file."""
    return f"{ENDPOINTS}{track}.json"


def track_cluster(track: str) -> str:
    """The cluster with the engines of a track."""
    return f"track-{track}"


def gate_cluster(track: str) -> str:
    """Where a track's requests wait."""
    return f"gate-{track}"


def share_cluster(traffic: Traffic, track: str) -> str:
    """Where a route sends the share of a track."""
    is_alone = track == traffic.stable and not traffic.holds
    return track_cluster(track) if is_alone else f"share-{track}"


def from_file(folder: str, name: str) -> Json:
    """Where Envoy finds a part of its configuration."""
    # Only a rename is noticed, a rewrite in place never; and a folder that a volume swaps as a
    # whole (a symlink of Kubernetes) only when the folder is watched and not the file.
    source = {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}
    return {"path_config_source": source, "resource_api_version": "V3"}


def socket_address(address: str, port: int) -> Json:
    """An IP address and a port as Envoy names them."""
    return {"socket_address": {"address": address, "port_value": port}}


def build_clusters(traffic: Traffic, folder: str) -> Iterator[Json]:
    """All clusters of a traffic; their engines are in files of the folder."""
    for track in traffic.tracks:
        yield _engines(traffic, track, folder)
    for track in traffic.tracks:
        if share_cluster(traffic, track.name) != track_cluster(track.name):
            yield _fallback(traffic, track)
        if traffic.is_gated:
            yield _gate(track)
    if traffic.holds:
        yield _hold(folder)


def _hold(folder: str) -> Json:
    endpoint = {"address": {"pipe": {"path": f"{folder}/{HOLD_SOCKET}"}}}
    return {
        "name": _HOLD,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": _HOLD,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
    }


def _gate(track: Track) -> Json:
    """The queue of a track. The same for each traffic: a changed cluster would begin a new one."""
    name = gate_cluster(track.name)
    endpoint = {"address": {"envoy_internal_address": {"server_listener_name": ENGINES}}}
    return {
        "name": name,
        "type": "STATIC",
        # A connection that fails would take all who wait with it.
        "connect_timeout": "60s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        # Those of build_runtime() are in force.
        "circuit_breakers": {"thresholds": [_NO_LIMITS]},
        # A connection that stays is used again though the limit has fallen below it.
        "typed_extension_protocol_options": _upstream_http({"max_connection_duration": "1s"}),
    }


def build_runtime(traffic: Traffic) -> Json:
    """The limits of the gates and their bypass, which change without a new definition."""
    layer: Json = {BYPASS: 100 if traffic.bypass else 0} if traffic.can_bypass else {}
    for track in traffic.tracks if traffic.is_gated else ():
        limit = handed_limit(traffic, track)
        if limit is not None:
            breakers = f"circuit_breakers.{gate_cluster(track.name)}.default"
            layer[f"{breakers}.max_connections"] = limit
            layer[f"{breakers}.max_pending_requests"] = waiting_limit(traffic, track)
    return {
        "@type": f"{TYPE}.service.runtime.v3.Runtime",
        "name": ENGINES,
        "layer": layer,
    }


def _engines(traffic: Traffic, track: Track, folder: str) -> Json:
    name = track_cluster(track.name)
    cluster: Json = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": from_file(folder, endpoints_file(track.name))},
        "connect_timeout": "1s",
        "lb_policy": "MAGLEV" if traffic.affinity else "LEAST_REQUEST",
        "common_lb_config": {
            # Otherwise requests go to unhealthy engines once half of them are.
            "healthy_panic_threshold": {"value": 0},
        },
        # Otherwise an engine that left the endpoints is served as long as it looks healthy.
        "ignore_health_on_host_removal": True,
        "circuit_breakers": _breakers(
            track, retry_share=20.0, least_retries=3, gated=traffic.is_gated
        ),
        "outlier_detection": _ejection(is_stable=track.name == traffic.stable),
        # vLLM closes a connection that idles for 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE).
        "typed_extension_protocol_options": _upstream_http({"idle_timeout": "4s"}),
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
    elif traffic.is_gated:
        cluster["load_balancing_policy"] = {"policies": [_least_requests()]}
    return cluster


def _least_requests() -> Json:
    # The better of two picked at random would be handed more than its part now and then.
    policy = f"{TYPE}.extensions.load_balancing_policies.least_request.v3.LeastRequest"
    config = {"@type": policy, "selection_method": "FULL_SCAN"}
    name = "envoy.load_balancing_policies.least_request"
    return {"typed_extension_config": {"name": name, "typed_config": config}}


def _fallback(traffic: Traffic, track: Track) -> Json:
    # In this order, each but once.
    clusters = dict.fromkeys((track_cluster(track.name), track_cluster(traffic.stable)))
    capacity, is_stable = track.capacity, track.name == traffic.stable
    least = capacity.requests // 5 + 3 if is_stable else capacity.requests + capacity.queued
    return {
        "name": f"share-{track.name}",
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {
                "@type": f"{TYPE}.extensions.clusters.aggregate.v3.ClusterConfig",
                "clusters": [*clusters, *([_HOLD] if traffic.holds else [])],
            },
        },
        # All that a canary holds may have to be moved at once when it dies; requests are counted
        # in the clusters below this one, so only the least number has an effect here.
        "circuit_breakers": _breakers(track, retry_share=100.0, least_retries=least),
    }


def _breakers(track: Track, *, retry_share: float, least_retries: int, gated: bool = False) -> Json:
    # The defaults (1024 of each) are met by a few engines with long streams.
    capacity = track.capacity
    budget = {
        "budget_percent": {"value": retry_share},
        "min_retry_concurrency": least_retries,
    }
    if gated:  # Whoever waits here has been given an engine already.
        return {"thresholds": [{**_NO_LIMITS, "retry_budget": budget}]}
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


def _upstream_http(common: Json) -> Json:
    options = f"{TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": options,
            "common_http_protocol_options": common,
            "explicit_http_config": {"http_protocol_options": {}},
        }
    }


def build_assignment(traffic: Traffic, track: Track) -> Json:
    """The engines of a track."""
    # An engine that is not ready is left out and not marked as unhealthy: an aggregate cluster
    # would send a part of the share to stable, as large as the part of engines that still start.
    ready = [{"endpoint": _address(endpoint)} for endpoint in track.endpoints if endpoint.ready]
    found: Json = {
        "cluster_name": track_cluster(track.name),
        "endpoints": [{"lb_endpoints": ready}],
    }
    if traffic.holds and track.name == traffic.stable:
        # A part of its share would be held as soon as some of its engines are ejected.
        found["policy"] = {"overprovisioning_factor": _ALL_IF_ANY}
    return found


def _address(endpoint: Endpoint) -> Json:
    return {"address": socket_address(endpoint.host, endpoint.port)}
