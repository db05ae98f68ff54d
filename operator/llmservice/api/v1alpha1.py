"""``LLMService`` v1alpha1: the shape of the resource, one class per YAML object.

The CRD is generated from these classes (:mod:`llmservice.api.schema`); a field's docstring is
what ``kubectl explain`` prints. A field is here only if something acts on it. Unset knobs are
not passed to vLLM, so vLLM's own hardware-aware defaults apply. Cross-field rules live in
:mod:`llmservice.api.rules`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from llmservice.api.gates import MAX_GATES, Gate
from llmservice.api.guardrails import DEFAULT_GUARDRAILS, MAX_GUARDRAILS, Guardrail
from llmservice.api.status import LLMServiceStatus
from llmservice.api.types import (
    ApiObject,
    ByteQuantity,
    DataKey,
    EnvName,
    FreeForm,
    LabelValue,
    Namespace,
    ObjectName,
    QualifiedName,
    Quantity,
    keyed_by,
)

DEFAULT_ENGINE_IMAGE = "vllm/vllm-openai:v0.33.0"
CPU_RESOURCE = "cpu"
WORD = "^[!-,.-~][!-~]*$"
"""Printable ASCII without spaces, not starting like a flag."""
MAX_TOKENS = 1_000_000_000
MAX_PARALLEL = 1024
MAX_SECONDS = 2_592_000
"""Thirty days."""

# --- spec.model ---------------------------------------------------------------------------------


class SecretKeyRef(ApiObject):
    """One key of a Secret in the service's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: DataKey
    """Key in the Secret's data."""


class HubSource(ApiObject):
    """The model is downloaded from the Hugging Face hub when the engine starts."""

    token_secret_ref: SecretKeyRef | None = None
    """Secret key that holds the access token, for gated or private models. It reaches the engine
    as the environment variable HF_TOKEN; the operator never reads it."""


class PvcSource(ApiObject):
    """The model lies in a PersistentVolumeClaim, mounted read-only."""

    claim_name: ObjectName
    """PersistentVolumeClaim in the service's namespace."""
    path: Annotated[str, Field(max_length=512, pattern=r"^[^/].*$")] | None = None
    """Folder of the model inside the volume, relative to its root. Default: the root."""


class ModelSource(ApiObject):
    """Where the model's files come from. Default: the hub, or the image for an absolute path."""

    hub: HubSource | None = None
    """The Hugging Face hub."""
    pvc: PvcSource | None = None
    """A PersistentVolumeClaim."""


class ModelSpec(ApiObject):
    """The model and the name it is served under."""

    id: Annotated[str, Field(min_length=1, max_length=512, pattern=WORD)]
    """Hub id (for instance mistralai/Mistral-7B-Instruct-v0.2), or a path in the image."""
    revision: (
        Annotated[
            str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")
        ]
        | None
    ) = None
    """Commit, tag or branch of the hub repository. Pin a commit: a branch can change under you."""
    served_name: Annotated[str, Field(min_length=1, max_length=256, pattern=WORD)] | None = None
    """Name that clients put into the request's `model` field. Default: the resource's name.
    Immutable: clients depend on it."""
    source: ModelSource | None = None
    """Where the files come from."""
    architecture: FreeForm | None = None
    """Facts of the model's config.json under their own names (num_hidden_layers, hidden_size, ...),
    for a model that the operator's catalog lacks. The memory plan is made from them."""


# --- spec.engine --------------------------------------------------------------------------------


class Parallelism(ApiObject):
    """How one replica is spread over accelerators; a replica uses tensor x pipeline x data."""

    tensor: Annotated[int, Field(ge=1, le=MAX_PARALLEL)] | None = None
    """Ranks that share each layer (--tensor-parallel-size); must divide the attention heads.
    Default: what accelerator.count gives, else the smallest that the memory plan finds to fit."""
    pipeline: Annotated[int, Field(ge=1, le=MAX_PARALLEL)] = 1
    """Stages that share the layers in sequence (--pipeline-parallel-size)."""
    data: Annotated[int, Field(ge=1, le=MAX_PARALLEL)] = 1
    """Engine copies inside one replica (--data-parallel-size), for mixture-of-experts models;
    dense models scale with spec.replicas."""
    expert: bool = False
    """Spread experts instead of slicing them (--enable-expert-parallel), for mixture-of-experts
    models."""


