"""`pytest tests/golden --update-golden` rewrites the committed manifests."""

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option exists when pytest is pointed at this folder."""
    parser.addoption(
        "--update-golden", action="store_true", help="write what is rendered now; review the diff"
    )


@pytest.fixture
def assert_golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compare a text with a committed file; rewrite the file first when told to."""
    update = request.config.getoption("--update-golden", default=False)

    def compare(golden: Path, text: str) -> None:
        if update:
            golden.write_text(text, encoding="utf-8")
        assert golden.read_text(encoding="utf-8") == text

    return compare
