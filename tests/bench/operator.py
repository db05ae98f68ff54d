"""``make bench-operator``: the operator's figures of docs/performance.md, measured here and now.

::

    python -m tests.bench.operator [--sizes 1,100,1000] [--large 5000] [--rounds 3] [--idle 120]
                                   [-o json] [--profile FILE]

A real API server with its controllers, faked nodes, and the operator as a process with the
chart's permissions. Progress goes to standard error, the tables to standard output. With the
defaults it takes about an hour on two cores and ends by itself.
"""

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from tests.bench.audit import Category
from tests.bench.measure import Figures, Plan, measure_size

_Cell = Callable[[Figures], str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parsed = _parser().parse_args(arguments)
    plans = [
        Plan(size, parsed.rounds, parsed.idle, profile=parsed.profile) for size in parsed.sizes
    ]
    if parsed.large:
        plans.append(Plan(parsed.large, rounds=0, idle_seconds=parsed.idle, disturb=False))
    figures = [measure_size(plan) for plan in plans]
    if parsed.output == "json":
        print(json.dumps([dataclasses.asdict(each) for each in figures], indent=1))
    else:
        print(table(figures))


def table(figures: Sequence[Figures]) -> str:
    """The figures in Markdown, one column per number of services."""
    head = ["services", *(str(each.services) for each in figures)]
    rows = [[name, *(_cell(cell, each) for each in figures)] for name, cell in _ROWS]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(cell: _Cell, figures: Figures) -> str:
    try:
        return cell(figures)
    except (ValueError, LookupError):  # not measured at this size
        return ""


def _per_resource(counts: Counter[Category], services: int) -> str:
    return ", ".join(
        f"{counts[category] / services:.2f} {category}"
        for category in (*_SHOWN, Category.Other)
        if counts[category]
    )


_SHOWN = (Category.Child, Category.Status, Category.Event, Category.Read, Category.List)


def _counts(counts: Counter[Category]) -> str:
    split = ", ".join(f"{n} {category}" for category, n in sorted(counts.items()) if n)
    return split or "0"


def _seconds(values: Sequence[float]) -> str:
    return f"{median(values):.3f} s (worst {max(values):.3f}, {len(values)} times)"


def _share(figures: Figures) -> str:
    ours = [each.writing.per_second for each in figures.bring_ups]
    ceilings = [each.per_second for each in figures.ceilings]
    shares = [mine / ceiling for mine, ceiling in zip(ours, ceilings, strict=True)]
    return f"{median(shares):.2f} ({', '.join(f'{share:.2f}' for share in shares)})"


def _cpu_share(figures: Figures) -> str:
    """What the share would be on a machine that does nothing else and is short of CPU only."""
    ours = [each.writing.cpu_per_child for each in figures.bring_ups]
    ceilings = [each.cpu_per_child for each in figures.ceilings]
    return f"{median(ceilings) / median(ours):.2f}"


def _others(figures: Figures) -> str:
    ours = median(each.writing.other_cores for each in figures.bring_ups)
    return f"{ours:.1f} (ceiling: {median(c.other_cores for c in figures.ceilings):.1f})"


def _cpu(figures: Figures, attribute: str) -> str:
    values = [1000 * getattr(each, attribute) / each.writing.children for each in figures.bring_ups]
    return f"{median(values):.2f} ms"


def _undone(figures: Figures, *, deleted: bool) -> str:
    undone = [each for each in figures.undone if each.what.endswith(" deleted") is deleted]
    never = [each.what for each in undone if each.seconds is None]
    times = _seconds([each.seconds for each in undone if each.seconds is not None])
    return times + (f"; NEVER: {', '.join(never)}" if never else "")


_ROWS: Sequence[tuple[str, _Cell]] = (
    (
        "requests per resource, until all children are written",
        lambda f: _per_resource(f.bring_ups[-1].until_written, f.services),
    ),
    (
        "requests per resource, until all are Ready",
        lambda f: _per_resource(f.bring_ups[-1].until_ready, f.services),
    ),
    ("requests that were refused", lambda f: str(f.bring_ups[-1].failed)),
    ("requests while idle", lambda f: f"{_counts(f.idle)} in {f.idle_seconds:.0f} s"),
    ("writes on restart", lambda f: _counts(f.restart_writes)),
    ("CPU of a start", lambda f: f"{f.restart_cpu:.2f} s"),
    ("CPU per child, until written", lambda f: _cpu(f, "cpu_written")),
    ("CPU per child, until Ready", lambda f: _cpu(f, "cpu_ready")),
    ("peak RSS", lambda f: f"{f.peak_rss_mib:.0f} MiB"),
    ("peak RSS of a restart", lambda f: f"{f.restart_peak_rss_mib:.0f} MiB"),
    (
        "children per second",
        lambda f: f"{median(each.writing.per_second for each in f.bring_ups):.1f}",
    ),
    ("API server's own ceiling", lambda f: f"{median(c.per_second for c in f.ceilings):.1f}"),
    ("share of the ceiling", _share),
    ("the same by CPU spent per child", _cpu_share),
    ("cores used by others meanwhile", _others),
    (
        "edit to child, operator busy",
        lambda f: _seconds([s for each in f.bring_ups for s in each.edits]),
    ),
    ("deleted child back", lambda f: _undone(f, deleted=True)),
    ("hand-edited field put back", lambda f: _undone(f, deleted=False)),
    ("leader ends (SIGTERM) to successor's first write", lambda f: _seconds(f.released)),
    ("leader killed (SIGKILL) to successor's first write", lambda f: _seconds(f.expired)),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.operator", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--sizes", type=lambda text: [int(word) for word in text.split(",")], default=[1, 100, 1000]
    )
    parser.add_argument("--large", type=int, default=5000, help="0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3, help="of ceiling and operator in turns")
    parser.add_argument("--idle", type=float, default=120, help="seconds")
    parser.add_argument("--profile", type=Path, help="have cProfile write to this file")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser


if __name__ == "__main__":
    main()
