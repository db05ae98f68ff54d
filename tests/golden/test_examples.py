"""What ``llmservice render`` prints for each example, to the byte.

A difference is either a mistake or a change that belongs in the diff of the same commit:
``make golden`` rewrites. Whatever changes here for unchanged examples changes what new revisions
of running services look like.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from llmservice.cli import main

GOLDEN = Path(__file__).parent / "manifests"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_renders_as_committed(
    example: Path,
    capsys: pytest.CaptureFixture[str],
    assert_golden: Callable[[Path, str], None],
) -> None:
    """The rendered children are those of the committed file."""
    assert main(["render", str(example)]) == 0

    assert_golden(GOLDEN / example.name, capsys.readouterr().out)


def test_every_golden_file_has_its_example() -> None:
    """A removed example takes its golden file along."""
    assert {path.name for path in EXAMPLES} == {path.name for path in GOLDEN.glob("*.yaml")}