class SpeculativeSpec(ApiObject):
    """Speculative decoding (--speculative-config): a draft proposes, the model checks."""

    method: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9_]+$")]
    """How tokens are proposed, for instance draft_model, eagle3, mtp, ngram."""
    model: Annotated[str, Field(min_length=1, max_length=512, pattern=WORD)] | None = None
    """Draft model: hub id, or path in the image."""
    num_speculative_tokens: Annotated[int, Field(ge=1, le=64)]
    """Tokens proposed per step, 1 to 64."""
    draft_tensor_parallel_size: Annotated[int, Field(ge=1, le=MAX_PARALLEL)] | None = None
    """Ranks that share each layer of the draft."""
    prompt_lookup_max: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Longest prompt part that ngram looks up."""


class KeySelector(ApiObject):
    """One key of a Secret or a ConfigMap."""

    name: ObjectName
    """Name of the object."""
    key: DataKey
    """Key in its data."""
    optional: bool | None = None
    """Start without the variable when the object or the key is missing."""


class EnvSource(ApiObject):
    """Where a variable's value comes from; exactly one."""

    secret_key_ref: KeySelector | None = None
    """A key of a Secret."""
    config_map_key_ref: KeySelector | None = None
    """A key of a ConfigMap."""


class EnvVar(ApiObject):
    """One environment variable of the engine container."""

    name: EnvName
    """Name of the variable."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Literal value."""
    value_from: EnvSource | None = None
    """Reference to a value."""


class Resources(ApiObject):
    """Host resources of the engine container; accelerators go into spec.accelerator."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """What the scheduler reserves, for instance {cpu: 4, memory: 16Gi}."""
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """What the container may use at most; over its memory limit it is killed."""


class EngineSpec(ApiObject):
    """vLLM: its image and its knobs.

    Knobs carry vLLM's own flag names in camel case; an unset knob is not passed, so vLLM's own
    default for that version and hardware applies.
    """

    image: Annotated[str, Field(min_length=1, max_length=512, pattern=WORD)] = DEFAULT_ENGINE_IMAGE
    """Container image; its entry point must be `vllm serve`, as in vllm/vllm-openai."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the kubelet pulls the image. Default: Kubernetes' own (Always for the tag latest)."""
    version: Annotated[str, Field(max_length=32, pattern=r"^[0-9]+\.[0-9]+(\.[0-9]+)?$")] | None = (
        None
    )
    """vLLM version in the image, for instance 0.33.0. Default: read from the image's tag; needed
    when the tag does not tell."""
    profile: Literal["Throughput", "Balanced", "Latency"] = "Balanced"
    """What unset knobs are tuned for: most tokens per second, vLLM's own balance, or fast answers
    to few requests."""
    plan: Literal["Enforce", "Advisory"] = "Enforce"
    """What an infeasible memory plan does: Enforce starts no pod that would load its weights and
    die, Advisory only says so."""
    parallelism: Parallelism | None = None
    """How one replica is spread over accelerators."""
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] | None = None
    """Type of weights and activations (--dtype)."""
    load_format: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9_]+$")] | None
    ) = None
    """How weights are loaded (--load-format), for instance auto, safetensors, runai_streamer."""
    quantization: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9_-]+$")] | None
    ) = None
    """Quantization method (--quantization). Normally unset: it is read from the checkpoint."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the accelerator's memory for vLLM (--gpu-memory-utilization), over 0 up to 1."""
    kv_cache_memory_bytes: ByteQuantity | None = None
    """Memory for the KV cache per accelerator (--kv-cache-memory-bytes), for instance 16Gi;
    overrides gpuMemoryUtilization. Set it on CPU."""
    kv_cache_dtype: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9_]+$")] | None
    ) = None
    """Type of the KV cache (--kv-cache-dtype), for instance auto or fp8."""
    kv_offloading_size: Annotated[float, Field(ge=0, le=65536)] | None = None
    """Host memory in GiB to which KV blocks are offloaded (--kv-offloading-size)."""
    max_model_len: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    """Longest request in tokens, prompt and answer together (--max-model-len)."""
    max_num_seqs: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Most requests in one batch (--max-num-seqs)."""
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    """Most tokens in one step (--max-num-batched-tokens); at least maxNumSeqs."""
    max_num_queued_reqs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests in flight above which the engine answers 503 (--max-num-queued-reqs)."""
    block_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Tokens per KV block (--block-size). Normally unset: the attention backend picks."""
    prefix_caching: bool | None = None
    """Reuse the KV blocks of equal prompt prefixes (--enable-prefix-caching)."""
    chunked_prefill: bool | None = None
    """Split long prompts over steps (--enable-chunked-prefill)."""
    enforce_eager: bool | None = None
    """Skip CUDA graphs and compilation: faster start, slower tokens (--enforce-eager)."""
    performance_mode: Literal["balanced", "interactivity", "throughput"] | None = None
    """What vLLM tunes its unset knobs for (--performance-mode)."""
    scheduling_policy: Literal["fcfs", "priority"] | None = None
    """Order of waiting requests (--scheduling-policy)."""
    tool_call_parser: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")] | None
    ) = None
    """Parser of tool calls (--tool-call-parser with --enable-auto-tool-choice)."""
    speculative: SpeculativeSpec | None = None
    """Speculative decoding (--speculative-config)."""
    reasoning_parser: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")] | None
    ) = None
    """Parser of reasoning output (--reasoning-parser)."""
    extra_args: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...], Field(max_length=64)
    ] = ()
    """Further `vllm serve` arguments, checked against the flags of the engine's version. A flag
    that a field above owns is refused."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-map-keys": ["name"]}),
        keyed_by("name"),
    ] = ()
    """Environment variables of the engine container."""
    resources: Resources | None = None
    """CPU and memory of the engine container."""
    startup_timeout_seconds: Annotated[int, Field(ge=30, le=86_400)] = 1800
    """Time from container start to a loaded model (image pull not counted), 30 to 86400."""
    drain_timeout_seconds: Annotated[int, Field(ge=1, le=7200)] = 120
    """Time that running requests get to finish when a pod is stopped, 1 to 7200."""


