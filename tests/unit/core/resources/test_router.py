"""The router's objects: what they may do, what changes them, and how their pods start and stop."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmservice import cli
from llmservice.adapters import permissions
from llmservice.adapters.resources import CHILDREN
from llmservice.api import names
from llmservice.core.config import Config
from llmservice.core.observed import ServiceKey, ServiceObject
from llmservice.core.resources.router import build_router
from llmservice.core.router.envoy import BOOTSTRAP, READY_PATH, RouterSettings, build_static_files

SERVICE = ServiceObject(ServiceKey("team-a", "mistral"), "u1", 1, {}, {})
CONFIG = Config(operator_image="r.example/operator:v1", router_image="r.example/router:v1")


def a_router(replicas=2, traffic="{}", config=CONFIG, drain_seconds=120):
    """The manifests of a router by kind."""
    manifests = build_router(SERVICE, replicas, traffic, config, drain_seconds=drain_seconds)
    return {manifest["kind"]: manifest for manifest in manifests}


def pod(router):
    """Spec of the router's pods."""
    return router["Deployment"]["spec"]["template"]["spec"]


def agent(router):
    """The sidecar that writes Envoy's files."""
    (found,) = pod(router)["initContainers"]
    return found


def envoy(router):
    """The container that serves."""
    (found,) = pod(router)["containers"]
    return found


def changed(one, other):
    """Kinds that differ between two routers."""
    return {kind for kind in one.keys() | other.keys() if one.get(kind) != other.get(kind)}


def test_what_pods_need_is_applied_before_them():
    """Rights and traffic are there before the first pod asks for them."""
    assert [
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "ConfigMap",
        "PodDisruptionBudget",
        "Deployment",
    ] == list(a_router())


def test_every_object_is_a_child_of_the_service_with_the_router_name():
    """The operator sees, keeps and deletes them like every other child."""
    for kind, manifest in a_router().items():
        metadata = manifest["metadata"]
        assert kind in CHILDREN
        assert CHILDREN[kind].api_version == manifest["apiVersion"]
        assert ("mistral-router", "team-a") == (metadata["name"], metadata["namespace"])
        assert names.instance_labels("mistral").items() <= metadata["labels"].items()
        assert names.ROUTER_COMPONENT == metadata["labels"][names.COMPONENT_LABEL]
        assert ["u1"] == [owner["uid"] for owner in metadata["ownerReferences"]]


def test_new_traffic_touches_no_pod():
    """Weights move often; only the ConfigMap carries them."""
    assert {"ConfigMap"} == changed(a_router(traffic="1"), a_router(traffic="2"))
    assert {names.TRAFFIC_KEY: "1"} == a_router(traffic="1")["ConfigMap"]["data"]


@pytest.mark.parametrize("image", ["operator_image", "router_image"])
def test_another_image_replaces_the_pods_and_nothing_else(image):
    """Each is replaced only when its successor is ready, so the service never has fewer."""
    other = a_router(config=replace(CONFIG, **{image: "r.example/other:v2"}))

    assert {"Deployment"} == changed(a_router(), other)
    assert {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    } == other["Deployment"]["spec"]["strategy"]


def test_a_single_pod_does_not_block_a_node_drain():
    """A budget for one pod could protect nothing."""
    assert "PodDisruptionBudget" not in a_router(replicas=1)
    assert {"PodDisruptionBudget", "Deployment"} == changed(a_router(1), a_router(2))


