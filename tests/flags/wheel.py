"""The Python sources of a vLLM wheel, and what a name in one of its modules stands for.

Decides nothing about options; used by :mod:`tests.flags.fields` and :mod:`tests.flags.generate`.
It refuses to import or run anything it reads.
"""

import ast
import zipfile
from collections.abc import Iterator
from pathlib import Path


class NotUnderstoodError(Exception):
    """The source does something these readers were not taught."""


Definition = tuple[str, ast.AST]
"""Module and node of what a name is bound to."""


class Wheel:
    """The Python sources of one wheel, parsed on demand, with name resolution across modules."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = path.name.split("-")[1]
        self._zip = zipfile.ZipFile(path)
        self._names = set(self._zip.namelist())
        self._trees: dict[str, dict[str, Definition]] = {}
        self.read: set[str] = set()

    def file_of(self, module: str) -> str | None:
        """Path of a module in the wheel, or None when it is not part of it."""
        base = module.replace(".", "/")
        return next((p for p in (f"{base}.py", f"{base}/__init__.py") if p in self._names), None)

    def scope(self, module: str) -> dict[str, Definition]:
        """Top-level names of a module: (module, node) of what they are bound to."""
        if module not in self._trees:
            path = self.file_of(module)
            if path is None:
                raise NotUnderstoodError(f"{module} is not in {self.path.name}")
            self.read.add(path)
            tree = ast.parse(self._zip.read(path), path)
            package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
            self._trees[module] = dict(bindings(tree.body, module, package))
        return self._trees[module]

    def find(self, module: str, name: str) -> Definition | None:
        """Follow imports until ``name`` is a definition; None when it leaves the wheel."""
        found = self.scope(module).get(name) or self.starred(module, name)
        if found is None:
            return None
        where, alias = found
        if not isinstance(alias, ast.alias):
            return found
        if self.file_of(where) is None or self.file_of(f"{where}.{alias.name}") is not None:
            return None
        if alias.name not in self.scope(where) and self.starred(where, alias.name) is None:
            # Losing a name here would turn its choices into "any string" in silence.
            raise NotUnderstoodError(f"{where} has no {alias.name}")
        return self.find(where, alias.name)

    def find_class(self, module: str, name: str) -> tuple[str, ast.ClassDef] | None:
        """``find`` for classes of the wheel."""
        match self.find(module, name):
            case (where, ast.ClassDef() as node):
                return where, node
        return None

    def starred(self, module: str, name: str) -> Definition | None:
        """Look a name up behind the ``from x import *`` of a module."""
        for key, (where, _) in self.scope(module).items():
            if key.startswith("* ") and self.file_of(where) and name in self.scope(where):
                return self.find(where, name)
        return None


def bindings(body: list[ast.stmt], module: str, package: str) -> Iterator[tuple[str, Definition]]:
    """Yield what each top-level statement binds, as it is at run time."""
    for node in body:
        match node:
            case ast.ImportFrom():
                source = imported(node, package)
                for alias in node.names:
                    key = f"* {source}" if alias.name == "*" else alias.asname or alias.name
                    yield key, (source, alias)
            case ast.ClassDef() | ast.FunctionDef():
                yield node.name, (module, node)
            case ast.Assign(targets=[ast.Name() as target]):
                yield target.id, (module, node.value)
            case ast.AnnAssign(target=ast.Name() as target, value=ast.expr() as value):
                yield target.id, (module, value)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                # Imported for the type checker only; the else branch is what runs.
                yield from bindings(node.body, module, package)
                yield from bindings(node.orelse, module, package)
            case ast.If() | ast.Try():
                yield from bindings(node.body, module, package)


def imported(node: ast.ImportFrom, package: str) -> str:
    """Absolute name of the module a ``from ... import`` names."""
    parents = package.split(".")
    base = parents[: len(parents) - node.level + 1] if node.level else []
    return ".".join([*base, *filter(None, [node.module])])