# --- spec.* -------------------------------------------------------------------------------------


class AcceleratorSpec(ApiObject):
    """The device one replica runs on."""

    resource: QualifiedName = "nvidia.com/gpu"
    """Resource name of the device plugin, for instance nvidia.com/gpu or amd.com/gpu; `cpu` runs
    the engine without a device."""
    count: Annotated[int, Field(ge=1, le=MAX_PARALLEL)] | None = None
    """Devices per replica. Default: tensor x pipeline x data of spec.engine.parallelism."""
    product: Annotated[LabelValue, Field(min_length=1)] | None = None
    """Value of the node label nvidia.com/gpu.product, for instance NVIDIA-A10G; pods go only
    there."""
    memory: ByteQuantity | None = None
    """Memory of one device as nvidia-smi reports it, for instance 24Gi. Needed for the memory plan
    when product is unset, or not known to the operator."""


class RolloutStep(ApiObject):
    """One share of the requests for the canary, held until the guardrails let it go on."""

    weight: Annotated[int, Field(ge=1, le=99)] | None = None
    """Percent of the requests, 1 to 99; more than in the step before. Default: what `replicas` are
    of all pods, so that a canary pod is as busy as a stable one."""
    replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Canary pods, 1 to spec.replicas. Default: its share of spec.replicas, rounded up."""
    duration_seconds: Annotated[int, Field(ge=0, le=MAX_SECONDS)] = 0
    """At least so long, however good the evidence; 0 to 2592000 (30 days)."""
    pause: bool = False
    """After the step wait for `llmservice resume`."""


DEFAULT_STEPS = (RolloutStep(weight=5), RolloutStep(weight=25), RolloutStep(weight=50))


class WarmUpSpec(ApiObject):
    """Requests that a new pod answers before it gets those of clients."""

    prompt: Annotated[str, Field(max_length=8192)] = "Hello"
    """Text that is completed, for instance the beginning that all your prompts share."""
    requests: Annotated[int, Field(ge=0, le=100)] = 3
    """How many, 0 to 100; 0 for none."""


class RolloutSpec(ApiObject):
    """How a changed engine replaces the running one."""

    strategy: Literal["Canary", "RollingUpdate", "Recreate"] = "RollingUpdate"
    """Canary moves requests over step by step, and back when a guardrail breaks; RollingUpdate
    starts new pods while old ones serve; Recreate stops all old pods first."""
    capacity: Literal["Auto", "Surge", "Replace"] = "Auto"
    """Surge adds a pod before it removes one and needs a spare device; Replace removes first.
    Auto surges, and replaces when the scheduler finds no room."""
    steps: Annotated[tuple[RolloutStep, ...], Field(max_length=20)] = DEFAULT_STEPS
    """Shares that a canary goes through. Default: 5, 25 and 50 percent."""
    guardrails: Annotated[tuple[Guardrail, ...], Field(max_length=MAX_GUARDRAILS)] = (
        DEFAULT_GUARDRAILS
    )
    """What a canary must keep to. Default: p95 ttft at most 25 percent worse than stable; failed
    requests at most 50 percent more than stable's, and 5 percent. An empty list: only durations
    and pauses hold a step."""
    window_seconds: Annotated[int, Field(ge=5, le=3600)] = 30
    """How often the guardrails are looked at, 5 to 3600."""
    settle_seconds: Annotated[int, Field(ge=0, le=3600)] = 15
    """After a change of weight nothing is judged for so long, 0 to 3600."""
    bake_seconds: Annotated[int, Field(ge=0, le=MAX_SECONDS)] = 60
    """With all requests on the new revision, the old one stays so long, 0 to 2592000."""
    provision_timeout_seconds: Annotated[int, Field(ge=60, le=604_800)] | None = None
    """A canary whose pods are not ready after so long is given up, 60 to 604800. Default:
    engine.startupTimeoutSeconds and 600 more."""
    step_timeout_seconds: Annotated[int, Field(ge=60, le=MAX_SECONDS)] | None = None
    """A step that is undecided after so long ends as onTimeout says, 60 to 2592000. Default:
    never."""
    on_timeout: Literal["Hold", "Abort"] = "Hold"
    """Hold keeps the weight and waits for evidence or a person; Abort takes the requests back."""
    mode: Literal["Enforce", "Observe"] = "Enforce"
    """Enforce aborts when a guardrail breaks; Observe only reports it, and goes on by
    durationSeconds and pause."""
    warm_up: WarmUpSpec = WarmUpSpec()
    """Requests that a new pod answers before it gets those of clients."""
    gates: Annotated[
        tuple[Gate, ...],
        Field(max_length=MAX_GATES, json_schema_extra={"x-kubernetes-list-map-keys": ["name"]}),
        keyed_by("name"),
    ] = ()
    """Who has to agree before a canary meets a client, or before it becomes stable; asked one after
    another. Default: nobody."""


class AutoscalingSpec(ApiObject):
    """How many replicas there are, by what the engines have to do.

    Each live revision gets a HorizontalPodAutoscaler with two metrics of each pod; the greater
    proposal counts.
    """

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Replicas at least, 0 to 1000. With 0 there are none while nobody asks, and the router holds
    the first requests until an engine is ready; needs traffic.router Embedded."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Replicas at most, 1 to 1000. Pods that a rollout adds for a while come on top, as those of a
    Deployment's maxSurge do."""
    waiting_per_replica: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Waiting requests that each replica may have (vllm:num_requests_waiting). Default: half of
    what a replica should carry."""
    load_target: Annotated[float, Field(gt=0, le=1)] = 0.7
    """What a replica should carry, as a share of the engine's maxNumSeqs; over 0 up to 1."""
    idle_seconds: Annotated[int, Field(ge=30, le=604_800)] = 900
    """With minReplicas 0: so long nobody asks before all replicas go, 30 to 604800."""
    cold_start_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    """From the decision for one more replica to its first answer, 1 to 86400. Default: as measured
    on the pods of this service, 180 before there are any."""
    provider: Literal["Builtin", "KEDA", "PrometheusAdapter"] = "Builtin"
    """Who brings the metrics to the autoscaler. Builtin: this operator's metrics server. KEDA: a
    ScaledObject that asks Prometheus. PrometheusAdapter: its rules, as in the documentation."""
    prometheus_url: Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s]+$")] | None = (
        None
    )
    """Address of Prometheus, for provider KEDA."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Who goes first where a budget of devices is shared: the greater number, -1000 to 1000."""


