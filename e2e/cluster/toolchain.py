"""Builds the programs of a cluster from the Go module in `binaries/`, once per content.

Nothing is downloaded ready-made: Go fetches module sources that go.sum pins, so the same folder
gives the same programs anywhere. Building takes about nine minutes on two cores; the result is
kept in the cache folder under a key of the module's files and the flags.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .paths import cache_root, content_key
from .progress import ClusterError, say, step

KUBERNETES_VERSION = "1.37.1"
"""Must equal the version of k8s.io/kubernetes in `binaries/go.mod`; a test holds them together."""

MODULE = Path(__file__).parent / "binaries"

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
)
"""Names under which the one `kube` binary is found; it acts by the name it is called by."""

TOOLS = (
    "bridge",
    "containerd",
    "containerd-shim-runc-v2",
    "coredns",
    "ctr",
    "helm",
    "host-local",
    "kwok",
    "loopback",
    "pause",
    "portmap",
)

_MAJOR, _MINOR, _ = KUBERNETES_VERSION.split(".")
_VERSION = "k8s.io/component-base/version"
# Without a version the API server calls itself v0.0.0 and clients misbehave.
_FLAGS = (
    "-trimpath",
    "-buildvcs=false",
    "-tags=no_btrfs,no_devmapper,no_zfs",
    (
        f"-ldflags=-s -w -X {_VERSION}.gitVersion=v{KUBERNETES_VERSION}"
        f" -X {_VERSION}.gitMajor={_MAJOR} -X {_VERSION}.gitMinor={_MINOR}"
    ),
)


def binaries() -> Path:
    """The folder with every program in `PROGRAMS` and `TOOLS`; builds it when it is not cached."""
    folder = _folder()
    if folder.exists():
        return folder
    lock = cache_root() / "binaries.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not folder.exists():
            _build(folder)
    return folder


def program(name: str) -> Path:
    """One of `PROGRAMS` or `TOOLS`: built already, else from the PATH, else built now."""
    if (folder := _folder()).exists():
        return folder / name
    found = shutil.which(name)
    return Path(found) if found else binaries() / name


def _folder() -> Path:
    return cache_root() / f"binaries-{content_key([MODULE], *_FLAGS)}"


def _build(folder: Path) -> None:
    if shutil.which("go") is None:
        raise ClusterError(
            "building the cluster's programs needs Go 1.21 or newer on the PATH (Go fetches the"
            " exact toolchain by itself); install it and run this again"
        )
    # A folder with the final name is complete by construction: it is renamed into place at the end.
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with step("building Kubernetes (about 6 minutes on 2 cores)"):
        _go_build(unfinished / "kube", ".")
    for name in PROGRAMS:
        (unfinished / name).symlink_to("kube")
    with step("building containerd, helm, CoreDNS, kwok and network plugins (about 3 minutes)"):
        _go_build(f"{unfinished}/", "tool", "./pause")
    _remove_all_but_newest(cache_root().glob("binaries-????????????"))
    unfinished.rename(folder)
    # Go's own cache of this build is ten times the size of what comes out of it.
    shutil.rmtree(_build_cache(), ignore_errors=True)


def _remove_all_but_newest(folders: Iterable[Path]) -> None:
    # One is kept: a cluster may be running from it, or another checkout may want it back.
    for old in sorted(folders, key=lambda folder: folder.stat().st_mtime)[:-1]:
        say(f"removing superseded {old.name}")
        shutil.rmtree(old)


def _go_build(output: Path | str, *packages: str) -> None:
    subprocess.run(
        ["go", "build", *_FLAGS, "-o", str(output), *packages],
        cwd=MODULE,
        env={
            **os.environ,
            "CGO_ENABLED": "0",
            "GOCACHE": str(_build_cache()),
            "GOFLAGS": "-mod=readonly",
        },
        check=True,
    )


def _build_cache() -> Path:
    return cache_root() / "go-build"
