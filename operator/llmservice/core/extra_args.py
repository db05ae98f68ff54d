"""Whether vLLM would take a user's ``extraArgs``, judged before a pod is made.

What it refuses would end as ``unrecognized arguments`` after minutes of pulling and starting.
Called by :mod:`llmservice.core.engine`. The reading of argument lists follows ``argparse`` and
``vllm/utils/argparse_utils.py`` (``FlexibleArgumentParser.parse_args``), traps included: unique
prefixes, underscores for hyphens, ``--flag=value``, ``-n2``, ``-O3``, ``--json-flag.key value``.
It refuses to know which flags the operator sets (``reserved`` says so), and the rules vLLM applies
after parsing (those of its config classes).

>>> [problem.message for problem in check_extra_args(["--max-num-sequence=3"], "0.33", {})]
['vLLM 0.33 has no flag --max-num-sequence: did you mean --max-num-seqs?']
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmservice.core.flags import (
    Flag,
    FlagKind,
    option_strings,
    removed_flags,
    shown_value,
    supported_versions,
    version_order,
    versions_with,
)

FIELD = "spec.engine.extraArgs"

# What argparse takes for a negative number and so for a value (CPython, Lib/argparse.py).
_NEGATIVE_NUMBER = re.compile(r"-(?:\d+|\d*\.\d+)")
_HUMAN_INT = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")
# Quoted JSON strings are matched first, so that digits inside them stay as they are.
_HUMAN_INT_IN_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|\b\d+(?:\.\d+)?[kKmMgGtT]\b')
_MANY_CHOICES = 12


@dataclass(frozen=True, slots=True)
class ArgProblem:
    """One item of ``extraArgs`` that vLLM, or the operator, would refuse."""

    index: int
    message: str
    """What is wrong and what to write instead; the item is named by :attr:`field`."""

    @property
    def field(self) -> str:
        """Path of the item in the resource."""
        return f"{FIELD}[{self.index}]"

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


# --- the tables ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Token:
    """One argument as argparse sees it, and the item of ``extraArgs`` it came from."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class _Option:
    """An argument that names a flag."""

    flag: Flag
    written: str
    value: str | None = None
    """Value glued on with ``=`` or without anything (``-n2``)."""


@dataclass(frozen=True, slots=True)
class _Unknown:
    """An argument that looks like an option and is none, or several."""

    written: str
    candidates: tuple[str, ...] = ()


def check_extra_args(
    args: Sequence[str], minor: str, reserved: Mapping[str, str]
) -> list[ArgProblem]:
    """Everything that is wrong with a list of extra arguments, in order.

    Args:
        args: the arguments after the model, as the container would get them.
        minor: a supported minor version.
        reserved: canonical flag -> field of the resource that owns it (or a sentence saying who
            does), for flags that may not be given here.

    """
    return sorted(_Judge(minor, reserved).judge(args), key=lambda problem: problem.index)


def flag_values(args: Sequence[str], minor: str) -> dict[str, str]:
    """What an accepted list says: canonical flag -> value as written; the last one counts.

    A boolean is ``true`` or ``false``. Keys of ``--json-flag.key value`` are left out.
    """
    judge, tokens = _Judge(minor, {}), list(_normalized(args))
    found: dict[str, str] = {}
    for position, token in enumerate(tokens):
        option = judge.classify(token.text)
        if not isinstance(option, _Option):
            continue
        following = tokens[position + 1].text if position + 1 < len(tokens) else ""
        value = option.value if option.value is not None else following
        if option.flag.kind is FlagKind.BOOL:
            value = "false" if option.written in option.flag.negatives else "true"
        found[option.flag.name] = value
    return found


