"""Would the API server take this manifest? Its verdict, without it.

The three things it does with an LLMService: strict decoding (no field it has never heard of),
the schema of the CRD, and the rules in it. ``llmservice validate`` asks this first; the corpus
test puts the same manifests to a real API server and compares. What only the operator knows
(the engine's flags, the pod) is judged by :mod:`llmservice.core.validation`.

>>> [str(violation) for violation in admission_violations({"apiVersion": "v1"})]
['apiVersion: must be llmservice.dev/v1alpha1']
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmservice.api import names
from llmservice.api.metadata import ObjectMeta
from llmservice.api.rules import Violation, check_rules
from llmservice.api.schema import prune_nulls, root_schema
from llmservice.api.v1alpha1 import LLMService, LLMServiceSpec, parse_spec

MAX_DEPTH = 40
"""Far more than a pod has, and less than what breaks the parsers and walks that come after."""
TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels: no pod is"

_ENVELOPE = ("apiVersion", "kind", "metadata")
_UNKNOWN_FIELD = "extra_forbidden"
_KEY_MARK = "[key]"
"""What pydantic puts at the end of a location that is about a map's key."""
_SHOWN_VALUE = 80

_verdicts: dict[bytes, tuple[Violation, ...]] = {}
_VERDICTS_LIMIT = 16_384


def admission_violations(document: object) -> list[Violation]:
    """What the API server would refuse in a manifest that ``kubectl apply`` sends.

    Args:
        document: any value; what is no manifest is a violation, never an exception.
    """
    try:
        plain = json.loads(json.dumps(document, allow_nan=False), parse_float=_number)
    except (TypeError, ValueError, RecursionError):
        return [Violation("yaml", "holds values that JSON, and so the API server, does not know")]
    shape = list(_shape_of_document(plain))
    if shape:
        return shape
    pruned = prune_nulls(plain, root_schema())
    return [*broken_rules(pruned["metadata"]["name"], parse_spec(pruned["spec"]))]


def broken_rules(name: str, spec: LLMServiceSpec) -> tuple[Violation, ...]:
    """The rules of the CRD that the spec of the LLMService ``name`` breaks."""
    # The parsed spec, not the raw one: rules rely on every field being of its type.
    known = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    # The reconciler asks again on every event, and CEL takes half a millisecond.
    digest = hashlib.blake2b(json.dumps([name, known]).encode(), digest_size=16).digest()
    verdict = _verdicts.get(digest)
    if verdict is None:
        if len(_verdicts) >= _VERDICTS_LIMIT:
            _verdicts.clear()
        verdict = tuple(check_rules({"metadata": {"name": name}, "spec": known}))
        _verdicts[digest] = verdict
    return verdict


def is_deeper(value: object, levels: int = MAX_DEPTH) -> bool:
    """Whether maps and lists are nested more than ``levels`` deep; walks no further than that."""
    if isinstance(value, Mapping):
        return levels == 0 or any(is_deeper(item, levels - 1) for item in value.values())
    if isinstance(value, list):
        return levels == 0 or any(is_deeper(item, levels - 1) for item in value)
    return False


def shape_violations(error: ValidationError, root: str) -> list[Violation]:
    """The findings of pydantic as violations with the field's full path."""
    return [Violation(_path(root, item["loc"]), _words(item, root)) for item in error.errors()]


def _number(text: str) -> int | float:
    """JSON has one kind of number, so ``256.0`` is an integer."""
    number = float(text)
    return int(number) if number.is_integer() else number


def _shape_of_document(plain: Any) -> Iterator[Violation]:
    if is_deeper(plain):
        yield Violation("yaml", TOO_DEEP)
    elif not isinstance(plain, dict):
        yield Violation("yaml", "must be an object with apiVersion, kind, metadata and spec")
    elif plain.get("apiVersion") != names.API_VERSION:
        yield Violation("apiVersion", f"must be {names.API_VERSION}")
    elif plain.get("kind") != names.KIND:
        yield Violation("kind", f"must be {names.KIND}")
    else:
        pruned = prune_nulls(plain, root_schema())
        body = {key: value for key, value in pruned.items() if key not in _ENVELOPE}
        yield from _shape_of(ObjectMeta, pruned.get("metadata", {}), "metadata")
        yield from _shape_of(LLMService, body, "")


def _shape_of(model: type[BaseModel], value: object, root: str) -> Iterator[Violation]:
    """Strict: what an editor can mend is refused, though a stored object would be tolerated."""
    try:
        model.model_validate_json(
            json.dumps(value), strict=True, extra="forbid", by_alias=True, by_name=False
        )
    except ValidationError as error:
        for violation, item in zip(shape_violations(error, root), error.errors(), strict=True):
            # The API server drops a manifest's status unread, but for fields it has never heard of.
            if item["loc"][:1] != ("status",) or item["type"] == _UNKNOWN_FIELD:
                yield violation


def _path(root: str, location: tuple[int | str, ...]) -> str:
    path = root
    for part in location:
        if part == _KEY_MARK:
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".")


def _words(item: ErrorDetails, root: str) -> str:
    """What pydantic says, or something better where the fix is known."""
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return "is required"
    if kind == _UNKNOWN_FIELD:
        return f"unknown field{_did_you_mean(root, item['loc'])}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"must be text: put {json.dumps(value)} in quotes"
    if kind == "string_pattern_mismatch":
        return f"{_shortened(value)} does not match {item['ctx']['pattern']}"
    return item["msg"]


def _did_you_mean(root: str, location: tuple[int | str, ...]) -> str:
    """The field of the same object whose name is nearest, if one is near."""
    path: list[int | str] = [root, *location] if root else [*location]
    *parents, name = path
    node = root_schema()
    for part in parents:
        node = node["items"] if isinstance(part, int) else node.get("properties", {}).get(part, {})
    near = difflib.get_close_matches(str(name), node.get("properties", {}), n=1)
    return f": did you mean {near[0]}?" if near else ""


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_VALUE else f"{text[:_SHOWN_VALUE]}..."
