"""The reader of vLLM's sources, on a wheel small enough to be read here, and the table it wrote."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.flags import compare
from tests.flags.generate import rendered
from tests.flags.wheel import NotUnderstoodError

ARGUMENTS = """
import argparse
import json
from typing import TYPE_CHECKING, Any, Literal
from vllm.config import CacheDType, ModelConfig, config
from vllm.utils.argparse_utils import FlexibleArgumentParser
if TYPE_CHECKING:
    from vllm.loading import LoadFormats
else:
    LoadFormats = str

def optional_type(return_type): ...
def _compute_kwargs(cls):
    human_readable_int_args = {"batch"}
    choices.append(None)
def get_kwargs(cls): ...

class EngineArgs:
    @staticmethod
    def add_cli_args(parser):
        kwargs = get_kwargs(ModelConfig)
        group = parser.add_argument_group(title="ModelConfig")
        if not parser:
            group.add_argument("--model", **kwargs["model"])
        group.add_argument("--max-len", "-ml", **kwargs["max_len"])
        group.add_argument("--batch", **{**kwargs["batch"], "default": None})
        group.add_argument("--cache-dtype", **kwargs["cache_dtype"])
        group.add_argument("--enable-x", **kwargs["enable_x"])
        group.add_argument("--names", **kwargs["names"])
        group.add_argument("--inner", "-i", **kwargs["inner"])
        kwargs["extra"]["type"] = optional_type(json.loads)
        group.add_argument("--extra", **kwargs["extra"])
        group.add_argument("--plain", action="store_true", help="x")
        EXTRA_STATEMENT
        return parser

class AsyncEngineArgs(EngineArgs):
    pass
"""
CONFIG = """
from typing import Any, ClassVar, Literal
from .types import *
@config
class Inner:
    a: int = 1
    b: "str | None" = None
    hidden: int = field(default=1, init=False)
@config
class Base:
    model: str = "m"
@config
class ModelConfig(Base):
    registry: ClassVar[dict] = {}
    max_len: int | None = None
    batch: int = 1
    cache_dtype: CacheDType = "auto"
    enable_x: bool = False
    names: list[str] | None = None
    inner: Inner | None = None
    extra: dict[str, Any] | None = None
"""
TYPES = """
from typing import Literal
Small = Literal["fp8"]
CacheDType = Literal["auto", Small]
"""
SERVE = """
from vllm.engine.arg_utils import AsyncEngineArgs, get_kwargs
from vllm.config import config
@config
class BaseFrontendArgs:
    origins: list[str] = None
    @classmethod
    def _customize_cli_kwargs(cls, frontend_kwargs):
        frontend_kwargs["origins"]["type"] = json.loads
        del frontend_kwargs["origins"]["nargs"]
        return frontend_kwargs
    @classmethod
    def add_cli_args(cls, parser):
        frontend_kwargs = cls._customize_cli_kwargs(get_kwargs(cls))
        return parser
@config
class FrontendArgs(BaseFrontendArgs):
    port: int = 8000
def make_arg_parser(parser):
    parser.add_argument("model_tag", nargs="?")
    parser = FrontendArgs.add_cli_args(parser)
    parser = AsyncEngineArgs.add_cli_args(parser)
    return parser
