"""The table of transitions as a picture, in mermaid's words, for ``docs/rollouts.md``."""

from collections.abc import Iterable, Iterator

from llmservice.core.canary.machine import TRANSITIONS, Transition
from llmservice.core.canary.state import UNDER_WAY, Phase

_ANY = "UnderWay"
"""Box that stands for every phase in which a canary may still become stable."""


def draw_transitions(transitions: Iterable[Transition] = TRANSITIONS) -> str:
    """A ``stateDiagram-v2``: an arrow for each pair of phases, with the reasons to go that way.

    What may happen in several phases starts at one box for all of them, or no eye could follow.
    """
    arrows: dict[tuple[str, Phase], list[str]] = {}
    for row in transitions:
        for source, label in _starts(row):
            labels = arrows.setdefault((source, row.target), [])
            if label not in labels:
                labels.append(label)
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.Stable}"]
    lines += [
        f"    {source} --> {target}: {'<br/>'.join(labels)}"
        for (source, target), labels in arrows.items()
    ]
    members = (f"        {phase}" for phase in Phase if phase in UNDER_WAY)
    lines += [f"    note left of {_ANY}", *members, "    end note"]
    return "\n".join(lines) + "\n"


def _starts(row: Transition) -> Iterator[tuple[str, str]]:
    """Where a row's arrows start, and what they bear."""
    if len(row.sources) > 1 and row.sources <= UNDER_WAY:
        others = [str(phase) for phase in Phase if phase in UNDER_WAY - row.sources]
        yield _ANY, f"{row.reason} (not in {', '.join(others)})" if others else row.reason
    else:
        yield from ((phase, row.reason) for phase in Phase if phase in row.sources)
