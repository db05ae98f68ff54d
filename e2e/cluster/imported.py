"""The images that a local cluster's containerd has, and bringing others in.

Importing the engine takes a minute, so images outlive the cluster: they belong to its number, and
the next cluster of that number finds them, whatever its name.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from . import buildah, prerequisites
from .images import Built
from .network import free_indexes
from .paths import cache_root
from .processes import run
from .progress import say, step
from .toolchain import binaries

_IMPORT_GIGABYTES = 12
"""The engine image twice: as it came, and unpacked."""


def image_folder(index: int) -> Path:
    """Where the images of cluster number `index` are kept while none of that number runs."""
    return cache_root() / "clusters" / f"images-{index}"


def forget_images() -> None:
    """Remove the images of every number that is not in use: most of the disk that clusters use."""
    for index in free_indexes():
        shutil.rmtree(image_folder(index), ignore_errors=True)


class ImportedImages:
    """The images of one running cluster; `inside` makes a command run on its node."""

    def __init__(self, folder: Path, inside: Callable[[Sequence[str | Path]], list[str]]) -> None:
        self._record = folder / "imported.json"
        self._inside = inside

    def put(self, built: Built) -> None:
        """Bring an image of buildah's store in, unless it is there."""
        imported = self._imported()
        present = run(self._ctr("ls", "-q")).split()
        if imported.pop(built.tag, None) == built.identity and built.tag in present:
            say(f"{built.tag} is in the cluster")
            return
        prerequisites.check_disk(_IMPORT_GIGABYTES)
        with step(f"importing {built.tag} into the cluster"):
            buildah.stream(built.tag, self._ctr("import", "--local", "--no-unpack=false", "-"))
        self._write({**imported, built.tag: built.identity})

    def drop_superseded(self) -> None:
        """Forget all but the last imported tag of each repository; only while no pod runs.

        containerd names an image by its content, too; while one name is left, so are its gigabytes.
        """
        imported = self._imported()
        last = {tag.rpartition(":")[0]: tag for tag in imported}.values()
        rows = [row.split() for row in run(self._ctr("ls")).splitlines()[1:]]
        digests = {name: digest for name, _, digest, *_ in rows}
        kept = {digests.get(tag) for tag in last}
        if superseded := sorted(name for name, digest in digests.items() if digest not in kept):
            run(self._ctr("rm", "--sync", *superseded))
            self._write({tag: imported[tag] for tag in imported if tag in last})

    def _ctr(self, *words: str) -> list[str]:
        return self._inside([binaries() / "ctr", "-n", "k8s.io", "images", *words])

    def _imported(self) -> dict[str, str]:
        """Identity of each image by tag, the last imported last."""
        if not self._record.exists():
            return {}
        return cast("dict[str, str]", json.loads(self._record.read_text()))

    def _write(self, imported: dict[str, str]) -> None:
        self._record.write_text(json.dumps(imported, indent=1))
