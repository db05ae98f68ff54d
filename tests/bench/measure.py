"""The phases of the benchmark: what is done to the operator, and what is read off while it acts.

One :func:`measure_size` is one control plane. Rounds of the API server's own ceiling and of the
operator alternate on it, so that a busy machine slows both; what comes after is measured on the
last round's services.
"""

import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.processes import wait_until
from e2e.cluster.progress import ClusterError, say
from llmservice.core.observed import Manifest
from tests.bench import audit, drift, load, procfs
from tests.bench.audit import BACKGROUND, CHILD_RESOURCES, AuditLog, Category, Follower, Request
from tests.bench.subject import Operator, install

PROBES = "probes"
_LAST = "bench"
_PROBE_COUNT = 5
_PODS_PER_NODE = 800
_PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
_FLAGS = {
    # On a busy machine a faked kubelet is late with its heartbeat, and a node that is declared
    # dead takes its pods' readiness with it.
    "kube-controller-manager": ["--node-monitor-grace-period=24h"],
}
_QUIET_CORES = 0.25
_QUIET_SECONDS = 3
_SETTLE_SECONDS = 900
_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Writing:
    """One bulk of child writes, by the operator or by the plain client."""

    children: int
    seconds: float
    """From the first child's request to the last child's answer."""
    cpu_seconds: float
    """Spent meanwhile by the control plane and whoever writes."""
    other_cores: float
    """Used by everybody else on the machine meanwhile."""

    @property
    def per_second(self) -> float:
        """Children written per second."""
        return self.children / self.seconds

    @property
    def cpu_per_child(self) -> float:
        """CPU seconds per child, the control plane's included."""
        return self.cpu_seconds / self.children


@dataclass(slots=True)
class BringUp:
    """The operator meets services that are not there yet, from its start until all are Ready."""

    writing: Writing
    until_written: Counter[Category]
    until_ready: Counter[Category]
    failed: int
    """Requests that the API server refused."""
    cpu_start: float
    """Seconds: imports, login, first lists."""
    cpu_written: float
    """Seconds between the first and the last child written."""
    cpu_ready: float
    """Seconds between the first child written and all Ready, all quiet."""
    edits: list[float] = field(default_factory=list)
    """Seconds from a knob's edit to the first child written for it, during the bulk."""


@dataclass(slots=True)
class Figures:
    """Everything measured with one number of services."""

    services: int
    ceilings: list[Writing] = field(default_factory=list)
    bring_ups: list[BringUp] = field(default_factory=list)
    idle_seconds: float = 0
    idle: Counter[Category] = field(default_factory=Counter)
    restart_writes: Counter[Category] = field(default_factory=Counter)
    restart_cpu: float = 0
    peak_rss_mib: float = 0
    restart_peak_rss_mib: float = 0
    undone: list[drift.Undone] = field(default_factory=list)
    released: list[float] = field(default_factory=list)
    """Seconds from SIGTERM of the leader to the successor's first write."""
    expired: list[float] = field(default_factory=list)
    """Seconds from SIGKILL of the leader to the successor's first write."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with one number of services."""

    services: int
    rounds: int = 1
    """Pairs of ceiling and operator; 0 leaves the ceiling out."""
    idle_seconds: float = 120
    disturb: bool = True
    """Edits during the bulk, hand edits, deletions, leader changes."""
    profile: Path | None = None
    """Where cProfile writes what the last bulk's operator did; its times then mean nothing."""


def measure_size(plan: Plan) -> Figures:
    """Measure with one number of services on a control plane of its own."""
    nodes = math.ceil((plan.services + 2 * _PROBE_COUNT) / _PODS_PER_NODE)
    say(f"{plan.services} services: starting a control plane with {nodes} faked nodes")
    with ControlPlane(nodes=nodes, gpus=0, flags=_FLAGS) as cluster, ExitStack() as stack:
        install(cluster)
        return _Run(cluster, plan, stack).run()


