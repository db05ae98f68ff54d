"""What a failing engine writes, and the cause and fix an on-call engineer reads."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.failures import (
    ContainerState,
    Failure,
    FailureReason,
    diagnose_container,
    diagnose_log,
    diagnose_scheduling,
    last_meaningful_line,
    redacted,
)

ROOT = Path(__file__).parents[3]
LOGS = Path(__file__).parent / "logs"
TABLE = ROOT / "operator/llmservice/data/failures.toml"


def log(name):
    """A real log; see logs/README.md."""
    return (LOGS / f"{name}.txt").read_text("utf-8")


def a_state(waiting=None, said=None, ended=None, code=None, last=None, *, restarts=0, ready=False):
    """A container's state with only what matters."""
    return ContainerState("engine", ready, restarts, waiting, said, ended, code, last)


def crashed(code=1, *, restarts=1, last=None):
    """A container in CrashLoopBackOff."""
    return a_state("CrashLoopBackOff", "back-off", "Error", code, last, restarts=restarts)


def because(failure):
    """Reason of a failure that must exist."""
    assert failure is not None
    return failure.reason


# --- real logs ---

REAL = {
    "unknown-flag": ("InvalidEngineArgs", "--swap-space 4", "spec.engine.extraArgs"),
    "invalid-choice": ("InvalidEngineArgs", "--kv-cache-dtype: invalid choice: 'fp9'", "extraArgs"),
    "invalid-value": ("InvalidEngineArgs", "invalid int value: 'many'", "For --max-num-seqs"),
    "unknown-json-key": ("InvalidEngineArgs", "nope Unexpected keyword argument", "spec.engine"),
    "missing-companion-flag": ("InvalidEngineArgs", "requires --tool-call-parser", "spec.engine"),
    "unknown-tool-parser": ("InvalidEngineArgs", "named nope", "spec.engine.toolCallParser"),
    "chat-template-missing": ("InvalidEngineArgs", "/etc/none.jinja", "spec.podTemplate"),
    "vllm-port-from-service-links": (
        "ContainerConfigInvalid",
        "VLLM_PORT=tcp://10.96.0.7:8000",
        "enableServiceLinks: false",
    ),
    "kv-cache-too-small": (
        "KVCacheTooSmall",
        "896 tokens would fit",
        "Set spec.engine.maxModelLen to at most 896",
    ),
    "kv-cache-too-big": ("InvalidEngineConfig", "900.0 GiB", "spec.engine.kvCacheMemoryBytes"),
    "hub-gated": ("ModelAccessDenied", "gated", "spec.model.source.hub.tokenSecretRef"),
    "hub-gated-without-token": ("ModelAccessDenied", "gated", "tokenSecretRef"),
    "hub-wrong-token": ("ModelAccessDenied", "401", "spec.model.source.hub.tokenSecretRef"),
    "hub-no-such-model": ("ModelNotFound", "no such model", "spec.model.id"),
    "hub-no-such-model-without-token": ("ModelNotFound", "hides it", "tokenSecretRef"),
    "hub-no-such-revision": ("ModelNotFound", "revision", "spec.model.revision"),
    "hub-offline": ("ModelNotFound", "HF_HUB_OFFLINE", "spec.engine.env"),
    "hub-unreachable": ("ModelHubUnreachable", "cannot be reached", "spec.engine.env"),
    "model-path-missing": ("ModelNotFound", "/models/nope", "spec.model.id"),
    "model-path-missing-offline": ("ModelNotFound", "/models/nope", "spec.model.source.pvc.path"),
    "model-path-empty": ("ModelNotFound", "/models/empty", "spec.model.source.pvc.path"),
    "weights-missing": ("MissingWeights", "/models/tiny", "spec.engine.loadFormat"),
    "weights-are-lfs-pointer": ("MissingWeights", "header too large", "Git LFS pointer"),
    "port-taken": ("PortConflict", "port", "spec.podTemplate"),
    "tensor-does-not-divide-heads": (
        "InvalidEngineConfig",
        "4 attention heads",
        "spec.engine.parallelism.tensor to a divisor of 4",
    ),
    "max-model-len-too-long": (
        "InvalidEngineConfig",
        "at most 4096 tokens and 8192",
        "spec.engine.maxModelLen to at most 4096",
    ),
    "fewer-tokens-than-sequences": (
        "InvalidEngineConfig",
        "8 tokens per step cannot serve 16",
        "spec.engine.maxNumBatchedTokens",
    ),
    "unknown-quantization": ("InvalidEngineConfig", "named fp9", "spec.engine.quantization"),
    "unknown-architecture": ("InvalidEngineConfig", "FrobForCausalLM", "spec.engine.image"),
    "remote-code": ("InvalidEngineConfig", "code of its own", "--trust-remote-code"),
    "experts-of-a-dense-model": (
        "InvalidEngineConfig",
        "no experts",
        "spec.engine.parallelism.expert",
    ),
    "utilization-above-one": (
        "InvalidEngineConfig",
        "CacheConfig gpu_memory_utilization): Input should be less than or equal to 1",
        "spec.engine",
    ),
    "unknown-speculative-method": (
        "InvalidEngineConfig",
        "SpeculativeConfig method): Input should be 'ngram'",
        "spec.engine.extraArgs",
    ),
    "engine-core-killed": ("EngineDied", "core process died", "log of the previous container"),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_log_names_cause_and_fix(name):
    """What vLLM 0.32 wrote when it failed is recognised, with the field to change."""
    reason, says, fix = REAL[name]
    failure = diagnose_log(log(name))

    assert failure is not None
    assert reason == failure.reason
    assert says in failure.message
    assert fix in failure.fix


def test_every_committed_log_is_expected():
    """No log lies around untested."""
    expected = set(REAL) | {"killed-while-starting"}

    assert expected == {path.stem for path in LOGS.glob("*.txt")}


# --- failures that need a GPU: worded as the source of vLLM 0.33 does, no GPU was used ---

PREFIX = "(EngineCore pid=201) ERROR 11-21 12:39:40 [core.py:1510] "
OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
    " capacity of 21.98 GiB of which 1.10 GiB is free."
)
FROM_SOURCE = [
    (  # v1/core/kv_cache_planning.py
        (
            "ValueError: To serve at least one request with the model's max seq len (32768),"
            " (4.00 GiB"
            " KV cache is needed, which is larger than the available KV cache memory (1.50"
            " GiB). Based"
            " on the available memory, the estimated maximum model length is 12288. Try increasing"
        ),
        "KVCacheTooSmall",
        "32768 needs 4.00 GiB of KV cache and 1.50 GiB is free for it; 12288 tokens would fit",
        "spec.engine.maxModelLen to at most 12288",
    ),
    (  # the same where not even one token fits
        (
            "ValueError: To serve at least one request with the model's max seq len (32768),"
            " (4.00 GiB"
            " KV cache is needed, which is larger than the available KV cache memory (0.01"
            " GiB). Try"
            " increasing `gpu_memory_utilization`"
        ),
        "KVCacheTooSmall",
        "32768 needs 4.00 GiB of KV cache and 0.01 GiB is free for it.",
        "Lower spec.engine.maxModelLen",
    ),
    (  # v1/core/kv_cache_planning.py
        "ValueError: No available memory for the cache blocks. Try increasing",
        "WeightsDoNotFit",
        "nothing is left for the KV cache",
        "spec.engine.gpuMemoryUtilization",
    ),
    (  # v1/worker/gpu_model_runner.py
        f"Failed to load model - not enough GPU memory. Try lowering (original error: {OOM})",
        "WeightsDoNotFit",
        "while the weights were loaded",
        "spec.engine.parallelism.tensor",
    ),
    (  # v1/worker/utils.py
        (
            "ValueError: Free memory on device cuda:0 (12.10/79.25 GiB) on startup is less"
            " than desired"
            " GPU memory utilization (0.92, 72.91 GiB). Decrease GPU memory utilization or reduce"
        ),
        "GPUBusy",
        "only 12.10 of 79.25 GiB of the device are free at start and the engine is to use 72.91",
        "spec.engine.gpuMemoryUtilization",
    ),
    (  # v1/worker/gpu_worker.py
        (
            "AssertionError: Error in memory profiling. Initial free memory 70.1 GiB, current free"
            " memory 72.3 GiB. This happens when other processes"
        ),
        "GPUBusy",
        "something else uses the device",
        "time-slicing",
    ),
    (  # torch, while profiling
        OOM,
        "CUDAOutOfMemory",
        "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 21.98 GiB",
        "spec.engine.maxNumBatchedTokens",
    ),
    (  # v1/worker/gpu_model_runner.py
        (
            f"{OOM}\n{PREFIX}\n{PREFIX}RuntimeError: CUDA out of memory occurred when warming up"
            " sampler with 1024 dummy requests. Please try lowering `max_num_seqs`"
        ),
        "CUDAOutOfMemory",
        "warmed its sampler up with 1024 sequences",
        "spec.engine.maxNumSeqs below 1024",
    ),
    (  # config/parallel.py
        (
            "  Value error, World size (8) is larger than the number of available GPUs (4) in this"
            " node. If this is intentional and you are using:"
        ),
        "NotEnoughGPUs",
        "needs 8 devices (tensor x pipeline) and the pod has 4",
        "spec.accelerator.count to 8",
    ),
    (  # config/device.py
        "RuntimeError: Failed to infer device type, please set the environment variable",
        "NoAccelerator",
        "no device",
        "spec.accelerator.resource",
    ),
    (  # torch
        (
            "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the"
            " device"
        ),
        "NoAccelerator",
        "does not fit the device",
        "spec.accelerator.product",
    ),
    (  # platforms/cuda.py
        (
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at"
            " least 8.0."
            " Your Tesla T4 GPU has compute capability 7.5."
        ),
        "InvalidEngineConfig",
        "8.0",
        "spec.engine.dtype: half",
    ),
    (  # v1/engine/core_client.py
        (
            "TimeoutError: Timed out waiting for engine core processes to start. This is often"
            " caused"
            " by slow weight loading for large models. Waited 600s (configured by"
        ),
        "StartupTimeout",
        "600",
        "spec.engine.startupTimeoutSeconds",
    ),
    (  # v1/engine/core.py, while serving
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        "EngineDied",
        "illegal memory access",
        "cordon the node",
    ),
    (  # Python, while downloading
        "OSError: [Errno 28] No space left on device",
        "DiskFull",
        "no space",
        "ephemeral-storage",
    ),
]


