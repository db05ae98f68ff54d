"""``llmservice status`` against a real API server; the test plays the operator."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.cluster.control_plane import ControlPlane
from llmservice.cli import main

_DEADLINE_SECONDS = 30


class _Operator:
    """Creates services and writes their status."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self.arguments = ["-n", namespace, "--kubeconfig", str(plane.kubeconfig)]
        self._namespace = f"--namespace={namespace}"

    def create(self, name: str = "qwen") -> None:
        manifest = {
            "apiVersion": "llmservice.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": name},
            "spec": {"model": {"id": "Qwen/Qwen3-8B"}, "accelerator": {}},
        }
        self._plane.kubectl("create", self._namespace, "-f", "-", input=json.dumps(manifest))

    def report(self, phase: str, message: str, name: str = "qwen", **conditions: str) -> None:
        status = {
            "observedGeneration": 1,
            "phase": phase,
            "conditions": [
                {
                    "type": type_,
                    "status": value,
                    "reason": "Because",
                    "message": message,
                    "lastTransitionTime": "2026-01-31T08:00:00Z",
                    "observedGeneration": 1,
                }
                for type_, value in conditions.items()
            ],
        }
        self._patch(name, {"status": status})

    def delete(self, name: str = "qwen") -> None:
        self._plane.kubectl("delete", "llm", name, self._namespace)

    def _patch(self, name: str, body: dict[str, Any]) -> None:
        words = ["patch", "llm", name, "--subresource=status", "--type=merge"]
        self._plane.kubectl(*words, "-p", json.dumps(body), self._namespace)


@pytest.fixture
def operator(control_plane: ControlPlane, namespace: str) -> _Operator:
    return _Operator(control_plane, namespace)


@pytest.fixture
def status(operator: _Operator) -> Callable[..., int]:
    """Runs the command for the test's namespace."""
    return lambda *words: main(["status", *words, *operator.arguments])


def test_a_ready_service_ends_with_zero(
    operator: _Operator, status: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Phase, words, model and state; no colours, as this is no terminal."""
    operator.create()
    operator.report("Ready", "1 of 1 replicas are ready", Ready="True")

    assert status("qwen") == 0

    printed = capsys.readouterr().out
    assert printed.startswith("qwen: Ready: 1 of 1 replicas are ready\n")
    assert "  model      Qwen/Qwen3-8B\n" in printed
    assert "\033" not in printed


def test_a_service_nobody_looked_at_ends_with_one(
    operator: _Operator, status: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator that is not running is the first thing to find out."""
    operator.create()

    assert status("qwen") == 1
    assert "no operator has looked at it yet" in capsys.readouterr().out


def test_json_is_for_programs(
    operator: _Operator, status: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """One object for a name, a list for a namespace; the same exit codes."""
    operator.create()
    operator.report("Failed", "choose another dtype", Ready="False", Stalled="True")

    assert status("qwen", "-o", "json") == 1
    one = json.loads(capsys.readouterr().out)
    assert (one["name"], one["verdict"], one["status"]["phase"]) == ("qwen", "Stalled", "Failed")

    assert status("-o", "json") == 1
    assert json.loads(capsys.readouterr().out) == [one]


def test_a_namespace_is_ready_when_all_of_it_is(
    operator: _Operator, status: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A line per service."""
    operator.create("a")
    operator.create("b")
    operator.report("Ready", "fine", name="a", Ready="True")

    assert status() == 1
    operator.report("Ready", "fine", name="b", Ready="True")
    capsys.readouterr()
    assert status() == 0

    assert capsys.readouterr().out == "a: Ready: fine\nb: Ready: fine\n"


def test_a_service_that_is_not_there_ends_with_one(
    status: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Said on standard error; JSON stays JSON."""
    assert status("nope") == 1
    assert "no LLMService nope in namespace" in capsys.readouterr().err

    assert status("nope", "-o", "json") == 1
    assert json.loads(capsys.readouterr().out) is None


def test_no_rights_end_with_three(
    control_plane: ControlPlane, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The API server's own words about who may not do what."""
    nobody = str(control_plane.kubeconfig_for("nobody"))

    assert main(["status", "-n", namespace, "--kubeconfig", nobody]) == 3
    assert "forbidden" in capsys.readouterr().err


@contextmanager
def _watching(operator: _Operator, *words: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "llmservice", "status", "--watch", *words]
    with subprocess.Popen(
        [*command, *operator.arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_watch_tells_every_change_until_ready(operator: _Operator) -> None:
    """A line per change of what a person would want to know, and an end."""
    operator.create()
    with _watching(operator, "qwen") as process:
        assert _line(process).endswith("qwen: Pending: no operator has looked at it yet\n")
        operator.report("Loading", "the model is loading", Ready="False", Reconciling="True")
        assert _line(process).endswith("qwen: Loading: the model is loading\n")
        operator.report("Loading", "the model is loading", Ready="False")
        operator.report("Ready", "1 of 1 replicas are ready", Ready="True")
        assert _line(process).endswith("qwen: Ready: 1 of 1 replicas are ready\n")

        assert process.wait(_DEADLINE_SECONDS) == 0
        assert _line(process) == ""


def test_watch_ends_when_only_a_person_can_help(operator: _Operator) -> None:
    """Stalled is an answer; waiting on would be a lie."""
    operator.create()
    with _watching(operator, "-o", "json") as process:
        assert json.loads(_line(process))["verdict"] == "Progressing"
        operator.report("Failed", "choose another dtype", Ready="False", Stalled="True")
        assert json.loads(_line(process))["verdict"] == "Stalled"

        assert process.wait(_DEADLINE_SECONDS) == 1


def test_watch_ends_when_the_service_is_deleted(operator: _Operator) -> None:
    """Nothing is left to become ready."""
    operator.create()
    with _watching(operator, "qwen") as process:
        _line(process)
        operator.delete()

        assert process.wait(_DEADLINE_SECONDS) == 1


def test_watch_of_a_service_that_is_not_there_ends(operator: _Operator) -> None:
    """A misspelt name must not wait for ever."""
    with _watching(operator, "nope") as process:
        assert process.wait(_DEADLINE_SECONDS) == 1


def test_watch_survives_an_api_server_that_goes_away(
    control_plane: ControlPlane, operator: _Operator
) -> None:
    """It says so, asks again, and misses nothing."""
    operator.create()
    with _watching(operator, "qwen") as process:
        _line(process)
        control_plane.stop_apiserver()
        control_plane.start_apiserver()
        operator.report("Ready", "1 of 1 replicas are ready", Ready="True")
        assert _line(process).endswith("qwen: Ready: 1 of 1 replicas are ready\n")

        assert process.wait(_DEADLINE_SECONDS) == 0
