"""Names of children: deterministic, and short enough for every kind."""

import re

import pytest

from llmservice.api import names

LONGEST = "q" * names.MAX_SERVICE_NAME_LENGTH
HASH = "0" * names.REVISION_HASH_LENGTH
DNS_1035_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_LABEL_LENGTH = 63


@pytest.mark.parametrize(
    "name",
    [LONGEST, names.revision_name(LONGEST, HASH), names.service_account_name(LONGEST)],
)
def test_children_of_the_longest_name_fit(name: str) -> None:
    """A Service's name is a DNS-1035 label of at most 63 characters; every child keeps to it."""
    assert len(name) <= MAX_LABEL_LENGTH
    assert DNS_1035_LABEL.fullmatch(name)


@pytest.mark.parametrize(
    "labels",
    [
        names.instance_labels(LONGEST),
        names.engine_selector(LONGEST),
        names.revision_selector(LONGEST, HASH),
    ],
)
def test_label_values_of_the_longest_name_fit(labels: dict[str, str]) -> None:
    """A label's value is at most 63 characters."""
    assert all(len(value) <= MAX_LABEL_LENGTH for value in labels.values())


def test_a_revision_is_selected_by_its_own_labels_only() -> None:
    """The selector of a revision narrows that of the service."""
    assert names.engine_selector("a").items() <= names.revision_selector("a", HASH).items()
    assert names.revision_selector("a", HASH) != names.revision_selector("a", HASH[::-1] + "1")