@pytest.mark.parametrize(("text", "reason", "says", "fix"), FROM_SOURCE)
def test_a_message_of_the_source_names_cause_and_fix(text, reason, says, fix):
    """Messages only a GPU engine writes are recognised before the wrapper that follows them."""
    failure = diagnose_log(
        f"INFO 11-21 12:39:31 [a.py:1] loading\n{PREFIX}{text}\nRuntimeError: Engine core"
        " initialization failed. See root cause above. Failed core proc(s): {}\n"
    )

    assert failure is not None
    assert reason == failure.reason
    assert says.lower() in failure.message.lower()
    assert fix in failure.fix


# --- how logs are read ---


def test_the_first_cause_from_the_top_wins():
    """What follows the first error is its consequence."""
    text = f"{PREFIX}ValueError: No available memory for the cache blocks.\n{PREFIX}{OOM}\n"

    assert FailureReason.WeightsDoNotFit == because(diagnose_log(text))
    assert FailureReason.CUDAOutOfMemory == because(
        diagnose_log("\n".join(reversed(text.splitlines())))
    )


def test_calm_lines_are_no_errors():
    """vLLM warns of errors that did not happen and prints budgets that sound like failures."""
    calm = (
        "(APIServer pid=1) WARNING 11-21 12:39:31 [a.py:1] errors like `OSError: [Errno 98] Address"
        " already in use`\n"
        "(Worker pid=2) INFO 11-21 12:39:31 [a.py:1] Free memory on device (12.10/79.25 GiB) on"
        " startup. Desired GPU memory utilization is (0.92, 72.91 GiB).\n"
        "INFO:     Started server process [1]\n"
        '  File "/opt/venv/x.py", line 3, in load\n'
        "    raise torch.OutOfMemoryError: CUDA out of memory\n"
    )

    assert None is diagnose_log(calm)
    assert "" == last_meaningful_line(calm)


