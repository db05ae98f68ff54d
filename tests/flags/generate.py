"""Read every option of ``vllm serve`` out of vLLM wheels, without importing vLLM.

Decides what stands in ``operator/llmservice/data/vllm-flags.json``; run by ``make flags
WHEELS=dir`` whenever a supported minor changes::

    python -m tests.flags.generate WHEELS_DIR operator/llmservice/data/vllm-flags.json

It follows, with ``ast``, what ``engine/arg_utils.py`` and the serve ``cli_args.py`` do when they
build their parser. A statement it does not understand stops it with module and line: a flag left
out in silence would let a broken engine through, or refuse a good one. ``compare.py`` holds the
result against the parser of the real package.
It refuses to know which flags the operator sets itself, and what any flag means.
"""

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.flags.fields import Fields, LazySpecs, Spec, text
from tests.flags.wheel import NotUnderstoodError, Wheel

#: Where ``make_arg_parser`` lives, newest first.
SERVE = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")
PARSER = "vllm.utils.argparse_utils"

#: Conversions of arg_utils.py, argparse_utils.py and the standard library, by name.
KINDS = {
    "int": "int",
    "float": "float",
    "str": "str",
    "json.loads": "json",
    "union_dict_and_str": "json-or-str",
    "human_readable_int": "int-human",
    "human_readable_int_or_auto": "int-human-auto",
    "parse_reasoning_parser": "str",
}
#: Actions that store what they are given, so far as accepting a value goes.
STORING = {"append", "store", "DeprecatedLogConfigFileAction"}
FOLD = "lambda s: s.lower().replace('-', '_')"
#: Lambdas that take any string.
ANY_STRING = {"part.strip() for part in s.split(',')"}
#: Keywords of add_argument that do not change what is accepted.
SILENT = {"dest", "default", "help", "metavar", "const", "required", "deprecated"}


@dataclass
class Option:
    """One option as ``add_argument`` was told: its strings in order, and its values."""

    strings: list[str]
    spec: Spec
    negatives: list[str] = field(default_factory=list)


