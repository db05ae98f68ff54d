"""``judge replay``: verdicts, output, and one sentence for every unusable input."""

import csv
import io
import json
import random
import re
from pathlib import Path

import pytest

from llmservice.api.guardrails import Guardrail
from llmservice.cli import main
from llmservice.cli.judge import read_guardrails
from llmservice.core.judge.checks import compile_guardrails
from llmservice.core.judge.judge import judge
from llmservice.core.judge.state import JudgeState
from llmservice.core.judge.trace import Request, cut_windows
from tests.unit.core.judge.traffic import handed_over

HEADER = "seconds,track,ttft_seconds,latency_seconds,error\n"
GUARDRAILS = """\
guardrails:
- {metric: ttft, quantile: p95, maxIncreasePercent: 15}
- {metric: errors, maxErrorRatePercent: 2}
"""
MANIFEST = """\
apiVersion: llmservice.dev/v1alpha1
kind: LLMService
metadata: {name: qwen}
spec:
  model: {id: Qwen/Qwen3-0.6B}
  rollout:
    guardrails:
    - {metric: ttft, quantile: p95, maxIncreasePercent: 15}
    - {metric: errors, maxErrorRatePercent: 2}
"""


def trace(slower=1.0, failing=0.0, minutes=40, seed=1):
    """Two requests a second; from the fifth minute on a tenth goes to the canary."""
    rng, now, lines = random.Random(seed), 0.0, [HEADER]
    while (now := now + rng.expovariate(2)) < minutes * 60:
        canary = now > 300 and rng.random() < 0.1
        factor = slower if canary else 1.0
        ttft = factor * rng.lognormvariate(-1, 0.5)
        failed = canary and rng.random() < failing
        track = "canary" if canary else "stable"
        lines.append(f"{now:.2f},{track},{ttft:.3f},{ttft + factor * 4:.3f},{int(failed)}\n")
    return "".join(lines)


PAGE = (Path(__file__).parents[3] / "docs" / "rollouts.md").read_text(encoding="utf-8")


