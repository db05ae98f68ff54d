"""Cross-field rules of the resource, written once, in CEL.

The same expression is put into the CRD (``kubectl apply`` refuses with its message) and is
evaluated by ``llmservice validate`` and by the reconciler, which meets objects that were stored
before a rule existed. Every message names the field and the fix. What depends on the engine's
version (flag tables) cannot be said in CEL and is judged by :mod:`llmservice.core.engine`.

Limits of CEL in a CRD: a root rule sees only ``metadata.name``; every string and list that a rule
walks is bounded, or the API server refuses the CRD for its cost.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import cel

from llmservice.api import names
from llmservice.api.types import QUALIFIED_NAME_PATTERN


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: ``cel`` must be true of the object at ``path``.

    ``path`` is dotted from the root of the object; a trailing ``[]`` means each item of a list.
    ``field`` is what the message is about, relative to ``path``. A transition rule also uses
    ``oldSelf`` and is judged by the API server only, which alone has the old object.
    """

    name: str
    path: str
    cel: str
    message: str
    field: str = ""

    @property
    def is_transition(self) -> bool:
        """Whether the rule compares with the stored object."""
        return "oldSelf" in self.cel


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule, or a field of the wrong shape."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def _or_default(owner: str, field: str, default: str) -> str:
    """CEL for an optional field's value with its default."""
    return f"(has({owner}.{field}) ? {owner}.{field} : {default})"


def _ranks(field: str) -> str:
    path = "self.engine.parallelism"
    value = f"(has({path}) && has({path}.{field}) ? {path}.{field} : 1)"
    return f"(has(self.engine) ? {value} : 1)"


_IS_CPU = "(has(self.accelerator.resource) && self.accelerator.resource == 'cpu')"
_RANKS = f"{_ranks('tensor')} * {_ranks('pipeline')} * {_ranks('data')}"
_HAS_TENSOR = (
    "(has(self.engine) && has(self.engine.parallelism) && has(self.engine.parallelism.tensor))"
)
_SERVED_NAME = _or_default("self.spec.model", "servedName", "self.metadata.name")
_OLD_SERVED_NAME = _SERVED_NAME.replace("self.", "oldSelf.")

_HUB_WORD = "[A-Za-z0-9][A-Za-z0-9._-]*"
_IS_HOST_RESOURCE = "k in ['cpu', 'memory', 'ephemeral-storage'] || k.startsWith('hugepages-')"
_HOST_RESOURCES = (
    "only cpu, memory, ephemeral-storage and hugepages-* go here: set devices in"
    " spec.accelerator.resource and count"
)
_IS_LABEL_KEY = f"k.matches('{QUALIFIED_NAME_PATTERN}')"
_LABEL_KEYS = (
    "keys are up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends,"
    " and may have a DNS name and a '/' before them: rename the key"
)

_IS_CANARY = (
    "(has(self.rollout) && has(self.rollout.strategy) && self.rollout.strategy == 'Canary')"
)
_REPLICAS = (
    f"(has(self.autoscaling) ? self.autoscaling.maxReplicas"
    f" : {_or_default('self', 'replicas', '1')})"
)
_ROUTER = (
    "(has(self.traffic) && has(self.traffic.router) ? self.traffic.router"
    f" : ({_IS_CANARY} ? 'Embedded' : 'None'))"
)
_LAST_STEPS = ", ".join(str(index) for index in range(1, 20))
"""CEL has no loop over places in a list, so they are written out, up to the longest rollout."""
_QUANTILE = "(has({0}.quantile) ? {0}.quantile : 'p95')"
_IS_SAME_GUARDRAIL = f"g.metric == h.metric && {_QUANTILE.format('g')} == {_QUANTILE.format('h')}"
GUARDRAILS = "spec.rollout.guardrails[]"
_GATES = "spec.rollout.gates[]"
_BENCH_LIMITS = (
    *("minRequestThroughput", "minOutputThroughput"),
    *("maxMeanTtftMilliseconds", "maxP99TtftMilliseconds"),
    *("maxMeanTpotMilliseconds", "maxP99TpotMilliseconds", "maxP99ItlMilliseconds"),
)