class _Judge:
    """Read one argument list the way ``vllm serve`` would and collect what it refuses."""

    def __init__(self, minor: str, reserved: Mapping[str, str]) -> None:
        self.minor = minor
        self.reserved = reserved
        self.strings = option_strings(minor)

    def judge(self, args: Sequence[str]) -> Iterator[ArgProblem]:
        tokens = list(_normalized(args))
        plain: list[_Token] = []
        position = 0
        while position < len(tokens):
            key = _dotted_key(tokens[position].text)
            if key is None:
                plain.append(tokens[position])
                position += 1
                continue
            # vLLM takes the next argument as the value, whatever it looks like.
            glued = "=" in tokens[position].text
            value = None if glued else next(iter(tokens[position + 1 : position + 2]), None)
            yield from self._dotted(tokens[position], key, value)
            position += 1 if glued else 2
        yield from self._plain(plain)

    def _plain(self, tokens: Sequence[_Token]) -> Iterator[ArgProblem]:
        position = 0
        while position < len(tokens):
            token = tokens[position]
            position += 1
            if token.text == "--":
                yield ArgProblem(token.index, "'--' ends the flags: remove it")
                return
            word = self.classify(token.text)
            values = self._values_after(tokens[position:])
            match word:
                case None:
                    yield ArgProblem(token.index, self._stray(token.text))
                case _Unknown():
                    yield ArgProblem(token.index, self._unknown(word))
                    position += len(values)
                case _Option():
                    taken = _taken(word, len(values))
                    yield from self._option(token, word, values[:taken])
                    if word.flag.kind is FlagKind.BOOL and values:
                        yield ArgProblem(values[0].index, _no_value(word, values[0].text))
                        taken = len(values)
                    position += taken

    def _values_after(self, tokens: Sequence[_Token]) -> list[_Token]:
        values: list[_Token] = []
        for token in tokens:
            if token.text == "--" or self.classify(token.text) is not None:
                break
            values.append(token)
        return values

    def classify(self, text: str) -> _Option | _Unknown | None:
        """An option, something that only looks like one, or None for a value."""
        if not text.startswith("-") or text == "-":
            return None
        if flag := self.strings.get(text):
            return _Option(flag, text)
        head, equals, value = text.partition("=")
        if equals and (flag := self.strings.get(head)):
            return _Option(flag, head, value)
        match self._abbreviated(text):
            case [option]:
                return option
            case []:
                is_value = _NEGATIVE_NUMBER.fullmatch(text) or " " in text
                return None if is_value else _Unknown(head)
            case several:
                return _Unknown(head, tuple(option.written for option in several))

    def _abbreviated(self, text: str) -> list[_Option]:
        """Options ``text`` may be short for: argparse takes any unique prefix."""
        if text.startswith("--"):
            head, equals, rest = text.partition("=")
            value = rest if equals else None
            return [_Option(f, s, value) for s, f in self.strings.items() if s.startswith(head)]
        found = [_Option(f, s) for s, f in self.strings.items() if s.startswith(text)]
        if flag := self.strings.get(text[:2]):
            found.append(_Option(flag, text[:2], text[2:]))
        return found

    # --- what is wrong with one of them ---

    def _option(
        self, token: _Token, option: _Option, values: Sequence[_Token]
    ) -> Iterator[ArgProblem]:
        flag = option.flag
        if refusal := self._refused(option):
            yield ArgProblem(token.index, refusal)
        elif flag.kind is FlagKind.BOOL:
            if option.value is not None:
                yield ArgProblem(token.index, _no_value(option, option.value))
        elif option.value is not None:
            if wrong := _wrong_value(flag, option.value):
                yield ArgProblem(token.index, f"{flag.name} {wrong}")
        elif not values and flag.nargs != "?":
            yield ArgProblem(token.index, f"{flag.name} needs a value: {_expected(flag)}")
        for value in values if not refusal else ():
            if wrong := _wrong_value(flag, value.text):
                yield ArgProblem(value.index, f"{flag.name} {wrong}")

    def _dotted(self, token: _Token, key: str, value: _Token | None) -> Iterator[ArgProblem]:
        """``--json-flag.a.b value``: a JSON object built from its keys."""
        name, *keys = key.split(".")
        word = self.classify(name)
        if word is None:
            shown = shown_value(token.text)
            message = f"vLLM reads {shown} as a flag with keys: glue it to its flag with ="
            yield ArgProblem(token.index, message)
        elif isinstance(word, _Unknown):
            yield ArgProblem(token.index, self._unknown(word))
        elif refusal := self._refused(word):
            yield ArgProblem(token.index, refusal)
        elif value is None and "=" not in token.text:
            yield ArgProblem(token.index, f"{key} needs a value after it")
        elif word.flag.kind is FlagKind.BOOL:
            yield ArgProblem(token.index, _no_value(word, key))
        else:
            nested: Any = value.text if value else token.text.partition("=")[2]
            for part in reversed(keys):
                nested = {part.removesuffix("+"): nested}
            # Keys given one by one are put together later; one alone need not be complete.
            partial = word.flag.kind in (FlagKind.OBJECT, FlagKind.LORA)
            text = json.dumps(nested)
            wrong = _wrong_keys(word.flag, nested) if partial else _wrong_value(word.flag, text)
            if wrong:
                yield ArgProblem(token.index, f"{word.flag.name} {wrong}")

    def _refused(self, option: _Option) -> str | None:
        flag = option.flag
        if flag.kind is FlagKind.HELP:
            return f"{option.written} prints a help text and ends the container: remove it"
        owner = self.reserved.get(flag.name)
        if owner is None:
            return None
        also = f" ({flag.name})" if option.written != flag.name else ""
        instead = f"and set {owner} instead" if owner.startswith("spec.") else f"({owner})"
        return f"{option.written}{also} may not stand here: remove it {instead}"

    def _unknown(self, word: _Unknown) -> str:
        if word.candidates:
            return (
                f"{word.written} could mean {' or '.join(sorted(word.candidates))}:"
                " write the one you mean in full"
            )
        known = versions_with(word.written)
        start = f"vLLM {self.minor} has no flag {word.written}"
        if removed := removed_flags().get(word.written):
            return f"{start} (removed in {removed['removed']}): {self._replacement(removed)}"
        if known and version_order(known[-1]) > version_order(self.minor):
            return f"{start} (added in {known[-1]}): remove it, or use an image of {known[-1]}"
        if known:
            gone = min(
                (m for m in supported_versions() if version_order(m) > version_order(known[0])),
                key=version_order,
            )
            return f"{start} (removed in {gone}): {self._nearest(word.written) or 'remove it'}"
        return f"{start}: {self._nearest(word.written) or 'remove it'}"

    def _replacement(self, removed: Mapping[str, Any]) -> str:
        why = f"{removed['why']}; " if "why" in removed else ""
        options = [self._owner(flag) or flag for flag in removed.get("instead", ())]
        return f"{why}use {' or '.join(options)}" if options else f"{why}remove it"

    def _owner(self, flag: str) -> str | None:
        owner = self.reserved.get(flag, "")
        return owner if owner.startswith("spec.") else None

    def _nearest(self, written: str) -> str | None:
        near = difflib.get_close_matches(written, self.strings, n=1, cutoff=0.7)
        if not near:
            return None
        owner = self._owner(self.strings[near[0]].name)
        return f"did you mean {near[0]}{f', which is {owner}' if owner else ''}?"

    def _stray(self, text: str) -> str:
        head = text.partition(" ")[0]
        if text.startswith("-") and isinstance(word := self.classify(head), _Option):
            if refusal := self._refused(word):
                return refusal
            shown = shown_value(text)
            return f"{shown} is one item: give {head} and its value as two items, or with ="
        return f"{shown_value(text)} belongs to no flag: only flags and their values may stand here"


