"""Defaults of the fields of a rollout, which no manifest of the corpus writes out."""

import pytest

from llmservice.api.guardrails import DEFAULT_GUARDRAILS
from llmservice.api.rules import check_rules
from llmservice.api.v1alpha1 import DEFAULT_STEPS, parse_spec, router_of

SPEC = {"model": {"id": "a/b"}, "accelerator": {"resource": "nvidia.com/gpu"}}


@pytest.mark.parametrize(
    ("expected", "fields"),
    [
        ("None", {}),
        ("None", {"rollout": {"strategy": "Recreate"}}),
        ("Embedded", {"rollout": {"strategy": "Canary"}}),
        ("Embedded", {"traffic": {"router": "Embedded"}}),
        ("Gateway", {"rollout": {"strategy": "Canary"}, "traffic": {"router": "Gateway"}}),
        ("None", {"traffic": {"router": "None"}}),
    ],
)
def test_a_canary_brings_its_router(expected: str, fields: dict[str, object]) -> None:
    """What is written counts; without it only a canary needs one."""
    assert expected == router_of(parse_spec({**SPEC, **fields}))


def test_defaults_keep_the_rules() -> None:
    """Rules judge what is written, so a bad default would pass unseen."""
    rollout = {
        "strategy": "Canary",
        "steps": [step.model_dump(by_alias=True, exclude_none=True) for step in DEFAULT_STEPS],
        "guardrails": [
            guardrail.model_dump(by_alias=True, exclude_none=True)
            for guardrail in DEFAULT_GUARDRAILS
        ],
    }
    spec = {**SPEC, "rollout": rollout}

    assert [] == check_rules({"metadata": {"name": "qwen"}, "spec": spec})
    assert parse_spec(SPEC).rollout.steps == DEFAULT_STEPS
    assert parse_spec(SPEC).rollout.guardrails == DEFAULT_GUARDRAILS
    assert DEFAULT_STEPS == parse_spec(spec).rollout.steps
