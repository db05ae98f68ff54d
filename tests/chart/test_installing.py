"""The chart on a real API server: installed, upgraded, uninstalled, installed again."""

import json
import shutil
from collections.abc import Iterator

import pytest

from e2e.chart import CHART, CRD, restricted_namespace
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.processes import wait_until
from e2e.cluster.progress import ClusterError
from llmservice.api.names import CHILD_MANAGER
from llmservice.core.config import Config
from llmservice.core.observed import ServiceKey, ServiceObject
from llmservice.core.ownership import lost_fields, owned_fields
from llmservice.core.resources.router import build_router

pytestmark = [pytest.mark.contract, pytest.mark.timeout(180)]

NAMESPACE = "llmservice-system"
SERVICE = {
    "apiVersion": "llmservice.dev/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "mine"},
    "spec": {"model": {"id": "org/model"}, "accelerator": {"resource": "nvidia.com/gpu"}},
}


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        for name in (NAMESPACE, "a", "b"):
            plane.kubectl("apply", "-f", "-", input=json.dumps(restricted_namespace(name)))
        yield plane


@pytest.fixture
def release(helm, plane):
    """`release(*settings)` installs or upgrades and waits until the pods are ready."""
    connection = (f"--kubeconfig={plane.kubeconfig}", f"--namespace={NAMESPACE}")

    def install(*settings: str, chart: str = str(CHART)) -> None:
        words = [f"--set={setting}" for setting in settings]
        helm("upgrade", "--install", "llmservice", chart, *connection, "--wait", *words)

    yield install
    helm("uninstall", "llmservice", *connection, "--ignore-not-found", "--wait")


def test_pods_are_admitted_where_the_restricted_standard_is_enforced(plane, release):
    """Pod Security refuses nothing: all replicas become ready in a `restricted` namespace."""
    release()
    ready = "-o=jsonpath={.status.readyReplicas}"
    for name in ("llmservice", "llmservice-metrics-server"):
        assert plane.kubectl("get", f"deployment/{name}", f"-n={NAMESPACE}", ready) == "2"


def test_an_upgrade_brings_the_crd_up_to_date(plane, release, tmp_path):
    """The CRD of an older chart is replaced by `helm upgrade`, which Helm's crds/ folder is not."""
    older = shutil.copytree(CHART, tmp_path / "llmservice")
    crd = older / "files" / "llmservices.llmservice.dev.yaml"
    crd.write_text(crd.read_text().replace("- name: Model\n", "- name: Models\n"))
    column = "-o=jsonpath={.spec.versions[0].additionalPrinterColumns[0].name}"
    release(chart=str(older))
    assert plane.kubectl("get", CRD, column) == "Models"
    release()
    assert plane.kubectl("get", CRD, column) == "Model"


def test_uninstalling_keeps_every_llmservice(plane, release, helm):
    """The CRD and what people made of it outlive the release, and a new release takes them over."""
    release()
    plane.kubectl("apply", "-n=a", "-f", "-", input=json.dumps(SERVICE))
    helm("uninstall", "llmservice", f"--kubeconfig={plane.kubeconfig}", f"--namespace={NAMESPACE}")
    assert "mine" in plane.kubectl("get", "llmservices", "-n=a", "-o=name")
    release()
    assert "mine" in plane.kubectl("get", "llmservices", "-n=a", "-o=name")


@pytest.mark.parametrize(
    ("settings", "elsewhere"), [((), "yes"), (("namespaces={a,b}",), "no")], ids=["all", "a and b"]
)
def test_the_account_can_do_its_work_and_no_more(plane, release, settings, elsewhere):
    """As the API server judges it: services yes, other namespaces as configured, Secrets never."""
    release(*settings)
    account = f"system:serviceaccount:{NAMESPACE}:llmservice"

    def may(verb: str, resource: str, namespace: str) -> str:
        question = ("auth", "can-i", verb, resource, f"-n={namespace}", f"--as={account}")
        try:
            return plane.kubectl(*question).strip()
        except ClusterError as refusal:  # kubectl ends with 1 for a no
            assert "ended with 1: no" in str(refusal)  # noqa: PT017
            return "no"

    assert may("patch", "deployments.apps", "a") == "yes"
    assert may("list", "llmservices.llmservice.dev", "b") == "yes"
    assert may("patch", "deployments.apps", "default") == elsewhere
    assert may("update", "leases.coordination.k8s.io", NAMESPACE) == "yes"
    assert may("update", "leases.coordination.k8s.io", "a") == "no"
    assert may("get", "secrets", "a") == "no"
    assert may("update", "llmservices.llmservice.dev", "a") == "no"


def test_the_account_may_run_a_router_where_the_restricted_standard_is_enforced(plane, release):
    """It grants only what it has, owns every field that it sends, and the pods are admitted."""
    release("namespaces={a,b}")
    plane.kubectl("apply", "-n=a", "-f", "-", input=json.dumps(SERVICE))
    uid = plane.kubectl("get", "llmservice/mine", "-n=a", "-o=jsonpath={.metadata.uid}")
    owner = ServiceObject(ServiceKey("a", "mine"), uid, 1, {}, {})
    account = f"--as=system:serviceaccount:{NAMESPACE}:llmservice"

    for manifest in build_router(owner, 2, "{}", Config(), drain_seconds=60):
        words = ("apply", "--server-side", f"--field-manager={CHILD_MANAGER}", "--validate=strict")
        shown = ("-o=json", "--show-managed-fields", account, "-f", "-")
        live = json.loads(plane.kubectl(*words, *shown, input=json.dumps(manifest)))
        assert lost_fields(manifest, owned_fields(live["metadata"]["managedFields"])) == ()

    plane.kubectl("rollout", "status", "deployment/mine-router", "-n=a", "--timeout=60s")
    router = "system:serviceaccount:a:mine-router"
    question = ("auth", "can-i", "watch", "configmaps/mine-router", "-n=a", f"--as={router}")
    assert plane.kubectl(*question).strip() == "yes"
    objects = ("deployment,pdb,configmap,rolebinding,role,serviceaccount", "mine-router")
    plane.kubectl("delete", *objects, "-n=a", account)


def test_people_with_the_edit_role_may_create_services(plane, release):
    """The cluster's own roles are extended, so a namespace's team needs no new binding."""
    release()
    plane.kubectl("create", "rolebinding", "team", "-n=a", "--clusterrole=edit", "--user=someone")
    question = ("auth", "can-i", "create", "llmservices.llmservice.dev", "-n=a", "--as=someone")

    def may() -> bool:
        try:
            return plane.kubectl(*question).strip() == "yes"
        except ClusterError:
            return False

    wait_until(may, what="the controller that extends the roles", seconds=20)
