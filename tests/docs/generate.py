"""Writes the generated blocks of the documentation: `python -m tests.docs.generate`.

`test_rollouts_page.py` fails when one differs from what this would write.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from llmservice.cli.report import evidence, news, summary
from llmservice.core.canary.diagram import draw_transitions
from tests.state.canary_world import CanaryWorld

PAGE = Path(__file__).parents[2] / "docs" / "rollouts.md"

_BEGIN = "2026-01-01T14:00:00"
_SLOWER = 2.0


def generated() -> str:
    """The page with each block as it should be."""
    page = PAGE.read_text(encoding="utf-8")
    manifest = next(manifests(page))
    for name, language, text in (
        ("transitions", "mermaid", draw_transitions()),
        ("watch", "", watch_an_abort(manifest)),
    ):
        begin, end = f"<!-- {name}: written by `make generate` -->", f"<!-- end of {name} -->"
        block = f"{begin}\n```{language}\n{text}```\n{end}"
        pattern = f"{re.escape(begin)}.*{re.escape(end)}"
        page, found = re.subn(pattern, lambda _, new=block: new, page, flags=re.DOTALL)
        assert found == 1, f"{PAGE} has {found} blocks {name}"
    return page


def manifests(page: str) -> Iterator[dict[str, Any]]:
    """The LLMServices that a page shows, in order."""
    for block in re.findall(r"^```yaml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        shown = yaml.safe_load(block)
        if isinstance(shown, dict) and shown.get("kind") == "LLMService":
            yield shown


def watch_an_abort(manifest: dict[str, Any]) -> str:
    """What ``status --watch`` prints of a canary that is twice as slow as the stable revision."""
    world = CanaryWorld(spec=manifest["spec"], reachable=True)
    world.now = datetime.fromisoformat(_BEGIN).replace(tzinfo=UTC)
    world.run(lambda it: it.rollout.get("state", {}).get("routed", False))
    world.rest()
    world.edit_engine(maxNumSeqs=2 * manifest["spec"]["engine"]["maxNumSeqs"])
    world.run_to("Preflight")
    world.behaviour(world.newest).slower = _SLOWER
    said: list[object] = []
    lines: list[str] = []

    def look(world: CanaryWorld) -> bool:
        metadata = {**manifest["metadata"], "generation": world.generation}
        service = {"metadata": metadata, "spec": world.spec, "status": world.status}
        if said[-1:] != [news(service)]:
            said.append(news(service))
            lines.append(f"{world.now:%H:%M:%S} {summary(service)}")
            lines.extend(f"{'':8} {line}" for line in evidence(service))
        return bool(world.rollout["phase"] == "Aborted")

    world.run(look)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(generated(), encoding="utf-8")
