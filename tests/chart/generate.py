"""Writes the chart's generated files: `python -m tests.chart.generate`.

They are committed, so that a checkout installs as it is; `test_generated_files.py` fails when one
differs from what this would write.
"""

from pathlib import Path

import yaml

from e2e.chart import CHART
from e2e.cluster.paths import REPOSITORY
from llmservice.adapters import permissions

CRD = "llmservices.llmservice.dev.yaml"
PERMISSIONS = "permissions.yaml"

_HEADER = (
    "# Generated from operator/llmservice/adapters/permissions.py, which also says why;\n"
    "# `make generate` rewrites it.\n"
)


def generated() -> dict[Path, str]:
    """Text of each generated file."""
    folder = CHART / "files"
    roles = yaml.safe_dump(permissions.roles(), sort_keys=False)
    return {
        folder / CRD: (REPOSITORY / "crds" / CRD).read_text(),
        folder / PERMISSIONS: _HEADER + roles,
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
