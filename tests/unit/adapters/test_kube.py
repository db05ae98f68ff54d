"""Where credentials come from, and what is said when they are of no use."""

import json

import pytest
from kubernetes.aio.config import incluster_config

from llmservice.adapters import kube
from llmservice.adapters.kube import Connection, Credentials, CredentialsError

CLUSTER = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
USER = {"name": "u", "user": {"token": "secret"}}
CONTEXT = {"name": "x", "context": {"cluster": "c", "user": "u"}}


def a_kubeconfig(path, **changes):
    config = {
        "current-context": "x",
        "clusters": [CLUSTER],
        "users": [USER],
        "contexts": [CONTEXT],
        **changes,
    }
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """The folder of a pod's service account."""
    (tmp_path / "token").write_text("of-the-pod")
    (tmp_path / "ca.crt").write_text("of-the-cluster")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kube, "_POD_NAMESPACE", tmp_path / "namespace")
    # That the CA is read is another test's business.
    monkeypatch.setattr(kube, "_tls_context", lambda _: None)
    return tmp_path


async def opened(kubeconfig=None, context=None):
    return await Connection.open(Credentials(kubeconfig, context))


@pytest.mark.parametrize(("named", "expected"), [({}, "default"), ({"namespace": "team"}, "team")])
async def test_namespace_is_the_current_contexts(tmp_path, named, expected):
    """One that names none means default."""
    context = {"name": "x", "context": {**CONTEXT["context"], **named}}
    connection = await opened(a_kubeconfig(tmp_path / "config", contexts=[context]))

    assert expected == connection.namespace


async def test_first_file_of_several_names_the_context(tmp_path, monkeypatch):
    """KUBECONFIG may hold several paths; those that do not exist are skipped."""
    context = {"name": "x", "context": {**CONTEXT["context"], "namespace": "team"}}
    config = a_kubeconfig(tmp_path / "config", contexts=[context])
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}:{config}")

    assert "team" == (await opened()).namespace


async def test_namespace_in_a_pod_is_its_own(pod):
    """The kubelet writes it beside the token."""
    (pod / "namespace").write_text("team\n")

    assert "team" == (await opened()).namespace


async def test_pod_that_does_not_know_its_namespace(pod):
    """Service account volumes made by hand may lack it."""
    assert "default" == (await opened()).namespace


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "{path} is malformed"),
        ("not a kubeconfig", "{path} is malformed"),
        ("{}", "Expected key current-context in {path}"),
        ("a: [", "line 1, column 5"),
    ],
)
async def test_broken_file_is_named_in_one_line(tmp_path, text, reason):
    """Whatever the library raises."""
    path = tmp_path / "config"
    path.write_text(text)

    with pytest.raises(CredentialsError) as raised:
        await opened(path)
    said = str(raised.value)
    assert said.startswith("no usable kubeconfig: ")
    assert reason.format(path=path) in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("changes", "context", "reason"),
    [
        ({}, "nope", "name nope in"),
        ({"current-context": "nope"}, None, "name nope in"),
        ({"clusters": []}, None, "name c in"),
        ({"users": [{"name": "u", "token": "secret"}]}, None, "Expected key user in"),
        ({"clusters": [{**CLUSTER, "cluster": {"server": 5}}]}, None, "is malformed"),
        (
            {"clusters": [{**CLUSTER, "cluster": {**CLUSTER["cluster"], "proxy-url": 5}}]},
            None,
            "is malformed",
        ),
    ],
)
async def test_entry_that_is_wrong_is_named_without_secrets(tmp_path, changes, context, reason):
    """The library would quote a whole user, token included."""
    with pytest.raises(CredentialsError, match=reason) as raised:
        await opened(a_kubeconfig(tmp_path / "config", **changes), context)
    assert "secret" not in str(raised.value)


async def test_service_account_without_token_is_told(pod):
    """A pod with automountServiceAccountToken: false."""
    (pod / "token").unlink()

    with pytest.raises(CredentialsError, match="no usable service account: Service token file"):
        await opened()


async def test_token_that_vanishes_later_is_told(pod):
    """The token is read again every minute, within a request."""
    connection = await opened()
    (pod / "token").write_text("")
    connection._configuration.refresh_api_key_hook = lambda _: kube.load_incluster_config()

    with pytest.raises(CredentialsError, match="no usable service account: Token file"):
        await connection._authorization()