class _Run:
    def __init__(self, cluster: ControlPlane, plan: Plan, stack: ExitStack) -> None:
        self._cluster = cluster
        self._plan = plan
        self._stack = stack
        self._log = AuditLog(cluster.audit_log)
        self._figures = Figures(plan.services, idle_seconds=plan.idle_seconds)
        self._probes = [f"probe-{index}" for index in range(_PROBE_COUNT)] if plan.disturb else []

    def run(self) -> Figures:
        if self._probes:
            self._bring_up_probes()
        operator = self._alternate()
        self._idle(operator)
        operator = self._restart(operator)
        if self._probes:
            self._undo(operator)
            self._change_leaders(operator)
        return self._figures

    # --- bulk ---------------------------------------------------------------------------------

    def _bring_up_probes(self) -> None:
        self._cluster.kubectl("create", "namespace", PROBES)
        load.create_services(self._cluster.kubeconfig, PROBES, self._probes)
        with Operator(self._cluster) as operator:
            self._wait_all_ready(operator, PROBES)
            self._settle(operator)

    def _alternate(self) -> Operator:
        """Ceiling and operator in turns; ends with the operator, which goes on running."""
        rounds = self._plan.rounds
        for index in range(rounds):
            ours_last = (rounds - 1 - index) % 2 == 0
            if ours_last:
                self._ceiling(f"ceiling-{index}")
            if index == rounds - 1:
                break
            self._bring_up(f"bench-{index}").stop()
            self._remove(f"bench-{index}")
            if not ours_last:
                self._ceiling(f"ceiling-{index}")
        return self._bring_up(_LAST)

    def _ceiling(self, namespace: str) -> None:
        self._create(namespace)
        requests = self._log.follow(drift.ADMIN)
        meter = procfs.Meter([*self._pids(), os.getpid()])
        written = load.write_children(self._cluster.kubeconfig, namespace)
        used = meter.read()
        children = [
            r for r in requests.poll() if r.category is Category.Child and r.namespace == namespace
        ]
        assert len(children) == written
        self._figures.ceilings.append(_writing(children, used))
        self._settle()
        self._remove(namespace)

    def _bring_up(self, namespace: str) -> Operator:
        self._create(namespace)
        expected = load.expected_children(self._cluster.kubeconfig, namespace)
        profile = self._plan.profile if namespace == _LAST else None
        operator = Operator(self._cluster, profile=profile)
        requests = self._log.follow(operator.user, drift.ADMIN)
        self._stack.enter_context(operator)
        meter = procfs.Meter([*self._pids(), operator.pid])
        with procfs.CpuTrace(operator.pid) as trace:
            edits = _BusyEdits(self._cluster, requests, operator.user, self._probes, expected)

            def written() -> bool:
                children = _children(requests.poll(), operator.user, namespace)
                edits.maybe_edit(len(children))
                return len(children) >= expected

            self._wait(operator, written, f"{expected} children", self._patience())
            used = meter.read()
            self._wait_all_ready(operator, namespace)
            self._settle(operator)
            bring_up = _bring_up_figures(requests.poll(), operator, namespace, trace, used)
        bring_up.edits = edits.seconds()
        self._figures.bring_ups.append(bring_up)
        say(
            f"{self._plan.services} services: {bring_up.writing.per_second:.1f} children/s,"
            f" {1000 * bring_up.cpu_written / expected:.2f} ms CPU per child"
        )
        return operator

    def _create(self, namespace: str) -> None:
        self._cluster.kubectl("create", "namespace", namespace)
        names = [f"s{index:05}" for index in range(self._plan.services)]
        load.create_services(self._cluster.kubeconfig, namespace, names)
        self._settle()

    def _remove(self, namespace: str) -> None:
        self._cluster.kubectl("delete", "namespace", namespace, "--timeout=15m")
        self._settle()

    # --- afterwards ---------------------------------------------------------------------------

    def _idle(self, operator: Operator) -> None:
        say(f"{self._plan.services} services: idle for {self._plan.idle_seconds:.0f} s")
        requests = self._log.follow(operator.user)
        time.sleep(self._plan.idle_seconds)  # what is measured is that nothing happens
        self._figures.idle = _foreground(requests.poll())
        self._figures.peak_rss_mib = procfs.peak_rss_mib(operator.pid)

    def _restart(self, operator: Operator) -> Operator:
        operator.stop()
        requests = self._log.follow(operator.user)
        operator = self._stack.enter_context(Operator(self._cluster))
        operator.wait_ready()
        self._settle(operator)
        writes = _foreground(requests.poll())
        del writes[Category.List]
        self._figures.restart_writes = writes
        self._figures.restart_cpu = operator.cpu_seconds()
        self._figures.restart_peak_rss_mib = procfs.peak_rss_mib(operator.pid)
        return operator

    def _undo(self, operator: Operator) -> None:
        say(f"{self._plan.services} services: hand edits and deletions")
        children = load.live_children(self._cluster.kubeconfig, PROBES, self._probes[0])
        self._figures.undone = drift.undo_times(
            self._cluster.api, self._log, operator.user, children, lambda: self._settle(operator)
        )

    def _change_leaders(self, leader: Operator) -> None:
        say(f"{self._plan.services} services: leader changes")
        for index, number in enumerate((signal.SIGTERM, signal.SIGKILL) * 2):
            successor = self._stack.enter_context(Operator(self._cluster, f"operator-{index}"))
            successor.wait_ready("standing by")
            self._settle(leader, successor)
            seconds = self._change_leader(leader, successor, number)
            times = self._figures.released if number is signal.SIGTERM else self._figures.expired
            times.append(seconds)
            leader = successor

    def _change_leader(
        self, leader: Operator, successor: Operator, number: signal.Signals
    ) -> float:
        child = load.live_children(self._cluster.kubeconfig, PROBES, self._probes[0])[0]
        requests = self._log.follow(successor.user)
        started = leader.send_signal(number)
        successor.wait_for(lambda: leader.ended, "the leader to end")
        self._cluster.api.call("DELETE", drift.path_of(child))

        def written() -> list[Request]:
            return [r for r in requests.poll() if r.category is Category.Child and not r.failed]

        successor.wait_for(lambda: bool(written()), "the successor to write")
        return written()[0].completed - started

    # --- waiting ------------------------------------------------------------------------------

    def _patience(self) -> float:
        return 120 + 1.0 * self._plan.services

    def _wait_all_ready(self, operator: Operator, namespace: str) -> None:
        waiting: list[Manifest] = []

        def ready() -> bool:
            waiting[:] = load.not_ready(self._cluster.kubeconfig, namespace)
            return not waiting

        try:
            self._wait(operator, ready, "all services to be Ready", self._patience())
        except ClusterError as error:
            first = waiting[0]
            error.add_note(f"{len(waiting)} are not, the first is {first['metadata']['name']}:")
            error.add_note(json.dumps(first.get("status"), indent=1))
            raise

    def _wait(
        self, operator: Operator, condition: Callable[[], bool], what: str, seconds: float
    ) -> None:
        """As ``Operator.wait_for``, looking rarely: looking takes CPU from what is measured."""
        next_look = 0.0

        def look() -> bool:
            nonlocal next_look
            if time.monotonic() < next_look:
                return False
            next_look = time.monotonic() + _POLL_SECONDS
            return condition()

        operator.wait_for(look, what, seconds)

    def _settle(self, *operators: Operator) -> None:
        """Until the control plane and the operators have nothing left to do."""
        pids = [*self._pids(), *(operator.pid for operator in operators)]
        quiet_since, spent = time.monotonic(), _cpu(pids)

        def settled() -> bool:
            nonlocal quiet_since, spent
            elapsed = time.monotonic() - quiet_since
            if elapsed < _QUIET_SECONDS:
                return False
            before, spent = spent, _cpu(pids)
            quiet_since = time.monotonic()
            return (spent - before) / elapsed < _QUIET_CORES

        wait_until(settled, what="the cluster to be quiet", seconds=_SETTLE_SECONDS)

    def _pids(self) -> list[int]:
        return [self._cluster.pid_of(program) for program in _PROGRAMS]


