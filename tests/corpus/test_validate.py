"""``llmservice validate`` on the whole corpus; the API server's half is in ``tests/contract``."""

import pytest

from llmservice.api.rules import RULES
from tests.corpus.cases import Case, cases, validate


def _id(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", [*cases("invalid"), *cases("refused")], ids=_id)
def test_says_what_is_wrong(case: Case) -> None:
    """One violation for one mistake, and it names the field and the fix."""
    found = validate(case.path)

    assert len(found) == 1, found
    assert case.field
    assert case.message
    assert case.is_named_by(found[0]), found


@pytest.mark.parametrize("case", cases("valid"), ids=_id)
def test_accepts_what_can_run(case: Case) -> None:
    """Nothing is wrong with a valid manifest."""
    assert validate(case.path) == []


@pytest.mark.parametrize("rule", [r for r in RULES if not r.is_transition], ids=lambda r: r.name)
def test_every_rule_is_broken_by_a_manifest(rule) -> None:
    """A rule that no manifest of the corpus breaks could be wrong and nobody would know."""
    messages = [violation.message for case in cases("invalid") for violation in validate(case.path)]

    assert rule.message in messages


def test_the_corpus_is_large_enough() -> None:
    """The promise of the corpus: at least 60 invalid and 15 valid manifests."""
    assert len(cases("invalid")) >= 60
    assert len(cases("valid")) >= 15
