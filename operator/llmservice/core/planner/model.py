"""What a model asks of memory, read from the facts of its ``config.json``.

Field names and their fallbacks are those of vLLM 0.32 ``transformers_utils/
model_arch_config_convertor.py``; states of recurrent layers those of
``model_executor/layers/mamba/mamba_utils.py``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

MAX_VALUE = 1 << 40
"""No count in a config.json is larger; what is, is a mistake."""
_MAX_LAYERS = 10_000
_DEFAULT_LENGTH = 2048
"""vLLM's own for a config that names none."""


class UnreadableConfigError(ValueError):
    """The config does not say what a plan needs; the message names the field and the fix."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Layers that keep a key and a value per KV head for every token, or for a window of them."""

    layers: int
    kv_heads: int
    key_width: int
    """Elements of one head's key (``head_dim``)."""
    value_width: int
    window: int | None = None
    """Tokens that a sliding window sees; None for all."""
    chunk: int | None = None
    """Tokens of a chunk of chunked local attention; None for all."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Layers of multi-head latent attention: one compressed vector for all heads of a token."""

    layers: int
    width: int
    """Elements per token: ``kv_lora_rank + qk_rope_head_dim``."""


@dataclass(frozen=True, slots=True)
class Indexer:
    """Key caches of sparse attention's indexers (``deepseek_v32``): fp8 with float32 scales."""

    layers: int
    width: int
    """Elements per token (``index_head_dim``), each a byte, with 4 bytes of scale per 128."""

    @property
    def bytes_per_token(self) -> int:
        """VLLM 0.32 ``model_executor/models/deepseek_v2.py`` (DeepseekV32IndexerCache)."""
        return self.width + self.width // 128 * 4


@dataclass(frozen=True, slots=True)
class Recurrent:
    """Layers with a state of fixed size per request: linear attention, Mamba."""

    layers: int
    conv_width: int
    """Channels of the convolution, divided over tensor ranks."""
    conv_kernel: int
    state_elements: int
    """Elements of the recurrent state, divided over tensor ranks."""
    state_bytes: int
    """Bytes of one of them; the convolution's have the model's dtype."""
    projections: int
    """Columns of the layer's matrices, in and out together, ``hidden`` rows each."""


@dataclass(frozen=True, slots=True)
class Cross:
    """Layers that attend to an encoder's output."""

    layers: int
    kv_heads: int
    key_width: int
    encoder_tokens: int


LayerKind = Attention | Latent | Indexer | Recurrent | Cross


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture-of-experts part of a model."""

    layers: int
    count: int
    per_token: int
    width: int
    """``moe_intermediate_size``"""
    shared_width: int = 0
    """Width of the experts that every token takes, all together."""


@dataclass(frozen=True, eq=False)
class ModelShape:
    """Facts of one model; elements, not bytes, where nothing else is said.

    Compared by identity, so that a plan made from it can be looked up again.
    """

    kinds: tuple[LayerKind, ...]
    """Every layer's cache, like with like; layers that share another layer's cache are not in."""
    hidden: int
    heads: int
    layers: int
    mlp_width: int
    """``intermediate_size`` of dense layers."""
    vocabulary: int
    max_length: int
    """Longest request the model was made for, in tokens, as vLLM derives it."""
    dtype_bytes: int
    """Of weights that are not quantized, of activations, and of the KV cache by default."""
    tied: bool
    """Input and output embedding are one matrix."""
    experts: Experts | None
    quantization: Mapping[str, Any]
    """``quantization_config``; empty for none."""
    multimodal: bool
    gated: bool = True
    """The MLP has a gate matrix beside up and down."""
    query_width: int = 0
    """Elements of one head's query; 0 where it is the key's."""
    query_rank: int = 0
    """``q_lora_rank``; 0 for a full query projection."""
    latent_rank: int = 0
    """``kv_lora_rank``"""
    value_width: int = 0
    """``v_head_dim`` of latent attention."""
    nope_width: int = 0
    """``qk_nope_head_dim`` of latent attention."""
    gated_attention: bool = False
    """The query projection carries an output gate beside the query."""
    draft_layers: int = 0
    """Multi-token-prediction layers in the checkpoint, used only when speculation asks for it."""

    @cached_property
    def is_hybrid(self) -> bool:
        """Whether layers differ in how their cache grows."""
        return len({_growth(kind) for kind in self.kinds}) > 1


def _growth(kind: LayerKind) -> tuple[str, int | None, int | None]:
    if isinstance(kind, Attention):
        return "attention", kind.window, kind.chunk
    return type(kind).__name__, None, None


def read_model(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a ``config.json`` describes; fields that plans do not use are ignored.

    Args:
        config: the parsed file, or its facts with ``text_config`` flattened.

    Raises:
        UnreadableConfigError: a field is missing, of the wrong type or absurd.
    """
    return _Reader(config).shape()