def test_selectors_mean_the_router_pods_only():
    """Neither the budget nor the Deployment takes an engine for a router, or the other way."""
    router = a_router()
    labels = router["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (spread,) = pod(router)["topologySpreadConstraints"]
    for holder in (router["Deployment"]["spec"], router["PodDisruptionBudget"]["spec"]):
        assert names.router_selector("mistral") == holder["selector"]["matchLabels"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    assert names.router_selector("mistral").items() <= labels.items()
    assert not names.engine_selector("mistral").items() <= labels.items()


def test_the_role_is_what_the_agent_reads():
    """One ConfigMap and the endpoints; bound to the router's own account."""
    router = a_router()
    maps, slices = router["Role"]["rules"]
    (subject,) = router["RoleBinding"]["subjects"]

    assert (["configmaps"], ["mistral-router"]) == (maps["resources"], maps["resourceNames"])
    assert (["endpointslices"], ["list", "watch"]) == (slices["resources"], slices["verbs"])
    assert "mistral-router" == router["RoleBinding"]["roleRef"]["name"] == subject["name"]
    assert "mistral-router" == pod(router)["serviceAccountName"]


def test_the_operator_has_every_right_that_it_grants():
    """The API server refuses to let anybody hand on what he cannot do himself."""
    own = {
        (rule["apiGroups"][0], resource, verb)
        for rule in permissions.roles()["services"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    granted = {
        (rule["apiGroups"][0], resource, verb)
        for rule in a_router()["Role"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted
    assert granted <= own


def test_only_the_agent_holds_credentials():
    """Envoy talks to the clients; what it does not have cannot be taken from it."""
    router = a_router()

    assert not router["ServiceAccount"]["automountServiceAccountToken"]
    assert not pod(router)["automountServiceAccountToken"]
    assert {"config", "token"} == {mount["name"] for mount in agent(router)["volumeMounts"]}
    assert [{"name": "config", "mountPath": "/config", "readOnly": True}] == envoy(router)[
        "volumeMounts"
    ]


def test_pods_meet_the_restricted_standard():
    """Non-root, default seccomp, nothing to gain, nothing to write but the shared folder."""
    router = a_router()
    security = pod(router)["securityContext"]

    assert security["runAsNonRoot"]
    assert {"type": "RuntimeDefault"} == security["seccompProfile"]
    for container in (agent(router), envoy(router)):
        assert {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        } == container["securityContext"]
        assert "memory" in container["resources"]["limits"]
        assert "cpu" not in container["resources"]["limits"]


def test_envoy_starts_after_the_agent_and_from_its_files():
    """A sidecar with a start-up probe holds Envoy back until the first traffic lies there."""
    router = a_router()
    probe = agent(router)["startupProbe"]
    arguments = envoy(router)["args"]

    assert "Always" == agent(router)["restartPolicy"]
    assert {"path": "/ready", "port": names.ROUTER_AGENT_PORT} == probe["httpGet"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60
    assert Path("/config") == cli._parser().parse_args(agent(router)["args"]).folder
    assert f"/config/{BOOTSTRAP}" == arguments[arguments.index("-c") + 1]
    assert BOOTSTRAP in build_static_files(RouterSettings("/config", 1, 2))


def test_a_pod_is_ready_as_long_as_its_envoy_takes_requests():
    """The path answers 503 from the moment a drain begins; the agent has no say."""
    router = a_router()

    assert READY_PATH == envoy(router)["readinessProbe"]["httpGet"]["path"]
    assert "readinessProbe" not in agent(router)


def test_a_stop_waits_for_requests_and_outlasts_them():
    """preStop asks the agent; the grace period covers late arrivals, the drain and a margin."""
    router = a_router(drain_seconds=40)

    told = cli._parser().parse_args(agent(router)["args"])
    asked = {"path": told.drain_path, "port": names.ROUTER_AGENT_PORT}
    assert asked == envoy(router)["lifecycle"]["preStop"]["httpGet"]
    assert 40 == told.drain_seconds
    assert pod(router)["terminationGracePeriodSeconds"] > told.propagation_seconds + 40


def test_only_who_may_read_the_pod_can_drain_it():
    """The agent's port is open to the network; the path differs from service to service."""
    told = cli._parser().parse_args(agent(a_router())["args"])
    other = build_router(replace(SERVICE, uid="u2"), 2, "{}", CONFIG, drain_seconds=120)

    assert told.drain_path.startswith("/drain/")
    assert len(told.drain_path) >= len("/drain/") + 16
    assert told.drain_path not in json.dumps(list(other))
