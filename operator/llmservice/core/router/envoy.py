"""Envoy's configuration as JSON files: bootstrap and listener once, the rest for each traffic.

JSON and not YAML: a service named ``n`` must not become false. Every rule below that is not
obvious was found by breaking it on Envoy 1.40; what it prevents stands beside it.

Two kinds of clusters: ``track-NAME`` has the engines of a revision, and ``share-NAME`` is what a
route sends a canary's share to: [that track, the stable one]. A request that the canary cannot
take is answered by stable, while the failure is counted (``core/router/agent.py``). The share of
stable itself never falls on a canary: it is sized for its own share and not yet trusted.

Where a track says how much an engine is handed, its requests pass Envoy twice. The routes for
clients lead to ``gate-TRACK``, whose one endpoint is a second listener inside this Envoy, and
the routes there choose an engine; but while engines have plenty of room, requests bypass it. A
request is one connection to that endpoint, so the limit of
connections is what all engines are handed, and who waits for a connection waits in one queue, in
order, for whichever engine has room first (docs/decisions/0009). Where requests are to be held
while there is no engine at all, shares end at the agent, which keeps the first in line until there
is one: [track, stable, ``hold``].
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from llmservice.core.router.clusters import (
    BYPASS,
    ENGINES,
    TYPE,
    Json,
    build_assignment,
    build_clusters,
    build_runtime,
    endpoints_file,
    from_file,
    gate_cluster,
    share_cluster,
    socket_address,
    track_cluster,
)
from llmservice.core.router.desired import Affinity, Limits, Track, Traffic

BOOTSTRAP, LISTENERS, CLUSTERS, ROUTES = "bootstrap.json", "lds.json", "cds.json", "rds.json"
RUNTIME = "rtds.json"
"""What changes too often for a cluster's definition: a new one would drop its queue."""
READY_PATH = "/router/ready"
"""Answers 200 until a drain begins."""
TRACK_HEADER = "x-llm-track"
GATE_HEADER = "x-llm-gate"
"""Set by the routes for clients, never by clients: the cluster behind the gate."""
START_HEADER = "x-request-start"
"""When a request came, in seconds since 1970, for who holds it."""
NO_RETRY_HEADER = "x-envoy-ratelimited"
"""Of an answer that Envoy must not try to better."""
NUDGE = "nudge"
NUDGE_PATH = "/router/nudge/"
"""With a track's name behind it: a request that no engine sees (adapters/route_files.py)."""
RETRY_AFTER_SECONDS = 5
"""When a client that found the queue full may try again."""
INGRESS = STAT_PREFIX = "ingress"
METADATA = "llmservice"

_HTTP = f"{TYPE}.extensions.filters.http"
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
    memory_bytes: int = 900 << 20
    """Heap above which requests are refused, and the largest ones dropped if it rises on."""


def build_static_files(settings: RouterSettings) -> dict[str, str]:
    """The files that never change while a router runs."""
    return {
        BOOTSTRAP: _dump(_bootstrap(settings)),
        LISTENERS: _discovery(
            [_listener(settings), _engines_listener(settings)], "Listener", "config.listener.v3"
        ),
    }


def build_traffic_files(traffic: Traffic, folder: str) -> dict[str, str]:
    """The files of a traffic that was found valid; equal traffic gives equal bytes.

    Args:
        traffic: what is wanted.
        folder: where the files will lie, as Envoy sees it.
    """
    files = {
        endpoints_file(track.name): _discovery(
            [build_assignment(traffic, track)], "ClusterLoadAssignment", "config.endpoint.v3"
        )
        for track in traffic.tracks
    }
    files[RUNTIME] = _dump({"resources": [build_runtime(traffic)]})
    clusters = [_signed(cluster) for cluster in build_clusters(traffic, folder)]
    files[CLUSTERS] = _discovery(clusters, "Cluster", "config.cluster.v3")
    files[ROUTES] = _discovery([_routes(traffic)], "RouteConfiguration", "config.route.v3")
    return files