def test_the_worked_example_is_what_is_printed(tmp_path, monkeypatch, capsys):
    """Trace, guardrails and output of docs/rollouts.md."""
    monkeypatch.chdir(tmp_path)
    exec(re.search("```python\n(.*?)```", PAGE, re.DOTALL)[1], {})
    rules = re.search("With these guardrails.*?```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
    Path("guardrails.yaml").write_text(rules, encoding="utf-8")
    quotes = re.findall(r"^\$ llmservice (.*?)\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)

    assert 2 == len(quotes)
    for command, shown in quotes:
        assert 0 == main(command.split())
        assert shown == capsys.readouterr().out


def test_the_guardrails_of_the_page_are_valid(tmp_path):
    """What is shown can be copied."""
    for number, block in enumerate(re.findall("```yaml\n(.*?)```", PAGE, re.DOTALL)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        assert read_guardrails(str(path))


@pytest.fixture
def run(tmp_path, capsys):
    """Replay a trace and give back exit code, output and errors."""

    def replay(text, *options, guardrails=GUARDRAILS):
        path, rules = tmp_path / "trace.csv", tmp_path / "rules.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        rules.write_text(guardrails, encoding="utf-8")
        code = main(["judge", "replay", str(path), "--guardrails", str(rules), *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.replace(f"{tmp_path}/", "")

    return replay


@pytest.mark.parametrize(
    ("canary", "verdict", "word"),
    [({}, "promote", "ttft"), ({"slower": 2}, "abort", "ttft"), ({"failing": 0.2}, "abort", "err")],
)
def test_verdict_is_the_last_line(run, canary, verdict, word):
    """With the promised keys; the code is 0 whichever it is."""
    code, out, _ = run(trace(**canary), "-o", "json")
    last = json.loads(out.splitlines()[-1])

    assert (0, verdict) == (code, last["verdict"])
    assert 300 < last["seconds"] <= 2430
    assert 0 < last["canary_requests"] < 300
    assert word in last["reason"]


def test_manifest_and_list_mean_the_same(run):
    """Guardrails are found where an LLMService will have them."""
    text = trace(slower=2)

    assert run(text) == run(text, guardrails=MANIFEST)


def test_text_is_a_sentence(run):
    """Verdict, when, and the numbers why."""
    _, out, _ = run(trace(slower=2))
    first, ttft, errors = out.splitlines()

    assert re.fullmatch(r"abort at \d+\.\d s after \d+ canary requests", first)
    assert ttft.startswith("  abort: p95 ttft at most 15% worse than stable: ")
    assert errors.startswith("  inconclusive: errors at most 2%: ")


def test_all_prints_every_window(run):
    """Inconclusive until the last."""
    lines = [json.loads(line) for line in run(trace(), "-o", "json", "--all")[1].splitlines()]

    assert ["inconclusive"] * (len(lines) - 1) + ["promote"] == [each["verdict"] for each in lines]
    assert len(lines) > 10


ITL_GUARDRAIL = "guardrails: [{metric: itl, maxIncreasePercent: 15}]\n"


def streamed(slower=1.0):
    """The same trace, with the mean time between the tokens of most requests."""
    rng, lines = random.Random(3), []
    for line in trace().splitlines()[1:]:
        itl = 0.03 * (slower if "canary" in line else 1) * rng.lognormvariate(0, 0.3)
        lines.append(f"{line},{itl if rng.random() < 0.9 else ''}\n")
    return HEADER.replace("\n", ",itl_seconds\n") + "".join(lines)


@pytest.mark.parametrize(("slower", "verdict"), [(1.0, "promote"), (2.0, "abort")])
def test_times_between_tokens_are_a_column_more(run, slower, verdict):
    """Which may be empty, as of a request with a single token."""
    code, out, _ = run(streamed(slower), "-o", "json", guardrails=ITL_GUARDRAIL)
    last = json.loads(out.splitlines()[-1])

    assert (0, verdict) == (code, last["verdict"])
    assert "of the tokens of" in last["reason"]
    (finding,) = last["findings"]
    assert 0.8 < finding["canary_requests"] / last["canary_requests"] < 1


def test_the_column_is_read_only_where_it_is_needed(run):
    """A trace may have it, whatever is guarded; a guardrail that needs it says so."""
    assert run(streamed()) == run(trace())
    code, out, err = run(trace(), guardrails=ITL_GUARDRAIL)

    assert (1, "") == (code, out)
    assert "trace.csv: line 1: no column itl_seconds: a guardrail of itl needs the mean" in err
    twice = streamed().replace("itl_seconds", "itl_seconds,itl_seconds", 1)
    assert "more than one column itl_seconds" in run(twice, guardrails=ITL_GUARDRAIL)[2]
    words = HEADER.replace("\n", ",itl_seconds\n") + "1,stable,1,1,0,fast\n"
    assert "line 2: itl_seconds: 'fast' is not" in run(words, guardrails=ITL_GUARDRAIL)[2]


def test_bake_promotes_no_earlier(run):
    """But what turns bad meanwhile aborts; a trace that is too short decides nothing."""
    good = trace(minutes=30).removesuffix("\n")
    worse = trace(slower=4, seed=2).splitlines()[1:]
    turning = "\n".join([good, *(line for line in worse if float(line.split(",")[0]) > 1800)])

    assert "inconclusive" == json.loads(run(good, "--bake", "3600", "-o", "json")[1])["verdict"]
    assert "abort" == json.loads(run(turning, "--bake", "3600", "-o", "json")[1])["verdict"]


def test_vllms_buckets_see_less(run):
    """The same judge, fed what an engine publishes that was given no finer edges."""
    seen = [
        json.loads(run(trace(slower=1.4), "--buckets", edges, "-o", "json")[1])["findings"][0]
        for edges in ("fine", "vllm")
    ]

    assert seen[0]["stable_seconds"] != seen[1]["stable_seconds"]


@pytest.mark.parametrize("options", [(), ("--buckets", "vllm")])
def test_no_canary_is_inconclusive(run, options):
    """Nothing was seen, so nothing is said."""
    text = "".join(line for line in trace(minutes=9).splitlines(True) if "canary" not in line)
    code, out, _ = run(text, "-o", "json", *options)
    last = json.loads(out)

    assert (0, "inconclusive", 0) == (code, last["verdict"], last["canary_requests"])
    assert last["reason"].startswith("the trace has no canary request; ")


def test_failures_need_no_times(run):
    """No token came; columns may stand in any order and beside others."""
    rows = "".join(f"{second},x,true,canary,,\n" for second in range(40))
    header = "seconds,user,error,track,latency_seconds,ttft_seconds\n"

    assert "abort" == json.loads(run(header + rows, "-o", "json")[1])["verdict"]


def test_replay_is_the_judge(run):
    """Window for window what a rollout would decide, leaders changing in between."""
    text = trace(slower=1.5)
    rows = list(csv.DictReader(io.StringIO(text)))
    requests = [
        Request(
            float(row["seconds"]),
            row["track"],
            float(row["ttft_seconds"]),
            float(row["latency_seconds"]),
            row["error"] == "1",
        )
        for row in rows
    ]
    rules = compile_guardrails(
        [
            Guardrail(metric="ttft", quantile="p95", max_increase_percent=15),
            Guardrail(metric="errors", max_error_rate_percent=2),
        ]
    )
    state = JudgeState()
    for _, window in cut_windows(requests, 30):
        state, decision = judge(rules, handed_over(state), window)
        if decision.verdict != "inconclusive":
            break

    assert decision.reason == json.loads(run(text, "-o", "json")[1])["reason"]


GOOD = "1,stable,0.1,1,0\n"
BAD_TRACES = [
    ("", "line 1: no column seconds: the first line must name seconds,track,"),
    (HEADER + GOOD + "2,canary,fast,1,0\n", "line 3: ttft_seconds: 'fast' is not a number"),
    (HEADER + "1,canary,1,inf,0\n", "line 2: latency_seconds: 'inf' is not a number"),
    (HEADER + "1,canary,,1,0\n", "line 2: ttft_seconds: '' is not a number"),
    (HEADER + "1,canary,-1,1,0\n", "line 2: ttft_seconds: '-1' is less than nothing"),
    (HEADER + "1,blue,1,1,0\n", "line 2: track: 'blue' is not stable or canary"),
    (HEADER + "1,canary,1,1,2\n", "line 2: error: '2' is not 0, 1, true or false"),
    (HEADER + "5,stable,1,1,0\n" + GOOD, "line 3: seconds: 1 comes after 5: sort the trace"),
]


@pytest.mark.parametrize(("text", "words"), BAD_TRACES)
def test_bad_trace_is_one_sentence(run, text, words):
    """File, line, column, and exit code 1; nothing on standard output."""
    code, out, err = run(text)

    assert (1, "", 1) == (code, out, err.count("\n"))
    assert err.startswith("error: trace.csv: line ")
    assert words in err


BAD_GUARDRAILS = [
    ("", "no list of guardrails in it"),
    ("kind: LLMService\nspec: {rollout: {}}\n", "no list of guardrails in it"),
    (GUARDRAILS + "---\n" + GUARDRAILS, "more than one list of guardrails"),
    ("guardrails: []\n", "guardrails: must be a list of 1 to 8 guardrails"),
    ("guardrails: {metric: ttft}\n", "guardrails: must be a list of 1 to 8 guardrails"),
    ("guardrails: [ttft]\n", "guardrails[0]: "),
    ("guardrails: [{metric: ttft, maxSeconds: two}]\n", "guardrails[0].maxSeconds: "),
    ("guardrails: [{metric: ttft, maxSecond: 2}]\n", "guardrails[0].maxSecond: unknown field"),
    ("guardrails: [{maxSeconds: 2}]\n", "guardrails[0].metric: is required"),
    ("guardrails: [{metric: ttft}]\n", "guardrails[0]: it limits nothing"),
    ("guardrails: [{metric: ttft, maxSeconds: 2}, {metric: ttft, maxSeconds: 3}]\n", "[1]: ttft"),
    ("guardrails: [\n", "line 2, column 1: "),
]


@pytest.mark.parametrize(("text", "words"), BAD_GUARDRAILS)
def test_bad_guardrails_are_one_sentence(run, text, words):
    """File and field, and exit code 1."""
    code, out, err = run(HEADER + GOOD, guardrails=text)

    assert (1, "", 1) == (code, out, err.count("\n"))
    assert err.startswith("error: rules.yaml: ")
    assert words in err


def test_missing_files_are_named(capsys, tmp_path):
    """Each of them."""
    rules = tmp_path / "rules.yaml"
    rules.write_text(GUARDRAILS, encoding="utf-8")

    assert 1 == main(["judge", "replay", "no.csv", "--guardrails", str(rules)])
    assert "no.csv: No such file" in capsys.readouterr().err
    assert 1 == main(["judge", "replay", "no.csv", "--guardrails", "no.yaml"])
    assert "no.yaml: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--window=0", "--window=x", "--window=nan", "--bake=-1"])
def test_wrong_seconds_are_wrong_usage(option):
    """Exit code 2, as for every wrong option."""
    with pytest.raises(SystemExit) as caught:
        main(["judge", "replay", "x", "--guardrails", "x", option])

    assert 2 == caught.value.code