def _normalized(args: Sequence[str]) -> Iterator[_Token]:
    """What ``FlexibleArgumentParser.parse_args`` turns arguments into before argparse."""
    for index, text in enumerate(args):
        if text.startswith("--help="):
            yield _Token(index, "--help")
        elif text.startswith("--"):
            head, equals, value = text.partition("=")
            name, dot, keys = head.partition(".")
            yield _Token(index, name.replace("_", "-") + dot + keys + equals + value)
        elif text.startswith("-O") and text != "-O":
            yield _Token(index, "--optimization-level")
            yield _Token(index, text[3:] if text[2] == "=" else text[2:])
        elif text == "-O" and args[index + 1 : index + 2] and args[index + 1] in {*"0123"}:
            yield _Token(index, "--optimization-level")
        else:
            yield _Token(index, text)


def _dotted_key(text: str) -> str | None:
    """``--flag.key`` of ``--flag.key`` and ``--flag.key=value``; None for anything else."""
    head = text.partition("=")[0]
    return head if text.startswith("-") and "." in head else None


def _taken(option: _Option, available: int) -> int:
    """How many of the values that follow belong to the option."""
    if option.value is not None or option.flag.kind in (FlagKind.BOOL, FlagKind.HELP):
        return 0
    return available if option.flag.nargs == "+" else min(available, 1)


