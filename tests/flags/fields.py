"""What a config dataclass field becomes on the command line.

Decides kind, choices and arity of an option from the field's annotation, in the order of
``_compute_kwargs`` of vLLM's ``engine/arg_utils.py``; used by :mod:`tests.flags.generate`.
It refuses to know which fields become options at all.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.flags.wheel import NotUnderstoodError, Wheel

ENGINE = "vllm.engine.arg_utils"

BUILTIN = {"bool", "int", "float", "str", "dict", "list", "tuple", "set"}
TYPING = {"List": "list", "Dict": "dict", "Tuple": "tuple", "Set": "set"}
SCALARS = {"int", "float", "str"}


@dataclass(frozen=True)
class Atom:
    """One member of a type annotation: ``int``, ``None``, a literal, a dataclass, ..."""

    name: str
    args: tuple[Any, ...] = ()
    origin: "tuple[str, ast.ClassDef] | None" = None


@dataclass(frozen=True)
class Spec:
    """What one option takes."""

    kind: str = "str"
    nargs: str | None = None
    nullable: bool = False
    choices: tuple[Any, ...] | None = None
    fold: bool = False
    keys: tuple[str, ...] = ()
    negatable: bool = False


class Types:
    """Evaluate annotations to sets of atoms, the way ``get_type_hints`` of arg_utils does."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel = wheel

    def atoms(self, node: ast.AST, module: str) -> list[Atom]:
        """Members of a (union) annotation, aliases followed."""
        match node:
            case ast.Constant(value=None):
                return [Atom("None")]
            case ast.Constant(value=str(text)):
                return self.atoms(ast.parse(text, mode="eval").body, module)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return [*self.atoms(left, module), *self.atoms(right, module)]
            case ast.Subscript(value=base, slice=inner):
                return self.subscript(ast.unparse(base), inner, module)
            case ast.Name(id=name):
                return self.named(name, module)
        return [Atom(ast.unparse(node))]

    def subscript(self, base: str, inner: ast.AST, module: str) -> list[Atom]:
        """``Literal[...]``, ``list[int]``, ``Optional[X]``, ``Annotated[X, ...]`` and the like."""
        parts = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
        base = TYPING.get(base, base)
        if base == "Literal":
            return [Atom("Literal", tuple(v for p in parts for v in self.literals(p, module)))]
        if base == "Union":
            return [atom for part in parts for atom in self.atoms(part, module)]
        if base == "Optional":
            return [*self.atoms(parts[0], module), Atom("None")]
        if base in ("Annotated", "SkipValidation"):
            return self.atoms(parts[0], module)
        if base in ("list", "tuple", "set"):
            return [Atom(base, tuple(tuple(self.atoms(part, module)) for part in parts))]
        return [Atom(base)]

    def named(self, name: str, module: str) -> list[Atom]:
        """A bare name: a builtin, a class of the wheel, or an alias to evaluate."""
        if name in BUILTIN:
            return [Atom(name)]
        found = self.wheel.find(module, name)
        if found is None:
            return [Atom(TYPING.get(name, name))]
        where, node = found
        if isinstance(node, ast.ClassDef):
            return [self.class_atom(where, node)]
        return self.atoms(node, where)

    def class_atom(self, module: str, node: ast.ClassDef) -> Atom:
        """A dataclass, a subclass of dict, or any other class."""
        if is_dataclass(node):
            return Atom("dataclass", (node.name,), (module, node))
        bases = {ast.unparse(base).split("[")[0] for base in node.bases}
        return Atom("dict") if "dict" in bases else Atom(node.name)

    def literals(self, node: ast.AST, module: str) -> list[Any]:
        """Values inside ``Literal[...]``; nested aliases are flattened."""
        if isinstance(node, ast.Constant):
            return [node.value]
        if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
            return [ast.literal_eval(node)]
        atoms = self.atoms(node, module)
        values = [value for atom in atoms if atom.name == "Literal" for value in atom.args]
        if not values:
            raise NotUnderstoodError(f"{module}: Literal[{ast.unparse(node)}]")
        return values

    def constant(self, node: ast.AST, module: str) -> Any:
        """A literal, or a name bound to one; None when it is computed."""
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            pass
        if isinstance(node, ast.Name) and (found := self.wheel.find(module, node.id)):
            return self.constant(found[1], found[0])
        return None


def is_dataclass(node: ast.ClassDef) -> bool:
    """Whether a class is decorated as a (pydantic) dataclass; vLLM's is called ``config``."""
    names = {ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list}
    return bool(names & {"config", "dataclass", "dataclasses.dataclass"})


