"""The shape of the tree: what would break imports, and the size budgets."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "operator").rglob("*.py"))
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60


def test_operator_is_no_package():
    """``operator/__init__.py`` would shadow the standard library's operator module."""
    assert not (ROOT / "operator" / "__init__.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_stay_in_budget(path):
    """No file over 600 lines, no function over 60."""
    text = path.read_text()
    functions = [
        (node.name, node.end_lineno - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert len(text.splitlines()) <= MAX_FILE_LINES
    assert [] == [f for f in functions if f[1] > MAX_FUNCTION_LINES]


@pytest.mark.parametrize("layer", ["api", "core"])
def test_contract_and_core_are_documented(layer):
    """Every public module, class and function of api and core has a docstring."""
    bare = []
    for path in (ROOT / "operator" / "llmservice" / layer).rglob("*.py"):
        tree = ast.parse(path.read_text())
        nodes = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef))]
        bare += [
            f"{path.name}:{getattr(node, 'name', 'module')}"
            for node in nodes
            if not getattr(node, "name", "").startswith("_") and not ast.get_docstring(node)
        ]

    assert [] == bare
