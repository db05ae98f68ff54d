"""The Job of a bench gate: vLLM's own client, in the engine's image, against a canary's pods.

It has the engine's files and variables, as it needs the tokenizer, and no device. Its few figures
are the container's termination message, so nobody has to read a log or a volume.

Deterministic, and made once: a Job's pod cannot be changed, so whatever would change it also
changes the Job's name.
"""

from typing import Any

from llmservice.api import names
from llmservice.api.gates import BenchGate
from llmservice.core.observed import Manifest, ServiceObject
from llmservice.core.resources.children import header
from llmservice.core.resources.pod import restricted
from llmservice.core.revisions import Revision, content_hash

BENCH_COMPONENT = "bench"
BENCH_CONTAINER = "bench"
KEEP_SECONDS = 3600
"""A Job that has ended stays so long, for its log."""
FIGURES = (
    *("num_prompts", "completed", "request_throughput", "output_throughput"),
    *("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "p99_itl_ms"),
)
"""Keys of vLLM's result that are told."""

_LONGEST_NAME = 63
_PLACED = ("affinity", "imagePullSecrets", "nodeSelector", "securityContext", "tolerations")
"""Of the engine's pod: its files are readable, and its image and volumes are at hand, there."""
_TOKENIZER_FLAGS = ("--tokenizer", "--tokenizer-mode")
_FOLDER, _FILE = "/tmp", "result.json"  # noqa: S108 - the container's own
_SCRIPT = f"""\
vllm bench serve "$@"
exec python3 -c '
import json
result = json.load(open("{_FOLDER}/{_FILE}"))
figures = {{key: result.get(key) for key in "{" ".join(FIGURES)}".split()}}
open("/dev/termination-log", "w").write(json.dumps(figures))
'
"""


def bench_name(service: ServiceObject, gate: str, attempt: object) -> str:
    """Name of a gate's Job; another attempt (anything that is JSON) gets another name."""
    hash_ = content_hash([service.uid, gate, attempt], names.REVISION_HASH_LENGTH)
    stem = f"{service.key.name}-bench-{gate}"[: _LONGEST_NAME - 1 - len(hash_)]
    return f"{stem.rstrip('-')}-{hash_}"


def build_bench(
    service: ServiceObject, name: str, bench: BenchGate, revision: Revision
) -> Manifest:
    """The Job.

    Args:
        service: who owns it.
        name: as `bench_name` gives it.
        bench: what is run.
        revision: whose pods answer.
    """
    found = header(service, "batch/v1", "Job", name)
    found["metadata"]["labels"] |= _labels(revision)
    labels = names.instance_labels(service.key.name) | _labels(revision)
    return {
        **found,
        "spec": {
            "activeDeadlineSeconds": bench.timeout_seconds,
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            "template": {
                "metadata": {"labels": labels},
                "spec": _pod_spec(service, bench, revision),
            },
        },
    }


def _labels(revision: Revision) -> dict[str, str]:
    return {names.COMPONENT_LABEL: BENCH_COMPONENT, names.REVISION_LABEL: revision.hash}


def _pod_spec(service: ServiceObject, bench: BenchGate, revision: Revision) -> Manifest:
    engine_pod = revision.template["spec"]
    return {
        **{key: engine_pod[key] for key in _PLACED if key in engine_pod},
        "serviceAccountName": names.service_account_name(service.key.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "containers": [_container(_url(service, revision), bench, revision)],
        "volumes": engine_pod.get("volumes", []),
    }


def _url(service: ServiceObject, revision: Revision) -> str:
    host = names.revision_name(service.key.name, revision.hash)
    return f"http://{host}.{service.key.namespace}.svc:{names.ENGINE_PORT}"


def _container(url: str, bench: BenchGate, revision: Revision) -> Manifest:
    engine = revision.engine
    container = {
        "name": BENCH_CONTAINER,
        "image": engine["image"],
        "command": ["sh", "-ec", _SCRIPT, "bench"],
        "args": _arguments(url, bench, engine["args"]),
        "env": _environment(engine.get("env", [])),
        "volumeMounts": engine.get("volumeMounts", []),
        "resources": {
            "requests": {"cpu": "250m", "memory": "1Gi"},
            "limits": {"memory": "4Gi"},
        },
        **restricted(),
    }
    if "imagePullPolicy" in engine:
        container["imagePullPolicy"] = engine["imagePullPolicy"]
    return container


def _environment(engine: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The engine's own; no device, and its key where clients need one."""
    added = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]  # its image asks for all
    if any(variable["name"] == "VLLM_API_KEY" for variable in engine):
        added.append({"name": "OPENAI_API_KEY", "value": "$(VLLM_API_KEY)"})
    ours = {variable["name"] for variable in added}
    return [variable for variable in engine if variable["name"] not in ours] + added


def _arguments(url: str, bench: BenchGate, engine: list[str]) -> list[str]:
    """Of ``vllm bench serve``, given those of ``vllm serve``: the model, then flags."""
    flags = {
        "--backend": "openai",
        "--base-url": url,
        "--model": _value(engine, "--served-model-name") or engine[0],
        "--tokenizer": engine[0],
        "--dataset-name": "random",
        "--random-input-len": bench.input_tokens,
        "--random-output-len": bench.output_tokens,
        "--num-prompts": bench.num_prompts,
        "--percentile-metrics": "ttft,tpot,itl",
        "--metric-percentiles": 99,
        "--result-dir": _FOLDER,
        "--result-filename": _FILE,
    }
    if bench.request_rate is not None:
        flags["--request-rate"] = bench.request_rate
    if bench.max_concurrency is not None:
        flags["--max-concurrency"] = bench.max_concurrency
    for flag in _TOKENIZER_FLAGS:
        if value := _value(engine, flag):
            flags[flag] = value
    switches = ["--save-result", "--disable-tqdm"]
    if "--trust-remote-code" in engine:
        switches.append("--trust-remote-code")
    return [*(text for pair in flags.items() for text in map(str, pair)), *switches]


def _value(arguments: list[str], flag: str) -> str | None:
    """The value of a flag, in one argument or in two."""
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
    return None