class Fields:
    """Dataclass fields and what ``_compute_kwargs`` makes of them."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel = wheel
        self.types = Types(wheel)
        compute = self.definition(ENGINE, "_compute_kwargs")
        self.human = human_readable_names(compute)
        #: 0.30 offers the string "None" as a choice, which then fails; later ones accept it.
        self.none_is_choice = "append(None)" in ast.unparse(compute)

    def definition(self, module: str, name: str) -> ast.AST:
        """Node of a class or function; raises when the wheel has none."""
        found = self.wheel.find(module, name)
        if found is None:
            raise NotUnderstoodError(f"{name} is not in {module} of {self.wheel.version}")
        return found[1]

    def of(self, module: str, cls: str) -> dict[str, tuple[ast.AnnAssign, str]]:
        """Fields of a dataclass in order, inherited ones first, each with its module."""
        found = self.wheel.find_class(module, cls)
        if found is None:
            return {}
        where, node = found
        fields: dict[str, tuple[ast.AnnAssign, str]] = {}
        for base in node.bases:
            fields |= self.of(where, ast.unparse(base))
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                if ast.unparse(item.annotation).startswith(("ClassVar", "InitVar")):
                    continue
                fields[item.target.id] = (item, where)
        return fields

    def specs(self, module: str, cls: str) -> "LazySpecs":
        """Every field of a config class as an option, computed when first asked for."""
        return LazySpecs(self, self.of(module, cls))

    def keys(self, atom: Atom) -> tuple[str, ...]:
        """First-level names a JSON object of this dataclass may carry."""
        if atom.origin is None:
            return ()
        module, node = atom.origin
        fields = self.of(module, node.name)
        return tuple(sorted(n for n, (item, _) in fields.items() if "init=False" not in text(item)))

    def spec(self, name: str, item: ast.AnnAssign, module: str) -> Spec:
        """The order of the tests is that of ``_compute_kwargs``: it decides."""
        atoms = self.types.atoms(item.annotation, module)
        names = {atom.name for atom in atoms}
        nullable = "None" in names and "bool" not in names
        if config := next((a for a in atoms if a.name == "dataclass"), None):
            return Spec("object", nullable=nullable, keys=self.keys(config))
        if names == {"bool", "str", "None"}:
            return Spec(nargs="?")
        if "bool" in names:
            return Spec("bool", negatable=True)
        if "Literal" in names:
            return self.literal(atoms, nullable=nullable)
        for sequence in ("tuple", "list", "set"):
            if sequence in names:
                return self.sequence(atoms, sequence, nullable=nullable)
        return Spec(self.scalar(name, names), nullable=nullable)

    def literal(self, atoms: list[Atom], *, nullable: bool) -> Spec:
        """A literal beside ``str`` is only a hint; alone it is the list of choices."""
        values = next(a for a in atoms if a.name == "Literal").args
        kind = type(values[0]).__name__
        if any(a.name == "str" for a in atoms):
            return Spec(kind, nullable=nullable)
        return Spec(kind, choices=tuple(sorted(values)), nullable=nullable and self.none_is_choice)

    def sequence(self, atoms: list[Atom], name: str, *, nullable: bool) -> Spec:
        """``list[X]`` takes one or more X."""
        element = next(a for a in atoms if a.name == name).args[0]
        if len(element) > 1:
            return Spec("str", nargs="+", nullable=nullable)
        if element[0].name == "Literal":
            return replace(self.literal(list(element), nullable=nullable), nargs="+")
        # A class of its own (a LoRA module) is built by a custom action from strings.
        kind = element[0].name if element[0].name in SCALARS else "str"
        return Spec(kind, nargs="+", nullable=nullable)

    def scalar(self, name: str, names: set[str]) -> str:
        """Kind of a field that is neither boolean, literal nor sequence."""
        foreign = names - BUILTIN - {"None"}
        if "int" in names:
            if name == "max_model_len":
                return "int-human-auto"
            return "int-human" if name in self.human else "int"
        if "float" in names:
            return "float"
        if "dict" in names:
            # NoneType lives in builtins, so only real foreign types make it a union.
            return "json-or-str" if "str" in names or foreign else "json"
        if "str" in names or foreign:
            return "str"
        raise NotUnderstoodError(f"type {sorted(names)} of {name}")


class LazySpecs(dict[str, Spec]):
    """Specs by field name; most fields of a config class never become an option."""

    def __init__(self, fields: Fields, items: dict[str, tuple[ast.AnnAssign, str]]) -> None:
        super().__init__()
        self.fields = fields
        self.items_by_name = items

    def __missing__(self, name: str) -> Spec:
        self[name] = self.fields.spec(name, *self.items_by_name[name])
        return self[name]

    def all(self) -> Iterator[tuple[str, Spec]]:
        """Every field, in the order it was declared."""
        for name in self.items_by_name:
            yield name, self[name]


def human_readable_names(compute: ast.AST) -> set[str]:
    """The set literal in ``_compute_kwargs`` that lists options such as ``--x 1k``."""
    for node in ast.walk(compute):
        match node:
            case ast.Assign(targets=[ast.Name(id="human_readable_int_args")], value=value):
                return set(ast.literal_eval(value))
    raise NotUnderstoodError("_compute_kwargs has no human_readable_int_args")


def text(node: ast.AST | None) -> str:
    """Source of a node."""
    return "" if node is None else ast.unparse(node)