def test_an_engine_that_starts_well_has_no_failure():
    """The log of a start that was cut short names no cause."""
    assert None is diagnose_log(log("killed-while-starting"))


def test_messages_are_one_bounded_line_without_secrets():
    """A condition message must not carry a token, whatever vLLM printed."""
    token = "hf_" + "a1" * 17
    text = (
        f"vllm: error: unrecognized arguments: --hf-token {token} --api-key topsecret {'x' * 9000}"
    )
    failure = diagnose_log(text)

    assert failure is not None
    assert token not in failure.message
    assert "topsecret" not in failure.message
    assert len(failure.message.encode()) <= 1024


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("token hf_abcdefghijklmnop", "abcdefghijklmnop"),
        ("Authorization: Bearer abc.def", "abc.def"),
        ("https://bob:pw1234@hub.example/x", "pw1234"),
        ("'api_key': ['k1']", "k1"),
        ("OPENAI_API_KEY=sk-abcdefgh1234", "abcdefgh1234"),
        ("password=hunter2", "hunter2"),
    ],
)
def test_secrets_are_taken_out(text, gone):
    """The usual shapes of a secret do not survive."""
    assert gone not in redacted(text)


@given(st.text(), st.lists(st.sampled_from([OOM, PREFIX, "Traceback", "(", "out of memory\n"])))
def test_any_log_gets_an_answer(text, parts):
    """No log crashes the reading or leaves more than one bounded line."""
    found = diagnose_container(crashed(), text + "".join(parts))

    assert found is not None
    for sentence in (found.message, found.fix):
        assert 0 < len(sentence.encode()) <= 1024
        assert "\n" not in sentence


