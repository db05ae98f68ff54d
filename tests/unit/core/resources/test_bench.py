"""The Job of a bench gate: whom it loads, with what, and what it may do."""

import json
import os
import subprocess

import pytest

from llmservice.api.gates import BenchGate
from llmservice.api.v1alpha1 import parse_spec
from llmservice.core.engine import EnginePlan, plan_engine
from llmservice.core.observed import ServiceKey, ServiceObject
from llmservice.core.resources.bench import FIGURES, bench_name, build_bench
from llmservice.core.resources.pod import build_pod_template
from llmservice.core.revisions import Revision

SERVICE = ServiceObject(ServiceKey("team-a", "mistral"), "u1", 1, {}, {})
GATE = BenchGate(num_prompts=50, min_output_throughput=100)


def a_revision(**changes):
    """A revision of a GPU service with some of its spec changed."""
    spec = parse_spec(
        {"model": {"id": "a/b"}, "accelerator": {"resource": "nvidia.com/gpu"}, **changes}
    )
    plan = plan_engine("mistral", spec)
    assert isinstance(plan, EnginePlan)
    return Revision("abc", 1, build_pod_template("mistral", "abc", spec, plan), plan.version)


def a_job(gate=GATE, **changes):
    """The Job of a revision with some of its spec changed."""
    return build_bench(SERVICE, "mistral-bench-speed-x", gate, a_revision(**changes))


def pod(job):
    """Spec of its pod."""
    return job["spec"]["template"]["spec"]


def container(job):
    """What runs the benchmark."""
    (found,) = pod(job)["containers"]
    return found


def argument(job, flag):
    """Value of a flag; None without it."""
    arguments = container(job)["args"]
    return arguments[arguments.index(flag) + 1] if flag in arguments else None


def test_it_loads_the_canary_and_nobody_else():
    """By the Service of the revision, under the name that clients use."""
    job = a_job()

    url = "http://mistral-abc.team-a.svc:8000"
    assert (url, "mistral", "a/b") == tuple(
        argument(job, flag) for flag in ("--base-url", "--model", "--tokenizer")
    )


def test_load_is_what_the_gate_says():
    """Unset is not passed, so vLLM's own defaults apply."""
    job = a_job()
    assert ("50", "1024", "128", None, None) == tuple(
        argument(job, flag)
        for flag in (
            *("--num-prompts", "--random-input-len", "--random-output-len"),
            *("--request-rate", "--max-concurrency"),
        )
    )

    job = a_job(BenchGate(request_rate=2.5, max_concurrency=8, input_tokens=3, output_tokens=4))
    assert ("3", "4", "2.5", "8") == tuple(
        argument(job, flag)
        for flag in (
            *("--random-input-len", "--random-output-len"),
            *("--request-rate", "--max-concurrency"),
        )
    )


@pytest.mark.parametrize(
    ("extra", "tokenizer"), [(["--tokenizer", "a/c"], "a/c"), (["--tokenizer=a/d"], "a/d")]
)
def test_tokenizer_is_the_engines(extra, tokenizer):
    """Other words would count other tokens."""
    extra = [*extra, "--tokenizer-mode", "mistral", "--trust-remote-code"]
    job = a_job(engine={"extraArgs": extra})

    assert tokenizer == argument(job, "--tokenizer")
    assert "mistral" == argument(job, "--tokenizer-mode")
    assert "--trust-remote-code" in container(job)["args"]
    assert "--trust-remote-code" not in container(a_job())["args"]


def test_it_has_the_engines_files_and_words():
    """The volume, the token of the hub, and the engine's own variables."""
    claim = {"pvc": {"claimName": "models", "path": "mistral"}}
    job = a_job(model={"id": "a/b", "source": claim})
    assert "/models/mistral" == argument(job, "--tokenizer")
    mounts = {mount["name"]: mount["mountPath"] for mount in container(job)["volumeMounts"]}
    assert "/models" == mounts["model"]
    assert mounts.keys() <= {volume["name"] for volume in pod(job)["volumes"]}

    hub = {"hub": {"tokenSecretRef": {"name": "hub", "key": "token"}}}
    job = a_job(model={"id": "a/b", "source": hub})
    assert "HF_TOKEN" in {variable["name"] for variable in container(job)["env"]}


