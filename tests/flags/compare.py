"""Hold the committed flag table against what the real parser of one vLLM version accepts.

Decides whether the table tells the truth; run by hand and by the engine tests, on the output of
``dump_parser.py``::

    python -m tests.flags.compare parser.json [operator/llmservice/data/vllm-flags.json]

Prints one line per difference and ends with status 1 when there is one that is not explained. On
the output of ``dump_parser.py --judge`` it compares the verdicts with those recorded in
``verdicts.json`` (which the unit tests expect of our own reading); ``--record`` writes them down.
It refuses to know how either side was made.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

VERDICTS = Path(__file__).with_name("verdicts.json")
TABLE = Path(__file__).parents[2] / "operator/llmservice/data/vllm-flags.json"

#: Differences that are meant, by flag: the table is then the more lenient side.
EXPLAINED = {
    "--collect-detailed-traces": "0.30 computes more choices (pairs) when it starts",
    "--mm-processor-device": "its choices name the platform the engine runs on",
}


def minor_of(version: str) -> str:
    """``0.32.0+cpu`` -> ``0.32``."""
    return ".".join(version.split(".")[:2])


def tabled(table: dict[str, Any], minor: str) -> dict[str, dict[str, Any]]:
    """The table of one minor, keyed and shaped as ``dump_parser.py`` prints it."""
    shaped = {}
    for name, variants in table["flags"].items():
        for variant in variants:
            if minor in variant["in"]:
                strings = [name, *variant.get("also", []), *variant.get("negatives", [])]
                kept = {k: v for k, v in variant.items() if k not in ("in", "also", "negatives")}
                shaped[" ".join(sorted(strings))] = kept
    return shaped


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """One sentence per option that only one side has, or that they describe differently."""
    found = []
    for strings in sorted(ours.keys() | theirs.keys()):
        if strings not in theirs:
            found.append(f"{strings}: in the table, unknown to vLLM")
        elif strings not in ours:
            found.append(f"{strings}: known to vLLM, missing in the table")
        elif ours[strings] != theirs[strings]:
            found.append(f"{strings}: table {ours[strings]}, vLLM {theirs[strings]}")
    return found


def explained(difference: str) -> str | None:
    """Why a difference is meant, or None."""
    return next(
        (why for flag, why in EXPLAINED.items() if flag in difference.partition(":")[0]), None
    )


def verdict_differences(rows: list[dict[str, Any]], dump: dict[str, Any]) -> list[str]:
    """Argument lists on which the real parser and the record disagree."""
    minor = minor_of(dump["version"])
    recorded = {json.dumps(row["args"]): minor in row["accepted_by"] for row in rows}
    return [
        f"{verdict['args']}: recorded {'taken' if was else 'refused'}, vLLM says"
        f" {verdict.get('said', 'taken')}"
        for verdict in dump["verdicts"]
        if (was := recorded[json.dumps(verdict["args"])]) != verdict["accepted"]
    ]


def record(rows: list[dict[str, Any]], dump: dict[str, Any]) -> str:
    """The record with this version's verdicts in it, one line per argument list."""
    minor = minor_of(dump["version"])
    for row, verdict in zip(rows, dump["verdicts"], strict=True):
        others = set(row["accepted_by"]) - {minor}
        row["accepted_by"] = sorted({*others, minor} if verdict["accepted"] else others)
        if said := verdict.get("said"):
            row["said"] = str(said[0]).strip()[:160]
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def main() -> None:
    """Compare and report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("dump", type=argparse.FileType(encoding="utf-8"), help="- for stdin")
    options.add_argument("table", type=Path, nargs="?", default=TABLE)
    options.add_argument("--record", action="store_true", help="write verdicts.json")
    chosen = options.parse_args()
    dump = json.load(chosen.dump)
    if "verdicts" in dump:
        rows = json.loads(VERDICTS.read_text(encoding="utf-8"))
        if chosen.record:
            VERDICTS.write_text(record(rows, dump), encoding="utf-8")
        found, what = verdict_differences(rows, dump), "argument lists"
    else:
        table = json.loads(chosen.table.read_text(encoding="utf-8"))
        found, what = (
            differences(tabled(table, minor_of(dump["version"])), dump["flags"]),
            "options",
        )
    for difference in found:
        print(difference, f"(meant: {why})" if (why := explained(difference)) else "")
    unexplained = [difference for difference in found if explained(difference) is None]
    compared = len(dump.get("verdicts", dump.get("flags")))
    print(f"vLLM {dump['version']}: {compared} {what}, {len(unexplained)} unexplained differences")
    sys.exit(1 if unexplained else 0)


if __name__ == "__main__":
    main()
