"""A whole cluster on this machine, in namespaces of its own: no Docker, no registry, no leftovers.

`LocalCluster(name)` is one of possibly several side by side. One process holds everything (see
`node`); ending it ends the cluster. State is a file with that process's id, its start time and the
boot's id, so a file from another boot, or of a process id that somebody else has now, counts as
"not running".
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import buildah, control_groups, network, prerequisites
from .api import Api
from .control_groups import control_group
from .images import recipe
from .imported import ImportedImages, image_folder
from .network import MAX_CLUSTERS, Network
from .node import NodeSpec
from .paths import REPOSITORY, cache_root, content_key
from .pki import KeyPair
from .processes import tail, wait_until
from .progress import ClusterError, say, step
from .toolchain import binaries

_STATES = Path("/run/llmservice")
_START_SECONDS = 120
_UNSHARE = (
    *("unshare", "--mount", "--pid", "--net", "--uts", "--ipc"),
    *("--fork", "--kill-child", "--mount-proc", "--propagation", "private"),
)
_STOP_SECONDS = 30


@dataclass(frozen=True)
class Running:
    """What the state file says about a live cluster."""

    pid: int
    """Process 1 of the cluster's namespaces, as the host numbers it."""
    key: str
    """Content key of the code that started it."""
    spec: NodeSpec


class LocalCluster:
    """One node with everything on it, reachable from the host by service and pod address."""

    def __init__(self, name: str = "llmservice") -> None:
        self.name = name
        self._work = cache_root() / "clusters" / name
        # Not in the cache: a cluster must be found, to end it, after the cache was removed.
        self._state = _STATES / f"{name}.json"
        # Kept while the cluster runs: its standard input is what a tied cluster hangs on.
        self._process: subprocess.Popen[bytes] | None = None

    # --- life ------------------------------------------------------------------------------------

    def up(self, *, tied: bool = False) -> None:
        """Start the cluster, or find it running. Returns when its node is Ready.

        A cluster started by other code than this is restarted. With `tied` it ends with this
        process, however that ends; otherwise it stays until `down`.
        """
        prerequisites.check_machine()
        prerequisites.install(prerequisites.NODE_COMMANDS)
        programs = binaries()
        key = content_key([Path(__file__).parent])
        with _one_at_a_time():
            if running := self.running():
                if running.key == key:
                    say(f"cluster {self.name} is running")
                    return
                say(f"cluster {self.name} was started by other code; restarting it")
            self.down()
            _sweep()
            with step(f"starting cluster {self.name}"):
                self._start(self._new_spec(programs), key, tied=tied)
        self._images().drop_superseded()
        self._images().put(buildah.ensure_pause())

    def down(self) -> None:
        """End the cluster and whatever an earlier one left; imported images stay in the cache.

        Nothing else remains: no process, mount, interface, route, firewall rule or control group.
        """
        if running := self.running():
            with step(f"stopping cluster {self.name}"):
                os.kill(running.pid, signal.SIGKILL)
                wait_until(
                    lambda: self.running() is None, what="the cluster's end", seconds=_STOP_SECONDS
                )
        if self._process is not None:
            self._process.communicate()
            self._process = None
        control_groups.remove(control_group(self.name))
        shutil.rmtree(self._work, ignore_errors=True)
        self._state.unlink(missing_ok=True)

    def running(self) -> Running | None:
        """The live cluster of this name, or None."""
        try:
            state = json.loads(self._state.read_text())
            if state["birth"] != _birth(state["pid"]):
                return None
            return Running(state["pid"], state["key"], NodeSpec.from_json(state["spec"]))
        except (OSError, ValueError, KeyError):
            return None

    def status(self) -> str:
        """One paragraph for people."""
        running = self.running()
        if running is None:
            ended = self._work / "ended"
            why = f": {ended.read_text()} ended; logs in {self._work}" if ended.exists() else ""
            return f"cluster {self.name} is not running{why}"
        addresses = running.spec.network
        return (
            f"cluster {self.name} is running (process {running.pid})\n"
            f"  kubeconfig  {self.kubeconfig()}\n"
            f"  API server  {running.spec.layout.server}\n"
            f"  services    {addresses.services}\n"
            f"  pods        {addresses.pods}\n"
            f"  audit log   {self.audit_log()}\n"
            f"  logs        {running.spec.work}"
        )

    # --- use -------------------------------------------------------------------------------------

    def kubeconfig(self) -> Path:
        """Administrator credentials; `ClusterError` when the cluster is not running."""
        return self._live().spec.layout.admin_kubeconfig

    def audit_log(self) -> Path:
        """Requests to the API server as JSON lines, level Metadata."""
        return self._live().spec.layout.audit_log

    def api(self) -> Api:
        """A minimal client with administrator rights."""
        return _administrator(self._live().spec)

    def inside(self, command: Sequence[str | Path]) -> list[str]:
        """`command` as words that run it among the node's mounts and network."""
        pid = str(self._live().pid)
        return ["nsenter", "-t", pid, "-m", "-n", "--", *(str(word) for word in command)]

    def load(self, image: str) -> str:
        """Build an image of this repository if need be, hand it to containerd, return its tag."""
        wanted = recipe(image)
        built = buildah.ensure(wanted)
        try:
            self._images().put(built)
        except buildah.DamagedImageError as error:
            say(f"{error}; building it anew")
            buildah.discard(built.tag)
            self._images().put(buildah.ensure(wanted))
        return built.tag

    def _images(self) -> ImportedImages:
        return ImportedImages(image_folder(self._live().spec.index), self.inside)

    # --- starting --------------------------------------------------------------------------------

    def _live(self) -> Running:
        if (running := self.running()) is None:
            raise ClusterError(f"cluster {self.name} is not running; start it with `up`")
        return running

    def _new_spec(self, programs: Path) -> NodeSpec:
        self._work.mkdir(parents=True)
        self._state.parent.mkdir(exist_ok=True)
        index = _free_index()
        return NodeSpec(
            name=self.name,
            index=index,
            programs=programs,
            work=self._work,
            images=image_folder(index) / "containerd",
            cgroup=control_group(self.name),
        )

    def _start(self, spec: NodeSpec, key: str, *, tied: bool) -> None:
        control_groups.make(spec.cgroup)
        log = self._work / "node.log"
        process = self._process = _unshare(log)
        try:
            pid = _only_child(process)
            network.connect(spec.network, pid)
            state = {"pid": pid, "birth": _birth(pid), "key": key, "spec": spec.to_json()}
            self._state.write_text(json.dumps(state))
            assert process.stdin is not None
            order = json.dumps({"spec": spec.to_json(), "tied": tied})
            process.stdin.write(order.encode() + b"\n")
            process.stdin.flush()
            self._wait_ready(process, spec, log)
        except BaseException:
            process.kill()
            self.down()
            raise
        if not tied:
            process.stdin.close()

    def _wait_ready(self, process: subprocess.Popen[bytes], spec: NodeSpec, log: Path) -> None:
        def alive() -> None:
            if process.poll() is None:
                return
            ended = self._work / "ended"
            culprit = ended.read_text() if ended.exists() else "node"
            raise ClusterError(
                f"cluster {self.name} ended while starting, because {culprit} did:\n"
                f"{tail(self._work / f'{culprit}.log')}\n{tail(log)}"
            )

        def ready() -> bool:
            if not (self._work / "pki" / "client-admin.key").exists():
                return False
            api = _administrator(spec)
            # Through the service address: that is API server, kube-proxy and the route at once.
            service = Network(spec.index).api_service
            through_service = Api(f"https://{service}:443", api.authority, api.identity)
            return through_service.answers("/readyz") and _node_ready(api, self.name)

        wait_until(ready, what="the node to be Ready", seconds=_START_SECONDS, still_alive=alive)


