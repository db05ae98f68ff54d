"""``crds``, ``validate`` and ``render``: exit codes and what is printed where."""

import io
import json
from pathlib import Path

import pytest
import yaml

from llmservice.api.schema import crd
from llmservice.cli import main
from tests.corpus.cases import CORPUS, EXAMPLES

VALID = str(CORPUS / "valid" / "minimal.yaml")
INVALID = str(CORPUS / "invalid" / "range-port-zero.yaml")
REFUSED = str(CORPUS / "refused" / "flag-misspelled.yaml")
BROKEN = str(CORPUS / "invalid" / "yaml-unclosed-bracket.yaml")


def test_crds_prints_the_crd(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is what is committed and applied."""
    assert main(["crds"]) == 0
    assert crd() == yaml.safe_load(capsys.readouterr().out)


def test_validate_prints_a_line_per_violation(capsys: pytest.CaptureFixture[str]) -> None:
    """File, service, field, words; then the count; exit code 1."""
    assert main(["validate", VALID, INVALID, BROKEN]) == 1

    port, bracket, count = capsys.readouterr().out.splitlines()
    assert port == f"{INVALID}: qwen: spec.service.port: Input should be greater than or equal to 1"
    assert bracket.startswith(f"{BROKEN}: -: yaml: line ")
    assert count == "1 valid, 2 invalid"


def test_validate_of_valid_manifests_ends_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    """The examples are valid."""
    examples = sorted(map(str, EXAMPLES.glob("*.yaml")))

    assert main(["validate", *examples]) == 0
    assert capsys.readouterr().out == f"{len(examples)} valid, 0 invalid\n"


def test_validate_reads_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-`` is standard input, and JSON output is for programs."""
    monkeypatch.setattr("sys.stdin", io.StringIO(Path(REFUSED).read_text(encoding="utf-8")))

    assert main(["validate", "-o", "json", "-"]) == 1

    (finding,) = json.loads(capsys.readouterr().out)
    assert ("-", "qwen") == (finding["file"], finding["name"])
    assert ["spec.engine.extraArgs[0]"] == [v["field"] for v in finding["violations"]]


def test_validate_judges_services_among_other_objects(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A file may hold a Secret and a service; the Secret is not ours to judge."""
    path = tmp_path / "both.yaml"
    service = Path(VALID).read_text(encoding="utf-8")
    path.write_text(f"kind: Secret\n---\n{service}", encoding="utf-8")

    assert main(["validate", str(path)]) == 0
    assert capsys.readouterr().out == "1 valid, 0 invalid\n"


def test_validate_of_a_file_without_services_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A pipeline that validates the wrong file must not pass."""
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n", encoding="utf-8")

    assert main(["validate", str(path)]) == 1
    assert "no LLMService in it" in capsys.readouterr().out


def test_validate_of_a_missing_file_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The operating system's words, no traceback."""
    assert main(["validate", "/nope/nope.yaml"]) == 1
    assert "No such file or directory" in capsys.readouterr().out


def test_render_is_deterministic(capsys: pytest.CaptureFixture[str]) -> None:
    """Same input, same bytes."""
    main(["render", VALID])
    first = capsys.readouterr().out
    main(["render", VALID])

    assert first == capsys.readouterr().out


def test_render_puts_children_into_the_namespace(capsys: pytest.CaptureFixture[str]) -> None:
    """``-n`` is where they would go; JSON is one List."""
    assert main(["render", "-n", "team", "-o", "json", VALID]) == 0

    rendered = json.loads(capsys.readouterr().out)
    assert rendered["kind"] == "List"
    assert {"team"} == {item["metadata"]["namespace"] for item in rendered["items"]}


@pytest.mark.parametrize("path", [INVALID, REFUSED, BROKEN])
def test_render_of_what_cannot_run_prints_nothing(
    capsys: pytest.CaptureFixture[str], path: str
) -> None:
    """Nothing on standard output that could be piped into kubectl; the reason on the other."""
    assert main(["render", path]) == 1

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"{path}: ")


def test_wrong_usage_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse's own code and words."""
    with pytest.raises(SystemExit) as ended:
        main(["rendr"])

    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
