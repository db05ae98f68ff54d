"""The simulation of the judge: its lines, its seed, and that it can tell good from bad."""

import json
from pathlib import Path

from tests.bench.judge import main, scenarios, simulate

KEYS = (
    *("scenario", "runs", "false_abort_rate", "detection_rate"),
    "median_canary_requests_to_abort",
)


def test_every_scenario_is_a_line(capsys):
    """With the promised keys; the rate is that of its kind."""
    main(["--runs", "1"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert len(lines) == len({each["scenario"] for each in lines}) == len(list(scenarios()))
    assert all(set(KEYS) <= set(each) for each in lines)
    assert all(
        (each["false_abort_rate"] is None) != (each["detection_rate"] is None) for each in lines
    )


def test_same_seed_same_line():
    """And another seed is another simulation."""
    scenario = next(each for each in scenarios() if each.bad)

    assert simulate(scenario, 5) == simulate(scenario, 5)
    assert simulate(scenario, 5) != simulate(scenario, 5, seed=2)


def test_a_raw_comparison_aborts_identical_versions():
    """Which is why there is a judge."""
    naive = next(each for each in scenarios() if each.naive)

    assert simulate(naive, 40)["false_abort_rate"] > 0.25


def test_every_scenario_is_in_the_table():
    """Of docs/rollouts.md, and nothing else is."""
    page = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text(encoding="utf-8")
    rows = [
        line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if "rps, " in line
    ]

    assert [scenario.name for scenario in scenarios()] == rows


def test_unlike_tracks_abort_nothing_and_hide_nothing():
    """Versions that differ by what they are asked, or know, and those that are slow as well."""
    unlike = [each for each in scenarios() if each.prompts is not None or each.hits is not None]

    for scenario in unlike:
        line = simulate(scenario, 20)
        assert (line["false_abort_rate"] or 0) <= 0.05
        assert (line["detection_rate"] or 1) >= 0.9
    assert {True, False} == {each.bad for each in unlike}
