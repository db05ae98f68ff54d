"""A service answers through its Service, and edits that change no engine pod start no new one."""

import pytest

from e2e.follow import follow
from e2e.stage import Stage
from e2e.traffic import complete, stream

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

_ASK_BY_NAME = """
import json, urllib.request
print(json.load(urllib.request.urlopen(URL + '/models', timeout=20))['data'][0]['id'])
"""


def test_a_completion_is_served_through_the_service(stage: Stage, shared: str) -> None:
    """A chat completion of the asked length comes back from vLLM, whole and as a stream."""
    url = stage.url(shared)
    assert isinstance(complete(url, shared, "Hello", tokens=12), str)
    assert len(list(stream(url, shared, "Hello", tokens=50))) > 1


def test_a_pod_reaches_it_by_the_url_in_the_status(stage: Stage, shared: str) -> None:
    """`status.url` works as it stands from inside the cluster: name, port and path."""
    url = stage.kubectl.get(f"llmservice/{shared}")["status"]["url"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "client",
                    "image": stage.operator,
                    "command": ["python3", "-c", f"URL = {url!r}{_ASK_BY_NAME}"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }
    stage.kubectl.apply(pod)
    try:
        stage.kubectl("wait", "pod/client", "--for=jsonpath={.status.phase}=Succeeded")
    finally:
        said = stage.kubectl("logs", "pod/client").strip()
        stage.kubectl("delete", "pod/client", "--grace-period=1")
    assert shared == said


def test_the_engine_has_the_kv_cache_that_was_planned(stage: Stage, shared: str) -> None:
    """Soon after it serves, `status.capacity` says what vLLM reports: just what was planned."""
    service = follow(
        stage.kubectl, shared, lambda service: "capacity" in service["status"], seconds=60
    )
    status = service["status"]
    assert {
        "revision": status["updatedRevision"],
        "kvCacheTokens": status["plan"]["kvCacheTokens"],
        "maxConcurrency": status["plan"]["maxConcurrency"],
        "deviationPercent": 0,
    } == status["capacity"]


def test_edits_that_change_no_engine_pod_make_no_revision(stage: Stage, shared: str) -> None:
    """Labels, annotations, replicas and rollout settings leave revision and running pod alone."""
    before = stage.kubectl.get(f"llmservice/{shared}")["status"]["stableRevision"]
    known = stage.revisions(shared)
    (pod,) = stage.pods(shared)
    changes = {
        "metadata": {"labels": {"team": "x"}, "annotations": {"note": "y"}},
        "spec": {"replicas": 2, "rollout": {"capacity": "Surge"}},
    }
    stage.kubectl.patch(f"llmservice/{shared}", changes)
    service = stage.settle(shared)
    assert before == service["status"]["stableRevision"] == service["status"]["updatedRevision"]
    assert pod["metadata"]["uid"] in [each["metadata"]["uid"] for each in stage.pods(shared)]
    assert len(stage.pods(shared)) == 2

    stage.kubectl("scale", f"llmservice/{shared}", "--replicas=1")
    service = stage.settle(shared)
    stage.kubectl.patch(f"llmservice/{shared}", {"spec": {"rollout": None}})
    assert before == service["status"]["stableRevision"]
    assert known == stage.revisions(shared)
