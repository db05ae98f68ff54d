"""The base of every API object and the bounded scalar types they are made of.

Each alias carries both the pydantic constraint and the JSON-schema words of the CRD, so a bound
is written once. Patterns are read as RE2 by the API server and by a cousin of it here; they keep
to what the two read alike: no look-around, and classes written out, as the short ones are ASCII
in one and Unicode in the other.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

_NUMBER = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
QUANTITY_PATTERN = rf"^{_NUMBER}([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{{1,2}})?$"
"""Kubernetes' own grammar without signs and without exponents that only a mistake would have."""
BYTES_PATTERN = r"^([1-9][0-9]*(\.[0-9]+)?|0?\.[0-9]*[1-9][0-9]*)([KMGT]i|[kMGT])?$"
"""More than nothing, in whole prefixes: ``512m`` bytes would be half a byte."""
_DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
# `[.]` and not a backslash: these stand in CEL string literals too.
_DNS_SUBDOMAIN = rf"^{_DNS_LABEL}([.]{_DNS_LABEL})*$"
QUALIFIED_NAME_PATTERN = (
    rf"^({_DNS_LABEL}([.]{_DNS_LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$"
)
"""A label key or a resource's name, with or without the DNS name of who defined it."""


class ApiObject(BaseModel):
    """Camel case on the wire, frozen in Python; a field that we do not know is left alone.

    Ignoring unknown fields keeps an older operator working on objects written for a newer one.
    ``validate`` and ``kubectl apply`` refuse them instead, naming the field.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


_MAX_INTEGER = 2**63 - 1
"""Beyond it the API server reads a number as a fraction, and refuses it."""


def _number_as_text(value: object) -> object:
    """Quantities may be written as bare integers; text is what the rest of the code sees."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_INTEGER:
        return str(value)
    return value


def _quantity_schema(pattern: str, minimum: int) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 32,
            "minimum": minimum,
            "pattern": pattern,
            "x-kubernetes-int-or-string": True,
        }
    )


Quantity = Annotated[
    str,
    BeforeValidator(_number_as_text),
    Field(max_length=32, pattern=QUANTITY_PATTERN),
    _quantity_schema(QUANTITY_PATTERN, 0),
]
"""A Kubernetes quantity, for instance ``500m``, ``24Gi`` or ``2``."""

ByteQuantity = Annotated[
    str,
    BeforeValidator(_number_as_text),
    Field(max_length=32, pattern=BYTES_PATTERN),
    _quantity_schema(BYTES_PATTERN, 1),
]
"""A number of bytes above zero, for instance ``24Gi`` or ``1073741824``."""


def keyed_by(name: str) -> AfterValidator:
    """Refuse a list of objects in which two have the same ``name``, as a map list does."""
    return AfterValidator(_unique(name))


def _unique(name: str) -> Callable[[Sequence[Any]], Sequence[Any]]:
    def check(items: Sequence[Any]) -> Sequence[Any]:
        seen = set()
        for item in items:
            key = getattr(item, name)
            if key in seen:
                raise PydanticCustomError(
                    "duplicate", "{name} {key} is given twice", {"name": name, "key": repr(key)}
                )
            seen.add(key)
        return items

    return check


ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=_DNS_SUBDOMAIN)]
Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=f"^{_DNS_LABEL}$")]
DataKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
QualifiedName = Annotated[str, Field(min_length=1, max_length=317, pattern=QUALIFIED_NAME_PATTERN)]
LabelValue = Annotated[
    str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")
]
EnvName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
FreeForm = Annotated[
    dict[str, Any],
    Field(max_length=64),
    WithJsonSchema(
        {"type": "object", "maxProperties": 64, "x-kubernetes-preserve-unknown-fields": True}
    ),
]
"""An object whose schema is not ours."""
