"""Builds images with a Docker engine, on the public base that each Dockerfile names."""

import shutil
import subprocess
from pathlib import Path

from .images import KEY_LABEL, Built, Recipe, build_log
from .processes import run, run_logged
from .progress import step


def answers() -> bool:
    """Whether a Docker engine, not only its client, is there."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def ensure(wanted: Recipe) -> Built:
    """Build `wanted` unless the engine has it with the same key."""
    if _inspect(wanted.tag, f'{{{{index .Config.Labels "{KEY_LABEL}"}}}}') != wanted.key:
        log = build_log(wanted)
        with step(f"building {wanted.tag} (log: {log})"):
            _build(wanted, log)
    return Built(wanted.tag, _inspect(wanted.tag, "{{.Id}}") or "")


def push(tag: str, target: str) -> None:
    """Push an image to a registry under the name `target`."""
    run(["docker", "tag", tag, target])
    run(["docker", "push", "--quiet", target])


def _build(wanted: Recipe, log: Path) -> None:
    words = ["docker", "build", "--tag", wanted.tag, f"--label={KEY_LABEL}={wanted.key}"]
    words += [f"--build-arg={argument}" for argument in wanted.arguments]
    run_logged([*words, wanted.context], log)


def _inspect(tag: str, template: str) -> str | None:
    words = ["docker", "image", "inspect", "--format", template, tag]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
