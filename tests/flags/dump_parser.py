"""Print what the real ``vllm serve`` parser accepts, as JSON.

Decides nothing: it is the witness that ``compare.py`` holds against the committed flag table. It
runs wherever vLLM is importable, so it needs only the standard library and vLLM, and it can be
piped into a running engine::

    kubectl exec POD -- python3 - < tests/flags/dump_parser.py > parser.json
    python -m tests.flags.compare parser.json

With ``--judge verdicts.json`` it prints instead, for each argument list of that file, whether the
real parser takes it and what it says if not; ``compare.py`` holds that against what is recorded.
It refuses to know the table, Kubernetes and which version is the right one.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

#: What optional_type, parse_type and friends of ``engine/arg_utils.py`` are called here.
KIND_OF_CALLABLE = {
    "int": "int",
    "float": "float",
    "str": "str",
    "loads": "json",
    "human_readable_int": "int-human",
    "human_readable_int_or_auto": "int-human-auto",
    "union_dict_and_str": "json-or-str",
    "parse_reasoning_parser": "str",
    "_compute_kwargs.<locals>.parse_dataclass": "object",
}
WRAPPERS = {"optional_type.<locals>._optional_type", "parse_type.<locals>._parse_type"}


def real_parser() -> Any:
    """Build the parser that ``vllm serve`` builds; its module moved in 0.33."""
    # vLLM is importable only inside an engine, and slow to import.
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.common.cli_args import make_arg_parser
    except ImportError:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))


def unwrapped(conversion: Any) -> tuple[Any, bool]:
    """Take optional_type and parse_type off a conversion; say whether None is allowed."""
    nullable = False
    while getattr(conversion, "__qualname__", "") in WRAPPERS:
        nullable = nullable or conversion.__qualname__.startswith("optional_type")
        conversion = conversion.__closure__[0].cell_contents
    return conversion, nullable


def folds_case(conversion: Any) -> bool:
    """Tell the conversion that lowers case and turns hyphens into underscores."""
    try:
        return bool(conversion("A-B") == "a_b")
    except Exception:
        return False


def object_keys(conversion: Any) -> list[str]:
    """Names a JSON object option accepts at its first level."""
    return keys_of(next(d for d in conversion.__defaults__ if dataclasses.is_dataclass(d)))


def keys_of(config: Any) -> list[str]:
    """Names a dataclass can be made with."""
    return sorted(field.name for field in dataclasses.fields(config) if field.init)


def value_of(action: Any) -> dict[str, Any]:
    """Describe the values one option takes, in the words of the flag table."""
    conversion, nullable = unwrapped(action.type)
    name = getattr(conversion, "__qualname__", "str")
    found: dict[str, Any] = {"kind": KIND_OF_CALLABLE.get(name, "str")}
    if name.endswith("<lambda>") and folds_case(conversion):
        found["fold"] = True
    if action.choices is not None:
        choices = list(action.choices)
        nullable = nullable and None in choices
        found["choices"] = [c for c in choices if c is not None and c != "None"]
    if nullable:
        found["nullable"] = True
    if action.nargs in ("?", "+", "*"):
        found["nargs"] = action.nargs
    if found["kind"] == "object":
        found["keys"] = object_keys(conversion)
    return found


def described(action: Any) -> dict[str, Any]:
    """Describe one option of argparse."""
    if isinstance(action, argparse._HelpAction):
        return {"kind": "help"}
    if action.nargs == 0:
        return {"kind": "bool"}
    found = value_of(action)
    if type(action).__name__ == "LoRAParserAction":
        adapter = sys.modules[type(action).__module__].LoRAModulePath
        found |= {"kind": "lora", "keys": keys_of(adapter)}
    return found


def dump(parser: Any) -> dict[str, Any]:
    """Group every option string by its action, hidden ones included."""
    by_action: dict[int, list[str]] = {}
    actions: dict[int, Any] = {}
    # Some strings are registered with the parser but hidden from the action (0.33).
    for option, action in parser._option_string_actions.items():
        by_action.setdefault(id(action), []).append(option)
        actions[id(action)] = action
    flags = {}
    for key, action in actions.items():
        options = sorted(by_action[key])
        flags[" ".join(options)] = described(action)
    return flags


def judge(parser: Any, arguments: list[str]) -> dict[str, Any]:
    """Parse one argument list as ``vllm serve MODEL`` would; never start anything."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(["model", *arguments])
    except SystemExit as stop:
        said = [line for line in errors.getvalue().splitlines() if line.strip()]
        return {"args": arguments, "accepted": False, "rc": stop.code, "said": said[-1:]}
    except Exception as error:
        said = [f"{type(error).__name__}: {error}"]
        return {"args": arguments, "accepted": False, "rc": 1, "said": said}
    return {"args": arguments, "accepted": True}


def main() -> None:
    """Print the dump, or the verdicts on the lists of a file."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--judge", metavar="FILE", help="JSON list of objects with args")
    chosen = options.parse_args()
    logging.disable(logging.WARNING)
    # vLLM may print while it is imported; the JSON must be alone on stdout.
    with contextlib.redirect_stdout(sys.stderr):
        parser = real_parser()
        from vllm.version import __version__ as version
    answer: dict[str, Any] = {"version": version}
    if chosen.judge:
        rows = json.loads(Path(chosen.judge).read_text(encoding="utf-8"))
        answer["verdicts"] = [judge(parser, row["args"]) for row in rows]
    else:
        answer["flags"] = dump(parser)
    json.dump(answer, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
