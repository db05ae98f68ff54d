"""What the examples and the documentation say of plans is what the planner says today."""

import csv
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from llmservice.cli import main
from tests.bench.planner import DEFAULT_DATA, judge, summary

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUNING = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")


def _on_a_device(example: Path) -> bool:
    spec = yaml.safe_load(example.read_text(encoding="utf-8"))["spec"]
    return spec["accelerator"].get("resource") != "cpu"


def _planned() -> list[Path]:
    return [example for example in EXAMPLES if _on_a_device(example)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _comment_on_top(example: Path) -> str:
    match = re.match("(?:#.*\n)+", example.read_text(encoding="utf-8"))
    return _one_line(match[0].replace("#", " ")) if match else ""


def _quotes() -> list[tuple[str, str]]:
    """Each ``$ ... llmservice plan ...`` of the pages, and what is shown below it."""
    found = []
    for block in re.split("^```.*\n", f"{README}\n{TUNING}", flags=re.MULTILINE)[1::2]:
        for quote in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = quote.partition("\n")
            if "llmservice plan" in command:
                found.append((command, shown))
    return found


@pytest.mark.parametrize("example", _planned(), ids=lambda path: path.stem)
def test_an_example_fits_and_says_so(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its plan fits, and the comment on top ends with the plan's sentence."""
    main(["plan", "--output", "json", str(example)])
    plan = json.loads(capsys.readouterr().out)

    assert plan["outcome"] == "Fits"
    assert _comment_on_top(example).endswith(f"The plan: {plan['message']}")


@pytest.mark.parametrize(("command", "shown"), _quotes())
def test_quoted_plans_are_what_is_printed(
    command: str,
    shown: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each command of the pages prints what stands below it, but for line breaks."""
    *edit, last = command.split(" | ")
    monkeypatch.chdir(ROOT)
    for sed in edit:
        edited = subprocess.run(shlex.split(sed), capture_output=True, text=True, check=True)
        monkeypatch.setattr("sys.stdin", io.StringIO(edited.stdout))
    main(shlex.split(last)[1:])

    assert _one_line(shown) == _one_line(capsys.readouterr().out)


def test_every_planned_example_is_explained() -> None:
    """The tuning page shows the plan of each."""
    commands = {command for command, _ in _quotes()}

    assert set() == {f"llmservice plan examples/{path.name}" for path in _planned()} - commands


def test_accuracy_is_what_the_benchmark_prints() -> None:
    """The summary of the tuning page is today's."""
    with DEFAULT_DATA.open(newline="", encoding="utf-8") as file:
        figures = summary(judge(csv.DictReader(file)))

    assert json.dumps(figures) in _one_line(TUNING)
