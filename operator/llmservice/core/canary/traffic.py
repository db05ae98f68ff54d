"""What the routers are told: shares, and how much each revision is handed at most."""

from collections.abc import Mapping
from dataclasses import replace

from llmservice.api.v1alpha1 import LLMServiceSpec, QueueSpec
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

_DEFAULT_SEQUENCES = 1024
"""The largest default of vLLM (vllm/engine/arg_utils.py, 0.33): a bound that is too low would
waste the device, one that is too high is the engine's own."""
_SPARE = 10
_HOLD_SECONDS = 600
"""A model of tens of gigabytes loads in that time; most clients give up earlier."""
_QUEUE = 4
"""Waiting requests for each one that runs."""


def wanted_traffic(
    stable: str,
    shares: Mapping[str, int],
    pods: Mapping[str, int],
    revisions: Mapping[str, Revision],
    spec: LLMServiceSpec,
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
            per_engine=_per_engine(revisions.get(hash_), spec.traffic.queue),
        )
        for hash_, share in sorted(shares.items())
    )
    said = spec.traffic
    affinity = said.session_affinity
    traffic = Traffic(
        version="",
        stable=stable,
        tracks=tracks,
        affinity=None if affinity is None else Affinity(affinity.header, affinity.cookie),
        track_header=said.track_header,
        limits=Limits(body_bytes=said.max_body_bytes),
        routers=said.router_replicas,
        max_waiting=said.queue.max_waiting,
        max_wait_seconds=said.queue.max_wait_seconds,
        hold_seconds=_hold_seconds(spec),
    )
    return replace(traffic, version=content_hash(format_traffic(traffic)))


def _hold_seconds(spec: LLMServiceSpec) -> int:
    sleeps = spec.autoscaling is not None and spec.autoscaling.min_replicas == 0
    given = spec.traffic.queue.hold_seconds
    return given if given is not None else _HOLD_SECONDS if sleeps else 0


def _per_engine(revision: Revision | None, queue: QueueSpec) -> int | None:
    """What an engine batches and a little more, so that it never waits for the next request."""
    sequences = revision.sequences if revision else None
    if queue.max_per_engine is not None or sequences is None:
        return queue.max_per_engine
    return sequences + max(1, sequences // _SPARE)


def _capacity(revision: Revision | None, pods: int) -> Capacity:
    sequences = (revision.sequences if revision else None) or _DEFAULT_SEQUENCES
    requests = max(1, pods) * sequences
    return Capacity(requests=requests, queued=_QUEUE * requests)
