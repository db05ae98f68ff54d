"""kubectl's reading of YAML, which :mod:`llmservice.cli.documents` copies."""

import json
from typing import Any

import pytest

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.progress import ClusterError
from tests.unit.cli.scalars import SCALARS

_MANIFEST = """
apiVersion: llmservice.dev/v1alpha1
kind: LLMService
metadata: {name: scalars}
spec:
  model: {id: a/b}
  accelerator: {}
  podTemplate:
    spec:
"""


def _read(plane: ControlPlane, lines: list[str]) -> dict[str, Any]:
    said = plane.kubectl(
        "create",
        "--dry-run=client",
        "--validate=false",
        "--output=json",
        "-f",
        "-",
        input=_MANIFEST + "".join(f"      {line}\n" for line in lines),
    )
    found: dict[str, Any] = json.loads(said)["spec"]["podTemplate"]["spec"]
    return found


def test_plain_scalars(control_plane: ControlPlane) -> None:
    """Every scalar of the table means to kubectl what the table says."""
    expected = {f"key{index}": value for index, value in enumerate(SCALARS.values())}
    lines = [f"key{index}: {text}" for index, text in enumerate(SCALARS)]

    assert expected == _read(control_plane, lines)


def test_keys(control_plane: ControlPlane) -> None:
    """Keys become texts; the key ``y`` becomes ``true``."""
    assert {"1": "a", "true": "b", "1.5": "c"} == _read(control_plane, ["1: a", "y: b", "1.5: c"])


@pytest.mark.parametrize("text", [".inf", "-.Inf", ".nan"])
def test_numbers_that_json_lacks(control_plane: ControlPlane, text: str) -> None:
    """Refused before anything is sent."""
    with pytest.raises(ClusterError, match="unsupported value"):
        _read(control_plane, [f"key: {text}"])


def test_a_key_given_twice(control_plane: ControlPlane) -> None:
    """kubectl silently takes the last; the one point in which we are stricter."""
    assert {"key": 2} == _read(control_plane, ["key: 1", "key: 2"])
