"""Kubernetes quantities as exact numbers.

Two spellings of one quantity (``0.5`` and ``500m``) must never look like a change, so whatever
compares quantities compares the numbers of this module, not text. Grammar:
k8s.io/apimachinery/pkg/api/resource/quantity.go.
"""

import re
from decimal import ROUND_CEILING, Decimal

_FORM = re.compile(
    r"^([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
)
_BINARY = {f"{prefix}i": Decimal(1024) ** power for power, prefix in enumerate("KMGTPE", start=1)}
_DECIMAL = {
    prefix: Decimal(1000) ** power
    for power, prefix in zip(
        (-3, -2, -1, 1, 2, 3, 4, 5, 6), ("n", "u", "m", "k", "M", "G", "T", "P", "E"), strict=True
    )
}


def parse_quantity(text: str) -> Decimal:
    """The number a quantity stands for, in base units (bytes, cores, devices).

    >>> parse_quantity("500m") == parse_quantity("0.5")
    True

    Raises:
        ValueError: the text is no quantity; the message says what one looks like.
    """
    match = _FORM.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity; write it like 500m, 2 or 24Gi")
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix[:1] in ("e", "E") and len(suffix) > 1:
        return number * Decimal(10) ** int(suffix[1:])
    return number * ({**_BINARY, **_DECIMAL}.get(suffix, Decimal(1)))


def parse_bytes(text: str) -> int:
    """A quantity of bytes, rounded up to a whole byte."""
    return int(parse_quantity(text).to_integral_value(ROUND_CEILING))


def canonical_quantity(text: str) -> str:
    """One spelling for all spellings of a number; used in hashes only."""
    return f"{parse_quantity(text).normalize():f}"
