"""Reading config.json: what it says, and what is said of one that does not."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.planner.model import (
    Attention,
    Indexer,
    Latent,
    ModelShape,
    Recurrent,
    UnreadableConfigError,
    read_model,
)

PLAIN = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


def test_plain():
    """Every layer keeps keys and values of 8 heads."""
    assert (Attention(32, 8, 128, 128),) == read_model(PLAIN).kinds


def test_text_part_of_a_multimodal_model():
    """The text part decides; the model counts as multimodal."""
    shape = read_model({"architectures": ["X"], "text_config": PLAIN, "vision_config": {}})

    assert (Attention(32, 8, 128, 128),) == shape.kinds
    assert shape.multimodal


KINDS = [
    ({"sliding_window": 4096}, (Attention(32, 8, 128, 128, window=4096),)),
    ({"sliding_window": 4096, "use_sliding_window": False}, (Attention(32, 8, 128, 128),)),
    ({"sliding_window": None}, (Attention(32, 8, 128, 128),)),
    (
        {"model_type": "gemma3_text", "sliding_window": 512},
        (Attention(27, 8, 128, 128, window=512), Attention(5, 8, 128, 128)),
    ),
    (
        {"attention_chunk_size": 8192},
        (Attention(24, 8, 128, 128, chunk=8192), Attention(8, 8, 128, 128)),
    ),
    ({"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}, (Latent(32, 576),)),
    (
        {
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "index_head_dim": 128,
        },
        (Latent(32, 576), Indexer(32, 128)),
    ),
    ({"multi_query": True, "num_key_value_heads": None}, (Attention(32, 1, 128, 128),)),
    ({"num_key_value_heads": None}, (Attention(32, 32, 128, 128),)),
    (
        {"layers_block_type": ["mamba"] * 30 + ["attention"] * 2, "mamba_n_heads": 128}
        | {"mamba_d_head": 64, "mamba_d_state": 128, "mamba_d_conv": 4},
        (
            Recurrent(30, 8192 + 256, 4, 1 << 20, 2, 3 * 8192 + 256 + 128),
            Attention(2, 8, 128, 128),
        ),
    ),
]


@pytest.mark.parametrize(("fields", "kinds"), KINDS)
def test_kinds_of_layers(fields, kinds):
    """Each way in which a config tells how its cache grows."""
    assert kinds == read_model({**PLAIN, **fields}).kinds


BAD = [
    ([], "must be an object"),
    ({}, "num_attention_heads|num_hidden_layers|is missing"),
    ({**PLAIN, "num_hidden_layers": None}, "num_hidden_layers is missing"),
    ({**PLAIN, "hidden_size": "wide"}, "hidden_size must be a whole number, not 'wide'"),
    ({**PLAIN, "vocab_size": -1}, "vocab_size is -1"),
    ({**PLAIN, "num_hidden_layers": 1 << 60}, "num_hidden_layers is"),
    ({**PLAIN, "num_hidden_layers": 100_000}, "no model is that deep"),
    ({**PLAIN, "hidden_size": 1.5}, "hidden_size must be a whole number"),
    ({**PLAIN, "hidden_size": True}, "hidden_size must be a whole number"),
    ({**PLAIN, "layer_types": ["full_attention"]}, "layer_types names 1 layers"),
    ({**PLAIN, "layer_types": ["telepathy"] * 32}, "'telepathy', which is not known"),
    ({**PLAIN, "layer_types": ["linear_attention"] * 32}, "linear_num_key_heads is missing"),
    ({**PLAIN, "text_config": 3}, "text_config must be an object"),
    ({**PLAIN, "num_kv_shared_layers": 32}, "num_kv_shared_layers must be below"),
    ({**PLAIN, "compress_ratios": [4, 128]}, "not modeled"),
    ({**PLAIN, "hybrid_override_pattern": "x"}, "draws no layer with a cache"),
]


@pytest.mark.parametrize(("config", "message"), BAD)
def test_bad_config_is_a_sentence(config, message):
    """It names the field, and it is never anything but a sentence."""
    with pytest.raises(UnreadableConfigError, match=message):
        read_model(config)


ODD = [
    ({"num_experts": 8, "moe_layer_freq": [0]}, "experts", 32),
    ({"num_experts": 8, "decoder_sparse_step": 0}, "experts", 32),
    ({"attention_chunk_size": 64, "no_rope_layer_interval": 0}, "kinds", 2),
    ({"max_position_embeddings": 0}, "max_length", 2048),
    ({"rope_scaling": {"type": "linear", "factor": 1e308}}, "max_length", 1 << 40),
    ({"model_max_length": 131072}, "max_length", 131072),
]


@pytest.mark.parametrize(("fields", "attribute", "value"), ODD)
def test_odd_values_have_a_meaning(fields, attribute, value):
    """Zero steps are steps of one, and a length is always some length."""
    found = getattr(read_model({**PLAIN, **fields}), attribute)

    assert (
        value
        == {"experts": lambda: found.layers, "kinds": lambda: len(found)}.get(
            attribute, lambda: found
        )()
    )


_FIELDS = [*PLAIN, "head_dim", "sliding_window", "layer_types", "rope_scaling", "num_experts"]
_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
)


@given(st.dictionaries(st.sampled_from(_FIELDS), _VALUES))
def test_any_config_is_a_shape_or_a_sentence(edits):
    """Never a traceback."""
    with suppress(UnreadableConfigError):
        assert isinstance(read_model({**PLAIN, **edits}), ModelShape)
