"""Which fields of a child we no longer own: drift, seen without keeping the live object.

The API server notes in ``metadata.managedFields`` who set which field. Whoever changes or removes
a field that we applied takes it out of our entry, whatever he wrote, so comparing the entry with
the manifest finds every hand edit, and never mistakes a default or another spelling of a quantity
for one. The adapters distil the entry (:func:`owned_fields`), ``reconcile`` compares it
(:func:`lost_fields`). Values are none of this module's business.

>>> lost_fields({"spec": {"replicas": 2, "paused": True}}, '{"f:spec":{"f:paused":{}}}')
('spec.replicas',)
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llmservice.api.names import APPLIED_HASH_ANNOTATION, CHILD_MANAGER
from llmservice.core.observed import Manifest

MASKED_UID = "*"
"""Stands for the owner's uid, which would make the entry of every service a different string."""

_IDENTITY = frozenset({"apiVersion", "kind"})
_METADATA_IDENTITY = frozenset({"name", "namespace"})
_Tree = Mapping[str, Any]
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode

_verdicts: dict[tuple[str, str], tuple[str, ...]] = {}
_VERDICTS_LIMIT = 65_536


def owned_fields(managed_fields: object, manager: str = CHILD_MANAGER) -> str:
    """The ``fieldsV1`` tree that ``manager`` applied, as JSON; "{}" for none.

    The API server writes trees in one order, so equal ones are equal strings without sorting them
    here, which would be most of the cost of taking in a child.

    Args:
        managed_fields: ``metadata.managedFields`` of a live object, however odd.
        manager: our field manager; entries of subresources and of plain updates do not count.
    """
    for entry in managed_fields if isinstance(managed_fields, list) else ():
        if (
            isinstance(entry, dict)
            and entry.get("manager") == manager
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
        ):
            return _ENCODE(_masked(entry.get("fieldsV1")))
    return "{}"


def owns(owned: str, *path: str) -> bool:
    """Whether ``owned`` (see :func:`owned_fields`) holds one field.

    >>> owns('{"f:spec":{"f:paused":{}}}', "spec", "paused")
    True
    """
    if f'"f:{path[-1]}"' not in owned:
        return False  # nearly always, and cheap
    tree = _mapping(json.loads(owned))
    for name in path:
        if f"f:{name}" not in tree:
            return False
        tree = _mapping(tree[f"f:{name}"])
    return True


def lost_fields(manifest: Manifest, owned: str) -> tuple[str, ...]:
    """Dotted paths of the manifest that ``owned`` (see :func:`owned_fields`) does not hold.

    Remembered per applied hash, because an unchanged child is asked about on every event.
    """
    applied_hash = _mapping(_mapping(manifest.get("metadata")).get("annotations")).get(
        APPLIED_HASH_ANNOTATION
    )
    if not isinstance(applied_hash, str):
        return _lost_fields(manifest, owned)
    verdict = _verdicts.get((applied_hash, owned))
    if verdict is None:
        if len(_verdicts) >= _VERDICTS_LIMIT:
            _verdicts.clear()
        verdict = _verdicts[applied_hash, owned] = _lost_fields(manifest, owned)
    return verdict


def _lost_fields(manifest: Manifest, owned: str) -> tuple[str, ...]:
    tree = _mapping(json.loads(owned))
    desired = {key: value for key, value in manifest.items() if key not in _IDENTITY}
    metadata = _mapping(manifest.get("metadata"))
    desired["metadata"] = {k: v for k, v in metadata.items() if k not in _METADATA_IDENTITY}
    return tuple(_lost_in_mapping(desired, tree, ""))


def _lost(desired: object, tree: _Tree, path: str) -> Iterator[str]:
    """What of ``desired`` at ``path`` is missing; a tree without children owns all below it."""
    if not tree:
        return
    if isinstance(desired, Mapping):
        yield from _lost_in_mapping(desired, tree, path)
    elif isinstance(desired, list):
        yield from _lost_in_list(desired, tree, path)


def _lost_in_mapping(desired: Mapping[str, Any], tree: _Tree, path: str) -> Iterator[str]:
    for key, value in desired.items():
        if value is None or value == []:
            continue  # says nothing, so there is nothing to own
        field = f"{path}.{key}" if path else key
        below = tree.get(f"f:{key}")
        if below is None:
            yield field
        else:
            yield from _lost(value, below, field)


def _lost_in_list(desired: list[Any], tree: _Tree, path: str) -> Iterator[str]:
    keyed = [(json.loads(key[2:]), below) for key, below in tree.items() if key.startswith("k:")]
    members = {key for key in tree if key.startswith("v:")}
    for item in desired:
        if not isinstance(item, Mapping):
            if f"v:{json.dumps(item)}" not in members:
                yield f"{path}[{item}]"
            continue
        match = _best_match(item, keyed)
        if match is None:
            yield f"{path}[{_label(item)}]"
        else:
            key, below = match
            label = ",".join(f"{name}={item[name]}" for name in key if name in item)
            yield from _lost(item, below, f"{path}[{label}]")


def _best_match(
    item: Mapping[str, Any], keyed: list[tuple[dict[str, Any], _Tree]]
) -> tuple[dict[str, Any], _Tree] | None:
    """The list entry of an item; keys the item leaves to a default (``protocol``) match any."""
    best: tuple[dict[str, Any], _Tree] | None = None
    best_common = 0
    for key, below in keyed:
        common = sum(1 for name in key if name in item)
        if common > best_common and all(
            value in (item[name], MASKED_UID) for name, value in key.items() if name in item
        ):
            best, best_common = (key, below), common
    return best


def _label(item: Mapping[str, Any]) -> str:
    name, value = next(iter(item.items()), ("", ""))
    return f"{name}={value}"


def _masked(fields: object) -> _Tree:
    """The tree with the owner references' uids replaced."""
    tree = _mapping(fields)
    metadata = _mapping(tree.get("f:metadata"))
    references = metadata.get("f:ownerReferences")
    if not isinstance(references, Mapping):
        return tree
    masked = {
        (f'k:{{"uid":"{MASKED_UID}"}}' if key.startswith('k:{"uid"') else key): below
        for key, below in references.items()
    }
    return {**tree, "f:metadata": {**metadata, "f:ownerReferences": masked}}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
