"""The copy of the API server's judgement: it never raises, whatever it is given."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice.api.admission import MAX_DEPTH, admission_violations, is_deeper
from llmservice.api.schema import root_schema
from llmservice.core.validation import InvalidSpec, validate_document, validate_spec
from tests.corpus.mutations import mutated_manifests

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4),
    max_leaves=20,
)


def _manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "llmservice.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "qwen"},
        "spec": {"model": {"id": "Qwen/Qwen3-8B"}, "accelerator": {}, **spec},
    }


@settings(deadline=None)
@given(document=_JSON | st.binary() | st.dates() | st.sets(st.integers()))
def test_anything_gets_a_verdict(document: Any) -> None:
    """A value of any kind is refused in words; nothing is raised."""
    assert [violation for violation in validate_document(document) if violation.message]


@settings(deadline=None)
@given(spec=_JSON, metadata=_JSON, status=_JSON)
def test_any_body_gets_a_verdict(spec: Any, metadata: Any, status: Any) -> None:
    """With the right apiVersion and kind, the rest may be anything."""
    document = {**_manifest(), "spec": spec, "metadata": metadata, "status": status}

    assert isinstance(validate_document(document), list)


@settings(deadline=None)
@given(document=mutated_manifests())
def test_almost_valid_manifests_get_a_verdict(document: dict[str, Any]) -> None:
    """Manifests near the valid ones reach every rule, and none of them raises."""
    for violation in validate_document(document):
        assert violation.field
        assert violation.message


@settings(deadline=None)
@given(document=mutated_manifests(), extra=_JSON)
def test_stored_specs_with_unknown_fields_never_raise(document: dict[str, Any], extra: Any) -> None:
    """An object of a newer version, or stored before a rule existed, gets a verdict."""
    spec = _with_unknown_fields(document.get("spec", {}), extra)

    verdict = validate_spec("qwen", spec)

    assert not isinstance(verdict, InvalidSpec) or verdict.message


def _with_unknown_fields(value: Any, extra: Any) -> Any:
    if isinstance(value, dict):
        below = {name: _with_unknown_fields(item, extra) for name, item in value.items()}
        return {**below, "fieldOfTheFuture": extra}
    if isinstance(value, list):
        return [_with_unknown_fields(item, extra) for item in value]
    return value


def test_unknown_new_fields_are_left_alone() -> None:
    """An older operator works on what it knows of an object written for a newer one."""
    spec = _manifest(engine={"maxNumSeqs": 8, "future": {"x": 1}}, future=[1])["spec"]

    assert not isinstance(validate_spec("qwen", spec), InvalidSpec)


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    """Nesting beyond any pod's is refused before it can exhaust a parser."""
    deep: Any = {}
    for _ in range(depth):
        deep = {"x": deep}
    document = _manifest(podTemplate={"spec": {"affinity": deep}})

    assert ["yaml"] == [violation.field for violation in validate_document(document)]
    assert isinstance(validate_spec("qwen", document["spec"]), InvalidSpec)


def test_depth_is_that_of_maps_and_lists() -> None:
    """Scalars have no depth, and a list counts like a map."""
    assert not is_deeper("text", 0)
    assert not is_deeper([{"a": 1}], 2)
    assert is_deeper([{"a": []}], 2)
    assert not is_deeper(_manifest(), MAX_DEPTH)


def test_a_near_miss_is_named() -> None:
    """A misspelt field is answered with the one that was meant."""
    (violation,) = validate_document(_manifest(engine={"maxNumSeq": 8}))

    assert "spec.engine.maxNumSeq: unknown field: did you mean maxNumSeqs?" == str(violation)


def test_every_mistake_is_told_at_once() -> None:
    """Three mistakes of shape are three violations, so that one edit mends them all."""
    document = _manifest(replicas="2", engine={"dtype": "int8"}, rolout={})

    assert ["spec.engine.dtype", "spec.replicas", "spec.rolout"] == sorted(
        violation.field for violation in admission_violations(document)
    )


def test_null_is_absent() -> None:
    """A null is pruned wherever the schema knows the field, and nowhere else."""
    assert [] == admission_violations(_manifest(engine=None, replicas=None))
    assert ["spec.nope"] == [v.field for v in admission_violations(_manifest(nope=None))]


def test_whole_numbers_with_a_point_are_integers() -> None:
    """JSON has one kind of number."""
    assert [] == admission_violations(json.loads(json.dumps(_manifest(replicas=2.0))))


def test_the_shared_schema_is_not_changed_by_judging() -> None:
    """Judging leaves the cached schema as it was."""
    before = json.dumps(root_schema())
    admission_violations(_manifest(engine=None))

    assert before == json.dumps(root_schema())