class _BusyEdits:
    """Edits a knob of one service after another while the operator works through the bulk."""

    def __init__(
        self,
        cluster: ControlPlane,
        requests: Follower,
        user: str,
        probes: Sequence[str],
        expected: int,
    ) -> None:
        self._cluster = cluster
        self._requests = requests
        self._user = user
        self._waiting = list(probes)
        self._done: list[str] = []
        self._steps = [
            expected * (2 * index + 1) / (2 * len(probes)) for index in range(len(probes))
        ]

    def maybe_edit(self, written: int) -> None:
        """Edit the next service when its share of the bulk is written."""
        if not self._waiting or written < self._steps[len(self._done)]:
            return
        name = self._waiting.pop(0)
        self._done.append(name)
        path = f"/apis/llmservice.dev/v1alpha1/namespaces/{PROBES}/llmservices/{name}"
        knob = self._cluster.api.get(path)["spec"]["engine"]["maxNumSeqs"]
        self._cluster.api.merge(path, {"spec": {"engine": {"maxNumSeqs": knob + 1}}})

    def seconds(self) -> list[float]:
        """From the API server's answer to the editor to its answer to the operator."""
        requests = self._requests.poll()
        return [self._one(requests, name) for name in self._done]

    def _one(self, requests: Sequence[Request], name: str) -> float:
        probe = [r for r in requests if r.namespace == PROBES and not r.failed]
        edited = next(
            r.completed
            for r in probe
            if (r.user, r.verb, r.resource, r.name) == (drift.ADMIN, "patch", "llmservices", name)
        )
        return (
            min(
                r.completed
                for r in probe
                if r.user == self._user
                and r.category is Category.Child
                and r.name.startswith(f"{name}-")
                and r.received >= edited
            )
            - edited
        )


