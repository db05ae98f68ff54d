"""Where heavy artefacts live and how they are named by what they were made from.

Everybody in this package asks here; nobody else knows the layout of the cache folder. It holds
only what can be made again: deleting it costs time, never data.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def cache_root() -> Path:
    """The project's cache folder, `${XDG_CACHE_HOME:-~/.cache}/llmservice`; made when missing."""
    base = os.environ.get("XDG_CACHE_HOME")
    root = (Path(base) if base else Path.home() / ".cache") / "llmservice"
    root.mkdir(parents=True, exist_ok=True)
    return root


def content_key(files: Iterable[Path], *facts: str) -> str:
    """Twelve hex digits that change when a file's path or bytes, or one of `facts`, change.

    Folders are walked; compiled Python files are left out. Paths count relative to the repository,
    so that two clones share a key.
    """
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(fact.encode() + b"\0")
    for file in sorted(_walk(files)):
        relative = file.relative_to(REPOSITORY) if file.is_relative_to(REPOSITORY) else file
        digest.update(f"{relative}\0{file.stat().st_mode & 0o111}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _walk(files: Iterable[Path]) -> Iterable[Path]:
    for file in files:
        if file.is_dir():
            yield from _walk(child for child in file.iterdir() if child.name != "__pycache__")
        else:
            yield file
