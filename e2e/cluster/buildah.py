"""Builds images as root without a daemon or a registry, on a Debian that debootstrap made.

The store is in the cache folder. `local` streams images from here into its cluster.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from . import prerequisites
from .images import KEY_LABEL, PREFIX, Built, Recipe, build_log
from .paths import cache_root, content_key
from .processes import run, run_logged
from .progress import ClusterError, step
from .toolchain import binaries

PAUSE_TAG = f"{PREFIX}/pause:1"
_SUITE = "bookworm"
_BASE_TAG = f"{PREFIX}/base:{_SUITE}"
_UNNEEDED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
)
_DAMAGED = "integrity checksum failed"
_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


class DamagedImageError(ClusterError):
    """Somebody has changed a file of the store, a tool that adds its certificates for instance."""


def ensure(wanted: Recipe) -> Built:
    """Build `wanted` unless the store has it with the same key."""
    prerequisites.install(prerequisites.IMAGE_COMMANDS)
    if _label(wanted.tag) != wanted.key:
        prerequisites.check_disk()
        base = ensure_base().tag
        superseded = _identities(wanted.tag.rpartition(":")[0])
        log = build_log(wanted)
        with step(f"building {wanted.tag} (log: {log})"):
            _build(wanted, base, log)
        # Earlier versions are of no use to anybody, and may be gigabytes. `rmi --prune` would
        # also take the layers that the next build starts from.
        for identity in superseded - {_identity(wanted.tag)}:
            _buildah("rmi", "--force", identity)
    return _built(wanted.tag)


def ensure_base() -> Built:
    """A minimal Debian, like the public image that Dockerfiles name as their default."""
    prerequisites.install(prerequisites.IMAGE_COMMANDS)
    mirror = os.environ.get("DEBIAN_MIRROR", "")
    key = content_key([], _SUITE, mirror, *_UNNEEDED)
    if _label(_BASE_TAG) != key:
        with (
            step(f"building {_BASE_TAG}"),
            tempfile.TemporaryDirectory(dir=cache_root()) as scratch,
        ):
            system = Path(scratch) / "system"
            words = ["debootstrap", "--variant=minbase", "--include=ca-certificates", _SUITE]
            run([*words, system, *([mirror] if mirror else [])])
            for folder in _UNNEEDED:
                shutil.rmtree(system / folder)
            _commit(_BASE_TAG, key, system, "/", ["--cmd", "bash"])
    return _built(_BASE_TAG)


def ensure_pause() -> Built:
    """The image that every pod's sandbox runs."""
    prerequisites.install(prerequisites.IMAGE_COMMANDS)
    program = binaries() / "pause"
    key = content_key([program])
    if _label(PAUSE_TAG) != key:
        entry = ["--user", "65535:65535", "--entrypoint", '["/pause"]']
        _commit(PAUSE_TAG, key, program, "/pause", entry)
    return _built(PAUSE_TAG)


def discard(tag: str) -> None:
    """Remove an image, and all layers that no other image is made of."""
    _buildah("rmi", "--force", tag)
    _buildah("rmi", "--force", "--prune")


def stream(tag: str, consumer: Sequence[str]) -> None:
    """Send an image as a Docker archive to the standard input of `consumer`.

    Raises:
        DamagedImageError: the store's copy is not what was built.
        ClusterError: anything else is in the way.
    """
    command = [*_words(), "push", "-q", tag, f"docker-archive:/dev/stdout:{tag}"]
    with tempfile.TemporaryFile() as words:
        producer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words)
        done = subprocess.run(consumer, stdin=producer.stdout, capture_output=True, check=False)
        assert producer.stdout is not None
        producer.stdout.close()
        producer.wait()
        words.seek(0)
        why = words.read().decode(errors="replace")[-1000:]
    if _DAMAGED in why:
        raise DamagedImageError(f"cannot load {tag}: {why}")
    if producer.returncode or done.returncode:
        why += done.stderr.decode(errors="replace")[-1000:]
        raise ClusterError(f"cannot load {tag}: {why}")


def push(tag: str, target: str) -> None:
    """Push an image to a registry under the name `target`."""
    _buildah("push", "-q", tag, f"docker://{target}")


def _build(wanted: Recipe, base: str, log: Path) -> None:
    words: list[str | Path] = [
        *_words(),
        "bud",
        "--layers",
        "--isolation=chroot",
        "--tag",
        wanted.tag,
    ]
    words += [f"--label={KEY_LABEL}={wanted.key}", f"--build-arg=BASE={base}"]
    words += [f"--build-arg={argument}" for argument in wanted.arguments]
    if _CA_BUNDLE.exists():
        # A machine behind a proxy of its own trusts certificates that the base does not know.
        words.append(f"--volume={_CA_BUNDLE}:{_CA_BUNDLE}:ro")
    run_logged([*words, wanted.context], log)


def _commit(tag: str, key: str, content: Path, target: str, config: Sequence[str]) -> None:
    container = _buildah("from", "scratch").strip()
    try:
        _buildah("copy", "-q", container, str(content), target)
        _buildah("config", "--label", f"{KEY_LABEL}={key}", *config, container)
        _buildah("commit", "-q", container, tag)
    finally:
        _buildah("rm", container)


def _words() -> list[str]:
    store = cache_root() / "images"
    return ["buildah", "--root", str(store), "--runroot", "/run/llmservice-images"]


def _buildah(*words: str) -> str:
    return run([*_words(), *words])


def _inspect(tag: str) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(_buildah("inspect", "--type", "image", tag)))


def _built(tag: str) -> Built:
    return Built(tag, _identity(tag))


def _identity(tag: str) -> str:
    return cast("str", _inspect(tag)["FromImageID"])


def _identities(repository: str) -> set[str]:
    """Every image in the store that has a tag of `repository`."""
    listed = json.loads(_buildah("images", "--json", "--no-trunc"))
    return {
        image["id"].removeprefix("sha256:")
        for image in listed
        for name in image.get("names") or []
        if name.rpartition(":")[0] == repository
    }


def _label(tag: str) -> str | None:
    """The key that an image in the store was made from; None when there is no such image."""
    try:
        labels = _inspect(tag)["OCIv1"]["config"].get("Labels") or {}
    except ClusterError:
        return None
    return cast("str | None", labels.get(KEY_LABEL))
