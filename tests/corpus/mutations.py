"""Valid manifests with odd edits, drawn from the schema: what fuzzing the API server is fed.

An edit puts a value somewhere the schema knows (mostly of the right type, at the edges of its
bounds, sometimes of a wrong one), removes a field, or adds one that nobody knows.
"""

import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from llmservice.api.schema import root_schema
from llmservice.cli.documents import load_documents
from tests.corpus.cases import cases

Path = tuple[str | int, ...]

# fmt: off
_TEXTS = (
    "", "a", "A", "a b", "a/b", "a/b/c", "/a", "/", "a..b", ".a", "a.", "a.b", "a_b", "../a", "-a",
    "--x", "é", "e\u0301", "\u0661", "\u0662Gi", "\u212a", "\u017f", "\u2028", "\U0001f600",
    "a\n", "\na", "a\tb", "\x00", "\x7f", "a" * 63, "a" * 64, "a" * 253, "a" * 254, "a" * 512,
    "a" * 513, "0", "1", "1.5", ".5", "5.", "+1", "-1", "1Gi", "1gi", "1E", "1e3", "1e99", "1e100",
    "1" * 32, "1" * 33, "true", "null", "cpu", "memory", "nvidia.com/gpu", "example.com/x",
    "llmservice.dev/x", "app.kubernetes.io/name", "VLLM_PORT", "fp8", "0.33", "0.33.0", "00.1",
    "v1", "vllm/vllm-openai:v0.33.0", "x:5000/y", "x:1.2", "x:v1.2@sha256:ab", "x:1.2@sha256:zz",
    "RollingUpdate", "Recreate", "Replace", "Surge", "Auto", "auto", "$", "^", "[a]", "\\",
)
_NUMBERS = (
    0, 1, -1, 2, 16, 29, 30, 64, 128, 1000, 1001, 1024, 1025, 65535, 65536, 65537, 86400, 86401,
    2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**20, 0.5, 1.5, -0.5, 0.01, 1e-9, 1e300,
)
_SCALARS = {
    "string": _TEXTS, "integer": _NUMBERS, "number": _NUMBERS, "boolean": (True, False),
}
_OTHERS = (
    None, True, False, [], {}, [[]], [None], [{}], {"a": None}, {"a": 1}, {"": "x"}, {"a b": "c"},
    {"name": "A"}, [{"name": "A"}, {"name": "A"}], ["--x", "y"], ["y"], [""], {"cpu": "1"},
    {"cpu": 1}, {"nvidia.com/gpu": 1}, {"hub": {}}, {"hub": {}, "pvc": {"claimName": "a"}},
    {"secretKeyRef": {"name": "a", "key": "b"}},
)
# fmt: on


def mutated_manifests() -> st.SearchStrategy[dict[str, Any]]:
    """Manifests as kubectl would send them: one to three edits away from a valid one."""
    spec = root_schema()["properties"]["spec"]
    places = [(("spec", *path), schema) for path, schema in _places(spec)]
    edit = st.sampled_from(places).flatmap(
        lambda place: st.tuples(st.just(place[0]), _values(place[1]))
    )
    return st.builds(
        _edited,
        st.sampled_from([d for case in cases("valid") for d in load_documents(str(case.path))]),
        st.lists(edit, min_size=1, max_size=3),
        st.sampled_from(["set"] * 8 + ["remove", "unknown"]),
    )


def _places(schema: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from _places(below, (*path, name))
    if "items" in schema:
        yield from _places(schema["items"], (*path, 0))
    if "additionalProperties" in schema:
        yield from _places(schema["additionalProperties"], (*path, "cpu"))


def _values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    odd = st.sampled_from([*_TEXTS, *_NUMBERS, *_OTHERS])
    return st.one_of(_typed(schema), _typed(schema), _typed(schema), odd)


def _typed(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from([*schema["enum"], "", "nope"])
    if "x-kubernetes-int-or-string" in schema:
        return st.sampled_from([*_TEXTS, *_NUMBERS])
    if schema["type"] == "array":
        return st.lists(_typed(schema["items"]), max_size=2)
    if schema["type"] == "object":
        return _typed_object(schema)
    return st.sampled_from(_SCALARS[schema["type"]])


def _typed_object(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "properties" in schema:
        required = set(schema.get("required", ()))
        fields = {name: _typed(below) for name, below in schema["properties"].items()}
        return st.fixed_dictionaries(
            {name: value for name, value in fields.items() if name in required},
            optional={name: value for name, value in fields.items() if name not in required},
        )
    if "additionalProperties" in schema:
        keys = st.sampled_from(_TEXTS)
        return st.dictionaries(keys, _typed(schema["additionalProperties"]), max_size=2)
    return st.dictionaries(st.sampled_from(_TEXTS), st.sampled_from(_OTHERS), max_size=2)


def _edited(base: dict[str, Any], edits: list[tuple[Path, Any]], way: str) -> dict[str, Any]:
    document = copy.deepcopy(base)
    document["metadata"]["namespace"] = "default"
    for path, value in edits:
        _put(document, path, value, way)
    return document


def _put(document: dict[str, Any], path: Path, value: Any, way: str) -> None:
    node: Any = document
    for part, following in itertools.pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(node, list):
            node[:] = node or [empty]
        node = node[0] if isinstance(node, list) else node.setdefault(part, empty)
        if not isinstance(node, type(empty)):
            return
    last = path[-1]
    if isinstance(last, int):
        node.insert(0, value)
    elif way == "remove":
        node.pop(last, None)
    else:
        node[f"{last}X" if way == "unknown" else last] = json.loads(json.dumps(value))
