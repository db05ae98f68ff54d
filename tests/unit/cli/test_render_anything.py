"""Whatever passes ``validate`` renders: no overlay and no odd value raises."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice.cli.offline import render_document
from llmservice.core.resources.overlay import MERGE_KEYS
from llmservice.core.validation import validate_document
from tests.corpus.mutations import mutated_manifests

_TEXTS = st.sampled_from(["engine", "cache", "x"])
_SCALARS = st.none() | st.booleans() | st.integers() | _TEXTS
_ANYTHING = st.recursive(
    _SCALARS,
    lambda below: st.lists(below, max_size=2) | st.dictionaries(_TEXTS, below, max_size=2),
    max_leaves=4,
)
_PLAIN = {
    "affinity": _ANYTHING,
    "emptyDir": _ANYTHING,
    "nodeSelector": _ANYTHING,
    "resources": _ANYTHING.filter(lambda value: value is not None),
    "securityContext": _ANYTHING,
    "tolerations": st.none() | st.lists(_ANYTHING, max_size=2),
}


def _keyed(key: str, below: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Any]:
    items = st.builds(lambda value, rest: {**rest, key: value}, _TEXTS | st.integers(), below)
    return st.lists(items, max_size=2)


def _objects(depth: int = 2) -> st.SearchStrategy[dict[str, Any]]:
    below = _objects(depth - 1) if depth else st.just({})
    keyed = {name: _keyed(key, below) for name, key in MERGE_KEYS.items() if name != "containers"}
    fields = {**keyed, **_PLAIN}
    return st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )


@settings(deadline=None)
@given(document=mutated_manifests())
def test_every_valid_manifest_renders(document: dict[str, Any]) -> None:
    """Near the valid corpus: refused in words, or rendered."""
    assert validate_document(document) or render_document(document, "team")


@settings(deadline=None)
@given(overlay=_objects(), engine=_objects())
def test_every_valid_overlay_renders(overlay: dict[str, Any], engine: dict[str, Any]) -> None:
    """An overlay of right keys and odd values is merged into a pod that keeps its engine."""
    containers = [{**engine, "name": "engine"}]
    document = {
        "apiVersion": "llmservice.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "qwen"},
        "spec": {
            "model": {"id": "Qwen/Qwen3-8B"},
            "accelerator": {},
            "podTemplate": {"spec": {**overlay, "containers": containers}},
        },
    }
    assert not validate_document(document)

    deployment = next(c for c in render_document(document, None) if c["kind"] == "Deployment")

    pod = deployment["spec"]["template"]["spec"]
    assert "engine" in [container["name"] for container in pod["containers"]]
    assert all("resources" in c for c in pod["containers"] if c["name"] == "engine")
