"""Which cluster is used, and what is said when it cannot be."""

import pytest

from e2e.cluster import docker, prerequisites, provider
from e2e.cluster.current import CurrentCluster
from e2e.cluster.kind import KindCluster
from e2e.cluster.local import LocalCluster
from e2e.cluster.network import MAX_CLUSTERS, Network
from e2e.cluster.progress import ClusterError


@pytest.mark.parametrize(
    ("named", "expected"),
    [("local", LocalCluster), ("kind", KindCluster), ("current", CurrentCluster)],
)
def test_the_variable_decides(named, expected):
    """CLUSTER names the cluster, whatever else the machine has."""
    assert expected is type(provider.choose(environ={"CLUSTER": named}))


@pytest.mark.parametrize(("engine", "expected"), [(True, KindCluster), (False, LocalCluster)])
def test_a_docker_engine_means_kind(monkeypatch, engine, expected):
    """Without CLUSTER, kind is used where Docker runs; never a cluster that is somebody's."""
    monkeypatch.setattr(docker, "answers", lambda: engine)

    assert expected is type(provider.choose(environ={}))


def test_an_unknown_cluster_is_refused():
    """A typing error must not select a default."""
    with pytest.raises(ClusterError, match="CLUSTER=kindd is not one of local, kind, current"):
        provider.choose(environ={"CLUSTER": "kindd"})


def test_images_for_somebodys_cluster_need_a_registry(monkeypatch):
    """Without a registry the message says what to set, before anything is built."""
    monkeypatch.delenv("IMAGE_REGISTRY", raising=False)

    with pytest.raises(ClusterError, match="needs IMAGE_REGISTRY, for example"):
        CurrentCluster().load("operator")


def test_other_users_than_root_are_told_what_works(monkeypatch):
    """The local cluster needs root; the message names the ways around it."""
    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 1000)

    with pytest.raises(ClusterError, match=r"needs root.*CLUSTER=kind or CLUSTER=current"):
        prerequisites.check_machine()


def test_other_systems_than_linux_are_told_what_works(monkeypatch):
    """The local cluster needs Linux; the message names the ways around it."""
    monkeypatch.setattr(prerequisites.platform, "system", lambda: "Darwin")

    with pytest.raises(ClusterError, match=r"on Linux only; use CLUSTER=kind"):
        prerequisites.check_machine()


def test_a_full_disk_is_noticed_before_the_work():
    """The message says how much is free, how much is needed and what to do."""
    with pytest.raises(ClusterError, match=r"GB are free under .* and 99999999 GB are needed"):
        prerequisites.check_disk(99_999_999)


def test_missing_commands_are_named_with_their_packages(monkeypatch):
    """Where nothing can be installed, the message says what to install."""
    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 1000)

    with pytest.raises(ClusterError, match=r"missing commands: nothing-like-it .*install nothing"):
        prerequisites.install({"nothing-like-it": "nothing", "sh": "dash"})


def test_clusters_side_by_side_share_no_address():
    """Every number has its own node, pods, services and interface."""
    networks = [Network(index) for index in range(MAX_CLUSTERS)]
    for field in ("node", "host", "pods", "services", "api_service", "interface"):
        assert MAX_CLUSTERS == len({getattr(network, field) for network in networks})


def test_a_stale_state_file_is_not_a_running_cluster(tmp_path, monkeypatch):
    """A file from before a reboot, or about a process id that was reused, is not believed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cluster = LocalCluster("stale")
    monkeypatch.setattr(cluster, "_state", tmp_path / "stale.json")
    (tmp_path / "stale.json").write_text('{"pid": 1, "birth": "another boot/12", "key": "k"}')

    assert cluster.running() is None
    assert "cluster stale is not running" == cluster.status()
    with pytest.raises(ClusterError, match="start it with `up`"):
        cluster.kubeconfig()