def end_bypass(runtime: str) -> str:
    """The runtime file with nothing else changed; itself if it is damaged or has no such key."""
    try:
        document = json.loads(runtime)
        layer = document["resources"][0]["layer"]
        if BYPASS in layer:
            layer[BYPASS] = 0
            return _dump(document)
    except (ValueError, LookupError, TypeError):
        pass
    return runtime


def _dump(document: Json) -> str:
    return json.dumps(document, indent=1) + "\n"


def _discovery(resources: list[Json], kind: str, package: str) -> str:
    typed = [{"@type": f"{TYPE}.{package}.{kind}", **resource} for resource in resources]
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


def _bootstrap(settings: RouterSettings) -> Json:
    connections = {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {
            "@type": f"{TYPE}.extensions.resource_monitors.downstream_connections.v3"
            ".DownstreamConnectionsConfig",
            "max_active_downstream_connections": settings.connections,
        },
    }
    return {
        "node": {"id": "router", "cluster": "llmservice"},
        # The admin port can stop and read everything: only the pod itself reaches it.
        "admin": {"address": socket_address("127.0.0.1", settings.admin_port)},
        "dynamic_resources": {
            "lds_config": from_file(settings.folder, LISTENERS),
            "cds_config": from_file(settings.folder, CLUSTERS),
        },
        "overload_manager": _overload(settings, connections),
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {
                    "@type": f"{TYPE}.extensions.bootstrap.internal_listener.v3.InternalListener"
                },
            }
        ],
        "layered_runtime": {
            "layers": [
                {
                    "name": ENGINES,
                    "rtds_layer": {
                        "name": ENGINES,
                        "rtds_config": from_file(settings.folder, RUNTIME),
                    },
                }
            ]
        },
    }


def _overload(settings: RouterSettings, connections: Json) -> Json:
    heap = "envoy.resource_monitors.fixed_heap"
    config = f"{TYPE}.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"

    def above(share: float) -> Json:
        return {"name": heap, "threshold": {"value": share}}

    return {
        "refresh_interval": "0.1s",
        "resource_monitors": [
            connections,
            {
                "name": heap,
                "typed_config": {
                    "@type": config,
                    "max_heap_size_bytes": settings.memory_bytes,
                },
            },
        ],
        # Bodies are kept while their requests wait, so it takes few long ones to fill the memory.
        "actions": [
            {
                "name": "envoy.overload_actions.stop_accepting_requests",
                "triggers": [above(0.8)],
            },
        ],
        "loadshed_points": [
            {
                # Those that were accepted before may still send their bodies.
                "name": "envoy.load_shed_points.http1_server_abort_dispatch",
                "triggers": [above(0.9)],
            },
        ],
    }


def _listener(settings: RouterSettings) -> Json:
    return {
        "name": INGRESS,
        "address": socket_address(settings.address, settings.port),
        # What a drain is about: the other one takes requests for as long as any of these wait.
        "traffic_direction": "INBOUND",
        "filter_chains": _chains(_manager(settings) | _for_clients()),
    }


def _engines_listener(settings: RouterSettings) -> Json:
    manager = _manager(settings) | {
        "stat_prefix": ENGINES,
        "http_filters": [_buffer_filter(), _router_filter()],
    }
    return {
        "name": ENGINES,
        "internal_listener": {},
        # Whoever has waited is not refused in the end.
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "filter_chains": _chains(manager),
    }


def _chains(manager: Json) -> list[Json]:
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return [{"filters": [network]}]