def _no_value(option: _Option, value: str) -> str:
    off = next((s for s in option.flag.negatives), None)
    other = f"; {off} switches it off" if off and option.written == option.flag.name else ""
    return f"{option.written} takes no value: remove {shown_value(value)}{other}"


# --- values --------------------------------------------------------------------------------------


def _wrong_value(flag: Flag, text: str) -> str | None:
    """Why a flag does not take a value, as the rest of a sentence; None when it does."""
    if flag.nullable and text in ("", "None"):
        return None
    convert = _CONVERSIONS.get(flag.kind, str)
    try:
        value = convert(text)
    except ValueError:
        return f"does not take {shown_value(text)}: {_expected(flag, text)}"
    if flag.kind is FlagKind.OBJECT or (flag.kind is FlagKind.LORA and value != text):
        return _wrong_keys(flag, value)
    written = text.lower().replace("-", "_") if flag.fold else str(value)
    if flag.choices and written not in flag.choices:
        return f"does not take {shown_value(text)}: {_expected(flag, text)}"
    return None


def _wrong_keys(flag: Flag, value: object) -> str | None:
    if not isinstance(value, dict):
        return f"needs a JSON object: {_expected(flag)}"
    for key in value:
        if key not in flag.keys:
            near = difflib.get_close_matches(key, flag.keys, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(flag.keys)}"
            return f"has no key {shown_value(key)}: {hint}"
    return None


def _expected(flag: Flag, text: str = "") -> str:
    near = difflib.get_close_matches(text, flag.choices, n=1)
    if near and len(flag.choices) > _MANY_CHOICES:
        return f"did you mean {near[0]}?"
    return f"choose one of {', '.join(flag.choices)}" if flag.choices else _MEANINGS[flag.kind]


def _human_int(text: str) -> int:
    """``human_readable_int``: 1k = 1000, 1K = 1024, 25.6k = 25600, no fraction of 1024s."""
    match = _HUMAN_INT.fullmatch(text.strip())
    if match is None:
        return int(text)
    number, suffix = match.groups()
    power = "kmgt".index(suffix.lower()) + 1
    if suffix.islower():
        return int(float(number) * 1000**power)
    return int(number) * int(1024**power)


def _human_int_or_auto(text: str) -> int:
    return -1 if text.strip().lower() in ("-1", "auto") else _human_int(text)


def _json_or_str(text: str) -> object:
    stripped = text.strip()
    return json.loads(text) if stripped.startswith("{") and stripped.endswith("}") else text


def _json_with_human_ints(text: str) -> object:
    def plain(match: re.Match[str]) -> str:
        return match[0] if match[0].startswith('"') else str(_human_int(match[0]))

    return json.loads(_HUMAN_INT_IN_JSON.sub(plain, text))


def _adapter(text: str) -> object:
    """``LoRAParserAction``: ``name=path`` without a comma, else JSON with a name and a path."""
    if "=" in text and "," not in text:
        return text
    value = json.loads(text)
    if not isinstance(value, dict) or not {"name", "path"} <= value.keys():
        raise ValueError(text)
    return value


_CONVERSIONS: Mapping[FlagKind, Callable[[str], object]] = {
    FlagKind.INT: int,
    FlagKind.FLOAT: float,
    FlagKind.INT_HUMAN: _human_int,
    FlagKind.INT_HUMAN_AUTO: _human_int_or_auto,
    FlagKind.JSON: json.loads,
    FlagKind.JSON_OR_STR: _json_or_str,
    FlagKind.OBJECT: _json_with_human_ints,
    FlagKind.LORA: _adapter,
}

_MEANINGS: Mapping[FlagKind, str] = {
    FlagKind.STR: "give a text",
    FlagKind.INT: "give a whole number",
    FlagKind.FLOAT: "give a number",
    FlagKind.INT_HUMAN: "give a whole number, such as 4096 or 4K",
    FlagKind.INT_HUMAN_AUTO: "give a whole number, such as 4096 or 4K, or auto",
    FlagKind.JSON: "give JSON",
    FlagKind.JSON_OR_STR: "give a JSON object or a text",
    FlagKind.OBJECT: "give a JSON object, or its keys as --flag.key value",
    FlagKind.LORA: "give name=path, or a JSON object with name and path",
}
