"""The committed table of flags against the parser of the real vLLM, in its own image."""

import json
from pathlib import Path

import pytest

from e2e.stage import Stage
from tests.flags import dump_parser
from tests.flags.compare import TABLE, differences, explained, minor_of, tabled

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_table_is_what_the_parser_accepts(stage: Stage) -> None:
    """Every option string, type, choice and key of this version; none more, none missing."""
    said = stage.run_in_engine_image(Path(dump_parser.__file__))
    dump = json.loads(said[said.index("{\n") :])
    table = json.loads(TABLE.read_text(encoding="utf-8"))

    found = differences(tabled(table, minor_of(dump["version"])), dump["flags"])

    assert [each for each in found if explained(each) is None] == []
    assert len(dump["flags"]) > 300