"""


def a_wheel(folder, version, *, paired=False, statement="pass", config=CONFIG):
    """A wheel with the modules that build the parser."""
    path = folder / f"vllm-{version}-py3-none-any.whl"
    files = {
        "vllm/__init__.py": "",
        "vllm/engine/arg_utils.py": ARGUMENTS.replace("EXTRA_STATEMENT", statement),
        "vllm/config/__init__.py": config,
        "vllm/config/types.py": TYPES,
        "vllm/entrypoints/common/cli_args.py": SERVE,
        "vllm/utils/argparse_utils.py": "class EnableDisableAction: ..." if paired else "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_fields_and_arguments_become_options(tmp_path):
    """Annotations, inheritance, star imports and retouched keywords are followed."""
    flags = json.loads(rendered([a_wheel(tmp_path, "0.9.1", statement="return parser")]))["flags"]

    assert {
        "--batch": {"kind": "int-human"},
        "--cache-dtype": {"kind": "str", "choices": ["auto", "fp8"]},
        "--enable-x": {"kind": "bool", "negatives": ["--no-enable-x"]},
        "--extra": {"kind": "json", "nullable": True},
        "--help": {"kind": "help", "also": ["-h"]},
        "--inner": {"kind": "object", "also": ["-i"], "nullable": True, "keys": ["a", "b"]},
        "--max-len": {"kind": "int", "also": ["-ml"], "nullable": True},
        "--model": {"kind": "str"},
        "--names": {"kind": "str", "nargs": "+", "nullable": True},
        "--origins": {"kind": "json"},
        "--plain": {"kind": "bool"},
        "--port": {"kind": "int"},
    } == {
        name: {k: v for k, v in variant.items() if k != "in"} for name, (variant,) in flags.items()
    }


def test_versions_that_differ_are_variants_of_one_flag(tmp_path):
    """A flag has one line, with one variant for each way it was declared."""
    wheels = [
        a_wheel(tmp_path, "0.9.1", statement="return parser"),
        a_wheel(tmp_path, "0.10.0", paired=True, statement="return parser"),
    ]
    table = json.loads(rendered(wheels))

    assert ["0.10", "0.9"] == list(table["versions"])
    assert ["0.10", "0.9"] == table["flags"]["--port"][0]["in"]
    assert [
        {"in": ["0.10"], "kind": "bool", "negatives": ["--no-enable-x", "--disable-x"]},
        {"in": ["0.9"], "kind": "bool", "negatives": ["--no-enable-x"]},
    ] == table["flags"]["--enable-x"]


@pytest.mark.parametrize(
    "statement",
    ["for x in y: group.add_argument(x)", "group.add_argument('--x', type=something_new)"],
)
def test_a_statement_it_does_not_know_stops_it(tmp_path, statement):
    """Nothing is left out in silence."""
    with pytest.raises(NotUnderstoodError):
        rendered([a_wheel(tmp_path, "0.9.1", statement=statement)])


def test_a_name_it_cannot_follow_stops_it(tmp_path):
    """A lost alias would turn choices into "any text"."""
    broken = CONFIG.replace("from .types import *", "from .types import CacheDTypes as CacheDType")

    with pytest.raises(NotUnderstoodError, match="CacheDTypes"):
        rendered([a_wheel(tmp_path, "0.9.1", statement="return parser", config=broken)])


def test_the_committed_table_has_one_line_per_flag_and_names_its_sources():
    """A change of vLLM reads as a small diff, and every version says where it was read."""
    text = compare.TABLE.read_text("utf-8")
    table = json.loads(text)

    for name in table["flags"]:
        assert 1 == text.count(f"\n  {json.dumps(name)}: [")
    for minor, source in table["versions"].items():
        assert source["wheel"].startswith(f"vllm-{minor}.")
        assert "vllm/engine/arg_utils.py" in source["modules"]
        assert 64 == len(source["sha256"])


def test_the_comparison_finds_what_differs():
    """Missing, unknown and differently described options are three kinds of difference."""
    ours = {"--a": {"kind": "int"}, "--b": {"kind": "int"}}
    theirs = {"--b": {"kind": "str"}, "--c": {"kind": "int"}}

    assert ["--a: in the table", "--b: table", "--c: known to vLLM"] == [
        difference[: len(start)]
        for difference, start in zip(
            compare.differences(ours, theirs),
            ["--a: in the table", "--b: table", "--c: known to vLLM"],
            strict=True,
        )
    ]
    assert None is compare.explained("--a: in the table")


def test_a_verdict_that_changed_is_found_and_recorded():
    """The recorded verdicts can be held against, and taken from, a real parser."""
    rows = [{"args": ["--a"], "accepted_by": ["0.32"]}]
    dump = {"version": "0.33.1", "verdicts": [{"args": ["--a"], "accepted": True}]}

    assert ["['--a']: recorded refused, vLLM says taken"] == compare.verdict_differences(rows, dump)
    assert [{"args": ["--a"], "accepted_by": ["0.32", "0.33"]}] == json.loads(
        compare.record(rows, dump)
    )


def test_the_recorded_verdicts_cover_every_version():
    """Each supported version takes some lists and refuses some."""
    rows = json.loads(Path(compare.VERDICTS).read_text("utf-8"))
    table = json.loads(compare.TABLE.read_text("utf-8"))

    for minor in table["versions"]:
        taken = sum(minor in row["accepted_by"] for row in rows)
        assert 50 < taken < len(rows)
