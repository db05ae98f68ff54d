"""Quantities are compared as numbers, whatever their spelling."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.quantities import canonical_quantity, parse_bytes, parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("500m", "0.5"),
        (".5", "0.5"),
        ("2", "2"),
        ("1.5Gi", "1610612736"),
        ("24Gi", "25769803776"),
        ("1k", "1000"),
        ("1E", "1000000000000000000"),
        ("1e3", "1000"),
        ("12E2", "1200"),
        ("-1", "-1"),
        ("100n", "0.0000001"),
    ],
)
def test_value(text, number):
    """Suffixes mean what apimachinery says they mean."""
    assert Decimal(number) == parse_quantity(text)


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1gi", "1Ki2", "abc", "1e", "--1", "0x10"])
def test_nonsense_is_refused_with_an_example(text):
    """What is no quantity raises, and the message shows one."""
    with pytest.raises(ValueError, match="24Gi"):
        parse_quantity(text)


def test_bytes_round_up():
    """A fraction of a byte is a whole one."""
    assert 1 == parse_bytes("1m")
    assert 16 * 1024**2 == parse_bytes("16Mi")


@given(st.integers(0, 10**9))
def test_one_spelling_for_all(milli):
    """Millis and decimals of one number have one canonical form."""
    decimal = f"{Decimal(milli) / 1000:f}"

    assert canonical_quantity(f"{milli}m") == canonical_quantity(decimal)
