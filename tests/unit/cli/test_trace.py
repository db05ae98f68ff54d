"""A trace of requests: what is read of it, and one sentence for all that may be wrong with it."""

import io
import re

import pytest

from llmservice.cli.trace import TraceError, read_rows

COLUMNS = ("seconds", "tokens")
HEADER = "seconds,tokens\n"


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """Write a trace; its path is a bare name, as in the messages."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        path = tmp_path / "trace.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path.name

    return write


def test_columns_stand_in_any_order_beside_others(trace):
    """With blanks, empty lines and a byte order mark, as spreadsheets write them."""
    path = trace("\ufeffwho, tokens ,seconds\nx, 7 ,0\n\ny,,0.5\n")
    rows = list(read_rows(path, COLUMNS))

    assert [(0.0, "7"), (0.5, "")] == [(row.number("seconds"), row.texts["tokens"]) for row in rows]


def test_standard_input(monkeypatch):
    """``-``, so that a week of compressed traffic can be piped."""
    monkeypatch.setattr("sys.stdin", io.StringIO(HEADER + "1,2\n"))

    assert ["2"] == [row.texts["tokens"] for row in read_rows("-", COLUMNS)]


def test_a_line_is_read_when_it_is_asked_for(trace):
    """Whoever has seen enough does not hear of what is wrong behind it."""
    rows = read_rows(trace(HEADER + "1,1\nx\n"), COLUMNS)

    assert 1 == next(rows).number("seconds")
    with pytest.raises(TraceError, match="line 3"):
        next(rows)


BAD = [
    ("", "line 1: no column seconds: the first line must name seconds,tokens"),
    (HEADER, "line 2: no request in it"),
    ("seconds\n1\n", "line 1: no column tokens: the first line must name seconds,tokens"),
    ("seconds,tokens,tokens\n1,2,3\n", "line 1: more than one column tokens"),
    (HEADER + "1,1\nx,1\n", "line 3: seconds: 'x' is not a number"),
    (HEADER + "1_0,1\n", "line 2: seconds: '1_0' is not a number"),
    (HEADER + "nan,1\n", "line 2: seconds: 'nan' is not a number"),
    (HEADER + "-inf,1\n", "line 2: seconds: '-inf' is not a number"),
    (HEADER + ",1\n", "line 2: seconds: '' is not a number"),
    (HEADER + "9" * 100 + "x,1\n", f"line 2: seconds: '{'9' * 40}...' is not a number"),
    (HEADER + "5,1\n1,1\n", "line 3: seconds: 1 comes after 5: sort the trace by time"),
    (HEADER + "1\n", "line 2: 1 fields where the header has 2: no tokens"),
    (HEADER + "1,2,3\n", "line 2: 3 fields where the header has 2"),
    (HEADER + "1,1\n" + '"\n' * 3, "line 4: 1 fields where the header has 2: no tokens"),
    (HEADER + "1," + "0" * 200_000, "line 2: field larger than field limit"),
    (HEADER.encode() + b"\xff,1\n", "line 2: seconds: '\\\\xff' is not a number"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_what_is_wrong_is_named_with_line_and_column(trace, text, words):
    """And with the file."""
    with pytest.raises(TraceError, match=re.escape(f"trace.csv: {words}")):
        list(read_rows(trace(text), COLUMNS))


def test_what_else_is_needed_says_why(trace):
    """A column that only some uses of a trace need."""
    path, more = trace(HEADER + "1,1\n"), {"user": "users are counted"}

    with pytest.raises(TraceError, match="line 1: no column user: users are counted"):
        list(read_rows(path, COLUMNS, more))


@pytest.mark.parametrize(("path", "words"), [("gone", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read(trace, path, words):
    """With what the system says of it."""
    with pytest.raises(TraceError, match=f"{path}: {words}"):
        list(read_rows(path, COLUMNS))
