"""The control plane that contract tests stand on: is it a real one, and are its fakes faithful?"""

import json
import subprocess
from pathlib import Path

import pytest

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.processes import wait_until
from e2e.cluster.progress import ClusterError

pytestmark = pytest.mark.contract

FAKE = "fake.llmservice.dev"


@pytest.fixture(scope="module")
def cluster():
    with ControlPlane(nodes=2, gpus=4) as running:
        yield running


def a_pod(name, *, gpus=0, **annotations):
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "annotations": {
                    f"{FAKE}/{key.replace('_', '-')}": value for key, value in annotations.items()
                },
            },
            "spec": {
                "containers": [{"name": "engine", "image": "any", "resources": {"limits": limits}}]
            },
        }
    )


def status_of(cluster, pod):
    return cluster.api.get(f"/api/v1/namespaces/default/pods/{pod}")["status"]


def eventually(condition, what):
    wait_until(condition, what=what, seconds=20)


def test_it_is_the_version_that_was_built(cluster):
    """Clients see a version, which some of them act upon."""
    version = cluster.api.get("/version")

    assert ("1", "37", "v1.37.1") == (version["major"], version["minor"], version["gitVersion"])


def test_a_faked_pod_becomes_ready(cluster):
    """Scheduler and faked kubelet do their parts."""
    cluster.kubectl("create", "-f", "-", input=a_pod("ready", gpus=1))

    cluster.kubectl("wait", "--for=condition=Ready", "pod/ready", "--timeout=20s")
    assert status_of(cluster, "ready")["podIP"].startswith("10.")


def test_a_pod_waits_for_gpus_that_nobody_has(cluster):
    """The scheduler counts faked GPUs, and says what is missing in its own words."""
    cluster.kubectl("create", "-f", "-", input=a_pod("greedy", gpus=5))

    def message():
        return [each.get("message", "") for each in status_of(cluster, "greedy")["conditions"]]

    eventually(lambda: "conditions" in status_of(cluster, "greedy"), "the scheduler's word")
    assert "2 Insufficient nvidia.com/gpu" in message()[0]


def test_a_faked_pod_can_crash(cluster):
    """Reason, exit code and termination message are where a kubelet puts them."""
    pod = a_pod("crashing", outcome="Crashing", reason="OOMKilled", exit_code="137", message="a: b")
    cluster.kubectl("create", "-f", "-", input=pod)

    eventually(lambda: "containerStatuses" in status_of(cluster, "crashing"), "a crash")
    engine = status_of(cluster, "crashing")["containerStatuses"][0]
    ended = engine["lastState"]["terminated"]
    assert ("OOMKilled", 137, "a: b") == (ended["reason"], ended["exitCode"], ended["message"])
    assert "CrashLoopBackOff" == engine["state"]["waiting"]["reason"]


def test_a_faked_pod_can_wait_and_recover(cluster):
    """A pod that waits for its image becomes Ready when the annotation goes."""
    pod = a_pod("waiting", outcome="Waiting", reason="ImagePullBackOff", message='"x" not found')
    cluster.kubectl("create", "-f", "-", input=pod)
    eventually(lambda: "containerStatuses" in status_of(cluster, "waiting"), "a waiting container")
    state = status_of(cluster, "waiting")["containerStatuses"][0]["state"]
    assert {"reason": "ImagePullBackOff", "message": '"x" not found'} == state["waiting"]

    cluster.kubectl("annotate", "pod", "waiting", f"{FAKE}/outcome-")

    cluster.kubectl("wait", "--for=condition=Ready", "pod/waiting", "--timeout=20s")


def test_another_identity_may_only_what_rbac_allows(cluster):
    """Tests can run under the rights that the product will have."""
    kubeconfig = cluster.kubeconfig_for("system:serviceaccount:team:operator", ["team"])

    def can(verb):
        words = ["kubectl", f"--kubeconfig={kubeconfig}", "auth", "can-i", verb, "pods"]
        words[0] = str(cluster.layout.programs / words[0])
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    assert not can("list")
    cluster.kubectl("create", "clusterrole", "lister", "--verb=list", "--resource=pods")
    cluster.kubectl(
        "create", "clusterrolebinding", "lister", "--clusterrole=lister", "--group=team"
    )

    eventually(lambda: can("list"), "the new right")
    assert not can("delete")


def test_the_audit_log_counts_requests(cluster):
    """One line for each finished request, with verb, user and object."""
    cluster.kubectl("create", "configmap", "counted")

    lines = [json.loads(line) for line in cluster.audit_log.read_text().splitlines()]
    matching = [
        (line["verb"], line["user"]["username"])
        for line in lines
        if line.get("objectRef", {}).get("name") == "counted"
    ]
    assert [("create", "admin")] == matching


def test_nodes_can_be_added(cluster):
    """New nodes carry the GPUs and labels asked for and can be scheduled on."""
    [name] = cluster.add_nodes(1, gpus=2, labels={"zone": "a"})

    node = cluster.api.get(f"/api/v1/nodes/{name}")
    assert "2" == node["status"]["allocatable"]["nvidia.com/gpu"]
    assert "a" == node["metadata"]["labels"]["zone"]


def test_the_api_server_can_go_away_and_come_back(cluster):
    """Its address and its data are the same afterwards."""
    cluster.kubectl("create", "configmap", "survivor")
    cluster.stop_apiserver()
    with pytest.raises(ClusterError, match="was refused"):
        cluster.kubectl("get", "configmap", "survivor")

    cluster.start_apiserver()

    assert "configmap/survivor" in cluster.kubectl("get", "configmap", "survivor", "-o", "name")


def test_nothing_is_left(tmp_path):
    """Leaving the block ends every process and removes every file."""
    with ControlPlane(nodes=0) as running:
        work = running.layout.work
        pids = [running.pid_of(name) for name in ("etcd", "kube-apiserver", "kwok")]

    assert not work.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
