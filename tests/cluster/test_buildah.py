"""What handing an image on does when buildah's store is in the way; the program is a stand-in."""

import pytest

from e2e.cluster import buildah
from e2e.cluster.progress import ClusterError


@pytest.fixture
def says(tmp_path, monkeypatch):
    """A buildah that fails with these words."""

    def fail(words):
        program = tmp_path / "buildah"
        program.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 125\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return fail


def test_a_damaged_image_is_told_from_other_failures(says):
    """It is built anew; anything else is for people to read."""
    says("Error: reading blob: file integrity checksum failed for cacert.pem")
    with pytest.raises(buildah.DamagedImageError, match="checksum failed"):
        buildah.stream("localhost/x:1", ["cat"])

    says("Error: no such image")
    with pytest.raises(ClusterError, match="no such image") as caught:
        buildah.stream("localhost/x:1", ["cat"])
    assert not isinstance(caught.value, buildah.DamagedImageError)
