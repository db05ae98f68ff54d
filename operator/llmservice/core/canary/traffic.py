"""What the routers are told: shares, and how much each revision is handed at most."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from llmservice.api.v1alpha1 import TrafficSpec
from llmservice.core.revisions import Revision, content_hash
from llmservice.core.router.desired import (
    TOTAL_WEIGHT,
    Affinity,
    Capacity,
    Limits,
    Track,
    Traffic,
    format_traffic,
)

_MAX_NUM_SEQS = "--max-num-seqs"
_DEFAULT_SEQUENCES = 1024
"""The largest default of vLLM (vllm/engine/arg_utils.py, 0.33): a bound that is too low would
waste the device, one that is too high is the engine's own."""
_QUEUE = 4
"""Waiting requests for each one that runs."""


def wanted_traffic(
    stable: str,
    shares: Mapping[str, int],
    pods: Mapping[str, int],
    revisions: Mapping[str, Revision],
    spec: TrafficSpec,
) -> Traffic:
    """The traffic, without the engines' addresses: each router finds those itself.

    Args:
        stable: revision that also answers for the other one.
        shares: percent by revision.
        pods: number by revision.
        revisions: to know how many requests an engine batches.
        spec: what the user says.
    """
    tracks = tuple(
        Track(
            name=hash_,
            weight=share * TOTAL_WEIGHT // 100,
            capacity=_capacity(revisions.get(hash_), pods.get(hash_, 1)),
        )
        for hash_, share in sorted(shares.items())
    )
    affinity = spec.session_affinity
    traffic = Traffic(
        version="",
        stable=stable,
        tracks=tracks,
        affinity=None if affinity is None else Affinity(affinity.header, affinity.cookie),
        track_header=spec.track_header,
        limits=Limits(body_bytes=spec.max_body_bytes),
    )
    return replace(traffic, version=content_hash(format_traffic(traffic)))


def _capacity(revision: Revision | None, pods: int) -> Capacity:
    requests = max(1, pods) * _sequences(revision)
    return Capacity(requests=requests, queued=_QUEUE * requests)


def _sequences(revision: Revision | None) -> int:
    """Requests that one engine of the revision batches."""
    arguments = revision.engine["args"] if revision is not None else []
    for flag, value in pairwise(arguments):
        if flag == _MAX_NUM_SEQS and value.isdigit():
            return max(1, int(value))
    return _DEFAULT_SEQUENCES
