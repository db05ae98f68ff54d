"""How soon a queue is seen and answered with replicas, one JSON line for each figure.

::

    python -m tests.bench.reaction [--jumps 12]

A real API server, the HPA controller as Kubernetes ships it, and the metrics server as a process
with its defaults. What one engine says of its queue jumps, each time by enough for another replica,
and at moments that are spread evenly between two looks of the HPA controller. Nothing but these
timers takes long, so a busy machine changes little.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from e2e.cluster.control_plane import ControlPlane
from llmservice.adapters.kube import Connection, Credentials
from llmservice.adapters.resources import DEPLOYMENT
from tests.bench.audit import AuditLog, Request, now
from tests.bench.metrics_stage import TEAM, create_namespaces, install, write_kubeconfig
from tests.contract.test_metrics_server import (
    HPA,
    HPA_ACCOUNT,
    Engine,
    Scene,
    Server,
    a_deployment,
    a_port,
    an_hpa,
    pods_path,
)

Line = dict[str, Any]

_MOST_REPLICAS = 100
_PER_REPLICA = 5
"""Waiting requests, by the HPA's target."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    jumps: int = 12
    period: float = 15.0
    """Seconds between two looks of the HPA controller; its own default."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds from each jump."""

    plan: Plan
    to_api: list[float] = field(default_factory=list)
    """Until the metrics API answered what the engine said."""
    to_scale: list[float] = field(default_factory=list)
    """Until the HPA controller had written the Deployment's scale."""

    def lines(self) -> list[Line]:
        """As they are printed."""
        ends = {"the metrics API": self.to_api, "a new scale": self.to_scale}
        return [
            {
                "figure": f"from a queue to {end}",
                "jumps": len(seconds),
                "hpa_period_s": self.plan.period,
                "min_s": round(min(seconds), 2),
                "median_s": round(median(seconds), 2),
                "max_s": round(max(seconds), 2),
            }
            for end, seconds in ends.items()
        ]


async def measure(plane: ControlPlane, plan: Plan) -> Figures:
    """Let the queue of one engine jump; on a control plane where nothing else happens.

    Args:
        plane: its HPA controller looks every ``plan.period`` seconds.
        plan: how often it jumps.
    """
    figures = Figures(plan)
    async with _stage(plane) as (scene, engine):
        looks = _Looks(scene)
        for number in range(plan.jumps):
            looked = await looks.last()
            moment = looked + plan.period * (number + 0.5) / plan.jumps
            await asyncio.sleep(max(0.0, moment - now()))
            engine.waiting = float(_PER_REPLICA * _next_size(await scene.replicas()))
            jumped = now()
            async with asyncio.TaskGroup() as group:
                seen = group.create_task(_until_seen(scene, engine.waiting))
                scaled = group.create_task(looks.until_scaled(jumped))
            figures.to_api.append(seen.result() - jumped)
            figures.to_scale.append(scaled.result() - jumped)
    return figures


def _next_size(replicas: int) -> int:
    """Enough more for the HPA, which tolerates a tenth, and for its steps of four at most."""
    return replicas + max(1, replicas // 5)


@asynccontextmanager
async def _stage(plane: ControlPlane) -> AsyncIterator[tuple[Scene, Engine]]:
    """An HPA that has its metrics of the only engine that runs."""
    create_namespaces(plane)
    port = a_port()
    install(plane, port)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(write_kubeconfig(plane, Path(folder)), port)
        connection = await Connection.open(Credentials(kubeconfig=plane.kubeconfig))
        scene = Scene(plane, connection, server)
        try:
            await scene.start_server()
            await scene.cluster.create(DEPLOYMENT, TEAM, a_deployment())
            engine = await scene.run_pod(*await scene.eventually(scene.pending_pods, "a pod"))
            await _until_seen(scene, 0)
            hpa = an_hpa()
            hpa["spec"]["maxReplicas"] = _MOST_REPLICAS
            await scene.cluster.create(HPA, TEAM, hpa)
            yield scene, engine
        finally:
            await scene.close()


async def _until_seen(scene: Scene, waiting: float) -> float:
    """When the API server first answered with this queue of the engine."""

    async def seen() -> float | None:
        status, answer = await scene.get(pods_path("v1beta2"))
        values = [item["value"] for item in answer["items"]] if status == 200 else []
        return now() if f"{waiting:.0f}" in values else None

    return float(await scene.eventually(seen, "the metrics API"))


class _Looks:
    """What the HPA controller does, by the audit log."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._follower = AuditLog(scene.plane.audit_log).follow(HPA_ACCOUNT)

    async def last(self) -> float:
        """When it last asked how many replicas there are, as it does first; waits for one."""
        return (await self._of("get", since=0))[-1].received

    async def until_scaled(self, since: float) -> float:
        """When it had written another number, not before this moment."""
        return (await self._of("update", since))[0].completed

    async def _of(self, verb: str, since: float) -> list[Request]:
        async def found() -> list[Request]:
            requests = [each for each in self._follower.poll() if each.subresource == "scale"]
            return [each for each in requests if each.verb == verb and each.received >= since]

        looks: list[Request] = await self._scene.eventually(found, f"a scale's {verb}")
        return looks


async def _print(plan: Plan) -> None:
    with ControlPlane() as plane:
        figures = await measure(plane, plan)
    for line in figures.lines():
        print(json.dumps(line), flush=True)


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jumps", type=int, default=12)
    asyncio.run(_print(Plan(parser.parse_args(arguments).jumps)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