RULES: tuple[Rule, ...] = (
    Rule(
        "name-fits-children",
        "",
        f"size(self.metadata.name) <= {names.MAX_SERVICE_NAME_LENGTH}"
        f" && self.metadata.name.matches('{names.SERVICE_NAME_PATTERN}')",
        f"metadata.name must be at most {names.MAX_SERVICE_NAME_LENGTH} characters of a-z, 0-9 and"
        " '-', start with a letter and end with a letter or digit: Services are named after it",
        field="metadata.name",
    ),
    Rule(
        "served-name-immutable",
        "",
        f"{_SERVED_NAME} == {_OLD_SERVED_NAME}",
        "spec.model.servedName cannot change, because clients send it: create a second LLMService"
        " under the new name and move the clients over",
        field="spec.model.servedName",
    ),
    Rule(
        "one-model-source",
        "spec.model.source",
        "!(has(self.hub) && has(self.pvc))",
        "set either hub or pvc, not both",
    ),
    Rule(
        "model-id-form",
        "spec.model",
        f"self.id.startsWith('/') || self.id.matches('^{_HUB_WORD}(/{_HUB_WORD})?$')",
        "id must be a hub id like mistralai/Mistral-7B-Instruct-v0.2, or an absolute path like"
        " /models/mine",
        field="id",
    ),
    Rule(
        "path-has-no-hub-settings",
        "spec.model",
        "!(self.id.startsWith('/')"
        " && (has(self.revision) || (has(self.source) && has(self.source.hub))))",
        "revision and source.hub are for hub ids: remove them, or set id to a hub id",
        field="id",
    ),
    Rule(
        "pvc-has-no-revision",
        "spec.model",
        "!(has(self.revision) && has(self.source) && has(self.source.pvc))",
        "a model in a volume has no hub revision: remove revision, or point source.pvc.path at the"
        " folder of that revision",
        field="revision",
    ),
    Rule(
        "pvc-path-stays-inside",
        "spec.model.source.pvc",
        "!has(self.path) || !self.path.matches('(^|/)[.][.](/|$)')",
        "path must stay inside the volume: remove the '..'",
        field="path",
    ),
    Rule(
        "cpu-has-no-devices",
        "spec",
        f"!{_IS_CPU} || !(has(self.accelerator.count) || has(self.accelerator.product))",
        "accelerator.count and accelerator.product are for devices: remove them, or set"
        " accelerator.resource to the device's resource, for instance nvidia.com/gpu",
        field="accelerator",
    ),
    Rule(
        "cpu-needs-kv-size",
        "spec",
        f"!{_IS_CPU} || (has(self.engine) && has(self.engine.kvCacheMemoryBytes))",
        "set engine.kvCacheMemoryBytes on cpu, for instance to 1Gi: without it vLLM reserves"
        " most of the node's memory, whatever the container's limit",
        field="engine",
    ),
    Rule(
        "count-matches-parallelism",
        "spec",
        f"!has(self.accelerator.count) || ({_HAS_TENSOR} ? self.accelerator.count == {_RANKS}"
        f" : self.accelerator.count % ({_RANKS}) == 0)",
        "accelerator.count must equal tensor x pipeline x data of engine.parallelism: leave it out,"
        " or change one of them",
        field="accelerator",
    ),
    Rule(
        "ranks-bounded",
        "spec",
        f"{_RANKS} <= 1024",
        "tensor x pipeline x data of engine.parallelism is over 1024 devices for one replica:"
        " raise replicas instead",
        field="engine",
    ),
    Rule(
        "one-kv-budget",
        "spec.engine",
        "!(has(self.kvCacheMemoryBytes) && has(self.gpuMemoryUtilization))",
        "kvCacheMemoryBytes overrides gpuMemoryUtilization: set only one of them",
        field="gpuMemoryUtilization",
    ),
    Rule(
        "batch-holds-sequences",
        "spec.engine",
        "!(has(self.maxNumSeqs) && has(self.maxNumBatchedTokens))"
        " || self.maxNumSeqs <= self.maxNumBatchedTokens",
        "maxNumBatchedTokens must be at least maxNumSeqs, one token for each: raise it, or lower"
        " maxNumSeqs",
        field="maxNumBatchedTokens",
    ),
    Rule(
        "unchunked-prompt-fits-batch",
        "spec.engine",
        "!(has(self.chunkedPrefill) && !self.chunkedPrefill && has(self.maxModelLen)"
        " && has(self.maxNumBatchedTokens)) || self.maxNumBatchedTokens >= self.maxModelLen",
        "without chunkedPrefill a whole prompt must fit one batch: raise maxNumBatchedTokens to at"
        " least maxModelLen, or leave chunkedPrefill unset",
        field="maxNumBatchedTokens",
    ),
    Rule(
        "version-is-known",
        "spec.engine",
        "has(self.version) || !has(self.image)"
        " || self.image.matches(':v?[0-9]+[.][0-9]+[^/:@]*(@sha256:[0-9a-f]+)?$')",
        "version is required when the image's tag is no vLLM version: set it to the version in the"
        " image, for instance 0.33.0",
        field="version",
    ),
    Rule(
        "extra-args-start-with-a-flag",
        "spec.engine",
        "!has(self.extraArgs) || size(self.extraArgs) == 0 || self.extraArgs[0].startsWith('-')",
        "extraArgs must start with a flag like --seed: the model is set by spec.model.id",
        field="extraArgs",
    ),
    Rule(
        "env-has-one-value",
        "spec.engine.env[]",
        "!(has(self.value) && has(self.valueFrom))",
        "set either value or valueFrom, not both",
    ),
    Rule(
        "env-is-not-ours",
        "spec.engine.env[]",
        "!(self.name in ['VLLM_PORT', 'VLLM_HOST_IP', 'VLLM_ENGINE_READY_TIMEOUT_S'])",
        "the operator sets this variable: use startupTimeoutSeconds for the start-up time, or"
        " remove it",
        field="name",
    ),
    Rule(
        "env-reference-has-one-source",
        "spec.engine.env[].valueFrom",
        "has(self.secretKeyRef) != has(self.configMapKeyRef)",
        "set exactly one of secretKeyRef and configMapKeyRef",
    ),
    Rule(
        "requests-are-host-resources",
        "spec.engine.resources",
        f"!has(self.requests) || self.requests.all(k, {_IS_HOST_RESOURCE})",
        _HOST_RESOURCES,
        field="requests",
    ),
    Rule(
        "limits-are-host-resources",
        "spec.engine.resources",
        f"!has(self.limits) || self.limits.all(k, {_IS_HOST_RESOURCE})",
        _HOST_RESOURCES,
        field="limits",
    ),
    Rule(
        "accelerator-is-cpu-or-a-device",
        "spec.accelerator",
        "!has(self.resource) || self.resource == 'cpu' || self.resource.contains('/')",
        "resource must be cpu, or what a device plugin offers, for instance nvidia.com/gpu",
        field="resource",
    ),
    Rule(
        "capacity-needs-rolling-update",
        "spec.rollout",
        "!(has(self.strategy) && self.strategy == 'Recreate' && has(self.capacity)"
        " && self.capacity != 'Replace')",
        "strategy Recreate never has old and new pods at once: remove capacity, or set strategy to"
        " RollingUpdate or Canary",
        field="capacity",
    ),
    Rule(
        "steps-exist",
        "spec.rollout",
        "!has(self.steps) || size(self.steps) > 0",
        "a rollout needs a step: give one, or remove steps for 5, 25 and 50 percent",
        field="steps",
    ),
    Rule(
        "steps-rise",
        "spec.rollout",
        f"!has(self.steps) || [{_LAST_STEPS}].all(i, i >= size(self.steps)"
        " || !has(self.steps[i - 1].weight) || !has(self.steps[i].weight)"
        " || self.steps[i - 1].weight < self.steps[i].weight)",
        "the weight of a step must be above that of the one before: sort steps by weight",
        field="steps",
    ),
    Rule(
        "steps-are-alike",
        "spec.rollout",
        "!has(self.steps) || self.steps.all(s, has(s.weight))"
        " || self.steps.all(s, has(s.replicas) && !has(s.weight))",
        "give every step a weight, or every step only replicas, which makes a weight of their share"
        " of all pods",
        field="steps",
    ),
    Rule(
        "step-replicas-rise",
        "spec.rollout",
        f"!has(self.steps) || [{_LAST_STEPS}].all(i, i >= size(self.steps)"
        " || has(self.steps[i - 1].weight) || has(self.steps[i].weight)"
        " || !has(self.steps[i - 1].replicas) || !has(self.steps[i].replicas)"
        " || self.steps[i - 1].replicas < self.steps[i].replicas)",
        "without weights the replicas of a step must be above those of the one before",
        field="steps",
    ),
    Rule(
        "step-replicas-exist",
        "spec",
        f"{_REPLICAS} == 0 || !has(self.rollout) || !has(self.rollout.steps)"
        f" || self.rollout.steps.all(s, !has(s.replicas) || s.replicas <= {_REPLICAS})",
        "a step of rollout.steps has more replicas than the service: lower it, leave it out, or"
        " raise spec.replicas",
        field="rollout",
    ),
    Rule(
        "canary-leaves-somebody-to-serve",
        "spec",
        f"!({_IS_CANARY} && has(self.rollout.capacity) && self.rollout.capacity == 'Replace'"
        f" && {_REPLICAS} == 1)",
        "with one replica, capacity Replace would stop the only pod for the canary: set replicas to"
        " 2, rollout.capacity to Surge (needs a spare device), or rollout.strategy to Recreate",
        field="rollout",
    ),
    Rule(
        "canary-needs-a-router",
        "spec",
        f"!({_IS_CANARY} && has(self.traffic) && has(self.traffic.router)"
        " && self.traffic.router == 'None')",
        "rollout.strategy Canary needs a router to split requests: set traffic.router to Embedded"
        " or Gateway, or remove it",
        field="traffic",
    ),
    Rule(
        "autoscaling-bounds-are-in-order",
        "spec.autoscaling",
        f"{_or_default('self', 'minReplicas', '1')} <= self.maxReplicas",
        "minReplicas is above maxReplicas: lower it, or raise maxReplicas",
        field="minReplicas",
    ),
    Rule(
        "zero-needs-the-embedded-router",
        "spec",
        "!has(self.autoscaling) || !has(self.autoscaling.minReplicas)"
        f" || self.autoscaling.minReplicas > 0 || {_ROUTER} == 'Embedded'",
        "minReplicas 0 needs a router that holds the first requests: set traffic.router to"
        " Embedded, or minReplicas to 1",
        field="autoscaling.minReplicas",
    ),
    Rule(
        "keda-needs-prometheus",
        "spec.autoscaling",
        "!(has(self.provider) && self.provider == 'KEDA') || has(self.prometheusUrl)",
        "provider KEDA asks Prometheus: set prometheusUrl, for instance"
        " http://prometheus.monitoring.svc:9090",
        field="prometheusUrl",
    ),
    Rule(
        "gateway-needs-a-ref",
        "spec.traffic",
        "!(has(self.router) && self.router == 'Gateway') || has(self.gatewayRef)",
        "router Gateway needs gatewayRef: set it to the name of the Gateway that clients come in"
        " by",
        field="gatewayRef",
    ),
    Rule(
        "affinity-needs-the-embedded-router",
        "spec.traffic",
        "!(has(self.router) && self.router != 'Embedded' && has(self.sessionAffinity))",
        "only the embedded router keeps sessions together: remove sessionAffinity, or set router to"
        " Embedded",
        field="sessionAffinity",
    ),
    Rule(
        "affinity-has-one-source",
        "spec.traffic.sessionAffinity",
        "has(self.header) != has(self.cookie)",
        "set exactly one of header and cookie",
    ),
    Rule(
        "guardrails-differ",
        "spec.rollout",
        "!has(self.guardrails) || self.guardrails.all(g,"
        f" self.guardrails.exists_one(h, {_IS_SAME_GUARDRAIL}))",
        "a metric (and quantile, p95 by default) is guarded twice: give one guardrail both limits",
        field="guardrails",
    ),
    Rule(
        "guardrail-quantile-is-of-times",
        GUARDRAILS,
        "self.metric != 'errors' || !has(self.quantile)",
        "quantile says nothing about errors: remove it",
        field="quantile",
    ),
    Rule(
        "guardrail-seconds-are-of-times",
        GUARDRAILS,
        "self.metric != 'errors' || !has(self.maxSeconds)",
        "maxSeconds says nothing about errors: remove it",
        field="maxSeconds",
    ),
    Rule(
        "guardrail-rate-is-of-errors",
        GUARDRAILS,
        "self.metric == 'errors' || !has(self.maxErrorRatePercent)",
        "maxErrorRatePercent says nothing about ttft, itl and latency: remove it",
        field="maxErrorRatePercent",
    ),
    Rule(
        "guardrail-limits-times",
        GUARDRAILS,
        "self.metric == 'errors' || has(self.maxIncreasePercent) || has(self.maxSeconds)"
        " || has(self.maxErrorRatePercent)",
        "it limits nothing: give maxIncreasePercent or maxSeconds",
    ),
    Rule(
        "guardrail-limits-errors",
        GUARDRAILS,
        "self.metric != 'errors' || has(self.maxIncreasePercent) || has(self.maxErrorRatePercent)"
        " || has(self.quantile) || has(self.maxSeconds)",
        "it limits nothing: give maxIncreasePercent or maxErrorRatePercent",
    ),
    Rule(
        "guardrail-increase-of-errors",
        GUARDRAILS,
        "self.metric != 'errors' || !has(self.maxIncreasePercent)"
        " || self.maxIncreasePercent >= 30.0",
        "maxIncreasePercent must be at least 30 for errors: closer to stable, identical versions"
        " would be aborted too often",
        field="maxIncreasePercent",
    ),
    Rule(
        "guardrail-risks",
        GUARDRAILS,
        "(!has(self.alpha) || (self.alpha >= 0.0001 && self.alpha <= 0.2))"
        " && (!has(self.power) || (self.power >= 0.5 && self.power <= 0.999))",
        "alpha must be 0.0001 to 0.2, power 0.5 to 0.999: beyond, no traffic is enough to decide",
    ),
    Rule(
        "gate-has-one-kind",
        _GATES,
        "has(self.webhook) != has(self.bench)",
        "set exactly one of webhook and bench",
    ),
    Rule(
        "bench-limits-something",
        f"{_GATES}.bench",
        " || ".join(f"has(self.{limit})" for limit in _BENCH_LIMITS),
        "it limits nothing: give a limit, for instance maxP99TtftMilliseconds",
    ),
    Rule(
        "pod-labels-are-not-ours",
        "spec.podTemplate.metadata",
        f"!has(self.labels) || self.labels.all(k, !k.startsWith('{names.GROUP}/')"
        " && !k.startsWith('app.kubernetes.io/'))",
        f"labels of {names.GROUP} and app.kubernetes.io are the operator's: choose another key",
        field="labels",
    ),
    Rule(
        "pod-label-keys",
        "spec.podTemplate.metadata",
        f"!has(self.labels) || self.labels.all(k, {_IS_LABEL_KEY})",
        _LABEL_KEYS,
        field="labels",
    ),
    Rule(
        "pod-annotation-keys",
        "spec.podTemplate.metadata",
        f"!has(self.annotations) || self.annotations.all(k, {_IS_LABEL_KEY})",
        _LABEL_KEYS,
        field="annotations",
    ),
)