class GatewayRef(ApiObject):
    """A Gateway (gateway.networking.k8s.io) that clients come in by."""

    name: ObjectName
    """Name of the Gateway."""
    namespace: Namespace | None = None
    """Its namespace. Default: the service's."""
    section_name: ObjectName | None = None
    """Listener of the Gateway. Default: all."""


class SessionAffinity(ApiObject):
    """What tells that requests belong together, so that they stay with one revision."""

    header: Annotated[str, Field(max_length=100, pattern=r"^[a-z0-9][a-z0-9-]*$")] | None = None
    """Request header, in lower case, for instance x-session-id."""
    cookie: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9_-]+$")] | None = None
    """Cookie that your application sets."""


Router = Literal["Embedded", "Gateway", "None"]


class QueueSpec(ApiObject):
    """Where requests wait that no engine has room for yet.

    In the router they can still go to any engine; inside an engine they wait for that one only.
    """

    max_per_engine: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Requests that one engine is handed at once, 1 to 65536. Default: its maxNumSeqs and a tenth
    more, so that it never runs dry."""
    max_waiting: Annotated[int, Field(ge=1, le=100_000)] = 1024
    """Requests that wait in one router pod, 1 to 100000; more are refused with 503 and
    Retry-After."""
    max_wait_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """How long a request may expect to wait for a busy engine when it comes, 1 to 86400: by those
    before it and how fast they end. One that would wait for longer is refused at once with 503
    and Retry-After."""
    hold_seconds: Annotated[int, Field(ge=0, le=3600)] | None = None
    """How long a request waits while no engine is ready, 0 to 3600; then it gets 503 and
    Retry-After. Default: 600 where autoscaling.minReplicas is 0, else 0."""


class TrafficSpec(ApiObject):
    """What stands between the clients and the engines."""

    router: Router | None = None
    """Embedded is a small Envoy of this service; Gateway sets weights in an HTTPRoute; None lets
    clients reach the pods directly. Default: Embedded for rollout.strategy Canary, else None."""
    router_replicas: Annotated[int, Field(ge=1, le=16)] = 2
    """Pods of the embedded router, 1 to 16."""
    gateway_ref: GatewayRef | None = None
    """The Gateway that the HTTPRoute belongs to. For router Gateway."""
    route_name: ObjectName | None = None
    """An HTTPRoute of yours whose weights are set. For router Gateway. Default: one is made."""
    session_affinity: SessionAffinity | None = None
    """What keeps a session on one revision while weights rise. For router Embedded."""
    track_header: bool = False
    """Whether clients may choose a revision by the header x-llm-track. For router Embedded."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=256 << 20)] = 8 << 20
    """Longest request body, 1024 to 268435456; a longer one gets 413. For router Embedded."""
    queue: QueueSpec = QueueSpec()
    """Where requests wait that no engine has room for yet. For router Embedded."""