class Reader:
    """Follow the statements of ``make_arg_parser`` and collect the options they add."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel = wheel
        self.fields = Fields(wheel)
        self.options: list[Option] = []
        #: 0.33 pairs ``--enable-x`` with ``--disable-x`` for every boolean.
        self.paired = "EnableDisableAction" in wheel.scope(PARSER)

    def run(self, module: str) -> list[Option]:
        """Read the whole parser, ``--help`` included."""
        self.options.append(Option(["--help", "-h"], Spec("help")))
        self.function(module, "make_arg_parser")
        return self.options

    def function(self, module: str, name: str, owner: str | None = None) -> None:
        """Read one function or one static method of ``owner``."""
        node = self.method(module, owner, name) if owner else self.wheel.find(module, name)
        if node is None or not isinstance(node[1], ast.FunctionDef):
            raise NotUnderstoodError(f"{owner or module}.{name}")
        self.block(node[1].body, Frame(node[0]))

    def method(self, module: str, owner: str, name: str) -> tuple[str, ast.FunctionDef] | None:
        """A method of a class, its bases searched."""
        found = self.wheel.find_class(module, owner)
        if found is None:
            return None
        where, node = found
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == name:
                return where, item
        bases = (self.method(where, text(base), name) for base in node.bases)
        return next(filter(None, bases), None)

    def block(self, body: list[ast.stmt], frame: "Frame") -> None:
        """Read statements in order; conditions are taken, as a plain start would."""
        for node in body:
            match node:
                case ast.If():
                    self.block(node.body, frame)
                case ast.Assign(targets=[target], value=value):
                    self.assign(target, value, frame)
                case ast.AugAssign(target=target):
                    self.augment(target, frame)
                case ast.Delete(targets=[ast.Subscript() as target]):
                    self.store(target, None, frame)
                case ast.Expr(value=ast.Call() as call):
                    self.call(call, frame)
                case ast.Expr() | ast.Return() | ast.ImportFrom() | ast.Import():
                    continue
                case _:
                    raise NotUnderstoodError(f"{frame.module}:{node.lineno}: {text(node)[:80]}")

    def assign(self, target: ast.AST, value: ast.AST, frame: "Frame") -> None:
        """Names bound to option tables, and changes to one entry of a table."""
        if isinstance(target, ast.Subscript):
            return self.store(target, value, frame)
        name = text(target)
        match value:
            case ast.Call(func=ast.Name(id="get_kwargs"), args=[cls]):
                frame.tables[name] = self.fields.specs(frame.module, text(cls))
            case ast.Subscript(value=ast.Call(func=ast.Name(id="get_kwargs"), args=[cls])):
                key = ast.literal_eval(value.slice)
                frame.specs[name] = self.fields.specs(frame.module, text(cls))[key]
            case ast.Subscript(value=ast.Name(id=table)) if table in frame.tables:
                frame.aliases[name] = (table, ast.literal_eval(value.slice))
            case ast.Call():
                self.call(value, frame)
        return None

    def store(self, target: ast.Subscript, value: ast.AST | None, frame: "Frame") -> None:
        """``table["option"]["type"] = ...`` and ``del table["option"]["nargs"]``."""
        what = ast.literal_eval(target.slice)
        if what in SILENT:
            return
        spec = self.lookup(target.value, frame)
        if what == "nargs" and value is None:
            changed = replace(spec, nargs=None)
        elif what in ("type", "action", "choices") and value is not None:
            changed = self.applied(spec, what, value, frame)
        else:
            raise NotUnderstoodError(f"{frame.module}:{target.lineno}: {text(target)}")
        self.put(target.value, changed, frame)

    def augment(self, target: ast.AST, frame: "Frame") -> None:
        """``+=`` on a help text says nothing; on choices it makes them unknown."""
        if isinstance(target, ast.Subscript) and ast.literal_eval(target.slice) == "choices":
            spec = self.lookup(target.value, frame)
            self.put(target.value, replace(spec, choices=None), frame)

    def lookup(self, node: ast.AST, frame: "Frame") -> Spec:
        """The spec a name or ``table["option"]`` stands for."""
        match node:
            case ast.Name(id=name) if name in frame.specs:
                return frame.specs[name]
            case ast.Name(id=name) if name in frame.aliases:
                table, key = frame.aliases[name]
                return frame.tables[table][key]
            case ast.Subscript(value=ast.Name(id=table), slice=ast.Constant(value=str(key))):
                return frame.tables[table][key]
        raise NotUnderstoodError(f"{frame.module}: {text(node)}")

    def put(self, node: ast.AST, spec: Spec, frame: "Frame") -> None:
        """Write a changed spec back where ``lookup`` found it."""
        match node:
            case ast.Name(id=name) if name in frame.aliases:
                table, key = frame.aliases[name]
                frame.tables[table][key] = spec
            case ast.Name(id=name):
                frame.specs[name] = spec
            case ast.Subscript(value=ast.Name(id=table), slice=ast.Constant(value=str(key))):
                frame.tables[table][key] = spec

    def call(self, call: ast.Call, frame: "Frame") -> None:
        """Calls that matter: add_argument, a nested add_cli_args, a choice removed."""
        match call.func:
            case ast.Attribute(attr="add_argument"):
                self.add_argument(call, frame)
            case ast.Attribute(value=ast.Name(id=owner), attr="add_cli_args"):
                if self.is_frontend(frame.module, owner):
                    self.frontend(frame.module, owner)
                else:
                    self.function(frame.module, "add_cli_args", owner)
            case ast.Attribute(value=ast.Subscript() as target, attr="remove"):
                gone = self.fields.types.constant(call.args[0], frame.module)
                spec = self.lookup(target.value, frame)
                kept = tuple(c for c in spec.choices or () if c != gone)
                self.put(target.value, replace(spec, choices=kept), frame)

    def is_frontend(self, module: str, owner: str) -> bool:
        """Whether a class turns its fields into options by itself."""
        method = self.method(module, owner, "add_cli_args")
        return method is not None and "cls._customize_cli_kwargs" in text(method[1])

    def frontend(self, module: str, owner: str) -> None:
        """Frontend classes turn every field into an option, after some retouching."""
        table = self.fields.specs(module, owner)
        frame = Frame(module, tables={"frontend_kwargs": table})
        # As super() does: the base first.
        for where, cls in reversed(list(self.lineage(module, owner))):
            for item in cls.body:
                if isinstance(item, ast.FunctionDef) and item.name == "_customize_cli_kwargs":
                    frame.module = where
                    self.block(item.body, frame)
        for name, spec in table.all():
            self.add([f"--{name.replace('_', '-')}"], spec)

    def lineage(self, module: str, owner: str) -> Iterator[tuple[str, ast.ClassDef]]:
        """A class and its bases inside the wheel, nearest first."""
        found = self.wheel.find_class(module, owner)
        if found is not None:
            yield found
            for base in found[1].bases:
                yield from self.lineage(found[0], text(base))

    def add_argument(self, call: ast.Call, frame: "Frame") -> None:
        """One ``add_argument``: its strings, ``**table["option"]`` and its keywords."""
        strings = [str(ast.literal_eval(argument)) for argument in call.args]
        spec = Spec()
        for keyword in call.keywords:
            if keyword.arg is None:
                spec = self.expanded(keyword.value, frame)
        for keyword in call.keywords:
            if keyword.arg is not None and keyword.arg not in SILENT:
                spec = self.applied(spec, keyword.arg, keyword.value, frame)
        if strings[0].startswith("-"):
            self.add(strings, spec)

    def expanded(self, node: ast.AST, frame: "Frame") -> Spec:
        """``**table["x"]`` or ``**{**table["x"], "default": None}``."""
        if not isinstance(node, ast.Dict):
            return self.lookup(node, frame)
        spec = Spec()
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                spec = self.lookup(value, frame)
            elif (name := ast.literal_eval(key)) not in SILENT:
                spec = self.applied(spec, name, value, frame)
        return spec

    def applied(self, spec: Spec, name: str, value: ast.AST, frame: "Frame") -> Spec:
        """A spec with one keyword of add_argument on top."""
        if name == "choices":
            return replace(spec, choices=self.choices(value, frame))
        if name == "nargs":
            return replace(spec, nargs=ast.literal_eval(value))
        if name == "type":
            return self.typed(spec, value)
        if name == "action" and text(value) == "LoRAParserAction":
            adapter = self.fields.types.named("LoRAModulePath", frame.module)[0]
            return replace(spec, kind="lora", keys=self.fields.keys(adapter))
        if name == "action":
            return acted(spec, value)
        raise NotUnderstoodError(f"{frame.module}: {name}={text(value)}")

    def choices(self, value: ast.AST, frame: "Frame") -> tuple[Any, ...] | None:
        """Literal choices; None when they depend on the machine."""
        match value:
            case ast.Call(func=ast.Name(id="get_args"), args=[alias]):
                return tuple(self.fields.types.literals(alias, frame.module))
        found = self.fields.types.constant(value, frame.module)
        return None if found is None else tuple(found)

    def typed(self, spec: Spec, value: ast.AST) -> Spec:
        """A spec with another conversion."""
        source = text(value)
        if isinstance(value, ast.Call) and text(value.func) == "optional_type":
            return replace(self.typed(spec, value.args[0]), nullable=True)
        if source in KINDS:
            return replace(spec, kind=KINDS[source], nullable=False, keys=())
        if source == FOLD:
            return replace(spec, kind="str", fold=True, nullable=False)
        if any(known in source for known in ANY_STRING):
            return replace(spec, kind="str", nullable=False)
        raise NotUnderstoodError(f"type={source}")

    def add(self, strings: list[str], spec: Spec) -> None:
        """Record an option with the negative strings its action registers."""
        negatives = []
        if spec.negatable:
            negatives = [f"--no-{s[2:]}" for s in strings if s.startswith("--")]
            if self.paired:
                negatives += [inverse for s in strings if (inverse := inverted(s))]
        self.options.append(Option(strings, spec, negatives))


@dataclass
class Frame:
    """Names known while one function is read."""

    module: str
    tables: dict[str, LazySpecs] = field(default_factory=dict)
    specs: dict[str, Spec] = field(default_factory=dict)
    aliases: dict[str, tuple[str, str]] = field(default_factory=dict)


def acted(spec: Spec, value: ast.AST) -> Spec:
    """A spec with another argparse action."""
    name = text(value).strip("'\"")
    if name == "store_true":
        return Spec("bool")
    if name.endswith("BooleanOptionalAction"):
        return Spec("bool", negatable=True)
    if name in STORING:
        return spec
    raise NotUnderstoodError(f"action={name}")


def inverted(option: str) -> str | None:
    """``--enable-x`` for ``--disable-x`` and the other way round."""
    for ours, theirs in (("--enable-", "--disable-"), ("--disable-", "--enable-")):
        if option.startswith(ours):
            return theirs + option.removeprefix(ours)
    return None


def entry(option: Option) -> tuple[str, dict[str, Any]]:
    """Canonical name and JSON of one option, defaults left out."""
    name = next((s for s in option.strings if s.startswith("--")), option.strings[0])
    spec = option.spec
    found: dict[str, Any] = {"kind": spec.kind}
    if also := [s for s in option.strings if s != name]:
        found["also"] = also
    if option.negatives:
        found["negatives"] = option.negatives
    for key in ("nargs", "nullable", "fold", "choices", "keys"):
        if value := getattr(spec, key):
            found[key] = list(value) if isinstance(value, tuple) else value
    return name, found


def merged(tables: dict[str, dict[str, dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """One entry per flag: its variants, each with the minors that have it."""
    flags: dict[str, list[dict[str, Any]]] = {}
    for minor, table in tables.items():
        for name, found in table.items():
            variants = flags.setdefault(name, [])
            same = next((v for v in variants if {**v, "in": 0} == {"in": 0, **found}), None)
            if same is None:
                variants.append({"in": [minor], **found})
            else:
                same["in"].append(minor)
    return dict(sorted(flags.items()))


def read_wheel(path: Path) -> tuple[str, dict[str, Any], dict[str, dict[str, Any]]]:
    """Minor, source and flags of one wheel."""
    wheel = Wheel(path)
    module = next((m for m in SERVE if wheel.file_of(m)), None)
    if module is None:
        raise NotUnderstoodError(f"{path.name}: no serve cli_args.py where it used to be")
    table = dict(entry(option) for option in Reader(wheel).run(module))
    source = {
        "wheel": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "modules": sorted(wheel.read),
    }
    return ".".join(wheel.version.split(".")[:2]), source, table


def order(minor: str) -> tuple[int, ...]:
    """Sort key of a minor version."""
    return tuple(int(part) for part in minor.split("."))


def rendered(wheels: list[Path]) -> str:
    """The whole file: one line per version and per flag, so that a diff reads well."""
    found = {minor: (source, table) for minor, source, table in map(read_wheel, wheels)}
    minors = sorted(found, key=order, reverse=True)
    sections: dict[str, dict[str, Any]] = {
        "versions": {minor: found[minor][0] for minor in minors},
        "flags": merged({minor: found[minor][1] for minor in minors}),
    }
    about = "Written by tests/flags/generate.py (make flags); do not edit by hand."
    parts = [f' "about": {json.dumps(about)}']
    for title, rows in sections.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items()]
        parts.append(f" {json.dumps(title)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Read the wheels of a folder and write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("wheels", type=Path, help="folder with one vllm wheel per minor")
    options.add_argument("table", type=Path, help="file to write")
    chosen = options.parse_args()
    wheels = sorted(chosen.wheels.glob("vllm-*.whl"))
    if not wheels:
        sys.exit(f"no vllm-*.whl in {chosen.wheels}: pip download --no-deps vllm==VERSION")
    try:
        chosen.table.write_text(rendered(wheels), encoding="utf-8")
    except NotUnderstoodError as error:
        sys.exit(f"vLLM builds its parser in a way this script does not know: {error}")


if __name__ == "__main__":
    main()
