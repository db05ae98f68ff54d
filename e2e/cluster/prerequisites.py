"""What a machine must have before a cluster can start on it, and getting what Debian packages.

Each check that fails says what to do. Packages are installed with apt-get where that works;
elsewhere the missing commands are named and nothing is touched.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence

from .paths import cache_root
from .progress import ClusterError, step

FREE_GIGABYTES = 30
"""Image layers, the build store and the unpacked image of one 5 GB engine take about 20 GB."""

# Commands and the Debian package that brings each.
CONTROL_PLANE_COMMANDS = {"openssl": "openssl", "setsid": "util-linux"}
NODE_COMMANDS = {
    "runc": "runc",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "unshare": "util-linux",
    "openssl": "openssl",
}
IMAGE_COMMANDS = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}


def check_machine() -> None:
    """Root on Linux with room on the disk, or a `ClusterError` that says which is missing."""
    if platform.system() != "Linux":
        raise ClusterError(
            "the local cluster runs on Linux only; use CLUSTER=kind with a Docker engine, or"
            " CLUSTER=current with any cluster that kubectl reaches"
        )
    if os.geteuid() != 0:
        raise ClusterError(
            "the local cluster needs root (it makes namespaces and mounts); run this with sudo,"
            " or use CLUSTER=kind or CLUSTER=current"
        )


def check_disk(wanted_gigabytes: int = FREE_GIGABYTES) -> None:
    """Fail early rather than in the middle of an image."""
    root = cache_root()
    free = shutil.disk_usage(root).free // 10**9
    if free < wanted_gigabytes:
        raise ClusterError(
            f"{free} GB are free under {root} and {wanted_gigabytes} GB are needed to build and"
            " unpack the engine image; make room, or point XDG_CACHE_HOME at a larger disk"
        )


def install(commands: dict[str, str]) -> None:
    """Make every command of `commands` available."""
    missing = [name for name in commands if not _found(name)]
    if not missing:
        return
    packages = [commands[name] for name in missing]
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(
            f"missing commands: {' '.join(missing)} (on Debian, as root: apt-get install"
            f" {' '.join(packages)}); install them and run this again"
        )
    with step(f"installing {' '.join(packages)}"):
        _apt(["update", "-qq"])
        _apt(["install", "-y", "-qq", "--no-install-recommends", *packages])


def _found(command: str) -> bool:
    # Daemon tools live in sbin, which an ordinary PATH may leave out.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return shutil.which(command, path=path) is not None


def _apt(words: Sequence[str]) -> None:
    done = subprocess.run(
        ["apt-get", *words],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"apt-get {words[0]} failed: {done.stderr.strip()[-1000:]}")