def _manager(settings: RouterSettings) -> Json:
    return {
        "@type": f"{TYPE}.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "rds": {
            "route_config_name": "routes",
            "config_source": from_file(settings.folder, ROUTES),
        },
        # A prefill may be silent for minutes and a stream may last for hours.
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "common_http_protocol_options": {"max_headers_count": 110},
        "max_request_headers_kb": 64,
        # Nobody is internal: a client in the cluster is a client, and x-envoy-* headers of an
        # internal one would set retries and time limits. An empty list would mean all private
        # addresses, so this is one that no client has.
        "internal_address_config": {
            "cidr_ranges": [{"address_prefix": "0.0.0.0", "prefix_len": 32}]  # noqa: S104
        },
    }


def _for_clients() -> Json:
    return {
        "stat_prefix": STAT_PREFIX,
        # Slow headers are no prefill: they only hold a connection.
        "request_headers_timeout": "10s",
        # Less than behind the gate, which sees what is added here.
        "common_http_protocol_options": {"max_headers_count": 100},
        "max_request_headers_kb": 60,
        "use_remote_address": True,
        "early_header_mutation_extensions": [_without_own_headers()],
        "normalize_path": True,
        "merge_slashes": True,
        "local_reply_config": {"mappers": [_overflow()]},
        "http_filters": _filters(),
    }


def _overflow() -> Json:
    """What a client is told when too many wait already."""
    error = {
        "message": "Too many requests are waiting for this model. Try again later.",
        "type": "service_unavailable",
        "param": None,
        "code": "queue_full",
    }
    aborted = {"op": "EQ", "value": {"default_value": 500, "runtime_key": "router.aborted"}}
    reasons = [
        {"response_flag_filter": {"flags": ["UO", "OM"]}},
        # What becomes of a body for which there is no memory.
        {"status_code_filter": {"comparison": aborted}},
    ]
    return {
        "filter": {"or_filter": {"filters": reasons}},
        "status_code": 503,
        "headers_to_add": [_set("retry-after", str(RETRY_AFTER_SECONDS))],
        "body_format_override": {"json_format": {"error": error}},
    }


def _without_own_headers() -> Json:
    extension = f"{TYPE}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    matched = {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-", "ignore_case": True}}}
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {"@type": extension, "mutations": [matched, {"remove": GATE_HEADER}]},
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
        _buffer_filter(),
        _router_filter(),
    ]


def _buffer_filter() -> Json:
    # Off here and on in the routes, so that a changed limit needs no new listener.
    return {"name": _BUFFER, "disabled": True, "typed_config": _buffer(Limits())}


def _router_filter() -> Json:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_HTTP}.router.v3.Router"},
    }


def _buffer(limits: Limits) -> Json:
    return {"@type": f"{_HTTP}.buffer.v3.Buffer", "max_request_bytes": limits.body_bytes}


