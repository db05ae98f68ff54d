"""The CRD: generated, bounded, documented, and within what the API server takes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from llmservice.api.rules import RULES
from llmservice.api.schema import crd, crd_yaml, prune_nulls, root_schema, structural
from llmservice.api.types import ApiObject, FreeForm, Quantity

CRD_FILE = Path(__file__).parents[3] / "crds" / "llmservices.llmservice.dev.yaml"
MAX_CRD_BYTES = 100_000
ORDERED = (
    "spec.rollout.steps",
    "spec.rollout.guardrails",
    "status.rollout.checks",
    "status.rollout.rejected",
)
"""Lists whose order tells something: they have one owner as a whole."""


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from _nodes(below, f"{path}.{name}".lstrip("."))
    for word in ("items", "additionalProperties"):
        if word in schema:
            yield from _nodes(schema[word], f"{path}[]")


def _own_nodes() -> list[tuple[str, dict[str, Any]]]:
    envelope = ("apiVersion", "kind", "metadata", "metadata.name")
    return [(path, node) for path, node in _nodes(root_schema()) if path not in envelope]


def _path(item: object) -> str | None:
    return (item or "root") if isinstance(item, str) else ""


def test_the_committed_crd_is_the_generated_one() -> None:
    """``make generate`` leaves no difference."""
    assert CRD_FILE.read_text(encoding="utf-8") == crd_yaml()


def test_the_crd_is_small_enough_to_be_applied() -> None:
    """Client-side apply keeps a copy in an annotation of at most 256 KiB; ours stays far below."""
    assert len(crd_yaml().encode()) < MAX_CRD_BYTES
    assert crd() == yaml.safe_load(crd_yaml())


def test_every_field_explains_itself() -> None:
    """``kubectl explain`` has a sentence for every field; `metadata` has the API server's own."""
    fields = [(path, node) for path, node in _nodes(root_schema()) if not path.endswith("[]")]

    mute = [path for path, node in fields if not node.get("description", "").endswith(".")]

    assert ["metadata"] == mute


@pytest.mark.parametrize(("path", "node"), _own_nodes(), ids=_path)
def test_everything_is_bounded(path: str, node: dict[str, Any]) -> None:
    """No text, list, map or number of the spec can be larger than somebody thought of."""
    if node.get("x-kubernetes-int-or-string") or node.get("type") == "string":
        assert "maxLength" in node or "enum" in node or node.get("format") == "date-time", path
    if node.get("type") == "array":
        assert "maxItems" in node, path
    if "additionalProperties" in node or "x-kubernetes-preserve-unknown-fields" in node:
        assert "maxProperties" in node, path
    if node.get("type") in ("integer", "number") and path.startswith("spec"):
        assert "minimum" in node, path
        assert "maximum" in node, path


def test_no_bound_is_a_fraction() -> None:
    """The API server cuts a bound of 0.01 to 0 when it compares it with a whole number."""
    for path, node in _own_nodes():
        for word in ("minimum", "maximum"):
            assert float(node.get(word, 0)).is_integer(), path


def test_lists_of_objects_are_keyed() -> None:
    """Two field managers can own items of one list only when it has a key."""
    for path, node in _own_nodes():
        if node.get("type") == "array":
            keyed = node["x-kubernetes-list-type"] == "map"
            is_map = node["items"]["type"] == "object" and path not in ORDERED
            assert keyed == is_map, path
            for key in node.get("x-kubernetes-list-map-keys", ()):
                assert key in node["items"]["required"], path


def test_only_replicas_has_a_default() -> None:
    """A default that the server writes into a spec shows as drift in GitOps tools."""
    assert ["spec.replicas"] == [path for path, node in _own_nodes() if "default" in node]


def test_every_rule_stands_in_the_crd() -> None:
    """Each rule is attached once, with its message and the field it is about."""
    attached = [
        validation
        for _, node in _nodes(root_schema())
        for validation in node.get("x-kubernetes-validations", ())
    ]

    assert sorted(rule.cel for rule in RULES) == sorted(v["rule"] for v in attached)
    assert all(v["message"] and v["reason"] == "FieldValueInvalid" for v in attached)


def test_unions_are_refused() -> None:
    """A structural schema cannot say "text or list"."""
    with pytest.raises(ValueError, match="not a structural schema"):
        structural({"anyOf": [{"type": "string"}, {"type": "array"}]}, {})


def test_tuples_are_refused() -> None:
    """A structural schema cannot say "a text, then a number"."""
    with pytest.raises(ValueError, match="not a structural schema"):
        structural({"type": "array", "prefixItems": [{"type": "string"}]}, {})


class _Leaf(ApiObject):
    """A leaf."""

    kind: Literal["only"] = "only"
    """One word."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """A share
    on two lines."""


class _Tree(ApiObject):
    """A tree."""

    some_leaf: _Leaf | None = None
    """The outer words win."""
    amounts: Annotated[dict[str, Quantity], Field(max_length=2)] | None = None
    """Amounts."""
    anything: FreeForm | None = None
    """Anything."""


def _tree_schema() -> dict[str, Any]:
    raw = _Tree.model_json_schema(by_alias=True)
    return structural(raw, raw["$defs"])


def test_references_are_inlined_and_optional_is_absent() -> None:
    """No ``$ref``, no null, no default; names in camel case; the field's own description."""
    leaf = _tree_schema()["properties"]["someLeaf"]

    assert {"type", "description", "properties"} == leaf.keys()
    assert "The outer words win." == leaf["description"]
    assert ["only"] == leaf["properties"]["kind"]["enum"]


def test_exclusive_bounds_are_written_the_old_way() -> None:
    """OpenAPI 3.0 has a boolean beside the bound."""
    share = _tree_schema()["properties"]["someLeaf"]["properties"]["share"]

    assert {
        "type": "number",
        "description": "A share on two lines.",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
    } == share


def test_an_exclusive_maximum_too() -> None:
    """A share that must stay under 100 percent."""
    share = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 100}

    assert {
        "type": "number",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 100,
        "exclusiveMaximum": True,
    } == structural(share, {})


def test_nulls_are_pruned_where_the_schema_knows_the_field() -> None:
    """Absent for known fields and map values; kept in lists, free-form objects, unknown fields."""
    value = {
        "someLeaf": None,
        "amounts": {"cpu": None, "memory": "1Gi"},
        "anything": {"removed": None},
        "unknown": None,
    }

    assert {
        "amounts": {"memory": "1Gi"},
        "anything": {"removed": None},
        "unknown": None,
    } == prune_nulls(value, _tree_schema())
    assert [None] == prune_nulls([None], {"type": "array", "items": {"type": "string"}})
