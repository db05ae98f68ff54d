"""``plan``: verdicts, the drawing, what-if, the table of devices, JSON, and every bad input."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmservice.cli import main
from llmservice.cli.bar import draw
from llmservice.core.planner.devices import known_devices
from llmservice.core.planner.outcome import Memory
from llmservice.core.planner.overhead import Overhead, Range
from tests.corpus.cases import CORPUS

GIB = 1 << 30
REFUSED = str(CORPUS / "refused" / "plan-weights-do-not-fit.yaml")
INVALID = str(CORPUS / "invalid" / "range-port-zero.yaml")
BROKEN = str(CORPUS / "invalid" / "yaml-unclosed-bracket.yaml")
SMALL = "Qwen/Qwen2.5-0.5B-Instruct"
END = "\n}\n{"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
"""Keys and values of a token: 2 x 8 layers x 4 heads x 64 elements x 2 bytes = 8192."""

Out = pytest.CaptureFixture[str]


def service(model: str, accelerator: Mapping[str, Any], **engine: Any) -> dict[str, Any]:
    """A manifest."""
    return {
        "apiVersion": "llmservice.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "mine"},
        "spec": {"model": {"id": model}, "engine": engine, "accelerator": dict(accelerator)},
    }


def write(folder: Path, *documents: Mapping[str, Any]) -> str:
    path = folder / "services.yaml"
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return str(path)


def write_config(folder: Path, config: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def memory(total: float | None, budget: float | None, weights: float, cache: float) -> Memory:
    """Sizes in GiB; one for activations, half for graphs, half for the rest."""

    def span(low: float, expected: float, high: float) -> Range:
        return Range(int(low * GIB), int(expected * GIB), int(high * GIB))

    return Memory(
        total=None if total is None else int(total * GIB),
        budget=None if budget is None else int(budget * GIB),
        weights=int(weights * GIB),
        overhead=Overhead(
            activations=span(0.5, 1, 2),
            graphs=span(0.5, 0.5, 0.5),
            other=span(0, 0.5, 1),
            outside=GIB // 2,
        ),
        kv_cache=span(cache - 1.5, cache, cache + 1),
        spare=span(0, 0, 0),
    )


def json_of(capsys: Out) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(capsys.readouterr().out)
    return loaded


# --- the drawing ----------------------------------------------------------------------------------


def test_the_bar_is_in_proportion() -> None:
    """94 letters for 23.5 GiB: four per GiB; what is uncertain says between what and what."""
    assert [
        "  [" + "W" * 40 + "A" * 4 + "G" * 2 + "o" * 2 + "K" * 36 + "." * 10 + "]",
        "",
        "  W weights        10.0 GiB   43%",
        "  A activations     1.0 GiB    4%   0.5 GiB to 2.0 GiB",
        "  G CUDA graphs     0.5 GiB    2%",
        "  o other           0.5 GiB    2%   0.0 GiB to 1.0 GiB",
        "  K KV cache        9.0 GiB   38%   7.5 GiB to 10.0 GiB",
        "  . free            2.5 GiB   11%   outside the engine's share; 0.5 GiB should stay free",
    ] == list(draw(memory(23.5, 21, 10, 9), color=False))


def test_an_overfull_bar_shows_where_the_share_ends() -> None:
    """Twice what is there: the bar is drawn to the end of what is wanted."""
    bar, mark, *legend = draw(memory(23.5, 20, 45, -27), color=False)

    assert "W" * 90 + "A" * 2 + "G" + "o" == bar[3:-1]
    assert mark.index("^") == 3 + 40
    assert "the engine's share of 20.0 GiB ends here: 27.0 GiB too much" in mark
    assert "  K KV cache      -27.0 GiB -115%   -28.5 GiB to -26.0 GiB" in legend


def test_words_stand_where_the_overfull_bar_has_room() -> None:
    """A little too much: the arrow is far to the right, its words left of it."""
    bar, mark, *_ = draw(memory(23.5, 20, 19, -1), color=False)

    assert len(bar) == 98
    assert mark.endswith("1.0 GiB too much ^")
    assert len(mark) == 3 + 80 + 1


def test_a_given_cache_may_pass_the_device() -> None:
    """There is no share then; the device is the limit."""
    _, mark, *legend = draw(memory(23.5, None, 20, 4), color=False)

    assert "the engine's share of 23.5 GiB ends here: 2.5 GiB too much" in mark
    assert "  . free            0.0 GiB    0%" == legend[-1]


def test_a_cpu_has_no_end() -> None:
    """Nothing is free and nothing too much."""
    lines = list(draw(memory(None, None, 2, 4), color=False))

    assert len(lines[0]) == 98
    assert lines[1] == ""
    assert not any("free" in line for line in lines)


def test_colors_change_no_letter() -> None:
    """On a terminal each part has its own background."""
    plain, colored = (next(draw(memory(23.5, 21, 10, 9), color=color)) for color in (False, True))

    assert f"\033[44;97m{'W' * 40}\033[0m" in colored
    assert len(plain) == len(colored) - 5 * len("\033[44;97m\033[0m") - len("\033[0m\033[0m")


# --- verdicts -------------------------------------------------------------------------------------


def test_one_line_per_service(capsys: Out, tmp_path: Path) -> None:
    """Services of one file in its order; unknown is no error."""
    path = write(
        tmp_path,
        service(SMALL, {"product": "NVIDIA-A10G"}),
        service("/models/secret", {"product": "NVIDIA-A10G"}),
        {"kind": "Secret"},
    )

    assert main(["plan", path]) == 0
    fits, unknown = capsys.readouterr().out.splitlines()
    assert fits.startswith("mine: Fits: 1 x A10G: 0.9 GiB of weights and ")
    assert unknown.startswith("mine: PlanUnknown: the catalog has no /models/secret: ")


def test_an_infeasible_service_ends_with_one(capsys: Out) -> None:
    """The line carries the remedies."""
    assert main(["plan", REFUSED]) == 1
    assert "planned: InfeasiblePlan: " in (line := capsys.readouterr().out)
    assert "set parallelism.tensor to" in line


def test_an_advisory_plan_ends_with_zero(capsys: Out, tmp_path: Path) -> None:
    """It is still said."""
    document = service(
        LLAMA,
        {"product": "NVIDIA-A10G", "count": 1},
        plan="Advisory",
        maxModelLen=120_000,
    )

    assert main(["plan", write(tmp_path, document)]) == 0
    assert capsys.readouterr().out.startswith("mine: InfeasiblePlan: not one request of 120,000")


def test_a_bad_service_hides_no_other(capsys: Out, tmp_path: Path) -> None:
    """Violations go to stderr as with ``render``; the rest is planned, the exit code the worst."""
    good = write(tmp_path, service(SMALL, {"product": "NVIDIA-A10G"}))
    none = tmp_path / "none.yaml"
    none.write_text("kind: Secret", encoding="utf-8")

    assert main(["plan", INVALID, BROKEN, str(none), good]) == 1

    printed = capsys.readouterr()
    port, bracket, kind = printed.err.splitlines()
    assert port.startswith(f"{INVALID}: qwen: spec.service.port: ")
    assert bracket.startswith(f"{BROKEN}: -: yaml: line ")
    assert kind == f"{none}: -: kind: no LLMService in it"
    assert "mine: Fits" in printed.out


def test_standard_input(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    """``-`` is a file too."""
    monkeypatch.setattr("sys.stdin", io.StringIO(Path(REFUSED).read_text(encoding="utf-8")))

    assert main(["plan", "-"]) == 1
    assert capsys.readouterr().out.startswith("planned: InfeasiblePlan")


# --- --explain ------------------------------------------------------------------------------------


def test_explain_draws_and_gives_reasons(capsys: Out, tmp_path: Path) -> None:
    """Picture, sentence, capacity, choices; the planner's own have a mark."""
    config = write_config(tmp_path, CONFIG)

    assert main(["plan", "--config", config, "--gpu", "A10G", "--explain"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{config}: Fits"
    assert lines[2].startswith("  [W")
    assert "              8,192 bytes per token and device" in lines
    assert "  * parallelism.tensor = 1              the model fits one device" in lines
    assert "    maxModelLen = 4096                  the model's own" in lines
    assert all(len(line) <= 100 for line in lines)
    assert "\033" not in "".join(lines)


def test_explain_of_what_does_not_fit(capsys: Out) -> None:
    """The overfull bar, then the sentence with the remedies."""
    assert main(["plan", REFUSED, REFUSED, "--explain"]) == 1

    lines = capsys.readouterr().out.splitlines()
    assert lines.count("planned: InfeasiblePlan") == 2
    assert lines[lines.index("planned: InfeasiblePlan", 1) - 1] == ""
    assert "GiB too much" in lines[3]
    assert "set parallelism.tensor to" in " ".join(line.strip() for line in lines)


def test_explain_without_a_device_has_no_bar(capsys: Out, tmp_path: Path) -> None:
    """What is not known is not drawn; the fix is in the sentence."""
    assert main(["plan", write(tmp_path, service(LLAMA, {})), "--explain"]) == 0

    printed = capsys.readouterr().out
    assert printed.startswith("mine: PlanUnknown\n")
    assert "spec.accelerator.product" in printed
    assert "[W" not in printed


def test_explain_says_that_the_version_is_a_guess(capsys: Out, tmp_path: Path) -> None:
    """A newer engine than the tables know may count memory differently."""
    document = service(SMALL, {"product": "NVIDIA-A10G"}, version="9.0")

    assert main(["plan", write(tmp_path, document), "--explain"]) == 0
    assert "vLLM 9.0 is not known to this operator" in capsys.readouterr().out


def test_explain_in_color_on_a_terminal(
    capsys: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only there, and not against NO_COLOR."""
    command = ["plan", "--config", write_config(tmp_path, CONFIG), "--gpu", "A10G", "--explain"]
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    main(command)
    assert "\033[44;97mW" in capsys.readouterr().out

    monkeypatch.setenv("NO_COLOR", "1")
    main(command)
    assert "\033" not in capsys.readouterr().out


# --- what if --------------------------------------------------------------------------------------


def test_another_device(capsys: Out, tmp_path: Path) -> None:
    """Memory and resource of the file's device go with it; names are those of people or labels."""
    path = write(tmp_path, service(SMALL, {"product": "NVIDIA-T4", "memory": "1Gi"}))

    for name in ("A10G", "a10g", "NVIDIA-A10G", "NVIDIA-A10G-SHARED"):
        assert main(["plan", path, "--gpu", name, "-o", "json"]) == 0
        (known,) = (device for device in known_devices() if device.name == "A10G")
        assert {"name": "A10G", "memory": known.memory} == json_of(capsys)["device"]


def test_a_device_instead_of_a_cpu(capsys: Out, tmp_path: Path) -> None:
    """The question is about the device."""
    path = write(tmp_path, service(SMALL, {"resource": "cpu"}, kvCacheMemoryBytes="1Gi"))

    assert main(["plan", path, "--gpu", "A10G"]) == 0
    assert capsys.readouterr().out.startswith("mine: Fits: 1 x A10G")


def test_another_device_as_often(capsys: Out, tmp_path: Path) -> None:
    """What is not asked about stays as written."""
    path = write(tmp_path, service(SMALL, {"count": 2}))

    assert main(["plan", path, "--gpu", "A10G"]) == 0
    assert capsys.readouterr().out.startswith("mine: Fits: 2 x A10G")


def test_other_ranks_and_length(capsys: Out, tmp_path: Path) -> None:
    """They outrank the file, its count included, and other ranks of it stay."""
    path = write(
        tmp_path,
        service(
            LLAMA,
            {"product": "NVIDIA-A10G", "count": 2},
            maxModelLen=1000,
            parallelism={"tensor": 1, "pipeline": 2},
        ),
    )

    assert main(["plan", path, "--tensor", "4", "--max-model-len", "2000", "-o", "json"]) == 0
    knobs = json_of(capsys)["knobs"]
    assert (4, 2, 2000) == (knobs["tensor"], knobs["pipeline"], knobs["maxModelLen"])


def test_ranks_that_do_not_divide_the_heads(capsys: Out, tmp_path: Path) -> None:
    """A what-if can be infeasible too."""
    config = write_config(tmp_path, CONFIG)

    assert main(["plan", "--config", config, "--gpu", "A10G", "--tensor", "3"]) == 1
    assert "does not divide the model's 16 attention heads" in capsys.readouterr().out


def test_a_quantized_name_is_the_same_shape(capsys: Out) -> None:
    """An AWQ copy of a known model has smaller weights."""
    weights = []
    for model in (LLAMA, f"{LLAMA}-AWQ"):
        assert main(["plan", "--model", model, "--gpu", "A10G", "-o", "json"]) == 0
        weights.append(json_of(capsys)["memory"]["weights"])
    assert 0.6 * weights[0] > weights[1]


# --- --gpus ---------------------------------------------------------------------------------------


def test_the_table_has_all_devices(capsys: Out, tmp_path: Path) -> None:
    """Fewest devices first, then the smallest; ranks, count and device of the file do not count."""
    document = service(LLAMA, {"product": "Unheard-Of", "count": 4}, parallelism={"tensor": 4})

    assert main(["plan", write(tmp_path, document), "--gpus"]) == 0

    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title == "mine: one replica on each known device"
    names = ["DEVICE", "MEMORY", "TENSOR", "DEVICES", "LENGTH", "KV", "TOKENS", "REQUESTS"]
    assert names == head.split()
    assert {device.name for device in known_devices()} == {row.split()[0] for row in rows}
    (own,) = (row.split() for row in rows if row.split()[0] == "A10G")
    assert ["22.1", "GiB", "1", "1"] == own[1:5]
    fitting = [row.split() for row in rows if "does not fit" not in row]
    order = [(int(row[4]), float(row[1])) for row in fitting]
    assert sorted(order) == order
    assert all(len(line) <= 100 for line in (title, head, *rows))


def test_the_table_says_why_not(capsys: Out) -> None:
    """With one rank a large model fits large devices only; the others say so, at the end."""
    command = ["plan", "--model", "meta-llama/Llama-3.3-70B-Instruct", "--gpus", "--tensor", "1"]

    assert main(command) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    (own,) = (row for row in rows if row.split()[0] == "A10G")
    assert own.endswith(" meta-llama/Llama-3.3-70B-Instruct does not fit 1 x A10G")
    fits = [row.split()[3] == "1" for row in rows]
    assert sorted(fits, reverse=True) == fits
    assert set(fits) == {True, False}
    assert all(len(row) <= 100 for row in rows)


def test_no_device_at_all(capsys: Out, tmp_path: Path) -> None:
    """Ranks that nothing can have: exit code 1, unless the plan is advisory."""
    for plan, code in (("Enforce", 1), ("Advisory", 0)):
        path = write(tmp_path, service(LLAMA, {}, plan=plan))
        assert main(["plan", path, "--gpus", "--tensor", "3"]) == code
        assert "does not divide" in capsys.readouterr().out


def test_a_table_marks_what_may_not_start(capsys: Out, tmp_path: Path) -> None:
    """A cache that is given and leaves little: not sure to start on some device."""
    total = next(device.memory for device in known_devices() if device.name == "A10G")
    planned = service(
        LLAMA, {}, kvCacheMemoryBytes=str(total - 16 * GIB), maxModelLen=2000, version="0.33"
    )
    path = write(tmp_path, planned)

    assert main(["plan", path, "--gpus", "--tensor", "1"]) == 0
    (own,) = (row for row in capsys.readouterr().out.splitlines() if row.split()[0] == "A10G")
    assert own.endswith(" may not start")


def test_the_table_of_an_unknown_model_is_one_line(capsys: Out, tmp_path: Path) -> None:
    """The same sentence sixty times helps nobody."""
    path = write(tmp_path, service("/models/secret", {}))

    assert main(["plan", path, "--gpus"]) == 0
    assert capsys.readouterr().out.startswith("mine: PlanUnknown: the catalog has no")

    assert main(["plan", path, "--gpus", "-o", "json"]) == 0
    assert json_of(capsys)["outcome"] == "PlanUnknown"


# --- JSON -----------------------------------------------------------------------------------------


def test_json_of_a_plan(capsys: Out, tmp_path: Path) -> None:
    """Numbers are bytes and tokens, keys are stable."""
    config = write_config(tmp_path, CONFIG)

    assert main(["plan", "--config", config, "--gpu", "A10G", "-o", "json"]) == 0

    found = json_of(capsys)
    assert ("Fits", config, "config.json") == (found["outcome"], found["name"], found["model"])
    assert {"file", "name", "model", "version", "device", "outcome", "message"} | {
        "memory",
        "knobs",
        "capacity",
        "choices",
    } == set(found)
    assert {"total", "budget", "weights", "overhead", "kvCache"} <= set(found["memory"])
    assert {"low", "expected", "high"} == set(found["memory"]["overhead"]["graphs"])
    assert 8192 == found["capacity"]["bytesPerToken"]
    assert {"knob", "value", "why", "chosen"} == set(found["choices"][0])
    capacity = found["capacity"]
    assert capacity["blocks"] / capacity["blocksPerRequest"] == capacity["concurrency"]


def test_json_is_a_document_per_service(capsys: Out, tmp_path: Path) -> None:
    """Infeasible and invalid ones too; sentences about the latter stay on stderr."""
    unknown = write(tmp_path, service("/models/secret", {}))

    assert main(["plan", REFUSED, INVALID, unknown, "-o", "json"]) == 1

    printed = capsys.readouterr()
    first, second, third = json.loads(f"[{printed.out.replace(END, '},{')}]")
    assert ("InfeasiblePlan", "WeightsDoNotFit") == (first["outcome"], first["reason"])
    assert first["memory"]["kvCache"]["expected"] < 0
    assert "Invalid" == second["outcome"]
    assert ["spec.service.port"] == [violation["field"] for violation in second["violations"]]
    assert "spec.service.port" in printed.err
    assert ("PlanUnknown", None) == (third["outcome"], third["device"])


def test_json_of_the_table(capsys: Out, tmp_path: Path) -> None:
    """A plan per device, in the table's order."""
    config = write_config(tmp_path, CONFIG)

    assert main(["plan", "--config", config, "--gpus", "-o", "json"]) == 0

    rows = json_of(capsys)["devices"]
    assert {device.name for device in known_devices()} == {row["device"]["name"] for row in rows}
    assert {"Fits"} == {row["outcome"] for row in rows}
    assert sorted(memories := [row["device"]["memory"] for row in rows]) == memories


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ({"hidden_size": "wide"}, "hidden_size must be a whole number, not 'wide'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"layer_types": ["strange"] * 8}, "layer_types has 'strange'"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        ({"compress_ratios": [4]}, "not modeled"),
        ({"text_config": "no"}, "text_config must be an object"),
    ],
)
def test_a_config_that_says_too_little(
    capsys: Out, tmp_path: Path, change: Mapping[str, Any], words: str
) -> None:
    """One sentence with the field's name, exit code 1."""
    config = write_config(tmp_path, {**CONFIG, **change})

    assert main(["plan", "--config", config, "--gpu", "A10G"]) == 1

    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"{config}: ")
    assert words in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"hidden_size": 1,', "line 1, column"),
        ("[1, 2]", "one object with the model's fields"),
        ("", "one object with the model's fields"),
        ("a: 1\n---\nb: 2\n", "one object with the model's fields"),
        ("{}", "num_hidden_layers is missing"),
        ('{"hidden_size": NaN}', "JSON"),
        ("\0", "characters are not allowed"),
    ],
)
def test_what_is_no_config(capsys: Out, tmp_path: Path, text: str, words: str) -> None:
    """A sentence that begins with the file, never a traceback."""
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")

    assert main(["plan", "--config", str(path), "--gpu", "A10G"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: ")
    assert words in line


@pytest.mark.parametrize(
    ("path", "words"),
    [("/nope/config.json", "No such file"), ("/nope/Model-Q4_K_M.GGUF", "a GGUF file: give the")],
)
def test_a_file_that_is_no_config(capsys: Out, path: str, words: str) -> None:
    """A GGUF file of gigabytes is not even opened."""
    assert main(["plan", "--config", path, "--gpu", "A10G"]) == 1
    assert capsys.readouterr().err.startswith(f"{path}: {words}")


def test_an_unknown_model(capsys: Out) -> None:
    """Near names, and what to do without any."""
    assert main(["plan", "--model", "qwen/Qwen2.5-05B-Instruct", "--gpu", "A10G"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qwen/Qwen2.5-05B-Instruct: the catalog has no such model (near it: ")
    assert SMALL in line

    assert main(["plan", "--model", "/models/x.gguf", "--gpu", "A10G"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("no such model: give its config.json with --config")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--max-model-len", "0"], "spec.engine.maxModelLen"),
        (["--max-model-len", "-5"], "spec.engine.maxModelLen"),
        (["--tensor", "0"], "spec.engine.parallelism.tensor"),
        (["--tensor", "100000"], "spec.engine.parallelism.tensor"),
    ],
)
def test_what_the_file_may_not_say_no_option_may(
    capsys: Out, options: list[str], field: str
) -> None:
    """What-if obeys the rules of the resource."""
    assert main(["plan", "--model", SMALL, "--gpu", "A10G", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{SMALL}: {field}: ")


def test_an_unknown_device_lists_near_names(capsys: Out) -> None:
    """Wrong usage; what contains the name comes first."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", REFUSED, "--gpu", "A10GG"])

    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "argument --gpu: no device 'A10GG' is known (near it: A10G" in last
    assert last.endswith("): --gpus shows all")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [REFUSED, "--model", SMALL],
        ["--config", "a", "--model", SMALL],
        [REFUSED, "--gpu", "A10G", "--gpus"],
        [REFUSED, "--tensor", "two"],
        [REFUSED, "-o", "xml"],
    ],
)
def test_wrong_usage_of_options(arguments: list[str]) -> None:
    """The parser's own exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", SMALL], "need --gpu or --gpus"),
        ([REFUSED, "--gpus", "--explain"], "--explain needs one device"),
    ],
)
def test_wrong_usage_that_the_parser_cannot_see(
    capsys: Out, arguments: list[str], words: str
) -> None:
    """The same exit code."""
    assert main(["plan", *arguments]) == 2
    assert words in capsys.readouterr().err
