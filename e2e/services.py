"""LLMServices as the e2e tests need them, made from the example that the demo applies."""

import copy
from typing import Any, cast

import yaml

from e2e.cluster.paths import REPOSITORY
from e2e.kubectl import JSON

EXAMPLE = REPOSITORY / "examples" / "tiny-cpu.yaml"


def tiny_service(name: str, image: str, /, **engine: Any) -> JSON:
    """The example under another name.

    Args:
        name: of the resource, and the name that clients send.
        image: the engine's, as the nodes know it.
        engine: fields of spec.engine to set, or to remove with None.
    """
    service = cast("JSON", yaml.safe_load(EXAMPLE.read_text()))
    service["metadata"]["name"] = name
    # The nodes have it already, or pull it from the registry that the tag names.
    given = {"image": image, "imagePullPolicy": "IfNotPresent", **engine}
    wanted = service["spec"]["engine"] | given
    service["spec"]["engine"] = {key: value for key, value in wanted.items() if value is not None}
    return service


def with_spec(service: JSON, **fields: Any) -> JSON:
    """The same service with other top-level fields of its spec."""
    changed = copy.deepcopy(service)
    changed["spec"] |= fields
    return changed
