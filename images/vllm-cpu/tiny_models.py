"""Writes models small enough to start in seconds, without weights: `tiny_models.py FOLDER`.

Their tokenizer knows the 256 bytes and three special tokens, so any text round-trips. Serve them
with `--load-format dummy`, which fills the weights at random.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<s>", "</s>", "<pad>")
MODELS = {"tiny": 2048, "tiny-long": 4096}
"""Name of each model and the longest sequence that it claims to handle, in tokens."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def config(length: int) -> dict[str, object]:
    """A Llama of two layers. CPU attention refuses heads of fewer than 32 dimensions."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 256 + len(SPECIAL),
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def tokenizer() -> Tokenizer:
    """Byte-level BPE without a single merge."""
    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(
        models.BPE(vocab={text: index for index, text in enumerate(letters)}, merges=[])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return made


def write(folder: Path, length: int) -> None:
    """One model folder as the hub would lay it out."""
    folder.mkdir(parents=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[2],
        "model_max_length": length,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    (folder / "config.json").write_text(json.dumps(config(length), indent=1))


if __name__ == "__main__":
    for name, longest in MODELS.items():
        write(Path(sys.argv[1]) / name, longest)
