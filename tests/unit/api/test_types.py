"""Scalars of the API: quantities and keyed lists."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llmservice.api.types import ByteQuantity, Quantity
from llmservice.api.v1alpha1 import LLMServiceSpec, parse_spec
from llmservice.core.quantities import parse_quantity
from llmservice.core.revisions import revision_hash

_QUANTITY = TypeAdapter(Quantity)
_BYTES = TypeAdapter(ByteQuantity)


def _spec(**engine: object) -> LLMServiceSpec:
    return parse_spec({"model": {"id": "a/b"}, "accelerator": {}, "engine": engine})


@settings(deadline=None)
@given(
    st.from_regex(r"[0-9]{1,6}(\.[0-9]{0,3})?(m|k|M|G|Ki|Mi|Gi|[eE][0-9]{1,2})?", fullmatch=True)
)
def test_what_the_schema_takes_can_be_computed_with(text: str) -> None:
    """Every quantity that passes the pattern parses to a number."""
    assert parse_quantity(_QUANTITY.validate_python(text)) >= 0


@settings(deadline=None)
@given(st.text(max_size=12))
def test_no_accepted_text_breaks_the_arithmetic(text: str) -> None:
    """Whatever text the pattern lets through, the parser takes."""
    try:
        accepted = _QUANTITY.validate_python(text)
    except ValidationError:
        return
    parse_quantity(accepted)


@pytest.mark.parametrize("text", ["", "-1", "+1", "1e1.5", "1e999999999", "1 Gi", "24GB", "Gi"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    """Signs, spaces, unknown suffixes and absurd exponents are mistakes."""
    with pytest.raises(ValidationError):
        _QUANTITY.validate_python(text)


@pytest.mark.parametrize("value", [0, "0", "0Gi", "0.0Gi", "512m", "1n", -1])
def test_no_bytes_are_refused(value: object) -> None:
    """A KV cache of nothing, or of half a byte, is a mistake."""
    with pytest.raises(ValidationError):
        _BYTES.validate_python(value)


@pytest.mark.parametrize("value", [1, "1", "0.5Gi", ".5Gi", "16Gi", "10.25M"])
def test_bytes_are_taken_as_written(value: object) -> None:
    """Integers become text, text stays."""
    assert str(value) == _BYTES.validate_python(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"cpu": "0.5"}, {"cpu": "500m"}),
        ({"cpu": 4}, {"cpu": "4"}),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}),
        ({"memory": "1e9"}, {"memory": "1G"}),
    ],
)
def test_two_spellings_of_an_amount_are_one_revision(one: object, other: object) -> None:
    """Rewriting 0.5 as 500m restarts no pod."""
    assert revision_hash(_spec(resources={"requests": one})) == revision_hash(
        _spec(resources={"requests": other})
    )
    assert revision_hash(_spec(resources={"requests": one})) != revision_hash(_spec())


def test_two_spellings_of_the_kv_cache_are_one_revision() -> None:
    """The same for the one amount among the knobs."""
    assert revision_hash(_spec(kvCacheMemoryBytes="1.5Gi")) == revision_hash(
        _spec(kvCacheMemoryBytes=1536 * 1024**2)
    )


def test_a_name_given_twice_is_refused() -> None:
    """As the API server does for a list with a key."""
    with pytest.raises(ValidationError, match="name 'A' is given twice"):
        _spec(env=[{"name": "A"}, {"name": "B"}, {"name": "A"}])