def check_rules(document: Mapping[str, Any]) -> list[Violation]:
    """Judge an object (``metadata`` and ``spec``) by every rule that needs no old object."""
    # Handing a value to CEL costs more than most rules, so those of one path share it.
    contexts: dict[str, cel.Context] = {}
    return [
        violation
        for rule in RULES
        if not rule.is_transition
        for violation in _check_rule(rule, document, contexts)
    ]


def first_problem(path: str, value: Mapping[str, Any]) -> str | None:
    """The message of the first rule at ``path`` that ``value``, an object there, breaks."""
    context = cel.Context({"self": value})
    for rule in RULES:
        if rule.path == path and not _program(rule.cel).execute(context):
            return rule.message
    return None


def _check_rule(
    rule: Rule, document: Mapping[str, Any], contexts: dict[str, cel.Context]
) -> Iterator[Violation]:
    for location, value in _resolve(document, rule.path):
        context = contexts.get(location)
        if context is None:
            context = contexts[location] = cel.Context({"self": value})
        if not _program(rule.cel).execute(context):
            field = ".".join(part for part in (location, rule.field) if part)
            yield Violation(field, rule.message)


@cache
def _program(expression: str) -> cel.Program:
    return cel.compile(expression)


def _resolve(document: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value at ``path`` with its own location; nothing where the path is absent."""
    found = [("", document)]
    for part in path.split(".") if path else ():
        name, is_list = part.removesuffix("[]"), part.endswith("[]")
        found = [
            (f"{location}.{name}".lstrip("."), value[name])
            for location, value in found
            if isinstance(value, Mapping) and value.get(name) is not None
        ]
        if is_list:
            found = [
                (f"{location}[{index}]", item)
                for location, items in found
                for index, item in enumerate(items)
            ]
    yield from found
