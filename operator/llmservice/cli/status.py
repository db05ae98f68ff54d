"""``llmservice status``: how a service is, why, and what to do, in words; once or until it settles.

Everything shown comes from the resource's own status. Exit codes: 0 all shown services are ready,
1 one is not (or there is none), 3 the cluster cannot be reached.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.ports import Cluster, ClusterError, Gone, NotFound
from llmservice.adapters.resources import LLM_SERVICE
from llmservice.adapters.rest import RestCluster
from llmservice.core.observed import Manifest

EXIT_NOT_READY = 1
EXIT_UNREACHABLE = 3


def run(arguments: argparse.Namespace) -> int:
    """Show one service or all of a namespace; with ``--watch`` until ready or stalled."""
    try:
        return asyncio.run(_run(arguments))
    except KeyboardInterrupt:
        return EXIT_NOT_READY
    except (ClusterError, aiohttp.ClientError, OSError) as error:
        print(f"the cluster cannot be reached: {error}", file=sys.stderr)
        return EXIT_UNREACHABLE


async def _run(arguments: argparse.Namespace) -> int:
    kubeconfig = Path(arguments.kubeconfig) if arguments.kubeconfig else None
    cluster = RestCluster(await Connection.open(Credentials(kubeconfig, arguments.context)))
    try:
        if arguments.watch and arguments.name:
            return await _watch(cluster, arguments)
        return await _show(cluster, arguments)
    finally:
        await cluster.close()


async def _show(cluster: Cluster, arguments: argparse.Namespace) -> int:
    namespace = arguments.namespace
    try:
        if arguments.name:
            services = [await cluster.get(LLM_SERVICE, namespace, arguments.name)]
        else:
            services = (await cluster.list_page(LLM_SERVICE, namespace)).items
    except NotFound as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_READY
    if arguments.output == "json":
        summaries = [summarise(service) for service in services]
        print(json.dumps(summaries[0] if arguments.name else summaries, indent=2))
    else:
        print("\n\n".join("\n".join(describe(service)) for service in services))
    ready = bool(services) and all(is_ready(service) for service in services)
    return 0 if ready else EXIT_NOT_READY


async def _watch(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """A line for each change, until the service is ready or needs a person."""
    shown = ""
    while True:
        page = await cluster.list_page(LLM_SERVICE, arguments.namespace)
        named = [s for s in page.items if s["metadata"]["name"] == arguments.name]
        if not named:
            print(f"no LLMService {arguments.namespace}/{arguments.name}", file=sys.stderr)
            return EXIT_NOT_READY
        shown = _progress(named[0], shown)
        if (code := settled(named[0])) is not None:
            return code
        try:
            async for event in cluster.watch(
                LLM_SERVICE, arguments.namespace, resource_version=page.resource_version
            ):
                if event.object.get("metadata", {}).get("name") != arguments.name:
                    continue
                shown = _progress(event.object, shown)
                if (code := settled(event.object)) is not None:
                    return code
        except Gone:
            continue  # the watch expired: list again


def _progress(service: Manifest, shown: str) -> str:
    status = service.get("status", {})
    ready = conditions(service).get("Ready", {})
    line = (
        f"{status.get('phase', 'Pending'):<10} {ready.get('message', 'not seen by the operator')}"
    )
    if line != shown:
        print(line, flush=True)
    return line


def conditions(service: Manifest) -> dict[str, dict[str, Any]]:
    """Conditions by type."""
    return {c["type"]: c for c in service.get("status", {}).get("conditions", ())}


def is_current(service: Manifest) -> bool:
    """Whether the status is about the newest spec."""
    seen = service.get("status", {}).get("observedGeneration")
    return bool(seen == service["metadata"].get("generation"))


def is_ready(service: Manifest) -> bool:
    """Ready, about the newest spec, with nothing under way."""
    by_type = conditions(service)
    ready = by_type.get("Ready", {}).get("status") == "True"
    return ready and is_current(service) and "Reconciling" not in by_type


def settled(service: Manifest) -> int | None:
    """Exit code once waiting makes no sense any more."""
    if is_ready(service):
        return 0
    stalled = "Stalled" in conditions(service) and is_current(service)
    return EXIT_NOT_READY if stalled else None


def summarise(service: Manifest) -> dict[str, Any]:
    """What ``-o json`` prints of one service."""
    status = service.get("status", {})
    return {
        "name": service["metadata"]["name"],
        "namespace": service["metadata"]["namespace"],
        "ready": is_ready(service),
        "phase": status.get("phase", "Pending"),
        **{
            key: status[key]
            for key in ("url", "revisions", "stableRevision", "updatedRevision", "engine")
            if key in status
        },
        "conditions": [
            {key: c[key] for key in ("type", "status", "reason", "message")}
            for c in status.get("conditions", ())
        ],
    }


def describe(service: Manifest) -> Iterator[str]:
    """One service in words, a line each."""
    status, metadata = service.get("status", {}), service["metadata"]
    yield f"{metadata['namespace']}/{metadata['name']}: {status.get('phase', 'Pending')}"
    if not is_current(service):
        yield "  the operator has not looked at the newest spec yet"
    for condition in status.get("conditions", ()):
        yield (
            f"  {condition['type']}={condition['status']} ({condition['reason']}):"
            f" {condition['message']}"
        )
    for revision in status.get("revisions", ()):
        yield (
            f"  revision {revision['number']} ({revision['hash']}):"
            f" {revision['readyReplicas']} of {revision['replicas']} pods ready"
        )
    if "engine" in status:
        yield f"  engine {status['engine']['image']} (vLLM {status['engine']['version']})"
        yield f"  vllm serve {' '.join(status['engine']['arguments'])}"
    if "url" in status:
        yield f"  {status['url']}"
