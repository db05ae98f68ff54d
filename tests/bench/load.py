"""What the benchmark puts into the cluster: services, and their children without an operator.

:func:`write_children` is the API server's own ceiling: the very objects that the operator would
write, from a client that does nothing else.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.resources import CHILDREN, LLM_SERVICE
from llmservice.adapters.rest import RestCluster
from llmservice.api import names
from llmservice.core.config import Config
from llmservice.core.observed import Manifest, Observed, ServiceKey, ServiceObject
from llmservice.core.reconcile import desired_children
from llmservice.core.validation import InvalidSpec

_PARALLEL = 32


def service(name: str) -> Manifest:
    """A small service whose faked pod starts anywhere at once."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"id": "/models/tiny"},
            "engine": {
                "image": "localhost/llmservice/vllm-cpu:v0.32.0",
                "maxModelLen": 1024,
                "maxNumSeqs": 16,
                "kvCacheMemoryBytes": "16Mi",
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            },
            "accelerator": {"resource": "cpu"},
            "replicas": 1,
        },
    }


def create_services(kubeconfig: Path, namespace: str, service_names: Iterable[str]) -> None:
    """Create services, many at a time."""

    async def create(cluster: RestCluster, name: str) -> None:
        await cluster.create(LLM_SERVICE, namespace, service(name))

    asyncio.run(_each(kubeconfig, service_names, create))


def write_children(kubeconfig: Path, namespace: str) -> int:
    """Write the children of all services of a namespace, many at a time; returns how many."""

    async def write(cluster: RestCluster, child: Manifest) -> None:
        await cluster.apply(
            CHILDREN[child["kind"]],
            namespace,
            child,
            field_manager=names.CHILD_MANAGER,
            force=False,
        )

    children = _all_children(kubeconfig, namespace)
    asyncio.run(_each(kubeconfig, children, write))
    return len(children)


def expected_children(kubeconfig: Path, namespace: str) -> int:
    """How many children the services of a namespace will have."""
    return len(_all_children(kubeconfig, namespace))


def live_children(kubeconfig: Path, namespace: str, name: str) -> list[Manifest]:
    """The children of one service."""
    lives = asyncio.run(_list_services(kubeconfig, namespace))
    return next(children_of(live) for live in lives if live["metadata"]["name"] == name)


def _all_children(kubeconfig: Path, namespace: str) -> list[Manifest]:
    lives = asyncio.run(_list_services(kubeconfig, namespace))
    return [child for live in lives for child in children_of(live)]


def children_of(live: Manifest) -> list[Manifest]:
    """What the operator would apply for a live service."""
    metadata = live["metadata"]
    wanted = desired_children(
        Observed(
            service=ServiceObject(
                key=ServiceKey(metadata["namespace"], metadata["name"]),
                uid=metadata["uid"],
                generation=1,
                spec=live["spec"],
                status={},
            ),
            now=datetime.now(UTC),  # noqa: TID251 - a benchmark has no caller to tell the time
        ),
        Config(),
    )
    assert not isinstance(wanted, InvalidSpec)
    return wanted


def not_ready(kubeconfig: Path, namespace: str) -> list[Manifest]:
    """The services of a namespace that are not Ready."""
    lives = asyncio.run(_list_services(kubeconfig, namespace))
    return [live for live in lives if not _is_ready(live)]


def _is_ready(live: Manifest) -> bool:
    conditions = live.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


async def _list_services(kubeconfig: Path, namespace: str) -> list[Manifest]:
    items: list[Manifest] = []
    async with _connected(kubeconfig) as cluster:
        token = None
        while True:
            page = await cluster.list_page(LLM_SERVICE, namespace, continue_token=token)
            items += page.items
            token = page.continue_token
            if token is None:
                return items


async def _each(
    kubeconfig: Path,
    things: Iterable[Any],
    act: Callable[[RestCluster, Any], Awaitable[None]],
) -> None:
    waiting = iter(things)
    async with _connected(kubeconfig) as cluster, asyncio.TaskGroup() as group:

        async def work() -> None:
            for thing in waiting:
                await act(cluster, thing)

        for _ in range(_PARALLEL):
            group.create_task(work())


@asynccontextmanager
async def _connected(kubeconfig: Path) -> AsyncIterator[RestCluster]:
    connection = await Connection.open(Credentials(kubeconfig=kubeconfig))
    cluster = RestCluster(connection, limit=_PARALLEL)
    try:
        yield cluster
    finally:
        await cluster.close()
