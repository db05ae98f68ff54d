"""`python3 -m e2e.queue_bench`: where requests wait while an autoscaler adds real engines.

One engine with one sequence, twice as many requests for a minute as it can answer, and an HPA that
may add two more: once with the queue in the router, once without a router. Engines are held to a
part of a core, so that more of them are faster where there are cores. A JSON line for each run.
Ten minutes.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from e2e import chart
from e2e.canaries import is_routed
from e2e.cluster.progress import ClusterError, say
from e2e.cluster.provider import choose
from e2e.follow import condition, follow
from e2e.kubectl import JSON, Kubectl, connect
from e2e.services import tiny_service, with_spec
from e2e.traffic import BrokenAnswerError, Load, complete, reach

_NAMESPACE = "llmservice-bench"
_TOKENS = 16
_PROBE_SECONDS, _LOAD_SECONDS, _PATIENCE_SECONDS = 15.0, 60.0, 45.0
_OVERLOAD = 2.0
_MOST_PER_SECOND = 12.0
_RESOURCES = {
    "requests": {"cpu": "100m", "memory": "1200Mi"},
    "limits": {"cpu": "700m", "memory": "3Gi"},
}
_TOLERANCE_SECONDS = 2.0
_SIZES = {
    "minReplicas": 1,
    "maxReplicas": 3,
    "waitingPerReplica": 2,
    "coldStartSeconds": 60,
}


@dataclass
class _Asked:
    """All requests of one run; times by `time.monotonic`."""

    began: list[float] = field(default_factory=list)
    ended: list[tuple[float, float]] = field(default_factory=list)
    """When it began and ended, of those that were answered."""
    failed: list[str] = field(default_factory=list)

    def overtaken(self) -> int:
        """Answered requests that waited for one which had come much later."""
        by_end = sorted(self.ended, key=lambda each: each[1])
        latest, count = 0.0, 0
        for began, _ in by_end:
            count += began < latest - _TOLERANCE_SECONDS
            latest = max(latest, began)
        return count


def main() -> int:
    """Both runs; 1 and a sentence when something stands in the way."""
    cluster = choose()
    try:
        cluster.up()
        operator, engine = cluster.load("operator"), cluster.load("vllm-cpu")
        kubectl = connect(cluster).within(_NAMESPACE)
        chart.install(kubectl, operator, cluster.load("router"))
        kubectl.apply(chart.restricted_namespace(_NAMESPACE))
        with reach(cluster, kubectl) as gate:
            for name, router in (("queued", "Embedded"), ("unqueued", "None")):
                service = tiny_service(name, engine, maxNumSeqs=1, resources=_RESOURCES)
                service = with_spec(service, traffic={"router": router})
                kubectl.apply(service)
                follow(kubectl, name, is_routed if router != "None" else _serves, seconds=300)
                per_second = _capacity(gate.url(_NAMESPACE, name), name)
                kubectl.apply(with_spec(service, autoscaling=_SIZES))
                follow(kubectl, name, _is_scaled, seconds=120)
                run = _run(kubectl, gate.url(_NAMESPACE, name), name, per_second)
                print(json.dumps(run), flush=True)
                kubectl("delete", f"llmservice/{name}", "--wait=true", "--timeout=120s")
                kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
    except (ClusterError, OSError) as error:
        say(f"stopped: {error}")
        return 1
    return 0


def _serves(service: JSON) -> bool:
    return bool(service.get("status", {}).get("readyReplicas"))


def _is_scaled(service: JSON) -> bool:
    ready = condition(service, "AutoscalingReady")
    return ready is not None and ready["status"] == "True"


def _capacity(url: str, name: str) -> float:
    """Requests a second that one engine answers, asked by four at a time."""
    with Load(url, name, clients=4, tokens=_TOKENS, pause_seconds=0) as load:
        time.sleep(_PROBE_SECONDS)
    return len(load.answers) / _PROBE_SECONDS


def _run(kubectl: Kubectl, url: str, name: str, capacity: float) -> JSON:
    per_second = min(_MOST_PER_SECOND, _OVERLOAD * capacity)
    requests = round(per_second * _LOAD_SECONDS)
    asked, started = _Asked(), time.monotonic()
    clients = [
        threading.Thread(target=_ask, args=(asked, url, name, started + n / per_second))
        for n in range(requests)
    ]
    for client in clients:
        client.start()
    decided = _when(kubectl, name, lambda status: status["autoscaling"]["replicas"] > 1)
    ready = _when(kubectl, name, lambda status: status.get("readyReplicas", 0) > 1)
    for client in clients:
        client.join()
    times = sorted(end - began for began, end in asked.ended)
    return {
        "service": name,
        "one_engine_per_second": round(capacity, 1),
        "requests": requests,
        "decided_seconds": round(decided - started, 1),
        "newcomer_ready_seconds": round(ready - started, 1),
        "answered": len(asked.ended),
        "timed_out_or_failed": len(asked.failed),
        "failures": sorted({each[:80] for each in asked.failed})[:3],
        "p50_seconds": round(times[len(times) // 2], 1),
        "worst_seconds": round(times[-1], 1),
        "overtaken": asked.overtaken(),
    }


def _ask(asked: _Asked, url: str, name: str, at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))
    began = time.monotonic()
    asked.began.append(began)
    try:
        complete(url, name, "How are you?", _TOKENS, seconds=_PATIENCE_SECONDS)
    except (OSError, BrokenAnswerError) as error:
        asked.failed.append(f"{type(error).__name__}: {error}")
    else:
        asked.ended.append((began, time.monotonic()))


def _when(kubectl: Kubectl, name: str, holds: Callable[[JSON], bool]) -> float:
    follow(
        kubectl,
        name,
        lambda service: holds(service.get("status", {"autoscaling": {}})),
        seconds=300,
        may_stall=True,
    )
    return time.monotonic()


if __name__ == "__main__":
    sys.exit(main())
