"""The planner against starts of real engines: what must never get worse."""

import csv
import json

import pytest

from tests.bench.planner import DEFAULT_DATA, judge, main, summary


@pytest.fixture(scope="module")
def figures():
    with DEFAULT_DATA.open(newline="", encoding="utf-8") as file:
        return summary(judge(csv.DictReader(file)))


def test_no_failed_start_is_called_fits(figures):
    """What did not start is never promised."""
    assert [] == figures["failed_called_fits"]


def test_hardly_a_start_is_called_infeasible(figures):
    """One is: 16 ranks of a patched engine with less beside its weights than we know of."""
    assert ["kv141"] == figures["ok_called_infeasible"]


def test_tokens_are_exact_given_the_bytes(figures):
    """Of every row with one kind of attention that logs both."""
    found = figures["tokens_exact_given_kv"]

    assert found["exact"] == found["compared"] >= 19


def test_cache_is_within_ten_percent(figures):
    """Of five rows in six, most of which do not say all that decides."""
    assert figures["kv_within_10_percent"] >= 35
    assert figures["kv_median_error"] <= 0.035


def test_every_row_is_a_line(capsys, tmp_path):
    """With the promised keys, whatever the row says; the last line is the summary."""
    rows = DEFAULT_DATA.read_text(encoding="utf-8").splitlines()
    odd = rows[0] + "\nodd," + "," * (rows[0].count(",") - 1)
    data = tmp_path / "rows.csv"
    data.write_text(odd + "\n" + rows[1], encoding="utf-8")
    main([str(data)])
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())

    keys = {"id", "outcome", "weights_gib", "kv_gib", "kv_tokens", "reason"}
    assert all(keys <= set(line) for line in lines)
    assert ["unknown", "fits"] == [line["outcome"] for line in lines]
    assert 2 == last["rows"]