@pytest.mark.timeout(10)
def test_a_hostile_log_is_read_quickly():
    """A megabyte made of beginnings of patterns does not stall the operator."""
    for part in ("CUDA out of memory ", "(pid=1", "://", "Error: ", "a.", "hf_", "error: a"):
        diagnose_log(part * (1_000_000 // len(part)))
        last_meaningful_line(part * (1_000_000 // len(part)))


# --- container states ---


def test_a_container_that_starts_for_the_first_time_has_no_failure():
    """Loading a model takes minutes; that is not a failure."""
    assert None is diagnose_container(a_state(), None)
    assert None is diagnose_container(a_state("ContainerCreating"), None)
    assert None is diagnose_container(a_state("PodInitializing"), None)
    assert None is diagnose_container(crashed().__class__("e", True, 9, *[None] * 5), "x")


PULLS = [
    ("ImagePullBackOff", 'Back-off pulling image "x:y": ErrImagePull: not found', "no such", False),
    ("ErrImagePull", "failed to resolve: 401 Unauthorized", "refuses", False),
    ("ErrImagePull", "pull access denied, repository does not exist", "refuses", False),
    ("ErrImagePull", "dial tcp: lookup registry.example: no such host", "cannot be pulled", True),
    ("ErrImagePull", "toomanyrequests: rate limit", "cannot be pulled", True),
    (
        "ErrImageNeverPull",
        'Container image "x" is not present with pull policy of Never',
        "",
        False,
    ),
    ("InvalidImageName", "couldn't parse image name", "no such", False),
    ("ErrImagePull", "no match for platform in manifest", "processor", False),
    ("ImagePullBackOff", None, "ImagePullBackOff", True),
]


@pytest.mark.parametrize(("reason", "said", "says", "transient"), PULLS)
def test_an_image_that_cannot_be_pulled(reason, said, says, transient):
    """Wrong names and missing rights need a person; a network may come back."""
    failure = diagnose_container(a_state(reason, said), None)

    assert FailureReason.ImagePullFailed == because(failure)
    assert says in failure.message
    assert transient is failure.transient


CREATION = [
    ('secret "hf" not found', "SecretMissing", "The Secret hf does not exist.", "tokenSecretRef"),
    (
        "couldn't find key token in Secret default/hf",
        "SecretMissing",
        "The Secret hf has no key token.",
        "spec.model.source.hub.tokenSecretRef",
    ),
    ('configmap "c" not found', "ContainerConfigInvalid", "ConfigMap c", "spec.engine.env"),
    (
        "container has runAsNonRoot and image will run as root",
        "ContainerConfigInvalid",
        "runs as root",
        "runAsUser",
    ),
    (
        'runc create failed: exec: "vllm": executable file not found in $PATH',
        "ContainerConfigInvalid",
        "does not contain the command",
        "spec.engine.image",
    ),
    (
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0",
        "NoAccelerator",
        "cannot give the container its device",
        "driver",
    ),
    (
        'failed to mkdir "/var/models": read-only file system',
        "VolumeMountFailed",
        "cannot be mounted",
        "spec.model.source.pvc",
    ),
    ("something new", "ContainerConfigInvalid", "something new", "spec.podTemplate"),
]


@pytest.mark.parametrize(("said", "reason", "says", "fix"), CREATION)
@pytest.mark.parametrize("waiting", ["CreateContainerConfigError", "RunContainerError"])
def test_a_container_that_cannot_be_created(waiting, said, reason, says, fix):
    """The kubelet's words become a cause and the field to change."""
    failure = diagnose_container(a_state(waiting, said), None)

    assert reason == because(failure)
    assert says in failure.message
    assert fix in failure.fix


def test_a_container_that_could_not_be_started_is_read_from_its_end():
    """``StartError`` carries the runtime's message in the terminated state."""
    state = a_state(
        "CrashLoopBackOff", "back-off", "StartError", 128, "exec: executable file not found"
    )

    assert FailureReason.ContainerConfigInvalid == because(diagnose_container(state, None))


def test_a_volume_that_cannot_be_mounted_while_creating():
    """The kubelet keeps the container in ContainerCreating and says why."""
    state = a_state("ContainerCreating", "MountVolume.SetUp failed for volume models")

    assert FailureReason.VolumeMountFailed == because(diagnose_container(state, None))


def test_oom_killed_needs_no_log():
    """The kernel's verdict outranks whatever the log says."""
    state = a_state("CrashLoopBackOff", "back-off", "OOMKilled", 137, None, restarts=2)
    failure = diagnose_container(state, "Application startup complete.")

    assert FailureReason.OOMKilled == because(failure)
    assert "spec.engine.resources.limits.memory" in failure.fix
    assert not failure.transient


def test_exit_code_zero_is_a_dead_engine():
    """vLLM's API server ends with 0 when its core process dies."""
    state = a_state("CrashLoopBackOff", "back-off", "Completed", 0, None, restarts=1)

    assert FailureReason.EngineDied == because(diagnose_container(state, None))
    assert FailureReason.EngineDied == because(diagnose_container(state, log("engine-core-killed")))


@pytest.mark.parametrize("code", [137, 143])
def test_killed_before_it_was_ready_is_a_startup_timeout(code):
    """A start cut short without an error was cut by the startup probe."""
    failure = diagnose_container(crashed(code), log("killed-while-starting"))

    assert FailureReason.StartupTimeout == because(failure)
    assert "spec.engine.startupTimeoutSeconds" in failure.fix


def test_killed_after_it_served_is_not():
    """An engine that answered requests was killed for another reason."""
    served = 'INFO:     10.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK'

    assert FailureReason.EngineDied == because(diagnose_container(crashed(137), served))


def test_killed_without_a_log_is_left_open():
    """Nothing is claimed about an end nobody saw."""
    failure = diagnose_container(crashed(137), None)

    assert FailureReason.CrashLoop == because(failure)
    assert "its log is not available" in failure.message


def test_an_unknown_crash_quotes_the_first_exception():
    """The wrapper's exception says nothing; the one above it may."""
    text = "ValueError: frob\nRuntimeError: Engine core initialization failed. See root cause above"
    failure = diagnose_container(crashed(), text)

    assert FailureReason.CrashLoop == because(failure)
    assert "The engine ended with exit code 1: ValueError: frob" == failure.message


def test_an_unknown_crash_is_given_a_second_chance():
    """Once may be bad luck, a third time is not."""
    assert [True, True, False] == [
        diagnose_container(crashed(restarts=n), "ValueError: frob").transient for n in (1, 2, 3)
    ]


def test_the_termination_message_stands_in_for_a_log():
    """With FallbackToLogsOnError the kubelet keeps the last lines."""
    state = crashed(2, last="vllm: error: unrecognized arguments: --swap-space 4")

    assert FailureReason.InvalidEngineArgs == because(diagnose_container(state, None))


def test_a_container_that_runs_again_still_tells_why_it_crashed():
    """Between two crashes the container runs; the cause has not gone away."""
    state = a_state(restarts=2)

    assert FailureReason.KVCacheTooSmall == because(
        diagnose_container(state, log("kv-cache-too-small"))
    )


def test_a_container_the_node_lost_is_no_startup_timeout():
    """A node that restarts loses its containers with exit code 137."""
    state = a_state(None, None, "ContainerStatusUnknown", 137, "could not be located", restarts=1)

    assert FailureReason.EngineDied == because(diagnose_container(state, None))


# --- the scheduler ---

GPU = (
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. no new claims to deallocate,"
    " preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."
)
MIXED = (
    "0/5 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-"
    "plane: }, 2 Insufficient memory, 2 node(s) didn't match Pod's node affinity/selector."
    " preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling."
)


def test_missing_devices_are_counted_and_named():
    """The scheduler's count and resource reach the condition, preemption noise does not."""
    failure = diagnose_scheduling("Unschedulable", GPU)

    assert FailureReason.Unschedulable == failure.reason
    assert "No node can take the pod (3 of 3: not enough nvidia.com/gpu left)." == failure.message
    assert "spec.accelerator.count" in failure.fix
    assert "spec.rollout.capacity: Replace" in failure.fix
    assert failure.transient


def test_every_cause_of_the_scheduler_gets_its_fix():
    """Nodes may refuse for different reasons; all of them are said."""
    failure = diagnose_scheduling("Unschedulable", MIXED)

    assert "1 of 5: a taint {node-role.kubernetes.io/control-plane: }" in failure.message
    assert "2 of 5: too little memory left" in failure.message
    assert "2 of 5: another product or label" in failure.message
    for field in ("tolerations", "spec.engine.resources", "spec.accelerator.product"):
        assert field in failure.fix


@pytest.mark.parametrize(
    ("message", "says", "transient"),
    [
        (
            '0/1 nodes are available: persistentvolumeclaim "models" not found. preemption: x',
            "the volume claim models does not exist",
            False,
        ),
        (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            "unbound immediate PersistentVolumeClaims",
            True,
        ),
        (
            "0/2 nodes are available: 2 node(s) had volume node affinity conflict.",
            "volume node affinity conflict",
            True,
        ),
    ],
)
def test_missing_volumes_are_told_from_missing_room(message, says, transient):
    """A claim that does not exist is not a lack of devices."""
    failure = diagnose_scheduling("Unschedulable", message)

    assert FailureReason.VolumeMountFailed == failure.reason
    assert says in failure.message
    assert "spec.model.source.pvc.claimName" in failure.fix
    assert transient is failure.transient


@pytest.mark.parametrize(
    "message", ["", "no nodes available to schedule pods", "0/1 nodes are available: 1 new words."]
)
def test_words_nobody_knows_are_quoted(message):
    """An unknown cause is passed on."""
    failure = diagnose_scheduling("Unschedulable", message)

    assert FailureReason.Unschedulable == failure.reason
    assert message.removeprefix("0/1 nodes are available: 1 ").rstrip(".") in failure.message


def test_a_gated_pod_is_not_blamed_on_the_nodes():
    """Quota systems hold pods back with scheduling gates."""
    assert "scheduling gate" in diagnose_scheduling("SchedulingGated", "").message


@given(st.text(), st.text())
def test_any_scheduler_message_gets_an_answer(reason, message):
    """No message crashes the reading."""
    assert isinstance(diagnose_scheduling(reason, message), Failure)


# --- the texts ---


def test_every_field_named_exists_in_the_resource():
    """A fix that names a field nobody can set is no fix."""
    crd = yaml.safe_load((ROOT / "crds/llmservices.llmservice.dev.yaml").read_text("utf-8"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    source = (ROOT / "operator/llmservice/core/failures.py").read_text("utf-8")
    named = set(re.findall(r"\bspec(?:\.[a-zA-Z]+)+", source + TABLE.read_text("utf-8")))

    assert len(named) > 20
    assert [] == [field for field in sorted(named) if not is_field(schema, field)]


def is_field(schema, path):
    """Whether a path leads somewhere in the schema, or into a part that takes anything."""
    for part in path.split("."):
        if "properties" not in schema:
            return bool(schema.get("x-kubernetes-preserve-unknown-fields")) or (
                "additionalProperties" in schema
            )
        if part not in schema["properties"]:
            return False
        schema = schema["properties"][part]
    return True


def test_every_sentence_ends_and_every_template_can_be_filled():
    """Each rule has a source, a known reason, and names only groups of its own pattern."""
    table = tomllib.loads(TABLE.read_text("utf-8"))
    for name in ("causes", "symptoms", "image", "container"):
        for row in table[name]:
            groups = {*re.compile(row["pattern"]).groupindex, "said"}
            assert set(re.findall(r"\{(\w+)\}", row["message"] + row["fix"])) <= groups
            assert row["source"]
            assert row["reason"] in set(FailureReason)
            assert row["fix"].endswith(".")
