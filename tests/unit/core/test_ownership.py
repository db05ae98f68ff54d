"""Drift is what left our entry of managedFields; tests/contract asks a real API server for it."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.api.names import APPLIED_HASH_ANNOTATION
from llmservice.core.ownership import lost_fields, owned_fields

OWNER = {"apiVersion": "v1", "kind": "X", "name": "x", "uid": "1111-22", "controller": True}

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "name": "d",
        "namespace": "default",
        "labels": {"a": "b"},
        "ownerReferences": [OWNER],
    },
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "spec": {
                "imagePullSecrets": [],
                "nodeSelector": {"x": "y"},
                "containers": [
                    {
                        "name": "engine",
                        "args": ["a", "b"],
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                        "ports": [{"name": "http", "containerPort": 8000}],
                        "resources": {"limits": {"nvidia.com/gpu": "1"}},
                    }
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }
        },
    },
}

# As Kubernetes 1.37 wrote it for this manifest.
FIELDS = {
    "f:metadata": {
        "f:labels": {"f:a": {}},
        "f:ownerReferences": {'k:{"uid":"1111-22"}': {}},
    },
    "f:spec": {
        "f:replicas": {},
        "f:selector": {},
        "f:template": {
            "f:spec": {
                "f:nodeSelector": {},
                "f:containers": {
                    'k:{"name":"engine"}': {
                        ".": {},
                        "f:name": {},
                        "f:args": {},
                        "f:env": {
                            'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}},
                            'k:{"name":"B"}': {".": {}, "f:name": {}, "f:value": {}},
                        },
                        "f:ports": {
                            'k:{"containerPort":8000,"protocol":"TCP"}': {
                                ".": {},
                                "f:containerPort": {},
                                "f:name": {},
                            }
                        },
                        "f:resources": {"f:limits": {"f:nvidia.com/gpu": {}}},
                    }
                },
                "f:volumes": {'k:{"name":"tmp"}': {".": {}, "f:emptyDir": {}, "f:name": {}}},
            }
        },
    },
}
CONTAINER = ("f:spec", "f:template", "f:spec", "f:containers", 'k:{"name":"engine"}')
CONTAINER_PATH = "spec.template.spec.containers[name=engine]"


def entry(fields, **changes):
    return {"manager": "llmservice", "operation": "Apply", "fieldsV1": fields, **changes}


def without(*path):
    """FIELDS, one of them lost; the server leaves no empty branches (see tests/contract)."""
    fields = json.loads(json.dumps(FIELDS))
    for depth in range(len(path), 0, -1):
        tree = fields
        for step in path[: depth - 1]:
            tree = tree[step]
        if depth == len(path) or not tree[path[depth - 1]]:
            del tree[path[depth - 1]]
    return owned_fields([entry(fields)])


def test_nothing_is_lost_of_what_the_server_confirmed():
    """Defaults in keys (protocol), atomic parts and empty lists are no drift."""
    assert () == lost_fields(DEPLOYMENT, owned_fields([entry(FIELDS)]))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("f:spec", "f:replicas"), "spec.replicas"),
        (("f:spec", "f:selector"), "spec.selector"),
        (("f:metadata", "f:labels"), "metadata.labels"),
        (("f:metadata", "f:labels", "f:a"), "metadata.labels"),
        (("f:metadata", "f:ownerReferences"), "metadata.ownerReferences"),
        ((*CONTAINER, "f:args"), f"{CONTAINER_PATH}.args"),
        ((*CONTAINER, "f:env", 'k:{"name":"A"}'), f"{CONTAINER_PATH}.env[name=A]"),
        ((*CONTAINER, "f:env", 'k:{"name":"B"}', "f:value"), f"{CONTAINER_PATH}.env[name=B].value"),
        (
            (*CONTAINER, "f:ports", 'k:{"containerPort":8000,"protocol":"TCP"}'),
            f"{CONTAINER_PATH}.ports",
        ),
        (
            (*CONTAINER, "f:resources", "f:limits", "f:nvidia.com/gpu"),
            f"{CONTAINER_PATH}.resources",
        ),
        (("f:spec", "f:template", "f:spec", "f:nodeSelector"), "spec.template.spec.nodeSelector"),
    ],
)
def test_lost_field_is_named_by_its_path(path, expected):
    """A person can read which field somebody else changed."""
    assert (expected,) == lost_fields(DEPLOYMENT, without(*path))


def test_without_an_entry_everything_is_lost():
    """An object that we never applied, or whose managedFields were cleared, is not ours."""
    assert ("metadata", "spec") == tuple(sorted(lost_fields(DEPLOYMENT, owned_fields(None))))


def test_only_our_own_apply_counts():
    """Updates, other managers and subresources are other people's entries."""
    strangers = [
        entry(FIELDS, manager="kubectl"),
        entry(FIELDS, operation="Update"),
        entry(FIELDS, subresource="status"),
    ]

    assert "{}" == owned_fields(strangers)
    assert owned_fields([entry(FIELDS)]) == owned_fields([*strangers, entry(FIELDS)])