def _administrator(spec: NodeSpec) -> Api:
    pki = spec.work / "pki"
    admin = KeyPair(pki / "client-admin.crt", pki / "client-admin.key")
    return Api(spec.layout.server, pki / "cluster-ca.crt", admin)


def _sweep() -> None:
    """Remove the control groups of clusters that were killed; their logs stay for the curious.

    Every kubelet looks into all pods' groups of the machine before it registers, for seconds each.
    """
    for state in _STATES.glob("*.json"):
        if LocalCluster(state.stem).running() is None:
            control_groups.remove(control_group(state.stem))


def _node_ready(api: Api, name: str) -> bool:
    if not api.answers(f"/api/v1/nodes/{name}"):
        return False
    conditions = api.get(f"/api/v1/nodes/{name}").get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _unshare(log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        return subprocess.Popen(
            [*_UNSHARE, sys.executable, "-m", "e2e.cluster.node"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Of its own, so that Ctrl-C on a terminal does not reach a demo's cluster.
            start_new_session=True,
        )


def _only_child(process: "subprocess.Popen[bytes]") -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(
        lambda: process.poll() is not None or children.read_text() != "",
        what="new namespaces",
        seconds=_START_SECONDS,
    )
    if process.poll() is not None:
        raise ClusterError("unshare failed: this machine does not allow new namespaces")
    return int(children.read_text())


def _birth(pid: int) -> str:
    """Something that no other process, before or after a reboot, shares with process `pid`."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    # Fields after the command's name, which may itself hold spaces and brackets: state is the
    # first, and start time, in clock ticks since boot, the twentieth.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return f"{boot}/{fields[19]}"


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two clusters that start at once must not take the same addresses."""
    folder = cache_root() / "clusters"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_index() -> int:
    if free := network.free_indexes():
        return free[0]
    raise ClusterError(f"{MAX_CLUSTERS} clusters are running on this machine; stop one")