def _bring_up_figures(
    requests: Sequence[Request],
    operator: Operator,
    namespace: str,
    trace: procfs.CpuTrace,
    used: procfs.Used,
) -> BringUp:
    children = list(_children(requests, operator.user, namespace).values())
    first = min(r.received for r in children)
    last = max(r.completed for r in children)
    mine = [r for r in requests if r.user == operator.user and r.namespace in (namespace, "")]
    start = trace.at(first)
    return BringUp(
        writing=_writing(children, used),
        until_written=_foreground(r for r in mine if r.completed <= last),
        until_ready=_foreground(mine),
        failed=sum(r.failed for r in mine),
        cpu_start=start,
        cpu_written=trace.at(last) - start,
        cpu_ready=operator.cpu_seconds() - start,
    )


def _children(
    requests: Sequence[Request], user: str, namespace: str
) -> dict[tuple[str, str], Request]:
    """The write that brought each child of a namespace into being."""
    children: dict[tuple[str, str], Request] = {}
    for request in requests:
        if (
            request.user == user
            and request.namespace == namespace
            and request.resource in CHILD_RESOURCES
            and request.category is Category.Child
            and not request.failed
        ):
            children.setdefault((request.resource, request.name), request)
    return children


def _writing(children: Sequence[Request], used: procfs.Used) -> Writing:
    seconds = max(r.completed for r in children) - min(r.received for r in children)
    return Writing(len(children), seconds, used.cpu_seconds, used.other_cores)


def _foreground(requests: Iterable[Request]) -> Counter[Category]:
    counts = audit.count(requests)
    return Counter({c: n for c, n in counts.items() if c not in BACKGROUND})


def _cpu(pids: Sequence[int]) -> float:
    return sum(map(procfs.cpu_seconds, pids))
