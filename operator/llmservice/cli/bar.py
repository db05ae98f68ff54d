"""The memory of one device as a bar of letters in proportion, with a legend.

Letters and not shades: a bar is pasted into tickets, where neither color nor a font is certain.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llmservice.cli.color import paint
from llmservice.core.planner.outcome import Memory
from llmservice.core.planner.overhead import Range
from llmservice.core.planner.rationale import gib

_WIDTH = 94
"""Letters of a bar: with indent and brackets, a hundred columns are not passed."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One segment of the bar and its line of the legend."""

    mark: str
    name: str
    size: int
    """Bytes; negative for a KV cache that is not even left room."""
    note: str = ""
    color: str = "0"
    """ANSI code."""


def draw(memory: Memory, *, color: bool) -> Iterator[str]:
    """The lines of bar and legend."""
    parts = list(_parts(memory))
    scale = max(1, memory.total or 0, _filled(memory))
    yield f"  [{_bar(parts, scale, color=color)}]"
    if excess := _excess(memory):
        yield _share_mark(_share(memory), excess, scale)
    yield ""
    whole = memory.total or scale
    for part in parts:
        mark = paint(part.mark, part.color) if color else part.mark
        line = f"{part.name:<12}{gib(part.size):>11}{part.size / whole:>6.0%}   {part.note}"
        yield f"  {mark} {line}".rstrip()


def _parts(memory: Memory) -> Iterator[_Part]:
    beside, cache = memory.overhead, memory.kv_cache
    yield _Part("W", "weights", memory.weights, color="44;97")
    yield _ranged("A", "activations", beside.activations, "43;30")
    yield _ranged("G", "CUDA graphs", beside.graphs, "45;97")
    yield _ranged("o", "other", beside.other, "41;97")
    yield _ranged("K", "KV cache", cache, "42;30")
    if memory.total is not None:
        note = ""
        if memory.budget is not None:
            note = f"outside the engine's share; {gib(beside.outside)} should stay free"
        yield _Part(".", "free", max(0, memory.total - _filled(memory)), note)


def _ranged(mark: str, name: str, size: Range, color: str) -> _Part:
    note = f"{gib(size.low)} to {gib(size.high)}" if size.low < size.high else ""
    return _Part(mark, name, size.expected, note, color)


def _bar(parts: list[_Part], scale: int, *, color: bool) -> str:
    """Edges are rounded, not widths: then the widths add up, and none is off by over a letter."""
    text, passed, edge = "", 0, 0
    for part in parts:
        passed += max(0, part.size)
        width = round(passed * _WIDTH / scale) - edge
        edge += width
        letters = part.mark * width
        text += paint(letters, part.color) if color and letters else letters
    return text


def _filled(memory: Memory) -> int:
    return memory.weights + memory.overhead.total.expected + max(0, memory.kv_cache.expected)


def _share(memory: Memory) -> int:
    return (memory.total or 0) if memory.budget is None else memory.budget


def _excess(memory: Memory) -> int:
    """Bytes over the engine's share; a CPU has no share."""
    return 0 if memory.total is None else max(0, _filled(memory) - _share(memory))


def _share_mark(share: int, excess: int, scale: int) -> str:
    """An arrow under the end of the share, with its words on the side that has room."""
    column = round(share * _WIDTH / scale)
    words = f"the engine's share of {gib(share)} ends here: {gib(excess)} too much"
    if column > len(words):
        return f"   {f'{words} ^':>{column + 1}}"
    return f"   {'^':>{column + 1}} {words}"
