"""The corpus of manifests: what each file claims about itself.

``invalid``: the API server and ``llmservice validate`` both refuse it; ``valid``: both accept it,
and so do the children rendered from it; ``refused``: only ``validate`` and the operator can know
that it cannot run. A file's first lines say what is expected::

    # field: the field both name (``yaml`` when the text is no YAML)
    # message: words in what ``validate`` says; for a rule of ours, in what the API server says too
    # server: words in what kubectl prints, where it does not name the field in our way
"""

import contextlib
import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llmservice.api.rules import Violation
from llmservice.cli import main

CORPUS = Path(__file__).parent
EXAMPLES = CORPUS.parents[1] / "examples"


@dataclass(frozen=True)
class Case:
    """One manifest and what is expected of it."""

    path: Path
    field: str = ""
    message: str = ""
    server: str = ""

    @property
    def name(self) -> str:
        """Readable id of the test."""
        return self.path.stem

    @property
    def breaks_a_rule(self) -> bool:
        """Whether the message is that of one of our rules."""
        return self.name.startswith("rule-")

    def is_named_by(self, violation: Violation) -> bool:
        """Whether a violation is about the expected field, or a part of it, in the right words."""
        below = (f"{self.field}.", f"{self.field}[")
        in_field = violation.field == self.field or violation.field.startswith(below)
        return in_field and self.message in violation.message


def cases(kind: str) -> list[Case]:
    """Every manifest of ``invalid``, ``valid`` (the examples included) or ``refused``."""
    paths = sorted((CORPUS / kind).glob("*.yaml"))
    if kind == "valid":
        paths += sorted(EXAMPLES.glob("*.yaml"))
    return [Case(path, **_header(path)) for path in paths]


def _header(path: Path) -> dict[str, str]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        key, _, value = line.removeprefix("# ").partition(": ")
        if key in ("field", "message", "server"):
            found[key] = value
    return found


@cache
def validate(path: Path) -> list[Violation]:
    """What the command ``llmservice validate`` finds in a file."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main(["validate", "--output", "json", str(path)])
    found = [Violation(**v) for item in json.loads(output.getvalue()) for v in item["violations"]]
    assert code == (1 if found else 0)
    return found
