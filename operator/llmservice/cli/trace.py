"""Recorded requests as CSV, read line by line; what is wrong is named by file, line and column."""

import csv
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

_SHOWN = 40


class TraceError(Exception):
    """The trace cannot be used; the message names file, line and column."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request."""

    place: str
    """File and line."""
    texts: Mapping[str, str]
    """By column, without the blanks around them."""

    def number(self, column: str) -> float:
        """A finite number.

        Raises:
            TraceError: it is none.
        """
        text = self.texts[column]
        try:
            number = math.nan if "_" in text else float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong(column, "is not a number")
        return number

    def wrong(self, column: str, words: str) -> TraceError:
        """What is to be raised for a field that "is not" what it should be."""
        text = self.texts[column]
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        return TraceError(f"{self.place}: {column}: {shown!r} {words}")


def read_rows(
    path: str, columns: Sequence[str], more: Mapping[str, str] | None = None
) -> Iterator[Row]:
    """The requests of a trace; each line is read when it is asked for.

    Args:
        path: a file; ``-`` is standard input.
        columns: in any order and beside others; the trace is sorted by the first of them.
        more: columns that are needed as well, with the reasons.

    Raises:
        TraceError: unreadable, without a request, a column is missing, or a line is wrong.
    """
    reasons = dict.fromkeys(columns, f"the first line must name {','.join(columns)}")
    try:
        with (
            nullcontext(sys.stdin)
            if path == "-"
            # What is no UTF-8 is judged where it stands, by the line it is in.
            else Path(path).open(newline="", encoding="utf-8-sig", errors="backslashreplace")
        ) as file:
            yield from _rows(file, path, reasons | dict(more or {}))
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error


def _rows(file: TextIO, path: str, reasons: Mapping[str, str]) -> Iterator[Row]:
    lines = csv.reader(file)
    sorted_by, last = next(iter(reasons)), -math.inf
    try:
        header = [column.strip() for column in next(lines, [])]
        _check_header(header, path, reasons)
        for fields in filter(None, lines):
            row = _row(header, fields, f"{path}: line {lines.line_num}")
            now = row.number(sorted_by)
            if now < last:
                words = f"{now:g} comes after {last:g}: sort the trace by time"
                raise TraceError(f"{row.place}: {sorted_by}: {words}")
            last = now
            yield row
    except (csv.Error, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: line {max(1, lines.line_num)}: {error}") from error
    if last == -math.inf:
        raise TraceError(f"{path}: line {lines.line_num + 1}: no request in it")


def _check_header(header: Sequence[str], path: str, reasons: Mapping[str, str]) -> None:
    for name, reason in reasons.items():
        if header.count(name) != 1:
            number = "no" if name not in header else "more than one"
            raise TraceError(f"{path}: line 1: {number} column {name}: {reason}")


def _row(header: Sequence[str], fields: Sequence[str], place: str) -> Row:
    if len(fields) != len(header):
        words = f"{len(fields)} fields where the header has {len(header)}"
        missing = header[len(fields) :]
        raise TraceError(f"{place}: {words}" + (f": no {missing[0]}" if missing else ""))
    return Row(place, {name: text.strip() for name, text in zip(header, fields, strict=True)})
