"""Manifests are read as kubectl reads them; the contract tests ask kubectl itself."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice.cli.documents import MAX_BYTES, DocumentError, dump_documents, load_documents
from tests.unit.cli.scalars import SCALARS


def _load(folder: Path, text: str) -> list[dict[str, Any]]:
    path = folder / "manifest.yaml"
    path.write_text(text, encoding="utf-8")
    return list(load_documents(str(path)))


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_plain_scalars_are_those_of_kubectl(tmp_path: Path, text: str, value: Any) -> None:
    """Booleans, numbers and texts where PyYAML and kubectl disagree."""
    (document,) = _load(tmp_path, f"v: {text}\n")

    assert {"v": value} == document
    assert type(value) is type(document["v"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\n", "line 2, column 1"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is given twice"),
        ("a: .nan\n", ".nan is no number"),
        ("a: !!timestamp 2026-01-01\n", "could not determine a constructor"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("? [a, b]\n: 1\n", "a key must be a scalar"),
        ("a: &x [*x]\n", "Circular"),
        ("- a\n", "a manifest is an object"),
        ("text\n", "a manifest is an object"),
        ("a: \x00\n", "special characters"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_no_manifest_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    """Malformed text names its line; nothing is raised but DocumentError."""
    with pytest.raises(DocumentError, match=words.replace("[", r"\[")):
        _load(tmp_path, text)


def test_aliases_cannot_grow_without_bound(tmp_path: Path) -> None:
    """Ten lines that stand for a billion texts are refused for what they would be sent as."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
    )

    with pytest.raises(DocumentError, match=f"larger than {MAX_BYTES} bytes"):
        _load(tmp_path, bomb)


def test_anchors_and_merge_keys_are_expanded(tmp_path: Path) -> None:
    """What people use aliases for works."""
    (document,) = _load(tmp_path, "a: &a {x: 1, z: 2}\nb: {<<: *a, z: 3}\n")

    assert {"x": 1, "z": 3} == document["b"]


def test_keys_are_texts(tmp_path: Path) -> None:
    """Keys that look like numbers or booleans become texts, as in JSON."""
    assert [{"1": "a", "true": "b", "1.5": "c"}] == _load(tmp_path, "1: a\non: b\n1.5: c\n")


def test_empty_documents_are_left_out_and_lists_are_opened(tmp_path: Path) -> None:
    """A file of several documents, one of them what ``kubectl get -o yaml`` prints."""
    text = "---\n---\nkind: A\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n---\n# nothing\n"

    assert ["A", "B", "C"] == [document["kind"] for document in _load(tmp_path, text)]


def test_json_is_read_as_json(tmp_path: Path) -> None:
    """Tabs are fine in JSON and are not in YAML."""
    assert [{"kind": "A"}] == _load(tmp_path, '{\n\t"kind": "A"\n}\n')


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The operating system's own words."""
    with pytest.raises(DocumentError, match="No such file"):
        list(load_documents(str(tmp_path / "nope.yaml")))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Not UTF-8 is a DocumentError like any other."""
    path = tmp_path / "manifest.yaml"
    path.write_bytes(b"a: \xff\n")

    with pytest.raises(DocumentError, match="utf-8"):
        list(load_documents(str(path)))


@settings(deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ab01 :-[]{}&*!?|>'\"%@`#,.~<\n\t"), max_size=40))
def test_no_text_raises_anything_else(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the text, the answer is documents or a DocumentError."""
    documents: list[dict[str, Any]] = []
    with contextlib.suppress(DocumentError):
        documents = _load(tmp_path_factory.getbasetemp(), text)

    assert all(isinstance(document, dict) for document in documents)


@pytest.mark.parametrize(
    "text", ["4339480e38", "1e3", "0x1f", "y", "off", "~", "", ".5", "017", "1_000", ".inf", "a"]
)
def test_text_stays_text_for_kubectl(text: str, tmp_path: Path) -> None:
    """A label's value may look like a number to one reader of YAML and not to another."""
    manifests = [{"kind": "X", "labels": {"a": text}}]

    assert manifests == _load(tmp_path, dump_documents(manifests))
