"""The status of an ``LLMService`` v1alpha1: one class per YAML object.

A field's docstring is what ``kubectl explain`` prints.
"""

from typing import Annotated, Literal

from pydantic import Field

from llmservice.api.types import ApiObject, keyed_by

Message = Annotated[str, Field(max_length=4096)]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""RFC 3339, as the API server writes times."""


class Condition(ApiObject):
    """metav1.Condition."""

    type: Annotated[str, Field(max_length=64)]
    """Ready, Reconciling, Stalled, or a condition of this resource."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    reason: Annotated[str, Field(max_length=64)]
    """CamelCase word for programs."""
    message: Message
    """Sentence for people: what is wrong and what to do."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: Annotated[int, Field(ge=0)]
    """Generation of the spec this is about."""


class RevisionStatus(ApiObject):
    """One revision that has pods or could have them."""

    hash: Annotated[str, Field(max_length=32)]
    """Hash of everything that makes an engine pod; part of the children's names."""
    number: Annotated[int, Field(ge=1)]
    """Counts up with every new revision."""
    replicas: Annotated[int, Field(ge=0)]
    """Pods asked for."""
    ready_replicas: Annotated[int, Field(ge=0)]
    """Pods that serve."""


class EngineStatus(ApiObject):
    """What the newest revision runs."""

    image: Annotated[str, Field(max_length=512)]
    """Container image."""
    version: Annotated[str, Field(max_length=32)]
    """vLLM minor version whose flag table was used."""
    arguments: Annotated[tuple[Annotated[str, Field(max_length=4096)], ...], Field(max_length=256)]
    """Arguments of `vllm serve`."""


class PlanStatus(ApiObject):
    """The memory plan of the newest spec: what fits, before a device is touched."""

    outcome: Literal["Fits", "Marginal", "InfeasiblePlan", "PlanUnknown"]
    """Fits, Marginal (may not start), InfeasiblePlan (would die), PlanUnknown (nothing known)."""
    message: Message
    """The plan in a sentence, or what does not fit and the nearest changes that do."""
    tensor: Annotated[int, Field(ge=1)] | None = None
    """Tensor parallel size."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Longest request in tokens."""
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    """Most requests in one batch."""
    weights_per_device: Annotated[str, Field(max_length=32)] | None = None
    """Weights on each device."""
    kv_cache_per_device: Annotated[str, Field(max_length=32)] | None = None
    """KV cache on each device."""
    kv_cache_tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens that the KV cache of a replica holds."""
    max_concurrency: Annotated[str, Field(max_length=32)] | None = None
    """Requests of maxModelLen that a replica holds at once."""


class CapacityStatus(ApiObject):
    """What a running engine reports of its KV cache; it outranks the plan."""

    revision: Annotated[str, Field(max_length=32)]
    """Revision that reported."""
    kv_cache_tokens: Annotated[int, Field(ge=0)]
    """Tokens that the KV cache of a replica holds."""
    max_concurrency: Annotated[str, Field(max_length=32)]
    """Requests of maxModelLen that a replica holds at once."""
    deviation_percent: int | None = None
    """How far the plan was off: over 0 when the engine has more than planned."""


class AutoscalingStatus(ApiObject):
    """How many replicas the autoscaler wants."""

    replicas: Annotated[int, Field(ge=0)]
    """Replicas that the service has, apart from those that a rollout adds."""
    min_replicas: Annotated[int, Field(ge=0)]
    """At least."""
    max_replicas: Annotated[int, Field(ge=0)]
    """At most, within the budget of devices that it shares with others."""
    wanted_replicas: Annotated[int, Field(ge=0)] | None = None
    """Replicas that the autoscaler would like, where a bound keeps it from more."""
    message: Message | None = None
    """What it waits for, and who has that."""
    revision: Annotated[str, Field(max_length=32)] | None = None
    """Revision whose HorizontalPodAutoscaler decides; none while a rollout keeps the number."""


class ColdStartStatus(ApiObject):
    """How long a new pod takes until it serves: the mean of the last ones."""

    revision: Annotated[str, Field(max_length=32)]
    """Revision of the pods."""
    pod: Annotated[str, Field(max_length=253)]
    """The last pod that counted."""
    pod_created: Time | None = None
    """When it was made; older ones do not count any more."""
    schedule_seconds: Annotated[int, Field(ge=0)]
    """Until a node was found."""
    pull_seconds: Annotated[int, Field(ge=0)]
    """Until the engine's container ran: images, volumes, init containers."""
    load_seconds: Annotated[int, Field(ge=0)]
    """Until the pod was ready."""
    seconds: Annotated[int, Field(ge=0)]
    """All of it."""


