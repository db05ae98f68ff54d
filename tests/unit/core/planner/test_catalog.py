"""The data files: every row can be read, has a source, and agrees with what is published."""

import pytest

from llmservice.core.planner.catalog import find_model, known_models
from llmservice.core.planner.devices import find_device, known_devices
from llmservice.core.planner.weights import (
    Ranks,
    parameter_count,
    quantization_of,
    weights_per_device,
)

GIB = 1 << 30


@pytest.mark.parametrize("model", known_models(), ids=lambda model: model.id)
def test_parameters_follow_from_the_shape(model):
    """A wrong width, or a layer too many, shows in the count; towers for images are beside it."""
    assert model.source
    if model.parameters is None or model.shape.multimodal:
        return
    assert parameter_count(model.shape) == pytest.approx(model.parameters, rel=0.015)


@pytest.mark.parametrize("device", known_devices(), ids=lambda device: device.name)
def test_devices(device):
    """More than a wrist watch, less than a rack."""
    assert GIB < device.memory < 512 * GIB


WEIGHTS = [
    # GiB per device as engines logged them.
    ("meta-llama/Llama-3.1-8B-Instruct", Ranks(), 14.99),
    ("meta-llama/Llama-3.1-8B-Instruct", Ranks(2), 7.51),
    ("Qwen/Qwen3-32B", Ranks(), 61.03),
    ("Qwen/Qwen3-32B", Ranks(2), 30.59),
    ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", Ranks(2), 33.88),
    ("Qwen/Qwen3-0.6B", Ranks(), 1.12),
    ("facebook/opt-6.7b", Ranks(), 12.40),
    ("unsloth/Qwen3-8B-FP8", Ranks(), 8.96),
    ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", Ranks(4, expert=True), 55.22),
]


@pytest.mark.parametrize(("model_id", "ranks", "logged"), WEIGHTS)
def test_weights_as_logged(model_id, ranks, logged):
    """Within 3 %, which is what engines of different versions differ by."""
    model = find_model(model_id)
    how = quantization_of(model.shape, model.quantization)
    weights = weights_per_device(model.shape, ranks, how, parameters=model.parameters)

    assert weights / GIB == pytest.approx(logged, rel=0.03)


def test_found_by_a_quantized_name():
    """Somebody's quantized copy has the shape, and less weight."""
    plain = find_model("meta-llama/Llama-3.1-8B-Instruct")
    copy = find_model("someone/Llama-3.1-8B-Instruct-AWQ-INT4")

    assert plain.shape is copy.shape
    assert "awq-int4" == copy.quantization.replace("awq-awq", "awq")
    assert quantization_of(copy.shape, copy.quantization).linear < 0.6


TWINS = [
    ("somebody/Llama-3.1-8B-Instruct-bf16", "meta-llama/Llama-3.1-8B-Instruct"),
    ("Llama-2-70B AWQ", "meta-llama/Llama-2-70b-hf"),
    ("nobody/GLM-5.1-NVFP4-MTP", "zai-org/GLM-5.1"),
    ("a/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
]


@pytest.mark.parametrize(("written", "meant"), TWINS)
def test_twins_have_one_shape(written, meant):
    """However people write it."""
    assert find_model(written).shape.kinds == find_model(meant).shape.kinds


DEVICES = ["A100-SXM4-80GB", "A100 80GB", "H100 SXM 80GB", "NVIDIA H100 SXM5", "4090", "Tesla T4"]


@pytest.mark.parametrize("written", DEVICES)
def test_devices_as_people_write_them(written):
    """Vendors, sockets and sizes are decoration."""
    assert find_device(written) is not None


@pytest.mark.parametrize("model_id", ["/models/mine", "nobody/knows-this", "", "a/b/c", "-gguf"])
def test_unknown_models_are_none(model_id):
    """No guess from half a name, and none from a path."""
    assert find_model(model_id) is None


def test_shared_device_is_the_device():
    """A time-sliced product is labelled apart."""
    assert find_device("NVIDIA-A10G") == find_device("a10g") == find_device("NVIDIA-A10G-SHARED")
    assert find_device("abacus") is None
