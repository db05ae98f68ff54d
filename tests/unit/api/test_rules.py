"""The cross-field rules as this process judges them; the API server's half is in the corpus."""

import pytest

from llmservice.api import names
from llmservice.api.rules import RULES, Rule, check_rules


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_message_says_what_to_do(rule: Rule) -> None:
    """Every message holds an instruction, in words that fit one line of kubectl's output."""
    words = ("set", "give", "remove", "leave it out", "raise", "must", "choose", "rename", "use")

    assert any(word in rule.message for word in words)
    assert len(rule.message) <= 200


def test_names_of_rules_are_unique() -> None:
    """A rule is found by its name."""
    assert len(RULES) == len({rule.name for rule in RULES})


def test_transition_rules_are_left_to_the_api_server() -> None:
    """Only it has the old object."""
    assert ["served-name-immutable"] == [rule.name for rule in RULES if rule.is_transition]


def test_a_violation_in_a_list_names_the_item() -> None:
    """The second of two variables is wrong, and the path says so."""
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "1", "valueFrom": {}}]
    document = {
        "metadata": {"name": "qwen"},
        "spec": {"model": {"id": "a/b"}, "accelerator": {}, "engine": {"env": env}},
    }

    fields = [violation.field for violation in check_rules(document)]

    assert ["spec.engine.env[1]", "spec.engine.env[1].valueFrom"] == fields


def test_a_rule_on_an_absent_object_says_nothing() -> None:
    """Rules of the pod template need a pod template."""
    document = {
        "metadata": {"name": "q" * names.MAX_SERVICE_NAME_LENGTH},
        "spec": {"model": {"id": "a/b"}, "accelerator": {}},
    }

    assert [] == check_rules(document)
