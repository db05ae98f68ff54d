"""Which ``vllm serve`` flags each supported vLLM version has, and which version an image holds.

The tables are data, generated from vLLM's own wheels (``data/vllm-flags.json``, by
``make flags``). Read by :mod:`llmservice.core.engine` and :mod:`llmservice.core.extra_args`. It
refuses to know what a flag means and which ones the operator sets.

>>> resolve_version(None, "vllm/vllm-openai:v0.33.0").minor
'0.33'
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any

VERSION_FIELD = "spec.engine.version"
_SHOWN_VALUE = 60

# vLLM's major is 0 today; one digit keeps calendar tags such as 25.09-py3 out.
_VERSION = re.compile(
    r"v?(\d)\.(0|[1-9]\d{0,2})(?:\.\d+)?(?:[.+_-]?[A-Za-z][\w.+-]*|[+_-][\w.+-]+)?"
)


class FlagKind(StrEnum):
    """What a flag takes; one conversion function of vLLM's ``engine/arg_utils.py`` each."""

    HELP = "help"  # prints help and ends the process
    BOOL = "bool"  # no value
    STR = "str"
    INT = "int"
    FLOAT = "float"
    INT_HUMAN = "int-human"  # 1k = 1000, 1K = 1024
    INT_HUMAN_AUTO = "int-human-auto"  # the same, or auto, or -1
    JSON = "json"
    JSON_OR_STR = "json-or-str"
    OBJECT = "object"  # JSON with known keys at its first level
    LORA = "lora"  # name=path, or such an object


@dataclass(frozen=True, slots=True)
class Flag:
    """One option of ``vllm serve`` in one version."""

    name: str
    """Canonical long form, as vLLM's source declares it."""
    kind: FlagKind
    also: tuple[str, ...] = ()
    """Further strings that mean the same: short forms and aliases."""
    negatives: tuple[str, ...] = ()
    """Strings that switch a boolean off."""
    nargs: str = ""
    """Empty for exactly one value, ``?`` for an optional one, ``+`` for one or more."""
    nullable: bool = False
    """The empty string and ``None`` mean "unset"."""
    choices: tuple[str, ...] = ()
    """Accepted values as written; empty when any will do."""
    fold: bool = False
    """Case and hyphens of the value do not matter."""
    keys: tuple[str, ...] = ()
    """First-level keys of an ``object`` or ``lora``."""

    @property
    def strings(self) -> tuple[str, ...]:
        """Every option string the parser registers for this flag."""
        return (self.name, *self.also, *self.negatives)


FlagTable = Mapping[str, Flag]
"""Flags of one version by canonical name."""


@dataclass(frozen=True, slots=True)
class ResolvedVersion:
    """The minor version whose table applies."""

    minor: str
    exact: bool
    """False when the engine is newer than any table."""
    note: str | None = None
    """What the user should know when the version is a guess."""


@dataclass(frozen=True, slots=True)
class UnsupportedVersion:
    """No table can stand in for this engine."""

    message: str
    """Names what is wrong and what to write."""


@cache
def _data(name: str) -> dict[str, Any]:
    text = files("llmservice").joinpath("data", name).read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def version_order(minor: str) -> tuple[int, ...]:
    """Sort key: 0.9 comes before 0.10."""
    return tuple(int(part) for part in minor.split("."))


@cache
def removed_flags() -> Mapping[str, Mapping[str, Any]]:
    """Flags of older versions: the first minor that lacks each, why, and what to use instead."""
    flags: Mapping[str, Mapping[str, Any]] = _data("vllm-removed-flags.json")["flags"]
    return flags


@cache
def supported_versions() -> tuple[str, ...]:
    """Minor versions with a flag table, newest first."""
    return tuple(sorted(_data("vllm-flags.json")["versions"], key=version_order, reverse=True))


@cache
def flag_table(minor: str) -> FlagTable:
    """Flags of a supported minor version; ``KeyError`` for any other."""
    if minor not in supported_versions():
        raise KeyError(minor)
    return {
        name: _flag(name, variant)
        for name, variants in _data("vllm-flags.json")["flags"].items()
        for variant in variants
        if minor in variant["in"]
    }


def _flag(name: str, variant: Mapping[str, Any]) -> Flag:
    return Flag(
        name=name,
        kind=FlagKind(variant["kind"]),
        also=tuple(variant.get("also", ())),
        negatives=tuple(variant.get("negatives", ())),
        nargs=variant.get("nargs", ""),
        nullable=variant.get("nullable", False),
        choices=tuple(str(choice) for choice in variant.get("choices", ())),
        fold=variant.get("fold", False),
        keys=tuple(variant.get("keys", ())),
    )


@cache
def option_strings(minor: str) -> Mapping[str, Flag]:
    """Every way to write an option of a supported minor version, and its flag."""
    return {string: flag for flag in flag_table(minor).values() for string in flag.strings}


def versions_with(option: str) -> tuple[str, ...]:
    """Supported minor versions that know an option string, newest first."""
    return tuple(minor for minor in supported_versions() if option in option_strings(minor))


# --- versions ------------------------------------------------------------------------------------


def version_from_image(image: str) -> str | None:
    """The vLLM minor version an image tag names, or None (no tag, digest only, other tags)."""
    name, _, tag = image.partition("@")[0].rpartition(":")
    # Without a tag, the last colon belongs to a registry port.
    if not name or "/" in tag:
        return None
    return _minor(tag)


def _minor(version: str) -> str | None:
    match = _VERSION.fullmatch(version.strip())
    return f"{match[1]}.{match[2]}" if match else None


def resolve_version(declared: str | None, image: str) -> ResolvedVersion | UnsupportedVersion:
    """The table to use for an engine; what the user declares outranks the image tag."""
    tagged = version_from_image(image)
    newest, *_, oldest = supported_versions()
    minor = _minor(declared) if declared else tagged
    if minor is None:
        what = (
            f"{shown_value(declared)} is not"
            if declared
            else f"the tag of {shown_value(image)} is not"
        )
        return UnsupportedVersion(f"{what} a vLLM version: set {VERSION_FIELD}, like {newest}")
    if version_order(minor) < version_order(oldest):
        return UnsupportedVersion(
            f"vLLM {minor} is older than {oldest}, the oldest version supported: use an image of"
            f" {oldest} to {newest}, or set {VERSION_FIELD} if the image holds another version"
        )
    nearest = next(
        known for known in supported_versions() if version_order(known) <= version_order(minor)
    )
    note = None
    if nearest != minor:
        note = (
            f"vLLM {minor} is not known to this operator: its flags are taken to be those of"
            f" {nearest}; set {VERSION_FIELD} if the image holds another version"
        )
    elif tagged not in (None, minor):
        note = f"{VERSION_FIELD} says {minor} and the image tag {tagged}: {minor} is used"
    return ResolvedVersion(nearest, exact=nearest == minor, note=note)


# --- argument lists ------------------------------------------------------------------------------


def shown_value(value: str) -> str:
    """A user's value, short enough for a message."""
    return repr(value if len(value) <= _SHOWN_VALUE else f"{value[:_SHOWN_VALUE]}...")
