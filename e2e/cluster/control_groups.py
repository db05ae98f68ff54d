"""The control group under which one cluster's pods live, for version 1 and 2 of the kernel's API.

Namespaces do not hold control groups, so `local` makes and removes them around a cluster's life.
"""

from contextlib import suppress
from pathlib import Path

from .processes import wait_until

_EMPTY_SECONDS = 30


def control_group(name: str) -> str:
    """The group of cluster `name`, as the kubelet wants it: from the root of the hierarchy."""
    return f"/llmservice-{name}"


def _hierarchies() -> list[Path]:
    """Mount points under which a control group has to be made: one with v2, several with v1."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [child for child in root.iterdir() if child.is_dir() and not child.is_symlink()]


def make(group: str) -> None:
    """Make `group` in every hierarchy; the kubelet refuses a root that does not exist."""
    for hierarchy in _hierarchies():
        (hierarchy / group[1:]).mkdir(exist_ok=True)
        controllers = hierarchy / "cgroup.controllers"
        if controllers.exists():
            enabled = " ".join(f"+{name}" for name in controllers.read_text().split())
            (hierarchy / "cgroup.subtree_control").write_text(enabled)


def remove(group: str) -> None:
    """Remove `group` and what is below it, which outlives the processes that were in it."""

    # Killed processes leave their control group a moment later than they end.
    def gone() -> bool:
        left = [folder / group[1:] for folder in _hierarchies() if (folder / group[1:]).exists()]
        for top in left:
            for folder in (*sorted(top.rglob("*/"), key=lambda path: -len(path.parts)), top):
                with suppress(OSError):
                    folder.rmdir()
        return not left

    wait_until(gone, what=f"the control groups {group} to be empty", seconds=_EMPTY_SECONDS)
