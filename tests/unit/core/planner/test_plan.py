"""The planner: choices, verdicts, and laws that hold for any model and device."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.planner.catalog import find_model, known_models
from llmservice.core.planner.devices import Device
from llmservice.core.planner.outcome import (
    Infeasible,
    Plan,
    Profile,
    Reason,
    Request,
    Speculation,
    Unplanned,
    Verdict,
)
from llmservice.core.planner.plan import plan

GIB = 1 << 30
A10G = Device("A10G", int(22.07 * GIB), (8, 6))
H100 = Device("H100 SXM", int(79.1 * GIB), (9, 0), fp8=True)
VERSION = (0, 33)
MISTRAL = find_model("mistralai/Mistral-7B-Instruct-v0.2")
LLAMA_70B = find_model("meta-llama/Llama-3.3-70B-Instruct")


def ask(model=MISTRAL, device=A10G, **told):
    return plan(Request(model, device, VERSION, **told))


def chosen(outcome):
    return {choice.knob: choice.value for choice in outcome.choices if choice.chosen}


def test_one_card_is_enough_for_seven_billions():
    """Devices are scarce: one, with the longest request that is sure to fit."""
    found = ask(gpu_memory_utilization=0.85, max_num_seqs=256, block_size=16)

    assert (Verdict.Fits, 1) == (found.verdict, found.knobs.tensor)
    assert 16_384 <= found.knobs.max_model_len < 32_768
    assert str(found.knobs.max_model_len) == chosen(found)["maxModelLen"]


def test_smallest_tensor_size_that_fits():
    """131 GiB of weights want four cards of 80 GB for the model's own length."""
    found = ask(LLAMA_70B, H100)

    assert 4 == found.knobs.tensor
    assert 131_072 == found.knobs.max_model_len


def test_given_devices_are_the_tensor_size():
    """accelerator.count is the user's word."""
    assert 8 == ask(LLAMA_70B, H100, devices=8).knobs.tensor


def test_weights_that_do_not_fit():
    """With the numbers, and the change that fits."""
    found = ask(LLAMA_70B, H100, tensor=1)

    assert isinstance(found, Infeasible)
    assert Reason.WeightsDoNotFit == found.reason
    assert "each device would hold 131.4 GiB of weights" in found.message
    assert found.message.endswith("set parallelism.tensor to 4")


def test_request_that_does_not_fit():
    """The remedies fit, each by itself."""
    found = ask(tensor=1, max_model_len=32_768, gpu_memory_utilization=0.75)

    assert isinstance(found, Infeasible)
    assert Reason.KVCacheTooSmall == found.reason
    length = int(found.message.split("maxModelLen to at most ")[1].split(",")[0])
    assert Verdict.Fits is ask(tensor=1, max_model_len=length, gpu_memory_utilization=0.75).verdict
    assert "gpuMemoryUtilization to 0.95" in found.message
    assert Verdict.Fits is ask(tensor=1, max_model_len=32_768, gpu_memory_utilization=0.95).verdict


def test_between_the_ends_of_the_range():
    """Neither blocked nor promised."""
    room = ask(tensor=1, max_model_len=1024).memory.kv_cache
    length = room.expected // 131_072
    found = ask(tensor=1, max_model_len=length)

    assert Verdict.Marginal is found.verdict
    assert "it may not start" in found.message


@pytest.mark.parametrize(
    ("tensor", "fix"), [(3, "2 or 4"), (5, "4 or 8"), (64, "32"), (7, "4 or 8")]
)
def test_tensor_size_divides_the_heads(tensor, fix):
    """The nearest sizes that do are named."""
    found = ask(tensor=tensor)

    assert Reason.InvalidParallelism == found.reason
    assert found.message.endswith(f"set parallelism.tensor to {fix}")


def test_longer_than_the_model_is_marginal():
    """vLLM refuses it, unless told otherwise."""
    found = ask(tensor=2, max_model_len=40_000)

    assert Verdict.Marginal is found.verdict
    assert "over the model's own 32,768" in found.message


def test_slices_do_not_talk_to_each_other():
    """One slice, or nothing."""
    slice_ = Device("A100-80GB-MIG-2g.20gb", int(19.5 * GIB), (8, 0))

    assert 1 == ask(device=slice_).knobs.tensor
    assert isinstance(ask(LLAMA_70B, slice_), Infeasible)


@pytest.mark.parametrize(
    "name", ["TheBloke/Mistral-7B-Instruct-v0.2-GGUF", "unsloth/mistral-7b-instruct-v0.3-bnb-4bit"]
)
def test_formats_without_a_loader(name):
    """The engine would not start, whatever fits."""
    found = ask(find_model(name))

    assert Reason.UnsupportedQuantization == found.reason
    assert "use the model's own checkpoint" in found.message


def test_stages_need_layers():
    """A stage without a layer cannot be."""
    assert Reason.InvalidParallelism == ask(pipeline=33).reason


