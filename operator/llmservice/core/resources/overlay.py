"""Strategic merge of ``spec.podTemplate`` into the pod that we built.

The subset of ``kubectl patch`` that a pod template needs: maps merge, ``null`` removes, lists of
objects merge by the key that Kubernetes documents for them (``patchMergeKey`` in
k8s.io/api/core/v1/types.go), other lists are replaced.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmservice.api import names
from llmservice.api.rules import Violation

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "volumes": "name",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}

_PATH = "spec.podTemplate.spec"
_OWNED_ELSEWHERE = {
    "image": "spec.engine.image",
    "command": "an image whose entry point is `vllm serve`",
    "args": "the fields of spec.engine, or spec.engine.extraArgs",
}


def merge(base: Any, overlay: Any, field: str = "") -> Any:
    """``overlay`` merged into ``base``; neither is changed."""
    if isinstance(base, Mapping) and isinstance(overlay, Mapping):
        merged = dict(base)
        for key, value in overlay.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = merge(base.get(key), value, key)
        return merged
    if field == "tolerations" and base:
        # Replacing them would drop the toleration of the accelerator's taint.
        return [*base, *(item for item in overlay if item not in base)]
    key = MERGE_KEYS.get(field)
    if key is not None and isinstance(base, Sequence):
        return _merge_list(base, overlay, key)
    return overlay


def _merge_list(base: Sequence[Any], overlay: Sequence[Any], key: str) -> list[Any]:
    merged = {item[key]: item for item in base}
    for item in overlay:
        merged[item[key]] = merge(merged.get(item[key]), item)
    return list(merged.values())


def check_overlay(spec: Mapping[str, Any]) -> list[Violation]:
    """What in ``spec.podTemplate.spec`` cannot be merged or belongs to another field."""
    return [
        *_check_lists(spec, _PATH),
        *_check_tolerations(spec),
        *_check_engine(spec),
    ]


def _check_lists(node: Mapping[str, Any], path: str) -> Iterator[Violation]:
    for field, value in node.items():
        key = MERGE_KEYS.get(field)
        if key is not None and value is not None:
            yield from _check_list(value, f"{path}.{field}", key)
        elif isinstance(value, Mapping):
            yield from _check_lists(value, f"{path}.{field}")


def _check_list(value: Any, path: str, key: str) -> Iterator[Violation]:
    if not isinstance(value, list):
        yield Violation(path, f"must be a list of objects with {key!r}")
        return
    for index, item in enumerate(value):
        if not isinstance(item, Mapping) or not isinstance(item.get(key), str | int):
            yield Violation(f"{path}[{index}]", f"needs {key!r}, by which the list is merged")
        else:
            yield from _check_lists(item, f"{path}[{index}]")


def _check_tolerations(spec: Mapping[str, Any]) -> Iterator[Violation]:
    tolerations = spec.get("tolerations")
    if tolerations is not None and not isinstance(tolerations, list):
        yield Violation(f"{_PATH}.tolerations", "must be a list")


def _check_engine(spec: Mapping[str, Any]) -> Iterator[Violation]:
    containers = spec.get("containers", [])
    if containers is None:
        yield Violation(f"{_PATH}.containers", "cannot be removed: leave it out")
    for container in containers if isinstance(containers, list) else ():
        if not isinstance(container, Mapping) or container.get("name") != names.ENGINE_CONTAINER:
            continue
        path = f"{_PATH}.containers[{names.ENGINE_CONTAINER}]"
        for field, owner in _OWNED_ELSEWHERE.items():
            if field in container:
                yield Violation(f"{path}.{field}", f"set {owner} instead")
        for field in ("ports", "resources"):
            if field in container and container[field] is None:
                yield Violation(f"{path}.{field}", "cannot be removed: leave it out")
