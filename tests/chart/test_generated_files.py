"""The chart's files that are made from code are up to date; needs neither helm nor a cluster."""

from importlib import metadata

import pytest
import yaml

from e2e.chart import CHART
from tests.chart.generate import generated


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path):
    """`make generate` would change nothing."""
    assert generated()[path] == path.read_text()


def test_nothing_else_lies_among_the_generated_files():
    """A file that nobody generates any more would be shipped for ever."""
    assert set(generated()) == set((CHART / "files").iterdir())


def test_chart_and_operator_have_one_version():
    """A chart installs the operator it was released with."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert metadata.version("llmservice") == chart["version"] == chart["appVersion"]
