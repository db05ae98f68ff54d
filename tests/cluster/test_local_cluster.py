"""The cluster of this machine, with a small pod instead of an engine: does it work, does it go?"""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from e2e.cluster.buildah import PAUSE_TAG
from e2e.cluster.gpus import fake_gpus
from e2e.cluster.local import LocalCluster
from e2e.cluster.processes import run, wait_until
from e2e.cluster.toolchain import binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NAME = "llmservice-selftest"


@pytest.fixture(scope="module")
def cluster():
    local = LocalCluster(NAME)
    local.up(tied=True)
    yield local
    local.down()


@pytest.fixture
def brief():
    """A cluster for one test, beside the other."""
    local = LocalCluster(f"{NAME}-brief")
    local.up(tied=True)
    yield local
    local.down()


def kubectl(cluster, *words, stdin=None):
    command = [binaries() / "kubectl", f"--kubeconfig={cluster.kubeconfig()}", *words]
    return run(command, text=stdin)


def a_pod(name, gpus=0):
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    container = {"name": "pause", "image": PAUSE_TAG, "resources": {"limits": limits}}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
        }
    )


def control_groups(cluster):
    """What a cluster, alive or not, has in the kernel's hierarchies."""
    return list(Path("/sys/fs/cgroup").glob(f"**/llmservice-{cluster.name}"))


def test_a_pod_runs(cluster):
    """Kubelet, containerd, network and sandbox image work together, and logs can be read."""
    kubectl(cluster, "create", "-f", "-", stdin=a_pod("plain"))

    kubectl(cluster, "wait", "--for=condition=Ready", "pod/plain", "--timeout=60s")
    assert kubectl(cluster, "logs", "plain") == ""


def test_service_addresses_work_from_the_host(cluster):
    """The API server answers through its Service, so kube-proxy and the route do their part."""
    address = kubectl(cluster, "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")

    with socket.create_connection((address, 443), timeout=5) as connection:
        assert address == connection.getpeername()[0]


def test_gpus_can_be_claimed_and_returned(cluster):
    """The real kubelet runs a pod that asks for a GPU that the node only claims to have."""
    fake_gpus(cluster.api(), NAME, 2)
    kubectl(cluster, "create", "-f", "-", stdin=a_pod("computing", gpus=2))
    kubectl(cluster, "wait", "--for=condition=Ready", "pod/computing", "--timeout=60s")
    kubectl(cluster, "delete", "pod", "computing")

    fake_gpus(cluster.api(), NAME, 0)

    def room():
        return cluster.api().get(f"/api/v1/nodes/{NAME}")["status"]["allocatable"]

    wait_until(lambda: "nvidia.com/gpu" not in room(), what="a node without GPUs", seconds=30)


def test_a_second_up_finds_it(cluster):
    """Nothing is started twice."""
    before = cluster.running()

    LocalCluster(NAME).up()

    assert before == cluster.running()


def test_nothing_is_left(brief):
    """After `down` there is no process, interface, route, mount or control group of the cluster."""
    running = brief.running()
    interface = running.spec.network.interface

    brief.down()

    assert not Path(f"/proc/{running.pid}").exists()
    assert interface not in {name for _, name in socket.if_nameindex()}
    assert interface not in run(["ip", "route"])
    assert str(running.spec.work) not in Path("/proc/mounts").read_text()
    assert [] == control_groups(brief)
    assert not running.spec.work.exists()
    assert brief.running() is None


def test_a_killed_cluster_is_not_in_the_way(brief):
    """The control groups of one that was killed go when another starts; its kubelet would trip."""
    os.kill(brief.running().pid, signal.SIGKILL)
    wait_until(lambda: brief.running() is None, what="the cluster's end", seconds=10)
    assert control_groups(brief)

    other = LocalCluster(f"{NAME}-other")
    other.up(tied=True)
    other.down()

    assert [] == control_groups(brief)


def test_half_a_cluster_is_none(brief):
    """When one component ends, all do, and the status names the culprit."""
    node = brief.running().pid
    children = Path(f"/proc/{node}/task/{node}/children").read_text().split()
    [dns] = [pid for pid in children if "coredns" in Path(f"/proc/{pid}/cmdline").read_text()]

    os.kill(int(dns), signal.SIGKILL)

    wait_until(lambda: brief.running() is None, what="the cluster's end", seconds=10)
    assert f"cluster {brief.name} is not running: coredns ended; logs in " in brief.status()
