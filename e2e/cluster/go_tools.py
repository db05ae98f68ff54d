"""Other projects' programs and CRDs, built and copied from their Go modules into the cache folder.

A folder with a `go.mod` pins the versions: the programs are its `tool` directives. The CRDs are
files of the modules themselves, so that nothing big is in this repository.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .paths import cache_root, content_key
from .processes import run
from .progress import ClusterError, step

_FLAGS = ("-trimpath", "-buildvcs=false", "-ldflags=-s -w")


def build(module: Path, crds: Iterable[tuple[str, str]], *, minutes: int) -> Path:
    """The folder with the tools of `module` and `crds/`; built when it is not in the cache.

    Args:
        module: folder of the `go.mod`; its name is that of the cache entry.
        crds: Go module and glob pattern of the CRDs in it.
        minutes: how long the build takes on two cores, for who waits.
    """
    name = module.name
    folder = cache_root() / f"{name}-{content_key([module], *_FLAGS)}"
    with (cache_root() / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not folder.exists():
            for old in cache_root().glob(f"{name}-????????????"):
                shutil.rmtree(old)
            with step(f"building {name} (about {minutes} minutes on 2 cores)"):
                _build(module, crds, folder)
    return folder


def _build(module: Path, crds: Iterable[tuple[str, str]], folder: Path) -> None:
    if shutil.which("go") is None:
        raise ClusterError(f"building {module.name} needs Go 1.21 or newer on the PATH")
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "crds").mkdir(parents=True)
    cache = cache_root() / f"go-build-{module.name}"
    settings = {"CGO_ENABLED": "0", "GOCACHE": str(cache), "GOFLAGS": "-mod=readonly"}
    # One package at a time: nobody waits for this at a keyboard.
    command = ["nice", "go", "build", "-p=1", *_FLAGS, "-o", f"{unfinished}/", "tool"]
    subprocess.run(command, cwd=module, env={**os.environ, **settings}, check=True)
    for source, pattern in crds:
        where = ["go", "list", "-C", str(module), "-m", "-f", "{{.Dir}}", source]
        for file in Path(run(where).strip()).glob(pattern):
            shutil.copy(file, unfinished / "crds")
    unfinished.rename(folder)
    shutil.rmtree(cache, ignore_errors=True)
