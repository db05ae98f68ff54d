"""The API server goes away for a minute: the operator stays up and picks up where it was."""

import asyncio

import pytest

from e2e.cluster.control_plane import ControlPlane
from llmservice.adapters.resources import DEPLOYMENT
from tests.contract.conftest import OPERATOR_USER, install

AWAY_SECONDS = 60
PATIENCE_SECONDS = 30
"""The operator's pauses grow to ten seconds at most."""


@pytest.fixture
def control_plane():
    """One of its own: Kubernetes' other controllers take minutes to recover."""
    with ControlPlane(nodes=2) as plane:
        install(plane)
        yield plane


@pytest.fixture
def operator_kubeconfig(control_plane):
    return control_plane.kubeconfig_for(OPERATOR_USER)


@pytest.mark.timeout(240)
async def test_api_server_that_goes_away_for_a_minute(kube, start_operator, control_plane):
    """No child is touched; edits and deletions from before, meanwhile and after are seen."""
    running = await start_operator()
    await kube.ready_service()
    before = {name: live["metadata"]["uid"] for name, live in (await kube.children()).items()}
    name = next(name.split("/")[1] for name in before if name.startswith("Deployment/"))
    await asyncio.to_thread(control_plane.stop_apiserver)
    await asyncio.sleep(AWAY_SECONDS)

    assert (200, "leading, API server out of reach\n") == await running.ask("/readyz")
    assert not running.operator._elector.leading

    await asyncio.to_thread(control_plane.start_apiserver)
    await kube.edit_service(replicas=2)

    async def scaled():
        return (await kube.get(DEPLOYMENT, name))["spec"]["replicas"] == 2

    await kube.eventually(scaled, "the edit to arrive", PATIENCE_SECONDS)
    after = {name: live["metadata"]["uid"] for name, live in (await kube.children()).items()}

    assert before == after
    assert not running.task.done()

    await kube.delete(DEPLOYMENT, name)

    async def back():
        live = await kube.get(DEPLOYMENT, name)
        return live and live["metadata"]["uid"] != before[f"Deployment/{name}"]

    await kube.eventually(back, "the Deployment to come back", PATIENCE_SECONDS)
    assert (200, "leading\n") == await running.ask("/readyz")