def _routes(traffic: Traffic) -> Json:
    host = {
        "name": "service",
        "domains": ["*"],
        "routes": [
            *_behind_gates(traffic),
            *_nudges(traffic),
            *_bypass(traffic),
            *_chosen_tracks(traffic),
            _split(traffic),
        ],
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


def _behind_gates(traffic: Traffic) -> Iterator[Json]:
    """Routes of the second listener; a client's request has no such header."""
    if not traffic.is_gated:
        return
    yield {"match": _where(GATE_HEADER, NUDGE), "direct_response": {"status": 204}}
    targets = {track_cluster(track.name) for track in traffic.tracks}
    targets |= {share_cluster(traffic, track.name) for track in traffic.tracks}
    for cluster in sorted(targets):
        yield _from_gate(traffic, {"string_match": {"exact": cluster}}, cluster)
    # Who has waited while its track went is answered by the one that is left.
    yield _from_gate(traffic, {"present_match": True}, track_cluster(traffic.stable))


def _from_gate(traffic: Traffic, value: Json, cluster: str) -> Json:
    return {
        "match": {"prefix": "/", "headers": [{"name": GATE_HEADER, **value}]},
        "request_headers_to_remove": [GATE_HEADER],
        **_to_engines(traffic, cluster),
    }


def _to_engines(traffic: Traffic, cluster: str) -> Json:
    action = _action(traffic, {"cluster": cluster})
    if cluster == share_cluster(traffic, traffic.stable):
        # The next in line is who holds requests, and not another engine.
        del action["retry_policy"]["retry_priority"]
    return {"route": action, "response_headers_to_remove": [NO_RETRY_HEADER]}


def _bypass(traffic: Traffic) -> Iterator[Json]:
    """The route for clients that do not pass the gate: as from behind it."""
    if not traffic.can_bypass:
        return
    turned_on = {"runtime_key": BYPASS, "default_value": {"numerator": 0}}
    yield {
        "match": {"prefix": "/", "runtime_fraction": turned_on},
        "request_headers_to_add": _time_of_arrival(traffic),
        **_to_engines(traffic, share_cluster(traffic, traffic.stable)),
    }


def _where(header: str, value: str) -> Json:
    return {"prefix": "/", "headers": [{"name": header, "string_match": {"exact": value}}]}


def _nudges(traffic: Traffic) -> Iterator[Json]:
    """Routes that make a queue look whether its limit has risen."""
    if not traffic.is_gated:
        return
    for track in traffic.tracks:
        yield {
            "match": {"path": f"{NUDGE_PATH}{track.name}"},
            "route": {"cluster": gate_cluster(track.name), "timeout": "0s"},
            "request_headers_to_add": [_set(GATE_HEADER, NUDGE)],
        }


def _chosen_tracks(traffic: Traffic) -> Iterator[Json]:
    """Routes for clients that name a track; it answers or fails by itself, so it can be tried."""
    if not traffic.track_header:
        return
    for track in traffic.tracks:
        cluster = track_cluster(track.name)
        match = _where(TRACK_HEADER, track.name)
        if traffic.is_gated:
            action = _action(traffic, {"cluster": gate_cluster(track.name)}, retries=False)
            yield {"match": match, "route": action, **_to_gate(traffic, cluster)}
        else:
            yield {"match": match, "route": _action(traffic, {"cluster": cluster})}


def _split(traffic: Traffic) -> Json:
    # Envoy takes a session's hash modulo the total and walks the list. Stable is last: a rising
    # weight extends the canary's range at its end, and no session that is in it leaves it.
    shares = sorted(
        (track for track in traffic.tracks if track.weight),
        key=lambda track: track.name == traffic.stable,
    )
    weighted: Json = {"clusters": [_share(traffic, track) for track in shares]}
    if traffic.affinity is not None:
        weighted["use_hash_policy"] = True
    # Behind a gate a request is tried again, and does not wait again.
    action = _action(traffic, {"weighted_clusters": weighted}, retries=not traffic.is_gated)
    return {"match": {"prefix": "/"}, "route": action}


def _share(traffic: Traffic, track: Track) -> Json:
    cluster = share_cluster(traffic, track.name)
    if not traffic.is_gated:
        return {"name": cluster, "weight": track.weight}
    return {
        "name": gate_cluster(track.name),
        "weight": track.weight,
        **_to_gate(traffic, cluster),
    }


def _to_gate(traffic: Traffic, cluster: str) -> Json:
    added = [_set(GATE_HEADER, cluster), *_time_of_arrival(traffic)]
    return {"request_headers_to_add": added}


def _time_of_arrival(traffic: Traffic) -> list[Json]:
    return [_set(START_HEADER, "%START_TIME(%s.%3f)%")] if traffic.holds else []


def _set(header: str, value: str) -> Json:
    added = {"key": header, "value": value}
    return {"header": added, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _action(traffic: Traffic, target: Json, *, retries: bool = True) -> Json:
    action = {**target, "timeout": "0s"}  # the default of 15 s would cut almost every answer
    if retries:
        action["retry_policy"] = _retries()
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
                "@type": f"{TYPE}.extensions.retry.priority.previous_priorities.v3"
                ".PreviousPrioritiesConfig",
                "update_frequency": 1,
            },
        },
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": f"{TYPE}.extensions.retry.host.previous_hosts.v3"
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