class _Reader:
    """One config, looked at through its text part first, as vLLM does."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping):
            raise UnreadableConfigError("config.json must be an object with the model's fields")
        text = config.get("text_config") or config.get("llm_config") or config
        if not isinstance(text, Mapping):
            raise UnreadableConfigError("text_config must be an object with the model's fields")
        self.root = config
        self.text = text

    def shape(self) -> ModelShape:
        layers = self.count("num_hidden_layers", "n_layer", "n_layers", "num_layers")
        if layers > _MAX_LAYERS:
            raise UnreadableConfigError(f"num_hidden_layers is {layers}: no model is that deep")
        hidden = self.count("hidden_size", "n_embd", "d_model", "model_dim")
        experts = self.experts(layers)
        return ModelShape(
            kinds=tuple(self.kinds(layers)),
            hidden=hidden,
            heads=self.heads,
            layers=layers,
            mlp_width=self.optional("intermediate_size", "ffn_dim", "n_inner", default=0)
            or 4 * hidden,
            vocabulary=self.count("vocab_size", "padded_vocab_size"),
            max_length=self.max_length(),
            dtype_bytes=self.dtype_bytes(),
            tied=bool(self.either("tie_word_embeddings", self.model_type in _TIED)),
            experts=experts,
            quantization=self.quantization(),
            multimodal=self.text is not self.root
            or any(key in self.root for key in ("vision_config", "audio_config"))
            or self.root.get("multimodal") is True,
            gated=self.model_type not in _NOT_GATED,
            query_width=self.query_width(),
            query_rank=self.optional("q_lora_rank", default=0),
            latent_rank=self.optional("kv_lora_rank", default=0),
            value_width=self.optional("v_head_dim", default=0),
            nope_width=self.optional("qk_nope_head_dim", default=0),
            gated_attention=self.text.get("attn_output_gate") is True
            or self.model_type == "qwen3_next",
            draft_layers=self.optional(
                "num_nextn_predict_layers", "mtp_num_hidden_layers", default=0
            ),
        )

    # --- layers -----------------------------------------------------------------------------------

    @property
    def model_type(self) -> str:
        return str(self.text.get("model_type") or self.root.get("model_type") or "")

    @property
    def heads(self) -> int:
        return self.count("num_attention_heads", "n_head", "n_heads")

    @property
    def head_width(self) -> int:
        return self.optional("head_dim", "hidden_size_per_head", default=0) or (
            self.count("hidden_size", "n_embd", "d_model") // self.heads
        )

    @property
    def kv_heads(self) -> int:
        return self.optional(
            "n_head_kv",
            "num_kv_heads",
            "num_key_value_heads",
            "multi_query_group_num",
            "num_attention_groups",
            default=0,
        ) or (1 if self.text.get("multi_query") is True else self.heads)

    def query_width(self) -> int:
        if self.text.get("kv_lora_rank"):
            return self.count("qk_nope_head_dim") + self.count("qk_rope_head_dim")
        return self.head_width

    def kinds(self, layers: int) -> Iterator[LayerKind]:
        if self.text.get("compress_ratios"):
            raise UnreadableConfigError(
                f"{self.model_type or 'this architecture'} compresses its KV cache in a way that is"
                " not modeled"
            )
        own = layers - self.optional("num_kv_shared_layers", default=0)
        if own < 1:
            raise UnreadableConfigError("num_kv_shared_layers must be below num_hidden_layers")
        if self.text.get("kv_lora_rank"):
            yield from self.latent(own)
            return
        types = self.layer_types(layers)[:own]
        for name in dict.fromkeys(types):  # in the order of their first layer
            yield self.layer(name, types.count(name))
        if self.text.get("is_encoder_decoder") or self.root.get("is_encoder_decoder"):
            tokens = self.optional("max_source_positions", "encoder_seq_length", default=0)
            yield Cross(own, self.kv_heads, self.head_width, tokens or self.max_length())

    def latent(self, layers: int) -> Iterator[LayerKind]:
        yield Latent(layers, self.count("kv_lora_rank") + self.count("qk_rope_head_dim"))
        if self.text.get("index_head_dim"):
            full = self.optional("num_indexer_layers", default=layers)
            types = self.text.get("indexer_types")
            if _is_list(types):
                full = sum(str(each) == "full" for each in types)
            yield Indexer(full, self.count("index_head_dim"))

    def layer(self, name: str, layers: int) -> LayerKind:
        match name:
            case "linear_attention" | "gdn":
                return self.gated_delta_net(layers)
            case "mamba" | "mamba2":
                return self.mamba(layers)
            case "sliding_attention":
                window = self.count("sliding_window", "sliding_window_size")
                return self.attention(layers, window=window)
            case "chunked_attention":
                return self.attention(layers, chunk=self.count("attention_chunk_size"))
            case "full_attention" if wide := self.optional("global_head_dim", default=0):
                heads = self.optional("num_global_key_value_heads", default=self.kv_heads)
                return Attention(layers, heads, wide, wide)
            case "full_attention" | "attention":
                return self.attention(layers)
        raise UnreadableConfigError(
            f"layer_types has {name!r}, which is not known: the plan needs a kind of attention"
        )

    def attention(
        self, layers: int, *, window: int | None = None, chunk: int | None = None
    ) -> Attention:
        values = self.optional("v_head_dim", default=0) or self.head_width
        return Attention(layers, self.kv_heads, self.head_width, values, window, chunk)

    def gated_delta_net(self, layers: int) -> Recurrent:
        key_heads = self.count("linear_num_key_heads")
        value_heads = self.count("linear_num_value_heads")
        key_width = self.count("linear_key_head_dim")
        value_width = self.count("linear_value_head_dim")
        keys, values = key_heads * key_width, value_heads * value_width
        return Recurrent(
            layers,
            conv_width=2 * keys + values,
            conv_kernel=self.count("linear_conv_kernel_dim"),
            state_elements=value_heads * key_width * value_width,
            state_bytes=_DTYPE_BYTES.get(str(self.text.get("mamba_ssm_dtype") or "float32"), 4),
            projections=2 * keys + 3 * values + 2 * value_heads,
        )

    def mamba(self, layers: int) -> Recurrent:
        heads = self.count("mamba_n_heads", "mamba_num_heads")
        width = self.count("mamba_d_head", "mamba_head_dim")
        state = self.count("mamba_d_state", "ssm_state_size")
        groups = self.optional("mamba_n_groups", "n_groups", default=1)
        return Recurrent(
            layers,
            conv_width=heads * width + 2 * groups * state,
            conv_kernel=self.count("mamba_d_conv", "conv_kernel"),
            state_elements=heads * width * state,
            state_bytes=_DTYPE_BYTES.get(str(self.text.get("mamba_ssm_dtype")), 0)
            or self.dtype_bytes(),
            projections=3 * heads * width + 2 * groups * state + heads,
        )

    def layer_types(self, layers: int) -> list[str]:
        """One name per layer, whichever way the config says it."""
        for field in ("layer_types", "layers_block_type"):
            if _is_list(named := self.text.get(field)):
                if len(named) != layers:
                    raise UnreadableConfigError(
                        f"{field} names {len(named)} layers, num_hidden_layers says {layers}"
                    )
                return [str(name) for name in named]
        if isinstance(drawn := self.text.get("hybrid_override_pattern"), str):
            # Nemotron-H: M is Mamba, * attention; the rest (-, E) has no cache.
            if types := [_DRAWN[letter] for letter in drawn if letter in _DRAWN]:
                return types
            raise UnreadableConfigError("hybrid_override_pattern draws no layer with a cache")
        if interval := self.optional("full_attention_interval", default=0):
            return _pattern(layers, interval, "linear_attention")
        if self.text.get("attention_chunk_size"):
            every = self.optional("no_rope_layer_interval", default=4) or 4
            return _pattern(layers, every, "chunked_attention")
        return self.windowed(layers)

    def windowed(self, layers: int) -> list[str]:
        window = self.text.get("sliding_window")
        switched_off = self.text.get("use_sliding_window") is False
        if not window or switched_off:
            return ["full_attention"] * layers
        pattern = self.optional(
            "sliding_window_pattern",
            "_sliding_window_pattern",
            default=_PATTERNS.get(self.model_type, 0),
        )
        if pattern:
            return _pattern(layers, pattern, "sliding_attention")
        return ["sliding_attention"] * layers

    # --- the rest ---------------------------------------------------------------------------------

    def experts(self, layers: int) -> Experts | None:
        count = self.optional(
            "num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts", default=0
        )
        if count <= 1:
            return None
        width = self.optional("moe_intermediate_size", "expert_ffn_hidden_size", default=0)
        width = width or self.count("intermediate_size")
        shared = self.optional("shared_expert_intermediate_size", default=0)
        shared = shared or width * self.optional(
            "n_shared_experts", "num_shared_experts", default=0
        )
        return Experts(
            layers=self.expert_layers(layers),
            count=count,
            per_token=self.optional(
                "num_experts_per_tok", "num_experts_per_token", "moe_topk", default=1
            ),
            width=width,
            shared_width=shared,
        )

    def expert_layers(self, layers: int) -> int:
        dense = self.text.get("mlp_only_layers")
        if _is_list(dense) and dense:
            return max(1, layers - len(dense))
        step = self.optional(
            "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", default=1
        )
        first = self.optional("first_k_dense_replace", default=0)
        return max(1, -(-max(1, layers - first) // max(1, step)))

    def max_length(self) -> int:
        """As vLLM 0.32 ``config/model.py`` (_get_and_verify_max_len): scaled where rope says so."""
        length = self.optional(
            "model_max_length",  # outranks the others (Command-R)
            "max_position_embeddings",
            "n_positions",
            "max_seq_len",
            "seq_length",
            "max_target_positions",
            default=_DEFAULT_LENGTH,
        )
        length = length or _DEFAULT_LENGTH
        rope = self.text.get("rope_scaling") or self.text.get("rope_parameters")
        if not isinstance(rope, Mapping) or "gemma3" in self.model_type:
            return length
        kind = str(rope.get("rope_type") or rope.get("type") or "default")
        factor = rope.get("factor")
        if kind in ("linear", "dynamic") and isinstance(factor, int | float) and factor > 0:
            return int(min(length * factor, MAX_VALUE))
        return length

    def dtype_bytes(self) -> int:
        named = self.either("torch_dtype", None) or self.either("dtype", None) or "bfloat16"
        name = str(named).removeprefix("torch.")
        # vLLM serves 32-bit checkpoints in 16 bits (dtype auto).
        return 2 if name == "float32" else _DTYPE_BYTES.get(name, 2)

    def quantization(self) -> Mapping[str, Any]:
        found = self.either("quantization_config", None) or self.either("compression_config", None)
        return found if isinstance(found, Mapping) else {}

    # --- fields -----------------------------------------------------------------------------------

    def either(self, field: str, default: Any) -> Any:
        """The field of the root, or of the text part."""
        value = self.root.get(field)
        return self.text.get(field, default) if value is None else value

    def count(self, *fields: str) -> int:
        """A count that must be there: the first of its names that is."""
        value = self.optional(*fields, default=0)
        if not value:
            raise UnreadableConfigError(
                f"{fields[0]} is missing: add it from the model's config.json"
            )
        return value

    def optional(self, *fields: str, default: int) -> int:
        for field in fields:
            value = self.text.get(field)
            if value is None:
                continue
            if _is_list(value) and value:
                value = value[0]  # per layer in a few remote-code models, and always the same
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UnreadableConfigError(f"{field} must be a whole number, not {value!r:.40}")
            if not 0 <= value <= MAX_VALUE:
                raise UnreadableConfigError(f"{field} is {value}: no model has that")
            return value
        return default


_DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float": 4, "half": 2}
_TIED = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "opt", "gpt2", "falcon", "cohere"})
"""Where transformers' class default is a tied embedding and config.json leaves it out."""
_NOT_GATED = frozenset(
    {"opt", "gpt2", "falcon", "starcoder2", "gpt_bigcode", "gpt_neox", "nemotron"}
)
_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
"""One full layer in so many, where transformers' class says it and config.json may not."""
_DRAWN = {"M": "mamba", "*": "attention"}


def _pattern(layers: int, interval: int, other: str) -> list[str]:
    """Every ``interval``-th layer sees all tokens."""
    return [other if (i + 1) % interval else "full_attention" for i in range(layers)]


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
