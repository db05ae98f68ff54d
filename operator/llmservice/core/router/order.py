"""In which order files are to be replaced, so that no request meets half a change.

Envoy accepts a route to a cluster that is not there and answers 503 to its share. So what routes
will need comes first, then the routes, then what only the old routes needed goes. Each step begins
once Envoy has taken the one before; files on disk are the only memory, so a writer that was killed
between two steps just plans again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from llmservice.core.router.clusters import ENDPOINTS, endpoints_file, track_cluster
from llmservice.core.router.desired import Traffic
from llmservice.core.router.envoy import (
    CLUSTERS,
    ROUTES,
    RUNTIME,
    build_traffic_files,
    own_metadata,
)


class Until(StrEnum):
    """What must be seen in Envoy before the next step."""

    Clusters = "Clusters"
    """Exactly the clusters of the step's file are in use, with as many engines as listed."""
    Version = "Version"
    """The routes have the version of the traffic."""


@dataclass(frozen=True, slots=True)
class Step:
    """Files that may be replaced together, in this order.

    An equal file that Envoy has taken need not be written; one that it has not taken must be, or
    it would never look at it again.
    """

    files: Mapping[str, str]
    """Content by name."""
    until: Until
    clusters: Mapping[str, str | None] = field(default_factory=dict)
    """What ``Until.Clusters`` is about: digests of definitions by name."""
    engines: Mapping[str, int] = field(default_factory=dict)
    """And how many are in each cluster, by its name."""
    removed: tuple[str, ...] = ()
    """Files to delete once that is seen."""


def plan_steps(traffic: Traffic, folder: str, on_disk: Mapping[str, str]) -> tuple[Step, ...]:
    """The three steps from the files that lie in the folder to those of ``traffic``.

    Args:
        traffic: what is wanted, found valid.
        folder: where the files lie, as Envoy sees it.
        on_disk: content of the files there, by name.
    """
    wanted = build_traffic_files(traffic, folder)
    # A track that loses all its weight keeps its engines until the routes have left it.
    left = {endpoints_file(track.name) for track in traffic.tracks if not track.weight}
    left &= on_disk.keys() - {endpoints_file(traffic.stable)}
    later = {*left, CLUSTERS, RUNTIME, ROUTES}
    first = {name: text for name, text in wanted.items() if name not in later}
    first[CLUSTERS] = _union(wanted[CLUSTERS], on_disk.get(CLUSTERS))
    last = {name: wanted[name] for name in sorted(left)} | {CLUSTERS: wanted[CLUSTERS]}
    unused = (name for name in on_disk if name.startswith(ENDPOINTS) and name not in wanted)
    engines = {track_cluster(track.name): track.ready for track in traffic.tracks}
    known = {
        track_cluster(track.name) for track in traffic.tracks if endpoints_file(track.name) in first
    }
    return (
        Step(
            _changed(first, on_disk),
            Until.Clusters,
            cluster_digests(first[CLUSTERS]),
            {name: engines[name] for name in sorted(known)},
        ),
        # More is handed on only once the engines are known that it is for.
        Step({RUNTIME: wanted[RUNTIME], ROUTES: wanted[ROUTES]}, Until.Version),
        Step(
            _changed(last, on_disk),
            Until.Clusters,
            cluster_digests(last[CLUSTERS]),
            engines,
            removed=tuple(sorted(unused)),
        ),
    )


def _changed(files: Mapping[str, str], on_disk: Mapping[str, str]) -> dict[str, str]:
    """Clusters stay among them: an equal file may be one that Envoy refused."""
    return {
        name: text for name, text in files.items() if name == CLUSTERS or on_disk.get(name) != text
    }


def cluster_digests(text: str) -> dict[str, str | None]:
    """The clusters of a file: what tells their definitions apart, by name."""
    return {resource["name"]: own_metadata(resource, "digest") for resource in _resources(text)}


def _union(wanted: str, on_disk: str | None) -> str:
    kept = cluster_digests(wanted).keys()
    old = _resources(on_disk) if on_disk else []
    leaving = [resource for resource in old if resource["name"] not in kept]
    if not leaving:
        return wanted
    return json.dumps({"resources": [*_resources(wanted), *leaving]}, indent=1) + "\n"


def _resources(text: str) -> list[dict[str, Any]]:
    """The clusters of a file; what is damaged on disk has none that must be kept."""
    try:
        return [one for one in json.loads(text)["resources"] if isinstance(one["name"], str)]
    except (ValueError, LookupError, TypeError):
        return []
