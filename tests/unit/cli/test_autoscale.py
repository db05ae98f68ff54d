"""``autoscale simulate``: what it prints, and what it says of a trace that it cannot use."""

import io
import json
from pathlib import Path

import pytest

from llmservice.cli import main
from llmservice.core.autoscaling.peers import POLICIES

HEADER = "arrival_seconds,prompt_tokens,output_tokens\n"
STEADY = HEADER + "".join(f"{n / 3},400,200\n" for n in range(900))


def simulate(path: Path | str, *options: str) -> int:
    return main(["autoscale", "simulate", str(path), *options])


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Five minutes at three requests a second."""
    path = tmp_path / "trace.csv"
    path.write_text(STEADY, encoding="utf-8")
    return path


def test_json_is_a_line_per_policy(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours first; the keys are those that programs were promised."""
    assert simulate(trace, "-o", "json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["policy"] for line in lines] == list(POLICIES)
    assert lines[0]["policy"] == "llmservice"
    for line in lines:
        assert {"policy", "gpu_hours", "slo_miss_rate", "scale_changes"} <= set(line)
        assert line["gpu_hours"] > 0.08
        assert 0 <= line["slo_miss_rate"] <= 1


def test_text_is_a_table_and_a_plot(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the policies that were asked for, once each."""
    options = ("--policy", "llmservice", "--policy", "keda", "--policy", "keda")
    assert simulate(trace, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["POLICY", "GPU-HOURS", "SLO", "MISSES", "CHANGES", "P95", "TTFT"]
    names = [line.split()[0] for line in lines if line.strip()]
    assert names == ["POLICY", "llmservice", "keda", "load", "llmservice", "keda", "0"]
    assert "up to 3.1 requests/s" in lines[4]
    assert all(len(line) <= 110 for line in lines)


def test_the_plot_needs_no_unicode(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal of another age gets plain letters."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", output)
    assert simulate(trace, "--policy", "llmservice") == 0


def test_options_reach_the_engine(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fifth of the speed, and replicas that come at once or never in time."""

    def misses(*options: str) -> float:
        assert simulate(trace, "-o", "json", "--policy", "llmservice", *options) == 0
        return float(json.loads(capsys.readouterr().out)["slo_miss_rate"])

    slow = ("--tokens-per-second", "240")
    assert misses() == 0
    assert misses(*slow, "--cold-start", "10") < misses(*slow) < 1
    assert misses(*slow) < misses(*slow, "--max", "1")
    assert misses(*slow, "--min", "5") == 0
    assert misses("--slo", "0.01") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column arrival_seconds"),
        (HEADER, "line 2: no request in it"),
        (HEADER + "-1,1,1\n", "line 2: arrival_seconds: '-1' is less than nothing"),
        (HEADER + "0,many,1\n", "line 2: prompt_tokens: 'many' is not a number"),
        (HEADER + "0,0,1\n", "line 2: prompt_tokens: '0' is not a whole number of 1 or more"),
        (HEADER + "0,1,2.5\n", "line 2: output_tokens: '2.5' is not a whole number of 1 or more"),
        (HEADER + "5,1,1\n4,1,1\n", "line 3: arrival_seconds: 4 comes after 5: sort the trace"),
        (HEADER + "1.7e9,1,1\n", "line 2: arrival_seconds: '1.7e9' is over 31 days"),
        (HEADER + "0,39999,2\n", "line 2: output_tokens: 40001 tokens with the prompt are more"),
    ],
)
def test_a_bad_trace_is_named_with_line_and_field(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence on standard error, nothing on standard output, exit code 1."""
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    assert simulate(path, "-o", "json") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {path}: {message}")
    assert captured.err.count("\n") == 1


def test_min_over_max_is_wrong_usage(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, before the trace is read."""
    assert simulate(trace, "--min", "5", "--max", "4") == 2
    assert capsys.readouterr().err == "error: --min 5 is more than --max 4\n"


@pytest.mark.parametrize(
    "options",
    [
        ("--slo", "nan"),
        ("--cold-start", "-1"),
        ("--tokens-per-second", "inf"),
        ("--max-num-seqs", "0"),
        ("--min", "0"),
        ("--max", "1000000"),
        ("--policy", "best"),
        ("--queue", "nowhere"),
    ],
)
def test_impossible_options_are_wrong_usage(
    options: tuple[str, str], trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """argparse's own exit code, and the option is named."""
    with pytest.raises(SystemExit) as stopped:
        simulate(trace, *options)
    assert stopped.value.code == 2
    assert options[0] in capsys.readouterr().err