class RolloutCheck(ApiObject):
    """What one guardrail says of the canary."""

    check: Annotated[str, Field(max_length=128)]
    """The limit in the words of the spec."""
    verdict: Literal["promote", "abort", "inconclusive"]
    """promote (kept), abort (broken) or inconclusive (not known yet)."""
    message: Annotated[str, Field(max_length=1024)]
    """The numbers."""


class RejectedRevision(ApiObject):
    """A revision that a rollout turned down; it is not tried again before somebody asks."""

    hash: Annotated[str, Field(max_length=32)]
    """Hash of the revision."""
    reason: Annotated[str, Field(max_length=64)]
    """CamelCase word for programs."""
    message: Annotated[str, Field(max_length=1024)]
    """Why, for people."""
    time: Time
    """When it was rejected."""


class RolloutStatus(ApiObject):
    """The canary rollout: under way, or the last one."""

    phase: Annotated[str, Field(max_length=32)]
    """Where it stands, in a word."""
    canary_revision: Annotated[str, Field(max_length=32)] | None = None
    """Revision that is being tried."""
    step: Annotated[int, Field(ge=0)]
    """Number of the step, from 1; 0 before the first."""
    steps: Annotated[int, Field(ge=0)]
    """How many steps there are."""
    weight: Annotated[int, Field(ge=0, le=100)]
    """Percent of the requests that go to the canary."""
    capacity: Literal["Surge", "Replace"] | None = None
    """Surge: canary pods come on top; Replace: stable pods make room for them."""
    since: Time
    """Since when it is in this phase."""
    step_since: Time | None = None
    """When the step began."""
    reason: Annotated[str, Field(max_length=64)]
    """Why it is in this phase: CamelCase word for programs."""
    message: Message = ""
    """Why it is in this phase, and what it waits for."""
    canary_requests: Annotated[int, Field(ge=0)] | None = None
    """Requests of the canary that were judged."""
    checks: Annotated[tuple[RolloutCheck, ...], Field(max_length=32)] = ()
    """What each guardrail says of the canary."""
    handled_action: Annotated[str, Field(max_length=128)] | None = None
    """Value of the annotation llmservice.dev/rollout-action that was carried out last."""
    rejected: Annotated[tuple[RejectedRevision, ...], Field(max_length=10)] = ()
    """Revisions that were turned down, newest first."""
    state: Annotated[str, Field(max_length=65_536)] | None = None
    """What the operator needs to go on where it stopped; its form may change."""


class LLMServiceStatus(ApiObject):
    """What is, and what is wrong. Written by the operator only."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status is about."""
    phase: Annotated[str, Field(max_length=32)] | None = None
    """One word for people: Pending, Loading, Ready, RollingOut, Degraded, Failed, Idle."""
    url: Annotated[str, Field(max_length=512)] | None = None
    """Base URL of the OpenAI API inside the cluster."""
    replicas: Annotated[int, Field(ge=0)] | None = None
    """Engine pods that exist."""
    ready_replicas: Annotated[int, Field(ge=0)] | None = None
    """Engine pods that serve."""
    terminating_replicas: Annotated[int, Field(ge=0)] | None = None
    """Engine pods that are about to go, and still hold their devices."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the engine pods, for the scale subresource."""
    stable_revision: Annotated[str, Field(max_length=32)] | None = None
    """Revision that was last fully rolled out."""
    updated_revision: Annotated[str, Field(max_length=32)] | None = None
    """Revision of the newest spec."""
    revisions: Annotated[
        tuple[RevisionStatus, ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-map-keys": ["hash"]}),
        keyed_by("hash"),
    ] = ()
    """Live revisions, newest first."""
    engine: EngineStatus | None = None
    """What the newest revision runs."""
    plan: PlanStatus | None = None
    """The memory plan of the newest spec."""
    rollout: RolloutStatus | None = None
    """The canary rollout: under way, or the last one."""
    capacity: CapacityStatus | None = None
    """What a running engine reports of its KV cache."""
    autoscaling: AutoscalingStatus | None = None
    """How many replicas the autoscaler wants."""
    cold_start: ColdStartStatus | None = None
    """How long a new pod takes until it serves."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-map-keys": ["type"]}),
        keyed_by("type"),
    ] = ()
    """Ready, Reconciling and Stalled follow kstatus; the others are this resource's own."""
