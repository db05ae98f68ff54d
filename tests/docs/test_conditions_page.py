"""What the code can say is what the documentation explains."""

from itertools import pairwise
from pathlib import Path

from llmservice.core.failures import FailureReason
from llmservice.core.rollout import Capacity
from llmservice.core.status import ConditionType, Reason

ROOT = Path(__file__).parents[2]


def test_every_reason_has_a_row():
    """Each condition and reason is explained once, and nothing else is."""
    page = (ROOT / "docs" / "conditions.md").read_text()
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    known = [*ConditionType, *Reason, *Capacity, *FailureReason]

    assert sorted(rows) == sorted(known)


def test_readme_commands_exist():
    """Every make target that the documentation names is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
    words = " ".join(page.read_text() for page in pages).replace("`", " ").split()
    named = {
        after.strip(".,;:()")
        for word, after in pairwise(words)
        if word == "make" and after.strip(".,;:()").replace("-", "").isalpha()
    }

    assert named
    assert [] == [target for target in sorted(named) if f"\n{target}:" not in makefile]
