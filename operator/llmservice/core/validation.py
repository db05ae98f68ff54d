"""Is this spec one that can run? The one judgement behind the reconciler and ``validate``.

Three layers, each naming field and fix: the shape (pydantic), the cross-field rules that the API
server also enforces (CEL), and what depends on the engine's version or the pod overlay.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llmservice.api.admission import (
    TOO_DEEP,
    admission_violations,
    broken_rules,
    is_deeper,
    shape_violations,
)
from llmservice.api.rules import Violation
from llmservice.api.schema import prune_nulls, root_schema
from llmservice.api.v1alpha1 import LLMServiceSpec, parse_spec
from llmservice.core.engine import EnginePlan, InvalidEngine, plan_engine
from llmservice.core.planner.outcome import Infeasible
from llmservice.core.planning import plan_status
from llmservice.core.quantities import parse_quantity
from llmservice.core.resources.overlay import check_overlay


@dataclass(frozen=True, slots=True)
class ValidSpec:
    """A spec that can be carried out, and what its engine is started with."""

    spec: LLMServiceSpec
    plan: EnginePlan


@dataclass(frozen=True, slots=True)
class InvalidSpec:
    """All that is wrong with a spec."""

    violations: tuple[Violation, ...]

    @property
    def message(self) -> str:
        """Every violation in one line."""
        return "; ".join(str(violation) for violation in self.violations)


def validate_spec(name: str, raw: Mapping[str, Any]) -> ValidSpec | InvalidSpec:
    """Judge the spec of the LLMService ``name``, as stored: unknown fields are left alone."""
    if is_deeper(raw):
        return InvalidSpec((Violation("spec", TOO_DEEP),))
    try:
        spec = parse_spec(prune_nulls(raw, root_schema()["properties"]["spec"]))
    except ValidationError as error:
        return InvalidSpec(tuple(shape_violations(error, "spec")))
    violations = [*broken_rules(name, spec), *_pod_violations(spec)]
    if violations:
        return InvalidSpec(tuple(violations))
    plan = plan_engine(name, spec)
    if isinstance(plan, InvalidEngine):
        return InvalidSpec(plan.violations)
    return ValidSpec(spec, plan)


def is_refused(valid: ValidSpec) -> bool:
    """Whether the memory plan forbids pods: it is infeasible, and not merely advisory."""
    return isinstance(valid.plan.memory, Infeasible) and valid.spec.engine.plan == "Enforce"


def validate_document(document: Any) -> list[Violation]:
    """Judge a manifest as ``kubectl apply`` would, then as the reconciler would.

    Stricter than :func:`validate_spec`: unknown fields and loosely typed values (``"2"`` for 2)
    are refused, because a manifest in an editor can be mended and a stored object cannot.

    Args:
        document: any value; what is no manifest is a violation, never an exception.
    """
    violations = admission_violations(document)
    if violations:
        return violations
    valid = validate_spec(document["metadata"]["name"], document["spec"])
    if isinstance(valid, InvalidSpec):
        return list(valid.violations)
    if is_refused(valid):
        return [Violation("spec.engine", plan_status(valid.plan.memory)["message"])]
    return []


def _pod_violations(spec: LLMServiceSpec) -> Iterator[Violation]:
    yield from _check_amounts(spec)
    if spec.pod_template is not None and spec.pod_template.spec is not None:
        yield from check_overlay(spec.pod_template.spec)


def _check_amounts(spec: LLMServiceSpec) -> Iterator[Violation]:
    """What the API server would say about the pod, and only after it took the LLMService."""
    resources = spec.engine.resources
    limits = (resources and resources.limits) or {}
    for name, requested in ((resources and resources.requests) or {}).items():
        field, limit = f"spec.engine.resources.requests.{name}", limits.get(name)
        if limit is not None and parse_quantity(requested) > parse_quantity(limit):
            yield Violation(
                field, f"{requested} is over the limit of {limit}: lower it, or raise the limit"
            )
        elif name.startswith("hugepages-") and limit is None:
            yield Violation(
                field, "huge pages cannot be overcommitted: set them in limits, to the same amount"
            )