def test_it_takes_no_device():
    """Neither by its resources nor by the default of its image."""
    job = a_job()

    given = container(job)["resources"]
    assert {"cpu", "memory"} >= given["requests"].keys() | given["limits"].keys()
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container(job)["env"]


def test_it_knows_the_key_of_the_engine():
    """By reference: the operator reads no Secret."""
    secret = {"secretKeyRef": {"name": "keys", "key": "api"}}
    job = a_job(engine={"env": [{"name": "VLLM_API_KEY", "valueFrom": secret}]})
    names = [variable["name"] for variable in container(job)["env"]]

    assert {"name": "OPENAI_API_KEY", "value": "$(VLLM_API_KEY)"} in container(job)["env"]
    assert names.index("VLLM_API_KEY") < names.index("OPENAI_API_KEY")
    assert len(names) == len(set(names))


def test_it_is_restricted_and_ends():
    """The restricted Pod Security Standard, one try, a deadline, and gone after an hour."""
    job = a_job(podTemplate={"spec": {"hostNetwork": True, "nodeSelector": {"pool": "gpu"}}})
    spec = job["spec"]
    assert (900, 0, 3600) == (
        spec["activeDeadlineSeconds"],
        spec["backoffLimit"],
        spec["ttlSecondsAfterFinished"],
    )
    assert "Never" == pod(job)["restartPolicy"]
    assert pod(job)["securityContext"]["runAsNonRoot"]
    assert {"type": "RuntimeDefault"} == pod(job)["securityContext"]["seccompProfile"]
    assert {"drop": ["ALL"]} == container(job)["securityContext"]["capabilities"]
    assert not container(job)["securityContext"]["allowPrivilegeEscalation"]
    assert not pod(job)["automountServiceAccountToken"]
    assert "hostNetwork" not in pod(job)
    assert {"pool": "gpu"} == pod(job)["nodeSelector"]


def test_its_pod_is_no_engine():
    """No Service sends requests to it."""
    labels = a_job()["spec"]["template"]["metadata"]["labels"]

    assert "bench" == labels["app.kubernetes.io/component"]
    assert "mistral" == labels["llmservice.dev/service"]


@pytest.mark.parametrize("gate", ["a", "speed", "a-" * 15 + "ab"])
@pytest.mark.parametrize("service", ["m", "m" * 50])
def test_name_fits_a_label(service, gate):
    """Kubernetes writes it into labels of 63 characters; the hash is never cut."""
    owner = ServiceObject(ServiceKey("team-a", service), "u1", 1, {}, {})
    one, other = bench_name(owner, gate, ["abc", 1]), bench_name(owner, gate, ["abc", 2])

    assert one != other
    assert len(one) == len(other) <= 63
    assert one.startswith(f"{service}-b")
    assert "--" not in one


@pytest.mark.parametrize("works", [True, False])
def test_figures_become_the_last_words_of_the_container(works, tmp_path):
    """In the form that the gate reads; without a result it fails, and writes none."""
    told = {name: index for index, name in enumerate(FIGURES)} | {"median_ttft_ms": 9, "date": "x"}
    (tmp_path / "told.json").write_text(json.dumps(told))
    vllm = tmp_path / "vllm"
    vllm.write_text(
        f'#!/bin/sh\n{"" if works else "exit 3"}\ncp told.json result.json\necho "$@" > args\n'
    )
    vllm.chmod(0o755)
    *command, script, name = container(a_job())["command"]
    script = script.replace("/dev/termination-log", str(tmp_path / "words"))
    script = script.replace("/tmp/result.json", str(tmp_path / "result.json"))
    found = subprocess.run(
        [*command, script, name, "--header", "two words"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=tmp_path,
        check=False,
    )

    assert works == (found.returncode == 0)
    assert works == (tmp_path / "words").exists()
    if works:
        assert {key: told[key] for key in FIGURES} == json.loads((tmp_path / "words").read_text())
        assert "bench serve --header two words\n" == (tmp_path / "args").read_text()
