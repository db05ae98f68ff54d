"""The corpus before a real API server: its verdict is that of ``llmservice validate``."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from e2e.cluster.api import RefusedError
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.progress import ClusterError
from llmservice.adapters.resources import OPTIONAL
from llmservice.api.admission import admission_violations
from llmservice.cli.documents import dump_documents, load_documents
from llmservice.cli.offline import render_document
from tests.corpus.cases import Case, cases
from tests.corpus.mutations import mutated_manifests


def _id(case: Case) -> str:
    return case.name


def _refusal(plane: ControlPlane, path: Path) -> str:
    """What ``kubectl apply`` says against a manifest; empty when it is taken."""
    try:
        plane.kubectl("apply", "--dry-run=server", "--namespace=default", "-f", str(path))
    except ClusterError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("case", cases("invalid"), ids=_id)
def test_refuses_what_validate_refuses(control_plane: ControlPlane, case: Case) -> None:
    """Refused by ``kubectl apply`` too, naming the field; a rule's message arrives whole."""
    said = _refusal(control_plane, case.path)

    assert (case.server or case.field) in said
    if case.breaks_a_rule:
        assert case.message in said


def test_accepts_what_only_the_operator_can_refuse(control_plane: ControlPlane) -> None:
    """What the schema and the rules have nothing against is stored."""
    accepted = [*cases("valid"), *cases("refused")]
    files = [f"--filename={case.path}" for case in accepted]

    said = control_plane.kubectl("apply", "--dry-run=server", "--namespace=default", *files)

    assert len(accepted) == said.count("(server dry run)")


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(document=mutated_manifests())
def test_agrees_on_manifests_nobody_thought_of(
    control_plane: ControlPlane, document: dict[str, Any]
) -> None:
    """The API server and our copy of its judgement agree on valid manifests with odd edits."""
    path = "/apis/llmservice.dev/v1alpha1/namespaces/default/llmservices"
    query = "?dryRun=All&fieldValidation=Strict"
    theirs = "accepts"
    try:
        control_plane.api.call("POST", path + query, document)
    except RefusedError as error:
        theirs = error.message

    ours = admission_violations(document)

    assert (theirs == "accepts") == (ours == []), f"server: {theirs}; ours: {ours}"


@pytest.mark.parametrize("case", cases("valid"), ids=_id)
def test_rendered_children_are_accepted(
    control_plane: ControlPlane, restricted_namespace: str, case: Case
) -> None:
    """Every child applies, and its pod passes the Restricted pod security standard."""
    (document,) = load_documents(str(case.path))
    document["metadata"].pop("namespace", None)
    rendered = render_document(document, restricted_namespace)
    # Kinds that this cluster lacks are applied to their real CRDs in tests/integrations.
    children = [child for child in rendered if child["kind"] not in OPTIONAL]

    said = control_plane.kubectl(
        "apply", "--server-side", "--dry-run=server", "-f", "-", input=dump_documents(children)
    )
    assert len(said.splitlines()) == len(children)

    (deployment,) = [child for child in children if child["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": "probe"},
        # Admission looks the account up, and a dry run has made none.
        "spec": {**template["spec"], "serviceAccountName": "default", "priorityClassName": ""},
    }
    said = control_plane.kubectl(
        "create",
        "--dry-run=server",
        f"--namespace={restricted_namespace}",
        "-f",
        "-",
        input=json.dumps(pod),
    )
    assert said.startswith("pod/probe created")


@pytest.fixture(scope="module")
def restricted_namespace(control_plane: ControlPlane) -> str:
    """A namespace that takes only Restricted pods."""
    name = "restricted"
    control_plane.kubectl("create", "namespace", name)
    control_plane.kubectl(
        "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted"
    )
    control_plane.kubectl(
        "wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=20s"
    )
    return name