def test_unknown_cache_dtype_blocks_nothing():
    """Not known is not infeasible."""
    assert isinstance(ask(kv_cache_dtype="turboquant_4bit_nc"), Unplanned)


def test_profiles():
    """Throughput doubles what vLLM would choose, Latency lets fewer share a step."""
    balanced, throughput, latency = (
        ask(tensor=1, profile=each).knobs
        for each in (Profile.Balanced, Profile.Throughput, Profile.Latency)
    )

    assert (256, 2048) == (balanced.max_num_seqs, balanced.max_num_batched_tokens)
    assert (512, 4096) == (throughput.max_num_seqs, throughput.max_num_batched_tokens)
    assert (64, 2048) == (latency.max_num_seqs, latency.max_num_batched_tokens)


def test_cpu_has_what_it_is_given():
    """A KV cache of given size is all there is to know."""
    found = ask(device=None, kv_cache_memory_bytes=GIB, max_model_len=4096)

    assert GIB // 131_072 == found.capacity.tokens
    assert 1 == found.knobs.tensor


def test_given_cache_must_leave_room_for_weights():
    """vLLM would not look; the device would."""
    found = ask(tensor=1, kv_cache_memory_bytes=12 * GIB, max_model_len=4096)

    assert isinstance(found, Infeasible)


def test_a_draft_takes_its_share():
    """Its weights and its layers are counted."""
    draft = Speculation("draft_model", 5, find_model("TinyLlama/TinyLlama-1.1B-Chat-v1.0"))
    alone = ask(tensor=1, max_model_len=4096)
    with_draft = ask(tensor=1, max_model_len=4096, speculation=draft)
    with_head = ask(tensor=1, max_model_len=4096, speculation=Speculation("eagle3", 3))

    assert 1.9 < (with_draft.memory.weights - alone.memory.weights) / GIB < 2.2
    assert with_draft.bytes_per_token == alone.bytes_per_token
    assert 33 * alone.pool.bytes_per_block == 32 * with_head.pool.bytes_per_block


LOADABLE = [
    model
    for model in known_models()
    if model.shape.quantization.get("quant_method") != "bitsandbytes"
]
MODELS = st.sampled_from(LOADABLE)
MEMORY = st.integers(8, 256).map(lambda gib: gib * GIB)
RANK = {None: 0, Verdict.Marginal: 1, Verdict.Fits: 2}


def rank(outcome):
    """0 for infeasible, 1 for marginal, 2 for fits."""
    return RANK[getattr(outcome, "verdict", None)]


@given(MODELS, MEMORY, MEMORY, st.sampled_from([512, 4096, 32_768]))
def test_more_memory_never_hurts(model, one, other, length):
    """Unless it crosses the line above which vLLM batches more."""
    small, large = sorted((one, other))
    told = {"tensor": 1, "max_model_len": length, "max_num_seqs": 64}
    told["max_num_batched_tokens"] = 4096

    assert rank(ask(model, Device("any", small), **told)) <= rank(
        ask(model, Device("any", large), **told)
    )


@given(MODELS, MEMORY, st.integers(1, 1 << 18), st.integers(1, 1 << 18))
def test_a_shorter_length_never_hurts(model, memory, one, other):
    """Whatever the layers are."""
    short, long = sorted((one, other))
    told = {"tensor": 1, "max_num_seqs": 64, "max_num_batched_tokens": 4096}
    device = Device("any", memory)

    assert rank(ask(model, device, max_model_len=long, **told)) <= rank(
        ask(model, device, max_model_len=short, **told)
    )


@given(MODELS, st.sampled_from([1, 2, 4]))
def test_more_ranks_hold_less_each(model, tensor):
    """Weights of one device, and its bytes per token, never grow."""
    if model.shape.heads % (2 * tensor):
        return
    told = {"max_model_len": 512, "max_num_seqs": 64, "max_num_batched_tokens": 4096}
    vast = Device("any", 4096 * GIB)
    one, two = (ask(model, vast, tensor=size, **told) for size in (tensor, 2 * tensor))

    assert isinstance(one, Plan)
    assert two.memory.weights < one.memory.weights
    assert two.bytes_per_token <= one.bytes_per_token


@given(
    MODELS,
    MEMORY,
    st.one_of(st.none(), st.integers(1, 64)),
    st.one_of(st.none(), st.integers(1, 1 << 40)),
    st.one_of(st.none(), st.integers(1, 65_536)),
    st.sampled_from(Profile),
)
def test_any_question_has_an_answer(model, memory, tensor, length, sequences, profile):
    """Never a traceback, always a sentence."""
    request = Request(model, Device("any", memory), VERSION, tensor=tensor)
    outcome = plan(replace(request, max_model_len=length, max_num_seqs=sequences, profile=profile))

    assert outcome.message
