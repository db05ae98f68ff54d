"""The reading of ``extraArgs`` and of versions, held against verdicts of the real parser."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.extra_args import ArgProblem, check_extra_args
from llmservice.core.flags import (
    FlagKind,
    ResolvedVersion,
    UnsupportedVersion,
    flag_table,
    resolve_version,
    supported_versions,
    version_from_image,
    versions_with,
)

NEWEST, OLDEST = supported_versions()[0], supported_versions()[-1]
VERDICTS = json.loads((Path(__file__).parents[2] / "flags" / "verdicts.json").read_text("utf-8"))
RESERVED = {
    "--max-num-seqs": "spec.engine.maxNumSeqs",
    "--tensor-parallel-size": "spec.engine.parallelism.tensor",
    "--kv-offloading-size": "spec.engine.kvOffloadingSize",
    "--enable-prefix-caching": "spec.engine.prefixCaching",
    "--disable-access-log-for-endpoints": "the operator sets it",
}


def messages(*args, minor=NEWEST, reserved=RESERVED):
    """What is said about a list of arguments."""
    return [problem.message for problem in check_extra_args(args, minor, reserved)]


# --- the real parser ---


@pytest.mark.parametrize("minor", supported_versions())
def test_takes_and_refuses_what_the_real_parser_does(minor):
    """Every recorded argument list is judged as that version of vLLM judges it."""
    expected = {json.dumps(row["args"]): minor in row["accepted_by"] for row in VERDICTS}

    assert expected == {
        json.dumps(row["args"]): not check_extra_args(row["args"], minor, {}) for row in VERDICTS
    }


def test_every_flag_can_be_written_in_full():
    """No option string of the table is taken for another flag or for a value."""
    for minor in supported_versions():
        for flag in flag_table(minor).values():
            reserved = {flag.name: "spec.x"}
            for string in flag.strings:
                (problem,) = check_extra_args([string], minor, reserved)
                assert flag.kind is FlagKind.HELP or "spec.x" in problem.message


# --- traps ---


@pytest.mark.parametrize(
    "args",
    [
        ["--max-num-seqs", "3"],
        ["--max-num-seqs=3"],
        ["--max_num_seqs=3"],
        ["--max_num_seqs", "3"],
        ["--max-num-seq", "3"],
        ["--max_num_se=3"],
        ["--max-num-seqs 3"],
        ["--max-num-seqs"],
    ],
)
def test_a_reserved_flag_is_recognised_however_it_is_written(args):
    """Abbreviations, underscores and equal signs do not hide a flag that a field owns."""
    (message,) = messages(*args)

    assert "remove it and set spec.engine.maxNumSeqs instead" in message


@pytest.mark.parametrize("args", [["-tp", "2"], ["-tp=2"], ["-t", "2"]])
def test_short_forms_of_a_reserved_flag_are_recognised(args):
    """``-tp`` is ``--tensor-parallel-size``, and the message says so."""
    (message,) = messages(*args)

    assert "(--tensor-parallel-size) may not stand here" in message
    assert "set spec.engine.parallelism.tensor instead" in message


@pytest.mark.parametrize(
    "flag", ["--no-enable-prefix-caching", "--disable-prefix-caching", "--no-enable-prefix"]
)
def test_switching_a_reserved_flag_off_is_recognised(flag):
    """The negative forms of a boolean belong to its field as well."""
    (message,) = messages(flag)

    assert "spec.engine.prefixCaching" in message


def test_a_flag_the_operator_sets_itself_says_so():
    """An owner that is no field is quoted as it stands."""
    (message,) = messages("--disable-access-log-for-endpoints=/x")

    assert message.endswith("remove it (the operator sets it)")


def test_an_ambiguous_prefix_lists_what_it_could_mean():
    """argparse refuses a prefix of two flags; the message names both."""
    (message,) = messages("--mm-processor-cache", "1")

    assert (
        "--mm-processor-cache could mean --mm-processor-cache-gb or --mm-processor-cache-type:"
        " write the one you mean in full"
    ) == message


def test_flag_and_value_in_one_item_are_told_apart():
    """``- --max-logprobs 3`` is one YAML item; vLLM takes it for a stray value."""
    (message,) = messages("--max-logprobs 3")

    assert "give --max-logprobs and its value as two items, or with =" in message


def test_a_boolean_with_a_value_is_refused_and_its_negative_named():
    """``--enforce-eager true`` leaves ``true`` behind."""
    (problem,) = check_extra_args(["--enforce-eager", "true"], NEWEST, {})

    assert 1 == problem.index
    assert (
        "--enforce-eager takes no value: remove 'true'; --no-enforce-eager switches it off"
        == problem.message
    )


def test_an_unknown_json_key_is_named_with_its_neighbour():
    """First-level keys of JSON flags are checked, dotted or not."""
    expected = ["--compilation-config has no key 'mod': did you mean mode?"]

    assert expected == messages("-cc.mod=0")
    assert expected == messages("--compilation-config", '{"mod": 0}')
    assert expected == messages("--compilation_config.mod", "0")


def test_a_dotted_key_takes_the_next_item_whatever_it_is():
    """``-cc.mode --seed 3`` makes ``--seed`` the value and leaves ``3`` behind."""
    (problem,) = check_extra_args(["-cc.mode", "--seed", "3"], NEWEST, {})

    assert 2 == problem.index
    assert "belongs to no flag" in problem.message


def test_help_is_refused():
    """``--help`` would print a text and end the container with 0, again and again."""
    assert ["--help prints a help text and ends the container: remove it"] == messages("--help")


# --- unknown flags ---


def test_a_typo_is_answered_with_the_nearest_flag():
    """The nearest existing flag is named, with the field that owns it if there is one."""
    assert [f"vLLM {NEWEST} has no flag --max-logprob-s: did you mean --max-logprobs?"] == messages(
        "--max-logprob-s=3"
    )
    assert [
        (
            f"vLLM {NEWEST} has no flag --max-num-sequences: did you mean --max-num-seqs, which is"
            " spec.engine.maxNumSeqs?"
        )
    ] == messages("--max-num-sequences", "3")


def test_a_flag_of_old_releases_is_answered_with_its_replacement():
    """``--swap-space`` went in 0.18; offloading is a field of the spec now."""
    (message,) = messages("--swap-space", "4")

    assert message.startswith(f"vLLM {NEWEST} has no flag --swap-space (removed in 0.18): ")
    assert message.endswith("use spec.engine.kvOffloadingSize")


@pytest.mark.parametrize(
    ("flag", "replacement"),
    [
        ("--scheduler-delay-factor", "--prefill-schedule-interval"),
        ("--num-scheduler-steps", "--async-scheduling"),
        ("--preemption-mode", "always recomputed"),
        ("--task", "--runner"),
        ("--guided-decoding-backend", "--structured-outputs-config"),
        ("--speculative-model", "--speculative-config"),
        ("--rope-theta", "--hf-overrides"),
    ],
)
def test_popular_flags_of_old_guides_name_what_to_use_today(flag, replacement):
    """What blog posts still recommend is refused with its successor."""
    (message,) = messages(f"{flag}=1")

    assert "(removed in 0." in message
    assert replacement in message


def test_a_removed_flag_that_came_back_is_taken_where_it_exists():
    """0.33 pairs every --enable-x with --disable-x, so --disable-log-requests is back."""
    assert [] == messages("--disable-log-requests", minor="0.33")
    (message,) = messages("--disable-log-requests", minor="0.32")
    assert "(removed in 0.17)" in message
    assert message.endswith("use --enable-log-requests")


def test_a_flag_of_another_version_says_when_it_came_and_went():
    """Flags that only some supported versions have are dated."""
    (added,) = messages("--grpc-port", "1", minor="0.31")
    assert "vLLM 0.31 has no flag --grpc-port (added in 0.32)" in added
    gone = next(
        name
        for name in flag_table(OLDEST)
        if NEWEST not in versions_with(name) and len(versions_with(name)) == 1
    )
    (removed,) = messages(gone)
    assert f"has no flag {gone} (removed in 0.31)" in removed


def test_removed_flags_point_to_flags_that_exist():
    """The hand-written table of replacements names flags of every supported version."""
    path = Path(__file__).parents[3] / "operator/llmservice/data/vllm-removed-flags.json"
    removed = json.loads(path.read_text("utf-8"))["flags"]

    for flag, entry in removed.items():
        assert NEWEST not in versions_with(flag) or flag == "--disable-log-requests"
        for instead in entry.get("instead", []):
            assert supported_versions() == versions_with(instead)


# --- values ---


def test_a_wrong_type_is_refused_with_what_is_expected():
    """Numbers, choices and JSON are checked before a pod is made."""
    assert ["--max-logprobs does not take 'many': give a whole number"] == messages(
        "--max-logprobs=many"
    )
    assert ["--max-logprobs needs a value: give a whole number"] == messages("--max-logprobs")
    assert [
        (
            "--performance-mode does not take 'latency':"
            " choose one of balanced, interactivity, throughput"
        )
    ] == messages("--performance-mode", "latency")
    assert ["--hf-overrides does not take '{a}': give a JSON object or a text"] == messages(
        "--hf-overrides", "{a}"
    )


def test_long_lists_of_choices_are_not_recited_when_one_is_near():
    """A near miss among dozens of choices gets one suggestion."""
    assert ["--moe-backend does not take 'deep_gem': did you mean deep_gemm?"] == messages(
        "--moe-backend=deep_gem"
    )


def test_long_values_are_not_echoed_whole():
    """A message stays readable whatever it quotes."""
    (message,) = messages("--max-logprobs", "x" * 10_000)

    assert len(message) < 200


def test_problems_come_in_order_and_name_their_item():
    """Every wrong item is reported at once, in the order of the list."""
    problems = check_extra_args(["stray", "--nope", "1", "--seed=x", "-cc.nope=1"], NEWEST, {})

    assert [0, 1, 3, 4] == [problem.index for problem in problems]
    assert "spec.engine.extraArgs[3]: --seed does not take 'x': give a whole number" == str(
        problems[2]
    )
    assert isinstance(problems[0], ArgProblem)


ARGUMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [string for flag in flag_table(NEWEST).values() for string in flag.strings]
        ),
        st.sampled_from([row["args"][0] for row in VERDICTS if row["args"]]),
        st.text(max_size=12),
        st.sampled_from(["3", "{}", "x=y", "--", "-", "=", "--=", "-.", "--.x", "-O=", "auto"]),
    ),
    max_size=8,
)


@given(args=ARGUMENTS, minor=st.sampled_from(supported_versions()))
def test_any_list_gets_an_answer(args, minor):
    """Nothing a user can write crashes the judge, and every problem names one of his items."""
    for problem in check_extra_args(args, minor, RESERVED):
        assert 0 <= problem.index < len(args)
        assert problem.message
        assert "\n" not in problem.message or any("\n" in arg for arg in args)


@given(args=ARGUMENTS)
def test_a_reserved_flag_never_passes(args):
    """Whatever surrounds it, a flag that a field owns is refused."""
    problems = check_extra_args(["--max-num-seqs=3", *args], NEWEST, RESERVED)

    assert 0 in [problem.index for problem in problems]


# --- versions ---


def test_the_newest_minor_and_the_three_before_it_are_supported():
    """Versions are listed newest first."""
    assert ("0.33", "0.32", "0.31", "0.30") == supported_versions()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("vllm/vllm-openai:v0.33.0", "0.33"),
        ("vllm/vllm-openai:v0.33.0-cu129", "0.33"),
        ("vllm/vllm-openai:v0.33.0rc1", "0.33"),
        ("vllm/vllm-openai:v0.33.0.post1", "0.33"),
        ("localhost/vllm-cpu:0.32.0-cpu", "0.32"),
        ("registry.example:5000/team/vllm:0.31", "0.31"),
        ("registry.example:5000/team/vllm", None),
        ("vllm/vllm-openai", None),
        ("vllm/vllm-openai:latest", None),
        ("vllm/vllm-openai:nightly-0.33", None),
        ("vllm/vllm-openai@sha256:0123456789abcdef", None),
        ("vllm/vllm-openai:v0.33.0@sha256:0123456789abcdef", "0.33"),
        ("nvcr.io/nvidia/vllm:25.09-py3", None),
        ("vllm/vllm-openai:2024-11-01", None),
        ("", None),
    ],
)
def test_the_version_is_read_from_the_image_tag(image, expected):
    """Ports, digests, suffixes and calendar tags are not taken for versions."""
    assert expected == version_from_image(image)


def test_a_declared_version_outranks_the_tag():
    """``spec.engine.version`` decides; a tag that says otherwise is mentioned."""
    resolved = resolve_version("0.32.1", "team/vllm:v0.33.0")

    assert isinstance(resolved, ResolvedVersion)
    assert ("0.32", True) == (resolved.minor, resolved.exact)
    assert "spec.engine.version says 0.32 and the image tag 0.33: 0.32 is used" == resolved.note
    assert ResolvedVersion("0.33", exact=True) == resolve_version("v0.33", "team/vllm:stable")
    assert ResolvedVersion("0.30", exact=True) == resolve_version(None, "team/vllm:v0.30.2")


@pytest.mark.parametrize(("declared", "image"), [("0.41", "x"), (None, "x:v0.34.0"), ("1.0", "x")])
def test_a_newer_engine_is_judged_by_the_newest_table(declared, image):
    """A version that came after us is no error, but the user is told."""
    resolved = resolve_version(declared, image)

    assert isinstance(resolved, ResolvedVersion)
    assert (NEWEST, False) == (resolved.minor, resolved.exact)
    assert "is not known to this operator" in (resolved.note or "")


@pytest.mark.parametrize(
    ("declared", "image", "said"),
    [
        ("0.29", "x", "vLLM 0.29 is older than 0.30, the oldest version supported"),
        (None, "vllm/vllm-openai:v0.6.6.post1", "vLLM 0.6 is older than 0.30"),
        (None, "x@sha256:abc", "the tag of 'x@sha256:abc' is not a vLLM version"),
        ("newest", "x:v0.33.0", "'newest' is not a vLLM version"),
    ],
)
def test_an_unusable_version_is_answered_with_the_field_to_set(declared, image, said):
    """Too old and unknown versions are values, not exceptions, and name the fix."""
    refused = resolve_version(declared, image)

    assert isinstance(refused, UnsupportedVersion)
    assert refused.message.startswith(said)
    assert "spec.engine.version" in refused.message


@given(declared=st.one_of(st.none(), st.text(max_size=20)), image=st.text(max_size=60))
def test_any_version_text_gets_an_answer(declared, image):
    """No text crashes the resolution."""
    assert resolve_version(declared, image)


# --- the table ---


def test_the_table_describes_known_flags():
    """Spot checks against what vLLM's documentation says."""
    table = flag_table("0.32")

    assert FlagKind.INT == table["--max-num-seqs"].kind
    assert ("--device-memory-utilization",) == table["--gpu-memory-utilization"].also
    assert ("-tp",) == table["--tensor-parallel-size"].also
    assert "+" == table["--served-model-name"].nargs
    assert "16" in table["--max-lora-rank"].choices
    assert "pass_config" in table["--compilation-config"].keys
    assert FlagKind.INT_HUMAN_AUTO == table["--max-model-len"].kind


def test_an_unsupported_minor_has_no_table():
    """Asking for one is a programming error."""
    with pytest.raises(KeyError):
        flag_table("0.1")
