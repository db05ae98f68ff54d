"""Which field of the resource is which of the planner's questions, and what comes back."""

import json

import pytest

from llmservice.api.v1alpha1 import parse_spec
from llmservice.core.engine import InvalidEngine, device_count, plan_engine
from llmservice.core.planner.outcome import Infeasible, Plan, Request, Unplanned
from llmservice.core.planning import find_spec_device, plan_request, plan_spec, plan_status
from llmservice.core.revisions import revision_hash
from tests.state.world import a_spec

GIB = 1 << 30


def a_request(engine=None, **changes):
    spec = a_spec(engine=engine or {}, **changes)
    found = plan_request(parse_spec(spec), "0.33")
    assert isinstance(found, Request), found
    return found


def arguments(engine=None, **changes):
    found = plan_engine("any", parse_spec(a_spec(engine=engine or {}, **changes)))
    assert not isinstance(found, InvalidEngine), found.violations
    return list(found.arguments)


KNOBS = [
    ({"maxModelLen": 4096}, "max_model_len", 4096),
    ({"maxNumSeqs": 7}, "max_num_seqs", 7),
    ({"maxNumBatchedTokens": 512}, "max_num_batched_tokens", 512),
    ({"gpuMemoryUtilization": 0.5}, "gpu_memory_utilization", 0.5),
    ({"kvCacheMemoryBytes": "2Gi"}, "kv_cache_memory_bytes", 2 * GIB),
    ({"kvCacheDtype": "fp8"}, "kv_cache_dtype", "fp8"),
    ({"blockSize": 32}, "block_size", 32),
    ({"quantization": "fp8"}, "quantization", "fp8"),
    ({"prefixCaching": False}, "prefix_caching", False),
    ({"enforceEager": True}, "enforce_eager", True),
    ({"parallelism": {"tensor": 2}}, "tensor", 2),
    ({"parallelism": {"pipeline": 2}}, "pipeline", 2),
    ({"extraArgs": ["--decode_context_parallel_size=2"]}, "context", 2),
    ({"extraArgs": ["-dcp", "2"]}, "context", 2),
    ({"extraArgs": ["--cpu-offload-gb", "4"]}, "cpu_offload", 4 * GIB),
    ({"extraArgs": ["--disable-hybrid-kv-cache-manager"]}, "hybrid", False),
    ({"extraArgs": ["--no-async-scheduling"]}, "batches_in_flight", 1),
]


@pytest.mark.parametrize(("engine", "field", "value"), KNOBS)
def test_knobs_are_asked_about(engine, field, value):
    """However they are written."""
    assert value == getattr(a_request(engine), field)


def test_speculation_from_field_and_from_extra_args():
    """Both ways of writing it are one question."""
    typed = a_request(
        {"speculative": {"method": "eagle3", "model": "a/b", "numSpeculativeTokens": 3}}
    )
    config = json.dumps({"method": "eagle3", "model": "a/b", "num_speculative_tokens": 3})
    free = a_request({"extraArgs": ["--speculative-config", config]})

    assert typed.speculation == free.speculation
    assert ("eagle3", 3) == (typed.speculation.method, typed.speculation.tokens)


def test_speculation_reaches_the_engine_once():
    """As vLLM's JSON; the same in extraArgs beside it is refused."""
    speculative = {"method": "ngram", "numSpeculativeTokens": 3, "promptLookupMax": 4}
    given = arguments({"speculative": speculative})
    written = json.loads(given[given.index("--speculative-config") + 1])
    both = {"speculative": speculative, "extraArgs": ["--speculative-config", "{}"]}
    refused = plan_engine("any", parse_spec(a_spec(engine=both)))

    assert {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4} == written
    assert "spec.engine.speculative" in refused.violations[0].message


DEVICES = [
    ({"product": "NVIDIA-A10G"}, 22.07),
    ({"product": "NVIDIA-A10G", "memory": "24Gi"}, 22.07),
    ({"product": "NVIDIA-A10G", "memory": "10Gi"}, 9.8),
    ({"memory": "100Gi"}, 98.0),
    ({"product": "Abacus-9000", "memory": "99999999Ti"}, 1024.0),
]


