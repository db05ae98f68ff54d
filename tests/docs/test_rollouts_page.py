"""What docs/rollouts.md says of the rollout machine is what the machine does."""

import itertools
import re

import pytest

from llmservice.cli import main
from llmservice.cli.rollout import ALLOWED
from llmservice.core.canary.diagram import draw_transitions
from llmservice.core.canary.machine import TRANSITIONS, Transition
from llmservice.core.canary.state import Hold, Phase
from tests.docs.generate import PAGE, generated, manifests

TEXT = PAGE.read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| `")]


def test_generated_blocks_are_up_to_date():
    """`make generate` would change nothing."""
    assert generated() == TEXT


def test_every_reason_is_explained_once():
    """Reasons of transitions and of waiting, and nothing that no rollout says."""
    shown = [word for row in ROWS if (word := row.split("`")[1])[0].isupper()]

    assert sorted({row.reason for row in TRANSITIONS} | set(Hold)) == sorted(shown)


def test_every_word_is_explained():
    """What a person can say to a rollout."""
    shown = {row.split("`")[1] for row in ROWS}
    words = {f"llmservice {word.replace('-full', ' NAME --full')}" for word in ALLOWED}

    assert words == {command.removesuffix(" NAME") for command in shown if " NAME" in command}


def test_every_phase_is_named_in_the_text():
    """Outside of the diagram, too."""
    words = re.sub("```.*?```", "", TEXT, flags=re.DOTALL)

    assert [] == [phase for phase in Phase if not re.search(rf"\b{phase}\b", words)]


def test_the_manifests_are_valid(tmp_path, capsys):
    """A reader who copies one gets a rollout."""
    shown = re.findall("^```yaml\n(apiVersion.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    file = tmp_path / "page.yaml"
    file.write_text("---\n".join(shown), encoding="utf-8")

    assert len(shown) == len(list(manifests(TEXT))) > 0
    assert 0 == main(["validate", str(file)]), capsys.readouterr().out


# --- the machine that is drawn --------------------------------------------------------------------


def test_every_phase_can_be_reached():
    """From a service at rest."""
    reached = {Phase.Stable}
    for _ in Phase:
        reached |= {row.target for row in TRANSITIONS if row.sources & reached}

    assert set(Phase) == reached


@pytest.mark.parametrize("phase", Phase)
def test_no_phase_is_a_trap(phase):
    """From each of them there is a way back to a service at rest."""
    found = {phase}
    for _ in Phase:
        found |= {row.target for row in TRANSITIONS if row.sources & found}

    assert Phase.Stable in found
    assert [row for row in TRANSITIONS if phase in row.sources and row.target is not phase]


def test_the_diagram_has_every_arrow():
    """Each reason from each phase to where it leads, read back from the drawing."""
    drawing = draw_transitions()
    members = re.search("note left of UnderWay\n(.*?)end note", drawing, re.DOTALL)[1].split()
    drawn = set()
    for source, target, labels in re.findall(r"^ +(\w+) --> (\w+): (.*)$", drawing, re.MULTILINE):
        for label in labels.split("<br/>"):
            reason, _, others = label.rstrip(")").partition(" (not in ")
            sources = set(members) - set(others.split(", ")) if source == "UnderWay" else {source}
            drawn |= set(itertools.product(sources, [target], [reason]))

    assert drawn == {
        (source, row.target, row.reason) for row in TRANSITIONS for source in row.sources
    }


def test_a_row_with_foreign_phases_is_drawn_from_each():
    """The common box stands for nothing but phases under way."""
    drawing = draw_transitions(
        [Transition(frozenset({Phase.Stable, Phase.Judging}), str, Phase.Aborted, "Odd")]
    )

    assert "Stable --> Aborted: Odd" in drawing
    assert "Judging --> Aborted: Odd" in drawing
    assert "UnderWay -->" not in drawing
