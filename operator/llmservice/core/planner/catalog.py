"""Models whose facts are known: ``data/models.toml``, one row with a source per shape.

A model is found by its hub id, or by its name without the words that say how it was quantized
(``someone/Llama-3.1-8B-Instruct-AWQ``): the shape is the same, the weights are smaller.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from llmservice.core.planner.model import ModelShape, UnreadableConfigError, read_model

_GIB = 1 << 30
# Longest first: a word must not hide in another.
_QUANTIZATION_WORDS = re.compile(
    r"[-_.](unsloth-bnb-4bit|bnb-4bit|bnb-8bit|quantized\.w[48]a(?:16|8)|gptq-int4|gptq-int8"
    r"|fp8-dynamic|fp8-block|fp8|awq-int4|awq|gptq|autoround|int4|int8|w4a16|w8a16|w8a8|nvfp4"
    r"|mxfp4|gguf|4bit|8bit|marlin|dynamic|g128)$"
)
_OTHER_WORDS = re.compile(r"[-_.](bf16|fp16|mtp|hf)$")
"""Words that change neither shape nor weights."""
_TWINS = ("", "-hf", "-instruct", "-it", "-chat", "-chat-hf", "-base")
"""A base model and its tuned twin have one shape."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model, and where its facts come from."""

    id: str
    shape: ModelShape
    source: str
    parameters: int | None = None
    """All parameters, where published."""
    weights: int | None = None
    """Bytes on one device as an engine reported them, where they do not follow from the shape."""
    quantization: str | None = None
    """Word of the name that says how the weights were quantized, when the row does not."""


def find_model(model_id: str) -> KnownModel | None:
    """The catalog's model of this hub id, or None; a path is nobody's id."""
    if model_id.startswith("/"):
        return None
    name = model_id.lower()
    if row := _by_id().get(name):
        return _known(model_id, row)
    words: list[str] = []
    stem = name.rpartition("/")[2].replace(" ", "-")
    while True:
        if row := next((_by_name()[stem + t] for t in _TWINS if stem + t in _by_name()), None):
            plain = "quantization_config" not in row["config"]
            return _known(model_id, row, "-".join(reversed(words)) if plain else "")
        match = _QUANTIZATION_WORDS.search(stem)
        if match is not None:
            words.append(match[1])
        else:
            match = _OTHER_WORDS.search(stem)
        if match is None:
            return None
        stem = stem[: match.start()]


def model_from_config(model_id: str, config: Mapping[str, Any]) -> KnownModel:
    """A model described by its ``config.json``.

    Raises:
        UnreadableConfigError: the config does not say enough.
    """
    return KnownModel(model_id, _read(json.dumps(config, sort_keys=True)), "config.json")


@lru_cache(maxsize=1024)
def _read(config: str) -> ModelShape:
    """Equal configs are one shape, whose plan is found again: a service is planned at each look."""
    return read_model(json.loads(config))


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Every row of the catalog, by its first id."""
    return tuple(_known(row["ids"][0], row) for row in _rows())


def _known(model_id: str, row: Mapping[str, Any], words: str = "") -> KnownModel:
    weights = row.get("weights")
    return KnownModel(
        id=model_id,
        shape=_shape(row["ids"][0]),
        source=row["source"],
        parameters=row.get("parameters"),
        # What was measured is the row's own checkpoint, not a quantized one of another name.
        weights=round(weights * _GIB) if weights and not words else None,
        quantization=words or None,
    )


@cache
def _shape(first_id: str) -> ModelShape:
    row = _by_id()[first_id.lower()]
    try:
        return read_model({**row["config"], "multimodal": row.get("multimodal", False)})
    except UnreadableConfigError as error:
        raise ValueError(f"data/models.toml, {first_id}: {error}") from error


@cache
def _rows() -> tuple[Mapping[str, Any], ...]:
    text = files("llmservice").joinpath("data", "models.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["model"])


@cache
def _by_id() -> Mapping[str, Mapping[str, Any]]:
    return {model_id.lower(): row for row in _rows() for model_id in row["ids"]}


@cache
def _by_name() -> Mapping[str, Mapping[str, Any]]:
    """The first row of a name wins: rows of plain weights come before quantized ones."""
    names: dict[str, Mapping[str, Any]] = {}
    for model_id, row in _by_id().items():
        names.setdefault(model_id.rpartition("/")[2], row)
    return names