@pytest.mark.parametrize(("accelerator", "gib"), DEVICES)
def test_memory_of_the_device(accelerator, gib):
    """What is known outranks the data sheet; a slice has less; nothing has an ocean."""
    device = find_spec_device(parse_spec(a_spec(accelerator=accelerator)))

    assert gib == pytest.approx(device.memory / GIB, rel=0.001)


@pytest.mark.parametrize("accelerator", [{}, {"product": "Abacus-9000"}])
def test_unknown_device_still_says_what_is_known(accelerator):
    """The weights, and which field is missing."""
    found = plan_spec(parse_spec(a_spec(accelerator=accelerator)), "0.33")

    assert isinstance(found, Unplanned)
    assert "has 13.5 GiB of weights" in found.message
    assert "spec.accelerator.memory" in found.message


def test_choices_run():
    """Tensor size and greatest length, as the plan chose them, and the devices with them."""
    big = {"model": {"id": "meta-llama/Llama-3.3-70B-Instruct"}}
    spec = parse_spec(a_spec(**big, accelerator={"product": "NVIDIA-H100-80GB-HBM3"}, engine={}))
    found = plan_engine("any", spec)

    assert "4" == found.arguments[found.arguments.index("--tensor-parallel-size") + 1]
    assert "--max-model-len" not in found.arguments
    assert 4 == device_count(found.spec)
    assert "--max-model-len" in arguments({"gpuMemoryUtilization": 0.8})


PROFILES = [
    ("Balanced", set(), {"--performance-mode", "--max-num-seqs"}),
    ("Throughput", {"--performance-mode", "throughput"}, {"--max-num-seqs"}),
    ("Latency", {"--performance-mode", "interactivity", "--max-num-seqs", "64"}, set()),
]


@pytest.mark.parametrize(("profile", "there", "absent"), PROFILES)
def test_profiles_become_knobs(profile, there, absent):
    """What this version of vLLM really has for them."""
    given = arguments({"profile": profile})

    assert there <= set(given)
    assert not absent & set(given)


def test_written_knobs_outrank_the_profile():
    """The user's numbers are kept."""
    given = arguments({"profile": "Latency", "maxNumSeqs": 5, "performanceMode": "balanced"})

    assert "5" == given[given.index("--max-num-seqs") + 1]
    assert "balanced" == given[given.index("--performance-mode") + 1]


def test_architecture_outranks_the_catalog():
    """The user's facts about his own model."""
    facts = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
    found = plan_spec(
        parse_spec(a_spec(model={"id": "Qwen/Qwen3-32B", "architecture": facts})), "0.33"
    )

    assert isinstance(found, Plan)
    assert found.memory.weights < GIB


def test_status_of_each_outcome():
    """Numbers where there is a plan, a sentence everywhere."""
    fits = plan_spec(parse_spec(a_spec()), "0.33")
    refused = plan_spec(parse_spec(a_spec(engine={"parallelism": {"tensor": 3}})), "0.33")

    assert isinstance(fits, Plan)
    assert isinstance(refused, Infeasible)
    assert {"outcome", "message"} == set(plan_status(refused))
    assert "Fits" == plan_status(fits)["outcome"]
    assert "13.5 GiB" == plan_status(fits)["weightsPerDevice"]


def test_enforcement_is_no_part_of_a_revision():
    """Whether pods are made says nothing about the pods; what is planned from does."""

    def digest(**changes):
        return revision_hash(parse_spec(a_spec(**changes)))

    assert digest(engine={"plan": "Advisory"}) == digest(engine={})
    assert digest(accelerator={"memory": "1Gi"}) == digest(accelerator={"memory": "1024Mi"})
    assert digest(accelerator={"memory": "1Gi"}) != digest(accelerator={"memory": "2Gi"})
