"""YAML manifests from files or standard input, read the way ``kubectl`` reads them.

PyYAML and kubectl's parser disagree about plain scalars (``y``, ``1e3``, ``12:30``,
``2026-01-01``), so the loader here resolves them by kubectl's table
(sigs.k8s.io/yaml/goyaml.v2:resolve.go). In one point it is stricter on purpose: a key that is
given twice is refused, where kubectl silently takes the last.
"""

import json
import re
import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from llmservice.api import names

MAX_BYTES = 3 * 1024 * 1024
"""What the API server takes in one request; also what keeps a document of aliases from growing."""

MANIFEST = "a manifest is an object with apiVersion and kind"

_TAG = "tag:yaml.org,2002:"
_BOOL = re.compile(
    "^(?:y|Y|yes|Yes|YES|on|On|ON|true|True|TRUE|n|N|no|No|NO|off|Off|OFF|false|False|FALSE)$"
)
_NULL = re.compile("^(?:~|null|Null|NULL|)$")
_NUMBER = re.compile(
    r"^[-+]?(?:0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+"
    r"|(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?)$"
)
_NOT_FINITE = re.compile(r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$")
_OCTAL = re.compile("^([-+]?)0([0-7]+)$")


class DocumentError(Exception):
    """A file cannot be read or is no YAML; the message names the line, the caller the file."""


class _Loader(yaml.SafeLoader):
    """kubectl's YAML: JSON's types only."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[yaml.MappingNode] = set()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        """Keys are texts, as in JSON; one that is given twice or is no scalar is refused."""
        self._check_keys(node)
        self.flatten_mapping(node)
        return {
            self._key_text(key): self.construct_object(value, deep=deep)
            for key, value in node.value
        }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check the keys as written before those of merged maps are put beside them."""
        self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        if node in self._checked:
            return
        self._checked.add(node)
        seen = set()
        for key_node, _ in node.value:
            key = self._key_text(key_node)
            if key in seen:
                _refuse(f"the key {key!r} is given twice", key_node)
            seen.add(key)

    def _key_text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            _refuse("a key must be a scalar", node)
        key = self.construct_object(node)
        return key if isinstance(key, str) else json.dumps(key)


def _refuse(problem: str, node: yaml.Node) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _construct_bool(_: _Loader, node: yaml.ScalarNode) -> bool:
    return str(node.value).lower() in ("y", "yes", "on", "true")


def _construct_number(_: _Loader, node: yaml.ScalarNode) -> int | float | str:
    text = str(node.value)
    digits = text.replace("_", "")
    if _NOT_FINITE.match(text):
        _refuse(f"{text} is no number that JSON knows", node)
    try:
        return int(_OCTAL.sub(r"\g<1>0o\2", digits), 0)
    except ValueError:
        return _float(digits, text)


def _float(digits: str, text: str) -> int | float | str:
    """JSON has one kind of number, so 256.0 is 256; what overflows stays text."""
    try:
        number = float(digits)
    except ValueError:
        return text
    if number in (float("inf"), float("-inf")):
        return text
    return int(number) if number.is_integer() else number


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("bool", _BOOL, list("yYnNtTfFoO")),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("float", _NUMBER, list("-+.0123456789")),
    ("float", _NOT_FINITE, list("-+.")),
    ("merge", re.compile("^<<$"), ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
_Loader.yaml_constructors.update(
    {
        f"{_TAG}str": yaml.SafeLoader.construct_yaml_str,
        f"{_TAG}merge": yaml.SafeLoader.construct_yaml_str,
        f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
        f"{_TAG}map": yaml.SafeLoader.construct_yaml_map,
        f"{_TAG}null": yaml.SafeLoader.construct_yaml_null,
        f"{_TAG}bool": _construct_bool,
        f"{_TAG}int": _construct_number,
        f"{_TAG}float": _construct_number,
        None: yaml.SafeLoader.construct_undefined,
    }
)


def load_documents(path: str, expected: str = MANIFEST) -> Iterator[dict[str, Any]]:
    """Every document of a file that is not empty, the items of a List one by one.

    Args:
        path: a file; ``-`` is standard input.
        expected: the message for a document that is not an object.

    Raises:
        DocumentError: unreadable, malformed, or not an object.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        documents = [_as_json(document) for document in _parse(text)]
    except OSError as error:
        raise DocumentError(error.strerror or str(error)) from error
    except RecursionError as error:
        raise DocumentError("nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        raise DocumentError(_marked(error)) from error
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(" ".join(str(error).split())) from error
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise DocumentError(expected)
        yield from _items(document)


def load_services(path: str) -> list[dict[str, Any]]:
    """The LLMServices of a file; see :func:`load_documents`."""
    return [document for document in load_documents(path) if document.get("kind") == names.KIND]


def service_name(document: dict[str, Any]) -> str:
    """The name of a manifest, whatever its state; ``-`` for none."""
    metadata = document.get("metadata")
    return str(metadata.get("name", "-")) if isinstance(metadata, dict) else "-"


def _parse(text: str) -> list[Any]:
    if text.lstrip().startswith("{"):
        try:
            return [json.loads(text)]
        except ValueError:
            pass  # a YAML flow mapping
    return list(yaml.load_all(text, Loader=_Loader))


def _marked(error: yaml.MarkedYAMLError) -> str:
    words = ", ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {words}" if mark else words


def _as_json(document: object) -> Any:
    """The document as it would be sent.

    Raises:
        ValueError: it is too large, contains itself, or holds what JSON cannot say.
    """
    parts: list[str] = []
    size = 0
    for part in json.JSONEncoder(allow_nan=False).iterencode(document):
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes, which the API server refuses")
    return json.loads("".join(parts))


def _items(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    items = document.get("items")
    if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
        yield from (item for item in items if isinstance(item, dict))
    else:
        yield document


class _Dumper(yaml.SafeDumper):
    """Quotes what kubectl would read as something else than text: PyYAML leaves 1e3 bare."""


def _quoted(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    patterns = (_NUMBER, _BOOL, _NULL, _NOT_FINITE)
    style = "'" if any(pattern.match(text) for pattern in patterns) else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _quoted)


def dump_documents(manifests: list[dict[str, Any]]) -> str:
    """Manifests as YAML that kubectl reads as they are."""
    dumped: str = yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=100)
    return dumped