class ServiceSpec(ApiObject):
    """The Kubernetes Service that clients call."""

    port: Annotated[int, Field(ge=1, le=65535)] = 80
    """Port of the Service."""


class PodMetadata(ApiObject):
    """Labels and annotations of the engine pods."""

    labels: Annotated[dict[str, LabelValue], Field(max_length=64)] | None = None
    """Labels added to the pods; keys of llmservice.dev and app.kubernetes.io are the operator's."""
    annotations: (
        Annotated[dict[str, Annotated[str, Field(max_length=8192)]], Field(max_length=64)] | None
    ) = None
    """Annotations added to the pods."""


class PodTemplate(ApiObject):
    """Overlay on the engine pod, merged like `kubectl patch` would (lists by their keys)."""

    metadata: PodMetadata | None = None
    """Labels and annotations of the engine pods."""
    spec: FreeForm | None = None
    """Pod spec fields, for instance tolerations, affinity, volumes, initContainers. The engine
    container is called `engine`; its image, command and args belong to spec.engine."""


class LLMServiceSpec(ApiObject):
    """What should run."""

    model: ModelSpec
    """The model and the name it is served under."""
    engine: EngineSpec = EngineSpec()
    """vLLM: its image and its knobs."""
    accelerator: AcceleratorSpec
    """The device one replica runs on; `{resource: cpu}` for none."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Engine pods, 0 to 1000. Ignored while autoscaling is set."""
    autoscaling: AutoscalingSpec | None = None
    """How many replicas there are, by what the engines have to do. Default: `replicas`."""
    rollout: RolloutSpec = RolloutSpec()
    """How a changed engine replaces the running one."""
    traffic: TrafficSpec = TrafficSpec()
    """What stands between the clients and the engines."""
    service: ServiceSpec = ServiceSpec()
    """The Kubernetes Service that clients call."""
    pod_template: PodTemplate | None = None
    """Overlay on the engine pod, merged like `kubectl patch` would (lists by their keys)."""


class LLMService(ApiObject):
    """A model on an accelerator, served as a tuned, safely updatable OpenAI endpoint by vLLM."""

    spec: LLMServiceSpec
    """What should run."""
    status: LLMServiceStatus | None = None
    """What is, and what is wrong. Written by the operator only."""


def parse_spec(spec: dict[str, Any]) -> LLMServiceSpec:
    """Parse a spec as read from the API server; unknown fields are left alone.

    Raises:
        pydantic.ValidationError: a field is missing or of the wrong type.
    """
    return LLMServiceSpec.model_validate(spec, by_alias=True, by_name=False)


def router_of(spec: LLMServiceSpec) -> Router:
    """What stands before the engines, given or by default."""
    return spec.traffic.router or ("Embedded" if spec.rollout.strategy == "Canary" else "None")