def test_entries_of_two_services_are_the_same_string():
    """The owner's uid is masked, so a thousand services share one string per shape."""
    other = json.loads(json.dumps(FIELDS).replace("1111-22", "3333-44"))

    assert owned_fields([entry(FIELDS)]) == owned_fields([entry(other)])


def test_set_items_are_matched_by_value():
    """Items of a set list (finalizers) stand in the entry as values."""
    manifest = {"metadata": {"name": "x", "finalizers": ["a", "b"]}}
    fields = {"f:metadata": {"f:finalizers": {'v:"a"': {}}}}

    assert ("metadata.finalizers[b]",) == lost_fields(manifest, owned_fields([entry(fields)]))


def test_verdict_is_remembered_by_hash_and_entry():
    """A new hash or a new entry is judged anew."""
    hashed = {"annotations": {APPLIED_HASH_ANNOTATION: "h1"}}
    manifest = {"metadata": {"name": "x", **hashed}, "spec": {"a": 1}}
    ours = {"f:metadata": {"f:annotations": {f"f:{APPLIED_HASH_ANNOTATION}": {}}}}
    complete = owned_fields([entry({**ours, "f:spec": {"f:a": {}}})])

    for _ in range(2):
        assert () == lost_fields(manifest, complete)
        assert ("spec",) == lost_fields(manifest, owned_fields([entry(ours)]))


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(odd)
def test_odd_managed_fields_never_raise(value):
    """Whatever a server or a person put there."""
    owned_fields(value)
    owned_fields([value])
    owned_fields([entry(value)])
    owned_fields([entry({"f:metadata": value})])
    owned_fields([entry({"f:metadata": {"f:ownerReferences": value}})])


names = st.text("abcdef", min_size=1, max_size=4)
trees = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(names, inner, min_size=1, max_size=4),
    max_leaves=15,
)


def fields_of(value):
    if not isinstance(value, dict):
        return {}
    return {f"f:{key}": fields_of(below) for key, below in value.items()}


def leaves(tree, path=()):
    for key, below in tree.items():
        if below:
            yield from leaves(below, (*path, key))
        else:
            yield (*path, key)


@given(st.dictionaries(names, trees, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_exactly_the_lost_leaf_is_reported(spec, chance: random.Random):
    """Own everything: nothing is lost. Lose one field: that one is reported, or what held it."""
    manifest = {"metadata": {"name": "x"}, "spec": spec}
    fields = {"f:metadata": {}, "f:spec": fields_of(spec)}

    assert () == lost_fields(manifest, owned_fields([entry(fields)]))

    lost = chance.choice(list(leaves(fields["f:spec"])))
    tree = fields["f:spec"]
    for step in lost[:-1]:
        tree = tree[step]
    del tree[lost[-1]]
    tree["f:of-others"] = {}
    path = ".".join(("spec", *(step.removeprefix("f:") for step in lost)))

    assert (path,) == lost_fields(manifest, owned_fields([entry(fields)]))
